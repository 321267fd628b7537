from __future__ import annotations

import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.cohort.layout import write_volume
from scripts.cohort.phantom import FAILURES, write_cohort
from scripts.inference.items import find_items


@pytest.fixture
def pair(tmp_path):
    """Two phantoms of their own, to be broken."""
    write_cohort(tmp_path / "scans", subjects=2, seed=1, cine_fraction=0, failing=0, workers=1)
    return tmp_path / "scans"


def rewrite(path, change, affine=None):
    image = nib.load(path)
    write_volume(path, change(np.asanyarray(image.dataobj)), image.affine if affine is None else affine)


def test_those_that_pass_are_located_and_the_others_have_a_reason(phantoms, tmp_path):
    subjects = find_items(phantoms, tmp_path)
    assert (len(subjects.items), len(subjects.excluded)) == (12, len(FAILURES))
    assert all(row["reason"] for row in subjects.excluded)
    assert all(Path(item["image_ED"]).is_file() for item in subjects.items)


def test_rules_apply(phantoms, tmp_path):
    assert len(find_items(phantoms, tmp_path, rules={"min_slices": 4}).items) > 12


def test_a_section_needs_a_datalist(phantoms, prepared, tmp_path):
    assert len(find_items(phantoms, tmp_path, prepared / "datalist.json", "test").items) == 3
    with pytest.raises(ValueError, match="section 'test' is one of a datalist"):
        find_items(phantoms, tmp_path, section="test")
    with pytest.raises(ValueError, match="section is 'tests'; expected one of training"):
        find_items(phantoms, tmp_path, prepared / "datalist.json", "tests")


def test_one_subject_can_be_named(pair, phantoms, prepared, tmp_path):
    assert [item["subject"] for item in find_items(pair, tmp_path, subject="phantom0002").items] == ["phantom0002"]
    known = find_items(phantoms, tmp_path, prepared / "datalist.json", "test").items[0]["subject"]
    found = find_items(phantoms, tmp_path, prepared / "datalist.json", subject=known)
    assert [item["subject"] for item in found.items] == [known]
    (pair / "phantom0002").rename(pair / "17")
    assert [item["subject"] for item in find_items(pair, tmp_path, subject=17).items] == ["17"]
    with pytest.raises(ValueError, match=r"'phantom001' is not among the 2 of "):
        find_items(pair, tmp_path, subject="phantom001")


def test_a_vanished_file_excludes_its_subject_of_a_datalist(prepared, phantoms, tmp_path):
    copy = shutil.copytree(phantoms, tmp_path / "copy")
    gone = find_items(copy, tmp_path, prepared / "datalist.json", "test").items[0]
    os.unlink(gone["image_ED"])
    subjects = find_items(copy, tmp_path, prepared / "datalist.json", "test")
    assert len(subjects.items) == 2
    assert subjects.excluded[0]["subject"] == gone["subject"]
    assert "No such file" in subjects.excluded[0]["reason"]
    with pytest.raises(FileNotFoundError, match="missing under dataset_dir"):
        find_items(tmp_path / "elsewhere", tmp_path, prepared / "datalist.json", "test")


def test_results_inside_the_dataset_are_no_subject(pair):
    assert find_items(pair, pair / "results").excluded == []


def test_the_state_is_that_of_the_files(pair, tmp_path):
    first = [item["state"] for item in find_items(pair, tmp_path).items]
    os.utime(pair / "phantom0001" / "label_sa_ES.nii.gz", (1, 1))
    second = [item["state"] for item in find_items(pair, tmp_path).items]
    assert first[0] != second[0]
    assert first[1] == second[1]


def constant(folder):
    rewrite(folder / "sa_ED.nii.gz", lambda voxels: np.full_like(voxels, 7))


def exchanged(folder):
    for kind in ("", "label_"):
        first, second = (folder / f"{kind}sa_{phase}.nii.gz" for phase in ("ED", "ES"))
        (folder / "held").write_bytes(first.read_bytes())
        second.replace(first)
        (folder / "held").replace(second)


def flat(folder):
    nib.save(nib.Nifti1Image(np.ones((8, 8), np.float32), np.eye(4)), folder / "sa_ES.nii.gz")


def one_frame(folder):
    for kind, name in (("", "sa"), ("label_", "seg_sa")):
        frame = np.asanyarray(nib.load(folder / f"{kind}sa_ED.nii.gz").dataobj)[..., None]
        for phase in ("ED", "ES"):
            (folder / f"{kind}sa_{phase}.nii.gz").unlink()
        write_volume(folder / f"{name}.nii.gz", frame, np.diag([1.8, 1.8, 10, 1]), 0.03)


def no_heart(folder):
    rewrite(folder / "label_sa_ED.nii.gz", np.zeros_like)


def meters(folder):
    scan = nib.load(folder / "sa_ED.nii.gz")
    scan.header.set_xyzt_units("meter")
    nib.save(nib.Nifti1Image(np.asanyarray(scan.dataobj), scan.affine, scan.header), folder / "sa_ED.nii.gz")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (constant, "ED: the scan is constant (7)"),
        (exchanged, "ED and ES look exchanged"),
        (flat, "sa_ES.nii.gz has shape"),
        (one_frame, "at least 2 frames"),
        (no_heart, "ED: LV has 0 voxels"),
        (meters, "voxel size in meter; expected mm"),
    ],
)
def test_a_bad_scan_has_its_reason(damage, reason, pair, tmp_path):
    damage(pair / "phantom0001")
    subjects = find_items(pair, tmp_path)
    assert [item["subject"] for item in subjects.items] == ["phantom0002"]
    assert subjects.excluded[0]["subject"] == "phantom0001"
    assert reason in subjects.excluded[0]["reason"]
