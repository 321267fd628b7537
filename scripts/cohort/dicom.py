"""Importer of short-axis cine DICOM, as UK Biobank ships it in field 20209, to the UKBB format.

What it does, where the files leave a choice:

- Short-axis series are those whose description says SA, SAX or short (``CINE_segmented_SAX_b1``); of these, tagged
  cines, T1 maps (MOLLI), scouts, and copies with contours burned in (InlineVF) are left out, as is the long axis.
- A slice position that was acquired more than once gets its last acquisition: the highest series number, then the
  latest series time, then the highest acquisition number. The user is told.
- Voxels are kept as stored. Only where the files ask for a rescaling other than 1 and 0 is it applied; then voxels are
  float32, and the user is told.
- Slices are sorted by position, in the direction in which they were numbered, frames by trigger time.

Names, numbers and dates of a patient, and UIDs, are not written anywhere. ITK's GDCM reads the files.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
import warnings
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import itk
import numpy as np

from scripts.cohort.importing import import_subjects
from scripts.cohort.layout import SubjectError, write_volume
from scripts.parallel import Workers

SHORT_AXIS = re.compile(r"sax|short|(?<![a-z])sa(?![a-z])", re.IGNORECASE)
NO_CINE = re.compile(r"inlinevf|tagging|molli|scout|locali[sz]er", re.IGNORECASE)
UID = re.compile(r"\d+(\.\d+){3}")
TAGS = {
    "study": "0020|000d",
    "series": "0020|000e",
    "series number": "0020|0011",
    "series time": "0008|0031",
    "description": "0008|103e",
    "acquisition number": "0020|0012",
    "instance number": "0020|0013",
    "position": "0020|0032",
    "orientation": "0020|0037",
    "pixel spacing": "0028|0030",
    "trigger time": "0018|1060",
}
SAME_SLICE = 0.5  # mm between positions of one slice
SAME_DIRECTION = 1e-3  # between direction cosines of parallel slices
EVEN = 0.1  # part of the slice distance by which distances may differ
EXPECTED = "expected one folder or zip of DICOM files per subject, such as 1234567_20209_2_0.zip"

Slice = list["Frame"]


@dataclass(frozen=True)
class Frame:
    """One short-axis image, as far as its place in the cine goes.

    Args:
        path: of the file.
        study: tells studies apart.
        series: tells acquisitions apart and sorts them: number, time and UID.
        acquisition, instance: numbers within the series, 0 where the file has none.
        position: of the first voxel's center in mm, LPS.
        orientation: direction cosines of the image's x axis, then of its y axis, LPS.
        spacing, matrix: pixel size (mm) and number of pixels along x and y.
        trigger: time since the R wave in ms.
    """

    path: Path
    study: str
    series: tuple[float, str, str]
    acquisition: float
    instance: float
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    matrix: tuple[int, int]
    trigger: float


def import_dicom(
    source_dir: str | os.PathLike | None, dataset_dir: str | os.PathLike, workers: Workers | int | None = None
) -> None:
    """Convert short-axis cines from DICOM to the UKBB format: ``sa.nii.gz`` per subject, all names in ``info.csv``.

    There are no masks in DICOM. A subject that cannot be read, or whose slices do not make an even stack, is skipped,
    with the reason in ``import.csv``.

    Args:
        source_dir: folder with one folder or zip of DICOM files per subject, whose name becomes the subject's.
        dataset_dir: target, made when missing.
        workers: who converts; None takes one process per core.

    Raises:
        FileNotFoundError: when ``source_dir`` holds neither folder nor zip.
        ValueError: when no subject could be imported.
    """
    if source_dir is None:
        raise FileNotFoundError(f"name the folder of DICOM subjects with --source_dir; {EXPECTED}.")
    sources = sorted(path for path in Path(source_dir).glob("[!.]*") if path.is_dir() or is_zip(path))
    if not sources:
        raise FileNotFoundError(f"source_dir '{source_dir}' holds no DICOM subject; {EXPECTED}.")
    import_subjects(import_subject, sources, dataset_dir, ("subject",), workers, "DICOM")


def is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip" and path.is_file()


def import_subject(source: Path, target: Path) -> dict[str, str]:
    """Convert one subject; returns its row of ``info.csv``. Everything is read before anything is written."""
    if is_zip(source):
        target = target.with_name(source.stem)
        if source.with_suffix("").is_dir():
            raise SubjectError("the folder of the same name beside it is imported instead")
    with unpacked(source) as folder:
        frames = find_frames(folder)
        slices = sort_slices(frames)
        check_stack(slices)
        voxels = read_voxels(slices)
    notes = []
    if sum(map(len, slices)) < len(frames):
        notes.append("some slices were acquired more than once; the last acquisition is used")
    if voxels.dtype.kind == "f":
        notes.append("the files ask for a rescaling of their voxels, which was applied")
    if notes:
        warnings.warn("; ".join(notes), stacklevel=2)
    target.mkdir(exist_ok=True)
    write_volume(target / "sa.nii.gz", voxels, stack_affine(slices), frame_time(slices))
    return {"subject": target.name}


@contextmanager
def unpacked(source: Path) -> Iterator[Path]:
    """Yield a subject's folder: itself, or where its zip lies unpacked until the block ends.

    ``extractall`` drops what would lead a member out of that folder: drives, leading slashes, and ``..``.
    """
    if source.is_dir():
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="dicom-") as folder:
        try:
            with zipfile.ZipFile(source) as archive:
                archive.extractall(folder)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # their texts name members
            raise SubjectError(f"{source.name} cannot be unpacked: it is damaged, encrypted or no zip") from error
        except OSError as error:
            raise SubjectError(f"{source.name} cannot be unpacked ({error.strerror})") from error
        yield Path(folder)


def find_frames(folder: Path) -> list[Frame]:
    """Read the headers of all short-axis cine images in a folder and below; other files are passed over.

    Raises:
        SubjectError: when there is none, or one is damaged or lacks what its place in the cine depends on.
    """
    frames, images = [], 0
    for path in sorted(path for path in folder.rglob("[!.]*") if path.is_file() and path.name != "DICOMDIR"):
        header = read_header(path)
        images += header is not None
        description = read_text(header, "description") if header else ""
        if SHORT_AXIS.search(description) and not NO_CINE.search(description):
            frames.append(read_frame(header, path))
    if not frames:
        raise SubjectError(
            f"none of its {images} DICOM images belongs to a short-axis cine; the series description must hold "
            "SA, SAX or short"
        )
    return frames


def read_header(path: Path) -> Any | None:
    """Read the header of a DICOM image; returns GDCM's reader, or None for a file that is something else.

    Raises:
        SubjectError: for a DICOM file that cannot be read, which otherwise would be missing without a word.
    """
    reader = itk.GDCMImageIO.New()  # a new one for each file: no tag of the last one can be taken for this one's
    if not reader.CanReadFile(str(path)):
        if is_dicom(path):
            raise SubjectError(f"{shown(path)} is a damaged DICOM file")
        return None
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:  # a report or another object without pixels
        return None
    return reader


def is_dicom(path: Path) -> bool:
    """Whether the file has the signature of DICOM, after 128 bytes of anything."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError as error:
        raise SubjectError(f"{shown(path)} cannot be opened ({error.strerror})") from error


def shown(path: Path) -> str:
    """A file's name for a message, unless it is an identifier itself, as in UK Biobank's zips."""
    return "a file that is named by its UID" if UID.search(path.name) else path.name


def read_frame(header: Any, path: Path) -> Frame:
    """Take from a header what tells the image's place in the cine.

    Raises:
        SubjectError: naming the file and what it lacks.
    """
    if header.GetDimensions(2) > 1 or header.GetNumberOfComponents() != 1:
        raise SubjectError(f"{shown(path)} holds several frames or colors; expected one gray image per file")
    return Frame(
        path=path,
        study=read_text(header, "study"),
        series=(read_number(header, "series number"), read_text(header, "series time"), read_text(header, "series")),
        acquisition=read_number(header, "acquisition number"),
        instance=read_number(header, "instance number"),
        position=read_numbers(header, "position", 3, path),
        orientation=read_orientation(header, path),
        spacing=read_numbers(header, "pixel spacing", 2, path)[::-1],  # DICOM names the distance of rows first
        matrix=(header.GetDimensions(0), header.GetDimensions(1)),
        trigger=read_numbers(header, "trigger time", 1, path)[0],
    )


def read_text(header: Any, name: str) -> str:
    tags = header.GetMetaDataDictionary()
    return tags[TAGS[name]].strip(" \0") if tags.HasKey(TAGS[name]) else ""


def read_number(header: Any, name: str) -> float:
    """A number that only sorts: 0 where the file has none."""
    try:
        return float(read_text(header, name))
    except ValueError:
        return 0.0


def read_numbers(header: Any, name: str, count: int, path: Path) -> tuple[float, ...]:
    """Numbers that must be there.

    Raises:
        SubjectError: naming the file and the tag.
    """
    try:
        numbers = tuple(map(float, read_text(header, name).split("\\")))
    except ValueError:
        numbers = ()
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise SubjectError(f"{shown(path)} has no usable {name} ({TAGS[name].replace('|', ',')})")
    return numbers


def read_orientation(header: Any, path: Path) -> tuple[float, ...]:
    """The direction cosines, freed of what their decimals round off."""
    x, y = np.reshape(read_numbers(header, "orientation", 6, path), (2, 3))
    if not np.allclose((x @ x, y @ y, x @ y), (1, 1, 0), rtol=0, atol=1e-2):
        raise SubjectError(f"{shown(path)} has an orientation that is not two perpendicular directions")
    x = x / np.linalg.norm(x)
    y = y - x * (x @ y)
    return (*x, *(y / np.linalg.norm(y)))


def sort_slices(frames: Sequence[Frame]) -> list[Slice]:
    """Sort frames into slices along the stack, and each slice's last acquisition by trigger time.

    Raises:
        SubjectError: when they are of several studies, or not parallel.
    """
    studies = len({frame.study for frame in frames})
    if studies > 1:
        raise SubjectError(f"its short-axis images are of {studies} studies; give each its own folder")
    orientations = np.array([frame.orientation for frame in frames])
    if np.abs(orientations - orientations[0]).max() > SAME_DIRECTION:
        raise SubjectError("its short-axis images are not parallel")
    depths = np.array([frame.position for frame in frames]) @ normal(frames[0])
    order = np.argsort(depths, kind="stable")
    places = np.split(order, np.flatnonzero(np.diff(depths[order]) > SAME_SLICE) + 1)
    slices = [last_acquisition([frames[i] for i in place]) for place in places]
    return slices if runs_forward(slices) else slices[::-1]


def normal(frame: Frame) -> np.ndarray:
    return np.cross(frame.orientation[:3], frame.orientation[3:])  # of length 1, as read_orientation sees to


def last_acquisition(frames: Sequence[Frame]) -> Slice:
    """Of the frames at one position those acquired last, by trigger time.

    Within a series, acquisition numbers count repetitions only if each has several frames: some scanners count frames.
    """
    frames = last_group(frames, lambda frame: frame.series)
    counts = Counter(frame.acquisition for frame in frames)
    if min(counts.values()) > 1:
        frames = last_group(frames, lambda frame: frame.acquisition)
    return sorted(frames, key=lambda frame: frame.trigger)


def last_group(frames: Sequence[Frame], key: Callable[[Frame], Any]) -> Slice:
    groups = defaultdict(list)
    for frame in frames:
        groups[key(frame)].append(frame)
    return groups[max(groups)]


def runs_forward(slices: Sequence[Slice]) -> bool:
    """Whether slices mostly follow each other as they were numbered, so that the scanner's first slice comes first.

    Mostly, since a slice that was repeated at the end has a high number.
    """
    numbers = [min((*frame.series, frame.instance) for frame in frames) for frames in slices]
    order = sorted(range(len(slices)), key=numbers.__getitem__)
    middle = (len(slices) - 1) / 2
    return sum((place - middle) * (index - middle) for place, index in enumerate(order)) >= 0


def check_stack(slices: Sequence[Slice]) -> None:
    """Check that slices make one array: equal pixels, equal numbers of frames, even distances, none beside the others.

    Raises:
        SubjectError: with the first reason why not.
    """
    for name, tolerance, what in (("matrix", 0, "numbers of pixels"), ("spacing", 1e-3, "pixel spacings (mm)")):
        sizes = np.array([getattr(frame, name) for frames in slices for frame in frames])
        if not np.allclose(sizes, sizes[0], rtol=tolerance, atol=0) or sizes.min() <= 0:
            found = " and ".join(" x ".join(f"{size:g}" for size in pair) for pair in np.unique(sizes, axis=0)[:3])
            raise SubjectError(f"its short-axis images cannot be stacked with {what} {found}")
    check_frames(slices)
    check_distances(slices)


def check_frames(slices: Sequence[Slice]) -> None:
    usual = Counter(map(len, slices)).most_common(1)[0][0]
    for number, frames in enumerate(slices, start=1):
        where = f"slice {number} of {len(slices)}"
        if len(frames) != usual:
            raise SubjectError(f"{where} has {len(frames)} frames where others have {usual}; are all files there?")
        if (np.diff([frame.trigger for frame in frames]) <= 0).any():
            raise SubjectError(f"{where} has two images of the same trigger time; does a file lie there twice?")
    if usual < 2:
        raise SubjectError("it has one frame per slice; a cine has several")


def check_distances(slices: Sequence[Slice]) -> None:
    if len(slices) < 2:
        raise SubjectError("all its short-axis images lie at one position; a stack has several slices")
    positions = np.array([frames[0].position for frames in slices])
    axis = normal(slices[0][0])
    steps = np.diff(positions @ axis)
    usual = sorted(steps, key=abs)[(len(steps) - 1) // 2]  # of two, the one without a gap
    uneven = np.flatnonzero(np.abs(steps / usual - 1) > EVEN)
    if uneven.size:
        first = int(uneven[0])
        raise SubjectError(
            f"slices {first + 1} and {first + 2} of {len(slices)} are {abs(steps[first]):.1f} mm apart where others "
            f"are {abs(usual):.1f} mm: a slice is missing or lies elsewhere"
        )
    offsets = positions - positions[0]
    sideways = np.linalg.norm(offsets - np.outer(offsets @ axis, axis), axis=1)
    if sideways.max() > min(slices[0][0].spacing) / 2:
        raise SubjectError(f"its slices are shifted against each other by up to {sideways.max():.1f} mm in plane")


def read_voxels(slices: Sequence[Slice]) -> np.ndarray:
    """Read the cine (X, Y, Z, T): as stored, or as float32 where the files ask for a rescaling."""
    voxels = np.stack([np.stack([read_pixels(frame.path) for frame in frames], axis=-1) for frames in slices], axis=2)
    return voxels.astype(np.float32) if voxels.dtype.kind == "f" else voxels


def read_pixels(path: Path) -> np.ndarray:
    """Read one image (X, Y): integers as stored, float32 if GDCM had to rescale them.

    Raises:
        SubjectError: when the pixels are damaged.
    """
    reader = itk.GDCMImageIO.New()
    try:
        pixels = itk.array_from_image(itk.imread(str(path), imageio=reader))
    except RuntimeError as error:  # its text holds the path
        raise SubjectError(f"{shown(path)} cannot be read to its end") from error
    rescaled = (reader.GetRescaleSlope(), reader.GetRescaleIntercept()) != (1, 0)
    pixels = pixels.reshape(pixels.shape[-2:]).T
    return pixels.astype(np.float32) if rescaled else pixels


def stack_affine(slices: Sequence[Slice]) -> np.ndarray:
    """The affine (4x4, RAS, mm) of a stack whose slice distance is that of the positions, gap included."""
    first, last = slices[0][0], slices[-1][0]
    depth = (np.array(last.position) - first.position) @ normal(first)
    affine = np.eye(4)
    affine[:3, 0] = np.multiply(first.orientation[:3], first.spacing[0])
    affine[:3, 1] = np.multiply(first.orientation[3:], first.spacing[1])
    affine[:3, 2] = normal(first) * depth / (len(slices) - 1)
    affine[:3, 3] = first.position
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM's axes point to the left and back, NIfTI's right and front


def frame_time(slices: Sequence[Slice]) -> float:
    """Seconds between frames; slices are of different heartbeats, hence their median."""
    durations = [(frames[-1].trigger - frames[0].trigger) / (len(frames) - 1) for frames in slices]
    return float(np.median(durations)) / 1000
