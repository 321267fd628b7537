"""Ignite handlers of training and inference: reproducible epochs, warnings, progress, codes, pictures."""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from matplotlib.figure import Figure
from monai.data import Dataset
from monai.data.utils import set_rnd
from monai.utils import set_determinism
from monai.utils.enums import CommonKeys as Keys
from torch.utils.tensorboard import SummaryWriter

from scripts.distributed import gather_uneven
from scripts.engines import CODES, TERMS
from scripts.figures import reconstruction_figure, traversal_figure
from scripts.metrics import active_units
from scripts.networks import VariationalAutoencoder
from scripts.storage import atomic_path, output_folder
from scripts.views import View, as_view

# exp(-16) is the relative resolution of float32: below it, the adversarial term no longer changes the encoder's loss.
VANISHED = -16.0
EXPLODED = 50.0  # nats per dimension: that of a code ten standard deviations off the mean


class EpochSeed:
    """Seed every random generator at the start of each epoch from the seed and the epoch's number.

    An epoch then does not depend on the ones before it but through the weights, so that a resumed training draws what
    an uninterrupted one would have drawn.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        seed_everything(engine.data_loader.dataset, self.seed, engine.state.epoch)


def seed_everything(dataset: Dataset, *seeds: int) -> None:
    """Seed every random generator, and those that the random transforms of a dataset have of their own."""
    seed = int(np.random.SeedSequence(seeds).generate_state(1)[0])
    set_determinism(seed)
    set_rnd(dataset, seed)


class LinearDecay:
    """Lower the learning rates linearly from epoch to epoch.

    The rate is computed from the epoch's number alone, so that a resumed training has that of an uninterrupted one.

    Args:
        optimizers: their present rates are those of the first epoch.
        final_fraction: of these rates, in the last epoch; 1 keeps them constant.
        epochs: number of the last epoch.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], final_fraction: float, epochs: int) -> None:
        self.optimizers = tuple(optimizers)
        self.rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        self.final_fraction, self.epochs = final_fraction, epochs

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        done = (engine.state.epoch - 1) / max(self.epochs - 1, 1)
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * (1 - done * (1 - self.final_fraction))


def stacked(values: Iterable[torch.Tensor | float]) -> torch.Tensor:
    """Numbers as one tensor on the device where they are."""
    return torch.stack([torch.as_tensor(value) for value in values])


class LossGuard:
    """Stop at a loss that is not finite; warn when the divergence explodes or the adversarial gradient has vanished.

    Losses are read from the device at intervals only, since each reading makes the host wait for the device.

    Args:
        interval: iterations between two readings; the end of an epoch is one in any case.
        latent_dim: dimensions of a code.
    """

    def __init__(self, interval: int = 1, latent_dim: int = 128) -> None:
        self.interval, self.latent_dim = interval, latent_dim

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.interval), self.check_finite)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.check_finite)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.check_adversarial)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.check_divergence)

    def start(self, engine: Engine) -> None:
        """Forget the epoch before."""
        self.unread: list[torch.Tensor] = []
        self.adversarial: list[float] = []
        self.divergences: list[float] = []

    def collect(self, engine: Engine) -> None:
        """Keep one iteration's terms on the device."""
        self.unread.append(stacked(engine.state.output[TERMS].values()))

    def check_finite(self, engine: Engine) -> None:
        """Raise FloatingPointError naming the terms that are not finite in the first iteration that has such."""
        names = list(engine.state.output[TERMS])
        first = engine.state.iteration - len(self.unread) + 1
        read, self.unread = torch.stack(self.unread).tolist() if self.unread else [], []
        for iteration, values in enumerate(read, start=first):
            terms = dict(zip(names, values, strict=True))
            broken = [name for name, value in terms.items() if not math.isfinite(value)]
            if broken:
                raise FloatingPointError(
                    f"{', '.join(broken)} not finite in epoch {engine.state.epoch}, iteration {iteration}. Run the "
                    "same command with a lower --learning_rate: it resumes from the epoch before. If that does not "
                    "help, look for extreme values in the attributes."
                )
            self.adversarial += [value for name, value in terms.items() if name.startswith("log_exp_elbo")]
            self.divergences += [value for name, value in terms.items() if name == "kl_real"]

    def check_adversarial(self, engine: Engine) -> None:
        """Warn when exp(log_exp_elbo) was below float32's resolution in every iteration, for both kinds of images."""
        if self.adversarial and max(self.adversarial) < VANISHED:
            warnings.warn(
                f"the adversarial gradient has vanished in epoch {engine.state.epoch} "
                f"(log_exp_elbo {max(self.adversarial):.1f}): the encoder no longer learns from generated images. "
                "Lower --beta_neg or the reconstruction weights.",
                stacklevel=2,
            )

    def check_divergence(self, engine: Engine) -> None:
        """Warn when the codes of scans have left N(0, I) far behind, in the mean over an epoch."""
        kl = np.mean(self.divergences or 0.0)
        if kl > EXPLODED * self.latent_dim:
            warnings.warn(
                f"the divergence explodes: kl_real is {kl:.3g} in epoch {engine.state.epoch}, over {EXPLODED:g} for "
                f"each of {self.latent_dim} dimensions, so that what is decoded from N(0, I) resembles no scan. Raise "
                "--beta_kl, or lower --learning_rate or --gamma.",
                stacklevel=2,
            )


class CollapseGuard:
    """Warn when codes no longer tell subjects apart, at a validation and at the one before it.

    Attach it to the evaluator of the validation, behind ``CodeCollector``.

    Args:
        needed: dimensions that have to be active at least, such as the number of attributes.
    """

    def __init__(self, needed: int) -> None:
        self.needed, self.before = max(1, needed), False

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator."""
        engine.add_event_handler(Events.COMPLETED, self.look)

    def look(self, engine: Engine) -> None:
        """Count the active dimensions; the first epochs of a training may have none."""
        codes = gather_uneven(torch.cat(engine.state.codes)).cpu().numpy()
        judged = len(codes) > 1 and np.isfinite(codes).all()  # what is not finite stops the training
        active = active_units(codes) if judged else self.needed
        collapsed = active < self.needed
        if collapsed and self.before and idist.get_rank() == 0:
            warnings.warn(
                f"posterior collapse: of {codes.shape[1]} dimensions, {active} vary among the {len(codes)} validation "
                f"subjects in epoch {engine.state.epoch}, and at least {self.needed} should; the decoder passes over "
                "the codes. Lower --beta_kl, or raise --mse_weight.",
                stacklevel=2,
            )
        self.before = collapsed


class ShortScans:
    """Warn once in a run of scans that do not fill a stack: slices beyond the scan are zero.

    Attach it to a trainer or evaluator.

    Args:
        view: of the image's channels.
    """

    def __init__(self, view: View) -> None:
        self.view, self.told = view, not view.is_stack

    def attach(self, engine: Engine) -> None:
        """Register with the engine."""
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self.look)

    def look(self, engine: Engine) -> None:
        """Look at a batch of the first epoch, until one has such a scan."""
        image = None if self.told or engine.state.epoch > 1 else engine.state.batch.get(Keys.IMAGE)
        if image is None:
            return
        short = ~self.view.inside(image).flatten(1).all(1)
        if short.any():
            self.told = True
            warnings.warn(
                f"{int(short.sum())} of the first {len(image)} scans do not fill the view's {self.view.stack_slices} "
                f"slices of {self.view.slice_distance:g} mm: slices beyond a scan are zero (said once).",
                stacklevel=2,
            )


class TrainingProgress(ProgressBar):
    """A bar over the training with the epoch's mean losses and the time left, and no flood of lines in a log file."""

    def __init__(self, names: Sequence[str] = ("encoder_loss", "decoder_loss", "attribute_loss")) -> None:
        super().__init__(persist=True, desc="training", mininterval=0.5 if sys.stderr.isatty() else 30, unit="epoch")
        self.names = tuple(names)
        self.values: list[torch.Tensor] = []

    def attach(self, engine: Engine) -> None:  # type: ignore[override]
        """Register with the trainer."""
        engine.add_event_handler(Events.STARTED, self.announce)
        engine.add_event_handler(Events.EPOCH_STARTED, lambda engine: self.values.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        super().attach(
            engine,
            output_transform=lambda output: self.means(),
            event_name=Events.EPOCH_COMPLETED,
            closing_event_name=Events.COMPLETED,
        )

    def announce(self, engine: Engine) -> None:
        """Print what is about to run, since the bar appears after the first epoch only."""
        print(f"Training for {engine.state.max_epochs} epochs of {engine.state.epoch_length} iterations.", flush=True)

    def collect(self, engine: Engine) -> None:
        """Keep one iteration's losses on the device, which the host does not wait for."""
        terms = engine.state.output.get(TERMS, engine.state.output)
        self.values.append(stacked(terms[name] for name in self.names))

    def means(self) -> dict[str, float]:
        """The epoch's mean losses."""
        return dict(zip(self.names, torch.stack(self.values).mean(0).tolist(), strict=True))


class InferenceProgress(ProgressBar):
    """A bar over the batches of an inference or evaluation."""

    def __init__(self, desc: str = "inference") -> None:
        super().__init__(persist=True, desc=desc, mininterval=0.5 if sys.stderr.isatty() else 30, unit="batch")


class CodeCollector:
    """Gather the codes of an evaluation in the engine's state, as a list of (B, D)."""

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)

    def start(self, engine: Engine) -> None:
        """Forget the evaluation before."""
        engine.state.codes = []

    def collect(self, engine: Engine) -> None:
        """Add one batch."""
        engine.state.codes.append(engine.state.output[CODES].cpu())


class Pictures:
    """Draw reconstructions of the first subjects and a walk along each regularized dimension.

    They go to ``output_dir/pictures`` and to TensorBoard. Attach it to the evaluator, behind a ``CodeCollector``.

    Args:
        output_dir: folder of the run.
        network: decodes the walks.
        attributes: names of the regularized attributes.
        view: of the image's channels, or phases.
        interval: epochs between two drawings.
        final_epoch: is drawn in any case, where the training gets there.
        subjects: how many subjects to show.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        network: VariationalAutoencoder,
        attributes: Sequence[str],
        view: View | Sequence[str],
        interval: int,
        final_epoch: int,
        subjects: int = 4,
    ) -> None:
        self.folder = output_folder(Path(output_dir) / "pictures")
        self.writer = SummaryWriter(str(Path(output_dir) / "tensorboard"))
        self.network, self.attributes, self.view = network, tuple(attributes), as_view(view)
        self.interval, self.final_epoch, self.subjects = interval, final_epoch, subjects
        self.drawn = 0

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.COMPLETED, self.draw)

    def start(self, engine: Engine) -> None:
        """Forget the evaluation before."""
        self.shown: list[torch.Tensor] = []

    def collect(self, engine: Engine) -> None:
        """Keep the first subjects of the first batch."""
        if not self.shown:
            self.shown = [engine.state.output[key][: self.subjects] for key in (Keys.IMAGE, Keys.PRED)]

    def draw(self, engine: Engine) -> None:
        """Draw when this epoch is due."""
        epoch = engine.state.epoch
        if epoch - self.drawn < self.interval and epoch < self.final_epoch:
            return
        self.drawn = epoch
        self.publish("reconstructions", reconstruction_figure(*self.shown, self.view), epoch)
        if self.attributes:
            codes = torch.cat(engine.state.codes).to(next(self.network.parameters()).device)
            self.network.eval()
            self.publish("traversals", traversal_figure(self.network, codes, self.attributes, self.view), epoch)

    def publish(self, name: str, figure: Figure, epoch: int) -> None:
        """Write a figure as PNG and to TensorBoard."""
        with atomic_path(self.folder / f"{name}.png") as part:
            figure.savefig(part)
        self.writer.add_figure(name, figure, epoch)
        self.writer.flush()
