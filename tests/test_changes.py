from __future__ import annotations

import copy

import pytest
import torch

from scripts.changes import ChangeLoss, sharpened
from scripts.engines import IntrospectiveTrainer, VAETrainer
from scripts.losses import IntrospectiveLoss, ReconstructionLoss, VAELoss
from scripts.networks import VariationalAutoencoder
from scripts.views import View

VIEW = View(["ED", "ES"], "stack", "masks", stack_slices=2)
NAMES = ["RVEDV", "LVESV"]  # not in the order of the maps
SCALE = {"mean": [3.0, 2.0], "std": [0.5, 0.25]}
CORRELATION = [[1.0, 0.8], [0.8, 1.0]]
PLACES = [VIEW.channel_names.index(name) for name in ("ED base RV", "ES base LV")]
PIXELS = 16 * 16 * 2.0**2 * 10 / 1000  # mL of a full map


def make_loss(**kwargs):
    settings = {"weight": 2.0, "reach": 1.0, "sharpness": 1, "start": 1, "ramp": 1, "correlation": CORRELATION} | kwargs
    return ChangeLoss(view=VIEW, spacing=2.0, attributes=NAMES, attribute_scale=SCALE, **settings)


def decode_truly(codes, strength=1.0):
    """Hearts whose volumes are what the first dimensions ask for, or moved by a part of it only."""
    shares = (torch.tensor(SCALE["mean"]) + strength * codes[:, :2] * torch.tensor(SCALE["std"])) / PIXELS
    values = torch.zeros(len(codes), VIEW.channels, 16, 16)
    values[:, PLACES] = shares[:, :, None, None]
    return values


def test_a_decoder_that_does_what_is_asked_costs_nothing():
    codes, noise = torch.randn(4, 5), torch.randn(4, 5)
    assert make_loss()(decode_truly, codes, noise).max() < 1e-6


def test_half_strength_costs_the_other_half_squared():
    codes, noise = torch.zeros(4, 5), torch.randn(4, 5)
    noise[:, -1] = -1
    errors = make_loss(reach=0.4)(lambda codes: decode_truly(codes, 0.5), codes, noise)
    assert torch.allclose(errors, (0.2 * noise[:, :2]).square().sum(1), atol=1e-5)


def test_the_other_dimensions_stay_where_they_are():
    seen = []
    codes, noise = torch.randn(4, 5), torch.ones(4, 5)
    noise[:, -1] = -1
    make_loss()(lambda codes: decode_truly(seen.append(codes) or codes), codes, noise)
    assert torch.equal(seen[0][:, 2:], codes[:, 2:])
    assert torch.allclose(seen[0][:, :2], codes[:, :2] + 1)


def test_half_of_the_codes_are_asked_for_another_heart_of_the_cohort():
    seen = []
    codes, noise = 9 * torch.ones(4000, 5), torch.randn(4000, 5)
    make_loss()(lambda codes: decode_truly(seen.append(codes) or codes), codes, noise)
    other = seen[0][noise[:, -1] > 0]
    assert 1800 < len(other) < 2200
    assert torch.equal(other[:, 2:], codes[: len(other), 2:])
    assert other[:, :2].mean(0).abs().max() < 0.1
    assert torch.allclose(torch.cov(other[:, :2].T), torch.tensor(CORRELATION), atol=0.1)


def test_collinear_attributes_and_codes_of_attributes_alone_are_no_reason_to_stop():
    codes, noise = torch.zeros(4, 2), torch.randn(4, 2)
    errors = make_loss(correlation=[[1.0, 1.0], [1.0, 1.0]])(decode_truly, codes, noise)
    assert errors.max() < 1e-6


def test_smeared_shares_do_not_count():
    values = torch.zeros(1, VIEW.channels, 16, 16)
    values[:, PLACES[0]] = 0.2
    loss = make_loss(sharpness=4)
    smeared = VIEW.volumes(sharpened(values, VIEW, loss.sharpness), 2.0)["RVEDV"]
    assert smeared < 0.03 * VIEW.volumes(values, 2.0)["RVEDV"]
    values[:, PLACES[0]] = 1
    assert torch.equal(sharpened(values, VIEW, 4), values)


def test_maps_that_have_the_volume_in_smeared_shares_are_not_what_was_asked():
    codes, noise = torch.zeros(4, 5), torch.randn(4, 5)  # shares are of a fifth of a pixel and less
    assert make_loss(sharpness=4)(decode_truly, codes, noise).min() > 10


def test_it_comes_in_late_and_grows():
    loss = make_loss(start=3, ramp=4)
    assert [loss.weight_at(epoch) for epoch in (1, 2, 3, 4, 6, 9)] == [0, 0, 0.5, 1, 2, 2]


@pytest.mark.parametrize("view", [View(), View(slices="stack"), View(anatomy="masks")])
def test_views_without_volumes_are_refused(view):
    with pytest.raises(ValueError, match="--slices stack and --anatomy masks"):
        ChangeLoss(1, view, 2.0, NAMES, SCALE, CORRELATION, 1, 1, 1, 1)


def test_attributes_that_are_no_volumes_are_refused():
    with pytest.raises(ValueError, match="LVEF is not"):
        ChangeLoss(1, VIEW, 2.0, ["RVEDV", "LVEF"], SCALE, CORRELATION, 1, 1, 1, 1)


def make_trainer(kind, change_loss, magnitude=0.4, **kwargs):
    torch.manual_seed(0)
    network = VariationalAutoencoder(
        VIEW.channels, (16, 16), (4, 8), 5, ("group", {"num_groups": 4}), image_channels=VIEW.images
    ).double()
    batch = {"image": torch.rand(4, VIEW.channels, 16, 16).double(), "attributes": torch.rand(4, 2).double()}
    reconstruction = ReconstructionLoss(1, segmentation_weight=0.1, view=VIEW)
    weights = {"gamma": 0.3, "delta": 10, "magnitude": magnitude, "attribute_scale": SCALE}
    options = {"train_data_loader": [batch], "device": torch.device("cpu"), "max_epochs": 1, "decollate": False}
    if kind is VAETrainer:
        optimizer = torch.optim.SGD(network.parameters(), 0)
        loss = VAELoss(reconstruction, beta_kl=1, **weights)
    else:
        optimizer = torch.optim.SGD(network.encoder.parameters(), 0)
        options["decoder_optimizer"] = torch.optim.SGD(network.decoder.parameters(), 0)
        loss = IntrospectiveLoss(reconstruction, 0.8, 1, 8, **weights)
    options |= {"network": network, "optimizer": optimizer, "loss_function": loss, "change_loss": change_loss}
    return kind(**options, **kwargs)


def gradients(trainer):
    torch.manual_seed(3)
    trainer.run()
    return {name: parameter.grad.clone() for name, parameter in trainer.network.named_parameters()}


@pytest.mark.parametrize("kind", [VAETrainer, IntrospectiveTrainer])
def test_only_the_decoder_learns_from_it(kind):
    without = gradients(make_trainer(kind, None))
    trainer = make_trainer(kind, make_loss())
    with_it = gradients(trainer)
    assert trainer.state.output["terms"]["change_loss"] > 0
    assert all(torch.equal(with_it[name], without[name]) for name in without if name.startswith("encoder"))
    assert any(not torch.allclose(with_it[name], without[name]) for name in without if name.startswith("decoder"))


def test_its_gradient_is_that_of_the_weighted_mean():
    trainer = make_trainer(VAETrainer, make_loss(weight=3.0))
    oracle = copy.deepcopy(trainer.network)
    without, with_it = gradients(make_trainer(VAETrainer, None)), gradients(trainer)
    torch.manual_seed(3)
    image = trainer.data_loader[0]["image"]
    noise, moves = (torch.randn(4, 5, dtype=torch.float64) for _ in range(2))
    mean, log_variance = oracle.encode(image)
    codes = (mean + noise * (0.5 * log_variance).exp()).detach()
    (3 * make_loss()(oracle.decode, codes, moves).mean()).backward()
    for name, parameter in oracle.decoder.named_parameters():
        change = with_it[f"decoder.{name}"] - without[f"decoder.{name}"]
        assert torch.allclose(change, parameter.grad, atol=1e-10)


@pytest.mark.parametrize("kind", [VAETrainer, IntrospectiveTrainer])
def test_micro_batches_change_nothing(kind):
    whole, parts = (gradients(make_trainer(kind, make_loss(), micro_batch_size=size)) for size in (None, 3))
    assert all(torch.allclose(whole[name], parts[name], rtol=1e-9, atol=1e-11) for name in whole)


def test_before_its_first_epoch_it_is_not_computed():
    trainer = make_trainer(VAETrainer, make_loss(start=2))
    trainer.run()
    assert "change_loss" not in trainer.state.output["terms"]


def test_dimensions_without_a_unit_cannot_ask_for_volumes():
    with pytest.raises(ValueError, match="change_weight is not 0, so that magnitude_weight must not"):
        make_trainer(VAETrainer, make_loss(), magnitude=0)


def test_half_precision_measures_volumes_in_full():
    trainer = make_trainer(VAETrainer, make_loss(), amp=True, amp_kwargs={"dtype": torch.bfloat16})
    trainer.network.float()
    trainer.data_loader = [{key: values.float() for key, values in trainer.data_loader[0].items()}]
    trainer.run()
    assert trainer.state.output["terms"]["change_loss"].dtype == torch.float32
