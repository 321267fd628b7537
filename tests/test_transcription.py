from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torchvision

from scripts.engines import IntrospectiveTrainer, VAETrainer
from scripts.losses import IntrospectiveLoss, ReconstructionLoss, VAELoss
from scripts.networks import VariationalAutoencoder
from scripts.perceptual import FeatureDistance, LPIPSDistance
from scripts.views import View
from tests.benchmarks.transcription import LPIPS, FeatureError, Weights, introspective_step, vae_step

BATCH, LATENT = 3, 6
METHODS = {"beta-VAE": 0.0, "Attri-VAE": 0.3, "SIVAE": 0.0, "AR-SIVAE": 0.3}
NORMS = ["batch", ("group", {"num_groups": 4})]
VGG_LAYERS = {"relu1_1": 1, "relu2_1": 6, "relu3_1": 11, "relu4_1": 18}
ALEXNET_LAYERS = {"relu1": 1, "relu2": 4, "relu3": 7}
PAPER = View()
MAPPED = View(slices=["basal", "apical"], anatomy="masks")
# The smallest images that the deepest layer exists for.
SIZES = {"none": 16, "vgg16": 16, "alexnet, normalized": 32, "lpips": 32}


@pytest.fixture(scope="module")
def trunks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random weights in double precision, so that both sides sum their channels in it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("trunks")
    for name in ("vgg16", "alexnet"):
        shapes = {key: value.shape for key, value in empty_trunk(name).state_dict().items()}
        torch.save({key: random_weight(shape) for key, shape in shapes.items()}, folder / f"{name}.pt")
    return {name: folder / f"{name}.pt" for name in ("vgg16", "alexnet")}


def empty_trunk(name: str) -> torch.nn.Sequential:
    with torch.device("meta"):
        return getattr(torchvision.models, name)(weights=None).features


def random_weight(shape: torch.Size) -> torch.Tensor:
    """A bias, or a kernel that keeps the size of activations, so that the deepest layer counts, too."""
    spread = 0.1 if len(shape) == 1 else (2 / shape[1:].numel()) ** 0.5
    # Of numbers that single precision holds, which lpips keeps its trunks in.
    return (spread * torch.randn(shape, dtype=torch.float32)).double()


def make_distances(choice: str, trunks: dict[str, Path]) -> tuple[torch.nn.Module | None, torch.nn.Module | None]:
    """The distance of the trainers and that of the oracle."""
    if choice == "none":
        return None, None
    name = "vgg16" if choice == "vgg16" else "alexnet"
    trunk = empty_trunk(name)
    trunk.load_state_dict(torch.load(trunks[name], weights_only=True), assign=True)
    if choice == "lpips":
        return LPIPSDistance("alex", trunks[name]).double(), LPIPS(trunk).double()
    layers = VGG_LAYERS if choice == "vgg16" else ALEXNET_LAYERS
    normalized = "normalized" in choice
    mine = FeatureDistance(name, list(layers), trunks[name], imagenet_statistics=normalized)
    return mine, FeatureError(trunk, list(layers.values()), imagenet_statistics=normalized)


def make_network(size: int, norm: str | tuple, architecture: str, view: View) -> VariationalAutoencoder:
    torch.manual_seed(1)
    shape = (view.channels, (size, size), (4, 8), LATENT, norm, architecture)
    return VariationalAutoencoder(*shape, image_channels=view.images).double()


def make_batch(size: int, view: View) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    attributes = torch.rand(BATCH, 3, generator=generator, dtype=torch.float64)
    attributes[1, 2] = torch.nan
    attributes[2, 0] = attributes[0, 0]
    image = torch.rand(BATCH, view.channels, size, size, generator=generator, dtype=torch.float64)
    image[:, view.images :] /= 3  # shares of a pixel
    return {"image": image, "attributes": attributes}


def make_weights(method: str, choice: str, eta: float, **maps) -> Weights:
    # Both parts of L_r count, and the exponential of Eq. 6 neither vanishes nor stays at 1.
    perceptual = {"none": 0.0, "vgg16": 0.05, "alexnet, normalized": 0.05, "lpips": 0.5}[choice]
    return Weights(0.7, perceptual, 1.5, METHODS[method], 10, beta_rec=0.8, beta_neg=8.0, eta=eta, **maps)


def optimizer_of(part: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(part.parameters(), 1e-3)


def make_trainer(method, network, batch, weights, distance, view, **kwargs) -> VAETrainer | IntrospectiveTrainer:
    reconstruction = ReconstructionLoss(
        weights.mse_weight, weights.perceptual_weight, distance, weights.segmentation_weight, view
    )
    common = {"device": torch.device("cpu"), "max_epochs": 2, "train_data_loader": [batch], "network": network}
    if "SI" not in method:
        loss = VAELoss(reconstruction, weights.beta_kl, gamma=weights.gamma, delta=weights.delta)
        trainer = VAETrainer(optimizer=optimizer_of(network), loss_function=loss, decollate=False, **common, **kwargs)
    else:
        given = {key: getattr(weights, key) for key in ("beta_rec", "beta_kl", "beta_neg", "gamma", "delta", "eta")}
        trainer = IntrospectiveTrainer(
            optimizer=optimizer_of(network.encoder),
            decoder_optimizer=optimizer_of(network.decoder),
            loss_function=IntrospectiveLoss(reconstruction, **given, maps=weights.introspective_maps),
            decollate=False,
            **common,
            **kwargs,
        )
    trainer.state.epoch = 1
    return trainer


def oracle_step(method, network, batch, noise, weights, distance, warmup) -> dict[str, torch.Tensor]:
    given = (batch["image"], batch["attributes"], noise, weights, distance)
    network.train()
    if "SI" not in method:
        return vae_step(network, optimizer_of(network), *given)
    return introspective_step(network, optimizer_of(network.encoder), optimizer_of(network.decoder), *given, warmup)


def check(
    method, norm, choice, trunks, eta=0.0, warmup=False, architecture="residual", view=PAPER, maps=None, **kwargs
) -> None:
    """One step of the trainer and one of the oracle, from the same weights, batch and noise."""
    size, weights = SIZES[choice], make_weights(method, choice, eta, **(maps or {}))
    batch, network = make_batch(size, view), make_network(size, norm, architecture, view)
    oracle, (mine, plain) = copy.deepcopy(network), make_distances(choice, trunks)
    if "SI" in method:
        kwargs["warmup_epochs"] = int(warmup)
    trainer = make_trainer(method, network, batch, weights, mine, view, **kwargs)
    torch.manual_seed(7)
    noise = trainer.draw_noise(BATCH)
    torch.manual_seed(7)
    terms = trainer._iteration(trainer, batch)["terms"]
    expected = oracle_step(method, oracle, batch, noise, weights, plain, warmup)
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value.detach(), rtol=1e-10, atol=1e-10)
    for part in ("encoder", "decoder"):
        compare(getattr(network, part), getattr(oracle, part))


def compare(part: torch.nn.Module, oracle: torch.nn.Module) -> None:
    """Gradients and updated weights are equal, measured by the largest gradient of the part."""
    largest = max(parameter.grad.abs().max() for parameter in oracle.parameters())
    assert largest > 1e-3
    for mine, expected in zip(part.parameters(), oracle.parameters(), strict=True):
        assert (mine.grad - expected.grad).abs().max() <= 1e-10 * largest
        assert torch.allclose(mine, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("choice", SIZES)
@pytest.mark.parametrize("norm", NORMS, ids=["batch", "group"])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_is_that_of_the_equations(method, norm, choice, trunks):
    check(method, norm, choice, trunks)


@pytest.mark.parametrize("choice", SIZES)
@pytest.mark.parametrize("norm", NORMS, ids=["batch", "group"])
@pytest.mark.parametrize("method", ["SIVAE", "AR-SIVAE"])
def test_a_step_with_the_errors_of_fakes_in_the_decoder(method, norm, choice, trunks):
    check(method, norm, choice, trunks, eta=0.5)


@pytest.mark.parametrize("choice", SIZES)
@pytest.mark.parametrize("norm", NORMS, ids=["batch", "group"])
def test_a_step_of_the_warmup(norm, choice, trunks):
    check("AR-SIVAE", norm, choice, trunks, warmup=True)


@pytest.mark.parametrize("norm", NORMS, ids=["batch", "group"])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_the_plain_architecture(method, norm, trunks):
    check(method, norm, "none", trunks, architecture="plain")


@pytest.mark.parametrize(("method", "eta"), [*((method, 0.0) for method in METHODS), ("AR-SIVAE", 0.5)])
def test_a_step_in_unequal_micro_batches(method, eta, trunks):
    check(method, NORMS[1], "alexnet, normalized", trunks, eta=eta, micro_batch_size=2)


@pytest.mark.parametrize("introspective_maps", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_with_occupancy_maps(method, introspective_maps, trunks):
    maps = {"segmentation_weight": 0.4, "introspective_maps": introspective_maps, "images": MAPPED.images}
    check(method, NORMS[1], "alexnet, normalized", trunks, eta=0.5, view=MAPPED, maps=maps)


def test_a_step_with_maps_whose_error_has_no_weight(trunks):
    check("AR-SIVAE", NORMS[1], "none", trunks, view=MAPPED, maps={"images": MAPPED.images})


def test_a_step_with_occupancy_maps_in_micro_batches(trunks):
    maps = {"segmentation_weight": 0.4, "images": MAPPED.images}
    check("AR-SIVAE", NORMS[1], "none", trunks, view=MAPPED, maps=maps, micro_batch_size=2)
