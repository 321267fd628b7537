"""Counterfactuals, measured: held-out hearts are asked for changes, and instruments say what the images then show.

What a request has changed is the difference to the heart's own reconstruction, since that is what a user compares with.
Requests pass through memory in batches; numbers alone are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.data import DataLoader
from monai.utils.enums import CommonKeys as Keys
from tqdm import tqdm

from scripts.calibration.population import fit_population
from scripts.cohort.attributes import VOLUMES
from scripts.counterfactual import ALL_ELSE_EQUAL, Counterfactuals, check_changes, check_kind
from scripts.evaluation.correction import Corrected
from scripts.evaluation.instruments import Instrument, Segmentation
from scripts.evaluation.observations import (
    AGREEMENT,
    COMPOSED,
    IDLE,
    LEFT,
    MEASURED,
    OUTSIDE,
    REVERSED,
    SCANNED,
    Observations,
    Observer,
)
from scripts.evaluation.records import SubjectRecords
from scripts.metrics.faithfulness import faithfulness, measurement, subject_means
from scripts.metrics.resampling import bootstrap_mean
from scripts.networks import VariationalAutoencoder
from scripts.perceptual import PerceptualDistance
from scripts.views import STRUCTURES, View

MET = 1.0  # mL by which the model itself may miss a request that counts as met


def measurable(view: View, attributes: Sequence[str], regularize: bool) -> bool:
    """Whether counterfactuals are measured by default: there are dimensions to ask, and volumes to measure."""
    return bool(regularize) and view.is_stack and set(attributes) <= set(VOLUMES)


class Numbers(dict):
    """Numbers of requests that come in batches: (what, of which instrument) -> array, NaN where nothing has come.

    Args:
        shape: of the requests.
        widths: shape of the numbers of one request.
    """

    def __init__(self, shape: Sequence[int], widths: Mapping[tuple[str, str], Sequence[int]]) -> None:
        super().__init__({key: np.full((*shape, *width), np.nan) for key, width in widths.items()})

    def add(self, place: Any, observed: Observations) -> None:
        """Put numbers (B, ...) at a place of the arrays, which has B entries."""
        for key, values in observed.items():
            self[key][place] = values.double().cpu().numpy()


@dataclass(frozen=True)
class Answers:
    """What has become of all requests.

    Args:
        names: of the A attributes.
        changes: the R requests, in mL.
        requested: (A, subjects, R, A), see ``scripts.metrics.faithfulness``; NaN where a request was not allowed.
        truth: attributes of the scans, (subjects, A).
        before: numbers of subjects without a request, (subjects, ...), see ``Observer.undisturbed``.
        after: numbers of requests, (A, subjects, R, ...), see ``Observer.answered``.
        trips: numbers of those with a round trip, likewise.
    """

    names: Sequence[str]
    changes: Sequence[float]
    requested: np.ndarray
    truth: np.ndarray
    before: Mapping[tuple[str, str], np.ndarray]
    after: Mapping[tuple[str, str], np.ndarray]
    trips: Mapping[tuple[str, str], np.ndarray]

    @property
    def instruments(self) -> list[str]:
        """Their names, the one to believe first."""
        return [name for what, name in self.before if what == MEASURED]

    def changed(self, instrument: str) -> np.ndarray:
        """By how much each attribute has changed: (A, subjects, R, A)."""
        return self.after[MEASURED, instrument] - self.before[MEASURED, instrument][:, None]

    def rows(self, pseudonyms: Sequence[int]) -> Iterator[dict[str, Any]]:
        """One row per subject, request and instrument, for a CSV file."""
        changed = {name: self.changed(name) for name in self.instruments}
        for k, n, r in np.argwhere(np.isfinite(own(self.requested))):
            about = {"pseudonym": pseudonyms[n], "attribute": self.names[k], "requested": f"{self.changes[r]:g}"}
            for instrument, values in changed.items():
                known = {name: f"{value:.4g}" for name, value in zip(self.names, values[k, n, r], strict=True)}
                yield about | {"instrument": instrument} | known


class Faithfulness:
    """Ask held-out subjects for changes, and measure what the decoded images show.

    Args:
        network: the model.
        view, spacing: of its images.
        names: of its attributes.
        regularized: whether dimension k was trained to follow attribute k.
        instruments: name to instrument, the one to believe first.
        segmentation: finds the heart.
        lpips: distance of images that was not part of the training.
        loader: of the held-out subjects' images, in the order of their codes.
        changes: that each attribute is asked for, in mL.
        round_trip: those of them that are also taken back, and made in two steps.
        kind: of the counterfactuals, see ``scripts.counterfactual``.
        limit: subjects after the first so many are not asked; None asks all.
        batch_size: how many at a time.
        device: of all networks.
        seed: of the intervals.

    Raises:
        ValueError: for a model that cannot be asked, and changes or a limit that tell nothing, naming their key.
    """

    def __init__(
        self,
        network: VariationalAutoencoder,
        view: View,
        spacing: float,
        names: Sequence[str],
        regularized: bool,
        instruments: Mapping[str, Instrument],
        segmentation: Segmentation,
        lpips: PerceptualDistance,
        loader: DataLoader,
        changes: Sequence[float],
        round_trip: Sequence[float],
        kind: str = ALL_ELSE_EQUAL,
        limit: int | None = None,
        batch_size: int = 16,
        device: str | torch.device = "cpu",
        seed: int = 0,
    ) -> None:
        if not regularized:
            raise ValueError("this model has no dimensions that follow attributes: set --measure_whatif False.")
        check_kind(kind)
        check_changes(changes, "whatif_changes")
        if not isinstance(round_trip, list | tuple) or not all(change in changes for change in round_trip):
            raise ValueError(f"whatif_round_trip is {round_trip!r}: expected some of whatif_changes {list(changes)}.")
        if limit is not None and (type(limit) is not int or limit < 1):
            raise ValueError(f"whatif_subjects is {limit!r}: expected a whole number from 1 on (intervals need 10).")
        self.model = partial(Counterfactuals, network, view, spacing)
        self.observer = partial(Observer, instruments=instruments, segmentation=segmentation, lpips=lpips, kind=kind)
        self.names, self.loader = tuple(names), loader
        self.changes, self.round_trip, self.kind = sorted(changes), set(round_trip), kind
        self.limit, self.batch_size, self.device, self.seed = limit, batch_size, device, seed

    def measure(self, training: SubjectRecords, judged: SubjectRecords) -> tuple[dict[str, Any], Answers]:
        """Ask and measure.

        Args:
            training: what the trained ranges and the ways of the population are taken from.
            judged: the held-out subjects.

        Returns:
            The section ``faithfulness`` of metrics.json, and the numbers that it is taken from.
        """
        model = self.model(fit_population(training.codes, training.attributes, self.names))
        observer, truth = self.observer(model), judged.attributes[: self.limit]
        codes = torch.as_tensor(judged.codes[: self.limit], dtype=torch.float32, device=self.device)
        shape = len(self.names), len(codes), len(self.changes)
        requested = np.full((*shape, len(self.names)), np.nan)
        after, trips = (Numbers(shape, widths) for widths in observer.widths.values())
        before = self.undisturbed(observer, codes)
        for place, expected in self.requests(model, codes):
            requested[place] = expected
            attribute, rows, change = place
            asked = observer.ask(self.names[attribute], self.changes[change], codes[rows])
            after.add(place, observer.answered(asked))
            if asked.change in self.round_trip:
                trips.add(place, observer.round_trips(asked))
        answers = Answers(self.names, self.changes, requested, truth, before, after, trips)
        settings = {"kind": self.kind, "changes": self.changes, "round_trip": sorted(self.round_trip)}
        settings["corrected"] = {
            name: {attribute: line._asdict() for attribute, line in instrument.lines.items()}
            for name, instrument in observer.instruments.items()
            if isinstance(instrument, Corrected)
        }
        return settings | summary(answers, self.seed), answers

    def undisturbed(self, observer: Observer, codes: torch.Tensor) -> dict[tuple[str, str], np.ndarray]:
        """Numbers of all subjects without a request."""
        batches, first = [], 0
        for batch in self.loader:
            own_codes = codes[first : first + len(batch[Keys.IMAGE])]
            if not len(own_codes):  # beyond the limit
                break
            batches.append(observer.undisturbed(batch[Keys.IMAGE][: len(own_codes)].to(self.device), own_codes))
            first += len(own_codes)
        return {key: torch.cat([part[key] for part in batches]).double().cpu().numpy() for key in batches[0]}

    def requests(
        self, model: Counterfactuals, codes: torch.Tensor
    ) -> Iterator[tuple[tuple[int, np.ndarray, int], np.ndarray]]:
        """Allowed requests in batches: (attribute, subjects, change), and the changes (B, A) to be expected of them."""
        values = model.attributes(codes)
        kinds = [(k, r) for k in range(len(self.names)) for r in range(len(self.changes))]
        for k, r in tqdm(kinds, "requests", unit="request"):
            name, change = self.names[k], self.changes[r]
            allowed = model.allowed(values, name, change, self.kind).nonzero()[:, 0]
            # Of nothing: differences of volumes would be rounded, for each subject in another way.
            none, amounts = torch.zeros_like(values), values.new_full((len(values),), change)
            expected = model.expected(none, name, amounts, self.kind)
            for rows in allowed.split(self.batch_size) if len(allowed) else ():
                yield (k, rows.cpu().numpy(), r), expected[rows].double().cpu().numpy()


def own(values: np.ndarray) -> np.ndarray:
    """Of numbers of every attribute (A, subjects, R, A), those of the attribute that was asked: (A, subjects, R)."""
    return np.moveaxis(np.diagonal(values, axis1=0, axis2=3), -1, 0)


def summary(answers: Answers, seed: int = 0) -> dict[str, Any]:
    """Everything for metrics.json, with intervals."""
    return {
        "subjects": len(answers.truth),
        "requests": request_counts(answers),
        "instruments": {
            name: {
                images: measurement(answers.truth, answers.before[what, name], answers.names, seed)
                for images, what in (("scans", SCANNED), ("reconstructions", MEASURED))
            }
            for name in answers.instruments
        },
        "answers": {name: answered(answers, name, seed) for name in answers.instruments},
        "identity": identity(answers, seed),
        "agreement": agreement(answers, seed),
    }


def request_counts(answers: Answers) -> dict[str, dict[str, int]]:
    """Per attribute, how many requests there would be, are allowed, and met by the model's own account."""
    asked = own(answers.requested)
    met = own(np.abs(answers.after[LEFT, ""])) <= MET  # not where it is NaN
    return {
        name: {
            "asked": asked[k].size,
            "allowed": int(np.isfinite(asked[k]).sum()),
            "met": int(met[k].sum()),
        }
        for k, name in enumerate(answers.names)
    }


def answered(answers: Answers, instrument: str, seed: int) -> dict[str, dict]:
    """The figures of one instrument: those of the changes, and of round trips the errors in mL of the asked attribute.

    ``reversibility``: what a request and its opposite leave. ``composition``: difference of two half steps and one.
    ``idle``: change of a reconstruction that is encoded and decoded again without a request, for comparison.
    """
    before, after = answers.before[MEASURED, instrument], answers.after[MEASURED, instrument]
    back, twice = (answers.trips[what, instrument] for what in (REVERSED, COMPOSED))
    errors = {"reversibility": own(np.abs(back - before[:, None])), "composition": own(np.abs(twice - after))}
    errors["idle"] = np.abs(answers.before[IDLE, instrument] - before).T
    found = faithfulness(answers.requested, answers.changed(instrument), answers.names, seed)
    return found | {figure: subject_means(values, answers.names, seed) for figure, values in errors.items()}


def identity(answers: Answers, seed: int) -> dict[str, dict]:
    """LPIPS outside the heart: of a request, and for comparison of a reconstruction and its scan."""
    return {
        "changed": subject_means(answers.trips[OUTSIDE, ""], answers.names, seed),
        "reconstruction": bootstrap_mean(answers.before[OUTSIDE, ""], seed),
    }


def agreement(answers: Answers, seed: int) -> dict[str, dict]:
    """Dice of decoded maps and the segmentation of decoded images, with and without requests; empty without maps."""
    if (AGREEMENT, "") not in answers.after:
        return {}
    changed, unchanged = (np.moveaxis(part[AGREEMENT, ""], -1, 0) for part in (answers.after, answers.before))
    changed = np.moveaxis(changed, 1, 2).reshape(len(STRUCTURES), len(answers.truth), -1)
    return {
        "changed": subject_means(changed, STRUCTURES, seed),
        "unchanged": subject_means(unchanged, STRUCTURES, seed),
    }
