from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, EnsureTyped, RandGaussianNoised

from scripts.components import PrincipalComponents, components
from scripts.networks import VariationalAutoencoder

RANK = 3


def make_network():
    torch.manual_seed(0)
    norm = ("group", {"num_groups": 4})
    return VariationalAutoencoder(8, (16, 16), (4, 8), 6, norm, image_channels=2, linear_size=16)


def make_items(count=20):
    """Images that differ in three ways, and maps that are not to matter."""
    generator = torch.Generator().manual_seed(1)
    basis, amounts = (torch.randn(shape, generator=generator) for shape in ((RANK, 512), (count, RANK)))
    images = (0.5 + amounts @ basis).view(count, 2, 16, 16)
    maps = torch.rand(count, 6, 16, 16, generator=generator)
    return [{"image": image} for image in torch.cat([images, maps], dim=1)]


def started(network, noise=0.0, epoch=0, **settings):
    """Run the start of a training; gives its loader."""
    noisy = RandGaussianNoised("image", prob=1 if noise else 0, std=noise)
    dataset = Dataset(make_items(), Compose([noisy, EnsureTyped("image", track_meta=False)]))
    loader = DataLoader(dataset, batch_size=8, shuffle=True)
    engine = Engine(lambda engine, batch: None)
    engine.data_loader = loader
    engine.add_event_handler(Events.STARTED, lambda engine: setattr(engine.state, "epoch", epoch))
    PrincipalComponents(network, **settings).attach(engine)
    engine.run(loader, max_epochs=epoch + 1)
    return loader


def linear_weights(network):
    parts = (network.encoder.linear, network.decoder[0].linear)
    return [weight.detach().clone() for part in parts for weight in part.parameters()]


def test_images_come_back_from_codes_in_units_of_their_deviation():
    network = make_network()
    started(network, reserved=2, images=20)
    images = torch.stack([item["image"] for item in make_items()])
    with torch.no_grad():
        codes = network.encoder.linear(network.encoder.shrink(images) / network.encoder.scale)
        back = network.decoder[0].linear(codes).view(20, 2, 16, 16)
    assert torch.allclose(back, images[:, :2], atol=1e-4)
    assert not codes[:, :2].any()
    assert torch.allclose(codes[:, 2 : 2 + RANK].std(0), torch.ones(RANK), atol=1e-3)
    assert codes.mean(0).abs().max() < 1e-4
    assert not codes[:, 2 + RANK :].any()  # rounding is no component


def test_a_resumed_training_is_left_alone():
    network = make_network()
    before = linear_weights(network)
    started(network, epoch=4)
    assert all(map(torch.equal, before, linear_weights(network)))


def test_the_seed_decides_and_nothing_else():
    first, second, other = make_network(), make_network(), make_network()
    started(first, noise=0.1, seed=3, images=30)
    torch.rand(7)
    started(second, noise=0.1, seed=3, images=30)
    started(other, noise=0.1, seed=4, images=30)
    assert all(map(torch.equal, linear_weights(first), linear_weights(second)))
    assert not torch.equal(linear_weights(first)[0], linear_weights(other)[0])


def test_a_small_cohort_is_drawn_again_with_other_augmentation():
    handler = PrincipalComponents(make_network(), images=50)
    drawn = handler.draw(started(make_network(), noise=0.1))
    assert drawn.shape == (50, 512)
    assert len(drawn.unique(dim=0)) == 50


def test_no_more_components_than_images_have():
    values = torch.randn(4, 10)
    mean, deviations, directions = components(values, 8)
    assert directions.shape == (3, 10)
    codes = (values - mean) @ directions.T / deviations
    assert torch.allclose(codes * deviations @ directions + mean, values, atol=1e-4)


def test_one_image_has_no_components():
    with pytest.raises(ValueError, match="component_images is 1: expected 2 or more, or 0"):
        PrincipalComponents(make_network(), images=1)


def test_all_processes_get_the_components_of_the_first(monkeypatch):
    shared = []
    monkeypatch.setattr("scripts.components.share_weights", lambda network: shared.append(linear_weights(network)))
    network = make_network()
    started(network)
    assert len(shared) == 1
    assert all(map(torch.equal, shared[0], linear_weights(network)))
    assert shared[0][0].any()
