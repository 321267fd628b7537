"""Counterfactuals of a cohort, of a model whose truth is known, see ``tests.inference.hearts``."""

from __future__ import annotations

import json
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.calibration.calibration import Calibration
from scripts.calibration.population import fit_population
from scripts.checkpoint import save
from scripts.cohort.layout import find_subjects
from scripts.counterfactual import Counterfactuals, Request, counterfactuals_of
from scripts.inference.records import Records
from scripts.inference.whatif import WhatIfWriter
from scripts.storage import read_csv
from scripts.views import View
from tests.inference.hearts import NAMES, SPACING, DrawnHeart
from tests.test_bundle import bundle, parse

HEART = {"network_def": {"_target_": "tests.inference.hearts.DrawnHeart"}, "num_workers": 0}
FILES = ("compact.json", "stack.json", "anatomy.json")
CROP = {"spatial_size": [64, 64], "channels": [16, 32, 64, 128], "latent_dim": 32}


@pytest.fixture(scope="module")
def model(prepared, phantoms, tmp_path_factory):
    """The weights of the drawn heart, calibrated on the phantom cohort."""
    folder = tmp_path_factory.mktemp("model")
    save(DrawnHeart().state_dict(), folder / "model.pt")
    paths = {"dataset_dir": str(phantoms), "datalist": str(prepared / "datalist.json"), "output_dir": str(folder)}
    parse("train.json", *FILES, **CROP, **paths, **HEART, perceptual_weight=0).get_parsed_content("calibration").run()
    return folder


def ask(model, dataset, output, *files, **keys):
    """Run the command line."""
    paths = {"dataset_dir": str(dataset), "output_dir": str(output), "ckpt_path": str(model / "model.pt")}
    return bundle("whatif", "inference.json", *FILES, *files, "whatif.json", **(paths | HEART | keys))


def labels(folder, when, phase, label):
    """Volume of a label in mL, counted in the grid of the scan."""
    image = nib.load(folder / f"segmentation_{when}_{phase}.nii.gz")
    return np.count_nonzero(np.asarray(image.dataobj) == label) * np.prod(image.header.get_zooms()[:3]) / 1000


@pytest.mark.slow
def test_a_cohort_is_asked_and_the_refused_are_listed(model, phantoms, prepared, tmp_path):
    code, text = ask(model, phantoms, tmp_path, attribute="LVEDV", change=20, datalist=str(prepared / "datalist.json"))
    assert code == 3, text[-3000:]  # the largest heart of the training cannot grow
    folder = tmp_path / "whatif" / "LVEDV_+20"
    rows, excluded = read_csv(folder / "whatif.csv"), read_csv(folder / "excluded.csv")
    assert len(rows) + len(excluded) == 12
    assert len(rows) >= 6
    assert all("LVEDV of " in row["reason"] and "outside the trained range of" in row["reason"] for row in excluded)
    for row in rows:
        change = [float(row[f"{name}_after"]) - float(row[f"{name}_before"]) for name in NAMES]
        assert np.allclose(change, [20, 0, 0, 0, 0, 0], atol=0.2)
        assert row["told_by"] == "decoded maps"
        assert float(row["LVEDV_before"]) == pytest.approx(float(row["LVEDV_mask"]), rel=0.1)
    check_files(folder / rows[0]["subject"], phantoms, rows[0])


def check_files(folder, phantoms, row):
    """The files of one subject lie in its own grid, and show what the table says."""
    kinds = ("before", "after", "difference", "segmentation_before", "segmentation_after")
    names = {f"{kind}_{phase}.nii.gz" for kind in kinds for phase in ("ED", "ES")}
    assert {path.name for path in folder.iterdir()} == names | {"page.png", "result.json"}
    scan = nib.load(next((phantoms / row["subject"]).glob("sa*.nii.gz")))
    before, after, difference = (nib.load(folder / f"{kind}_ED.nii.gz") for kind in kinds[:3])
    assert np.allclose(after.affine, scan.affine)
    assert after.shape == scan.shape[:3]
    assert np.allclose(after.get_fdata() - before.get_fdata(), difference.get_fdata(), atol=1e-3)
    assert labels(folder, "after", "ED", 1) - labels(folder, "before", "ED", 1) == pytest.approx(20, abs=5)
    assert labels(folder, "after", "ES", 1) == pytest.approx(labels(folder, "before", "ES", 1), abs=1)


def test_one_subject_of_a_folder_gets_a_target_in_the_population(model, phantoms, prepared, tmp_path):
    training = json.loads((prepared / "datalist.json").read_text())["training"]
    subject = min(training, key=lambda item: item["LVESV"])
    target = round(subject["LVESV"]) + 8
    keys = {"attribute": "LVESV", "target": target, "kind": "population", "subject": subject["subject"]}
    paths = {"dataset_dir": str(phantoms), "output_dir": str(tmp_path), "ckpt_path": str(model / "model.pt")}
    config = parse("inference.json", *FILES, "whatif.json", **CROP, **HEART, **paths, **keys, volumes=False)
    config.get_parsed_content("whatif")
    (row,) = read_csv(tmp_path / "whatif" / f"LVESV_to_{target}_population" / "whatif.csv")
    assert row["subject"] == subject["subject"]
    assert float(row["LVESV_after"]) == pytest.approx(target, abs=0.2)
    assert row["LVEDV_asked"] == ""  # it may follow, and does
    assert abs(float(row["LVEDV_after"]) - float(row["LVEDV_before"])) > 2


@pytest.mark.parametrize(
    ("files", "keys", "message"),
    [
        ([], {"change": 20}, "name the one to change, such as --attribute LVEDV"),
        ([], {"attribute": "LVEDV", "change": 20, "target": 1}, "either --change or --target, in mL; both are given"),
        ([], {"attribute": "LVEF", "change": 5}, "not trained on attribute 'LVEF'; it has LVEDV, RVEDV, MyoEDV"),
        (["sivae.json"], {"attribute": "LVEDV", "change": 5}, "trained without attribute loss"),
        ([], {"attribute": "LVEDV", "change": 5, "ckpt_path": "no/model.pt"}, "'no/model.pt' does not exist"),
    ],
)
def test_what_cannot_be_asked_is_said_before_anything_is_loaded(files, keys, message, model):
    keys = {"ckpt_path": str(model / "model.pt")} | keys | CROP | HEART
    config = parse("inference.json", *FILES, *files, "whatif.json", **keys)
    first = config["whatif"][1:4]
    assert not any("load_weights" in step for step in first)
    config["first"] = first
    assert message in "".join(map(str, errors(config, "first")))


def errors(config, key):
    """What parsing a part of a config raises, and what that comes of."""
    try:
        config.get_parsed_content(key)
    except Exception as error:
        chain = [error]
        while chain[-1].__cause__ is not None:
            chain.append(chain[-1].__cause__)
        return chain
    return []


@pytest.mark.parametrize(
    ("calibration", "regularize", "message"),
    [
        (None, True, "has no calibration.json of these .*'run calibrate'"),
        (SimpleNamespace(population=None), True, "has a calibration.json of an earlier version, .*'run calibrate'"),
        (SimpleNamespace(population=None), False, r"trained without attribute loss \(regularize is False\)"),
    ],
)
def test_a_model_that_knows_too_little_says_what_to_do(calibration, regularize, message):
    with pytest.raises(ValueError, match=message):
        counterfactuals_of(DrawnHeart(), View(), 2.5, regularize, calibration)


def tool():
    """Counterfactuals of the drawn heart, whose training subjects have LVEDV of about 70 to 210 mL."""
    heart = DrawnHeart()
    codes = 0.5 * torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    population = fit_population(codes.double().numpy(), heart.volumes(codes).double().numpy(), NAMES)
    return Counterfactuals(heart, heart.view, SPACING, population)


class Judge:
    """A calibration that finds every scan out of range."""

    def estimate(self, codes):
        return {}

    def novelty(self, *parts):
        return SimpleNamespace(percentiles={"error_ED": 99.5}, percentile=99.9, out_of_range=True)

    def cautions(self):
        return ["This model has a flaw."]


def write(folder, codes, request, **options):
    """Ask for subjects with these codes, without an evaluator."""
    counterfactuals = tool()
    items = [{"subject": f"s{row}", "state": "1"} for row in range(len(codes))]
    records = Records(folder, {}, {}, ["whatif"])
    records.claim()
    options = {"volumes": False, "pages": False} | options
    writer = WhatIfWriter(records, items, counterfactuals, request, Judge(), dict, **options)
    images = counterfactuals.decode(codes)
    parts = zip(codes, images, strict=True)
    output = [{"codes": code, "log_variances": code, "image": image, "pred": image} for code, image in parts]
    writer.write_batch(SimpleNamespace(state=SimpleNamespace(batch=items, output=output)))
    records.gather(items, [])
    return writer


def test_a_refused_subject_stops_no_other_and_keeps_no_earlier_answer(tmp_path):
    codes = torch.zeros(3, 8)
    write(tmp_path, codes, Request("LVEDV", change=10))
    assert (tmp_path / "s1").exists()
    codes[1, 0] = 1.5
    writer = write(tmp_path, codes, Request("LVEDV", change=10))
    assert [row["subject"] for row in read_csv(tmp_path / "whatif.csv")] == ["s0", "s2"]
    (failure,) = writer.failures
    assert failure.subject == "s1"
    assert "outside the trained range of" in failure.reason
    assert not (tmp_path / "s1").exists()


def test_a_scan_out_of_range_is_told_in_the_table(tmp_path):
    write(tmp_path, torch.zeros(1, 8), Request("LVEDV", change=10))
    (row,) = read_csv(tmp_path / "whatif.csv")
    assert (row["out_of_range"], row["percentile"]) == ("True", "99.9")
    assert (row["attribute"], row["kind"], float(row["change"])) == ("LVEDV", "all_else_equal", 10)


def test_how_far_a_code_has_moved_stands_in_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(Counterfactuals, "distance", lambda self, codes, changed: torch.tensor([2.5]))
    write(tmp_path, torch.zeros(1, 8), Request("LVEDV", change=10))
    (row,) = read_csv(tmp_path / "whatif.csv")
    assert row["moved"] == "2.5"


def test_what_is_wrong_with_the_model_stands_on_each_page(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("scripts.inference.whatif.draw_page", lambda *parts: drawn.append(parts))
    write(tmp_path, torch.zeros(1, 8), Request("LVEDV", change=10), pages=True)
    assert drawn[0][-1] == "This model has a flaw."


def test_a_page_is_drawn(tmp_path):
    write(tmp_path, torch.zeros(1, 8), Request("LVEDV", change=10), pages=True)
    assert (tmp_path / "s0" / "page.png").stat().st_size > 10_000


def test_counterfactuals_in_the_dataset_are_no_subject(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "sa_ED.nii.gz").touch()
    (tmp_path / "whatif").mkdir()
    assert [folder.name for folder in find_subjects(tmp_path, tmp_path)] == ["a"]


def test_the_calibration_of_a_training_is_enough(model):
    content = json.loads((model / "calibration.json").read_text())
    calibration = Calibration.read(model / "calibration.json", content["checkpoint_sha256"])
    assert counterfactuals_of(DrawnHeart(), calibration.view, SPACING, True, calibration).names == NAMES
