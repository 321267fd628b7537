"""Is a scan of the kind that the model knows?

Two kinds of evidence, each in standard deviations of validation subjects (training subjects' errors are too small):

- how far the scan is from what the model knows: the mean of its reconstruction error (of the worse phase), the KL
  divergence of its code, and the Mahalanobis distance of its code from those of training subjects (covariance of
  Ledoit & Wolf, 2004);
- how much it looks like a sound scan with a simulated fault (``scripts.calibration.faults``): the log-odds of each
  fault against no fault, by linear discriminants with shrinkage on what ``features`` gives.

With the distance d, the log-odds f_k of fault k and those of any fault F, the score is max(F, max(d, f_1, f_2, ...) -
``MARGIN``): several indicators get out of line more often than one. Percentiles are those of a new subject by Student's
t, as if the indicators of sound scans were normal: 20 validation subjects cannot show a tail of 1 % themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import ndimage, special, stats
from sklearn.covariance import LedoitWolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from scripts.losses import kl_divergence
from scripts.views import View, as_view

MARGIN = 1.5  # standard deviations
SCALES = (0.5, 1.0, 2.0, 4.0)  # pixels
COARSE = 8  # pixels of the coarse image in each direction
NONE, ANY, GENERAL, SCORE = "none", "any_fault", "general", "score"
TINY = 1e-9
FEWEST = 3  # subjects that a spread can be taken from


class Novelty(NamedTuple):
    """How unusual one scan is.

    Args:
        percentiles: of each indicator: the share of sound scans, in percent, that are less unusual.
        score: of all together, in standard deviations of sound scans.
        percentile: of the score.
        out_of_range: whether the percentile is above the threshold.
    """

    percentiles: dict[str, float]
    score: float
    percentile: float
    out_of_range: bool


class Readings(NamedTuple):
    """What of a batch of subjects is kept for the check.

    Args:
        indicators: name -> (subjects,): logarithms of the errors per phase and of the KL divergence.
        codes: (subjects, D).
        features: (subjects, F).
    """

    indicators: dict[str, np.ndarray]
    codes: np.ndarray
    features: np.ndarray

    @classmethod
    def join(cls, batches: Sequence[Readings]) -> Readings:
        """All batches as one."""
        names = batches[0].indicators
        indicators = {name: np.concatenate([batch.indicators[name] for batch in batches]) for name in names}
        return cls(indicators, *(np.concatenate(part) for part in list(zip(*batches, strict=True))[1:]))


def readings(
    codes: torch.Tensor,
    log_variances: torch.Tensor,
    image: torch.Tensor,
    reconstruction: torch.Tensor,
    view: View | Sequence[str],
) -> Readings:
    """Read a batch: of what is shown, the images alone, since occupancy maps are not of the scanner.

    Args:
        codes, log_variances: (B, D) of q(z|x).
        image, reconstruction: all channels (B, C, H, W).
        view: of the channels, or phases.
    """
    view = as_view(view)
    tensors = (torch.as_tensor(part).detach().cpu().double() for part in (codes, log_variances, image, reconstruction))
    codes, log_variances, image, reconstruction = tensors
    image, reconstruction = image[:, : view.images], reconstruction[:, : view.images]
    error = (image - reconstruction).square()
    of_phase = torch.stack([part.mean((1, 2, 3)) for part in error.chunk(len(view.phases), dim=1)])
    named = {f"error_{phase}": values for phase, values in zip(view.phases, of_phase, strict=True)}
    named["kl"] = kl_divergence(codes, log_variances)
    indicators = {name: np.log(values.numpy() + TINY) for name, values in named.items()}
    return Readings(indicators, codes.numpy(), features(codes, log_variances, image, image - reconstruction))


def features(codes: torch.Tensor, log_variances: torch.Tensor, image: torch.Tensor, error: torch.Tensor) -> np.ndarray:
    """What the log-odds of faults are taken from, (B, F).

    Codes and log-variances (B, D), a coarse image, and the texture of image and error (B, C, H, W): faults of what is
    shown are seen in the first three, motion in the texture.
    """
    coarse = torch.nn.functional.adaptive_avg_pool2d(image, COARSE).flatten(1)
    return np.hstack([codes, log_variances, coarse, texture(image.numpy()), texture(error.numpy())])


def texture(image: np.ndarray) -> np.ndarray:
    """Power of each channel in bands of frequency, and how peaked it is there, as logarithms: (B, 2 C scales)."""
    values, before = [], image
    for scale in SCALES:
        smooth = ndimage.gaussian_filter(image, (0, 0, scale, scale))
        band, before = before - smooth, smooth
        power = (band**2).mean((-1, -2)) + TINY
        values += [np.log(power), np.log((band**4).mean((-1, -2)) / power**2 + TINY)]
    return np.concatenate(values, axis=1)


class NoveltyModel:
    """Tells how unusual a scan is; made by ``fit`` or from what ``state`` has given.

    Args:
        mean, precision: of training codes, (D,) and (D, D).
        faults: names of the simulated faults.
        weights, offsets: the log-odds of each fault are ``features @ weights.T + offsets``: (faults, F) and (faults,).
        reference: indicator -> its mean and standard deviation in the subjects that percentiles refer to.
        subjects: how many these are.

    Raises:
        ValueError: for parts whose shapes do not fit each other.
    """

    def __init__(
        self,
        mean: Any,
        precision: Any,
        faults: Sequence[str],
        weights: Any,
        offsets: Any,
        reference: Mapping[str, Sequence[float]] | None = None,
        subjects: int = 0,
    ) -> None:
        arrays = (np.asarray(part, float) for part in (mean, precision, weights, offsets))
        self.mean, self.precision, self.weights, self.offsets = arrays
        self.faults, self.subjects = list(faults), subjects
        dimensions = len(self.mean)  # NumPy would stretch what has one element only
        if self.precision.shape != (dimensions, dimensions) or self.offsets.shape != (len(self.faults),):
            raise ValueError("precision and offsets of the check do not fit its mean and faults")
        self.reference = {name: tuple(values) for name, values in (reference or {}).items()}

    @classmethod
    def fit(cls, training: Readings, faulty: Mapping[str, Readings], validation: Readings | None) -> NoveltyModel:
        """Fit on training subjects, sound and with each fault, and set the scale on validation subjects.

        Args:
            training, validation: sound scans. Fewer than 3 validation subjects have no spread; the scale is then that
                of training subjects, and the check too strict.
            faulty: fault -> the training subjects' scans with it.
        """
        spread = LedoitWolf().fit(training.codes)
        weights, offsets = fault_odds(training, faulty)
        model = cls(spread.location_, spread.precision_, list(faulty), weights, offsets)
        sound = training if validation is None or len(validation.codes) < FEWEST else validation
        model.subjects = len(sound.codes)
        indicators = model.indicators(sound)
        for names in (list(indicators), [GENERAL], [SCORE]):  # each is made of those before
            values = indicators if names[0] in indicators else model.combined(model.standardized(indicators))
            model.reference |= {name: _mean_and_spread(values[name]) for name in names}
        return model

    def state(self) -> dict[str, Any]:
        """What makes the same model again, for JSON; six digits are more than the subjects determine."""
        state = {name: _rounded(getattr(self, name)) for name in ("mean", "precision", "weights", "offsets")}
        return state | {"faults": self.faults, "reference": self.reference, "subjects": self.subjects}

    def indicators(self, read: Readings) -> dict[str, np.ndarray]:
        """Every indicator, (subjects,) each: of distance, of each fault, and of any fault at all."""
        apart = read.codes - self.mean
        distance = np.einsum("ni,ij,nj->n", apart, self.precision, apart)
        odds = (read.features @ self.weights.T + self.offsets).T
        named = dict(zip(self.faults, odds, strict=True))
        return {
            **read.indicators,
            "code": np.log(np.maximum(distance, 0) + TINY),
            **named,
            ANY: special.logsumexp(odds, axis=0),
        }

    def standardized(self, indicators: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Indicators in standard deviations from the mean of their reference."""
        return {name: self._z(name, values) for name, values in indicators.items()}

    def combined(self, z: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The general distance and the score of standardized indicators."""
        errors = np.maximum.reduce([values for name, values in z.items() if name.startswith("error_")])
        general = np.mean([errors, z["kl"], z["code"]], axis=0)
        if GENERAL not in self.reference:
            return {GENERAL: general}
        single = [self._z(GENERAL, general), *(z[fault] for fault in self.faults)]
        return {GENERAL: general, SCORE: np.maximum(z[ANY], np.max(single, axis=0) - MARGIN)}

    def judge(self, read: Readings, threshold: float) -> Novelty:
        """How unusual the one subject that has been read is.

        Args:
            read: of a batch of one.
            threshold: percentile of the score above which it is out of range.
        """
        z = self.standardized(self.indicators(read))
        score = self._z(SCORE, self.combined(z)[SCORE])
        percentiles = {name: self._percentile(values) for name, values in z.items() if name != ANY}
        percentile = self._percentile(score)
        return Novelty(percentiles, float(score[0]), percentile, percentile > threshold)

    def _z(self, name: str, values: np.ndarray) -> np.ndarray:
        mean, spread = self.reference[name]
        return (values - mean) / spread

    def _percentile(self, z: np.ndarray) -> float:
        """Of a new subject: its distance to a mean and in a spread that are themselves uncertain."""
        return float(100 * stats.t.cdf(z[0] / np.sqrt(1 + 1 / self.subjects), self.subjects - 1))


def fault_odds(training: Readings, faulty: Mapping[str, Readings]) -> tuple[np.ndarray, np.ndarray]:
    """Weights (faults, F) and offsets (faults,) of the log-odds of each fault against none."""
    scans = {NONE: training, **faulty}
    labels = np.concatenate([[kind] * len(read.features) for kind, read in enumerate(scans.values())])
    equal = [1 / len(scans)] * len(scans)
    discriminants = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=equal)
    model = make_pipeline(StandardScaler(), discriminants)
    model.fit(np.concatenate([read.features for read in scans.values()]), labels)
    scaler = model[0]
    coefficients = discriminants.coef_, discriminants.intercept_
    if len(scans) == 2:  # scikit-learn gives the difference then
        weights, offsets = coefficients
    else:
        weights, offsets = (part[1:] - part[:1] for part in coefficients)
    weights = weights / scaler.scale_
    return weights, offsets - weights @ scaler.mean_


def _mean_and_spread(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1)) + TINY


def _rounded(values: np.ndarray) -> Any:
    return np.vectorize(lambda value: float(f"{value:.6g}"), otypes=[float])(values).tolist()
