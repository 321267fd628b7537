"""What programs without this code get gives the numbers that PyTorch gives."""

from __future__ import annotations

import importlib.util
import json

import monai.networks
import pytest
import torch
from monai.bundle import ConfigParser

from scripts import export
from scripts.checkpoint import fingerprint
from scripts.export import export_all, largest_difference, write_onnx
from scripts.networks import VariationalAutoencoder
from tests.zoo.conftest import run_offline

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in export.PACKAGES), reason="needs the extra 'export'"
)


def parse(packaged, *names, **overrides):
    parser = ConfigParser()
    parser.read_config([str(packaged / "configs" / name) for name in ("inference.json", *names)])
    parser.update({"bundle_root": str(packaged), "ckpt_path": str(packaged / "models" / "model.pt"), **overrides})
    return parser


@pytest.fixture(scope="module")
def network(packaged):
    return parse(packaged, device="cpu").get_parsed_content("load_weights").eval()


@pytest.fixture(scope="module")
def exported(packaged, tmp_path_factory):
    """The folder that ``export.json`` has filled."""
    folder = tmp_path_factory.mktemp("exported")
    configs = [str(packaged / "configs" / name) for name in ("inference.json", "export.json")]
    options = {"output_dir": folder, "ckpt_path": packaged / "models" / "model.pt", "device": "cpu"}
    run_offline(
        "-m", "monai.bundle", "run", f"--config_file={configs}", *(f"--{k}={v}" for k, v in options.items()), cwd=folder
    )
    assert len(list(folder.iterdir())) == 4
    return folder


@needs_onnx
@pytest.mark.parametrize(("name", "part"), [("encoder", "encode"), ("decoder", "decode"), ("model", "forward")])
def test_onnx_gives_the_numbers_of_pytorch_on_100_crops(name, part, exported, network, crops):
    with torch.no_grad():
        sample = network.encode(crops)[0] if name == "decoder" else crops
    assert largest_difference(getattr(network, part), sample, exported / f"{name}.onnx") <= 1e-4
    assert largest_difference(getattr(network, part), sample[:1], exported / f"{name}.onnx") <= 1e-4


@needs_onnx
def test_onnx_names_what_goes_in_and_comes_out(exported):
    import onnxruntime

    for name, names in {"encoder": ("image", "mean", "log_variance"), "decoder": ("codes", "pred")}.items():
        session = onnxruntime.InferenceSession(exported / f"{name}.onnx", providers=["CPUExecutionProvider"])
        assert tuple(node.name for node in (*session.get_inputs(), *session.get_outputs())) == names


@needs_onnx
def test_the_opset_of_the_config_is_that_of_the_file(exported, packaged):
    import onnx

    opset = json.loads((packaged / "configs" / "export.json").read_text())["opset"]
    assert [entry.version for entry in onnx.load(exported / "model.onnx").opset_import if not entry.domain] == [opset]


@needs_onnx
def test_safetensors_hold_the_same_weights_and_the_settings(exported, packaged):
    from safetensors import safe_open

    weights = torch.load(packaged / "models" / "model.pt", weights_only=True)
    with safe_open(exported / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(weights)
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in weights.items())
        assert json.loads(file.metadata()["settings"])["phases"] == ["ED", "ES"]


@needs_onnx
def test_safetensors_of_a_network_as_a_training_leaves_it(tmp_path):
    from safetensors.torch import load_file

    network = VariationalAutoencoder(1, (16, 16), (8, 8), 3, "batch").to(memory_format=torch.channels_last)
    loaded = load_file(export.write_safetensors(network, tmp_path / "model.safetensors", {}))
    assert all(torch.equal(loaded[name], tensor) for name, tensor in network.state_dict().items())


@needs_onnx
def test_networks_of_the_other_kind_are_exported_as_they_evaluate(tmp_path):
    network = VariationalAutoencoder(1, (16, 16), (4, 4), 3, "batch", "plain").to(memory_format=torch.channels_last)
    network.train()(torch.rand(8, 1, 16, 16))  # statistics that are not those of the initialization
    write_onnx(network, torch.rand(1, 1, 16, 16), tmp_path / "model.onnx", ["pred"])
    assert largest_difference(network.eval(), torch.rand(5, 1, 16, 16), tmp_path / "model.onnx") <= 1e-4


@needs_onnx
def test_a_file_with_other_numbers_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "largest_difference", lambda *arguments: 2e-4)
    with pytest.raises(ArithmeticError, match=r"model.onnx would differ from PyTorch by 2.0e-04"):
        write_onnx(torch.nn.Linear(3, 2), torch.rand(4, 3), tmp_path / "model.onnx", ["pred"])
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(network, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ModuleNotFoundError, match="needs onnxscript: pip install onnx onnxruntime"):
        export_all(network, (2, 64, 64), tmp_path)


def test_tensorrt_takes_encoder_and_decoder_of_the_network_that_gets_the_weights(packaged, monkeypatch):
    calls = []

    def compiled(network, path, args, submodule):
        calls.append((path, args, [network.get_submodule(name) for name in submodule]))
        return network

    monkeypatch.setattr(monai.networks, "trt_compile", compiled)
    parser = parse(packaged, "inference_trt.json", device="cpu", batch_size=5, output_dir="results")
    network = parser.get_parsed_content("load_weights")
    ((path, args, parts),) = calls
    assert parts == [network.encoder, network.decoder]
    weights = fingerprint(packaged / "models" / "model.pt")
    assert path == f"results/tensorrt-{weights}-fp32-5"  # not beside the weights, which may be read-only
    assert args == {"precision": "fp32", "dynamic_batchsize": [1, 5, 5], "fallback": True}


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_tensorrt_does_nothing_where_there_is_no_gpu(packaged, network):
    compiled = parse(packaged, "inference_trt.json").get_parsed_content("load_weights").eval()
    image = torch.rand(2, 2, 64, 64)
    assert torch.equal(compiled.encode(image)[0], network.encode(image)[0])


@needs_onnx
@pytest.mark.parametrize("name", ["decoder", "model"])
def test_onnx_of_a_network_with_occupancy_maps(name, tmp_path):
    torch.manual_seed(0)
    network = VariationalAutoencoder(8, (16, 16), (8, 8), 3, "instance", image_channels=2).eval()
    module = network.decoder if name == "decoder" else network
    sample = torch.randn(4, 3) if name == "decoder" else torch.rand(4, 8, 16, 16)
    assert write_onnx(module, sample, tmp_path / f"{name}.onnx", ("pred",)) <= 1e-4


@needs_onnx
def test_a_network_with_linear_parts_is_exported_whole(tmp_path):
    torch.manual_seed(0)
    network = VariationalAutoencoder(
        8, (40, 24), (8, 8, 8), 3, "instance", image_channels=2, rendering_channels=4, linear_size=8
    )
    for part in (network.encoder, network.decoder[0]):
        torch.nn.init.normal_(part.linear.weight)
    assert len(export_all(network, (8, 40, 24), tmp_path)) == 4
