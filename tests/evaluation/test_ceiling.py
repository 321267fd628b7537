import pytest
import torch

from scripts.evaluation.ceiling import AttributeRegressor, StandardizedError

ITEMS = [{"LV": 100.0 + k, "RV": 50.0 + 3 * k if k else None} for k in range(8)]


def regressor(channels=(4, 4), items=ITEMS):
    torch.manual_seed(0)
    return AttributeRegressor(1, (16, 16), channels, items, ["LV", "RV"])


def test_predictions_have_the_attributes_own_units():
    network = regressor()
    assert network.mean.tolist() == pytest.approx([103.5, 62.0])  # without the missing value
    with torch.no_grad():
        for parameter in network.network.parameters():
            parameter.zero_()
    assert network.eval()(torch.rand(1, 1, 16, 16))[0].tolist() == pytest.approx([103.5, 62.0])


def test_the_error_counts_in_standard_deviations_and_leaves_missing_values_out():
    network = regressor()
    attributes = torch.tensor([[100.0, float("nan")], [104.0, 60.0]])
    off = attributes.nan_to_num() + 2 * network.std
    assert float(StandardizedError(network)(off, attributes)) == pytest.approx(4)


def test_a_missing_value_leaves_no_trace_in_the_gradient():
    network = regressor()
    prediction = torch.zeros(2, 2, requires_grad=True)
    StandardizedError(network)(prediction, torch.tensor([[1.0, float("nan")], [2.0, 3.0]])).backward()
    assert prediction.grad.isfinite().all()
    assert float(prediction.grad[0, 1]) == 0
    assert (prediction.grad.flatten()[[0, 2, 3]] != 0).all()


def test_a_constant_attribute_in_whole_numbers_is_no_obstacle():
    network = regressor(items=[{"LV": float(k), "RV": 1} for k in range(4)])
    assert network.std.tolist() == pytest.approx([1.118, 1], abs=1e-3)
