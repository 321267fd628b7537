from __future__ import annotations

import errno
import itertools
import json
import socket
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events

from scripts.checkpoint import TrainingCheckpoint, differences, find_weights, load_weights, read, save, write
from scripts.storage import StorageError
from tests.broken import NO_OBJECTS


class Run:
    """A training of one weight by one step an epoch, whose validation metric is prescribed."""

    def __init__(self, folder, metrics, **kwargs):
        torch.manual_seed(0)
        self.network = torch.nn.Linear(1, 1)
        optimizer = torch.optim.Adam(self.network.parameters(), 0.1)
        self.evaluator, self.trainer = Engine(lambda engine, batch: None), Engine(self.step)
        self.optimizer, self.metrics = optimizer, metrics
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, self.validate)
        checkpoint = TrainingCheckpoint(
            folder, self.network, {"optimizer": optimizer}, self.evaluator, "metric", **kwargs
        )
        checkpoint.attach(self.trainer)

    def step(self, engine, batch):
        self.optimizer.zero_grad()
        (self.network(torch.ones(1, 1)) - 3).square().sum().backward()
        self.optimizer.step()

    def validate(self, engine):
        value = self.metrics[engine.state.epoch - 1]
        if value is not None:
            self.evaluator.state.metrics = {"metric": value}
            self.evaluator.state.epoch = engine.state.epoch

    def run(self, epochs):
        self.trainer.run([0], max_epochs=epochs)
        return self


def test_best_is_a_copy_of_the_best_epoch(tmp_path):
    weights = []
    run = Run(tmp_path, [3, 1, 2, 2])
    run.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: weights.append(run.network.weight.item()))
    run.run(4)
    assert read(tmp_path / "model.pt")["weight"].item() == weights[1]
    assert read(tmp_path / "last.pt")["network"]["weight"].item() == weights[3] != weights[1]


def test_epochs_without_a_validation_select_nothing(tmp_path):
    weights = []
    run = Run(tmp_path, [None, 3, None, 2, None])
    run.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: weights.append(run.network.weight.item()))
    run.run(5)
    assert read(tmp_path / "model.pt")["weight"].item() == weights[3]
    assert read(tmp_path / "last.pt")["best_epoch"] == 4


@pytest.mark.parametrize("content", [b"text", b""])
def test_a_file_that_is_no_checkpoint(tmp_path, content):
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.pt' cannot be read \([^)]"):
        read(tmp_path / "model.pt")


def test_a_checkpoint_of_something_else(tmp_path):
    torch.save([1, 2], tmp_path / "model.pt")
    with pytest.raises(ValueError, match="holds a list; expected the weights"):
        read(tmp_path / "model.pt")


def test_the_best_of_the_warmup_is_forgotten(tmp_path):
    weights = []
    run = Run(tmp_path, [1, 5, 4], warmup_epochs=1)
    run.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: weights.append(run.network.weight.item()))
    run.run(3)
    assert read(tmp_path / "model.pt")["weight"].item() == weights[2]


def test_patience_stops_in_time(tmp_path):
    run = Run(tmp_path, [3, 1, 2, 2, 2, 2], patience=2).run(6)
    assert run.trainer.state.epoch == 4


def test_resumed_equals_uninterrupted(tmp_path):
    whole = Run(tmp_path / "whole", [5, 4, 3, 2]).run(4)
    Run(tmp_path / "parts", [5, 4, 3, 2]).run(2)
    resumed = Run(tmp_path / "parts", [5, 4, 3, 2]).run(4)
    assert torch.equal(resumed.network.weight, whole.network.weight)
    assert read(tmp_path / "parts" / "last.pt")["epoch"] == 4


def test_a_finished_training_says_so_and_changes_nothing(tmp_path, capsys):
    weight = Run(tmp_path, [1, 1]).run(2).network.weight.item()
    assert Run(tmp_path, [1, 1]).run(2).network.weight.item() == weight
    assert "Nothing is left to train" in capsys.readouterr().out


def test_patience_that_ran_out_holds_after_a_resume(tmp_path):
    Run(tmp_path, [1, 2, 2, 2, 2], patience=2).run(5)
    assert Run(tmp_path, [1, 2, 2, 2, 2], patience=2).run(5).trainer.state.epoch == 3


def test_the_learning_rate_of_a_resume_is_the_configs(tmp_path):
    Run(tmp_path, [3, 2]).run(1)
    resumed = Run(tmp_path, [3, 2])
    resumed.optimizer.param_groups[0]["lr"] = 0.01
    assert resumed.run(2).optimizer.param_groups[0]["lr"] == 0.01


def test_a_training_is_not_resumed_with_other_settings(tmp_path):
    Run(tmp_path, [3, 2], settings={"gamma": 1, "size": (2, 2)}).run(1)
    Run(tmp_path, [3, 2], settings={"gamma": 1, "size": (2, 2)}).run(2)
    with pytest.raises(ValueError, match=r"other settings: gamma is 0, was 1.*--output_dir"):
        Run(tmp_path, [3, 2], settings={"gamma": 0, "size": (2, 2)}).run(2)


@pytest.mark.parametrize("broken", ["metric", "weights"])
def test_what_is_not_finite_is_not_saved(tmp_path, broken):
    run = Run(tmp_path, [3, float("nan") if broken == "metric" else 2])
    if broken == "weights":
        run.trainer.add_event_handler(
            Events.EPOCH_STARTED(once=2), lambda _: torch.nn.init.constant_(run.network.weight, float("inf"))
        )
    with pytest.raises(FloatingPointError, match="not finite after epoch 2, which is not saved"):
        run.run(2)
    assert read(tmp_path / "last.pt")["epoch"] == 1


def test_weights_are_not_used_with_other_settings(tmp_path):
    Run(tmp_path, [1], settings={"spacing": 1.8, "seed": 0, "cohort": "ab"}).run(1)
    load_weights(torch.nn.Linear(1, 1), tmp_path / "model.pt", {"spacing": 1.8})
    with pytest.raises(ValueError, match=r"spacing is 2\.5, was 1\.8\. Use the configs [^;]* of that training\.$"):
        load_weights(torch.nn.Linear(1, 1), tmp_path / "model.pt", {"spacing": 2.5})
    with pytest.raises(ValueError, match=r"cohort is cd, was ab.* of that training; .* set --other_cohort True\.$"):
        load_weights(torch.nn.Linear(1, 1), tmp_path / "model.pt", {"spacing": 1.8, "cohort": "cd"})


@pytest.mark.parametrize("content", NO_OBJECTS)
def test_broken_settings_are_named_and_not_left_out(content, tmp_path):
    Run(tmp_path, [2, 1], settings={"spacing": 1.8}).run(1)
    (tmp_path / "settings.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"settings\.json' .*--output_dir"):
        load_weights(torch.nn.Linear(1, 1), tmp_path / "model.pt", {"spacing": 1.8})
    with pytest.raises(ValueError, match=r"settings\.json' .*--output_dir"):
        Run(tmp_path, [2, 1], settings={"spacing": 1.8}).run(2)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epoch", "x"),
        ("epoch", -5),
        ("epoch", 1.5),
        ("epoch", True),
        ("best", float("nan")),
        ("best", -float("inf")),
        ("best", None),
        ("best_epoch", 2),
        ("best_epoch", "x"),
        ("optimizer", None),
        ("optimizer", {}),
        ("optimizer", {"state": {}, "param_groups": []}),
        ("network", 1),
        ("network", {}),
    ],
)
def test_a_state_that_no_training_has_left_is_refused(key, value, tmp_path):
    Run(tmp_path, [2, 1]).run(1)
    save(read(tmp_path / "last.pt") | {key: value}, tmp_path / "last.pt")
    with pytest.raises(ValueError, match=r"last\.pt' (is not|holds|is of another)"):
        Run(tmp_path, [2, 1]).run(2)


@pytest.mark.parametrize("key", ["network", "optimizer", "epoch", "best", "best_epoch"])
def test_a_state_that_lacks_something_is_refused(key, tmp_path):
    Run(tmp_path, [2, 1]).run(1)
    state = read(tmp_path / "last.pt")
    del state[key]
    save(state, tmp_path / "last.pt")
    with pytest.raises(
        ValueError, match=rf"last\.pt' is not the state of this training: {key} is missing\. .*--resume"
    ):
        Run(tmp_path, [2, 1]).run(2)


def test_weights_are_no_state_of_a_training(tmp_path):
    Run(tmp_path, [2, 1]).run(1)
    (tmp_path / "last.pt").write_bytes((tmp_path / "model.pt").read_bytes())
    with pytest.raises(ValueError, match=r"last\.pt' is not the state of this training: network is missing"):
        Run(tmp_path, [2, 1]).run(2)


def test_a_scale_of_losses_that_is_none_is_refused(tmp_path):
    Run(tmp_path, [3, 2]).run(1)
    save(read(tmp_path / "last.pt") | {"loss_scaler": {"x": 1}}, tmp_path / "last.pt")
    run = Run(tmp_path, [3, 2])
    run.trainer.loss_scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(ValueError, match=r"last\.pt' .*loss_scaler does not fit"):
        run.run(2)


def test_a_training_of_unknown_settings_is_not_resumed(tmp_path):
    Run(tmp_path, [3, 2], settings={"spacing": 1.8}).run(1)
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"settings\.json' is missing, so that last\.pt .*--resume False"):
        Run(tmp_path, [3, 2], settings={"spacing": 2.5}).run(2)
    assert Run(tmp_path, [3, 2], settings={"spacing": 2.5}, resume=False).run(1).trainer.state.epoch == 1


def test_a_link_to_a_share_that_is_not_mounted_begins_nothing_anew(tmp_path):
    Run(tmp_path, [3, 2]).run(1)
    (tmp_path / "last.pt").unlink()
    (tmp_path / "last.pt").symlink_to(tmp_path / "share" / "last.pt")
    with pytest.raises(
        FileNotFoundError, match=r"last\.pt' is a link to '.*share/last\.pt', which is not there; mount"
    ):
        Run(tmp_path, [3, 2]).run(2)


def test_resume_can_be_declined(tmp_path):
    Run(tmp_path, [5, 4]).run(2)
    fresh = Run(tmp_path, [5, 4], resume=False).run(1)
    assert fresh.trainer.state.epoch == 1
    assert read(tmp_path / "last.pt")["epoch"] == 1


def test_a_training_cut_off_before_it_has_anything_leaves_the_former_one_and_its_settings(tmp_path):
    Run(tmp_path, [3, 2], settings={"gamma": 1}).run(2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    anew = Run(tmp_path, [3, 2], settings={"gamma": 2}, resume=False)
    anew.trainer.add_event_handler(Events.ITERATION_COMPLETED, cut_off)
    with pytest.raises(KeyboardInterrupt):
        anew.run(2)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_full_disk_leaves_the_former_training(tmp_path, monkeypatch):
    Run(tmp_path, [3, 2], settings={"gamma": 1}).run(2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for name in ("last.pt", "model.pt"):
        monkeypatch.setattr("scripts.checkpoint.write", fill_at(name))
        with pytest.raises(StorageError, match=f"{name}' cannot be written"):
            Run(tmp_path, [3, 2], settings={"gamma": 2}, resume=False).run(2)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("renamed", [0, 1, 2])
def test_a_training_cut_off_while_it_replaces_another_is_begun_anew(renamed, tmp_path, monkeypatch):
    Run(tmp_path, [3, 2], settings={"gamma": 1}).run(2)
    former, replace = (tmp_path / "model.pt").read_bytes(), Path.replace
    with monkeypatch.context() as patched:
        counted = itertools.count()
        patched.setattr(Path, "replace", lambda *paths: replace(*paths) if next(counted) < renamed else cut_off())
        with pytest.raises(KeyboardInterrupt):
            Run(tmp_path, [3, 2], settings={"gamma": 2}, resume=False).run(2)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == [{"settings.json"}, {"settings.json"}, {"settings.json", "model.pt"}][renamed]
    assert json.loads((tmp_path / "settings.json").read_text()) == {"gamma": 2 if renamed else 1}
    assert not (tmp_path / "model.pt").exists() or (tmp_path / "model.pt").read_bytes() != former
    assert Run(tmp_path, [3, 2], settings={"gamma": 2}).run(1).trainer.state.epoch == 1


def test_weights_of_others_are_not_left_beside_new_settings(tmp_path):
    Run(tmp_path, [3], settings={"gamma": 1}).run(1)
    Run(tmp_path, [None], settings={"gamma": 2}, resume=False).run(1)
    assert not (tmp_path / "model.pt").exists()


def test_a_training_without_best_weights_removes_none(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"of another program")
    run = Run(tmp_path, [None])
    trainer = Engine(run.step)
    TrainingCheckpoint(tmp_path, run.network, {"optimizer": run.optimizer}).attach(trainer)
    trainer.run([0], max_epochs=2)
    assert (tmp_path / "model.pt").read_bytes() == b"of another program"
    assert read(tmp_path / "last.pt")["epoch"] == 2


def fill_at(name):
    """A function that writes until the disk is full, at a file."""

    def write_or_fail(content, part):
        if part.name.endswith(name):
            raise OSError(errno.ENOSPC, "full")
        write(content, part)

    return write_or_fail


def cut_off(*_):
    raise KeyboardInterrupt


def test_another_architecture_is_named(tmp_path):
    save(torch.nn.Linear(3, 1).state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"another architecture: weight is \S+ \(1, 3\), the network's \S+ \(1, 2\)"):
        load_weights(torch.nn.Linear(2, 1), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"0\.weight is missing"):
        load_weights(torch.nn.Sequential(torch.nn.Linear(3, 1)), tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1, "of type int"),
        (torch.ones(1, 2).to_sparse(), "sparse"),
        (torch.ones(1, 2, device="meta"), "has no values"),
        (torch.ones(1, 2, dtype=torch.complex64), r"complex \(1, 2\), the network's floating-point \(1, 2\)"),
        (torch.ones(1, 2, dtype=torch.int8), "integer"),
        (torch.ones(1, 2, dtype=torch.bool), "boolean"),
    ],
)
def test_what_no_weights_can_be_is_named(value, words, tmp_path):
    network = torch.nn.Linear(2, 1)
    save(network.state_dict() | {"weight": value}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=rf"model\.pt' .*: weight .*{words}"):
        load_weights(network, tmp_path / "model.pt")


@pytest.mark.parametrize("value", [torch.ones(2), None, [1], OrderedDict()])
def test_something_in_the_place_of_weights_is_named(value, tmp_path):
    save({"network": value}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt' (holds a|is of another architecture)"):
        load_weights(torch.nn.Linear(2, 1), tmp_path / "model.pt")


def test_weights_of_another_precision_are_loaded_and_counts_stay_whole(tmp_path):
    network, other = (torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)) for _ in range(2))
    network[1].num_batches_tracked += 7
    save(network.half().state_dict(), tmp_path / "model.pt")
    load_weights(other, tmp_path / "model.pt")
    assert torch.equal(other[0].weight, network[0].weight.float())
    assert other[1].num_batches_tracked == 7
    save(network.state_dict() | {"1.num_batches_tracked": torch.tensor(7.5)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"num_batches_tracked is floating-point \(\), the network's integer"):
        load_weights(other, tmp_path / "model.pt")


def test_weights_come_from_either_file(tmp_path):
    run = Run(tmp_path, [1]).run(1)
    for name in ("model.pt", "last.pt"):
        assert torch.equal(load_weights(torch.nn.Linear(1, 1), tmp_path / name).weight, run.network.weight)


def test_a_file_that_is_cut_off(tmp_path):
    save({"weight": torch.rand(100)}, tmp_path / "model.pt")
    (tmp_path / "model.pt").write_bytes((tmp_path / "model.pt").read_bytes()[:-300])
    with pytest.raises(ValueError, match="cannot be read"):
        read(tmp_path / "model.pt")


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    torch.save(Engine, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="cannot be read"):
        read(tmp_path / "model.pt")


def test_weights_are_looked_for_in_two_places(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"neither .*out/model\.pt' nor .*models/model\.pt' exists; .*ckpt_path"
    ):
        find_weights(tmp_path / "out", tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.pt").touch()
    assert find_weights(tmp_path / "out", tmp_path) == str(tmp_path / "models" / "model.pt")


def test_an_interrupted_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    save({"a": torch.ones(1)}, tmp_path / "last.pt")

    def interrupted(content, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save({"a": torch.zeros(1)}, tmp_path / "last.pt")
    assert read(tmp_path / "last.pt")["a"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_a_checkpoint_names_neither_file_nor_machine(tmp_path):
    for name in ("one.pt", "two.pt"):
        save({"a": torch.ones(1)}, tmp_path / name)
    content = (tmp_path / "one.pt").read_bytes()
    assert content == (tmp_path / "two.pt").read_bytes()
    assert b"one" not in content
    assert socket.gethostname().encode() not in content


def test_of_equal_epochs_the_first_is_best(tmp_path):
    weights = []
    run = Run(tmp_path, [1, 1])
    run.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: weights.append(run.network.weight.item()))
    run.run(2)
    assert read(tmp_path / "model.pt")["weight"].item() == weights[0]


def test_a_resume_knows_the_best_and_the_iteration(tmp_path):
    Run(tmp_path, [1, 5]).run(1)
    best = read(tmp_path / "model.pt")["weight"].item()
    resumed = Run(tmp_path, [1, 5]).run(2)
    assert read(tmp_path / "model.pt")["weight"].item() == best
    assert resumed.trainer.state.iteration == 2


def test_the_scale_of_float16_losses_is_resumed(tmp_path):
    scales = []
    for epochs, scale in ((1, 8.0), (2, 2.0**16)):
        run = Run(tmp_path, [3, 2])
        run.trainer.loss_scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        run.trainer.add_event_handler(
            Events.EPOCH_STARTED, lambda engine: scales.append(engine.loss_scaler.get_scale())
        )
        run.run(epochs)
    assert scales == [8.0, 8.0]


def test_other_processes_than_the_first_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("ignite.distributed.get_rank", lambda: 1)
    Run(tmp_path, [3, 2]).run(2)
    assert not list(tmp_path.iterdir())


def test_settings_within_settings_are_compared_by_key():
    known = {"data": {"phases": ["ED"], "spacing": 1.8}, "seed": 0}
    assert differences(known, {"data": {"phases": ["ED"], "anatomy": "none"}, "seed": 0}) == []  # new since then
    assert differences(known, {"data": {"spacing": 2.5}, "seed": 1}) == ["spacing is 2.5, was 1.8", "seed is 1, was 0"]
    assert differences(known, {"data": None}) == [f"data is None, was {known['data']}"]
