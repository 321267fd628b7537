from __future__ import annotations

import copy

import pytest
import torch

from scripts.checkpoint import TrainingCheckpoint, read
from scripts.engines import IntrospectiveTrainer, VAETrainer
from scripts.reading import HeartReader
from scripts.views import View
from tests.test_changes import VIEW, make_loss, make_trainer


def hearts(count=6, shift=0):
    """Bright squares on dark images of two slices and phases, which the maps say are LV."""
    values = torch.zeros(count, VIEW.channels, 16, 16)
    maps = VIEW.slice_maps(values)
    for number in range(count):
        place = slice(3 + number % 3, 9 + number % 3)
        values[number, : VIEW.images, place, slice(3 + shift, 9 + shift)] = 1
        maps[number, :, :, 0, place, 3:9] = 1  # a view of the values
    return values


def learned():
    """A reader that has seen squares for some steps, and its errors before and after."""
    torch.manual_seed(0)
    reader = HeartReader(VIEW, (8, 16), 0.01)
    before = reader.scan_error(hearts()).mean().item()
    for _ in range(60):
        reader.optimizer.zero_grad()
        reader.scan_error(hearts(), reader.draw_blur(torch.device("cpu"))).mean().backward()
        reader.optimizer.step()
    return reader, before, reader.scan_error(hearts()).mean().item()


@pytest.fixture(scope="module")
def reader():
    reader, before, after = learned()
    assert after < before / 3
    return reader


def test_it_finds_hearts_that_are_drawn_elsewhere_than_their_maps(reader):
    assert (reader(hearts(shift=4)) > 2 * reader(hearts())).all()


def test_images_learn_from_it_and_maps_do_not(reader):
    values = hearts(shift=4).requires_grad_()
    reader(values).sum().backward()
    assert values.grad[:, : VIEW.images].abs().max() > 0
    assert values.grad[:, VIEW.images :].abs().max() == 0
    moved = values.detach() - 0.2 * values.grad / values.grad.abs().max()
    assert reader(moved).sum() < reader(values).sum()


def test_maps_are_not_looked_at_while_reading(reader):
    values = hearts()
    blank = values.clone()
    blank[:, VIEW.images :] = 0
    assert torch.equal(reader.read(values), reader.read(blank))


def test_a_view_without_maps_is_refused():
    with pytest.raises(ValueError, match="reading_weight needs occupancy maps: --anatomy masks"):
        HeartReader(View(slices="stack"), (8, 16), 0.01)


def test_half_of_the_scans_are_blurred():
    torch.manual_seed(0)
    blurs = [HeartReader.draw_blur(torch.device("cpu")) for _ in range(200)]
    assert 80 < sum(blur is None for blur in blurs) < 120


def test_the_reader_learns_from_the_blurred_scan_and_the_maps_as_they_are(reader):
    def lost(images):
        seen.append(images)
        return torch.zeros_like(images)

    seen = []
    scans = hearts()
    blurred = reader.scan_error(scans, lost)
    assert torch.equal(seen[0], scans[:, : VIEW.images])
    assert (blurred > 1.5 * reader.scan_error(scans)).all()


def trainer_with_reader(kind, reading, **kwargs):
    torch.manual_seed(1)
    reader = HeartReader(VIEW, (4, 8), 0.01).double()
    trainer = make_trainer(kind, make_loss(reader=reader, reading=reading), **kwargs)
    torch.manual_seed(3)
    trainer.run()
    decoder = {name: value.grad.clone() for name, value in trainer.network.decoder.named_parameters()}
    return trainer, decoder, reader.state_dict()


@pytest.mark.parametrize("kind", [VAETrainer, IntrospectiveTrainer])
def test_a_training_teaches_both_the_reader_and_the_decoder(kind):
    torch.manual_seed(1)
    untaught = HeartReader(VIEW, (4, 8), 0.01).double().state_dict()
    (_, without, first), (trainer, with_it, second) = (trainer_with_reader(kind, weight) for weight in (0, 2))
    assert any(not torch.equal(untaught[name], first[name]) for name in untaught)
    assert all(torch.equal(first[name], second[name]) for name in first)  # decoded images teach the reader nothing
    assert any(not torch.allclose(without[name], with_it[name]) for name in without)
    assert trainer.state.output["terms"]["change_loss"] > 0


def test_micro_batches_teach_the_reader_the_same():
    whole, parts = (trainer_with_reader(VAETrainer, 2, micro_batch_size=size) for size in (None, 3))
    for one, other in zip(whole[1:], parts[1:], strict=True):
        assert all(torch.allclose(one[name], other[name], rtol=1e-8, atol=1e-10) for name in one)


def test_a_resumed_training_goes_on_with_its_reader(tmp_path):
    trainer, _, state = trainer_with_reader(VAETrainer, 2)
    reader = trainer.reader
    optimizers = {"optimizer": trainer.optimizer, "reader_optimizer": reader.optimizer}
    TrainingCheckpoint(tmp_path, trainer.network, optimizers, modules={"reader": reader}).keep(trainer)
    state = copy.deepcopy(state)
    steps = copy.deepcopy(reader.optimizer.state_dict()["state"])
    assert set(state) == set(read(tmp_path / "last.pt")["reader"])
    other = HeartReader(VIEW, (4, 8), 0.01).double()
    optimizers = {"optimizer": trainer.optimizer, "reader_optimizer": other.optimizer}
    TrainingCheckpoint(tmp_path, trainer.network, optimizers, modules={"reader": other}).restore(
        trainer, tmp_path / "last.pt"
    )
    assert all(torch.equal(state[name], value) for name, value in other.state_dict().items())
    assert all(
        torch.equal(steps[key]["exp_avg"], value["exp_avg"])
        for key, value in other.optimizer.state_dict()["state"].items()
    )
