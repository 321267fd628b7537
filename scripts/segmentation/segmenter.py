"""A trained segmentation network: from a scan to its label mask, in the scan's own grid."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.networks.nets import UNet
from monai.transforms import ScaleIntensity, ScaleIntensityRangePercentiles
from torch.nn.functional import pad

from scripts import checkpoint
from scripts.cohort.attributes import base_is_first
from scripts.segmentation.anatomy import mended, with_trimmed_rv
from scripts.segmentation.slices import CLASSES, check_pixels, resized, to_slices
from scripts.shipped import require_shipped

FILE = "segmentation.pt"
# The model zoo's ventricular_short_axis_3label, from its configs: slices with the pixels that they have, each scaled to
# [0, 1], padded to 256 x 256; labels as here.
ZOO_UNET = {
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": CLASSES,
    "channels": [16, 32, 64, 128, 256],
    "strides": [2, 2, 2, 2],
    "num_res_units": 2,
}
ZOO_SIZE = 256
EXPECTED_UNET = "expected the arguments of monai.networks.nets.UNet for slices, one channel in and four out"


class Segmenter:
    """Segment short-axis scans slice by slice.

    Args:
        network: slices (Z, 1, H, W) to scores (Z, 4, H, W) of background, LV, myocardium, RV; H and W are multiples of
            ``divisor``.
        scale: brings the intensities of slices (Z, X, Y) to those that the network knows.
        spacing: pixel size in mm that the network knows; None leaves pixels as they are.
        divisor: what height and width are padded to a multiple of.
        min_size: what height and width are padded to at least; twice the divisor where that is more, since instance
            normalization needs more than the one pixel that the deepest layer would see of the divisor.
        base_ratio: see ``with_trimmed_rv``; 0 leaves the RV's base as it is predicted.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        scale: Callable[[torch.Tensor], torch.Tensor],
        spacing: float | None,
        divisor: int,
        min_size: int = 1,
        base_ratio: float = 0.0,
    ) -> None:
        self.network, self.scale, self.spacing = network.eval(), scale, spacing
        self.divisor, self.min_size = divisor, max(min_size, 2 * divisor)
        self.base_ratio = base_ratio

    def __call__(self, scan: np.ndarray | torch.Tensor, voxel: Sequence[float]) -> np.ndarray:
        """The label mask of a scan.

        Args:
            scan: one volume (X, Y, Z), or a cine (X, Y, Z, T), whose frames are segmented each by itself but
                for which end is the base.
            voxel: voxel size in mm.

        Returns:
            uint8 labels of the scan's shape.

        Raises:
            SubjectError: for a volume of more pixels than ``MAX_PIXELS``, as the network would see it.
        """
        scan = torch.as_tensor(scan, dtype=torch.float32)
        frames = scan.movedim(-1, 0) if scan.ndim == 4 else scan[None]
        masks = [mended(self.labels(frame, voxel)) for frame in frames]
        first = base_is_first(dict(enumerate(masks)))
        masks = [with_trimmed_rv(mask, first, self.base_ratio) for mask in masks]
        return np.stack(masks, axis=-1) if scan.ndim == 4 else masks[0]

    def labels(self, volume: torch.Tensor, voxel: Sequence[float]) -> np.ndarray:
        """The labels of a volume (X, Y, Z) as the network sees them."""
        scaled = self.scale(volume.movedim(-1, 0)).movedim(0, -1)  # slices are the channels here
        slices = to_slices(scaled[None], voxel, self.spacing)
        scores = resized(self.scores(slices), volume.shape[:2])
        return scores.argmax(1).movedim(0, -1).to(torch.uint8).numpy()

    @torch.inference_mode()
    def scores(self, slices: torch.Tensor) -> torch.Tensor:
        """Scores (Z, 4, H, W) of slices (Z, 1, H, W) of any height and width."""
        device = next(self.network.parameters()).device
        height, width = slices.shape[-2:]
        margins = [max(-n % self.divisor, self.min_size - n) for n in (width, height)]
        check_pixels(len(slices), (height + margins[1], width + margins[0]))
        framed = pad(slices, (0, margins[0], 0, margins[1]))
        return self.network(framed.to(device))[..., :height, :width].float().cpu()


def save_segmenter(
    network: torch.nn.Module, unet: Mapping[str, Any], spacing: float, base_ratio: float, path: str | os.PathLike
) -> None:
    """Write the weights of a network with what one must know to use them.

    Args:
        network: the trained network.
        unet: the arguments of ``monai.networks.nets.UNet`` that made it.
        spacing: pixel size in mm of the slices that it was trained on.
        base_ratio: see ``with_trimmed_rv``.
        path: target, such as ``segmentation.pt``.
    """
    known = {"unet": dict(unet), "spacing": spacing, "base_ratio": base_ratio}
    checkpoint.save({"network": network.state_dict(), **known}, path)


def load_segmenter(path: str | os.PathLike, device: str | torch.device = "cpu") -> Segmenter:
    """Read a network that ``run training`` with segment.json wrote, or the model zoo's ventricular_short_axis_3label.

    Raises:
        FileNotFoundError, ValueError: naming the file, when it is missing, unreadable, neither of them, or would fail
            with every scan.
    """
    try:
        return segmenter_of(checkpoint.read(path), path, device)
    except (FileNotFoundError, ValueError, KeyError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(
            f"segmentation '{path}' cannot be used: name a file segmentation.pt that 'run training' with segment.json "
            f"wrote, or the model zoo's, with --segmentation ({error})"
        ) from None


def segmenter_of(content: Mapping[str, Any], path: str | os.PathLike, device: str | torch.device) -> Segmenter:
    """The segmenter of a checkpoint's content."""
    if "unet" in content:
        unet, weights = content["unet"], content["network"]
        scale = ScaleIntensityRangePercentiles(1, 99, 0, 1, clip=True)
        options = {key: content[key] for key in ("spacing", "base_ratio")}
        check_options(**options)
    else:
        unet, weights = ZOO_UNET, content.get("model", content)
        scale = ScaleIntensity(channel_wise=True)
        options = {"spacing": None, "min_size": ZOO_SIZE}
    network, divisor = unet_of(unet)
    if not isinstance(weights, Mapping) or not all(isinstance(each, torch.Tensor) for each in weights.values()):
        raise ValueError("its weights are not tensors by name; expected those of a network")
    checkpoint.fit_weights(network, weights, path)
    segmenter = Segmenter(network, scale, divisor=divisor, **options)
    try_out(segmenter)  # before a device is used, whose faults are not the file's
    network.to(device)
    return segmenter


def check_options(spacing: Any, base_ratio: Any) -> None:
    """Raise ValueError for numbers that no training writes; NaN is none of those that are compared."""
    numbers = {type(None), int, float}
    if type(spacing) not in numbers or not (spacing is None or 0 < spacing < math.inf):
        raise ValueError(f"spacing is {spacing!r}; expected a pixel size in mm, or None")
    # Infinite in an earlier network, of a training whose masks had no two slices of RV.
    if type(base_ratio) not in numbers - {type(None)} or not base_ratio >= 0:
        raise ValueError(f"base_ratio is {base_ratio!r}; expected a number of at least 0")


def unet_of(arguments: Any) -> tuple[UNet, int]:
    """An untrained network by its arguments, and what the height and width of its slices are multiples of.

    Raises:
        ValueError: for arguments that make no network.
    """
    try:
        network, strides = UNet(**arguments), np.asarray(arguments["strides"])
    except Exception as error:  # MONAI and PyTorch raise many kinds for arguments that they do not check
        raise ValueError(f"unet is {arguments!r}, which makes no network ({error}); {EXPECTED_UNET}") from error
    if strides.dtype.kind != "i" or strides.min() < 1:
        raise ValueError(f"unet has strides {arguments['strides']!r}; expected whole numbers of at least 1")
    return network, math.prod(strides.ravel().tolist())


def try_out(segmenter: Segmenter) -> None:
    """Raise ValueError for a network that cannot segment the smallest slice there is: it would fail with every scan."""
    try:
        shape = tuple(segmenter.scores(torch.zeros(1, 1, 1, 1)).shape)
    except Exception as error:  # of many kinds, as above
        raise ValueError(f"its network takes no slices ({error}); {EXPECTED_UNET}") from error
    if shape != (1, CLASSES, 1, 1):
        raise ValueError(f"its network gives {shape} for one slice of one pixel; expected (1, {CLASSES}, 1, 1)")


def find_segmenter(near: str | os.PathLike, bundle_root: str | os.PathLike) -> str | None:
    """The network to use where none is named: that in a folder or beside a checkpoint, or of the bundle, or none.

    Raises:
        FileNotFoundError, ValueError: for one of the bundle that is missing from its archive, or another file.
    """
    folder = Path(near).parent if Path(near).is_file() else Path(near)
    own, shipped = folder / FILE, Path(bundle_root) / "models" / FILE
    if not own.is_file() or own.resolve() == shipped.resolve():
        require_shipped(shipped)
    return next((str(path) for path in (own, shipped) if path.is_file()), None)
