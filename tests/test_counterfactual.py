import re

import numpy as np
import pytest
import torch

from scripts.calibration.population import fit_population
from scripts.cohort.attributes import SIGNED
from scripts.counterfactual import (
    ALL_ELSE_EQUAL,
    IN_POPULATION,
    KINDS,
    Counterfactuals,
    Request,
    RequestError,
    check_changes,
    impossible,
)
from scripts.views import View

NAMES = ("LVEDV", "RVEDV", "MyoEDV", "LVESV", "RVESV", "MyoESV")
STACK = View(slices="stack", anatomy="masks", stack_slices=2)
SPACING = 10.0  # a voxel of the stack is 1 mL
MEANS = torch.tensor([150.0, 160.0, 110.0, 70.0, 80.0, 115.0])


class Heart(torch.nn.Module):
    """Decodes maps of known volumes: dimensions move all of them, beyond the first six only with ``rest``."""

    def __init__(self, bend=0.2, rest=True):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = 15 * torch.eye(6, 8) + 4 * torch.rand(6, 8, generator=generator) + 0.5
        self.matrix[:, 6:] *= rest
        self.bend = bend

    def volumes(self, codes):
        moved = codes @ self.matrix.T
        return MEANS + moved + self.bend * 20 * torch.sin(moved / 20)

    def decode(self, codes):
        assert not self.training
        by_label = self.volumes(codes).reshape(-1, 2, 1, 3)[..., [0, 2, 1]]  # LV, Myo, RV
        shares = by_label / (2 * 4 * 4)
        maps = shares.expand(-1, 2, 2, 3).flatten(1)[..., None, None].expand(-1, 12, 4, 4)
        return torch.cat([torch.zeros(len(codes), 4, 4, 4), maps], dim=1)


def cohort(count=500, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = torch.randn(count, 1, generator=generator)
    return (size + 0.7 * torch.randn(count, 8, generator=generator)) / 1.5


def population(heart):
    codes = cohort()
    return fit_population(codes.double().numpy(), heart.volumes(codes).double().numpy(), NAMES)


def counterfactuals(view=STACK, **options):
    heart = Heart(**options)
    return Counterfactuals(heart, view, SPACING, population(heart))


def test_attributes_are_the_volumes_of_decoded_maps():
    tool, codes = counterfactuals(), cohort(150)
    assert tool.measured_by_decoder
    assert torch.allclose(tool.attributes(codes), tool.network.volumes(codes), atol=1e-3)
    assert tool.network.training  # as it was before


@pytest.mark.parametrize("view", [View(), View(slices="stack"), View(anatomy="masks")])
def test_without_volumes_a_line_tells_attributes(view):
    tool, codes = counterfactuals(view, bend=0), cohort(5, seed=1)
    assert not tool.measured_by_decoder
    expected = codes[:, :6].double().numpy() @ np.array(tool.population.matrix).T + tool.population.intercept
    assert np.allclose(tool.attributes(codes), expected, atol=1e-3)


def test_other_attributes_than_volumes_are_not_measured():
    tool = counterfactuals()
    state = tool.population.state() | {"attributes": ["LVEF", *NAMES[1:]]}
    tool = Counterfactuals(tool.network, STACK, SPACING, type(tool.population).from_state(state))
    assert not tool.measured_by_decoder


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("view", [STACK, View()])
def test_one_attribute_moves_and_the_others_stay(name, view):
    tool, codes, amounts = counterfactuals(view), cohort(4, seed=1), torch.tensor([20.0, -20, 5, 0])
    before = tool.attributes(codes)
    after = tool.attributes(tool.change(codes, name, amounts))
    asked = torch.zeros(4, 6)
    asked[:, NAMES.index(name)] = amounts
    assert torch.allclose(after - before, asked, atol=0.11 + 0.01 * 20)


def test_all_else_equal_moves_regularized_dimensions_only():
    tool, codes = counterfactuals(), cohort(3, seed=1)
    changed = tool.change(codes, "LVEDV", 20.0)
    assert torch.equal(changed[:, 6:], codes[:, 6:])
    assert ((changed - codes)[:, :6].abs() > 0.02).all()  # all of them, since they are coupled


@pytest.mark.parametrize("view", [STACK, View()])
def test_in_the_population_the_code_follows_the_conditional_mean(view):
    tool, codes = counterfactuals(view, bend=0, rest=False), cohort(3, seed=1)
    volume = tool.network.volumes(cohort())[:, NAMES.index("RVESV")]
    joint = torch.cov(torch.cat([cohort(), volume[:, None]], dim=1).T)
    amounts = torch.tensor([20.0, -20.0, 5.0])
    changed = tool.change(codes, "RVESV", amounts, IN_POPULATION)
    assert torch.allclose(changed - codes, amounts[:, None] * joint[:8, 8] / joint[8, 8], atol=5e-3)


def test_in_the_population_the_rest_follows():
    tool, codes = counterfactuals(bend=0, rest=False), cohort(4, seed=1)
    changed = tool.change(codes, "LVEDV", 20.0, IN_POPULATION)
    change = tool.attributes(changed) - tool.attributes(codes)
    assert torch.allclose(change[:, 0], torch.tensor(20.0), atol=0.11)
    assert (change[:, 1:] > 5).all()
    assert tool.residuals(codes, changed, "LVEDV", 20.0, IN_POPULATION).abs().max() < 0.2  # as was to be expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_subject_does_not_depend_on_the_others_of_its_batch(kind):
    tool, codes, amounts = counterfactuals(), cohort(5, seed=2), torch.tensor([10.0, 20, -10, 40, 400])
    together = tool.change(codes, "RVEDV", amounts, kind)
    for row in range(5):
        alone = tool.change(codes[row : row + 1], "RVEDV", amounts[row : row + 1], kind)
        assert torch.allclose(alone[0], together[row], atol=1e-4)


def test_attributes_come_in_the_order_of_the_population():
    tool = counterfactuals()
    order = [3, 0, 5, 1, 4, 2]
    names, codes = [NAMES[k] for k in order], cohort()
    swapped = fit_population(codes.numpy(), tool.network.volumes(codes)[:, order].numpy(), names)
    other = Counterfactuals(tool.network, STACK, SPACING, swapped)
    assert torch.allclose(other.attributes(codes[:3]), tool.attributes(codes[:3])[:, order])
    after = other.attributes(other.change(codes[:3], "MyoESV", 10.0)) - other.attributes(codes[:3])
    assert torch.allclose(after, 10.0 * (torch.arange(6) == 2), atol=0.11 + 0.01 * 10)


def effects(tool):
    """What a standard deviation of each dimension is worth in mL of each attribute."""
    return np.array(tool.population.matrix) * np.array(tool.population.spread)[:6]


def test_a_dimension_that_hardly_changes_a_volume_is_not_moved_far():
    tool, codes = counterfactuals(bend=0, rest=False), cohort(3, seed=1)
    tool.network.matrix = tool.network.matrix.clone()
    tool.network.matrix[:, 4] = 0
    tool.network.matrix[4, 4] = 0.05  # mL of RVESV for a whole unit
    assert tool.cost == pytest.approx(0.08 * np.mean([np.hypot.reduce(row) for row in effects(tool)]))
    moved = (tool.change(codes, "RVESV", 20.0) - codes).abs() / torch.tensor(tool.population.spread)
    assert (moved[:, 4] < 2.5).all()  # 5 would not be enough


@pytest.mark.parametrize("kind", KINDS)
def test_codes_do_not_run_away_and_the_residual_tells(kind):
    tool, codes = counterfactuals(), cohort(3, seed=1)
    changed = tool.change(codes, "LVEDV", 1000.0, kind)
    assert ((changed - codes).abs() <= 5 * torch.tensor(tool.population.spread) + 1e-4).all()
    missed = tool.residuals(codes, changed, "LVEDV", 1000.0, kind)
    assert (missed[:, 0] < -500).all()
    assert (tool.attributes(changed)[:, 0] > tool.attributes(codes)[:, 0] + 50).all()  # but some of the way


def test_a_model_of_one_size_axis_says_so():
    tool = counterfactuals()
    tool.network.matrix = 10 * torch.ones(6, 8)
    codes = cohort(2, seed=1)
    changed = tool.change(codes, "LVEDV", 20.0)
    missed = tool.residuals(codes, changed, "LVEDV", 20.0)
    # All volumes change by t, which makes (2 (20 - t))² + 5 t² the least.
    assert torch.allclose(missed, 80 / 9 - 20.0 * (torch.arange(6) == 0), atol=0.05)


@pytest.mark.parametrize(
    ("name", "change", "ok"),
    [
        ("LVEDV", 49, True),
        ("LVEDV", 51, False),
        ("LVEDV", -49, True),
        ("LVEDV", -51, False),
        ("LVESV", 29, True),
        ("LVESV", 79, False),  # in the range of LVESV, but not below LVEDV
        ("RVEDV", -60, False),  # in the range of RVEDV, but not above RVESV
        ("MyoESV", 40, True),  # of the muscle, either phase can be larger
        ("LVEDV", float("nan"), False),
    ],
)
def test_requests_are_allowed_up_to_the_ends_of_the_range(name, change, ok):
    tool = counterfactuals()
    limits = {"LVEDV": (100, 200), "RVEDV": (50, 250), "MyoEDV": (50, 150), "LVESV": (10, 160), "RVESV": (30, 120)}
    limits["MyoESV"] = (50, 170)
    for k, each in enumerate(NAMES):
        tool.population.low[k], tool.population.high[k] = limits[each]
    values = torch.tensor([[150.0, 140, 110, 75, 85, 115]])
    assert tool.allowed(values, name, change).tolist() == [ok]


def test_a_refusal_names_attribute_value_and_range():
    tool = counterfactuals()
    tool.population.low[0], tool.population.high[0] = 100.0, 200.0
    values = MEANS.repeat(2, 1)
    first, second = tool.refusals(values, "LVEDV", torch.tensor([60.0, 20.0]))
    assert str(first) == (
        "LVEDV of 210.0 mL is outside the trained range of 100 to 200 mL; to the model this heart has 150.0 mL, which "
        "leaves changes from -50.0 to +50.0 mL"
    )
    assert second is None
    (refusal,) = tool.refusals(values[:1] + torch.tensor([-49.96, 0, 0, 0, 0, 0]), "LVEDV", -1.0)
    assert "this heart has 100.0 mL, which leaves changes from +0.0 to +99.9 mL" in str(refusal)
    (refusal,) = tool.refusals(values[:1] + torch.tensor([0.0, 0, 0, 60, 0, 0]), "LVEDV", -40.0)
    assert "LVEDV of 110 mL is not possible: LVEDV of 110 mL has to be above LVESV of 130 mL" in str(refusal)
    (refusal,) = tool.refusals(values[:1] + torch.tensor([70.0, 0, 0, 0, 0, 0]), "LVEDV", 20.0)
    assert str(refusal).endswith("has 220.0 mL, which leaves changes from -120.0 to -20.0 mL")


@pytest.mark.parametrize(("name", "amount"), [("LVEDV", -60.0), ("LVESV", 40.0), ("RVEDV", 500.0), ("RVESV", 90.0)])
def test_the_changes_that_a_refusal_names_are_not_refused(name, amount):
    tool = counterfactuals()
    values = MEANS[None] + torch.tensor([[0.0, 0, 0, 55, 0, 0]])
    (refusal,) = tool.refusals(values, name, amount)
    ends = [float(end) for end in re.search(r"leaves changes from (\S+) to (\S+) mL", str(refusal)).groups()]
    for end, beyond in zip(ends, (-0.3, 0.3), strict=True):
        assert tool.allowed(values, name, end).tolist() == [True]
        assert tool.allowed(values, name, end + beyond).tolist() == [False]


def test_a_heart_without_a_possible_change_is_told_so():
    tool = counterfactuals()
    tool.population.low[0] = 100.0
    tool.population.high[0] = 120.0
    (refusal,) = tool.refusals(MEANS[None] + torch.tensor([[0.0, 0, 0, 55, 0, 0]]), "LVEDV", -60.0)
    assert str(refusal).endswith("to the model this heart has 150.0 mL, and no change of it can be asked for")


def test_in_the_population_both_phases_become_smaller():
    tool = counterfactuals()
    tool.population.low[0] = 20.0
    values = torch.tensor([[150.0, 160, 110, 120, 80, 115]])
    assert tool.allowed(values, "LVEDV", -35.0).tolist() == [False]
    assert tool.allowed(values, "LVEDV", -35.0, IN_POPULATION).tolist() == [True]


def test_a_volume_below_zero_is_refused():
    tool = counterfactuals()
    tool.population.low[3] = -20.0
    (refusal,) = tool.refusals(MEANS[None], "LVESV", -75.0)
    assert "this would leave LVESV at -5 mL; it has to be above 0" in str(refusal)


def test_a_signed_attribute_may_be_below_zero():
    name = next(iter(SIGNED))
    assert impossible(name, {name: 5.0}, {name: -5.0}) is None
    assert impossible("LVEDV", {"LVEDV": 5.0}, {"LVEDV": -5.0}) is not None
    assert impossible("LVEDV", {"LVEDV": 5.0, "MyoEDV": -2.0}, {"LVEDV": 25.0, "MyoEDV": -2.0}) is None  # it was so


def test_what_follows_in_the_population_must_be_possible_too():
    before = {"LVEDV": 150.0, "RVEDV": 120.0, "LVESV": 60.0, "RVESV": 116.0}
    crossed = before | {"LVEDV": 100.0, "RVEDV": 90.0, "RVESV": 92.0}
    assert "RVEDV of 90 mL has to be above RVESV of 92 mL" in str(impossible("LVEDV", before, crossed))
    already = before | {"RVESV": 130.0}  # as the model sees it: no fault of a request that leaves it alone
    assert impossible("LVEDV", already, already | {"LVEDV": 140.0}) is None


@pytest.mark.parametrize("value", [1e39, 10**20, 10**400, float("nan"), True, "20"])
def test_a_change_that_no_heart_has_is_no_number(value):
    with pytest.raises(RequestError, match="is no number; expected one in mL"):
        Request("LVEDV", change=value)
    with pytest.raises(ValueError, match="page_changes is"):
        check_changes([value], "page_changes")


def test_numbers_of_numpy_are_numbers():
    asked = Request("LVEDV", change=np.int64(20))
    assert (asked.name, type(asked.change)) == ("LVEDV_+20", float)
    assert Request("LVEDV", target=np.float32(150)) == Request("LVEDV", target=150)


def test_a_change_of_nothing_is_refused():
    with pytest.raises(RequestError, match="change 0 of LVEDV asks for nothing"):
        Request("LVEDV", change=0.0)


def test_in_the_population_the_asked_attribute_costs_nothing_to_move():
    tool, codes = counterfactuals(), cohort(3, seed=2)
    tool.cost *= 100
    changed = tool.change(codes, "LVEDV", 15.0, IN_POPULATION)
    assert torch.allclose(tool.residuals(codes, changed, "LVEDV", 15.0, IN_POPULATION)[:, 0], torch.zeros(3), atol=0.2)


def test_a_refusal_in_the_population_promises_the_trained_range_alone():
    tool = counterfactuals()
    values = MEANS[None] + torch.tensor([[0.0, 0, 0, 55, 0, 0]])
    (refusal,) = tool.refusals(values, "LVEDV", 500.0, IN_POPULATION)
    low = tool.population.low[0] - values[0, 0].item()
    assert low < values[0, 3] - values[0, 0]  # what all else equal would leave
    least = re.search(r"of which the trained range alone leaves changes from (\S+) to", str(refusal))[1]
    assert float(least) == pytest.approx(low, abs=0.1)


def test_distances_are_in_standard_deviations_of_the_training_codes():
    tool, codes = counterfactuals(), cohort(2, seed=1)
    changed = codes + torch.tensor([[0.0] * 8, [0, 0, 0.3, 0, -0.6, 0, 0, 0]])
    expected = 0.6 / tool.population.spread[4]
    assert torch.allclose(tool.distance(codes, changed), torch.tensor([0, expected]), atol=1e-5)


def test_what_falls_with_an_attribute_is_not_followed_backwards():
    """Lines of few subjects can contradict each other: then nothing is said to follow."""
    tool = counterfactuals()
    state = tool.population.state() | {"slopes": (-np.array(tool.population.slopes)).tolist()}
    tool = Counterfactuals(tool.network, STACK, SPACING, type(tool.population).from_state(state))
    expected = tool.expected(MEANS[None], "LVEDV", torch.tensor([20.0]), IN_POPULATION) - MEANS
    assert torch.allclose(expected, torch.tensor([[20.0, 0, 0, 0, 0, 0]]))


@pytest.mark.parametrize("changes", [[], 10, "10", [0, 5], [5, 5], [True, 5], ["5"], [float("nan")], [10**400], [[5]]])
def test_changes_that_cannot_be_asked_for_name_their_key(changes):
    with pytest.raises(ValueError, match=r"page_changes is .*expected a list of different numbers in mL"):
        check_changes(changes, "page_changes")


def test_what_the_model_does_not_know_is_refused():
    tool, codes = counterfactuals(), cohort(1)
    with pytest.raises(RequestError, match=r"not trained on attribute 'LVEF'; it has LVEDV, RVEDV, MyoEDV"):
        tool.change(codes, "LVEF", 5.0)
    with pytest.raises(RequestError, match="kind 'other' is unknown; expected one of all_else_equal, population"):
        tool.change(codes, "LVEDV", 5.0, "other")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"attribute": None, "change": 5}, "name the one to change, such as --attribute LVEDV"),
        ({"attribute": "LVEDV"}, "either --change or --target, in mL; neither is given"),
        ({"attribute": "LVEDV", "change": 5, "target": 150}, "either --change or --target, in mL; both are given"),
        ({"attribute": "LVEDV", "change": "much"}, "change 'much' of LVEDV is no number"),
        ({"attribute": "LVEDV", "target": float("inf")}, "target inf of LVEDV is no number"),
        ({"attribute": "LVEDV", "change": True}, "change True of LVEDV is no number"),
        ({"attribute": "LVEDV", "change": 10**400}, "of LVEDV is no number"),
        ({"attribute": "LVEDV", "change": 5, "kind": "x"}, "kind 'x' is unknown"),
    ],
)
def test_a_broken_request_names_its_key(keys, message):
    with pytest.raises(RequestError, match=message):
        Request(**keys)


def test_a_request_has_a_name_and_amounts():
    values = torch.tensor([100.0, 160.0])
    change, target = Request("LVEDV", change=20), Request("LVEDV", target=150.0, kind=IN_POPULATION)
    assert (change.name, target.name) == ("LVEDV_+20", "LVEDV_to_150_population")
    assert Request("LVESV", change=-7.5, kind=ALL_ELSE_EQUAL).name == "LVESV_-7.5"
    assert change.amounts(values).tolist() == [20, 20]
    assert target.amounts(values).tolist() == [50, -10]
