import pytest
import torch
from monai.data import DataLoader
from monai.engines import SupervisedTrainer

from scripts.engines import prepare_batch
from scripts.evaluation.ceiling import StandardizedError
from scripts.evaluation.fitting import fit_once
from tests.evaluation.test_ceiling import regressor


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


def fit(folder, settings=None, epochs=1, network=None):
    """Fit a network, or load what is in the folder."""
    network = network or regressor()
    keys = {"folder": "ceiling_dir", "learning_rate": "ceiling_learning_rate"}
    return fit_once(network, trainer(network, epochs), folder, settings or {}, "judge", keys)


def test_a_network_learns_and_is_not_trained_twice(tmp_path):
    images = torch.stack([torch.full((1, 16, 16), k / 8) for k in (1, 6)])
    first = fit(tmp_path, {"seed": 0}, epochs=30).eval()
    low, high = first(images)[:, 0].tolist()
    assert high - low > 3  # of 5
    torch.testing.assert_close(fit(tmp_path, {"seed": 0}, epochs=0).eval()(images), first(images))


def test_a_network_of_other_data_is_refused(tmp_path):
    fit(tmp_path, {"cohort": "a"})
    with pytest.raises(ValueError, match=r"judge.pt is of other.*cohort is b, was a.*--ceiling_dir"):
        fit(tmp_path, {"cohort": "b"})


def test_a_network_of_a_version_that_knew_fewer_settings_is_refused(tmp_path):
    fit(tmp_path, {"common": {"seed": 0}})
    with pytest.raises(ValueError, match=r"strides is \[1, 2\], was not known.*remove it and judge\.pt"):
        fit(tmp_path, {"common": {"seed": 0, "strides": (1, 2)}})


def test_a_network_of_unknown_origin_is_refused(tmp_path):
    fit(tmp_path)
    (tmp_path / "judge.json").unlink()
    with pytest.raises(ValueError, match=r"judge.json' is missing"):
        fit(tmp_path)


def test_broken_settings_of_a_network_are_named(tmp_path):
    fit(tmp_path)
    (tmp_path / "judge.json").write_text("null")
    with pytest.raises(ValueError, match=r"judge\.json' holds a NoneType, expected an object; remove it and judge\.pt"):
        fit(tmp_path)


def test_a_network_that_diverged_is_not_kept(tmp_path):
    network = regressor()
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="ceiling_learning_rate"):
        fit(tmp_path, network=network)
    assert not (tmp_path / "judge.pt").exists()
