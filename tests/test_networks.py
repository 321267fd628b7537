from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from scripts.networks import ARCHITECTURES, RIM, OccupancyMaps, RenderedHearts, VariationalAutoencoder, sample

SMALL = {"spatial_size": (32, 32), "channels": (8, 16, 16), "latent_dim": 10}
GROUP = ["group", {"num_groups": 4}]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("norm", ["batch", "instance", GROUP])
def test_shapes(channels, norm, architecture):
    network = VariationalAutoencoder(channels, **SMALL, norm=norm, architecture=architecture).eval()
    image = torch.rand(3, channels, 32, 32)
    mean, log_variance = network.encode(image)
    assert mean.shape == log_variance.shape == (3, 10)
    assert network(image).shape == image.shape


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_maps_of_a_slice_and_its_background_are_shares(architecture):
    network = VariationalAutoencoder(8, **SMALL, architecture=architecture, image_channels=2).eval()
    decoded = network.decode(10 * torch.randn(5, 10))
    images, maps = decoded[:, :2], decoded[:, 2:].unflatten(1, (2, 3))
    assert images.min() < 0
    assert maps.min() >= 0
    assert maps.sum(2).max() <= 1 + 1e-6
    assert network(decoded).shape == decoded.shape  # a generated heart can be encoded again


def test_the_backgrounds_logit_is_zero():
    values = torch.full((1, 4, 2, 2), 7.0)
    values[:, 1:, 0] = torch.tensor([0.0, np.log(2), -30]).view(3, 1)
    values[:, 1:, 1] = -30
    found = OccupancyMaps(1)(values)
    assert torch.allclose(found[0, 1:, 0, 0], torch.tensor([0.25, 0.5, 0]), atol=1e-6)
    assert found[0, 1:, 1].max() < 1e-6
    assert torch.equal(found[:, :1], values[:, :1])


def test_shares_keep_full_precision_under_mixed_precision():
    logits = torch.randn(1, 4, 3, 3)
    found = OccupancyMaps(1)(logits.bfloat16())
    assert found.dtype == torch.float32
    assert OccupancyMaps(1)(logits.double()).dtype == torch.float64


def test_channels_that_are_no_maps_are_refused():
    with pytest.raises(ValueError, match="in_channels 6 needs to be image_channels 2, or four times"):
        VariationalAutoencoder(6, **SMALL, image_channels=2)


def rendered(images, maps):
    """Two slices of 16 x 16 pixels, drawn from their maps."""
    torch.manual_seed(0)
    return RenderedHearts(2, (16, 16), 4)(torch.cat([images, maps.flatten(1, 2)], dim=1))


def test_a_heart_is_drawn_from_its_maps_and_the_rest_stays():
    images, maps = torch.rand(1, 2, 16, 16), torch.zeros(1, 2, 3, 16, 16)
    maps[:, 0, 1, 4:8, 4:8] = 1
    found = rendered(images, maps)
    assert torch.equal(found[:, 2:], maps.flatten(1, 2))
    heart = torch.zeros(1, 16, 16, dtype=torch.bool)
    heart[:, 4 - RIM : 8 + RIM, 4 - RIM : 8 + RIM] = True
    assert torch.equal(found[:, 0][~heart], images[:, 0][~heart])
    assert torch.equal(found[:, 1], images[:, 1])
    assert (found[:, 0] != images[:, 0])[heart].all()


def test_a_drawing_of_nothing_leaves_the_blurred_brightness():
    network, maps = RenderedHearts(1, (16, 16), 4), torch.zeros(1, 3, 16, 16)
    torch.nn.init.zeros_(network.drawing[-1].conv.weight)
    torch.nn.init.zeros_(network.drawing[-1].conv.bias)
    maps[:, 0] = 1
    found = network(torch.cat([torch.full((1, 1, 16, 16), 0.7), maps], dim=1))
    assert torch.allclose(found[:, 0], torch.tensor(0.7), atol=1e-6)


def test_all_slices_are_drawn_alike():
    image, maps = torch.rand(1, 1, 16, 16).expand(1, 2, 16, 16), torch.rand(1, 1, 3, 16, 16).expand(1, 2, 3, 16, 16) / 3
    found = rendered(image, maps)
    assert torch.allclose(found[:, 0], found[:, 1], atol=1e-6)


def test_no_wall_can_be_read_from_the_image_that_is_drawn_over():
    """Where the maps are full, only the image's blurred brightness counts, and not where its walls were."""
    maps = torch.zeros(1, 2, 3, 16, 16)
    maps[:, :, 0] = 1
    image = torch.rand(1, 2, 16, 16)
    moved = image.unflatten(3, (2, 8)).flip(4).flatten(3)  # within the squares of the blur
    assert torch.allclose(rendered(image, maps), rendered(moved, maps), atol=1e-6)


def test_drawing_needs_maps():
    with pytest.raises(ValueError, match="rendering_channels 4 needs occupancy maps"):
        VariationalAutoencoder(2, **SMALL, rendering_channels=4)


def test_what_is_linear_in_the_code_adds_to_images_alone():
    torch.manual_seed(0)
    network = VariationalAutoencoder(8, **SMALL, norm=GROUP, image_channels=2, linear_size=4).eval()
    codes = torch.cat([torch.randn(3, 10)] * 2) * torch.tensor([1.0, 2.0]).repeat_interleave(3)[:, None]
    assert not network.decoder[0].linear.weight.any()  # nothing to add yet
    before = network.decode(codes)
    torch.nn.init.normal_(network.decoder[0].linear.weight)
    added = network.decode(codes) - before
    assert not added[:, 2:].any()
    once, twice = added[:, :2].chunk(2)
    assert once.abs().mean() > 0.5
    assert torch.allclose(twice, 2 * once, atol=1e-4)
    assert torch.allclose(once, network.decoder[0].linear(codes[:3]).view(3, 2, 32, 32), atol=1e-4)  # every pixel's own


def test_bilinear_upsampling_leaves_fewer_stripes():
    """Power of stripes of about two pixels, of all power, in what a new decoder draws."""
    shares = {}
    for architecture in ("residual", "bilinear"):
        torch.manual_seed(0)
        network = VariationalAutoencoder(2, **SMALL, norm=GROUP, architecture=architecture).eval()
        with torch.no_grad():
            power = torch.fft.rfft(network.decode(torch.randn(20, 10))).abs().square()[..., 1:].mean((0, 1, 2))
        shares[architecture] = power[13:].sum() / power.sum()
    assert shares["bilinear"] < 0.8 * shares["residual"]


def test_a_linear_size_that_does_not_divide_the_image_is_refused():
    with pytest.raises(ValueError, match=r"linear_size 12 has to divide spatial_size \[32, 32\]"):
        VariationalAutoencoder(2, **SMALL, linear_size=12)


def test_what_is_linear_in_the_images_adds_to_mean_codes_alone():
    torch.manual_seed(0)
    network = VariationalAutoencoder(8, **SMALL, norm=GROUP, image_channels=2, linear_size=4).eval()
    values = torch.rand(3, 8, 32, 32)
    assert not network.encoder.linear.weight.any()  # nothing to add yet
    before = network.encode(values)
    torch.nn.init.normal_(network.encoder.linear.weight)
    after = network.encode(values)
    assert (after[0] - before[0]).abs().mean() > 0.2
    assert torch.equal(after[1], before[1])
    shrunk = values[:, :2].unflatten(3, (4, 8)).unflatten(2, (4, 8)).mean((3, 5)).flatten(1)
    added = network.encoder.linear(shrunk / 32**0.5)
    assert torch.allclose(after[0] - before[0], added - network.encoder.linear.bias, atol=1e-4)


def test_maps_add_no_weights_to_those_of_their_channels():
    with_maps = VariationalAutoencoder(8, **SMALL, image_channels=2).state_dict()
    assert with_maps.keys() == VariationalAutoencoder(8, **SMALL).state_dict().keys()


def test_forward_decodes_the_mean():
    network = VariationalAutoencoder(**SMALL).eval()
    image = torch.rand(2, 2, 32, 32)
    assert torch.equal(network(image), network.decode(network.encode(image)[0]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_output_is_not_bounded(architecture):
    network = VariationalAutoencoder(**SMALL, architecture=architecture).eval()
    image = network.decode(100 * torch.randn(8, 10))
    assert image.min() < 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rectangular_images(architecture):
    network = VariationalAutoencoder(**(SMALL | {"spatial_size": (32, 48)}), architecture=architecture).eval()
    assert network(torch.rand(1, 2, 32, 48)).shape == (1, 2, 32, 48)


def test_paper_size_costs_what_the_paper_network_costs():
    network, image = VariationalAutoencoder().eval(), torch.rand(1, 2, 128, 128)
    with FlopCounterMode(display=False) as encoder, torch.no_grad():
        mean = network.encode(image)[0]
    with FlopCounterMode(display=False) as decoder, torch.no_grad():
        network.decode(mean)
    assert encoder.get_total_flops() / 2e9 == pytest.approx(3.25, abs=0.01)
    assert decoder.get_total_flops() / 2e9 == pytest.approx(3.10, abs=0.01)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_size_that_cannot_be_halved_is_refused(architecture):
    with pytest.raises(ValueError, match="must be divisible by 8"):
        VariationalAutoencoder(**(SMALL | {"spatial_size": (32, 36)}), architecture=architecture)


def test_unknown_architecture_is_refused():
    with pytest.raises(ValueError, match="architecture 'plane' is unknown; choose one of residual, bilinear, plain"):
        VariationalAutoencoder(**SMALL, architecture="plane")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_torchscript_equals_eager(architecture):
    network = VariationalAutoencoder(**SMALL, architecture=architecture).eval()
    image = torch.rand(2, 2, 32, 32)
    scripted = torch.jit.script(network)
    assert torch.equal(scripted(image), network(image))
    assert torch.equal(scripted.encode(image)[1], network.encode(image)[1])


def test_sampling_has_the_asked_moments():
    torch.manual_seed(0)
    codes = sample(torch.full((20000, 1), 3.0), torch.full((20000, 1), 2.0).log() * 2, torch.randn(20000, 1))
    assert codes.mean() == pytest.approx(3, abs=0.06)
    assert codes.std() == pytest.approx(2, abs=0.06)


def test_blocks_are_those_of_the_paper():
    modules = list(VariationalAutoencoder(**SMALL).modules())
    slopes = {module.negative_slope for module in modules if isinstance(module, torch.nn.LeakyReLU)}
    pools = {type(module) for module in modules if "Pool" in type(module).__name__}
    upsampling = {module.mode for module in modules if isinstance(module, torch.nn.Upsample)}
    assert (slopes, pools, upsampling) == ({0.2}, {torch.nn.AvgPool2d}, {"nearest"})


def test_plain_network_halves_by_strides_and_doubles_by_transposed_convolutions():
    network = VariationalAutoencoder(**SMALL, architecture="plain")
    down = [m.stride for m in network.encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    up = [m.stride for m in network.decoder.modules() if isinstance(m, torch.nn.ConvTranspose2d)]
    assert down == up == [(2, 2)] * 3
    assert not any("Pool" in type(m).__name__ or isinstance(m, torch.nn.Upsample) for m in network.modules())
