from __future__ import annotations

import errno
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from skimage.registration import phase_cross_correlation

from scripts.cohort.layout import SubjectError, write_volume
from scripts.cohort.phantom import write_cohort
from scripts.inference import writers
from scripts.inference.items import find_items
from scripts.inference.loading import FAILURES, Failure
from scripts.inference.records import Records
from scripts.inference.writers import ResultsWriter, write_volumes
from scripts.storage import StorageError
from tests.conftest import ROOT
from tests.inference.examples import NAMES, encoded

PHASES = ("ED", "ES")
ITEMS = [{"subject": name, "state": name} for name in "abc"]


def writer(folder, **options):
    records = Records(folder, {}, {})
    records.claim()
    return ResultsWriter(records, ITEMS, NAMES, PHASES, **({"volumes": False, "pages": False} | options))


def run(results, subjects, failures=()):
    """One batch, as the evaluator leaves it to its handlers."""
    batch = [{"subject": name} for name in subjects]
    state = SimpleNamespace(batch={FAILURES: list(failures)} if failures else {})
    results.take_failures(SimpleNamespace(state=state))
    results.write_batch(SimpleNamespace(state=SimpleNamespace(batch=batch, output=[encoded() for _ in batch])))


def test_each_subject_has_its_files_and_a_record(tmp_path):
    results = writer(tmp_path, pages=True)
    run(results, "ab")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"page.png", "result.json"}
    assert results.records.remaining(ITEMS) == ITEMS[2:]


@pytest.mark.parametrize("problem", [SubjectError("odd"), OSError(errno.EIO, "broken sector")])
def test_a_subject_that_fails_stops_no_other(problem, tmp_path, monkeypatch):
    def fail_for_b(folder, *others):
        if folder.name == "b":
            raise problem

    monkeypatch.setattr(writers, "write_volumes", fail_for_b)
    results = writer(tmp_path, volumes=True)
    run(results, "abc", failures=[Failure("d", "cut off")])
    assert results.failures == [Failure("d", "cut off"), Failure("b", str(problem))]
    assert [item["subject"] for item in results.records.remaining(ITEMS)] == ["b"]


def test_a_full_disk_stops_the_run(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "no room for a subject's folder")

    monkeypatch.setattr(writers, "write_volumes", full)
    with pytest.raises(StorageError, match=rf"'{tmp_path}' cannot be written .*make room"):
        run(writer(tmp_path, volumes=True), "a")


def test_a_vanished_output_folder_stops_the_run(tmp_path):
    results = writer(tmp_path / "out")
    (tmp_path / "out" / "inference_settings.json").unlink()
    (tmp_path / "out").rmdir()
    (tmp_path / "out").touch()
    with pytest.raises(NotADirectoryError, match="output_dir"):
        run(results, "a")


def test_an_error_of_the_program_surfaces(tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "write_volumes", lambda *arguments: {}["missing"])
    with pytest.raises(KeyError):
        run(writer(tmp_path, volumes=True), "a")


def test_each_phase_goes_into_the_grid_of_its_own_scan(tmp_path):
    item, output = {"subject": "a"}, {}
    for value, (phase, spacing) in enumerate((("ED", 1.5), ("ES", 2.0)), start=1):
        item[f"scan_{phase}"] = str(tmp_path / f"sa_{phase}.nii.gz")
        write_volume(item[f"scan_{phase}"], np.ones((4, 4, 4), np.int16), np.diag([spacing, spacing, 10, 1]))
        output[f"pred_{phase}"] = torch.full((1, 4, 4, 4), float(value))
        output[f"difference_{phase}"] = torch.full((1, 4, 4, 4), -float(value))
    write_volumes(tmp_path, item, output, PHASES)
    for name, sign in (("reconstruction", 1), ("difference", -1)):
        written = [nib.load(tmp_path / f"{name}_{phase}.nii.gz") for phase in PHASES]
        assert [image.get_fdata()[0, 0, 0] for image in written] == [sign, 2 * sign]
        assert [image.affine[0, 0] for image in written] == [1.5, 2.0]


def reversed_slices(folder):
    """The same hearts at the same place, with the slices stored the other way around."""
    for path in folder.glob("*/*sa_*.nii.gz"):
        image = nib.load(path)
        affine = image.affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, image.shape[2] - 1], [0, 0, 0, 1]])
        write_volume(path, np.asanyarray(image.dataobj)[..., ::-1], affine)


@pytest.fixture(params=[(1.8, 1.8, 10.0), (1.3, 1.9, 8.0)], ids=str)
def spacing(request):
    return request.param


@pytest.fixture(params=[1, -1])
def scans(request, spacing, tmp_path):
    """One heart, with its slices from the base on or from the apex on."""
    size, folder = tuple(round(340 / step) for step in spacing[:2]), tmp_path / "scans"
    write_cohort(folder, subjects=1, seed=4, cine_fraction=0, failing=0, workers=1, size=size, spacing=spacing)
    if request.param < 0:
        reversed_slices(folder)
    return folder


def test_a_reconstruction_coincides_with_its_scan(scans, tmp_path):
    parser = ConfigParser(ConfigParser.load_config_file(ROOT / "bundle" / "configs" / "inference.json"))
    before, after = (parser.get_parsed_content(key) for key in ("preprocessing", "postprocessing"))
    item = find_items(scans, tmp_path / "out", workers=1).items[0]
    data = before(item)
    data = after(data | {"pred": data["image"]})  # a network that changes nothing
    write_volumes(tmp_path, item, data, PHASES)
    for phase in PHASES:
        written, scan = nib.load(tmp_path / f"reconstruction_{phase}.nii.gz"), nib.load(item[f"image_{phase}"])
        assert np.allclose(written.affine, scan.affine, atol=1e-5)
        section = item[f"basal_slice_{phase}"]
        assert np.flatnonzero(written.get_fdata().any((0, 1))).tolist() == [section]
        truth, found = scan.get_fdata()[..., section], written.get_fdata()[..., section]
        inside = found != 0
        shift = phase_cross_correlation(truth, found, reference_mask=inside, moving_mask=inside)[0]
        assert np.abs(shift).max() <= 1
        assert np.corrcoef(truth[inside], found[inside])[0, 1] > 0.95
        assert not nib.load(tmp_path / f"difference_{phase}.nii.gz").get_fdata().any()


def test_each_result_is_that_of_its_subject(tmp_path):
    results = writer(tmp_path)
    outputs = [encoded(float(number)) for number in range(3)]
    state = SimpleNamespace(batch=[{"subject": name} for name in "abc"], output=outputs)
    results.write_batch(SimpleNamespace(state=state))
    assert [results.records.read(item)["codes"]["z0_LVEDV"] for item in ITEMS] == ["0", "1", "2"]


def test_a_stack_and_its_segmentation_coincide_with_the_scan(scans, spacing, tmp_path):
    overlays = [ROOT / "bundle" / "configs" / name for name in ("inference.json", "stack.json", "anatomy.json")]
    parser = ConfigParser(ConfigParser.load_config_files([str(file) for file in overlays]))
    before, after = (parser.get_parsed_content(key) for key in ("preprocessing", "postprocessing"))
    item = find_items(scans, tmp_path / "out", workers=1).items[0]
    data = before(item)
    assert data["image"].shape == (2 * 12 * 4, 128, 128)
    write_volumes(tmp_path, item, after(data | {"pred": data["image"]}), parser.get_parsed_content("view"))
    for phase in PHASES:
        labels, mask, scan, image = (
            nib.load(path).get_fdata()
            for path in (
                tmp_path / f"segmentation_{phase}.nii.gz",
                item[f"mask_{phase}"],
                item[f"image_{phase}"],
                tmp_path / f"reconstruction_{phase}.nii.gz",
            )
        )
        for label in (1, 2, 3):
            both = 2 * ((labels == label) & (mask == label)).sum()
            assert both / ((labels == label).sum() + (mask == label).sum()) > (0.93 if spacing[2] == 10 else 0.85)
        heart = mask > 0
        assert np.corrcoef(image[heart], scan[heart])[0, 1] > (0.95 if spacing[2] == 10 else 0.8)
        assert nib.load(tmp_path / f"segmentation_{phase}.nii.gz").get_data_dtype() == np.uint8
