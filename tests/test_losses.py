from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import Normal
from torch.distributions import kl_divergence as torch_kl

from scripts.losses import (
    Elbo,
    IntrospectiveLoss,
    ReconstructionLoss,
    VAELoss,
    attribute_loss,
    kl_divergence,
    log_mean_exp,
    magnitude_loss,
    segmentation_loss,
    soft_cross_entropy,
    soft_dice_loss,
)
from scripts.views import View
from tests.conftest import shared


def test_golden_attribute_loss():
    golden = np.load(shared("golden/attribute_loss.npz"))
    attributes = torch.from_numpy(golden["attributes"])
    for delta, loss in zip(golden["delta"], golden["loss"], strict=True):
        codes = torch.from_numpy(golden["codes"]).requires_grad_()
        value = attribute_loss(codes, attributes, float(delta))
        value.backward()
        assert value.item() == pytest.approx(float(loss), abs=1e-9)
        assert np.allclose(codes.grad, golden[f"grad_delta{delta:g}"], atol=1e-9)


def test_attribute_loss_by_hand():
    codes, attributes = torch.tensor([[0.0], [1.0]]), torch.tensor([[5.0], [3.0]])
    # two pairs of 0 on the diagonal, two of |tanh(1) + 1|
    assert attribute_loss(codes, attributes, 1) == pytest.approx((1 + np.tanh(1)) / 2, abs=1e-6)


def test_ordered_codes_cost_next_to_nothing():
    attributes = torch.arange(10.0)[:, None]
    assert attribute_loss(attributes * 3, attributes, 10) < 1e-6
    assert attribute_loss(-attributes * 3, attributes, 10) > 1.7


def test_magnitude_loss_is_the_squared_distance_and_leaves_out_what_is_missing():
    standardized = torch.tensor([[1.0, float("nan")], [-1.0, 2.0]])
    codes = torch.tensor([[1.5, 9.0, 7.0], [-1.0, 1.0, 7.0]], requires_grad=True)
    loss = magnitude_loss(codes, standardized)
    loss.backward()
    assert loss.item() == pytest.approx(0.25 / 2 + 1)
    assert torch.equal(codes.grad, torch.tensor([[0.5, 0, 0], [0, -2, 0]]))


def test_magnitude_loss_averages_each_attribute_over_its_own_subjects():
    missing = float("nan")
    standardized = torch.tensor([[1.0, missing], [0.0, missing], [-1.0, missing], [2.0, 0.5]])
    codes = torch.tensor([[2.0, 8.0], [3.0, 8.0], [1.0, 8.0], [2.0, 3.5]])
    assert magnitude_loss(codes, standardized).item() == pytest.approx((1 + 9 + 4 + 0) / 4 + 9)


def test_magnitude_stands_beside_the_order_in_units_of_the_cohort():
    scale = {"mean": [100.0], "std": [20.0]}
    loss = VAELoss(ReconstructionLoss(1), beta_kl=1, gamma=1, delta=10, magnitude=0.5, attribute_scale=scale)
    attributes = torch.tensor([[80.0], [120.0]])
    exact = loss.attribute(torch.tensor([[-1.0], [1.0]]), attributes)
    assert exact < 1e-6
    assert loss.attribute(torch.tensor([[-2.0], [3.0]]), attributes) == pytest.approx(0.5 * (1 + 4) / 2, abs=1e-6)
    assert not loss.state_dict()  # the cohort's scale is in the datalist, and no part of a checkpoint


def test_magnitude_needs_a_scale():
    with pytest.raises(ValueError, match="attribute_scale"):
        VAELoss(ReconstructionLoss(1), beta_kl=1, gamma=1, delta=10, magnitude=0.5)


def test_pairs_with_a_missing_value_are_left_out():
    codes, attributes = torch.randn(6, 2), torch.rand(6, 2)
    attributes[4, 0] = float("nan")
    kept = [0, 1, 2, 3, 5]
    expected = attribute_loss(codes[kept, :1], attributes[kept, :1], 2)
    expected = expected + attribute_loss(codes[:, 1:], attributes[:, 1:], 2)
    codes.requires_grad_()
    value = attribute_loss(codes, attributes, 2)
    value.backward()
    assert value.item() == pytest.approx(expected.item(), abs=1e-6)
    assert codes.grad.isfinite().all()
    assert codes.grad[4, 0] == 0


def test_a_batch_without_values_costs_nothing():
    assert attribute_loss(torch.randn(4, 1), torch.full((4, 1), float("nan")), 1) == 0


@pytest.mark.parametrize(("codes", "attributes"), [((4, 1), (4, 2)), ((4, 2), (3, 2)), ((4,), (4, 1))])
def test_shapes_that_do_not_fit(codes, attributes):
    with pytest.raises(ValueError, match="do not fit"):
        attribute_loss(torch.rand(codes), torch.rand(attributes), 1)


def test_kl_is_that_of_torch():
    mean, log_variance = torch.randn(5, 7), torch.randn(5, 7)
    expected = torch_kl(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(1)
    assert torch.allclose(kl_divergence(mean, log_variance), expected, atol=1e-5)


def test_half_precision_is_summed_in_full():
    image = torch.full((1, 1, 300, 300), 1.0, dtype=torch.float16)  # 90,000 is more than float16 has
    error = ReconstructionLoss(1)(image * 0, image)
    divergence = kl_divergence(torch.full((1, 2), 300.0, dtype=torch.float16), torch.zeros(1, 2, dtype=torch.float16))
    assert error.dtype == divergence.dtype == torch.float32
    assert error.item() == pytest.approx(90_000, rel=1e-4)
    assert divergence.item() == pytest.approx(90_000)


def test_a_detached_bound_has_the_numbers_and_no_gradient():
    elbo = Elbo(torch.rand(2, requires_grad=True), torch.rand(2, requires_grad=True))
    detached = elbo.detach()
    for part, original in zip(detached, elbo, strict=True):
        assert torch.equal(part, original)
        assert not part.requires_grad


def test_reconstruction_is_summed_per_sample():
    target = torch.zeros(2, 2, 4, 4)
    prediction = target.clone()
    prediction[1] = 0.5
    loss = ReconstructionLoss(0.1, 100, lambda x, y: (x - y).abs().mean((1, 2, 3)))
    assert torch.allclose(loss(prediction, target), torch.tensor([0, 0.1 * 32 * 0.25 + 100 * 32 * 0.5]))
    assert loss.per_value(prediction, target) == pytest.approx((0.1 * 0.25 + 100 * 0.5) / 2)


def test_perceptual_weight_of_zero_computes_nothing():
    def fail(prediction, target):
        raise AssertionError("computed")

    assert ReconstructionLoss(1, 0, fail)(torch.rand(1, 1, 4, 4), torch.rand(1, 1, 4, 4)).shape == (1,)


def test_perceptual_weight_needs_a_distance():
    with pytest.raises(ValueError, match="perceptual"):
        ReconstructionLoss(1, 1)


MAPPED = View(["ED"], ["basal", "apical"], "masks")


def heart_with_maps(seed=0):
    """Two images and their maps, (1, 8, 6, 6)."""
    heart = torch.rand(1, MAPPED.channels, 6, 6, generator=torch.Generator().manual_seed(seed))
    heart[:, MAPPED.images :] /= 3
    return heart


def test_the_right_shares_cost_least():
    target = heart_with_maps()[:, MAPPED.images :].unflatten(1, (2, 3))
    for loss in (soft_dice_loss, soft_cross_entropy):
        best = target.clone().requires_grad_()
        loss(best, target).sum().backward()
        assert best.grad.abs().max() < 1e-3
        others = [loss((target + shift).clamp(0, 1 / 3), target) for shift in (-0.1, 0.1)]
        assert all(other > loss(target, target) for other in others)


def test_perfect_maps_of_pure_pixels_cost_nothing():
    maps = torch.zeros(2, 2, 3, 6, 6)
    maps[:, :, 1, 2:4] = 1
    assert soft_dice_loss(maps, maps).abs().max() < 1e-5
    assert soft_cross_entropy(maps, maps).abs().max() < 1e-5
    assert soft_dice_loss(maps, maps.flip(2)).shape == (2,)


def test_the_error_of_maps_by_the_formula():
    """Two subjects, two phases, three slices: each subject for itself, Dice by phase and cross-entropy by pixel."""
    view = View(["ED", "ES"], ["basal", "mid", "apical"], "masks")
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.rand(2, view.channels, 5, 6, generator=generator) / 3 for _ in range(2))
    maps = [values[:, view.images :].reshape(2, 2, 3, 3, 5, 6).numpy() for values in (prediction, target)]
    for subject, found in enumerate(segmentation_loss(prediction, target, view)):
        p, t = (values[subject] for values in maps)  # phase, slice, structure, row, column
        over = (1, 3, 4)
        dice = 1 - 2 * (p * t).sum(over) / (np.square(p).sum(over) + np.square(t).sum(over))
        entropy = (t * np.log(p)).sum(2) + (1 - t.sum(2)) * np.log(1 - p.sum(2))
        assert found.item() == pytest.approx(dice.mean() - entropy.mean(), rel=1e-4)


def test_slices_of_a_structure_count_together():
    target = torch.zeros(1, 2, 3, 6, 6)
    target[:, 0, :, 2:4] = 1  # nothing in the other slice
    prediction = target.clone()
    prediction[:, 1, :, 0, 0] = 0.1
    assert soft_dice_loss(prediction, target) < 0.01  # by slices, the empty one would cost 0.5


def test_maps_add_a_term_and_leave_those_of_the_images():
    image, other = heart_with_maps(0), heart_with_maps(1)
    with_maps = ReconstructionLoss(2, segmentation_weight=0.5, view=MAPPED)
    n = 2 * 6 * 6
    maps = [values[:, 2:].unflatten(1, (2, 3)) for values in (other, image)]
    segmentation = soft_dice_loss(*maps) + soft_cross_entropy(*maps)
    images = 2 * (image - other)[:, :2].square().sum()
    assert with_maps(other, image).item() == pytest.approx((images + 0.5 * n * segmentation).item(), rel=1e-5)
    assert with_maps(other, image, maps=False).item() == pytest.approx(images.item(), rel=1e-5)
    assert with_maps.per_value(other, image).item() == pytest.approx(with_maps(other, image).item() / n, rel=1e-6)


def test_segmentation_weight_of_zero_computes_nothing(monkeypatch):
    monkeypatch.setattr("scripts.losses.segmentation_loss", None)
    assert ReconstructionLoss(1, view=MAPPED)(heart_with_maps(), heart_with_maps()) == 0


def test_images_alone_are_compared_by_the_perceptual_distance():
    def distance(prediction, target):
        assert target.shape[1] == MAPPED.images
        return (prediction - target).abs().mean((1, 2, 3))

    image, other = heart_with_maps(0), heart_with_maps(1)
    expected = 3 * (image - other)[:, :2].abs().sum()
    assert ReconstructionLoss(0, 3, distance, view=MAPPED)(other, image).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("maps", [False, True])
def test_generated_hearts_are_judged_with_their_maps_on_request(maps):
    reconstruction = ReconstructionLoss(1, segmentation_weight=1, view=MAPPED)
    loss = IntrospectiveLoss(reconstruction, **WEIGHTS, maps=maps)
    image, other = heart_with_maps(0), heart_with_maps(1)
    assert torch.equal(loss.generated_error(other, image), reconstruction(other, image, maps=maps))
    assert (reconstruction(other, image, maps=True) > reconstruction(other, image, maps=False)).all()


WEIGHTS = {"beta_rec": 0.8, "beta_kl": 1.5, "beta_neg": 16, "gamma": 0.05, "delta": 10, "eta": 0.3}
ELBOS = [Elbo(torch.tensor([e, 2 * e]), torch.tensor([k, k + 1])) for e, k in ((3.0, 2.0), (4.0, 5.0), (1.0, 7.0))]


def test_encoder_objective_is_equation_6():
    loss, s = IntrospectiveLoss(ReconstructionLoss(1), **WEIGHTS), 1 / 32
    real, *generated = ELBOS
    attribute = torch.tensor(2.0)
    expected = 0.05 * attribute + (s * (0.8 * real.error + 1.5 * real.kl)).mean()
    for g in generated:
        expected = expected + 0.25 * torch.exp(-2 * s * (0.8 * g.error + 16 * g.kl)).mean()
    assert loss.encoder(attribute, real, generated, s) == pytest.approx(expected.item(), rel=1e-6)


def test_decoder_objective_is_equation_7():
    loss, s = IntrospectiveLoss(ReconstructionLoss(1), **WEIGHTS), 1 / 32
    real, *generated = ELBOS
    expected = s * 0.8 * real.error.mean()
    for g in generated:
        expected = expected + s * 0.5 * (0.3 * 0.8 * g.error + 1.5 * g.kl).mean()
    assert loss.decoder(real, generated, s) == pytest.approx(expected.item(), rel=1e-6)


def test_unless_asked_generated_hearts_count_by_their_divergence_and_their_maps_not_at_all():
    weights = {name: value for name, value in WEIGHTS.items() if name != "eta"}
    loss = IntrospectiveLoss(ReconstructionLoss(1), **weights)
    assert (loss.eta, loss.maps) == (0, False)


def test_vae_objective_is_equation_3():
    s, real = 1 / 32, ELBOS[0]
    expected = sum(s * (error + 2 * kl) for error, kl in zip(*real, strict=True)) / 2 + 30 * 0.7
    loss = VAELoss(ReconstructionLoss(1), beta_kl=2, gamma=30, delta=10)
    assert loss(torch.tensor(0.7), real, s) == pytest.approx(expected.item(), rel=1e-6)


def test_the_logarithm_survives_where_the_exponential_underflows():
    loss = IntrospectiveLoss(ReconstructionLoss(1), **(WEIGHTS | {"beta_neg": 1e6}))
    value = loss.log_exp_elbo(ELBOS[0], 1)
    assert value.isfinite().all()
    assert (value.exp() == 0).all()
    assert log_mean_exp(value).isfinite()


def test_log_mean_exp():
    values = torch.tensor([-1.0, -3.0])
    assert log_mean_exp(values) == pytest.approx(np.log((np.exp(-1) + np.exp(-3)) / 2))


@pytest.mark.parametrize(
    "loss",
    [
        IntrospectiveLoss(ReconstructionLoss(1), **(WEIGHTS | {"gamma": 0})),
        VAELoss(ReconstructionLoss(1), beta_kl=2, gamma=0, delta=10),
    ],
)
def test_gamma_of_zero_computes_no_attribute_loss(loss):
    assert loss.attribute(torch.rand(3, 2), None) == 0
