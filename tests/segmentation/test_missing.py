from __future__ import annotations

import errno
import os
import shutil
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.networks.nets import UNet

from scripts.cohort.datalist import load_items
from scripts.cohort.layout import SubjectError, phase_files, write_volume
from scripts.cohort.prepare import prepare
from scripts.inference.items import find_items
from scripts.parallel import Workers
from scripts.segmentation import missing
from scripts.segmentation.missing import segment_missing
from scripts.segmentation.segmenter import save_segmenter
from scripts.storage import StorageError, read_csv
from scripts.transforms import LoadSubjectd
from tests.segmentation.test_segmenter import UNET, segmenter

AFFINE = np.diag([1.5, 1.5, 9.0, 1.0])


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A file that stands for weights, of a network that reads the mask from the scan's gray values."""
    monkeypatch.setattr(missing, "load_segmenter", lambda path, device: segmenter())
    path = tmp_path / "segmentation.pt"
    path.write_bytes(b"one network")
    return path


@pytest.fixture
def subject(tmp_path, heart_mask):
    """A subject without masks, whose scan looks like its mask."""
    folder = tmp_path / "scans" / "one"
    folder.mkdir(parents=True)
    for phase, mask in (("ED", heart_mask), ("ES", smaller_lv(heart_mask))):
        write_volume(folder / f"sa_{phase}.nii.gz", mask.astype(np.int16), AFFINE)
    return folder


def smaller_lv(mask):
    smaller = mask.copy()
    smaller[:22][smaller[:22] == 1] = 2
    return smaller


def test_masks_are_predicted_in_the_grid_of_the_scan(subject, weights, tmp_path, heart_mask):
    assert segment_missing([subject], tmp_path / "masks", weights) == {}
    predicted = nib.load(tmp_path / "masks" / "one" / "seg_sa_ED.nii.gz")
    assert np.array_equal(predicted.dataobj, heart_mask)
    assert np.array_equal(predicted.affine, nib.load(subject / "sa_ED.nii.gz").affine)
    files = phase_files(subject, tmp_path / "masks")
    assert {files[phase].mask_kind for phase in files} == {"predicted"}
    assert sorted(path.name for path in subject.iterdir()) == ["sa_ED.nii.gz", "sa_ES.nii.gz"]  # scans stay untouched


def test_given_masks_are_preferred(subject, weights, tmp_path, heart_mask):
    write_volume(subject / "label_sa_ED.nii.gz", heart_mask, AFFINE)
    segment_missing([subject], tmp_path / "masks", weights)
    assert [path.name for path in (tmp_path / "masks" / "one").iterdir()] == ["seg_sa_ES.nii.gz"]
    files = phase_files(subject, tmp_path / "masks")
    assert [files[phase].mask_kind for phase in ("ED", "ES")] == ["manual", "predicted"]


def test_a_second_run_segments_only_what_changed(subject, weights, tmp_path, heart_mask):
    segment_missing([subject], tmp_path / "masks", weights)
    times = mask_times(tmp_path)
    segment_missing([subject], tmp_path / "masks", weights)
    assert mask_times(tmp_path) == times
    write_volume(subject / "sa_ED.nii.gz", heart_mask.astype(np.float32), AFFINE)
    segment_missing([subject], tmp_path / "masks", weights)
    assert [new != old for new, old in zip(mask_times(tmp_path), times, strict=True)] == [True, False]
    weights.write_bytes(b"another network")
    segment_missing([subject], tmp_path / "masks", weights)
    assert mask_times(tmp_path)[1] != times[1]


def mask_times(folder):
    return [path.stat().st_mtime_ns for path in sorted((folder / "masks" / "one").iterdir())]


def test_a_mask_of_an_earlier_scan_is_not_used(subject, weights, tmp_path, heart_mask):
    segment_missing([subject], tmp_path / "masks", weights)
    write_volume(subject / "sa_ED.nii.gz", heart_mask.astype(np.float32), AFFINE)
    with pytest.raises(SubjectError, match=r"no mask for sa_ED\.nii\.gz"):
        phase_files(subject, tmp_path / "masks")


def test_a_scan_of_the_same_size_but_another_time_is_another(subject, weights, tmp_path):
    segment_missing([subject], tmp_path / "masks", weights)
    times = mask_times(tmp_path)
    os.utime(subject / "sa_ED.nii.gz", (1, 1))
    segment_missing([subject], tmp_path / "masks", weights)
    assert mask_times(tmp_path)[0] != times[0]


def test_a_negative_time_between_frames_stops_nothing(subject, weights, tmp_path, heart_mask):
    for phase in ("ED", "ES"):
        (subject / f"sa_{phase}.nii.gz").unlink()
    image = nib.Nifti1Image(np.stack([heart_mask, smaller_lv(heart_mask)], -1).astype(np.int16), AFFINE)
    image.header["pixdim"][4] = -1
    nib.save(image, subject / "sa.nii.gz")
    assert segment_missing([subject], tmp_path / "masks", weights) == {}
    assert phase_files(subject, tmp_path / "masks")["ES"].frame == 1


def test_one_mask_of_two_may_be_predicted(subject, weights, tmp_path, heart_mask):
    write_volume(subject / "label_sa_ED.nii.gz", heart_mask, AFFINE)
    (item,) = find_items(subject.parent, tmp_path / "out", workers=1, segmentation=weights).items
    assert item["mask"] == "predicted"
    assert item["mask_ED"] == str(subject / "label_sa_ED.nii.gz")


def test_a_torn_mask_is_made_again(subject, weights, tmp_path):
    segment_missing([subject], tmp_path / "masks", weights)
    (tmp_path / "masks" / "one" / "seg_sa_ED.nii.gz").write_bytes(b"torn")
    segment_missing([subject], tmp_path / "masks", weights)
    assert phase_files(subject, tmp_path / "masks")["ED"].mask_kind == "predicted"


def test_nothing_to_segment_needs_no_network(subject, tmp_path, weights, monkeypatch):
    segment_missing([subject], tmp_path / "masks", weights)
    monkeypatch.setattr(missing, "load_segmenter", None)
    assert segment_missing([subject], tmp_path / "masks", weights) == {}


def test_a_scan_that_cannot_be_read_is_a_reason(subject, weights, tmp_path):
    (subject / "sa_ES.nii.gz").write_bytes(b"no scan")
    reasons = segment_missing([subject], tmp_path / "masks", weights)
    assert list(reasons) == ["one"]
    assert "sa_ES.nii.gz cannot be opened" in reasons["one"]


@pytest.fixture
def other(subject):
    """A second subject like the first, with which nothing is wrong."""
    return shutil.copytree(subject, subject.with_name("two"))


def prepared(subject, tmp_path, weights):
    """Status and reason by subject."""
    prepare(subject.parent, tmp_path / "cohort", workers=1, split=(1, 0, 0), segmentation=weights)
    return {row["subject"]: (row["status"], row["reason"]) for row in read_csv(tmp_path / "cohort" / "cohort.csv")}


def test_a_scan_of_one_voxel_stops_no_other(subject, other, tmp_path):
    torch.manual_seed(0)
    save_segmenter(UNet(**UNET), UNET, 1.5, 0.5, tmp_path / "network.pt")
    write_volume(subject / "sa_ED.nii.gz", np.ones((1, 1, 1), np.int16), AFFINE)
    assert segment_missing([subject, other], tmp_path / "masks", tmp_path / "network.pt", workers=1) == {}
    assert nib.load(tmp_path / "masks" / "one" / "seg_sa_ED.nii.gz").shape == (1, 1, 1)
    assert (tmp_path / "masks" / "two" / "seg_sa_ES.nii.gz").exists()


def test_a_scan_with_which_the_network_fails_is_a_reason(subject, other, weights, tmp_path, monkeypatch):
    def fail_for_few(slices):
        if len(slices) == 1:
            raise RuntimeError("out of memory")
        return slices

    failing = segmenter()
    failing.scale = fail_for_few
    monkeypatch.setattr(missing, "load_segmenter", lambda path, device: failing)
    write_volume(subject / "sa_ED.nii.gz", np.ones((8, 8, 1), np.int16), AFFINE)
    rows = prepared(subject, tmp_path, weights)
    assert rows["two"] == ("included", "")
    assert rows["one"][0] == "excluded"
    assert rows["one"][1].startswith("unexpected RuntimeError: out of memory")


def test_a_scan_of_too_many_pixels_is_a_reason(subject, other, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(missing, "load_segmenter", lambda path, device: segmenter(spacing=1.5))
    write_volume(subject / "sa_ED.nii.gz", np.ones((128, 128, 2), np.int16), np.diag([60, 60, 9, 1]))
    rows = prepared(subject, tmp_path, weights)
    assert rows["two"] == ("included", "")
    assert rows["one"][1].startswith("sa_ED.nii.gz: the segmentation network would see 2 slices of 5120 x 5120 pixels")


def test_a_folder_that_may_not_be_looked_into_is_left_to_the_examination(
    subject, other, weights, tmp_path, monkeypatch, capsys
):
    looked = Path.exists

    def exists(path, **options):
        if path.parent == subject:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return looked(path, **options)

    monkeypatch.setattr(Path, "exists", exists)
    rows = prepared(subject, tmp_path, weights)
    assert rows["two"] == ("included", "")
    assert rows["one"][0] == "excluded"
    assert "Permission denied" in rows["one"][1]
    assert "/one/" not in capsys.readouterr().out


@pytest.mark.parametrize("place", ["one", "one/seg_sa_ED.nii.gz"])
def test_what_is_in_the_place_of_one_mask_stops_no_other(place, subject, other, weights, tmp_path):
    blocked = tmp_path / "cohort" / "masks" / place
    blocked.parent.mkdir(parents=True)
    blocked.touch() if place == "one" else blocked.mkdir()
    rows = prepared(subject, tmp_path, weights)
    assert rows["two"] == ("included", "")
    assert rows["one"][0] == "excluded"
    assert rows["one"][1].startswith("its predicted mask seg_sa_ED.nii.gz cannot be written (")
    assert str(tmp_path) not in rows["one"][1]


def test_where_no_mask_can_be_written_all_stops(subject, weights, tmp_path):
    (tmp_path / "masks").touch()
    with pytest.raises(NotADirectoryError, match=r"output_dir '.*masks' is or lies under a file"):
        segment_missing([subject], tmp_path / "masks", weights)


@pytest.mark.parametrize("step", ["mkdir", "replace"])
def test_a_full_disk_stops_all(step, subject, weights, tmp_path, monkeypatch):
    (tmp_path / "masks").mkdir()

    def full(path, *others, **options):
        raise OSError(errno.ENOSPC, "full", str(path))

    loading = missing.load_segmenter  # the disk is full from here on

    def load(*arguments):
        monkeypatch.setattr(Path, step, full)
        return loading(*arguments)

    monkeypatch.setattr(missing, "load_segmenter", load)
    with pytest.raises(StorageError, match="make room on its disk"):
        segment_missing([subject], tmp_path / "masks", weights)


class Stalled(missing._Scans):
    """A disk that does not answer for long."""

    def __getitem__(self, index):
        time.sleep(4)
        return "at last"


def test_a_disk_that_does_not_answer_is_not_waited_for_for_ever(subject, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(missing, "_Scans", Stalled)
    monkeypatch.setattr(missing, "STALLED", 1)
    with pytest.raises(RuntimeError, match="timed out after 1 seconds"):
        segment_missing([subject], tmp_path / "masks", weights)


def test_es_of_a_cine_is_found_in_predicted_masks(subject, weights, tmp_path, heart_mask):
    for phase in ("ED", "ES"):
        (subject / f"sa_{phase}.nii.gz").unlink()
    cine = np.stack([heart_mask, heart_mask, smaller_lv(heart_mask), heart_mask], axis=-1)
    write_volume(subject / "sa.nii.gz", cine.astype(np.int16), AFFINE, frame_time=0.25)
    segment_missing([subject], tmp_path / "masks", weights)
    files = phase_files(subject, tmp_path / "masks")
    assert [files[phase].frame for phase in ("ED", "ES")] == [0, 2]


def test_a_frame_in_which_the_network_fails_is_not_es(subject, weights, tmp_path, heart_mask):
    for phase in ("ED", "ES"):
        (subject / f"sa_{phase}.nii.gz").unlink()
    failed = heart_mask.copy()
    failed[..., 1:][failed[..., 1:] == 1] = 2
    frames = [heart_mask] * 3 + [smaller_lv(heart_mask)] * 3 + [heart_mask] * 2 + [failed] + [heart_mask] * 2
    write_volume(subject / "sa.nii.gz", np.stack(frames, axis=-1).astype(np.int16), AFFINE)
    segment_missing([subject], tmp_path / "masks", weights)
    assert phase_files(subject, tmp_path / "masks")["ES"].frame in (3, 4, 5)


def test_inference_finds_subjects_without_masks(subject, weights, tmp_path, heart_mask):
    found = find_items(subject.parent, tmp_path / "out", workers=1, segmentation=weights)
    (item,) = found.items
    assert item["mask"] == "predicted"
    assert item["mask_ED"] == str(tmp_path / "out" / "masks" / "one" / "seg_sa_ED.nii.gz")
    loaded = LoadSubjectd()(item)
    assert np.array_equal(loaded["mask_ED"][0], heart_mask)


def test_inference_names_why_a_subject_could_not_be_segmented(subject, weights, tmp_path):
    (subject / "sa_ES.nii.gz").write_bytes(b"no scan")
    found = find_items(subject.parent, tmp_path / "out", workers=1, segmentation=weights)
    assert [row["subject"] for row in found.excluded] == ["one"]
    assert "sa_ES.nii.gz cannot be opened" in found.excluded[0]["reason"]


def test_predicted_masks_are_found_beside_the_datalist(subject, weights, tmp_path):
    prepare(subject.parent, tmp_path / "cohort", workers=1, split=(1, 0, 0), segmentation=weights)
    (item,) = load_items(tmp_path / "cohort" / "datalist.json", subject.parent)
    assert item["mask_ED"] == str(tmp_path / "cohort" / "masks" / "one" / "seg_sa_ED.nii.gz")
    assert item["image_ED"] == str(subject / "sa_ED.nii.gz")


def test_prepare_uses_predicted_masks_and_says_so(subject, weights, tmp_path):
    prepare(subject.parent, tmp_path / "cohort", workers=1, split=(1, 0, 0), segmentation=weights)
    (row,) = read_csv(tmp_path / "cohort" / "cohort.csv")
    assert (row["status"], row["mask"]) == ("included", "predicted")
    assert float(row["LVEDV"]) > float(row["LVESV"]) > 0


def test_prepare_names_why_a_subject_could_not_be_segmented(subject, weights, tmp_path):
    (subject / "sa_ES.nii.gz").write_bytes(b"no scan")
    with pytest.raises(ValueError, match="none of the 1 subjects"):
        prepare(subject.parent, tmp_path / "cohort", workers=1, segmentation=weights)
    (row,) = read_csv(tmp_path / "cohort" / "cohort.csv")
    assert "sa_ES.nii.gz cannot be opened" in row["reason"]


def test_without_a_network_the_reason_names_the_key(subject, tmp_path):
    with pytest.raises(ValueError, match="none of the 1 subjects"):
        prepare(subject.parent, tmp_path / "cohort", workers=1)
    (row,) = read_csv(tmp_path / "cohort" / "cohort.csv")
    assert "--segmentation" in row["reason"]


def test_weights_that_are_not_there_are_named_with_their_key(subject, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt' is no file; name one with --segmentation"):
        segment_missing([subject], tmp_path / "masks", tmp_path / "nowhere.pt")


def test_a_cluster_predicts_the_same_masks(subject, tmp_path, scheduler):
    torch.manual_seed(0)
    save_segmenter(UNet(**UNET), UNET, 1.5, 0.5, tmp_path / "network.pt")
    for folder, workers in (("here", 1), ("there", Workers(scheduler=scheduler))):
        assert segment_missing([subject], tmp_path / folder, tmp_path / "network.pt", workers=workers) == {}
    for phase in ("ED", "ES"):
        here, there = (nib.load(tmp_path / folder / "one" / f"seg_sa_{phase}.nii.gz") for folder in ("here", "there"))
        assert np.array_equal(here.dataobj, there.dataobj)
        assert here.header["descrip"] == there.header["descrip"]
