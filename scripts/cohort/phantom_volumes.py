"""The phantom's population: volumes that vary together as in healthy and diseased hearts.

Numbers in mL. They are good for drawing phantoms, not for judging patients.
"""

from __future__ import annotations

import numpy as np

from scripts.cohort.attributes import VOLUMES

DISEASES = ("DCM", "HCM", "RV")

# Mean and SD after the UK Biobank reference ranges (Petersen et al. 2017); the myocardium's is mass / 1.05 g/mL
MEANS = {"male": (166, 182, 98, 69, 85, 101), "female": (124, 130, 67, 49, 55, 69)}
DEVIATIONS = {"male": (32, 36, 20, 16, 22, 20), "female": (21, 24, 12.4, 11, 15, 12.4)}
# Pearson correlations in the normal subjects of ACDC's training set
CORRELATIONS = np.array(
    [
        [1.00, 0.92, 0.85, 0.87, 0.78, 0.71],
        [0.92, 1.00, 0.80, 0.81, 0.75, 0.66],
        [0.85, 0.80, 1.00, 0.82, 0.80, 0.94],
        [0.87, 0.81, 0.82, 1.00, 0.75, 0.76],
        [0.78, 0.75, 0.80, 0.75, 1.00, 0.75],
        [0.71, 0.66, 0.94, 0.76, 0.75, 1.00],
    ]
)
LVEF_RANGE = (0.35, 0.75)
RVEF_RANGE = (0.25, 0.75)
MYO_RATIO_RANGE = (0.97, 1.10)  # muscle is incompressible; segmentations find a little more of it at ES
SV_MISMATCH = 0.25  # what the ventricles may eject more or less than each other, unless the RV is diseased
MIN_VOLUME = 25.0
MAX_DRAWS = 10_000


def draw_volumes(rng: np.random.Generator, diagnosis: str = "NOR") -> tuple[str, dict[str, float]]:
    """Draw the sex and the six volumes (mL) of one subject.

    Args:
        rng: source of randomness.
        diagnosis: NOR, DCM (dilated), HCM (hypertrophic) or RV (enlarged, weak right ventricle).

    Returns:
        ``male`` or ``female``, and LVEDV, RVEDV, MyoEDV, LVESV, RVESV, MyoESV.
    """
    sex = str(rng.choice(list(MEANS)))
    deviations = np.array(DEVIATIONS[sex])
    covariance = CORRELATIONS * np.outer(deviations, deviations)
    for _ in range(MAX_DRAWS):
        volumes = dict(zip(VOLUMES, rng.multivariate_normal(MEANS[sex], covariance).tolist(), strict=True))
        volumes = _diseased(rng, volumes, diagnosis)
        if _plausible(volumes, diagnosis):
            return sex, volumes
    raise RuntimeError(f"no plausible volumes for {diagnosis} in {MAX_DRAWS} draws")


def _diseased(rng: np.random.Generator, volumes: dict[str, float], diagnosis: str) -> dict[str, float]:
    """Remodel a healthy heart's volumes by typical factors and ejection fractions of the disease."""
    if diagnosis == "NOR":
        return volumes
    left, right, wall, lvef = {
        "DCM": (rng.uniform(1.3, 1.8), rng.uniform(1.0, 1.2), rng.uniform(1.1, 1.4), rng.uniform(0.35, 0.46)),
        "HCM": (rng.uniform(0.8, 1.0), rng.uniform(0.8, 1.0), rng.uniform(1.4, 2.0), rng.uniform(0.62, 0.75)),
        "RV": (rng.uniform(0.8, 1.0), rng.uniform(1.3, 1.7), rng.uniform(0.9, 1.1), rng.uniform(0.45, 0.65)),
    }[diagnosis]
    lvedv, rvedv = left * volumes["LVEDV"], right * volumes["RVEDV"]
    rvef = rng.uniform(0.28, 0.42) if diagnosis == "RV" else lvef * lvedv / rvedv * rng.uniform(0.9, 1.1)
    myo = {name: wall * volumes[name] for name in ("MyoEDV", "MyoESV")}
    return {"LVEDV": lvedv, "RVEDV": rvedv, "LVESV": (1 - lvef) * lvedv, "RVESV": (1 - rvef) * rvedv, **myo}


def _plausible(volumes: dict[str, float], diagnosis: str) -> bool:
    lvsv, rvsv = (volumes[f"{side}EDV"] - volumes[f"{side}ESV"] for side in ("LV", "RV"))
    return (
        min(volumes.values()) >= MIN_VOLUME
        and LVEF_RANGE[0] <= lvsv / volumes["LVEDV"] <= LVEF_RANGE[1]
        and RVEF_RANGE[0] <= rvsv / volumes["RVEDV"] <= RVEF_RANGE[1]
        and MYO_RATIO_RANGE[0] <= volumes["MyoESV"] / volumes["MyoEDV"] <= MYO_RATIO_RANGE[1]
        and (diagnosis == "RV" or abs(rvsv - lvsv) <= SV_MISMATCH * lvsv)
    )
