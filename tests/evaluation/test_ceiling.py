import pytest
import torch
from monai.data import DataLoader
from monai.engines import SupervisedTrainer

from scripts.engines import prepare_batch
from scripts.evaluation.ceiling import AttributeRegressor, StandardizedError, fit

ITEMS = [{"LV": 100.0 + k, "RV": 50.0 + 3 * k if k else None} for k in range(8)]


def regressor(channels=(4, 4), items=ITEMS):
    torch.manual_seed(0)
    return AttributeRegressor(1, (16, 16), channels, items, ["LV", "RV"])


def trainer(network, epochs=30):
    """Images whose brightness is the attribute."""
    data = [
        {"image": torch.full((1, 16, 16), k / 8), "attributes": torch.tensor([100.0 + k, 50.0 + 3 * k])}
        for k in range(8)
    ]
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=DataLoader(data, batch_size=4),
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), 0.01),
        loss_function=StandardizedError(network),
        prepare_batch=prepare_batch,
        decollate=False,
    )


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


def test_a_ceiling_that_diverged_is_not_kept(tmp_path):
    network = regressor()
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="ceiling_learning_rate"):
        fit(network, trainer(network, 1), tmp_path, {})
    assert not (tmp_path / "ceiling.pt").exists()


def test_a_ceiling_of_unknown_origin_is_refused(tmp_path):
    network = regressor()
    fit(network, trainer(network, 1), tmp_path, {})
    (tmp_path / "ceiling.json").unlink()
    with pytest.raises(ValueError, match=r"ceiling.json' is missing"):
        fit(network, trainer(network, 1), tmp_path, {})


def test_the_ceiling_learns_and_is_not_trained_twice(tmp_path, capsys):
    network = regressor()
    images = torch.stack([torch.full((1, 16, 16), k / 8) for k in (1, 6)])
    fit(network, trainer(network), tmp_path, {"seed": 0})
    low, high = network.eval()(images)[:, 0].tolist()
    assert high - low > 3  # of 5
    again = regressor()
    fit(again, trainer(again, epochs=0), tmp_path, {"seed": 0})
    torch.testing.assert_close(again.eval()(images), network(images))


def test_the_ceiling_of_other_data_is_refused(tmp_path):
    network = regressor()
    fit(network, trainer(network, 1), tmp_path, {"cohort": "a"})
    with pytest.raises(ValueError, match=r"cohort is b, was a.*--ceiling_dir"):
        fit(network, trainer(network, 1), tmp_path, {"cohort": "b"})
