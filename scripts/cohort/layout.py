"""The UKBB format (Bai et al., ukbb_cardiac): where a subject's scans and masks lie, and how they are read and written.

A subject is a folder that holds either one file per phase (``sa_ED.nii.gz``, ``sa_ES.nii.gz`` and the masks
``label_sa_*`` or ``seg_sa_*``) or a cine (``sa.nii.gz`` with ``seg_sa.nii.gz`` or ``label_sa.nii.gz``).
"""

from __future__ import annotations

import os
import re
import unicodedata
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import DTypeLike
from scipy.ndimage import median_filter

from scripts.cohort.headers import HeaderError, open_nifti
from scripts.storage import atomic_path, file_state

PHASES = ("ED", "ES")
LABELS = {"LV": 1, "Myo": 2, "RV": 3}
MASKS = "masks"  # folder beside a datalist, or in a folder of results, that holds the predicted masks
WHATIF = "whatif"  # folder in a folder of results that holds counterfactuals
MASK_KINDS = {"label": "manual", "seg": "automatic"}  # by prefix; manual masks are preferred
PREDICTED = "predicted"  # a mask that this bundle made, kept apart from the scans
MASK_TRUST = (*MASK_KINDS.values(), PREDICTED)  # the most trusted first
CINE_FRAMES = 10  # fewer than these are no cine whose volume changes little from frame to frame
MAX_INTENSITY = 1e30  # beyond, differences of voxels overflow
MAX_ORIGIN = 1e6  # mm; a scan that lies a kilometer off leaves no digits for the place of its voxels
LABEL_TOLERANCE = 1e-3  # a label that was scaled and stored as a float is not exactly its number
UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # control characters, bytes that are not UTF-8, line and paragraph ends
EXPECTED_LAYOUT = (
    "expected one folder per subject with sa_ED.nii.gz, sa_ES.nii.gz and their masks label_sa_*.nii.gz or "
    "seg_sa_*.nii.gz, or the cine sa.nii.gz with seg_sa.nii.gz"
)


class SubjectError(ValueError):
    """A subject that cannot be used; the message is the reason, in words."""


@dataclass(frozen=True)
class PhaseFiles:
    """Where one phase of a subject lies.

    Args:
        image: path of the scan, 3D (one phase) or 4D (cine).
        mask: path of the segmentation of the same shape.
        frame: frame of the cine, or None for a 3D file.
        mask_kind: ``manual``, ``automatic`` or ``predicted``.
    """

    image: Path
    mask: Path
    frame: int | None = None
    mask_kind: str = "manual"


def printable(name: str) -> str:
    """A name with what would break a line of a table or log, or fits into no text file, written as its code."""
    return "".join(ascii(each)[1:-1] if unicodedata.category(each) in UNPRINTABLE else each for each in name)


def find_subjects(dataset_dir: str | os.PathLike, output_dir: str | os.PathLike | None = None) -> list[Path]:
    """List the folders of a UKBB-format tree, sorted by name; one without a scan is a subject that has none.

    Args:
        dataset_dir: the folder that holds one folder per subject.
        output_dir: folder of results, which is no subject where it lies in the dataset; nor are its masks and what-ifs.

    Raises:
        FileNotFoundError: when the folder is missing or holds no subject; the message says what was found instead.
    """
    root = Path(dataset_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"dataset_dir '{root}' is not a folder; {EXPECTED_LAYOUT}.")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if output_dir is not None:
        results = Path(output_dir).resolve()
        own = {results / MASKS, results / WHATIF, results, *results.parents}
        folders = [folder for folder in folders if folder.resolve() not in own]
    if not any(any(folder.glob("*sa*.nii.gz")) for folder in folders):
        raise FileNotFoundError(f"dataset_dir '{root}' holds no subject; {EXPECTED_LAYOUT}. Found: {_kinds(root)}.")
    return folders


def _kinds(root: Path) -> str:
    """What lies in a folder, by kind: the names may be those of subjects, as of the UK Biobank's zips."""
    counts = Counter("folder" if path.is_dir() else _ending(path.name) for path in root.iterdir())
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common(5)) or "nothing"


def _ending(name: str) -> str:
    """What the name of a file ends in, unless that may be a part of an identifier, as in those of DICOM."""
    ending = re.search(r"(\.nii)?\.[a-z]{1,5}$", name)
    return ending[0] if ending else "other"


def phase_files(folder: Path, masks_dir: str | os.PathLike | None = None) -> dict[str, PhaseFiles]:
    """Locate the scan and the mask of both phases of one subject.

    In a cine, ED is frame 0 and ES the frame of smallest LV cavity volume.

    Args:
        folder: a subject's folder.
        masks_dir: where predicted masks lie, for scans that have no other.

    Returns:
        phase (``ED``, ``ES``) to its files.

    Raises:
        SubjectError: when a scan or a mask is missing.
    """
    scans = find_scans(folder)
    located = [_located(scan, masks_dir) for scan in scans]
    if len(scans) == len(PHASES):
        return dict(zip(PHASES, located, strict=True))
    cine = located[0]
    mask = read_mask(cine.mask)
    if mask.ndim != 4 or mask.shape[-1] < 2:
        raise SubjectError(f"{cine.mask.name} has shape {mask.shape}; a cine mask needs 4 axes and at least 2 frames")
    lv_voxels = np.count_nonzero(mask == LABELS["LV"], axis=(0, 1, 2))
    if cine.mask_kind == PREDICTED and len(lv_voxels) >= CINE_FRAMES:
        lv_voxels = median_filter(lv_voxels, 3, mode="wrap")  # a network may fail in a single frame
    segmented = np.flatnonzero(lv_voxels)  # frames that nobody segmented are not of zero volume
    if len(segmented) < 2 or segmented[0] != 0:
        raise SubjectError(f"{cine.mask.name} needs an LV cavity in frame 0 (ED) and in a later frame (ES)")
    frames = {"ED": 0, "ES": int(segmented[np.argmin(lv_voxels[segmented])])}
    return {phase: replace(cine, frame=frame) for phase, frame in frames.items()}


def find_scans(folder: Path) -> list[Path]:
    """The scans of a subject: one per phase, or the cine.

    Raises:
        SubjectError: when there is neither.
    """
    phases = [folder / f"sa_{phase}.nii.gz" for phase in PHASES]
    missing = [scan for scan in phases if not scan.exists()]
    if not missing:
        return phases
    if len(missing) < len(phases):
        raise SubjectError(f"{missing[0].name} is missing")
    if not (folder / "sa.nii.gz").exists():
        raise SubjectError("there is neither sa_ED.nii.gz and sa_ES.nii.gz nor the cine sa.nii.gz")
    return [folder / "sa.nii.gz"]


def given_mask(scan: Path) -> Path | None:
    """The mask that came with a scan, manual before automatic; None where there is none."""
    masks = (scan.with_name(f"{prefix}_{scan.name}") for prefix in MASK_KINDS)
    return next((mask for mask in masks if mask.exists()), None)


def predicted_mask(masks_dir: str | os.PathLike, scan: Path) -> Path:
    """Where the predicted mask of a scan lies: in the UKBB format too, in a tree of its own."""
    return Path(masks_dir) / scan.parent.name / f"seg_{scan.name}"


def mask_origin(scan: Path, network: str) -> str:
    """What a predicted mask depends on, short enough for a NIfTI header: the network and the scan's size and time."""
    return "segmented {:.12} {} {}".format(network, *file_state(scan))


def read_origin(mask: Path) -> str:
    """What a predicted mask says that it was made from; nothing where there is none that can be read."""
    try:
        return open_scan(mask).header["descrip"].item().decode(errors="replace")
    except SubjectError:
        return ""


def is_of(mask: Path, scan: Path) -> bool:
    """Whether a predicted mask was made from a scan as it is now."""
    return read_origin(mask).split()[2:] == mask_origin(scan, "").split()[1:]


def _located(scan: Path, masks_dir: str | os.PathLike | None) -> PhaseFiles:
    mask = given_mask(scan)
    if mask is not None:
        return PhaseFiles(scan, mask, mask_kind=MASK_KINDS[mask.name.split("_")[0]])
    if masks_dir is not None and is_of(predicted_mask(masks_dir, scan), scan):
        return PhaseFiles(scan, predicted_mask(masks_dir, scan), mask_kind=PREDICTED)
    expected = " or ".join(f"{prefix}_{scan.name}" for prefix in MASK_KINDS)
    raise SubjectError(
        f"no mask for {scan.name}: expected {expected}, or a segmentation network (--segmentation, see segment.json)"
    )


def read_image(path: str | os.PathLike, frame: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read one 3D volume and its affine, whose scale follows the header's zooms.

    Args:
        path: a 3D or 4D NIfTI file.
        frame: frame of a 4D file to read; None for a 3D file.

    Returns:
        the voxels (X, Y, Z) as float32, and the 4x4 affine in mm.

    Raises:
        SubjectError: for an unreadable file, a wrong number of axes, a voxel size that is not positive, or
            voxels that are not finite or too large to reckon with.
    """
    return _read(path, frame, axes=(3,))


def read_scan(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Read a volume (X, Y, Z) or a whole cine (X, Y, Z, T), and its affine, as ``read_image`` does."""
    return _read(path, None, axes=(3, 4))


def _read(path: str | os.PathLike, frame: int | None, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    image = open_scan(path)
    voxels = _voxels(image, path, frame, axes)
    if not np.isfinite(voxels).all():
        raise SubjectError(f"{Path(path).name} has voxels that are not finite (NaN or infinite); expected numbers")
    largest = max(voxels.max(), -voxels.min())
    if largest > MAX_INTENSITY:
        raise SubjectError(f"{Path(path).name} has voxels of {largest:g}; expected less than {MAX_INTENSITY:g}")
    return voxels, spacing_affine(image, path)


def read_stored(path: str | os.PathLike, frame: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read one 3D volume in the dtype that it is stored in, for an importer, and its affine as ``read_image`` does.

    Raises:
        SubjectError: for an unreadable file, another number of axes, or a voxel size that is not positive.
    """
    image = open_scan(path)
    return _voxels(image, path, frame, dtype=None), spacing_affine(image, path)


def read_mask(path: str | os.PathLike, frame: int | None = None) -> np.ndarray:
    """Read a label mask as uint8: (X, Y, Z), or (X, Y, Z, T) of a cine when no frame is named.

    Floats that are labels but for rounding, as a scaled mask has them, are these labels.

    Raises:
        SubjectError: for an unreadable file, or labels other than 0 (background), 1 (LV), 2 (Myo), 3 (RV).
    """
    mask = _voxels(open_scan(path), path, frame, axes=(3, 4) if frame is None else (3,))
    found = np.unique(mask)
    nearest = np.clip(np.rint(found), 0, max(LABELS.values()))
    unknown = found[~(np.abs(found - nearest) <= LABEL_TOLERANCE)]  # NaN is among them
    if unknown.size:
        listed = ", ".join(f"{label:g}" for label in unknown[:5])
        raise SubjectError(f"{Path(path).name} has unknown labels {listed}; expected 0, 1 (LV), 2 (Myo), 3 (RV)")
    return np.rint(mask).astype(np.uint8)


def read_pair(
    image: str | os.PathLike, mask: str | os.PathLike, frame: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read a phase's scan and mask, which are of one grid; returns voxels, mask and affine.

    Raises:
        SubjectError: as ``read_image`` and ``read_mask``, and for two shapes.
    """
    labels = read_mask(mask, frame)
    voxels, affine = read_image(image, frame)
    if voxels.shape != labels.shape:
        raise SubjectError(
            f"{Path(image).name}: scan has shape {voxels.shape} but its mask has {labels.shape}; expected the same"
        )
    return voxels, labels, affine


def open_scan(path: str | os.PathLike) -> nib.Nifti1Image:
    """Open a NIfTI file whose header can be trusted; voxels are not read yet.

    Raises:
        SubjectError: for an unreadable file, or a header that is not of a scan or mask, see ``open_nifti``.
    """
    try:
        return open_nifti(path)
    except HeaderError as error:
        raise SubjectError(f"{Path(path).name} {error}") from error
    except Exception as error:  # nibabel raises many kinds for a broken header
        words = " ".join(_without_folder(error, path).split()) or type(error).__name__
        raise SubjectError(f"{Path(path).name} cannot be opened ({words}); expected a NIfTI file") from error


def _voxels(
    image: nib.Nifti1Image,
    path: str | os.PathLike,
    frame: int | None,
    axes: tuple = (3,),
    dtype: DTypeLike | None = np.float32,
) -> np.ndarray:
    name, shape = Path(path).name, image.shape if frame is None else image.shape[:-1]
    if len(shape) not in axes:
        raise SubjectError(f"{name} has shape {image.shape}; expected {' or '.join(map(str, axes))} axes")
    try:
        voxels = image.dataobj if frame is None else image.dataobj[..., frame]
        with np.errstate(all="ignore"):  # a scale that overflows gives voxels that are not finite
            return np.asarray(voxels, dtype=dtype)
    except Exception as error:  # truncated gzip, short file, frame out of range
        told = _without_folder(error, path) or type(error).__name__
        raise SubjectError(f"{name} cannot be read to its end ({told})") from error


def _without_folder(error: Exception, path: str | os.PathLike) -> str:
    """An error of a file in words, without the file's folder: it is the subject's name."""
    text = str(error)
    for written in (str(path), repr(str(path))[1:-1]):  # an OSError has its file's name with escapes
        text = text.replace(written, Path(path).name)
    return text


def spacing_affine(image: nib.Nifti1Image, path: str | os.PathLike = "") -> np.ndarray:
    """The image's affine with its scale rebuilt from the header's zooms (mm), which are right more often.

    Warns when the two disagreed by more than 1 %.

    Raises:
        SubjectError: for fewer than three axes, or an affine that is not invertible.
    """
    zooms = np.asarray(image.header.get_zooms()[:3], dtype=float)
    if zooms.size < 3:
        raise SubjectError(f"{Path(path).name} has shape {image.shape}; expected 3 or 4 axes")
    affine = np.asarray(image.affine, dtype=float)
    scale = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3] / np.where(scale, scale, 1))) < 1e-3:
        raise SubjectError(f"{Path(path).name} has an affine that is not invertible; expected finite numbers")
    if np.abs(affine[:3, 3]).max() > MAX_ORIGIN:
        raise SubjectError(f"{Path(path).name} has its origin further off than {MAX_ORIGIN:g} mm; expected less")
    if np.abs(scale / zooms - 1).max() <= 0.01:
        return affine
    warnings.warn(
        f"{Path(path).name}: the affine's voxel size {scale.round(3).tolist()} disagrees with the header's "
        f"{zooms.round(3).tolist()} mm; the header's is used.",
        stacklevel=2,
    )
    mended = affine.copy()
    mended[:3, :3] = affine[:3, :3] / scale * zooms
    return mended


def write_volume(path: str | os.PathLike, voxels: np.ndarray, affine: np.ndarray, frame_time: float = 0.0) -> None:
    """Write a 3D volume or a 4D cine as NIfTI, in the voxels' own dtype and in mm.

    Args:
        path: target; its folder must exist.
        voxels: (X, Y, Z) or (X, Y, Z, T).
        affine: 4x4, in mm; the header's zooms are taken from it.
        frame_time: time between two frames in seconds, for a cine.
    """
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm", "sec")
    if voxels.ndim == 4:
        image.header.set_zooms((*image.header.get_zooms()[:3], frame_time))
    with atomic_path(path) as part:
        nib.save(image, part)


def write_like(
    path: str | os.PathLike, voxels: np.ndarray, scan: str | os.PathLike, description: str | None = None
) -> None:
    """Write voxels with the header of the scan that they belong to, so that any viewer overlays the two.

    Args:
        path: target; its folder must exist.
        voxels: (X, Y, Z), or (X, Y, Z, T) of a cine, in the scan's own grid; written as float32, or as integers.
        scan: the NIfTI file, 3D or 4D, whose affine, codes and units are taken over as they are.
        description: for the header's field of that name, up to 79 characters; None keeps the scan's.

    Raises:
        SubjectError: for a scan that cannot be opened, or whose header cannot be written again.
    """
    reference = open_scan(scan)
    try:
        image = image_like(voxels, reference, description)
        with atomic_path(path) as part:
            nib.save(image, part)
    except (HeaderDataError, ValueError) as error:
        raise SubjectError(f"{Path(scan).name} has a header that nothing can be written with ({error})") from error


def image_like(voxels: np.ndarray, reference: nib.Nifti1Image, description: str | None) -> nib.Nifti1Image:
    """Voxels with the header of an image."""
    voxels = voxels.astype(np.float32) if voxels.dtype.kind == "f" else voxels
    image = nib.Nifti1Image(voxels, reference.affine, reference.header)
    image.header.set_data_dtype(voxels.dtype)
    zooms = np.abs(reference.header.get_zooms()[: voxels.ndim])  # some writers leave a negative time between frames
    image.header.set_zooms(np.where(np.isfinite(zooms), zooms, 0))
    image.header["cal_min"] = image.header["cal_max"] = 0  # the scan's display range is not that of these voxels
    if description is not None:
        image.header["descrip"] = description
    return image


def frame_time(scan: str | os.PathLike) -> float:
    """Time between two frames of a cine in seconds, by its header; NaN where it does not tell.

    Without a unit, a time of more than 1 is in milliseconds, since no cine has so few frames that it could be seconds.
    """
    header = open_scan(scan).header
    zooms = header.get_zooms()
    step = float(zooms[3]) if len(zooms) > 3 else 0.0
    seconds = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}.get(header.get_xyzt_units()[1], 1e-3 if step > 1 else 1.0)
    return step * seconds if np.isfinite(step) and step > 0 else float("nan")
