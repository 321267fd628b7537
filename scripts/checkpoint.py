"""Checkpoints: weights of a network, and the state from which an interrupted training goes on."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import nn

from scripts.shipped import require_shipped
from scripts.storage import atomic_path, dump_json, explained, output_folder, read_object

LAST, BEST, SETTINGS = "last.pt", "model.pt", "settings.json"
REMEDY = "Bring back the file that the training wrote, name another --output_dir, or train anew with --resume False."


def save(content: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Write a checkpoint; an interruption leaves the old one."""
    with atomic_path(path) as part:
        write(content, part)


def write(content: Mapping[str, Any], part: Path) -> None:
    """Write a checkpoint to the temporary path that will take its place."""
    # By an open file: PyTorch would write the temporary name, which names this machine, into the checkpoint.
    with open(part, "wb") as file:
        torch.save(content, file)


def require(path: str | os.PathLike) -> None:
    """Raise FileNotFoundError for a checkpoint that is not there."""
    if Path(path).is_dir():
        raise FileNotFoundError(f"checkpoint '{path}' is a folder; name the file in it, such as '{Path(path) / BEST}'.")
    if Path(path).is_symlink() and not Path(path).exists():
        raise FileNotFoundError(
            f"checkpoint '{path}' is a link to '{os.readlink(path)}', which is not there; mount its file system, or "
            "remove the link."
        )
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"checkpoint '{path}' does not exist; train one with 'run training', or name it with --ckpt_path."
        )


def read(path: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint's tensors and numbers; no code in it is run.

    Raises:
        FileNotFoundError, ValueError: naming the file and what to do.
    """
    require(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is no checkpoint
        raise ValueError(
            f"checkpoint '{path}' cannot be read ({str(error) or type(error).__name__}); it may be cut off or of "
            "another tool. Bring back the file that the training wrote, or train anew."
        ) from None  # whose own words would come first and say less
    if not isinstance(content, dict):
        raise ValueError(f"checkpoint '{path}' holds a {type(content).__name__}; expected the weights of a network.")
    return content


def load_weights(network: nn.Module, path: str | os.PathLike, settings: Mapping[str, Any] | None = None) -> nn.Module:
    """Load ``model.pt`` (weights) or ``last.pt`` (training state) into a network, and return it.

    Args:
        network: the network.
        path: the checkpoint.
        settings: what the weights depend on but do not show (phases, spacing, order of attributes, ...); compared with
            the ``settings.json`` that the training left beside them, where that is found.

    Raises:
        ValueError: when the checkpoint is of another architecture or other settings, naming the differences, or one
            that an archive lists otherwise.
    """
    require_shipped(path)
    content = read(path)
    if settings:  # before the weights, since they tell in words which overlay is missing
        refuse_other_settings(training_settings(path), settings, Path(path).with_name(SETTINGS))
    fit_weights(network, content.get("network", content), path)
    return network


def refuse_other_settings(
    known: Mapping[str, Any], asked: Mapping[str, Any], path: Path, training: bool = False
) -> None:
    """Raise ValueError naming the settings that are not those of a training, and what to do in another one or else."""
    other = differences(known, asked)
    if other:
        remedy = ""
        if training:
            remedy = "; to train anew, name another --output_dir or set --resume False"
        elif any(found.startswith("cohort is") for found in other):
            remedy = "; to evaluate on another cohort, set --other_cohort True"
        raise ValueError(
            f"'{path}' shows a training with other settings: {'; '.join(other)}. Use the configs and overlays (such as "
            f"compact.json, ed.json) of that training{remedy}."
        )


def differences(known: Mapping[str, Any], asked: Mapping[str, Any], lenient: bool = True) -> list[str]:
    """What differs between settings, in words.

    Args:
        known: as they were read from JSON.
        asked: which may have tuples.
        lenient: leave out settings that an older version did not know yet.
    """
    found = []
    for key, value in json.loads(json.dumps(asked)).items():
        if isinstance(value, Mapping) and isinstance(known.get(key), Mapping):
            found += differences(known[key], value, lenient)
        elif key in known and value != known[key]:
            found.append(f"{key} is {value}, was {known[key]}")
        elif key not in known and not lenient:
            found.append(f"{key} is {value}, was not known to an earlier version")
    return found


def fit_weights(network: nn.Module, weights: Mapping[str, torch.Tensor], path: str | os.PathLike) -> None:
    """Load weights into a network after checking that every tensor has its counterpart.

    Raises:
        ValueError: for anything else than the weights of this network, naming the file and the differences.
    """
    if not isinstance(weights, Mapping):
        raise ValueError(
            f"checkpoint '{path}' holds a {type(weights).__name__} in the place of weights; expected one tensor per "
            "name. Bring back the file that the training wrote, or name another."
        )
    own = network.state_dict()
    differences = [f"{name} is missing" for name in own if name not in weights]
    differences += [f"{name} is not of this network" for name in weights if name not in own]
    differences += [
        f"{name} is {described(weights[name])}, the network's {described(own[name])}"
        for name in own
        if name in weights and described(weights[name]) != described(own[name])
    ]
    # Of a network without values, on the device meta, only the shapes are asked for.
    differences += [f"{name} has no values" for name in own if getattr(weights.get(name), "is_meta", False)]
    if differences:
        raise ValueError(
            f"checkpoint '{path}' is of another architecture: {'; '.join(differences[:3])}"
            f"{f' and {len(differences) - 3} more' if len(differences) > 3 else ''}. Use the configs and overlays "
            "(such as compact.json, ed.json) that it was trained with, or another output_dir or ckpt_path."
        )
    network.load_state_dict(weights)


def described(value: Any) -> str:
    """What a tensor shares with any that can take its place, whatever its precision: numbers of a kind, and shape."""
    if not isinstance(value, torch.Tensor):
        return f"of type {type(value).__name__}"
    if value.layout is not torch.strided:
        return "a sparse tensor"
    kinds = {"complex": value.is_complex(), "floating-point": value.is_floating_point()}
    kinds |= {"boolean": value.dtype is torch.bool, "integer": True}
    return f"{next(kind for kind, holds in kinds.items() if holds)} {tuple(value.shape)}"


def fingerprint(path: str | os.PathLike, required: bool = True) -> str | None:
    """SHA-256 of a checkpoint, which tells later whether a result is still that of the file.

    Args:
        path: the checkpoint.
        required: raise for one that is not there, instead of giving None.
    """
    if not required and not Path(path).exists():
        return None
    require(path)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def training_settings(path: str | os.PathLike) -> dict[str, Any]:
    """What ``settings.json`` beside a checkpoint says of its training; empty where there is none.

    Raises:
        ValueError: for a broken one, naming it: without it, nothing could be compared.
    """
    beside = Path(path).with_name(SETTINGS)
    remedy = "bring back the one that the training wrote, or train anew in another --output_dir"
    return read_object(beside, "settings", remedy) if beside.is_file() else {}


def find_weights(output_dir: str | os.PathLike, bundle_root: str | os.PathLike, required: bool = True) -> str:
    """The weights to use where none are named: those last trained in ``output_dir``, or those of the bundle.

    Args:
        output_dir, bundle_root: folders.
        required: raise where there are none, instead of naming the bundle's place for them: tools look at a config's
            parts before there are weights.

    Raises:
        FileNotFoundError: naming both places, or how to download what the bundle lists.
        ValueError: for a file in the bundle that is not the one that it lists.
    """
    shipped = Path(bundle_root) / "models" / BEST
    candidates = [Path(output_dir) / BEST, shipped]
    if not candidates[0].is_file():
        require_shipped(shipped)
    for path in candidates:
        if path.is_file():
            return str(path)
    if not required:
        return str(candidates[-1])
    listed = " nor ".join(f"'{path}'" for path in candidates)
    raise FileNotFoundError(f"no trained weights: neither {listed} exists; name a file with --ckpt_path.")


def finite(*weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether all weights are numbers."""
    return all(bool(tensor.isfinite().all()) for each in weights for tensor in each.values())


def wrong_progress(state: Mapping[str, Any], parts: Sequence[str]) -> list[str]:
    """What a training cannot have left so in its state, in words: parts that are missing, and how far it has come."""
    missing = [f"{key} is missing" for key in (*parts, "epoch", "best", "best_epoch") if key not in state]
    if missing:
        return missing
    epoch, best, best_epoch = (state[key] for key in ("epoch", "best", "best_epoch"))
    wrong = []
    if type(epoch) is not int or epoch < 0:
        wrong.append(f"epoch is {epoch!r}, expected a whole number")
    elif type(best_epoch) is not int or not 0 <= best_epoch <= epoch:
        wrong.append(f"best_epoch is {best_epoch!r}, expected a whole number up to {epoch}")
    # Infinite before the first validation. No later epoch would be better than NaN.
    if type(best) not in (int, float) or not best > -math.inf:
        wrong.append(f"best is {best!r}, expected the value of a metric")
    return wrong


def load_state(target: Any, state: Any, name: str, path: Path) -> None:
    """Give an optimizer or a loss scaler its state of ``last.pt``; raises ValueError naming the file."""
    try:
        target.load_state_dict(state)
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"'{path}' is not the state of this training: {name} does not fit ({error!r}). {REMEDY}"
        ) from error


class TrainingCheckpoint:
    """Keep the last state and the best weights of a training, stop it in time, and resume it.

    After each epoch, ``last.pt`` gets the whole state, and ``model.pt`` a copy of the weights when the metric (lower
    is better) has improved. Attach it after the handler that runs the validation. Together with ``EpochSeed``, a
    resumed training equals an uninterrupted one. Of a distributed training, the first process alone writes and prints.

    Args:
        output_dir: folder of both files, and of ``settings.json``.
        network: the network.
        optimizers: name to optimizer, all that the trainer steps.
        evaluator: the engine whose metric decides; None where the last weights are the ones to use, and there is no
            ``model.pt``.
        metric: name of that metric.
        settings: what makes it this training and no other; a resumed one must have the same. Learning rate, number of
            epochs and patience may change.
        patience: epochs without improvement after which training stops; None never stops it.
        resume: go on from ``last.pt`` where there is one.
        warmup_epochs: the best of these first epochs is forgotten once they are over, since they train something else.
        modules: name to what else learns in the training, and is of no use after it.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        network: nn.Module,
        optimizers: Mapping[str, torch.optim.Optimizer],
        evaluator: Engine | None = None,
        metric: str = "",
        settings: Mapping[str, Any] | None = None,
        patience: int | None = None,
        resume: bool = True,
        warmup_epochs: int = 0,
        modules: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.modules = dict(modules or {})
        self.folder = output_folder(output_dir)
        self.network, self.optimizers, self.evaluator = network, dict(optimizers), evaluator
        self.metric, self.patience, self.settings = metric, patience, dict(settings or {})
        self.resume, self.warmup_epochs = resume, warmup_epochs
        self.best, self.best_epoch = float("inf"), 0
        self.main_process = idist.get_rank() == 0
        self.begun = False  # whether what lies in the folder is of this training

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.keep)
        engine.add_event_handler(Events.COMPLETED, self.report)

    def report(self, engine: Engine) -> None:
        """Print what was kept."""
        if self.evaluator is not None:
            self.say(f"Best {self.metric} {self.best:.4g} in epoch {self.best_epoch}: {self.folder / BEST}")

    def start(self, engine: Engine) -> None:
        """Continue from ``last.pt`` where that is wanted."""
        # The first process decides for all: one that began anew, for want of a shared folder, would wait forever.
        # A link that leads nowhere counts: it may lead to a share that is not mounted just now.
        if self.resume and idist.broadcast(float(os.path.lexists(self.folder / LAST))):
            self.refuse_another_training()
            self.restore(engine, self.folder / LAST)
            self.begun = True

    def say(self, text: str) -> None:
        """Print once, however many processes there are."""
        if self.main_process:
            print(text)

    def refuse_another_training(self) -> None:
        """Raise ValueError where ``last.pt`` is of other settings, or may be."""
        path = self.folder / SETTINGS
        if not path.is_file():
            raise ValueError(
                f"'{path}' is missing, so that {LAST} beside it may be of other settings: bring it back, name another "
                "--output_dir, or train anew with --resume False."
            )
        refuse_other_settings(training_settings(path), self.settings, path, training=True)

    def restore(self, engine: Engine, path: Path) -> None:
        """Take up the state of ``last.pt``; the learning rates stay those of the config.

        Raises:
            FileNotFoundError, ValueError: for anything else than the state of this training, naming the file.
        """
        state = read(path)
        wrong = wrong_progress(state, ("network", *self.optimizers))
        if wrong:
            raise ValueError(f"'{path}' is not the state of this training: {'; '.join(wrong)}. {REMEDY}")
        fit_weights(self.network, state["network"], path)
        for name, module in self.modules.items():
            fit_weights(module, state.get(name, {}), path)
        for name, optimizer in self.optimizers.items():
            rates = [group["lr"] for group in optimizer.param_groups]
            load_state(optimizer, state[name], name, path)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        if state.get("loss_scaler"):
            load_state(engine.loss_scaler, state["loss_scaler"], "loss_scaler", path)
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        engine.state.epoch = state["epoch"]
        engine.state.iteration = state["epoch"] * engine.state.epoch_length
        self.say(f"Resumed from {path} after epoch {state['epoch']} of {engine.state.max_epochs}.")
        if state["epoch"] >= engine.state.max_epochs or self.exhausted(state["epoch"]):
            self.say("Nothing is left to train: raise --max_epochs or --patience, or name another --output_dir.")
            engine.terminate()

    def keep(self, engine: Engine) -> None:
        """Save this epoch's state, and its weights when they are the best.

        Raises:
            FloatingPointError: for weights or a metric that are not finite; what was saved before stays.
        """
        epoch, weights = engine.state.epoch, self.network.state_dict()
        others = {name: module.state_dict() for name, module in self.modules.items()}
        # else there is no metric, or one of an earlier epoch
        validated = self.evaluator is not None and self.evaluator.state.epoch == epoch
        value = float(self.evaluator.state.metrics[self.metric]) if validated else math.inf
        if (validated and not math.isfinite(value)) or not finite(weights, *others.values()):
            then = "resumes from the epoch before" if self.begun else "begins anew"
            raise FloatingPointError(
                f"weights or {self.metric} ({value}) not finite after epoch {epoch}, which is not saved. Run the same "
                f"command with a lower --learning_rate: it {then}."
            )
        if epoch == self.warmup_epochs + 1:
            self.best, self.best_epoch = math.inf, epoch
        better = value < self.best
        if better:
            self.best, self.best_epoch = value, epoch
        state = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        state |= others | {"network": weights, "epoch": epoch, "best": self.best, "best_epoch": self.best_epoch}
        if hasattr(engine, "loss_scaler"):
            state["loss_scaler"] = engine.loss_scaler.state_dict()
        if self.main_process:
            self.replace({LAST: state} | ({BEST: weights} if better else {}))
        self.begun = True
        if self.exhausted(epoch):
            self.say(f"Stopped after epoch {epoch}: no better {self.metric} since epoch {self.best_epoch}.")
            engine.terminate()

    def replace(self, files: Mapping[str, Mapping[str, Any]]) -> None:
        """Write files that take their places in the reverse order: the state, given first, tells of the others.

        Those of a new training, and its settings, take the places of a former training's, which stay until all of
        these are written. No moment leaves a state beside other settings, under which it would be resumed.
        """
        former = (LAST,) if self.evaluator is None else (LAST, BEST)
        with ExitStack() as parts:
            for name, content in files.items():
                write(content, parts.enter_context(atomic_path(self.folder / name)))
            if self.begun:
                return
            dump_json(self.settings, parts.enter_context(atomic_path(self.folder / SETTINGS)))
            for name in former:
                with explained(self.folder / name):
                    (self.folder / name).unlink(missing_ok=True)

    def exhausted(self, epoch: int) -> bool:
        """Whether the metric has not improved for as long as patience lasts."""
        return self.patience is not None and epoch - max(self.best_epoch, self.warmup_epochs) >= self.patience
