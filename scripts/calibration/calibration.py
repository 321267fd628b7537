"""The calibration of a model: what turns its codes into mL with intervals, and tells whether a scan is in range.

It is written beside the weights at the end of a training, is bound to them by their SHA-256, and names no subject.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.utils.enums import CommonKeys as Keys

from scripts.calibration.faults import OTHER_SLICE, crop_faults
from scripts.calibration.lines import Estimate, Line, fit_line, shortfalls
from scripts.calibration.novelty import COARSE, FEWEST, Novelty, NoveltyModel, Readings, readings
from scripts.calibration.population import Population, fit_population
from scripts.checkpoint import BEST, LAST, fingerprint, load_weights
from scripts.cohort.attributes import SIGNED
from scripts.engines import ATTRIBUTES, CODES, LOG_VARIANCES, CodeEvaluator
from scripts.handlers import InferenceProgress
from scripts.networks import VariationalAutoencoder
from scripts.storage import read_object, write_json
from scripts.views import View

FILE = "calibration.json"
VERSION = 1  # raise it when it is made or read in another way, so that no older one is taken for a present one
PERCENTILES = np.linspace(2.5, 97.5, 39)  # not the extremes, which are those of single subjects
TRAINING, VALIDATION = "training", "validation"
FEW = 19  # validation subjects: as many as an interval of 95 % needs


class Calibration:
    """What inference needs to know of a model's training and validation subjects.

    Args:
        checkpoint_sha256: of the weights that it belongs to.
        settings: what it was made with: those of the ``View``, ``attributes``, ``level`` of the intervals,
            ``threshold`` of the check and whatever tells it from another one.
        lines: attribute -> how its dimension tells it; empty where the attributes are not regularized.
        quantiles: attribute -> ``PERCENTILES`` of the training cohort.
        novelty: the check of the range.
        explained: share of the validation images' variance about the mean training image that reconstructions explain;
            at 0 and below they are no better than that image. None without validation subjects.
        population: how codes and attributes belong together, for counterfactuals; None where the attributes are not
            regularized, and in a file of an earlier version.
    """

    def __init__(
        self,
        checkpoint_sha256: str,
        settings: Mapping[str, Any],
        lines: Mapping[str, Line],
        quantiles: Mapping[str, Sequence[float]],
        novelty: NoveltyModel,
        explained: float | None = None,
        population: Population | None = None,
    ) -> None:
        self.checkpoint_sha256, self.settings = checkpoint_sha256, dict(settings)
        self.lines, self._quantiles, self.novelty_model = dict(lines), dict(quantiles), novelty
        self.explained, self.population = explained, population

    @classmethod
    def read(cls, path: str | os.PathLike, checkpoint_sha256: str) -> Calibration:
        """Read the calibration of a checkpoint.

        Raises:
            FileNotFoundError: where there is none.
            ValueError: for one that cannot be read or is of another checkpoint.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"calibration '{path}' does not exist; 'run calibrate' with train.json writes it")
        content = read_object(path, "calibration", "'run calibrate' writes it anew")
        try:
            calibration = cls.from_content(content)
            calibration.rehearse()
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
            raise ValueError(
                f"calibration '{path}' cannot be read ({error}); 'run calibrate' writes it anew"
            ) from error
        if calibration.checkpoint_sha256 != checkpoint_sha256:
            raise ValueError(
                f"calibration '{path}' is of the checkpoint with SHA-256 {calibration.checkpoint_sha256[:12]}..., not "
                f"of that with {checkpoint_sha256[:12]}...; 'run calibrate' writes it anew"
            )
        return calibration

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> Calibration:
        """Make it again from what a file says; raises many kinds of errors for what ``write`` does not write."""
        content = dict(content)
        if content.pop("version", None) != VERSION:
            raise ValueError("it is of another version")
        missing = {"phases", "attributes", "level", "threshold"} - set(content["settings"])
        if missing:
            raise ValueError(f"its settings lack {', '.join(sorted(missing))}")
        lines = {name: Line(**line) for name, line in content.pop("lines").items()}
        population = content.pop("population", None)
        content["population"] = population and Population.from_state(population)
        return cls(lines=lines, novelty=NoveltyModel(**content.pop("novelty")), **content)

    def rehearse(self) -> None:
        """Give once all that it is asked for, of an empty image; raises many kinds of errors where parts do not fit."""
        if not isinstance(self.checkpoint_sha256, str):
            raise TypeError(f"checkpoint_sha256 is {self.checkpoint_sha256!r}, expected a text")
        check_settings(self.settings)
        codes, image = torch.zeros(len(self.novelty_model.mean)), torch.zeros(self.view.channels, COARSE, COARSE)
        with np.errstate(all="ignore"):  # what comes of it is looked at
            novelty = self.novelty(codes, codes, image, image)
        numbers = [*novelty.percentiles.values(), novelty.score, novelty.percentile, self.level]
        numbers += [estimate.value for estimate in self.estimate(codes).values()]
        if not np.isfinite(numbers).all():
            raise ValueError("it gives values that are not finite")
        if any(self.quantiles(name).astype(float).shape != PERCENTILES.shape for name in self.attributes):
            raise ValueError(f"its quantiles are not {len(PERCENTILES)} numbers of each attribute")
        self.cautions()

    def write(self, path: str | os.PathLike) -> None:
        """Write it as JSON."""
        lines = {name: line._asdict() for name, line in self.lines.items()}
        bound = {"version": VERSION, "checkpoint_sha256": self.checkpoint_sha256, "settings": self.settings}
        fitted = {"lines": lines, "quantiles": self._quantiles, "novelty": self.novelty_model.state()}
        population = self.population and self.population.state()
        write_json(path, bound | fitted | {"explained": self.explained, "population": population})

    @property
    def view(self) -> View:
        """What the images show."""
        return View.of(self.settings)

    @property
    def attributes(self) -> tuple[str, ...]:
        """The attributes, in the order of their dimensions."""
        return tuple(self.settings["attributes"])

    @property
    def level(self) -> float:
        """The level that all intervals have: the one asked for, or less where validation subjects are too few."""
        return min([self.settings["level"], *(line.level for line in self.lines.values() if line.level)])

    def estimate(self, codes: Any) -> dict[str, Estimate]:
        """Each regularized attribute, in its unit (mL for volumes), of one subject's mean code (D,)."""
        known = {name: line.estimate(_array(codes)) for name, line in self.lines.items()}
        return {name: each if name in SIGNED else each.from_zero() for name, each in known.items()}

    def novelty(self, codes: Any, log_variances: Any, image: Any, reconstruction: Any) -> Novelty:
        """How unusual one subject is: mean and log-variances of its code (D,), crop and reconstruction (C, H, W)."""
        single = (torch.as_tensor(part)[None] for part in (codes, log_variances, image, reconstruction))
        read = readings(*single, self.view)
        return self.novelty_model.judge(read, self.settings["threshold"])

    def cautions(self) -> list[str]:
        """What everybody who sees a result of this model has to know of it; nothing where all is well."""
        found = []
        if self.explained is not None and self.explained <= 0:
            found.append("This model reconstructs hearts no better than their mean image: do not use it.")
        r2 = [line.r2 for line in self.lines.values() if line.r2 is not None]
        if r2 and max(r2) <= 0:
            found.append("The codes of this model do not tell volumes: do not use its estimates.")
        if self.novelty_model.subjects < FEW:
            found.append(f"The range is known from {self.novelty_model.subjects} scans only.")
        return found

    def quantiles(self, name: str) -> np.ndarray:
        """The training cohort's values of an attribute at ``PERCENTILES``.

        Raises:
            KeyError: for an attribute that the model was not trained with.
        """
        if name not in self._quantiles:
            raise KeyError(f"the calibration knows no attribute '{name}'; it has {', '.join(self._quantiles)}")
        return np.asarray(self._quantiles[name])


class ImageSums:
    """Sums over images, from which the variance about any image follows without keeping them."""

    def __init__(self) -> None:
        self.count, self.total, self.squares, self.error = 0, 0.0, 0.0, 0.0

    def add(self, image: torch.Tensor, reconstruction: torch.Tensor) -> None:
        """Add a batch (B, C, H, W)."""
        image, reconstruction = image.detach().double().cpu(), reconstruction.detach().double().cpu()
        self.count += len(image)
        self.total = self.total + image.sum(0)
        self.squares += float(image.square().sum())
        self.error += float((image - reconstruction).square().sum())

    def explained(self, other: ImageSums) -> float | None:
        """Share of the variance about the mean image of ``other`` that reconstructions explain; None without images."""
        if not self.count:
            return None
        mean = other.total / other.count
        about = self.squares - 2 * float((mean * self.total).sum()) + self.count * float(mean.square().sum())
        return 1 - self.error / about if about > 0 else None


class CalibrationSubjects:
    """What a calibration keeps of its subjects: numbers, no images. Attach it to a ``CodeEvaluator``.

    Args:
        view: of the images' channels.
        spacing: pixel size in mm.
        seed: of the simulated motion.
        with_faults: encode each image with every simulated fault too.

    After the run, ``codes`` (subjects, D) and ``attributes`` (subjects, A) are those of the images as they are, and
    ``read()`` maps ``none`` and each fault to its ``Readings``.
    """

    def __init__(self, view: View, spacing: float, seed: int = 0, with_faults: bool = False) -> None:
        self.view, self.spacing, self.seed, self.with_faults = view, spacing, seed, with_faults
        self.batches: dict[str, list[Readings]] = {}
        self.known: list[np.ndarray] = []
        self.images = ImageSums()

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)

    def start(self, engine: Engine) -> None:
        """Forget the run before."""
        self.batches, self.known, self.images = {}, [], ImageSums()
        generator = torch.Generator().manual_seed(self.seed)
        self.faults = crop_faults(self.view, self.spacing, generator) if self.with_faults else {}

    def collect(self, engine: CodeEvaluator) -> None:
        """Add one batch."""
        output = engine.state.output
        parts = [output[key] for key in (CODES, LOG_VARIANCES, Keys.IMAGE, Keys.PRED)]
        self.batches.setdefault("none", []).append(readings(*parts, self.view))
        self.images.add(*(output[key][:, : self.view.images] for key in (Keys.IMAGE, Keys.PRED)))
        self.known.append(output[ATTRIBUTES].double().cpu().numpy())
        for name, fault in self.faults.items():
            read = self.encode(engine.network, fault(output[Keys.IMAGE]))
            self.batches.setdefault(name, []).append(read)

    def encode(self, network: VariationalAutoencoder, image: torch.Tensor) -> Readings:
        """Read images (B, C, H, W) that the evaluator has not seen."""
        network.eval()
        with torch.no_grad():
            codes, log_variances = network.encode(image)
            return readings(codes, log_variances, image, network.decode(codes), self.view)

    def read(self) -> dict[str, Readings]:
        """All batches together, which replace them: their arrays are large."""
        self.batches = {name: [Readings.join(batches)] for name, batches in self.batches.items()}
        return {name: batches[0] for name, batches in self.batches.items()}

    @property
    def codes(self) -> np.ndarray:
        """Mean codes."""
        return self.read()["none"].codes

    @property
    def attributes(self) -> np.ndarray:
        """Attributes; NaN where missing."""
        return np.concatenate(self.known)


class Calibrator:
    """Calibrate the weights of a training, unless that has been done.

    Args:
        output_dir: of the training; its ``model.pt`` is calibrated, or ``last.pt`` where there is no best.
        network: gets these weights.
        model_settings: that the training must have had, see ``load_weights``.
        settings: of the calibration, see ``Calibration``.
        regularized: whether dimension k follows attribute k.
        datasets: preprocessed subjects: ``training``, ``other_slice`` (the same in another slice) and ``validation``.
        dataloader, evaluator: make a ``DataLoader`` of a dataset, and a ``CodeEvaluator`` of a loader and handlers.
        spacing: pixel size in mm.
        seed: of the simulated motion.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        network: VariationalAutoencoder,
        model_settings: Mapping[str, Any],
        settings: Mapping[str, Any],
        regularized: bool,
        datasets: Mapping[str, Dataset],
        dataloader: Callable[[Dataset], DataLoader],
        evaluator: Callable[..., CodeEvaluator],
        spacing: float,
        seed: int = 0,
    ) -> None:
        check_settings(settings)
        self.folder, self.network, self.model_settings = Path(output_dir), network, dict(model_settings)
        # As JSON gives them back, to be compared with those of a file.
        self.settings = json.loads(json.dumps(settings))
        self.regularized, self.datasets = regularized, dict(datasets)
        self.dataloader, self.evaluator = dataloader, evaluator
        self.spacing, self.seed = spacing, seed

    def run(self) -> Path:
        """Write ``calibration.json``, or leave the one that is there where it is of these weights and settings."""
        weights = self.folder / (BEST if (self.folder / BEST).is_file() else LAST)
        path, sha256 = self.folder / FILE, fingerprint(weights)
        if self.is_done(path, sha256):
            print(f"{path} is already that of {weights}.")
            return path
        load_weights(self.network, weights, self.model_settings)
        calibration = self.fit(sha256, *(self.gather(name) for name in (TRAINING, OTHER_SLICE, VALIDATION)))
        calibration.write(path)
        self.report(calibration, path)
        return path

    def gather(self, name: str) -> CalibrationSubjects:
        """Encode the subjects of a dataset."""
        with_faults = name == TRAINING
        subjects = CalibrationSubjects(View.of(self.settings), self.spacing, self.seed, with_faults)
        handlers = [subjects, InferenceProgress(f"calibrate, {name}")]
        self.evaluator(val_data_loader=self.dataloader(self.datasets[name]), val_handlers=handlers).run()
        return subjects

    def is_done(self, path: Path, sha256: str) -> bool:
        """Whether the file is of these weights and settings."""
        try:
            present = Calibration.read(path, sha256)
        except (FileNotFoundError, ValueError):
            return False
        complete = present.population is not None or not self.regularized  # an earlier version wrote no population
        return complete and present.settings == self.settings

    def fit(
        self, sha256: str, training: CalibrationSubjects, other: CalibrationSubjects, validation: CalibrationSubjects
    ) -> Calibration:
        """From what has been gathered of training subjects, of these in another slice, and of validation subjects."""
        names = self.settings["attributes"]
        sound, *faults = training.read()
        faulty = {name: training.read()[name] for name in faults} | {OTHER_SLICE: other.read()[sound]}
        novelty = NoveltyModel.fit(training.read()[sound], faulty, validation.read()[sound])
        pairs = [(subjects.codes, subjects.attributes) for subjects in (training, validation)]
        lines = {}
        for k, name in enumerate(names if self.regularized else ()):
            fitted, judged = ((codes, attributes[:, k]) for codes, attributes in pairs)
            lines[name] = fit_line(fitted, judged, k, self.settings["level"])
        table = np.nanpercentile(training.attributes, PERCENTILES, axis=0).T
        quantiles = {name: values.round(3).tolist() for name, values in zip(names, table, strict=True)}
        explained = validation.images.explained(training.images)
        population = fit_population(*pairs[0], names) if self.regularized else None
        return Calibration(sha256, self.settings, lines, quantiles, novelty, explained, population)

    def report(self, calibration: Calibration, path: Path) -> None:
        """Print what the calibration can and cannot do."""
        for message in shortfalls(calibration.lines, self.settings["level"]):
            print(message)
        for caution in calibration.cautions():
            print(f"Warning: {caution}")
        if len(self.datasets[VALIDATION]) < FEWEST:
            print(
                f"The check of the range refers to training subjects, since there are fewer than {FEWEST} validation "
                "subjects: it will find too many scans out of range."
            )
        print(f"Calibrated on {calibration.novelty_model.subjects} subjects: {path}")


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise ValueError for a level or a threshold that means nothing, naming its key."""
    if not 0 < settings["level"] < 1:
        raise ValueError(f"interval_level {settings['level']} needs to lie between 0 and 1, such as 0.95.")
    if not 0 < settings["threshold"] < 100:
        raise ValueError(f"novelty_threshold {settings['threshold']} needs to be a percentile, such as 99.")


def _array(values: Any) -> np.ndarray:
    return torch.as_tensor(values).detach().cpu().double().numpy()
