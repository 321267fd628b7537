"""Importer of ACDC (Bernard et al., IEEE TMI 2018, doi 10.1109/TMI.2018.2837502) to the UKBB format."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np

from scripts.cohort.importing import import_subjects
from scripts.cohort.layout import LABELS, PHASES, SubjectError, read_stored, write_volume
from scripts.parallel import Workers

ACDC_LABELS = {"RV": 1, "Myo": 2, "LV": 3}
INFO_COLUMNS = ("subject", "diagnosis", "height", "weight")


def import_acdc(
    source_dir: str | os.PathLike | None, dataset_dir: str | os.PathLike, workers: Workers | int | None = None
) -> None:
    """Convert ACDC patients to the UKBB format and gather their ``Info.cfg`` in ``info.csv``.

    Voxels of images are copied as they are; labels are renamed to 1 LV, 2 myocardium, 3 RV; the affine, which ACDC
    leaves at unit voxels, gets the header's spacing. A patient that cannot be read is skipped, with the reason in
    ``import.csv``.

    Args:
        source_dir: folder with one ``patientNNN`` folder per patient (``Info.cfg``, ``*_frameFF.nii.gz``, ``*_gt``).
        dataset_dir: target, made when missing.
        workers: who converts; None takes one process per core.

    Raises:
        FileNotFoundError: when ``source_dir`` holds no patient.
        ValueError: when none could be imported.
    """
    if source_dir is None:
        raise FileNotFoundError("name the folder of ACDC patients with --source_dir.")
    patients = sorted(path.parent for path in Path(source_dir).glob("patient*/Info.cfg"))
    if not patients:
        raise FileNotFoundError(
            f"source_dir '{source_dir}' holds no ACDC patient; expected folders patientNNN with Info.cfg, "
            "patientNNN_frameFF.nii.gz and patientNNN_frameFF_gt.nii.gz, as in ACDC's folder 'training'."
        )
    import_subjects(import_patient, patients, dataset_dir, INFO_COLUMNS, workers, "ACDC")


def import_patient(patient: Path, target: Path) -> dict[str, str]:
    """Convert one patient; returns its row of ``info.csv`` (height in cm, weight in kg)."""
    info = read_info(patient / "Info.cfg")
    volumes = {}  # all are read before one is written, so that nothing is left of a patient that is skipped
    for phase in PHASES:
        frame = patient / f"{patient.name}_frame{int(info[phase]):02d}.nii.gz"
        mask = frame.with_name(frame.name.replace(".nii.gz", "_gt.nii.gz"))
        volumes[f"sa_{phase}.nii.gz"] = converted(frame)
        volumes[f"label_sa_{phase}.nii.gz"] = converted(mask, labels=True)
    target.mkdir(exist_ok=True)
    for name, volume in volumes.items():
        write_volume(target / name, *volume)
    row = (patient.name, info.get("Group", ""), info.get("Height", ""), info.get("Weight", ""))
    return dict(zip(INFO_COLUMNS, row, strict=True))


def read_info(path: Path) -> dict[str, str]:
    """Read ``Info.cfg``: one ``key: value`` a line; frames count from 1.

    Raises:
        SubjectError: when the frame number of ED or ES is missing.
    """
    pairs = (line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    info = {key.strip(): value.strip() for key, value in pairs}
    if not all(info.get(phase, "").isdigit() for phase in PHASES):
        raise SubjectError(f"{path.name} does not give the frame numbers ED and ES")
    return info


def converted(source: Path, labels: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """One ACDC volume in UKBB format: stored voxels and dtype kept, labels renamed; and its affine, mended."""
    if not source.exists():
        raise SubjectError(f"{source.name} is missing")
    with warnings.catch_warnings():  # every ACDC affine disagrees with its zooms; mending it is this importer's job
        warnings.simplefilter("ignore")
        voxels, affine = read_stored(source)
    return (renamed(voxels, source.name) if labels else voxels), affine


def renamed(mask: np.ndarray, name: str) -> np.ndarray:
    """Rename ACDC's labels to those of the UKBB format.

    Raises:
        SubjectError: for a label that ACDC does not define.
    """
    if not np.isin(mask, [0, *ACDC_LABELS.values()]).all():
        raise SubjectError(f"{name} has labels {np.unique(mask).tolist()}; expected 0, 1 (RV), 2 (Myo), 3 (LV)")
    target = np.zeros(len(ACDC_LABELS) + 1, dtype=np.uint8)
    for structure, label in ACDC_LABELS.items():
        target[label] = LABELS[structure]
    return target[mask.astype(np.uint8)]
