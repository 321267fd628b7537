"""What inference.json needs for a viewer, which asks for one scan by its path and wants one volume back.

MONAI Label runs the config's preprocessing, network and postprocessing on its request: a dictionary with the path
``image``, and keys of its own that it reads again when it writes the result.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.data import MetaTensor
from monai.transforms import SelectItemsd, Transform
from monai.utils.enums import CommonKeys as Keys

from scripts.cohort.single import subject_item

VIEWED = "viewed_phase"


def viewed_subject(request: Mapping[Hashable, Any], phases: Sequence[str]) -> dict[Hashable, Any]:
    """A viewer's request with the item of the subject whose scan it shows, and with the phase that it shows.

    Args:
        request: ``image`` is the path of a scan in its subject's folder.
        phases: of the model; of a cine, or a phase that the model does not know, the first is shown.

    Raises:
        TypeError: for voxels instead of a path, since the masks that place the crop lie beside the file.
        SubjectError: when the subject cannot be used.
    """
    scan = request[Keys.IMAGE]
    if not isinstance(scan, str | Path):
        raise TypeError(
            f"image is a {type(scan).__name__}; expected the path of a scan, beside which its masks and the other "
            "phase lie. Voxels alone cannot be cropped around the ventricles."
        )
    shown = next((phase for phase in phases if Path(scan).name == f"sa_{phase}.nii.gz"), phases[0])
    return {**request, **subject_item(Path(scan).parent), VIEWED: shown}


class SelectUnlessViewedd(SelectItemsd):
    """Select the keys of a subject; a viewer's request keeps all of its own.

    Args:
        keys: to keep.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return dict(data) if VIEWED in data else super().__call__(data)


class ViewedScand(Transform):
    """Give a viewer what it asked for: as ``pred`` the phase that it shows (1, X, Y, Z), in the scan's grid.

    Its ``image`` gets the scan's geometry, which the viewer writes into the file. Subjects of a datalist stay.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        if VIEWED not in data:
            return dict(data)
        shown: MetaTensor = data[f"{Keys.PRED}_{data[VIEWED]}"]
        geometry = {"affine": shown.affine, "original_affine": shown.affine.numpy(), "spatial_shape": shown.shape[1:]}
        return {**data, Keys.IMAGE: MetaTensor(data[Keys.IMAGE], meta=geometry), Keys.PRED: shown}
