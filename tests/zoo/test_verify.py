"""The model zoo's checks and its pattern of unit tests, on the packaged bundle and without internet."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow

from scripts.storage import read_csv
from tests.conftest import SHARED, shared
from tests.zoo.conftest import files, run_offline

NECESSARY = ("configs/metadata.json", "LICENSE")
SCHEMA = "schema/meta_schema_20240725.json"
PREFERRED = ("models/model.pt", "configs/inference.json")
# Compact networks are quick, but a batch has to fit a cohort of eight, and the perceptual loss needs weights.
SHORT = {"max_epochs": 1, "warmup_epochs": 0, "batch_size": 2, "perceptual_weight": 0}


@pytest.mark.parametrize("name", [*NECESSARY, *PREFERRED])
def test_a_file_that_the_zoo_wants_is_there(name, packaged):
    assert (packaged / name).is_file()


def test_the_version_is_in_the_changelog(packaged):
    metadata = json.loads((packaged / "configs" / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]


COMMANDS = {
    "verify_metadata": ("--meta_file=configs/metadata.json", "--filepath={work}/schema.json"),
    "verify_net_in_out": ("network_def", "--meta_file=configs/metadata.json", "--config_file=configs/inference.json"),
    "ckpt_export": (
        "network_def",
        "--filepath={work}/verify_model.ts",
        "--ckpt_file=models/model.pt",
        "--meta_file=configs/metadata.json",
        "--config_file=configs/inference.json",
    ),
    "onnx_export": (
        "network_def",
        "--filepath={work}/verify_model.onnx",
        "--ckpt_file=models/model.pt",
        "--meta_file=configs/metadata.json",
        "--config_file=configs/inference.json",
        "--use_trace=True",
    ),
}
# As ``python -m monai.bundle`` for each, which would import everything four times.
ALL_COMMANDS = """
import json, runpy, sys
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["monai.bundle", *arguments]
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
    print("done:", arguments[0])
"""


@pytest.fixture(scope="module")
def checked(packaged, tmp_path_factory):
    """What MONAI's commands print, run in the bundle's folder, and the folder that they write to."""
    work = tmp_path_factory.mktemp("checked")
    commands = [[name, *(text.format(work=work) for text in arguments)] for name, arguments in COMMANDS.items()]
    if (SHARED / SCHEMA).exists():
        shutil.copy(SHARED / SCHEMA, work / "schema.json")
    else:
        commands = commands[1:]
    return run_offline("-c", ALL_COMMANDS, json.dumps(commands), cwd=packaged), work


def test_the_metadata_fit_their_schema(checked):
    shared(SCHEMA)
    assert "metadata is verified with no error" in checked[0]
    assert "done: verify_metadata" in checked[0]


def test_the_network_takes_and_gives_what_the_metadata_say(checked):
    assert "data shape of network is verified with no error" in checked[0]


@pytest.mark.parametrize("command", list(COMMANDS)[1:])
def test_a_command_of_monai_succeeds_offline(command, checked):
    assert f"done: {command}" in checked[0]


def test_the_exported_files_take_an_image(checked):
    onnxruntime = pytest.importorskip("onnxruntime")
    image = torch.rand(1, 2, 64, 64)
    reconstruction = torch.jit.load(checked[1] / "verify_model.ts")(image).detach()
    session = onnxruntime.InferenceSession(checked[1] / "verify_model.onnx", providers=["CPUExecutionProvider"])
    (given,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    assert abs(given - reconstruction.numpy()).max() <= 1e-4


def test_one_epoch_of_training(packaged, cohort, tmp_path):
    overrides = {"bundle_root": str(packaged), **cohort, "output_dir": str(tmp_path), **SHORT}
    config = str(packaged / "configs" / "train.json")
    workflow = ConfigWorkflow(config, workflow_type="train", **files(packaged), **overrides)
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    workflow.finalize()
    assert {"model.pt", "calibration.json"} <= set(os.listdir(tmp_path))


def test_inference_with_the_packaged_weights(packaged, cohort, tmp_path):
    overrides = {"bundle_root": str(packaged), **cohort, "output_dir": str(tmp_path), "num_workers": 0}
    config = str(packaged / "configs" / "inference.json")
    workflow = create_workflow(config_file=config, workflow_type="inference", **files(packaged), **overrides)
    assert workflow.check_properties() == []
    workflow.run()
    workflow.finalize()
    assert len(read_csv(tmp_path / "codes.csv")) == 8


def test_properties_need_no_weights(packaged, cohort, tmp_path):
    bundle = shutil.copytree(packaged, tmp_path / "bundle", ignore=shutil.ignore_patterns("models"))
    overrides = {"bundle_root": str(bundle), **cohort, "output_dir": str(tmp_path / "out")}
    config = str(bundle / "configs" / "inference.json")
    workflow = create_workflow(config_file=config, workflow_type="infer", **files(bundle), **overrides)
    assert workflow.check_properties() == []
    with pytest.raises(RuntimeError) as caught:
        workflow.run()
    assert "model.pt' does not exist; train one with 'run training'" in str(caught.value.__cause__)


@pytest.mark.slow
def test_one_epoch_in_two_processes(packaged, cohort, tmp_path):
    parser = ConfigParser()
    parser.read_config([str(packaged / "configs" / name) for name in ("train.json", "multi_gpu_train.json")])
    parser.update({"bundle_root": str(packaged), **cohort, "output_dir": str(tmp_path / "out"), **SHORT})
    bundle = shutil.copytree(packaged, tmp_path / "bundle")  # where the zoo writes the config
    ConfigParser.export_config_file(parser.config, str(bundle / "configs" / "train_override.json"), indent=4)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nnodes=1", "--nproc_per_node=2"]
    arguments = [f"--{name}={path}" for name, path in files(bundle).items()]
    config = f"--config_file={bundle / 'configs' / 'train_override.json'}"
    text = run_offline(*launcher, "-m", "monai.bundle", "run", config, *arguments, cwd=tmp_path)
    assert text.count("Best val_reconstruction_loss") == 1
    assert torch.load(tmp_path / "out" / "last.pt", weights_only=True)["epoch"] == 1
