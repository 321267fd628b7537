"""How close reconstructions are to their images: SSIM, LPIPS, PSNR and MSE, per subject and phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys as Keys
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from scripts.metrics.resampling import bootstrap_mean
from scripts.perceptual import PerceptualDistance

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


class ImageQuality:
    """Measure each subject's reconstruction per phase. Attach it to a ``CodeEvaluator``.

    After the run, ``rows`` holds per subject ``SSIM_ED``, ``LPIPS_ED``, ...; a phase of several slices has their mean.

    Args:
        phases: of the image's channels; each has as many channels as the others, one after the other.
        lpips: distance that was not part of the training.
    """

    def __init__(self, phases: Sequence[str], lpips: PerceptualDistance) -> None:
        self.phases, self.lpips = tuple(phases), lpips
        self.rows: list[dict[str, float]] = []

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator."""
        engine.add_event_handler(Events.STARTED, lambda engine: self.rows.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)

    def collect(self, engine: Engine) -> None:
        """Measure one batch."""
        pairs = [engine.state.output[key].chunk(len(self.phases), dim=1) for key in (Keys.IMAGE, Keys.PRED)]
        measured = [self.measure(*pair) for pair in zip(*pairs, strict=True)]
        for subject in zip(*measured, strict=True):
            self.rows.append(
                {
                    f"{quality}_{phase}": values[quality]
                    for phase, values in zip(self.phases, subject, strict=True)
                    for quality in QUALITIES
                }
            )

    def measure(self, images: torch.Tensor, reconstructions: torch.Tensor) -> list[dict[str, float]]:
        """The qualities of each subject in one phase, (B, slices, H, W)."""
        with torch.no_grad():
            distances = self.lpips(reconstructions.clamp(0, 1), images).tolist()
        measured = []
        for image, reconstruction, distance in zip(images, reconstructions, distances, strict=True):
            pairs = zip(image.float().cpu().numpy(), reconstruction.float().cpu().numpy(), strict=True)
            slices = [image_quality(*pair) for pair in pairs]
            means = {name: float(np.mean([values[name] for values in slices])) for name in slices[0]}
            measured.append(means | {"LPIPS": distance})
        return measured


def quality_summary(rows: Sequence[Mapping[str, float]], phases: Sequence[str], seed: int = 0) -> dict:
    """Means over subjects with their 95% intervals (bootstrap of subjects), for All and for each phase.

    Args:
        rows: per subject, ``<quality>_<phase>``.
        phases: which of them there are; All is each subject's mean over them.
        seed: of the bootstrap.

    Returns:
        All, ED, ES -> quality -> ``value``, ``low``, ``high``.
    """
    groups = {"All": tuple(phases)} | {phase: (phase,) for phase in phases}
    return {
        group: {
            quality: bootstrap_mean([np.mean([row[f"{quality}_{phase}"] for phase in members]) for row in rows], seed)
            for quality in QUALITIES
        }
        for group, members in groups.items()
    }
