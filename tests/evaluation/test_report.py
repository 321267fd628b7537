import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scripts.evaluation.report import EvaluationReport, method_name, refuse_overlap, without_nan
from scripts.evaluation.samples import SamplePairs
from scripts.metrics import held_out_r2, partial_correlations, spearman
from scripts.networks import VariationalAutoencoder
from scripts.storage import read_csv
from tests.evaluation.world import Generator, ask, hearts

NAMES = ["LVEDV", "RVEDV"]


def handlers(count, seed, error):
    """What one pass leaves: attributes, codes that follow them with an error, predictions and features."""
    rng = np.random.default_rng(seed)
    attributes = rng.normal(100, 20, (count, 2))
    codes = np.hstack([attributes / 20 - 5 + error * rng.standard_normal((count, 2)), rng.standard_normal((count, 2))])
    records = SimpleNamespace(
        pseudonyms=[100 * seed + k for k in reversed(range(count))],
        attributes=attributes,
        codes=codes,
        sampled_codes=lambda seed: np.random.default_rng(seed).standard_normal(codes.shape),
    )
    predictions = SimpleNamespace(values=attributes + 5 * rng.standard_normal((count, 2)))
    return {
        "records": records,
        "predictions": predictions,
        "features": SimpleNamespace(values=np.full((count, 3), seed)),
    }


@pytest.fixture
def report(tmp_path):
    """A report whose training and test differ in everything."""
    training, test = handlers(30, 1, 0.2), handlers(20, 2, 0.8)
    rows = [{f"{name}_ED": float(k) for name in ("SSIM", "LPIPS", "PSNR", "MSE")} for k in range(20)]
    images = torch.rand(2, 1, 8, 8)
    test |= {
        "quality": SimpleNamespace(rows=rows),
        "examples": SimpleNamespace(images=images, reconstructions=images / 2),
    }
    description = {"method": "AR-SIVAE", "seed": 0, "section": "test", "size_error": 0.2, "generated_samples": 12}
    description |= {"lpips_net": "vgg", "feature_trunk": "vgg16", "training": {}, "model": {"regularize": True}}
    description |= {"data": {"attributes": NAMES, "phases": ["ED"]}}
    judged = []
    value = {"value": 1.0, "low": 0.5, "high": 1.5}
    realism = dict.fromkeys(("kid", "kid_reference", "frechet", "frechet_reference"), value)
    realism["memorization"] = value | {"expected": 0.05}
    samples = SimpleNamespace(
        judge=lambda *features: (judged.extend(features), (realism, SamplePairs(images, images, np.ones(2))))[1]
    )
    network = VariationalAutoencoder(1, (8, 8), [4], 4, norm="batch")
    made = EvaluationReport(tmp_path, description, training, test, network, samples, tmp_path / "none")
    made.judged = judged
    return made


def test_training_and_test_are_not_exchanged(report, tmp_path):
    report.write()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    training, test = report.training, report.test
    sets = [
        training["records"].codes,
        training["records"].attributes,
        test["records"].codes,
        test["records"].attributes,
    ]
    sound = metrics["interpretability"]["sound"]
    assert sound["model"]["r2"]["value"] == pytest.approx(held_out_r2(*sets).mean())
    assert sound["model"]["scc"]["value"] == pytest.approx(spearman(*sets[2:]).mean())
    predicted = [training["predictions"].values, sets[1], test["predictions"].values, sets[3]]
    assert sound["supervised ceiling"]["r2"]["value"] == pytest.approx(held_out_r2(*predicted).mean())
    assert [features[0, 0] for features in report.judged] == [1, 2]
    assert metrics["images"]["ED"]["SSIM"]["value"] == pytest.approx(9.5)
    assert metrics["subjects"] == {"training": 30, "test": 20}


def test_an_evaluation_of_few_subjects_does_not_end_like_a_success(report, capsys):
    report.write()
    assert "Caution" not in capsys.readouterr().out
    report.test |= handlers(9, 3, 0.8)
    report.test["quality"].rows = report.test["quality"].rows[:9]
    report.write()
    assert "Caution: most metrics of codes are undefined" in capsys.readouterr().out


def test_figures_show_the_test_subjects(report):
    figures = dict(report.figures(report.code_rows()["model"], report.judge_samples()[1]))
    assert set(figures) == {"reconstructions", "walks", "scatter", "correlations", "samples"}  # there is no log
    test = report.test["records"]
    scc = spearman(test.codes, test.attributes)
    assert f"SCC {scc[1]:.2f}" in figures["scatter"].axes[1].get_title()
    shown = [text.get_text() for text in figures["correlations"].axes[0].texts]
    own = partial_correlations(test.codes[:, :2], test.attributes)
    assert f"{own[0, 0]:.2f}" in shown
    labels = " ".join(axis.get_ylabel() for axis in figures["walks"].axes)
    assert f"SCC {scc[0]:.2f}" in labels


def test_counterfactuals_are_asked_of_the_judged_subjects(report, tmp_path):
    found, answers = ask(Generator(), hearts(20))
    asked = []
    report.faithfulness = SimpleNamespace(measure=lambda *records: (asked.extend(records), (found, answers))[1])
    report.write()
    assert asked == [report.training["records"], report.test["records"]]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["faithfulness"]["answers"]["reader"]["slope"]["value"] == pytest.approx(1, abs=0.01)
    assert (tmp_path / "figures" / "whatif.png").exists()
    assert "Counterfactuals" in (tmp_path / "tables.md").read_text()
    rows = read_csv(tmp_path / "whatif.csv")
    numbers = [int(row["pseudonym"]) for row in rows]
    assert set(numbers) == set(report.test["records"].pseudonyms)
    assert numbers == sorted(numbers)


def test_metrics_come_last_so_that_they_stand_for_all_files(report, tmp_path, monkeypatch):
    earlier = [tmp_path / name for name in ("metrics.json", "whatif.csv", "report.html", "figures/whatif.png")]
    (tmp_path / "figures").mkdir()
    for file in earlier:
        file.write_text("of an earlier evaluation")
    monkeypatch.setattr(report, "write_subjects", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        report.write()
    assert not any(file.exists() for file in earlier)


def test_every_subject_has_a_row(report, tmp_path):
    report.write()
    rows = {row["pseudonym"]: row for row in read_csv(tmp_path / "subjects.csv")}
    assert len(rows) == 50
    assert list(rows) == sorted(rows, key=int)  # the datalist's order is that of the names
    assert rows["203"]["section"] == "test"
    assert float(rows["203"]["SSIM_ED"]) == 16
    assert rows["103"]["SSIM_ED"] == ""
    assert float(rows["103"]["z1"]) == pytest.approx(report.training["records"].codes[26, 1])
    assert float(rows["203"]["RVEDV"]) == pytest.approx(report.test["records"].attributes[16, 1])


def test_methods_have_the_names_of_the_paper():
    assert [method_name("introspective", on) for on in (True, False)] == ["AR-SIVAE", "SIVAE"]
    assert [method_name("vae", on) for on in (True, False)] == ["Attri-VAE", "β-VAE"]


def test_undefined_numbers_are_null_in_json():
    text = json.dumps(without_nan({"a": [math.nan, 1.5], "b": {0: math.inf}}), allow_nan=False)
    assert json.loads(text) == {"a": [None, 1.5], "b": {"0": None}}


def test_judging_training_subjects_is_refused():
    training, test = [{"subject": "a"}, {"subject": "b"}], [{"subject": "b"}, {"subject": "c"}]
    refuse_overlap(training, test[1:], "test")
    with pytest.raises(ValueError, match="1 of 2 subjects of section 'test' are training subjects\\."):
        refuse_overlap(training, test, "test")
