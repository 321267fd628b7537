"""A synthetic cohort in UKBB format, to develop, test and demonstrate on without patient data.

`phantom_volumes` draws six volumes per subject, `phantom_heart` realizes them as a heart, and `phantom_image` takes its
scans.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
from scipy import ndimage

from scripts.cohort.attributes import VOLUMES
from scripts.cohort.layout import LABELS, PHASES, write_volume
from scripts.cohort.phantom_heart import Heart, HeartState, between, draw_shape, heart_grid
from scripts.cohort.phantom_image import Scanner
from scripts.cohort.phantom_volumes import DISEASES, draw_volumes
from scripts.parallel import Failed, Workers, parallel_map
from scripts.storage import output_folder, write_csv

COLUMNS = ("subject", "sex", "diagnosis", *VOLUMES, "layout", "intended_failure")

MIN_FIELD = 220.0  # mm in plane that the largest heart needs
MAX_DISTANCE = 10.0  # mm between slices of which the smallest heart fills six
LARGEST_CHANGE = 200  # mL
MAX_ROTATION = math.radians(35)
HEART_CYCLE = 0.9  # s
SYSTOLE = 0.38  # part of the cycle from ED to ES
LONG_AXIS = np.array([-0.65, 0.55, -0.5])  # base to apex: left, anterior, inferior


@dataclass(frozen=True)
class Subject:
    """What the cohort's plan says about one subject; all else follows from the seed and the index."""

    index: int
    diagnosis: str
    cine: bool
    failure: str

    @property
    def name(self) -> str:
        return f"phantom{self.index + 1:04d}"


@dataclass(frozen=True)
class Protocol:
    """How every subject is scanned: where to, with which seed, cine frames, in-plane size and voxel size (mm), and
    with which changes (mL) of its volumes."""

    root: Path
    seed: int
    frames: int
    size: tuple[int, int]
    spacing: tuple[float, float, float]
    changes: Mapping[str, float]


def write_cohort(
    dataset_dir: str | os.PathLike,
    subjects: int = 100,
    seed: int = 0,
    cine_fraction: float = 0.2,
    diseased_fraction: float = 0.3,
    failing: int = 1,
    frames: int = 8,
    workers: Workers | int | None = None,
    size: tuple[int, int] = (208, 187),
    spacing: tuple[float, float, float] = (1.8, 1.8, 10.0),
    changes: Mapping[str, float] | None = None,
) -> None:
    """Write a synthetic cohort in UKBB format, and ``info.csv`` with the volumes drawn for each subject.

    The same arguments write the same bytes, whatever the number of workers. Scans of an earlier phantom cohort in the
    same folder are replaced.

    Args:
        dataset_dir: the folder to write to; made when missing.
        subjects: number of subjects.
        seed: of all randomness.
        cine_fraction: part of the subjects with a 4D cine instead of one file per phase.
        diseased_fraction: part of the subjects with a dilated (DCM), hypertrophic (HCM) or enlarged right heart (RV).
        failing: number of subjects per rule of the quality control whose masks must fail it.
        frames: of a cine.
        workers: who writes; None takes one process per core.
        size: voxels along x and y.
        spacing: voxel size in mm; the third is the distance of the slices.
        changes: volume to mL that it is larger in every heart, such as ``{"LVEDV": 20}``: walls move, and all else
            about a subject, its length too, stays what it is. So a truth about a counterfactual can be rendered.

    Raises:
        ValueError: for a number out of range, or changes of what is no volume.
        FileExistsError: when ``dataset_dir`` holds an ``info.csv`` that is not a phantom cohort's.
        NotADirectoryError, PermissionError: when it cannot be written to.
        RuntimeError: when some could not be written, naming them, after all others are.
    """
    workers = Workers.of(workers)
    _check(subjects, cine_fraction, diseased_fraction, failing, frames)
    _check_grid(size, spacing)
    changes = _checked_changes({} if changes is None else changes)
    protocol = Protocol(_prepared(dataset_dir), seed, frames, tuple(size), tuple(spacing), changes)
    cohort = plan(subjects, seed, cine_fraction, diseased_fraction, failing)
    start = perf_counter()
    results = list(parallel_map(partial(write_subject, protocol=protocol), cohort, workers, "phantom", "subject"))
    outcomes = list(zip(cohort, results, strict=True))
    lost = [(subject, result.reason) for subject, result in outcomes if isinstance(result, Failed)]
    written = [(subject, row) for subject, row in outcomes if not isinstance(row, Failed)]
    write_csv(protocol.root / "info.csv", [row for _, row in written], COLUMNS)
    print(
        f"Wrote {_summary([subject for subject, _ in written])} to {protocol.root} in {perf_counter() - start:.0f} s."
    )
    if lost:
        listed = "; ".join(f"{subject.name}: {reason}" for subject, reason in lost[:5])
        raise RuntimeError(f"{len(lost)} of {len(cohort)} phantoms could not be written, the first of them {listed}.")


def _summary(cohort: list[Subject]) -> str:
    cines = sum(subject.cine for subject in cohort)
    diseased = sum(subject.diagnosis != "NOR" for subject in cohort)
    failing = sum(subject.failure != "" for subject in cohort)
    return f"{len(cohort)} phantoms ({cines} cine, {diseased} diseased, {failing} made to fail)"


def _check(subjects: int, cine_fraction: float, diseased_fraction: float, failing: int, frames: int) -> None:
    for name, fraction in (("cine_fraction", cine_fraction), ("diseased_fraction", diseased_fraction)):
        if not 0 <= fraction <= 1:
            raise ValueError(f"{name} is {fraction}; expected a number from 0 to 1.")
    for name, number, least in (("subjects", subjects, 1), ("frames", frames, 4)):
        if number < least:
            raise ValueError(f"{name} is {number}; expected at least {least}.")
    if not 0 <= failing * len(FAILURES) <= subjects:
        raise ValueError(
            f"failing is {failing}: {failing} for each of {len(FAILURES)} rules does not fit into {subjects} subjects: "
            "raise --subjects, or set --failing 0."
        )


def _check_grid(size: tuple[int, int], spacing: tuple[float, float, float]) -> None:
    field = min(size[0] * spacing[0], size[1] * spacing[1])
    if field < MIN_FIELD:
        raise ValueError(f"size times spacing is {field:.0f} mm; a heart needs {MIN_FIELD:.0f} mm in plane.")
    if not 0 < spacing[2] <= MAX_DISTANCE:
        raise ValueError(f"spacing of slices is {spacing[2]} mm; expected at most {MAX_DISTANCE:.0f} mm.")


def _checked_changes(changes: Mapping[str, float]) -> dict[str, float]:
    known = isinstance(changes, Mapping) and set(changes) <= set(VOLUMES)
    values = changes.values() if known else ()
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if not known or not numbers or not all(abs(value) <= LARGEST_CHANGE for value in values):
        raise ValueError(
            f"changes is {changes!r}; expected mL from -{LARGEST_CHANGE} to {LARGEST_CHANGE} by volume, such as "
            f"{{'LVEDV': 20}}, of {', '.join(VOLUMES)}."
        )
    return dict(changes)


def _prepared(dataset_dir: str | os.PathLike) -> Path:
    """Make the folder, and clear it of an earlier phantom cohort, of which leftovers would pass for new subjects."""
    root = output_folder(dataset_dir, "dataset_dir")
    info = root / "info.csv"
    if info.exists() and not set(COLUMNS) <= set(
        info.read_text(errors="replace").partition("\n")[0].strip().split(",")
    ):
        raise FileExistsError(f"'{info}' is not a phantom cohort's; choose another dataset_dir.")
    for scan in sorted(root.glob("phantom[0-9]*/*sa*.nii.gz")):
        scan.unlink()
        if not any(scan.parent.iterdir()):
            scan.parent.rmdir()
    return root


def plan(subjects: int, seed: int, cine_fraction: float, diseased_fraction: float, failing: int) -> list[Subject]:
    """Decide who is diseased, who has a cine and who is made to fail."""
    rng = np.random.default_rng(seed)
    diseases = [DISEASES[i % len(DISEASES)] for i in range(round(diseased_fraction * subjects))]
    failures = [name for name in FAILURES for _ in range(failing)]
    cines = [True] * round(cine_fraction * subjects)
    columns = (
        _scattered(rng, chosen, subjects, rest) for chosen, rest in ((diseases, "NOR"), (cines, False), (failures, ""))
    )
    return [Subject(index, *choice) for index, choice in enumerate(zip(*columns, strict=True))]


def _scattered(rng: np.random.Generator, chosen: list, length: int, rest: object) -> list:
    padded = chosen + [rest] * (length - len(chosen))
    return [padded[i] for i in rng.permutation(length)]


def write_subject(subject: Subject, protocol: Protocol) -> dict[str, object]:
    """Draw, scan and write one subject; returns its row of ``info.csv``."""
    rng = np.random.default_rng([protocol.seed, subject.index])
    sex, volumes = draw_volumes(rng, subject.diagnosis)
    changed = {name: volume + protocol.changes.get(name, 0) for name, volume in volumes.items()}
    for ventricle in ("LV", "RV"):
        if not changed[f"{ventricle}EDV"] > changed[f"{ventricle}ESV"] > 0:
            raise ValueError(
                f"with changes {protocol.changes} its {ventricle}EDV would not be above its {ventricle}ESV, or that "
                "not above 0"
            )
    images, masks, affine = _examine(rng, volumes, changed, subject, protocol)
    if subject.failure:
        masks = [FAILURES[subject.failure](mask) for mask in masks]
    folder = protocol.root / subject.name
    folder.mkdir(exist_ok=True)
    if subject.cine:
        frame_time = HEART_CYCLE / protocol.frames
        write_volume(folder / "sa.nii.gz", np.stack(images, axis=-1), affine, frame_time)
        write_volume(folder / "seg_sa.nii.gz", np.stack(masks, axis=-1), affine, frame_time)
    else:
        for phase, image, mask in zip(PHASES, images, masks, strict=True):
            write_volume(folder / f"sa_{phase}.nii.gz", image, affine)
            write_volume(folder / f"label_sa_{phase}.nii.gz", mask, affine)
    return {
        "subject": subject.name,
        "sex": sex,
        "diagnosis": subject.diagnosis,
        **{name: f"{volume:.2f}" for name, volume in changed.items()},
        "layout": "cine" if subject.cine else "phases",
        "intended_failure": subject.failure,
    }


def _examine(
    rng: np.random.Generator,
    volumes: dict[str, float],
    changed: dict[str, float],
    subject: Subject,
    protocol: Protocol,
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Scans and masks, (X, Y, Z) per frame, and the affine of a heart that was drawn for volumes and has changed ones.

    What surrounds it, and how it is scanned, stays that of the volumes.
    """
    size, spacing = protocol.size, protocol.spacing
    shape = draw_shape(rng, volumes, subject.diagnosis)
    depth = _slice_depths(rng, shape.length, spacing[2])
    rotation = float(np.clip(rng.normal(0, 0.25), -MAX_ROTATION, MAX_ROTATION))
    center = np.multiply(size, spacing[:2]) * (0.5, 0.45) + rng.uniform(-14, 14, 2)
    heart = Heart(shape, heart_grid(shape, size, spacing, depth, center, rotation))
    drawn = heart.solve(volumes)
    scanner = Scanner(rng, heart, size, spacing, center, rotation, drawn["ED"].epi)
    ends = drawn if changed == volumes else heart.solve(changed)
    states = _cycle(ends, protocol.frames) if subject.cine else [ends[phase] for phase in PHASES]
    order = rng.choice((1, -1))  # scanners number slices from the base or from the apex
    images = [scanner.scan(state)[:, :, ::order] for state in states]
    masks = [_whole(heart, state, size)[:, :, ::order] for state in states]
    return images, masks, _affine(rng, spacing, scanner.body.rotation, order)


def _slice_depths(rng: np.random.Generator, length: float, distance: float) -> np.ndarray:
    """Depths (Z,) of slices from one or two above the base to one below the apex."""
    first = -distance * rng.uniform(0.3, 1.7)
    return first + distance * np.arange(np.ceil((length + 1.2 * distance - first) / distance) + 1)


def _whole(heart: Heart, state: HeartState, size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros((*size, heart.grid.depth.size), np.uint8)
    mask[heart.grid.box] = heart.mask(state)
    return mask


def _cycle(ends: dict[str, HeartState], frames: int) -> list[HeartState]:
    """States of a heartbeat that starts at ED, reaches ES in one frame and relaxes again."""
    es_frame = max(1, round(SYSTOLE * frames))
    times = np.interp(np.arange(frames), (0, es_frame, frames), (0, 1, 2))
    return [between(ends["ED"], ends["ES"], (1 - math.cos(math.pi * time)) / 2) for time in times.tolist()]


def _affine(rng: np.random.Generator, spacing: tuple[float, float, float], roll: float, order: int) -> np.ndarray:
    """An oblique affine of a short-axis stack, 4x4: x towards the lateral wall, y downwards, z along the long axis."""
    axis = LONG_AXIS + rng.normal(0, 0.06, 3)
    axis /= np.linalg.norm(axis)
    down = np.array([0.0, 0.0, -1.0])
    down -= axis * (axis @ down)
    down /= np.linalg.norm(down)
    lateral = np.cross(axis, down)
    x, y = np.cos(roll) * lateral - np.sin(roll) * down, np.cos(roll) * down + np.sin(roll) * lateral
    affine = np.eye(4)
    affine[:3, :3] = np.stack([x, y, order * axis], axis=1) * spacing
    affine[:3, 3] = rng.normal((60, 80, 60), 15)
    return affine


def _few_lv_voxels(mask: np.ndarray) -> np.ndarray:
    return _without(mask, "LV", keep=6)


def _few_rv_voxels(mask: np.ndarray) -> np.ndarray:
    return _without(mask, "RV", keep=6)


def _few_myo_voxels(mask: np.ndarray) -> np.ndarray:
    return _without(mask, "Myo", keep=6)


def _without(mask: np.ndarray, structure: str, keep: int) -> np.ndarray:
    mask = mask.copy()
    mask.flat[np.flatnonzero(mask == LABELS[structure])[keep:]] = 0
    return mask


def _few_slices(mask: np.ndarray) -> np.ndarray:
    mask = mask.copy()
    mask[:, :, _lv_slices(mask)[5:]] = 0
    return mask


def _gap(mask: np.ndarray) -> np.ndarray:
    mask = mask.copy()
    mask[:, :, _lv_slices(mask)[2]] = 0
    return mask


def _no_rv_at_mid_cavity(mask: np.ndarray) -> np.ndarray:
    middle = round(ndimage.center_of_mass(mask == LABELS["LV"])[2])
    mask = mask.copy()
    mask[:, :, middle][mask[:, :, middle] == LABELS["RV"]] = 0
    return mask


def _swapped(mask: np.ndarray) -> np.ndarray:
    swap = np.arange(len(LABELS) + 1, dtype=mask.dtype)
    swap[[LABELS["LV"], LABELS["RV"]]] = LABELS["RV"], LABELS["LV"]
    return swap[mask]


def _lv_slices(mask: np.ndarray) -> np.ndarray:
    return np.flatnonzero((mask == LABELS["LV"]).any(axis=(0, 1)))


FAILURES = {
    "LV below 10 voxels": _few_lv_voxels,
    "RV below 10 voxels": _few_rv_voxels,
    "myocardium below 10 voxels": _few_myo_voxels,
    "fewer than 6 slices": _few_slices,
    "gap between slices": _gap,
    "no RV on the mid-cavity slice": _no_rv_at_mid_cavity,
    "LV and RV labels swapped": _swapped,
}
