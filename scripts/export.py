"""Exports of the trained network for programs that do without this code: ONNX and safetensors.

TorchScript is MONAI's own matter: ``python -m monai.bundle ckpt_export`` writes it with the configs inside.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from scripts.networks import VariationalAutoencoder
from scripts.storage import atomic_path, output_folder

PACKAGES = ("onnx", "onnxruntime", "onnxscript", "safetensors")
TOLERANCE = 1e-4  # what ONNX and PyTorch may differ by
OUTPUTS = {"encoder": ("mean", "log_variance"), "decoder": ("pred",), "model": ("pred",)}


class MeanAndLogVariance(nn.Module):
    """The encoder with the two outputs that it stands for, mean and log-variance of q(z|x), each (B, D)."""

    def __init__(self, network: VariationalAutoencoder) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Image (B, C, H, W) to mean and log-variance."""
        return self.network.encode(image)


def export_all(
    network: VariationalAutoencoder,
    image_size: Sequence[int],
    output_dir: str | os.PathLike,
    settings: Mapping[str, Any] | None = None,
    opset: int = 18,
    checked_images: int = 16,
) -> list[Path]:
    """Write ``model.safetensors`` and ``encoder.onnx``, ``decoder.onnx``, ``model.onnx``, and print what was written.

    Args:
        network: with its weights; stays as it is.
        image_size: channels, height and width of an image.
        output_dir: folder to write to.
        settings: what the weights depend on but do not show; goes into the safetensors file.
        opset: version of ONNX's operators.
        checked_images: random images and codes on which each ONNX file is compared with PyTorch.

    Raises:
        ModuleNotFoundError: naming the packages that are missing.
        ArithmeticError: when an ONNX file gives other numbers than PyTorch; it is not kept.
    """
    require_packages()
    folder = output_folder(output_dir)
    network = copy.deepcopy(network).cpu().eval()
    written = [write_safetensors(network, folder / "model.safetensors", settings or {})]
    modules = {"encoder": MeanAndLogVariance(network), "decoder": network.decoder, "model": network}
    for name, module in modules.items():
        sample = torch.randn(checked_images, network.latent_dim)
        if name != "decoder":
            sample = torch.rand(checked_images, *image_size)
        written.append(folder / f"{name}.onnx")
        difference = write_onnx(module, sample, written[-1], OUTPUTS[name], opset)
        print(f"{written[-1]}: differs from PyTorch by {difference:.1e} at most, on {checked_images} inputs")
    return written


def require_packages() -> None:
    """Raise ModuleNotFoundError with the command that installs what is missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f"the export needs {', '.join(missing)}: pip install {' '.join(PACKAGES)}")


def write_safetensors(network: nn.Module, path: Path, settings: Mapping[str, Any]) -> Path:
    """Write the weights of ``model.pt`` as safetensors."""
    weights = network.state_dict()
    with atomic_path(path) as part:
        part.write_bytes(safetensors(weights, settings))
    print(f"{path}: {len(weights)} tensors")
    return path


def safetensors(weights: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> bytes:
    """Weights in the format safetensors, which cannot hold code, with the settings as JSON in its header.

    The same weights and settings give the same bytes.

    Raises:
        ModuleNotFoundError: naming the packages that are missing.
    """
    require_packages()
    from safetensors.torch import save

    # Contiguous: a training keeps convolutions in channels-last order, which the format does not know. One entry: the
    # format writes several in an order of chance.
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    return save(weights, {"settings": json.dumps(settings)})


def write_onnx(module: nn.Module, sample: torch.Tensor, path: Path, outputs: Sequence[str], opset: int = 18) -> float:
    """Write a module as one ONNX file for batches of any size, unless its numbers are not those of PyTorch.

    Args:
        module: takes one tensor.
        sample: inputs (B, ...) to compare on.
        path: of the file.
        outputs: names of what the module gives; the input is named ``image`` or, of codes (B, D), ``codes``.
        opset: version of ONNX's operators.

    Returns:
        The largest absolute difference from PyTorch.
    """
    name = "codes" if sample.ndim == 2 else "image"
    module = module.eval()
    example = sample[:1].expand(2, *sample.shape[1:])  # a single image would fix the size of batches to 1
    with atomic_path(path) as part:
        torch.onnx.export(
            module,
            (example,),
            str(part),
            input_names=[name],
            output_names=list(outputs),
            opset_version=opset,
            dynamic_shapes=({0: "batch"},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        difference = largest_difference(module, sample, part)
        if not difference <= TOLERANCE:
            raise ArithmeticError(f"{path.name} would differ from PyTorch by {difference:.1e}, more than {TOLERANCE}.")
    return difference


def largest_difference(module: nn.Module, sample: torch.Tensor, path: str | os.PathLike) -> float:
    """The largest absolute difference between what an ONNX file and a module give for the same inputs."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = session.run(None, {session.get_inputs()[0].name: sample.numpy()})
    with torch.no_grad():
        expected = module(sample)
    expected = expected if isinstance(expected, tuple) else (expected,)
    return max(float(np.abs(a - b.numpy()).max()) for a, b in zip(given, expected, strict=True))
