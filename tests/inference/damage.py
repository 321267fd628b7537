"""Five ways in which a subject's files are broken in practice, each with its reason in words."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from scripts.cohort.layout import write_volume


def rewrite(path: Path, change) -> None:
    """Write a volume again, with its voxels changed."""
    image = nib.load(path)
    write_volume(path, change(np.asanyarray(image.dataobj)), image.affine)


def truncate(folder: Path) -> None:
    path = folder / "sa_ED.nii.gz"
    path.write_bytes(path.read_bytes()[:-20000])


def relabel(folder: Path) -> None:
    rewrite(folder / "label_sa_ED.nii.gz", lambda mask: mask * 5)


def lose_mask(folder: Path) -> None:
    (folder / "label_sa_ES.nii.gz").unlink()


def poison(folder: Path) -> None:
    rewrite(folder / "sa_ES.nii.gz", lambda voxels: np.where(voxels == voxels.max(), np.nan, voxels))


def exchange(folder: Path) -> None:
    for kind in ("sa", "label_sa"):
        first, second = (folder / f"{kind}_{phase}.nii.gz" for phase in ("ED", "ES"))
        held = first.read_bytes()
        second.replace(first)
        second.write_bytes(held)


REASONS = {
    truncate: "cannot be read to its end",
    relabel: "unknown labels 5, 10, 15",
    lose_mask: "no mask for sa_ES.nii.gz",
    poison: "not finite",
    exchange: "ED and ES look exchanged",
}


def break_five(dataset_dir: Path) -> dict[str, str]:
    """Break the first five subjects of a cohort with one file per phase; subject -> part of its reason."""
    reasons = {}
    for folder, (damage, reason) in zip(sorted(dataset_dir.glob("phantom*")), REASONS.items(), strict=False):
        damage(folder)
        reasons[folder.name] = reason
    return reasons
