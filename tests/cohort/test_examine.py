from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from scripts.cohort.datalist import datalist_item
from scripts.cohort.examine import examine_subject
from scripts.cohort.layout import write_volume
from scripts.cohort.quality import QualityRules

RULES = QualityRules(min_slices=5)
AFFINE = np.diag([1.5, 1.6, 8, 1])


@pytest.fixture
def folder(tmp_path, heart_mask):
    """A sound subject, whose LV is shown in five slices at ES."""
    image = np.random.default_rng(0).integers(0, 900, heart_mask.shape).astype(np.int16)
    small = np.where((heart_mask == 1) & (np.arange(8) > 4), 2, heart_mask).astype(np.uint8)
    for phase, mask in (("ED", heart_mask), ("ES", small)):
        write_volume(tmp_path / f"sa_{phase}.nii.gz", image, AFFINE)
        write_volume(tmp_path / f"label_sa_{phase}.nii.gz", mask, AFFINE)
    return tmp_path


def rewrite(path, change, affine=AFFINE):
    write_volume(path, change(np.asanyarray(nib.load(path).dataobj)), affine)


def test_a_sound_subject_is_measured_with_its_own_spacing(folder, heart_mask):
    row = examine_subject(folder, RULES)
    assert (row["status"], row["warnings"]) == ("included", [])
    assert row["LVEDV"] == pytest.approx((heart_mask == 1).sum() * 1.5 * 1.6 * 8 / 1000)
    assert (row["spacing_x"], row["spacing_z"]) == pytest.approx((1.5, 8))
    assert row["image_ED"] == f"{folder.name}/sa_ED.nii.gz"


@pytest.mark.parametrize("phase", ["ED", "ES"])
def test_each_phase_is_checked(folder, phase):
    rewrite(folder / f"label_sa_{phase}.nii.gz", lambda mask: np.where(mask == 3, 0, mask))
    assert examine_subject(folder, RULES)["reason"].startswith(f"{phase}: RV has 0 voxels")


def test_phases_of_different_spacing_are_not_one_scan(folder):
    for name in ("sa_ES", "label_sa_ES"):
        rewrite(folder / f"{name}.nii.gz", lambda voxels: voxels, np.diag([1.8, 1.8, 8, 1]))
    assert "ED and ES differ in voxel size" in examine_subject(folder, RULES)["reason"]


def test_a_mended_affine_is_reported_once(folder):
    for phase in ("ED", "ES"):
        scan = nib.Nifti1Image(np.asanyarray(nib.load(folder / f"sa_{phase}.nii.gz").dataobj), np.eye(4))
        scan.header.set_zooms((1.5, 1.6, 8))
        scan.header.set_sform(np.eye(4), code=1)
        nib.save(scan, folder / f"sa_{phase}.nii.gz")
    row = examine_subject(folder, RULES)
    assert row["status"] == "included"
    assert len(row["warnings"]) == 1
    assert "disagrees with the header" in row["warnings"][0]


def test_rules_decide(folder):
    assert "at least 6 are needed" in examine_subject(folder, QualityRules())["reason"]


def cine(folder, frame_time):
    """Both phases of a subject as a cine of two frames."""
    for kind in ("sa", "label_sa"):
        volumes = [np.asanyarray(nib.load(folder / f"{kind}_{phase}.nii.gz").dataobj) for phase in ("ED", "ES")]
        write_volume(folder / f"{kind}.nii.gz", np.stack(volumes, -1), AFFINE, frame_time)
        for phase in ("ED", "ES"):
            (folder / f"{kind}_{phase}.nii.gz").unlink()


def test_cardiac_output_follows_from_the_time_of_a_heartbeat(folder):
    cine(folder, frame_time=0.5)
    row = examine_subject(folder, RULES)
    assert row["status"] == "included", row["reason"]
    assert row["HR"] == pytest.approx(60)
    assert row["LVCO"] == pytest.approx(row["LVSV"] * 60 / 1000)
    assert datalist_item(row)["LVCO"] == row["LVCO"]


def test_a_heart_rate_that_no_heart_has_is_told_and_left_out(folder):
    cine(folder, frame_time=0.001)
    row = examine_subject(folder, RULES)
    assert "HR" not in row
    assert "30000" in row["warnings"][0] or "3e+04" in row["warnings"][0]


def test_the_less_trusted_mask_is_named(folder):
    assert examine_subject(folder, RULES)["mask"] == "manual"
    (folder / "label_sa_ES.nii.gz").rename(folder / "seg_sa_ES.nii.gz")
    assert examine_subject(folder, RULES)["mask"] == "automatic"
