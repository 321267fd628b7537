"""The bundle as its users run it: command lines, from wherever they stand."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from scripts.calibration.calibration import Calibration
from scripts.charts import read_scalars
from scripts.checkpoint import fingerprint, load_weights
from scripts.cohort.phantom import write_cohort
from scripts.evaluation import study
from scripts.storage import read_csv
from tests import processes
from tests.conftest import ROOT
from tests.inference.damage import break_five
from tests.processes import Line

CONFIGS = ROOT / "bundle" / "configs"
OVERLAYS = (
    *("compact.json", "sivae.json", "beta_vae.json", "attri_vae.json", "residual.json", "ed.json", "es.json"),
    *("phantom.json", "stack.json", "anatomy.json", "faithful.json"),
)
TINY = {
    "channels": [8, 8, 8],
    "latent_dim": 8,
    "batch_size": 4,
    "perceptual_weight": 0,
    "max_epochs": 2,
    "warmup_epochs": 0,
}


def bundle(run_id, *configs, cwd=ROOT, **overrides):
    """Run ``python -m monai.bundle run`` and return its exit status and what it printed."""
    line = Line(tuple(command(run_id, *configs, **overrides)[3:]), cwd, environment())
    with TemporaryDirectory() as folder:
        return processes.run(line, Path(folder, "log"), seconds=900)


PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1"} | {"PYTHONPATH": ""}


def command(run_id, *configs, **overrides):
    return study.command(run_id, [CONFIGS / name for name in configs], overrides)


def train_command(prepared, phantoms, output, **overrides):
    paths = {"dataset_dir": str(phantoms), "datalist": str(prepared / "datalist.json"), "output_dir": str(output)}
    return command("training", "train.json", "compact.json", **paths, **(TINY | overrides))


def train(prepared, phantoms, output, **overrides):
    process = subprocess.run(
        train_command(prepared, phantoms, output, **overrides), cwd=ROOT, env=environment(), timeout=300, **PIPES
    )
    assert process.returncode == 0, process.stdout[-3000:]
    return process.stdout


@pytest.fixture(scope="module")
def trained(prepared, phantoms, tmp_path_factory):
    """A model trained for two epochs on the phantom cohort."""
    output = tmp_path_factory.mktemp("trained")
    train(prepared, phantoms, output)
    return output


def test_the_whole_road_from_another_directory(tmp_path):
    code, text = bundle("phantom", "cohort.json", cwd=tmp_path, subjects=12, failing=0)
    assert code == 0, text[-2000:]
    code, text = bundle("prepare", "cohort.json", cwd=tmp_path)
    assert code == 0, text[-2000:]
    assert "Found 12 subjects: 12 included, 0 excluded." in text
    code, text = bundle("training", "train.json", "compact.json", cwd=tmp_path, **TINY)
    assert code == 0, text[-2000:]
    code, text = bundle("run", "inference.json", "compact.json", cwd=tmp_path, channels=[8] * 3, latent_dim=8)
    assert code == 0, text[-2000:]
    output = tmp_path / "output"
    files = {"model.pt", "last.pt", "tensorboard", "pictures", "codes.csv", "attributes.csv", "datalist.json"}
    assert files <= set(os.listdir(output))
    rows = read_csv(output / "codes.csv")
    assert len(rows) == 12
    assert list(rows[0])[:3] == ["subject", "z0_LVEDV", "z1_RVEDV"]
    for row in rows:
        folder = output / row["subject"]
        scan = next(output.joinpath("dataset", row["subject"]).glob("sa*.nii.gz"))
        written = nib.load(folder / "reconstruction_ED.nii.gz")
        assert np.allclose(written.affine, nib.load(scan).affine)
        assert written.shape == nib.load(scan).shape[:3]
        assert np.count_nonzero(written.get_fdata().any((0, 1))) == 1
        names = {f"{kind}_{phase}.nii.gz" for kind in ("reconstruction", "difference") for phase in ("ED", "ES")}
        assert set(os.listdir(folder)) == names | {"page.png", "result.json"}


def test_a_trained_model_is_served_to_explore(trained, prepared, phantoms):
    paths = {"dataset_dir": str(phantoms), "datalist": str(prepared / "datalist.json"), "section": "test"}
    paths |= {"output_dir": str(trained), "ckpt_path": str(trained / "model.pt")}
    line = command("explore", "inference.json", "compact.json", "explore.json", **paths, **SIZES)
    # What runs in the background of a shell ignores the interrupt, and so do its children.
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(line, cwd=ROOT, env=environment(), preexec_fn=listen, **PIPES)
    silence = threading.Timer(240, process.kill)
    silence.start()
    try:
        printed = []
        for text in process.stdout:
            printed.append(text)
            if text.startswith("Explore at "):
                break
        assert printed[-1].startswith("Explore at http://127.0.0.1:"), "".join(printed)[-3000:]
        with urllib.request.urlopen(printed[-1].split()[2], timeout=60) as answer:
            assert "Explore hearts" in answer.read().decode()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        silence.cancel()
        process.kill()


def test_run_is_an_alias_of_training():
    config = ConfigParser.load_config_file(CONFIGS / "train.json")
    assert config["run"] == "%training"


def test_training_writes_finite_scalars_of_every_term(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    names, images = set(), set()
    for file in (trained / "tensorboard").iterdir():
        events = EventAccumulator(str(file)).Reload()
        names |= set(events.Tags()["scalars"])
        images |= set(events.Tags()["images"])
        assert all(np.isfinite(e.value) for name in events.Tags()["scalars"] for e in events.Scalars(name))
    expected = {"attribute_loss", "kl_real", "kl_reconstructed", "kl_generated", "log_exp_elbo_generated"}
    assert expected <= names
    assert {"val_reconstruction_loss", "val_scc"} <= names
    assert {"reconstructions", "traversals"} <= images


def test_the_same_seed_trains_the_same_model(trained, prepared, phantoms, tmp_path):
    train(prepared, phantoms, tmp_path)
    first, second = (torch.load(folder / "last.pt", weights_only=True)["network"] for folder in (trained, tmp_path))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_killed_in_mid_epoch_and_resumed_equals_undisturbed(prepared, phantoms, tmp_path):
    options = {"max_epochs": 6, "augmentation_prob": 0.9, "warmup_epochs": 1, "final_learning_rate_fraction": 0.1}
    train(prepared, phantoms, tmp_path / "whole", **options)
    process = subprocess.Popen(
        train_command(prepared, phantoms, tmp_path / "killed", **options), cwd=ROOT, env=environment(), **PIPES
    )
    last = tmp_path / "killed" / "last.pt"
    while not (last.exists() and torch.load(last, weights_only=True)["epoch"] >= 2):
        assert process.poll() is None, process.stdout.read()[-2000:]
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    epoch = torch.load(last, weights_only=True)["epoch"]
    assert epoch < 6
    text = train(prepared, phantoms, tmp_path / "killed", **options)
    assert f"after epoch {epoch} of 6" in text
    whole, resumed = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "killed"))
    assert whole["epoch"] == resumed["epoch"] == 6
    assert all(torch.equal(whole["network"][name], resumed["network"][name]) for name in whole["network"])
    best = [torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("whole", "killed")]
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[0])


def test_two_processes_train_one_model_and_resume_it(prepared, phantoms, tmp_path):
    paths = {"dataset_dir": str(phantoms), "datalist": str(prepared / "datalist.json"), "output_dir": str(tmp_path)}
    launcher = [sys.executable, *["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]]
    for epochs, expected in ((2, "Training for 2 epochs of 2 iterations."), (3, "after epoch 2 of 3.")):
        options = {**paths, **TINY, "max_epochs": epochs, "precision": "bfloat16", "augmentation_prob": 0.9}
        options |= {"linear_size": 8, "component_images": 5}
        one = command("training", "train.json", "compact.json", "multi_gpu_train.json", **options)
        run = subprocess.run([*launcher, *one[2:]], cwd=ROOT, env=environment(), timeout=300, **PIPES)
        assert run.returncode == 0, run.stdout[-3000:]
        assert run.stdout.count(expected) == 1, run.stdout[-3000:]
        assert run.stdout.count("Best val_reconstruction_loss") == 1
        assert torch.load(tmp_path / "last.pt", weights_only=True)["epoch"] == epochs
    assert {"model.pt", "last.pt", "settings.json", "calibration.json", "pictures"} <= set(os.listdir(tmp_path))


def test_training_calibrates_once_and_calibrate_serves_older_weights(trained, prepared, phantoms, tmp_path):
    content = (trained / "calibration.json").read_text()
    assert "phantom0" not in content
    calibration = Calibration.read(trained / "calibration.json", fingerprint(trained / "model.pt"))
    assert calibration.attributes[:2] == ("LVEDV", "RVEDV")

    for name in ("model.pt", "settings.json"):
        shutil.copy(trained / name, tmp_path)
    paths = {"dataset_dir": str(phantoms), "datalist": str(prepared / "datalist.json"), "output_dir": str(tmp_path)}
    code, text = bundle("calibrate", "train.json", "compact.json", **paths, **TINY)
    assert code == 0, text[-2000:]
    assert "hold at 75 % only: 95 % need 19 validation subjects" in text
    assert (tmp_path / "calibration.json").read_text() == content
    code, text = bundle("calibrate", "train.json", "compact.json", **paths, **TINY)
    assert "is already that of" in text


def test_subject_names_do_not_enter_the_checkpoint(trained):
    for name in ("model.pt", "last.pt"):
        assert b"phantom0" not in (trained / name).read_bytes()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"dataset_dirr": "x"}, "no config declares the key 'dataset_dirr': did you mean 'dataset_dir'?"),
        ({"trian#trainer#max_epochs": 3}, "query key: trian"),  # refused by MONAI itself
        ({"attributes": ["LVEDV", "LAV"]}, "lacks the attributes LAV; it has LVEDV"),
        ({"datalist": "/nowhere.json"}, "datalist '/nowhere.json' does not exist; 'run prepare'"),
        ({"dataset_dir": "/nowhere"}, "are missing under dataset_dir '/nowhere'"),
        ({"output_dir": "/dev/null/out"}, "output_dir '/dev/null/out"),
        ({"spatial_size": [60, 60]}, "must be divisible by 8"),
    ],
)
def test_mistakes_are_explained(overrides, message, prepared, phantoms, tmp_path):
    code, text = run_train(prepared, phantoms, tmp_path, **overrides)
    assert code != 0
    assert message in text


def run_train(prepared, phantoms, output, **overrides):
    paths = {"dataset_dir": str(phantoms), "datalist": str(prepared / "datalist.json"), "output_dir": str(output)}
    return bundle("training", "train.json", "compact.json", **(paths | TINY | overrides))


def test_weights_of_another_architecture_are_explained(trained, phantoms, tmp_path):
    code, text = bundle(
        "run",
        "inference.json",
        dataset_dir=str(phantoms),
        output_dir=str(tmp_path),
        ckpt_path=str(trained / "model.pt"),
    )
    assert code != 0
    assert "spatial_size is [128, 128], was [64, 64]" in text
    assert "overlays" in text


def test_a_folder_without_scans_says_what_was_expected(tmp_path):
    (tmp_path / "notes.txt").touch()
    code, text = bundle("prepare", "cohort.json", dataset_dir=str(tmp_path), output_dir=str(tmp_path / "out"))
    assert code != 0
    assert "expected one folder per subject with sa_ED.nii.gz" in text
    assert re.search(r"Found: .*\b1 \.txt", text), text[-2000:]


SIZES = {key: TINY[key] for key in ("channels", "latent_dim")}


def infer(trained, dataset, output, *overlays, **overrides):
    paths = {"dataset_dir": str(dataset), "output_dir": str(output), "ckpt_path": str(trained / "model.pt")}
    return bundle("run", "inference.json", "compact.json", *overlays, **(paths | SIZES | overrides))


def written(output):
    return {path: path.stat().st_mtime_ns for path in output.glob("*/*")}


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """Twelve phantoms, five of them broken in five ways, and the reasons of these."""
    folder = tmp_path_factory.mktemp("broken")
    write_cohort(folder, subjects=12, seed=8, cine_fraction=0, failing=0)
    return folder, break_five(folder)


def test_bad_subjects_do_not_stop_the_inference_and_nothing_is_redone(trained, broken, tmp_path):
    dataset, reasons = broken
    code, text = infer(trained, dataset, tmp_path)
    assert code == 3, text[-2000:]
    assert "Results of 7 subjects" in text
    assert len(read_csv(tmp_path / "codes.csv")) == len(read_csv(tmp_path / "attributes.csv")) == 7
    excluded = {row["subject"]: row["reason"] for row in read_csv(tmp_path / "excluded.csv")}
    assert excluded.keys() == reasons.keys()
    assert all(reason in excluded[name] for name, reason in reasons.items())
    before = written(tmp_path)
    code, text = infer(trained, dataset, tmp_path)
    assert code == 3
    assert "(7 of them from earlier runs)" in text
    assert not re.search("examine:|inference:", text)
    assert written(tmp_path) == before


def test_a_changed_scan_is_done_again_and_one_that_fails_late_is_listed(trained, phantoms, prepared, tmp_path):
    dataset = shutil.copytree(phantoms, tmp_path / "scans")
    datalist = {"datalist": str(prepared / "datalist.json"), "section": "test", "pages": False}
    output = tmp_path / "out"
    code, text = infer(trained, dataset, output, **datalist)
    assert code == 0, text[-2000:]
    names = [row["subject"] for row in read_csv(output / "codes.csv")]
    before = written(output)
    for name, damage in zip(names, (os.utime, lambda path: path.write_bytes(b"no NIfTI")), strict=False):
        damage(next((dataset / name).glob("sa*.nii.gz")))  # a datalist's subjects are not examined anew
    code, text = infer(trained, dataset, output, **datalist)
    assert code == 3, text[-2000:]
    assert [row["subject"] for row in read_csv(output / "codes.csv")] == [names[0], names[2]]
    assert "cannot be opened" in read_csv(output / "excluded.csv")[0]["reason"]
    changed = {path.parent.name for path, time in before.items() if written(output).get(path) != time}
    assert changed == {names[0]}  # what was computed for the one that fails stays, should the failure pass


def test_a_killed_inference_goes_on_where_it_stopped(trained, broken, tmp_path):
    paths = {"dataset_dir": str(broken[0]), "output_dir": str(tmp_path), "ckpt_path": str(trained / "model.pt")}
    options = {"batch_size": 1, "num_workers": 0}
    process = subprocess.Popen(
        command("run", "inference.json", "compact.json", **paths, **SIZES, **options),
        cwd=ROOT,
        env=environment(),
        **PIPES,
    )
    while not list(tmp_path.glob("*/result.json")):
        assert process.poll() is None, process.stdout.read()[-2000:]
        time.sleep(0.01)
    process.kill()
    process.wait()
    records = {path: time for path, time in written(tmp_path).items() if path.name == "result.json"}
    assert len(records) < 7
    text = infer(trained, broken[0], tmp_path)[1]
    assert f"({len(records)} of them from earlier runs)" in text
    assert len(read_csv(tmp_path / "codes.csv")) == 7
    assert records.items() <= written(tmp_path).items()


def test_results_of_another_checkpoint_are_refused_or_overwritten(trained, broken, tmp_path):
    assert infer(trained, broken[0], tmp_path)[0] == 3
    other = tmp_path / "other"
    other.mkdir()
    weights = torch.load(trained / "model.pt", weights_only=True)
    torch.save({name: tensor * 1.01 for name, tensor in weights.items()}, other / "model.pt")
    before = (tmp_path / "codes.csv").read_text()
    code, text = infer(other, broken[0], tmp_path)
    assert code not in (0, 3)
    assert "checkpoint is " in text
    assert "--overwrite True" in text
    assert (tmp_path / "codes.csv").read_text() == before
    code, text = infer(other, broken[0], tmp_path, overwrite=True)
    assert code == 3, text[-2000:]
    assert (tmp_path / "codes.csv").read_text() != before


def test_volumes_and_pages_can_be_left_out(trained, broken, tmp_path):
    assert infer(trained, broken[0], tmp_path, volumes=False, pages=False)[0] == 3
    assert {path.name for path in tmp_path.glob("*/*")} == {"result.json"}


def test_training_and_inference_see_the_same_image():
    train, inference = (ConfigParser.load_config_file(CONFIGS / name) for name in ("train.json", "inference.json"))
    shared_steps = inference["preprocessing"]["transforms"][:-1]
    assert train["train"]["deterministic_transforms"][: len(shared_steps)] == shared_steps
    common = (
        "family",
        "architecture",
        "phases",
        "slices",
        "stack_slices",
        "slice_distance",
        "anatomy",
        "view",
        "spatial_size",
        "spacing",
        "attributes",
        "channels",
        "latent_dim",
        "norm",
    )
    assert all(train[key] == inference[key] for key in common)
    assert train["network_def"] == inference["network_def"] | {"checkpointing": "@checkpointing"}
    assert inference["rules"] == ConfigParser.load_config_file(CONFIGS / "cohort.json")["rules"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_only_sets_what_train_declares(overlay):
    declared = ConfigParser.load_config_file(CONFIGS / "train.json")
    content = ConfigParser.load_config_file(CONFIGS / overlay)
    assert set(content) <= set(declared)
    assert not any(isinstance(value, dict) for value in content.values())


@pytest.mark.parametrize(("overlay", "channels"), [("ed.json", 1), ("es.json", 1), (None, 2)])
def test_phases_decide_the_channels(overlay, channels):
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / "train.json"), *([str(CONFIGS / overlay)] if overlay else [])])
    parser.update({"channels": [8, 8], "spatial_size": [16, 16], "latent_dim": 4})
    network = parser.get_parsed_content("network_def")
    assert network(torch.rand(2, channels, 16, 16)).shape == (2, channels, 16, 16)
    assert len(parser["attributes"]) == 3 * channels


@pytest.mark.parametrize(
    ("overlays", "channels"),
    [(["stack.json"], 24), (["anatomy.json"], 8), (["stack.json", "anatomy.json", "es.json"], 48)],
)
def test_slices_and_anatomy_decide_the_channels(overlays, channels):
    for file in ("train.json", "inference.json"):
        network = parse(file, *overlays).get_parsed_content("network_def")
        assert network(torch.rand(2, channels, 16, 16)).shape == (2, channels, 16, 16)


def parse(*files, **overrides):
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / file) for file in files])
    parser.update({"channels": [8, 8], "spatial_size": [16, 16], "latent_dim": 4} | overrides)
    return parser


@pytest.mark.parametrize("overlay", ["sivae.json", "beta_vae.json", "attri_vae.json", "stack.json", "anatomy.json"])
def test_overlays_mean_the_same_in_any_order(overlay):
    orders = ["train.json", "compact.json", "ed.json", overlay], ["train.json", overlay, "ed.json", "compact.json"]
    first, second = (ConfigParser.load_config_files([str(CONFIGS / file) for file in order]) for order in orders)
    assert first == second


@pytest.mark.parametrize(
    ("overlay", "architecture", "gamma"),
    [
        (None, "residual", 0.05),
        ("sivae.json", "residual", 0),
        ("beta_vae.json", "plain", 0),
        ("attri_vae.json", "plain", 30),
    ],
)
def test_a_method_is_that_of_the_paper(overlay, architecture, gamma):
    parser = parse("train.json", *([overlay] if overlay else []))
    keys = ("architecture", "attribute_weight", "learning_rate", "max_epochs", "beta_kl", "perceptual_weight")
    numbers = (5e-5, 1000, 2, 0) if architecture == "plain" else (2e-4, 750, 1, 0.03)
    assert tuple(parser.get_parsed_content(key) for key in keys) == (architecture, gamma, *numbers)


@pytest.mark.parametrize(
    ("overlays", "warmup", "expected"),
    [
        ([], 70, 70),
        ([], 80, 0),
        (["attri_vae.json"], 70, 0),
        (["faithful.json"], 70, 70),
        (["faithful.json"], 80, 31),
        (["faithful.json"], 20, 31),
    ],
)
def test_no_weights_are_kept_from_before_all_terms_count(overlays, warmup, expected):
    """What is all warm-up is judged by it; the change term of faithful.json has its weight after 31 of 80 epochs."""
    parser = parse("train.json", "compact.json", *overlays, max_epochs=80, warmup_epochs=warmup)
    assert parser.get_parsed_content("forgotten_epochs") == expected
    handlers = {handler["_target_"]: handler for handler in parser.get("train#handlers")}
    assert handlers["scripts.checkpoint.TrainingCheckpoint"]["warmup_epochs"] == "@forgotten_epochs"


@pytest.mark.parametrize("compact", [[], ["compact.json"]])
def test_one_overlay_makes_the_comparison_fair(compact):
    vae, ours = parse("train.json", *compact, "attri_vae.json", "residual.json"), parse("train.json", *compact)
    weights = [parser.get_parsed_content("network_def").state_dict().keys() for parser in (vae, ours)]
    assert weights[0] == weights[1]
    assert vae.get_parsed_content("perceptual_weight") == ours.get_parsed_content("perceptual_weight") > 0


@pytest.mark.parametrize(("overlays", "gamma"), [([], 0.5), (["attri_vae.json"], 0.1), (["beta_vae.json"], 0)])
def test_compact_weighs_attributes_by_family(overlays, gamma):
    assert parse("train.json", *overlays, "compact.json").get_parsed_content("attribute_weight") == gamma


def test_a_training_with_gamma_zero_regularizes_nothing():
    assert parse("train.json", gamma=0).get_parsed_content("regularize") is False


@pytest.mark.parametrize(("overlay", "column"), [("beta_vae.json", "z0"), ("attri_vae.json", "z0_LVEDV")])
def test_a_vae_trains_and_encodes(overlay, column, prepared, phantoms, tmp_path):
    paths = {"dataset_dir": str(phantoms), "output_dir": str(tmp_path)}
    datalist = str(prepared / "datalist.json")
    sizes = {key: TINY[key] for key in ("channels", "latent_dim")}
    short = {key: TINY[key] for key in ("batch_size", "max_epochs")}  # no perceptual_weight: the family has none
    overlays = ("compact.json", overlay, "ed.json")
    code, text = bundle("training", "train.json", *overlays, **paths, datalist=datalist, **sizes, **short)
    assert code == 0, text[-3000:]
    assert "kl_real=" in text  # the bar shows this family's losses
    assert "warm-up" not in text
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert set(state) >= {"optimizer", "network"}
    assert "decoder_optimizer" not in state
    assert state["best_epoch"] > 0
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert (settings["family"], settings["architecture"], settings["perceptual_weight"]) == ("vae", "plain", 0)
    assert (tmp_path / "pictures" / "traversals.png").exists() == (overlay == "attri_vae.json")

    code, text = bundle("run", "inference.json", *reversed(overlays), **paths, **sizes)
    assert code == 3, text[-3000:]  # phantoms that break a rule are among them
    assert list(read_csv(tmp_path / "codes.csv")[0])[1] == column


def test_codes_of_another_family_are_refused(trained, phantoms, tmp_path):
    sizes = {key: TINY[key] for key in ("channels", "latent_dim")}
    paths = {"dataset_dir": str(phantoms), "output_dir": str(tmp_path), "ckpt_path": str(trained / "model.pt")}
    files = ("inference.json", "compact.json", "beta_vae.json")
    code, text = bundle("run", *files, **paths, **sizes, architecture="residual")
    assert code != 0
    assert "family is vae, was introspective; regularize is False, was True" in text


STACK = ("stack.json", "anatomy.json")


@pytest.fixture(scope="module")
def whole_heart(prepared, phantoms, tmp_path_factory):
    """A model by faithful.json, stacks with occupancy maps, trained for an epoch of each kind, and what it printed."""
    output = tmp_path_factory.mktemp("whole_heart")
    paths = {"dataset_dir": str(phantoms), "datalist": str(prepared / "datalist.json"), "output_dir": str(output)}
    options = TINY | {"warmup_epochs": 1, "stack_slices": 14, "component_images": 16}
    options |= {"device": "cpu"}  # by its name, as a user gives it
    code, text = bundle("training", "train.json", "compact.json", "faithful.json", **paths, **options)
    assert code == 0, text[-3000:]
    return output, text


def test_faithful_moves_codes_and_measures_their_volumes(whole_heart):
    scalars = read_scalars(whole_heart[0] / "tensorboard")
    steps, errors = scalars["change_loss"]
    assert len(steps) > 1
    assert errors.min() > 0
    settings = json.loads((whole_heart[0] / "settings.json").read_text())
    assert settings["magnitude_weight"] > 0
    assert settings["component_images"] == 16
    assert "change_start" not in settings  # it follows the number of epochs, which a resumed training may raise
    state = torch.load(whole_heart[0] / "last.pt", weights_only=True)
    assert "reader" in state
    lengths = state["network"]["encoder.linear.weight"].norm(dim=1)
    assert lengths[6:].min() > 10 * lengths[:6].max()  # principal components where no attribute is
    to_images = state["network"]["decoder.0.linear.weight"]
    assert not to_images[:, :6].any()  # it has not learned
    assert to_images[:, 6:].any(0).all()


def test_a_whole_heart_is_trained_and_put_back_into_the_scan(whole_heart, phantoms, tmp_path):
    trained, text = whole_heart
    assert text.count("do not fill the view's 14 slices of 10 mm") == 1
    settings = json.loads((trained / "settings.json").read_text())
    assert (settings["slices"], settings["anatomy"], settings["stack_slices"]) == ("stack", "masks", 14)
    assert {"calibration.json", "model.pt"} <= set(os.listdir(trained))

    code, text = infer(trained, phantoms, tmp_path, "faithful.json", stack_slices=14)
    assert code == 3, text[-3000:]  # phantoms that break a rule are among them
    assert text.count("do not fill the view's 14 slices of 10 mm") == 1
    folder = tmp_path / read_csv(tmp_path / "codes.csv")[0]["subject"]
    scan = nib.load(next((phantoms / folder.name).glob("sa*.nii.gz")))
    for name in ("reconstruction_ED", "segmentation_ES"):
        written = nib.load(folder / f"{name}.nii.gz")
        assert np.allclose(written.affine, scan.affine)
        assert written.shape == scan.shape[:3]
    assert np.count_nonzero(nib.load(folder / "reconstruction_ED.nii.gz").get_fdata().any((0, 1))) >= 7


@pytest.mark.parametrize(
    ("overlays", "stack_slices", "message"),
    [
        (["stack.json"], 14, "anatomy is none, was masks"),
        (["anatomy.json"], 14, "slices is basal, was stack"),
        (STACK, 12, "stack_slices is 12, was 14"),
        (STACK, 14, "rendering_channels is 0, was 8; linear_size is 0, was 16"),
    ],
)
def test_a_checkpoint_of_another_view_is_refused_by_the_key(overlays, stack_slices, message, whole_heart):
    path = whole_heart[0] / "model.pt"
    config = parse("inference.json", "compact.json", *overlays, stack_slices=stack_slices, ckpt_path=str(path))
    with pytest.raises(ValueError, match=message):
        load_weights(config.get_parsed_content("network_def"), path, config.get_parsed_content("settings"))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize("overlays", [STACK, ["faithful.json"]])
def test_a_network_with_maps_is_scripted(overlays):
    network = parse("inference.json", *overlays).get_parsed_content("network_def").eval()
    image = torch.rand(2, 96, 16, 16)
    assert torch.equal(torch.jit.script(network)(image), network(image))
