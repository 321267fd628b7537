from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest

from scripts.cohort.layout import (
    SubjectError,
    find_subjects,
    frame_time,
    phase_files,
    read_image,
    read_mask,
    write_like,
    write_volume,
)

AFFINE = np.diag([1.8, 1.8, 10, 1])


def write_subject(folder, mask, suffix="label"):
    folder.mkdir(parents=True, exist_ok=True)
    for phase in ("ED", "ES"):
        write_volume(folder / f"sa_{phase}.nii.gz", mask.astype(np.int16), AFFINE)
        write_volume(folder / f"{suffix}_sa_{phase}.nii.gz", mask, AFFINE)


def test_missing_folder_says_what_was_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match="one folder per subject with sa_ED"):
        find_subjects(tmp_path / "nowhere")


def test_folder_without_subjects_says_what_was_found(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"Found: 1 \.txt"):
        find_subjects(tmp_path)


def test_manual_masks_are_preferred(tmp_path, heart_mask):
    write_subject(tmp_path / "a", heart_mask, "seg")
    write_subject(tmp_path / "a", heart_mask, "label")
    assert phase_files(tmp_path / "a")["ES"].mask.name == "label_sa_ES.nii.gz"


def test_missing_es_is_the_reason(tmp_path, heart_mask):
    write_subject(tmp_path / "a", heart_mask)
    (tmp_path / "a" / "sa_ES.nii.gz").unlink()
    with pytest.raises(SubjectError, match=r"sa_ES\.nii\.gz is missing"):
        phase_files(tmp_path / "a")


def test_missing_mask_names_the_candidates(tmp_path, heart_mask):
    write_subject(tmp_path / "a", heart_mask)
    (tmp_path / "a" / "label_sa_ED.nii.gz").unlink()
    with pytest.raises(SubjectError, match=r"label_sa_ED\.nii\.gz or seg_sa_ED\.nii\.gz"):
        phase_files(tmp_path / "a")


def test_cine_es_is_the_segmented_frame_of_smallest_lv(tmp_path, heart_mask):
    small = np.where((heart_mask == 1) & (np.arange(8) > 2), 2, heart_mask).astype(np.uint8)
    cine = np.stack([heart_mask, heart_mask, small, np.zeros_like(small)], axis=-1)  # the last frame is not segmented
    write_volume(tmp_path / "sa.nii.gz", cine.astype(np.int16), AFFINE, 0.03)
    write_volume(tmp_path / "seg_sa.nii.gz", cine, AFFINE, 0.03)
    files = phase_files(tmp_path)
    assert (files["ED"].frame, files["ES"].frame) == (0, 2)
    assert np.array_equal(read_mask(files["ES"].mask, 2), small)


def test_cine_of_one_frame_is_refused(tmp_path, heart_mask):
    for name in ("sa.nii.gz", "seg_sa.nii.gz"):
        write_volume(tmp_path / name, heart_mask[..., None], AFFINE)
    with pytest.raises(SubjectError, match="at least 2 frames"):
        phase_files(tmp_path)


def test_zooms_win_over_the_affine(tmp_path, heart_mask):
    image = nib.Nifti1Image(heart_mask, np.diag([-1.0, -1, 1, 1]))
    image.header.set_zooms((1.5, 1.5, 8))
    image.header.set_sform(np.diag([-1.0, -1, 1, 1]), code=1)
    nib.save(image, tmp_path / "sa_ED.nii.gz")
    with pytest.warns(UserWarning, match="disagrees with the header"):
        affine = read_image(tmp_path / "sa_ED.nii.gz")[1]
    assert np.allclose(np.diag(affine), [-1.5, -1.5, 8, 1])


def test_zero_spacing_is_refused(tmp_path, heart_mask):
    path = tmp_path / "sa_ED.nii.gz"
    write_volume(path, heart_mask, AFFINE)
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[76 + 4 * 3 : 76 + 4 * 4] = bytes(4)  # pixdim[3] of the NIfTI header, which nibabel does not write as 0
    path.write_bytes(gzip.compress(raw))
    with pytest.raises(SubjectError, match="voxel size"):
        read_image(path)


def test_truncated_gzip_is_refused(tmp_path, heart_mask):
    path = tmp_path / "sa_ED.nii.gz"
    write_volume(path, np.random.default_rng(0).integers(0, 900, heart_mask.shape).astype(np.int16), AFFINE)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(SubjectError, match="cannot be read to its end"):
        read_image(path)


def test_nan_voxels_are_refused(tmp_path):
    write_volume(tmp_path / "sa_ED.nii.gz", np.full((4, 4, 4), np.nan, np.float32), AFFINE)
    with pytest.raises(SubjectError, match="not finite"):
        read_image(tmp_path / "sa_ED.nii.gz")


def test_two_axes_are_refused(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((8, 8), np.float32), AFFINE), tmp_path / "sa_ED.nii.gz")
    with pytest.raises(SubjectError, match="expected 3 axes"):
        read_image(tmp_path / "sa_ED.nii.gz")


def test_unknown_labels_are_refused(tmp_path, heart_mask):
    write_volume(tmp_path / "label_sa_ED.nii.gz", heart_mask * 5, AFFINE)
    with pytest.raises(SubjectError, match="unknown labels 5, 10, 15"):
        read_mask(tmp_path / "label_sa_ED.nii.gz")


def test_written_like_a_scan_shares_its_geometry(tmp_path, heart_mask):
    oblique = AFFINE.copy()
    oblique[:3, :3] = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0] * [1.8, 1.8, 10]
    write_volume(tmp_path / "sa.nii.gz", np.stack([heart_mask] * 3, -1), oblique, 0.03)
    write_like(tmp_path / "out.nii.gz", heart_mask / 7, tmp_path / "sa.nii.gz")
    written = nib.load(tmp_path / "out.nii.gz")
    assert np.allclose(written.affine, oblique, atol=1e-5)
    assert written.get_data_dtype() == np.float32
    assert np.allclose(written.get_fdata(), heart_mask / 7, atol=1e-6)


def write_cine(folder, *frames):
    cine = np.stack(frames, axis=-1).astype(np.uint8)
    for name in ("sa.nii.gz", "seg_sa.nii.gz"):
        write_volume(folder / name, cine, AFFINE, 0.03)


def test_cine_ed_is_frame_0_even_where_another_is_larger(tmp_path, heart_mask):
    small = np.where((heart_mask == 1) & (np.arange(8) > 2), 2, heart_mask)
    write_cine(tmp_path, small, heart_mask, np.where(np.arange(8) > 0, 0, small))
    files = phase_files(tmp_path)
    assert (files["ED"].frame, files["ES"].frame) == (0, 2)


def test_cine_without_a_segmented_first_frame_is_refused(tmp_path, heart_mask):
    write_cine(tmp_path, heart_mask * 0, heart_mask, heart_mask)
    with pytest.raises(SubjectError, match=r"needs an LV cavity in frame 0 \(ED\)"):
        phase_files(tmp_path)


def test_written_like_a_scan_has_its_own_display_range(tmp_path, heart_mask):
    scan = nib.Nifti1Image(heart_mask, AFFINE)
    scan.header["cal_max"] = 900
    nib.save(scan, tmp_path / "sa.nii.gz")
    write_like(tmp_path / "out.nii.gz", heart_mask / 7, tmp_path / "sa.nii.gz")
    assert nib.load(tmp_path / "out.nii.gz").header["cal_max"] == 0


def test_a_voxel_size_in_meters_is_refused(tmp_path, heart_mask):
    scan = nib.Nifti1Image(heart_mask, np.diag([0.0018, 0.0018, 0.01, 1]))
    scan.header.set_xyzt_units("meter")
    nib.save(scan, tmp_path / "sa_ED.nii.gz")
    with pytest.raises(SubjectError, match="voxel size in meter; expected mm"):
        read_image(tmp_path / "sa_ED.nii.gz")


@pytest.mark.parametrize("size", [0.0018, 180.0, float("nan")])
def test_a_voxel_size_that_no_scan_has_is_refused(size, tmp_path, heart_mask):
    image = nib.Nifti1Image(heart_mask, np.eye(4))
    image.header["pixdim"][1:4] = (size, size, 8)
    nib.save(image, tmp_path / "sa.nii.gz")
    with pytest.raises(SubjectError, match=r"expected three numbers from 0\.2 to 60 in mm"):
        read_mask(tmp_path / "sa.nii.gz")


def test_results_within_the_dataset_are_no_subject(tmp_path, heart_mask):
    (tmp_path / "a").mkdir()
    write_volume(tmp_path / "a" / "sa.nii.gz", heart_mask, np.eye(4))
    (tmp_path / "output" / "masks").mkdir(parents=True)
    (tmp_path / "masks").mkdir()
    assert [folder.name for folder in find_subjects(tmp_path, tmp_path / "output")] == ["a", "masks"]
    assert [folder.name for folder in find_subjects(tmp_path, tmp_path)] == ["a", "output"]


@pytest.mark.parametrize(
    ("step", "unit", "seconds"),
    [(0.02, "sec", 0.02), (20, "msec", 0.02), (20, "unknown", 0.02), (0.02, "unknown", 0.02)],
)
def test_time_between_frames_is_in_seconds(step, unit, seconds, tmp_path, heart_mask):
    image = nib.Nifti1Image(np.stack([heart_mask] * 3, -1), np.eye(4))
    image.header.set_zooms((1, 1, 8, step))
    image.header.set_xyzt_units("mm", unit)
    nib.save(image, tmp_path / "sa.nii.gz")
    assert frame_time(tmp_path / "sa.nii.gz") == pytest.approx(seconds)


def test_a_volume_tells_no_time(tmp_path, heart_mask):
    write_volume(tmp_path / "sa.nii.gz", heart_mask, np.eye(4))
    assert np.isnan(frame_time(tmp_path / "sa.nii.gz"))
