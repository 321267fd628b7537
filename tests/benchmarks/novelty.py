"""Is a scan in range, and do the intervals hold? Held-out patients, sound and with faults, judged by a calibration.

``python -m tests.benchmarks.novelty <datalist> <dataset_dir> <model folder> <result.json> [--overlays compact.json]``
makes each fault in the whole scan (and its masks) before the crop, and writes the area under the ROC curve of the score
and the share of flagged scans per fault, that of each indicator, and the coverage of each attribute's interval. The
section must be one that neither training nor calibration has seen. ``motion`` is periodic with the given amplitude;
``sudden motion``, which the calibration does not simulate, moves the heart once, by 12 mm.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose
from sklearn.metrics import roc_auc_score

from scripts.calibration.calibration import FILE, Calibration
from scripts.calibration.faults import towards_apex
from scripts.calibration.novelty import Novelty
from scripts.checkpoint import fingerprint
from scripts.cohort.datalist import load_items
from scripts.cohort.layout import PHASES
from scripts.storage import write_json

CONFIGS = Path(__file__).resolve().parents[2] / "bundle" / "configs"
Item = dict[str, Any]


def sound(item: Item) -> Item:
    """Nothing is wrong."""
    return item


def motion(item: Item, shift: Callable[[np.ndarray, float], np.ndarray]) -> Item:
    """Move the heart along the phase-encoding direction while the lines of each slice's k-space are acquired.

    Args:
        shift: position of a line, 0 to 1, and a random number -> displacement in mm.
    """
    for phase in PHASES:
        image = item[f"image_{phase}"]
        generator = np.random.default_rng(zlib.crc32(f"{item['subject']} {phase}".encode()))
        size = float(np.linalg.norm(image.affine.numpy()[:3, 1]))
        line = np.fft.fftfreq(image.shape[2])
        for z in range(image.shape[3]):
            moved = shift(line + 0.5, generator.uniform()) / size
            lines = np.fft.fft(image[0, ..., z].numpy(), axis=1) * np.exp(-2j * np.pi * line * moved)
            image[0, ..., z] = torch.from_numpy(np.abs(np.fft.ifft(lines, axis=1)).astype(np.float32))
    return item


def breathing(amplitude: float) -> Callable[[np.ndarray, float], np.ndarray]:
    """Eight breaths during an acquisition, mm."""
    return lambda time, start: amplitude * np.sin(2 * np.pi * (8 * time + start))


def sudden(time: np.ndarray, start: float) -> np.ndarray:
    """12 mm at a moment in the middle third of the acquisition."""
    return 12.0 * (time > (1 + start) / 3)


def other_slice(item: Item, place: float) -> Item:
    """Take a slice at a place between the basal one (0) and the most apical one that shows LV and RV (1)."""
    for phase in PHASES:
        slices = towards_apex(item[f"mask_{phase}"].numpy()[0], item[f"basal_slice_{phase}"])
        item[f"basal_slice_{phase}"] = int(slices[min(int(place * len(slices)), len(slices) - 1)])
    return item


def swapped(item: Item) -> Item:
    """ES in place of ED."""
    for kind in ("image", "mask", "basal_slice"):
        item[f"{kind}_ED"], item[f"{kind}_ES"] = item[f"{kind}_ES"], item[f"{kind}_ED"]
    return item


def inverted(item: Item) -> Item:
    """Dark blood, bright lungs."""
    for phase in PHASES:
        item[f"image_{phase}"] = item[f"image_{phase}"].max() - item[f"image_{phase}"]
    return item


def mirrored(item: Item) -> Item:
    """Left and right exchanged in scan and mask."""
    for key in (f"{kind}_{phase}" for kind in ("image", "mask") for phase in PHASES):
        item[key].data.copy_(item[key].as_tensor().flip(1))
    return item


FAULTS: dict[str, Callable[[Item], Item]] = {
    "sound": sound,
    "motion 3 mm": lambda item: motion(item, breathing(3)),
    "motion 6 mm": lambda item: motion(item, breathing(6)),
    "motion 12 mm": lambda item: motion(item, breathing(12)),
    "sudden motion": lambda item: motion(item, sudden),
    "mid slice": lambda item: other_slice(item, 0.5),
    "apical slice": lambda item: other_slice(item, 1),
    "swapped phases": swapped,
    "inverted contrast": inverted,
    "mirrored": mirrored,
}


class Judge:
    """A trained model with its calibration.

    Args:
        folder: of ``model.pt`` and ``calibration.json``.
        overlays: of the training.
    """

    def __init__(self, folder: Path, overlays: Sequence[str]) -> None:
        config = ConfigParser()
        config.read_config([CONFIGS / name for name in ("train.json", *overlays)])
        self.network = config.get_parsed_content("network_def").eval()
        self.network.load_state_dict(torch.load(folder / "model.pt", map_location="cpu", weights_only=True))
        self.load, *self.steps = config.get_parsed_content("train#deterministic_transforms")
        self.calibration = Calibration.read(folder / FILE, fingerprint(folder / "model.pt"))

    @torch.no_grad()
    def judge(self, item: Item, fault: Callable[[Item], Item]) -> tuple[np.ndarray, Novelty]:
        """Code (D,) of one scan with a fault, and how unusual it is."""
        image = torch.as_tensor(Compose([self.load, fault, *self.steps])(item)["image"]).float()[None]
        codes, log_variances = self.network.encode(image)
        reconstruction = self.network.decode(codes)
        parts = [part[0] for part in (codes, log_variances, image, reconstruction)]
        return codes[0].numpy(), self.calibration.novelty(*parts)


def separation(sound_scans: Sequence[Novelty], faulty: Sequence[Novelty]) -> dict[str, Any]:
    """How well score and indicators tell faulty scans from sound ones, and how many are flagged."""
    labels = [0] * len(sound_scans) + [1] * len(faulty)
    scans = [*sound_scans, *faulty]
    return {
        "auroc": round(float(roc_auc_score(labels, [scan.score for scan in scans])), 4),
        "flagged": round(float(np.mean([scan.out_of_range for scan in faulty])), 4),
        "auroc_of_indicators": {
            name: round(float(roc_auc_score(labels, [scan.percentiles[name] for scan in scans])), 3)
            for name in scans[0].percentiles
        },
    }


def coverage(calibration: Calibration, items: Sequence[Item], codes: Sequence[np.ndarray]) -> dict[str, Any]:
    """Share of true values within their interval, per attribute and pooled, with width and error (mL)."""
    table: dict[str, Any] = {}
    for name, line in calibration.lines.items():
        rows = [(calibration.estimate(code)[name], item[name]) for code, item in zip(codes, items, strict=True)]
        table[name] = {
            "level": line.level,
            "covered": float(np.mean([low <= truth <= high for (_, low, high), truth in rows])),
            "half_width": round(line.half_width, 1),
            "mean_absolute_error": round(float(np.mean([abs(value - truth) for (value, *_), truth in rows])), 1),
        }
    pooled = float(np.mean([row["covered"] for row in table.values()]))
    return {"pooled": round(pooled, 4), "attributes": table}


def main() -> None:
    """Judge all scans and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("datalist", "dataset_dir", "folder", "result"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--overlays", nargs="*", default=["compact.json"])
    parser.add_argument("--section", default="test")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    judge = Judge(arguments.folder, arguments.overlays)
    items = load_items(arguments.datalist, arguments.dataset_dir, arguments.section, judge.calibration.attributes)
    judged = {name: [judge.judge(item, fault) for item in items] for name, fault in FAULTS.items()}
    scans = {name: [novelty for _, novelty in rows] for name, rows in judged.items()}
    result = {
        "patients": len(items),
        "sound_flagged": float(np.mean([scan.out_of_range for scan in scans["sound"]])),
        "faults": {name: separation(scans["sound"], rows) for name, rows in scans.items() if name != "sound"},
        "coverage": coverage(judge.calibration, items, [codes for codes, _ in judged["sound"]]),
    }
    write_json(arguments.result, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
