from __future__ import annotations

import warnings

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.transforms import RandGaussianNoise

from scripts.handlers import CodeCollector, CollapseGuard, EpochSeed, LinearDecay, LossGuard, Pictures, ShortScans
from scripts.networks import VariationalAutoencoder
from scripts.views import View


def drawn(epochs, start=0, workers=0, seed=5):
    """What a training with random transforms sees: the first values of each batch, and its own noise."""
    seen = []
    data = Dataset([torch.full((1, 4), float(i)) for i in range(6)], RandGaussianNoise(prob=1))
    engine = Engine(lambda engine, batch: seen.append((batch[:, 0, 0].tolist(), torch.rand(1).item())))
    engine.data_loader = DataLoader(data, batch_size=3, shuffle=True, num_workers=workers)
    EpochSeed(seed).attach(engine)
    engine.add_event_handler(Events.STARTED, lambda engine: setattr(engine.state, "epoch", start))
    engine.run(engine.data_loader, max_epochs=epochs)
    return seen


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_are_the_same_however_they_are_reached(workers):
    whole = drawn(3, workers=workers)
    assert whole == drawn(3, workers=workers)
    assert whole[4:] == drawn(3, start=2, workers=workers)
    assert whole[:2] != whole[2:4]


def test_learning_rate_falls_linearly_even_after_a_resume():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer, rates = torch.optim.Adam([weight], 0.1), []
    engine = Engine(lambda engine, batch: rates.append(optimizer.param_groups[0]["lr"]))
    LinearDecay([optimizer], 0.2, 5).attach(engine)
    optimizer.load_state_dict(torch.optim.Adam([weight], 7.0).state_dict())  # replaces the parameter groups
    engine.run([0], max_epochs=5)
    assert rates == pytest.approx([0.1, 0.08, 0.06, 0.04, 0.02])


def engine_with(terms):
    engine = Engine(lambda engine, batch: {"terms": {name: torch.tensor(value) for name, value in terms.items()}})
    LossGuard().attach(engine)
    return engine


def test_a_loss_that_is_not_finite_stops_at_once_and_is_named():
    with pytest.raises(
        FloatingPointError, match=r"kl_real not finite in epoch 1, iteration 1\. Run .* lower --learning_rate"
    ):
        engine_with({"encoder_loss": 1.0, "kl_real": float("nan")}).run([0], max_epochs=1)


def test_vanished_adversarial_gradient_is_reported():
    terms = {"log_exp_elbo_reconstructed": -30.0, "log_exp_elbo_generated": -40.0}
    with pytest.warns(UserWarning, match=r"vanished in epoch 1 \(log_exp_elbo -30\.0\).*--beta_neg"):
        engine_with(terms).run([0], max_epochs=1)


def test_an_exploding_divergence_is_reported():
    with pytest.warns(UserWarning, match=r"divergence explodes: kl_real is 7e\+03 in epoch 1, over 50 .*--beta_kl"):
        engine_with({"kl_real": 7000.0}).run([0], max_epochs=1)


def validated(codes):
    """Warnings of as many validations as there are sets of codes."""
    engine = Engine(lambda engine, batch: {"codes": batch})
    CodeCollector().attach(engine)
    CollapseGuard(2).attach(engine)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for epoch, each in enumerate(codes, start=1):  # as the trainer runs its evaluator
            engine.state.epoch = epoch - 1
            engine.run([each], max_epochs=epoch)
    return [str(warning.message) for warning in found]


def test_codes_that_collapse_are_reported_once_they_stay_so():
    varied = torch.tensor([[0.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    flat = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.05, 1.0], [0.0, 0.05, 1.0]])
    assert validated([flat, varied, flat, varied]) == []
    (message,) = validated([varied, flat, flat])
    assert message.startswith("posterior collapse: of 3 dimensions, 1 vary among the 3 validation subjects in epoch 3")
    assert "--beta_kl" in message
    assert validated([flat[:1], flat[:1]]) == []  # one subject tells nothing


@pytest.mark.parametrize(
    "terms", [{"kl_real": 6000.0}, {"log_exp_elbo_reconstructed": -2.0, "log_exp_elbo_generated": -40.0}]
)
def test_no_false_alarm(terms, recwarn):
    engine_with(terms).run([0], max_epochs=1)
    assert not recwarn


def test_pictures_are_drawn_when_due(tmp_path):
    network = VariationalAutoencoder(2, (16, 16), (4, 8), 6, "instance").eval()
    image = torch.rand(5, 2, 16, 16)
    output = {"image": image, "pred": image, "codes": torch.randn(5, 6)}
    engine = Engine(lambda engine, batch: output)
    CodeCollector().attach(engine)
    Pictures(tmp_path, network, ["LVEDV", "RVEDV"], ["ED", "ES"], interval=2, final_epoch=5, subjects=3).attach(engine)
    engine.run([0], max_epochs=1)
    assert not list((tmp_path / "pictures").iterdir())
    engine.run([0], max_epochs=2)
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["reconstructions.png", "traversals.png"]
    assert list((tmp_path / "tensorboard").iterdir())
    assert tuple(engine.state.codes[0].shape) == (5, 6)


def test_another_seed_draws_otherwise():
    assert drawn(1) == drawn(1, seed=5) != drawn(1, seed=6)


def test_each_epoch_is_judged_for_itself():
    values = iter([-2.0, -30.0])
    engine = Engine(lambda engine, batch: {"terms": {"log_exp_elbo_generated": torch.tensor(next(values))}})
    LossGuard().attach(engine)
    with pytest.warns(UserWarning, match="vanished in epoch 2"):
        engine.run([0], max_epochs=2)


def test_pictures_come_at_their_interval_and_at_the_end(tmp_path, monkeypatch):
    drawn_at = []
    monkeypatch.setattr(Pictures, "publish", lambda self, name, figure, epoch: drawn_at.append((name, epoch)))
    network = VariationalAutoencoder(2, (16, 16), (4, 8), 6, "instance").train()
    output = {"image": torch.rand(2, 2, 16, 16), "pred": torch.rand(2, 2, 16, 16), "codes": torch.randn(2, 6)}
    engine = Engine(lambda engine, batch: output)
    Pictures(tmp_path, network, [], ["ED", "ES"], interval=2, final_epoch=5).attach(engine)
    for epoch in range(1, 6):  # as the trainer runs its evaluator: anew for each epoch
        engine.state.epoch = epoch - 1
        engine.run([0], max_epochs=epoch)
    assert drawn_at == [("reconstructions", epoch) for epoch in (2, 4, 5)]


def test_walks_are_drawn_in_evaluation_mode_from_this_evaluation_alone(tmp_path):
    network = VariationalAutoencoder(2, (16, 16), (4, 8), 6, "batch").train()
    output = {"image": torch.rand(2, 2, 16, 16), "pred": torch.rand(2, 2, 16, 16), "codes": torch.randn(2, 6)}
    engine = Engine(lambda engine, batch: output)
    CodeCollector().attach(engine)
    Pictures(tmp_path, network, ["LVEDV"], ["ED", "ES"], interval=1, final_epoch=5).attach(engine)
    engine.run([0, 0], max_epochs=1)
    engine.state.epoch = 1
    engine.run([0, 0], max_epochs=2)
    assert len(engine.state.codes) == 2
    assert not network.training


def test_losses_are_read_at_their_interval_and_the_first_bad_one_is_named():
    engine = Engine(lambda engine, batch: {"terms": {"kl_real": float("nan") if batch == 0 else 1.0}})
    LossGuard(3).attach(engine)
    with pytest.raises(FloatingPointError, match="in epoch 1, iteration 1"):
        engine.run([0, 1, 2, 3, 4, 5], max_epochs=1)
    assert engine.state.iteration == 3


def test_losses_behind_the_last_interval_are_read_at_the_end_of_the_epoch():
    engine = Engine(lambda engine, batch: {"terms": {"kl_real": float("nan") if batch == 4 else 1.0}})
    LossGuard(3).attach(engine)
    with pytest.raises(FloatingPointError, match="in epoch 1, iteration 5"):
        engine.run([0, 1, 2, 3, 4], max_epochs=2)


def warnings_of_short_scans(view, *images):
    engine = Engine(lambda engine, batch: None)
    ShortScans(view).attach(engine)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        engine.run([{"image": image} for image in images], max_epochs=2)
    return [str(warning.message) for warning in found]


def test_scans_that_do_not_fill_the_stack_are_told_of_once():
    view = View(["ED"], "stack", stack_slices=4)
    whole, short = torch.ones(2, 2, 4, 8, 8)
    short[1, 3] = 0
    assert warnings_of_short_scans(view, whole) == []
    (message,) = warnings_of_short_scans(view, whole, short, short)
    assert message.startswith("1 of the first 2 scans do not fill the view's 4 slices of 10 mm")
    assert warnings_of_short_scans(View(["ED"]), torch.zeros(2, 1, 8, 8)) == []
