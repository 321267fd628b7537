"""Evaluation and study as their users run them: the real command line, on a phantom cohort."""

from __future__ import annotations

import json
import re

import pytest
from monai.bundle import ConfigParser

from scripts.cohort.phantom import write_cohort
from scripts.cohort.prepare import prepare
from scripts.storage import read_csv
from tests.test_bundle import CONFIGS, bundle, parse

TINY = {"spatial_size": [32, 32], "spacing": 5, "channels": [8, 8], "latent_dim": 8, "batch_size": 6}
TINY |= {"perceptual_weight": 0, "max_epochs": 2, "warmup_epochs": 0, "generated_samples": 12}
TINY |= {"ceiling_epochs": 2, "ceiling_channels": [8, 8], "page_subjects": 1, "page_changes": [10]}
FIGURES = {"reconstructions", "walks", "scatter", "correlations", "curves", "samples"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Phantoms, enough of them for every metric, and their datalist."""
    root = tmp_path_factory.mktemp("cohort")
    write_cohort(root / "scans", subjects=24, seed=5, cine_fraction=0, failing=0)
    prepare(root / "scans", root, split=(0.5, 0.05, 0.45))
    return root


@pytest.fixture(scope="module")
def study(cohort):
    """All methods on one phase from one command; the commands of the documents run both phases."""
    code, text = bundle(
        *("run", "study.json"),
        **{"dataset_dir": str(cohort / "scans"), "datalist": str(cohort / "datalist.json")},
        **{"output_dir": str(cohort / "study"), "overlays": ["compact.json"], "seeds": [0], "overrides": TINY},
        **{"inputs": {"ES": ["es.json"]}, "workers": 2},
    )
    assert code == 0, text[-3000:]
    return cohort / "study"


@pytest.mark.slow
def test_all_methods_stand_in_one_table(study):
    text = (study / "study.md").read_text()
    assert text.startswith("# Study\n\n4 of 4 runs.")
    part = text.split("## Input ES\n")[1]
    for method in ("AR-SIVAE", "SIVAE", "Attri-VAE", "β-VAE"):
        assert part.count(f"\n| {method} |") >= 3  # reconstruction and both protocols
    for row in ("noise", "heart size", "oracle", "supervised ceiling"):
        assert f"| *{row}* |" in part
    assert "n/a" not in part.split("sound protocol")[0]
    tests = {(row["input"], row["method"]) for row in read_csv(study / "tests.csv")}
    assert ("ES", "β-VAE") in tests


@pytest.mark.slow
def test_an_evaluation_writes_what_it_promises(study):
    folder = study / "ar_sivae_es_seed_0" / "eval"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["description"]["method"] == "AR-SIVAE"
    assert metrics["subjects"]["test"] >= 10
    assert set(metrics["images"]) == {"All", "ES"}
    assert {"value", "low", "high"} <= set(metrics["interpretability"]["sound"]["model"]["partial_scc"])
    assert {path.stem for path in (folder / "figures").iterdir()} == FIGURES
    assert "Reconstruction (layout of Table 1)" in (folder / "tables.md").read_text()
    rows = read_csv(folder / "subjects.csv")
    assert {row["section"] for row in rows} == {"training", "test"}
    assert all(float(row["SSIM_ES"]) <= 1 for row in rows if row["section"] == "test")
    assert {"LVESV", "z0", "z7"} <= set(rows[0])


@pytest.mark.slow
@pytest.mark.parametrize(("method", "changeable"), [("ar_sivae", True), ("sivae", False)])
def test_an_evaluation_writes_a_page_that_names_nobody(method, changeable, study):
    folder = study / f"{method}_es_seed_0" / "eval"
    text = (folder / "report.html").read_text()
    assert "Interpretability, sound protocol" in text
    assert text.count("data:image/png;base64,") == len(list((folder / "figures").iterdir()))
    assert ('id="hearts-data"' in text) == changeable
    assert ("trained without attribute loss" in text) != changeable
    numbers = {int(row["pseudonym"]): row["subject"] for row in read_csv(folder.parent / "pseudonyms.csv")}
    assert not any(subject in text for subject in numbers.values())
    if changeable:
        hearts = json.loads(re.search(r'id="hearts-data">(.*?)</script>', text)[1])
        assert {heart["number"] for heart in hearts["subjects"]} <= set(numbers)


def test_the_ceiling_learns_from_training_subjects_only():
    config = ConfigParser.load_config_file(CONFIGS / "evaluate.json")
    assert config["ceiling"]["trainer"]["train_data_loader"]["dataset"]["data"] == "@evaluate#training#items"
    assert config["ceiling"]["network_def"]["items"] == "@evaluate#training#items"


@pytest.mark.slow
def test_methods_without_attribute_loss_have_no_walks(study):
    assert not (study / "sivae_es_seed_0" / "eval" / "figures" / "walks.png").exists()


@pytest.mark.slow
def test_a_ceiling_serves_all_methods_of_an_input(study):
    assert len(list(study.glob("ceiling_*/ceiling.pt"))) == 1
    logs = {path.parent.name: "Training the ceiling" in path.read_text() for path in study.glob("*/run.log")}
    assert sum(logs.values()) == 1
    assert logs["ar_sivae_es_seed_0"]


WHOLE = ("train.json", "compact.json", "attri_vae.json", "residual.json", "stack.json", "anatomy.json")
EVALUATED = ("ceiling", "generated", "page")  # what the keys begin with that a training does not know
STACK = {"stack_slices": 4, "slice_distance": 30, "segmentation_weight": 1, "learning_rate": 0.01}
STACK |= {"max_epochs": 60, "val_interval": 20, "augmentation_prob": 0}


@pytest.fixture(scope="module")
def whole_heart(cohort):
    """The evaluation of a model of the whole heart, and what it prints."""
    run = cohort / "whole"
    keys = {"dataset_dir": str(cohort / "scans"), "datalist": str(cohort / "datalist.json"), "output_dir": str(run)}
    keys |= {key: value for key, value in TINY.items() if not key.startswith(EVALUATED)} | STACK
    code, text = bundle("training", *WHOLE, **keys)
    assert code == 0, text[-3000:]
    keys |= {key: value for key, value in TINY.items() if key.startswith(EVALUATED)}
    keys |= {
        "instrument_epochs": 4,
        "instrument_channels": [8, 16],
        "whatif_changes": [-10, 10],
        "whatif_round_trip": [10],
    }
    code, text = bundle("run", *WHOLE, "evaluate.json", **keys)
    assert code == 0, text[-3000:]
    return run, text


@pytest.mark.slow
def test_counterfactuals_of_whole_hearts_are_measured(whole_heart):
    run, text = whole_heart
    assert "Training the segmentation instrument for 4 epochs" in text
    found = json.loads((run / "eval" / "metrics.json").read_text())["faithfulness"]
    assert list(found["instruments"]) == ["segmentation", "regressor", "self-report"]
    assert set(found["corrected"]) == {"segmentation", "regressor"}
    assert "The segmentation is not corrected: that takes more such scans" in text
    assert sum(count["allowed"] for count in found["requests"].values()) > 20
    assert found["answers"]["self-report"]["slope"]["value"] > 0.5
    assert found["instruments"]["self-report"]["scans"]["error"]["value"] < 25  # slices are 30 mm apart
    assert found["agreement"]["changed"]["value"] is not None
    files = {"segmentation_instrument.pt", "segmentation_instrument.json", "regressor_instrument.pt"}
    assert files <= {path.name for path in run.iterdir()}


@pytest.mark.slow
def test_an_independent_instrument_measures_the_hearts_of_the_page(whole_heart):
    text = (whole_heart[0] / "eval" / "report.html").read_text()
    hearts = json.loads(re.search(r'id="hearts-data">(.*?)</script>', text)[1])
    assert "segmentation network" in hearts["instrument"]
    before = hearts["subjects"][0]["before"]
    assert len(before["measured"]) == len(before["own"]) == 8
    assert before["measured"] != before["own"]


def test_instruments_learn_from_scans_of_training_subjects_only():
    config = ConfigParser.load_config_file(CONFIGS / "evaluate.json")["instruments"]
    assert config["items"] == "$@evaluate#training#items[:@instrument_subjects]"
    assert config["dataset"]["data"] == config["regressor"]["network_def"]["items"] == "@instruments#items"
    for name in ("segmentation", "regressor"):
        assert config[name]["trainer"]["train_data_loader"]["dataset"] == "@instruments#dataset"
        assert config[name]["correct"]["loader"] == "@instruments#other_scans"
    assert "@network" not in str(config).replace("#network", "")
    assert config["other_scans"]["dataset"]["data"]["section"] == "@instrument_section"


def test_corrected_instruments_measure_once_they_are_corrected():
    config = ConfigParser.load_config_file(CONFIGS / "evaluate.json")
    for name in ("segmentation", "regressor"):
        assert config["faithfulness"]["instruments"][name] == f"@instruments#{name}#corrected"
        steps = [f"$@instruments#{name}#{step}" for step in ("fit", "correct")]
        places = [config["run"].index(step) for step in (*steps, "$@evaluate#test#evaluator.run()")]
        assert places == sorted(places)
    assert config["page"]["hearts"]["measure"]["instrument"] == "@instruments#segmentation#corrected"


@pytest.mark.parametrize(("section", "other"), [("test", "validation"), ("validation", None)])
def test_instruments_are_not_corrected_by_the_scans_that_are_judged(section, other):
    parser = parse("train.json", "stack.json", "anatomy.json", "evaluate.json", section=section)
    assert parser.get_parsed_content("instrument_section") == other


def test_instruments_learn_from_the_crops_of_the_training_but_with_maps():
    steps = ConfigParser.load_config_file(CONFIGS / "train.json")["train"]["deterministic_transforms"]
    own = ConfigParser.load_config_file(CONFIGS / "evaluate.json")["instruments"]["preprocessing"]["transforms"]
    for number, (step, other) in enumerate(zip(steps, own, strict=False)):
        if isinstance(other, str):
            assert other == f"@train#deterministic_transforms#{number}"
            assert "@view" not in step.values()
        else:
            assert other == step | {"view": "@instruments#view"}


def evaluate(cohort, study, **changes):
    run = study / "beta_vae_es_seed_0"
    paths = {"dataset_dir": str(cohort / "scans"), "datalist": str(cohort / "datalist.json"), "output_dir": str(run)}
    files = ("train.json", "compact.json", "es.json", "beta_vae.json", "evaluate.json")
    return bundle("run", *files, **(paths | TINY | {"eval_dir": str(cohort / "again")} | changes))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"section": "training"}, "of section 'training' are training subjects"),
        ({"datalist": "OTHER"}, "cohort is"),
        ({"section": "tset"}, "section is 'tset'; expected one of training"),
        ({"attributes": ["LVESV", "RVESV"]}, "attributes is ['LVESV', 'RVESV'], was ['LVESV', 'RVESV', 'MyoESV']"),
        ({"lpips_nett": "alex"}, "did you mean 'lpips_net'?"),
    ],
)
def test_mistakes_are_explained(changes, message, cohort, study, tmp_path):
    if "datalist" in changes:  # of the same subjects, in other sections than those of the training
        content = json.loads((cohort / "datalist.json").read_text())
        (tmp_path / "other.json").write_text(
            json.dumps(content | {"training": content["test"], "test": content["training"]})
        )
        changes = {"datalist": str(tmp_path / "other.json")}
    code, text = evaluate(cohort, study, **changes)
    assert code != 0
    assert message in text
