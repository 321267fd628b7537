"""How close reconstructions are to their images: SSIM, LPIPS, PSNR, MSE and Dice of maps, per subject and phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys as Keys
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from scripts.cohort.layout import LABELS
from scripts.metrics.resampling import bootstrap_mean
from scripts.perceptual import PerceptualDistance
from scripts.views import View, as_view, map_labels

SSIM_WINDOW = 7  # pixels, scikit-image's default
QUALITIES = ("SSIM", "LPIPS", "PSNR", "MSE")  # in the order of the paper's Table 1


def image_quality(image: np.ndarray, reconstruction: np.ndarray) -> dict[str, float]:
    """SSIM, PSNR and MSE of one gray image.

    SSIM has scikit-image's uniform 7x7 window; it and PSNR (dB) take 1 as the range of the data. The decoder has no
    output activation, so that its values are clipped to [0, 1] for these two; the MSE is of the values as they are.

    Args:
        image: (H, W) in [0, 1].
        reconstruction: (H, W).
    """
    clipped = np.clip(reconstruction, 0, 1)
    with np.errstate(divide="ignore"):  # the PSNR of a perfect reconstruction is infinite
        psnr = float(peak_signal_noise_ratio(image, clipped, data_range=1))
    return {
        "SSIM": float(structural_similarity(image, clipped, win_size=SSIM_WINDOW, data_range=1)),
        "PSNR": psnr,
        "MSE": float(np.square(image - reconstruction).mean()),
    }


def dice(image: torch.Tensor, reconstruction: torch.Tensor, view: View) -> dict[str, np.ndarray]:
    """Dice of decoded against given occupancy maps, of the label with the largest share, over all slices.

    Args:
        image, reconstruction: all channels (B, C, H, W) of a view with maps.
        view: of the channels.

    Returns:
        ``Dice_<structure>_<phase>`` to (B,); NaN where neither shows the structure.
    """
    given, decoded = (map_labels(view.slice_maps(values), axis=-3) for values in (image, reconstruction))
    found = {}
    for structure, label in LABELS.items():
        masks = [(labels == label).flatten(2).double() for labels in (given, decoded)]
        both, sizes = (masks[0] * masks[1]).sum(2), masks[0].sum(2) + masks[1].sum(2)
        values = (2 * both / sizes).cpu().numpy()  # 0 / 0 is NaN
        found |= {f"Dice_{structure}_{phase}": values[:, k] for k, phase in enumerate(view.phases)}
    return found


class ImageQuality:
    """Measure each subject's reconstruction per phase. Attach it to a ``CodeEvaluator``.

    After the run, ``rows`` holds per subject ``SSIM_ED``, ``LPIPS_ED``, ...; a phase of several slices has their mean,
    without those that lie beyond the scan. With occupancy maps, ``Dice_LV_ED``, ... follow.

    Args:
        view: of the image's channels, or phases.
        lpips: distance that was not part of the training.
    """

    def __init__(self, view: View | Sequence[str], lpips: PerceptualDistance) -> None:
        self.view, self.lpips = as_view(view), lpips
        self.rows: list[dict[str, float]] = []

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator."""
        engine.add_event_handler(Events.STARTED, lambda engine: self.rows.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)

    def collect(self, engine: Engine) -> None:
        """Measure one batch."""
        image, reconstruction = (engine.state.output[key] for key in (Keys.IMAGE, Keys.PRED))
        phases = (values.unbind(1) for values in map(self.view.slice_images, (image, reconstruction)))
        measured = [self.measure(*phase) for phase in zip(*phases, self.view.inside(image).unbind(1), strict=True)]
        overlaps = dice(image, reconstruction, self.view) if self.view.mapped else {}
        for number, subject in enumerate(zip(*measured, strict=True)):
            qualities = {
                f"{quality}_{phase}": values[quality]
                for phase, values in zip(self.view.phases, subject, strict=True)
                for quality in QUALITIES
            }
            self.rows.append(qualities | {name: float(values[number]) for name, values in overlaps.items()})

    def measure(
        self, images: torch.Tensor, reconstructions: torch.Tensor, inside: torch.Tensor
    ) -> list[dict[str, float]]:
        """The qualities of each subject in a phase (B, slices, H, W), over its slices inside the scan (B, slices)."""
        with torch.no_grad():
            pairs = (values.flatten(0, 1)[:, None] for values in (reconstructions.clamp(0, 1), images))
            distances = self.lpips(*pairs).unflatten(0, images.shape[:2]).cpu().numpy()
        measured = []
        for image, reconstruction, distance, shown in zip(
            images.float().cpu().numpy(), reconstructions.float().cpu().numpy(), distances, inside.cpu(), strict=True
        ):
            slices = [
                image_quality(image[k], reconstruction[k]) | {"LPIPS": float(distance[k])}
                for k in np.flatnonzero(shown)
            ]
            measured.append({name: float(np.mean([values[name] for values in slices])) for name in QUALITIES})
        return measured


def dice_summary(rows: Sequence[Mapping[str, float]], phases: Sequence[str], seed: int = 0) -> dict:
    """Means over subjects with their 95% intervals, as ``quality_summary``, of each structure; empty without maps."""
    return {
        group: {name: bootstrap_mean(subject_means(rows, f"Dice_{name}", members), seed) for name in LABELS}
        for group, members in groups_of(phases).items()
        if rows and f"Dice_LV_{phases[0]}" in rows[0]
    }


def quality_summary(rows: Sequence[Mapping[str, float]], phases: Sequence[str], seed: int = 0) -> dict:
    """Means over subjects with their 95% intervals (bootstrap of subjects), for All and for each phase.

    Args:
        rows: per subject, ``<quality>_<phase>``.
        phases: which of them there are; All is each subject's mean over them.
        seed: of the bootstrap.

    Returns:
        All, ED, ES -> quality -> ``value``, ``low``, ``high``.
    """
    return {
        group: {quality: bootstrap_mean(subject_means(rows, quality, members), seed) for quality in QUALITIES}
        for group, members in groups_of(phases).items()
    }


def groups_of(phases: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Name of a group to its phases: All, and each alone."""
    return {"All": tuple(phases)} | {phase: (phase,) for phase in phases}


def subject_means(rows: Sequence[Mapping[str, float]], name: str, phases: Sequence[str]) -> list[float]:
    """Each subject's mean of a quantity over phases."""
    return [float(np.mean([row[f"{name}_{phase}"] for phase in phases])) for row in rows]
