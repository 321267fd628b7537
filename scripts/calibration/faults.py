"""Faults of a scan, simulated so that the check of the range knows what they look like.

What is fitted to sound scans alone sees a faulty one only where it is extreme. Sound scans with simulated faults tell
what else to look at (outlier exposure: Hendrycks et al., ICLR 2019; known transformations: Golan & El-Yaniv, NeurIPS
2018). All but the other slice are simulated on the crop, which needs no scan to be loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.transforms import Transform

from scripts.cohort.attributes import slice_pixels
from scripts.cohort.layout import read_mask
from scripts.cohort.quality import QualityRules
from scripts.views import View, as_view

Fault = Callable[[torch.Tensor], torch.Tensor]
OTHER_SLICE = "other_slice"
AMPLITUDE = (2.5, 7.5)  # of a breathing heart's motion during the acquisition, mm
CYCLES = (4.0, 12.0)  # breaths, or heart beats, while all lines of k-space are acquired
MIN_PIXELS = QualityRules.min_pixels


def crop_faults(view: View | Sequence[str], spacing: float, generator: torch.Generator) -> dict[str, Fault]:
    """Name to what makes the fault in crops (B, C, H, W) in [0, 1].

    Occupancy maps follow a mirrored or exchanged scan, whose masks would be so, too; motion and contrast leave them.

    Args:
        view: of the channels, or phases; these are exchanged where there are two.
        spacing: pixel size in mm.
        generator: draws the motion.
    """
    view = as_view(view)
    faults: dict[str, Fault] = {
        "motion": lambda image: of_images(image, view, partial(ghosting, spacing=spacing, generator=generator)),
        "inverted": lambda image: of_images(image, view, inverted),
        "mirrored": lambda image: image.flip(-2),  # the crop keeps the RV on the left, so up and down change sides
    }
    if len(view.phases) == 2:
        faults["swapped"] = lambda image: swapped(image, view)
    return faults


def of_images(image: torch.Tensor, view: View, fault: Fault) -> torch.Tensor:
    """Make a fault in the images alone of all channels (B, C, H, W)."""
    return torch.cat([fault(image[:, : view.images]), image[:, view.images :]], dim=1)


def inverted(image: torch.Tensor) -> torch.Tensor:
    """Black for white; slices beyond the scan, which are all zero, stay so."""
    return torch.where(image.flatten(2).any(2)[..., None, None], 1 - image, image)


def swapped(image: torch.Tensor, view: View) -> torch.Tensor:
    """ED for ES, in all channels (B, C, H, W)."""
    parts = image[:, : view.images], image[:, view.images :]
    return torch.cat([phase for part in parts for phase in part.chunk(2, dim=1)[::-1]], dim=1)


def ghosting(image: torch.Tensor, spacing: float, generator: torch.Generator) -> torch.Tensor:
    """Periodic motion during the acquisition: every line of k-space sees the heart at another place, hence the ghosts.

    Args:
        image: (B, C, H, W); rows or columns, drawn per batch member, are the phase-encoding direction.
        spacing: pixel size in mm.
        generator: draws direction, amplitude, frequency and phase.
    """
    return torch.stack([_ghosts(member, spacing, generator) for member in image])


def _ghosts(image: torch.Tensor, spacing: float, generator: torch.Generator) -> torch.Tensor:
    def draw(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    turned = draw(0, 1) < 0.5
    image = image.transpose(-1, -2) if turned else image
    line = torch.fft.fftfreq(image.shape[-1], device=image.device)
    shift = draw(*AMPLITUDE) / spacing * torch.sin(2 * torch.pi * (draw(*CYCLES) * line + draw(0, 1)))
    lines = torch.fft.fft(image, dim=-1) * torch.exp(-2j * torch.pi * line * shift)
    ghosts = torch.fft.ifft(lines, dim=-1).abs().clamp(0, 1)
    return ghosts.transpose(-1, -2) if turned else ghosts


class OtherSlice(Transform):
    """Point a datalist item to a slice of the apical half instead of its basal one; in front of ``LoadSubjectd``.

    The slice is drawn, always the same for the same subject. A heart without another slice that shows LV and RV keeps
    its own. A view of several slices then begins there, as where the base was missed.

    Args:
        phases: that get another ``basal_slice_<phase>``.
    """

    def __init__(self, phases: Sequence[str]) -> None:
        self.phases = tuple(phases)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        position = np.random.default_rng(list(str(item["subject"]).encode())).random()
        for phase in self.phases:
            mask = read_mask(item[f"mask_{phase}"], item[f"frame_{phase}"])
            slices = towards_apex(mask, item[f"basal_slice_{phase}"])
            half = slices[len(slices) // 2 :]
            item[f"basal_slice_{phase}"] = int(half[int(position * len(half))])
        return item


def towards_apex(mask: np.ndarray, basal: int) -> np.ndarray:
    """Slices of a mask (X, Y, Z) that show LV and RV, from the basal one on."""
    pixels = slice_pixels(mask)
    shown = np.flatnonzero((pixels["LV"] >= MIN_PIXELS) & (pixels["RV"] >= MIN_PIXELS))
    if not len(shown):
        return np.array([basal])
    shown = shown if abs(shown[0] - basal) <= abs(shown[-1] - basal) else shown[::-1]
    from_base = [index for index in shown if abs(index - shown[-1]) <= abs(basal - shown[-1])]
    return np.array(from_base or [basal])
