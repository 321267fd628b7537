from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from scripts.cohort.acdc import import_acdc
from scripts.cohort.layout import read_image, read_mask
from scripts.storage import read_csv

ACDC_VALUES = np.array([0, 3, 2, 1], np.uint8)  # of our labels 0 to 3


@pytest.fixture
def source(tmp_path, heart_mask):
    """One patient as ACDC ships it: labels 1 RV and 3 LV, unit-voxel affine, zooms that are right."""
    folder = tmp_path / "acdc" / "patient007"
    folder.mkdir(parents=True)
    (folder / "Info.cfg").write_text("ED: 4\nES: 11\nGroup: RV\nHeight: 150.0\nNbFrame: 12\nWeight: 66.0\n")
    image = np.random.default_rng(0).integers(0, 900, heart_mask.shape).astype(np.int16)
    for frame in (4, 11):
        for suffix, voxels in (("", image), ("_gt", ACDC_VALUES[heart_mask])):
            nifti = nib.Nifti1Image(voxels, np.diag([-1.0, -1, 1, 1]))
            nifti.header.set_zooms((1.5, 1.5, 8))
            nib.save(nifti, folder / f"patient007_frame{frame:02d}{suffix}.nii.gz")
    return tmp_path / "acdc"


def test_import_keeps_voxels_and_mends_the_rest(source, tmp_path, heart_mask):
    import_acdc(source, tmp_path / "ukbb")
    subject = tmp_path / "ukbb" / "patient007"
    original = nib.load(source / "patient007" / "patient007_frame11.nii.gz")
    written = nib.load(subject / "sa_ES.nii.gz")
    assert written.get_data_dtype() == np.int16
    assert np.array_equal(written.dataobj, original.dataobj)
    assert np.array_equal(read_mask(subject / "label_sa_ED.nii.gz"), heart_mask)
    assert np.allclose(np.diag(read_image(subject / "sa_ED.nii.gz")[1]), [-1.5, -1.5, 8, 1])


def test_info_is_gathered(source, tmp_path):
    import_acdc(source, tmp_path / "ukbb")
    row = {"subject": "patient007", "diagnosis": "RV", "height": "150.0", "weight": "66.0"}
    assert read_csv(tmp_path / "ukbb" / "info.csv") == [row]


def test_a_broken_patient_is_skipped_and_named_in_a_table(source, tmp_path, capsys):
    broken = source / "patient008"
    broken.mkdir()
    (broken / "Info.cfg").write_text("ED: 1\nES: 9\n")
    import_acdc(source, tmp_path / "ukbb")
    assert "skipped 1: <subject>_frame01.nii.gz is missing" in capsys.readouterr().out
    row = {"subject": "patient008", "status": "skipped", "message": "patient008_frame01.nii.gz is missing"}
    assert read_csv(tmp_path / "ukbb" / "import.csv") == [row]
    assert len(read_csv(tmp_path / "ukbb" / "info.csv")) == 1
    assert not (tmp_path / "ukbb" / "patient008").exists()  # which would be a subject without scans


def test_a_folder_without_patients_says_what_was_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected folders patientNNN with Info\.cfg"):
        import_acdc(tmp_path, tmp_path / "ukbb")
