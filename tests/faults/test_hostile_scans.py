"""One subject never sinks a cohort, whatever its files are."""

from __future__ import annotations

import os
import re
import shutil
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.cohort.examine import examine_subject
from scripts.cohort.layout import (
    LABEL_TOLERANCE,
    MAX_INTENSITY,
    SubjectError,
    predicted_mask,
    read_image,
    read_mask,
    read_origin,
    read_scan,
    write_volume,
)
from scripts.cohort.prepare import prepare
from scripts.cohort.quality import QualityRules
from scripts.segmentation.missing import Scan, segment_here
from scripts.storage import read_csv
from tests.faults.corpus import AFFINE, CORPUS, fields, infer, voxels, within, write_subject, write_weights

SOUND = ("aaa sound", "mmm sound", "zzz..sound")  # before, amid and behind the others
STRANGE = ("new\nline", "bell\a", os.fsdecode(b"latin\xe9"))  # names of folders that no line of a table can hold
FEW = settings(max_examples=100, deadline=None, derandomize=True, database=None)


@pytest.fixture(autouse=True)
def _in_time():
    with within(90):
        yield


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A cohort without a fault, with a subject for each that the corpus has."""
    root = tmp_path_factory.mktemp("sound")
    template = write_subject(root / SOUND[0])
    for name in (*SOUND[1:], *CORPUS):
        shutil.copytree(template, root / name)
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "model.pt")


def damaged(sound, target):
    """A copy of the cohort in which each subject of the corpus has its fault."""
    shutil.copytree(sound, target)
    for name, (file, damage, _) in CORPUS.items():
        damage(target / name / file)
    return target


@pytest.fixture(scope="module")
def hostile(sound, tmp_path_factory):
    """The damaged cohort, and subjects whose names are the fault."""
    root = damaged(sound, tmp_path_factory.mktemp("hostile") / "scans")
    for name in STRANGE:
        shutil.copytree(root / SOUND[0], root / name)
    return root


def check_reasons(reasons, corpus=CORPUS):
    """Each subject has the reason of its fault, in one line that names the file."""
    wrong = {}
    for name, (file, _, pattern) in corpus.items():
        reason = reasons.get(name, "nothing")
        named = file in reason or name.startswith("label no heart") or name.endswith("other grid")
        if not re.search(pattern, reason) or not named or "\n" in reason or "unexpected" in reason:
            wrong[name] = reason
    assert not wrong


def test_prepare_excludes_each_with_its_reason_and_the_others_are_as_usual(hostile, tmp_path):
    prepare(hostile, tmp_path, workers=1, split=(1, 0, 0))
    rows = {row["subject"]: row for row in read_csv(tmp_path / "cohort.csv")}
    assert [name for name, row in rows.items() if row["status"] == "included"] == sorted(SOUND)
    check_reasons({name: row["reason"] for name, row in rows.items()})
    assert len({rows[name]["LVEDV"] for name in SOUND}) == 1
    strange = {name: row["reason"] for name, row in rows.items() if "rename it" in row["reason"]}
    assert sorted(strange) == ["bell\\x07", "latin\\udce9", "new\\nline"]
    assert len(rows) == len(SOUND) + len(CORPUS) + len(STRANGE)
    # A second run takes all of them from the journal and says the same.
    before = (tmp_path / "cohort.csv").read_bytes()
    prepare(hostile, tmp_path, workers=1, split=(1, 0, 0))
    assert (tmp_path / "cohort.csv").read_bytes() == before


def test_inference_excludes_each_with_its_reason_and_the_others_are_as_usual(hostile, weights, tmp_path):
    excluded, encoded = infer(hostile, tmp_path / "out", weights)
    assert encoded == sorted(SOUND)
    check_reasons(excluded)
    assert len(excluded) == len(CORPUS) + len(STRANGE)


def test_files_that_broke_after_prepare_leave_the_inference(sound, weights, tmp_path):
    prepare(sound, tmp_path / "cohort", workers=1, split=(1, 0, 0))
    root = damaged(sound, tmp_path / "scans")
    datalist = str(tmp_path / "cohort" / "datalist.json")
    excluded, encoded = infer(root, tmp_path / "out", weights, datalist=datalist, volumes=False)
    assert sorted(encoded) == sorted(SOUND)
    check_reasons(excluded)


def test_each_is_refused_in_little_memory_and_time(sound, tmp_path):
    root, took = damaged(sound, tmp_path / "scans"), {}
    tracemalloc.start()
    try:
        for name in CORPUS:
            tracemalloc.reset_peak()
            start, before = time.process_time(), tracemalloc.get_traced_memory()[0]
            assert examine_subject(root / name, QualityRules())["status"] == "excluded"
            took[name] = (tracemalloc.get_traced_memory()[1] - before, time.process_time() - start)
    finally:
        tracemalloc.stop()
    assert max(memory for memory, _ in took.values()) < 16 * 2**20, took
    assert max(seconds for _, seconds in took.values()) < 5, took


@given(st.lists(st.sampled_from(sorted(CORPUS)), min_size=1, max_size=4, unique=True))
@settings(FEW, max_examples=8)
def test_any_faults_together_leave_the_others(hostile, tmp_path_factory, names):
    root = tmp_path_factory.mktemp("some")
    for name in (*names, SOUND[1]):
        (root / name).symlink_to(hostile / name, target_is_directory=True)
    prepare(root, root / "out", workers=1, split=(1, 0, 0))
    rows = {row["subject"]: row for row in read_csv(root / "out" / "cohort.csv")}
    assert rows.pop(SOUND[1])["status"] == "included"
    check_reasons({name: row["reason"] for name, row in rows.items()}, {name: CORPUS[name] for name in names})


def test_segmentation_tells_of_each_scan_and_goes_on(hostile, tmp_path):
    names = [name for name, (file, *_) in CORPUS.items() if file.startswith("sa_") and "other grid" not in name]
    scans = [
        Scan(hostile / name / "sa_ED.nii.gz", predicted_mask(tmp_path, hostile / name / "sa_ED.nii.gz"))
        for name in names
    ]
    scans += [Scan(hostile / SOUND[0] / "sa_ED.nii.gz", tmp_path / "a" / "seg_sa_ED.nii.gz")]
    reasons = list(segment_here(scans, lambda voxels, voxel: np.ones(voxels.shape, np.uint8), "network", 1))
    assert reasons.pop() == ""
    check_reasons(dict(zip(names, reasons, strict=True)), {name: CORPUS[name] for name in names})
    assert not any(tmp_path.glob("sa *"))


def test_the_origin_of_a_hostile_mask_is_unknown(hostile):
    for name, (file, *_) in CORPUS.items():
        assert read_origin(hostile / name / file) == ""


def test_an_origin_that_is_no_text_is_no_origin(sound, tmp_path):
    mask = shutil.copy(sound / SOUND[0] / "label_sa_ED.nii.gz", tmp_path)
    fields(descrip=b"segmented \xff\xfe 1 2")(tmp_path / "label_sa_ED.nii.gz")
    assert read_origin(tmp_path / os.path.basename(mask)).startswith("segmented")


@pytest.mark.parametrize("factor", [0.9999, 1.0003])
def test_labels_that_a_scale_has_rounded_are_labels(factor, heart_mask, tmp_path):
    write_volume(tmp_path / "mask.nii.gz", heart_mask, AFFINE)
    voxels(lambda array: array * factor)(tmp_path / "mask.nii.gz")
    assert np.array_equal(read_mask(tmp_path / "mask.nii.gz"), heart_mask)


near = st.builds(lambda label, off: label + off, st.integers(-1, 4), st.floats(-0.002, 0.002))


@given(st.lists(near | st.floats(width=32), min_size=1, max_size=8))
@FEW
def test_masks_are_labels_or_refused(tmp_path_factory, values):
    path = tmp_path_factory.getbasetemp() / "any.nii.gz"
    stored = np.array(values, np.float32).reshape(-1, 1, 1)
    write_volume(path, stored, AFFINE)
    with np.errstate(invalid="ignore"):  # of infinities
        known = np.isin(np.rint(stored), range(4)) & (abs(stored - np.rint(stored)) <= LABEL_TOLERANCE)
    if known.all():
        assert np.array_equal(read_mask(path), np.rint(stored))
    else:
        with pytest.raises(SubjectError, match=r"any\.nii\.gz has unknown labels .*expected 0, 1"):
            read_mask(path)


@given(slope=st.floats(width=32), intercept=st.floats(width=32))
@FEW
def test_scans_of_any_scale_are_finite_or_refused(tmp_path_factory, slope, intercept):
    path = tmp_path_factory.getbasetemp() / "scaled.nii.gz"
    write_volume(path, np.arange(-4, 4, dtype=np.int16).reshape(2, 2, 2) * 8000, AFFINE)
    fields(scl_slope=slope, scl_inter=intercept)(path)
    for read in (read_image, read_scan):
        try:
            assert abs(read(path)[0]).max() <= MAX_INTENSITY
        except SubjectError as error:
            refused = str(error)
        else:
            continue
        assert "scaled.nii.gz" in refused
