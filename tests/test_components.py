from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, EnsureTyped, RandGaussianNoised

from scripts.components import PrincipalComponents, components, without_hearts
from scripts.networks import RIM, VariationalAutoencoder

RANK = 3


def make_network(latent_dim=6, linear_size=16, architecture="residual"):
    torch.manual_seed(0)
    norm = ("group", {"num_groups": 4})
    linear = {"image_channels": 2, "linear_size": linear_size}
    return VariationalAutoencoder(8, (32, 32), (4, 8), latent_dim, norm, architecture, **linear)


def make_items(count=20):
    """Images that differ in three ways, in their blocks of four pixels and within, and maps that show no heart."""
    generator = torch.Generator().manual_seed(1)
    basis, amounts = (torch.randn(shape, generator=generator) for shape in ((RANK, 2048), (count, RANK)))
    images = (0.5 + amounts @ basis).view(count, 2, 32, 32)
    maps = torch.zeros(count, 6, 32, 32)
    return [{"image": image} for image in torch.cat([images, maps], dim=1)]


def make_loader(noise=0.0, items=None):
    noisy = RandGaussianNoised("image", prob=1 if noise else 0, std=noise)
    dataset = Dataset(items or make_items(), Compose([noisy, EnsureTyped("image", track_meta=False)]))
    return DataLoader(dataset, batch_size=8, shuffle=True)


def heads(network):
    """Weights of the last blocks of the convolutions on both sides."""
    parts = (network.encoder.encoder[-1], network.decoder[0].decoder[-1])
    return [weight.detach().clone() for part in parts for weight in part.parameters()]


def started(network, noise=0.0, epoch=0, items=None, **settings):
    """Run the start of a training."""
    engine = Engine(lambda engine, batch: None)
    engine.data_loader = make_loader(noise, items)
    engine.add_event_handler(Events.STARTED, lambda engine: setattr(engine.state, "epoch", epoch))
    PrincipalComponents(network, **settings).attach(engine)
    engine.run(engine.data_loader, max_epochs=epoch + 1)


def linear_weights(network):
    parts = (network.encoder.linear, network.decoder[0].linear)
    return [weight.detach().clone() for part in parts for weight in part.parameters()]


@pytest.mark.parametrize("architecture", ["residual", "plain"])
def test_images_come_back_from_codes_in_units_of_their_deviation(architecture):
    network = make_network(architecture=architecture)
    started(network, reserved=2, count=20)
    images = torch.stack([item["image"] for item in make_items()])
    with torch.no_grad():
        codes = network.encode(images)[0]
        back = network.decode(codes)
    assert torch.allclose(back[:, :2], images[:, :2], atol=1e-4)  # convolutions have nothing to add yet
    assert network.encoder.linear(network.encoder.shrink(images))[:, :2].abs().max() == 0
    assert torch.allclose(codes[:, 2 : 2 + RANK].std(0, correction=0), torch.ones(RANK), atol=1e-3)
    assert codes[:, 2 : 2 + RANK].mean(0).abs().max() < 1e-4
    assert not network.encoder.linear.weight[2 + RANK :].any()  # rounding is no component


def test_convolutions_keep_what_components_have_no_part_in():
    network = make_network()
    before = heads(network)
    started(network, reserved=2, count=20)
    (codes, codes_bias, channels, channels_bias), kept = heads(network), [slice(0, 2), slice(2 + RANK, None)]
    for rows in kept:  # attributes, what has no component, log-variances
        assert torch.equal(codes[rows], before[0][rows])
        assert torch.equal(codes_bias[rows], before[1][rows])
    assert torch.equal(channels[2:], before[2][2:])  # maps
    assert torch.equal(channels_bias[2:], before[3][2:])


def test_a_resumed_training_is_left_alone():
    network = make_network()
    before = linear_weights(network)
    started(network, epoch=4)
    assert all(map(torch.equal, before, linear_weights(network)))


def test_the_seed_decides_and_nothing_else():
    first, second, other = make_network(), make_network(), make_network()
    started(first, noise=0.1, seed=3, count=30)
    torch.rand(7)
    started(second, noise=0.1, seed=3, count=30)
    started(other, noise=0.1, seed=4, count=30)
    assert all(map(torch.equal, linear_weights(first), linear_weights(second)))
    assert not torch.equal(linear_weights(first)[0], linear_weights(other)[0])


def test_a_small_cohort_is_drawn_again_with_other_augmentation():
    handler = PrincipalComponents(make_network(), count=50)
    rows, images = handler.draw(make_loader(noise=0.1))
    assert images.shape == (50, 2, 32, 32)
    assert images.untyped_storage().nbytes() == 50 * 2 * 32**2 * 4  # and no maps behind it
    assert rows.shape == (50, 512)
    assert len(rows.unique(dim=0)) == 50


def test_the_map_to_images_does_not_learn():
    network = make_network()
    PrincipalComponents(network)
    fixed = {name for name, weight in network.named_parameters() if not weight.requires_grad}
    assert fixed == {"decoder.0.linear.weight", "decoder.0.linear.bias"}


def test_processes_share_the_drawing(monkeypatch):
    handler = PrincipalComponents(make_network(), count=25)
    monkeypatch.setattr("scripts.components.idist.get_world_size", lambda: 3)
    assert [len(values) for values in handler.draw(make_loader(noise=0.1))] == [9, 9]


@pytest.fixture
def hearts():
    """Of one slice: an image, maps of a square of half myocardium and half RV, and where that is, with its rim."""
    image, maps, place = torch.rand(1, 1, 32, 32), torch.zeros(1, 3, 32, 32), torch.zeros(32, 32, dtype=torch.bool)
    maps[:, 1:, 10:20, 12:24] = 0.5
    place[10 - RIM : 20 + RIM, 12 - RIM : 24 + RIM] = True
    return image, maps, place


def test_hearts_give_way_to_what_is_around_them(hearts):
    image, maps, place = hearts
    filled = without_hearts(torch.cat([image, maps], dim=1), 1)
    assert torch.equal(filled[..., ~place], image[..., ~place])
    other = torch.where(place, 5.0, image)
    assert torch.equal(without_hearts(torch.cat([other, maps], dim=1), 1), filled)
    assert filled[..., place].std() < 0.2 * image[..., place].std()
    assert (filled[..., place].mean() - image[..., ~place].mean()).abs() < 0.05


def test_where_all_is_heart_or_nothing_is_known_of_it_numbers_stay_finite(hearts):
    image, maps, _ = hearts
    for share in (1 / 3, 0.3333334, 0.34):
        filled = without_hearts(torch.cat([image, torch.full_like(maps, share)], dim=1), 1)
        assert filled.abs().max() < 2
    assert torch.equal(without_hearts(image, 1), image)


def test_the_map_to_images_has_no_hearts():
    items = make_items()
    for item in items:
        item["image"][2:, 10:20, 12:24] = 1 / 3
    network = make_network()
    started(network, count=20, items=items)
    values = torch.stack([item["image"] for item in items])
    with torch.no_grad():
        back = network.decode(network.encode(values)[0])[:, :2]
    assert torch.allclose(back, without_hearts(values, 2), atol=1e-4)
    assert not torch.allclose(back, values[:, :2], atol=0.1)


def test_no_more_components_than_images_have():
    values = torch.randn(4, 10)
    mean, directions = components(values, 8)
    assert directions.shape == (3, 10)
    codes = (values - mean) @ directions.T
    assert torch.allclose(codes.T @ codes / 4, torch.eye(3), atol=1e-4)
    assert torch.allclose(codes @ torch.linalg.pinv(directions).T + mean, values, atol=1e-4)


def test_one_image_has_no_components():
    with pytest.raises(ValueError, match="component_images is 1: expected 2 or more, or 0"):
        PrincipalComponents(make_network(), count=1)


@pytest.mark.parametrize("latent_dim", [2, 1])
def test_without_a_free_dimension_images_start_from_their_mean(latent_dim):
    network = make_network(latent_dim)
    started(network, reserved=2, count=20)
    images = torch.stack([item["image"][:2] for item in make_items()])
    weight, bias, to_images, mean = linear_weights(network)
    assert not any(part.any() for part in (weight, bias, to_images))
    assert torch.allclose(mean.view(2, 32, 32), images.mean(0), atol=1e-5)


def test_images_that_are_all_alike_have_no_components():
    mean, directions = components(torch.rand(1, 6000).expand(50, -1), 8)
    assert len(directions) == 0
    assert mean.isfinite().all()


def test_weights_stay_where_optimizers_and_frozen_twins_know_them():
    network = make_network()
    parts = (network.encoder.linear, network.decoder[0].linear)
    before = [weight.data_ptr() for part in parts for weight in part.parameters()]
    started(network)
    assert before == [weight.data_ptr() for part in parts for weight in part.parameters()]


def test_images_with_values_that_are_no_numbers_are_refused():
    items = make_items()
    items[3]["image"][0, 5, 5] = torch.nan
    with pytest.raises(ValueError, match="training images have values that are not finite"):
        started(make_network(), items=items)


def test_a_network_without_linear_parts_is_refused():
    with pytest.raises(ValueError, match="set --linear_size"):
        PrincipalComponents(make_network(linear_size=0))


def test_the_first_process_decides_for_all(monkeypatch):
    shared = []
    monkeypatch.setattr("scripts.components.share_weights", lambda network: shared.append(linear_weights(network)))
    network = make_network()
    started(network)
    assert len(shared) == 1
    assert all(map(torch.equal, shared[0], linear_weights(network)))
    assert shared[0][0].any()
