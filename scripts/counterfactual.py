"""Counterfactuals in physical units: the code of a heart in which one attribute is larger or smaller by so many mL.

Two kinds, which answer different questions:

- ``all_else_equal``: what differs between this heart and the same one with 20 mL more LVEDV? The regularized dimensions
  move such that this attribute changes and the others stay. That takes all of them: they are coupled, so it is solved
  for, not assumed.
- ``population``: how do hearts with 20 mL more LVEDV look? The code moves along the conditional mean of the training
  subjects' codes, and all that goes with LVEDV in them goes with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from monai.networks.utils import eval_mode

from scripts.calibration.calibration import Calibration
from scripts.calibration.population import Population
from scripts.cohort.attributes import SIGNED, UNITS, VOLUMES
from scripts.least_squares import solve
from scripts.networks import VariationalAutoencoder
from scripts.views import View

ALL_ELSE_EQUAL, IN_POPULATION = "all_else_equal", "population"
KINDS = {ALL_ELSE_EQUAL: "all else equal", IN_POPULATION: "as in the population"}  # with their names for people
TOLERANCE = 0.1  # mL: far below what a segmentation can tell; where moves cost, they are balanced with what is left
ASKED = 2.0  # times as much as that of another attribute counts the error of the one that is asked for, before squaring
COST = 0.08  # of what an attribute gains in mL from all dimensions: that error is as bad as a move of 1 deviation
REACH = 5.0  # standard deviations of the training codes that a dimension may move: beyond, nothing was learned
APART = 0.1  # in which changes are told, and by which a ventricle is larger at ED than at ES
LARGEST = 1e6  # mL: no heart has a thousandth of it
CHUNK = 64  # codes decoded at once
CAVITIES = (("LVEDV", "LVESV"), ("RVEDV", "RVESV"))  # the first of each is larger


class RequestError(ValueError):
    """A request that cannot be fulfilled; says of which attribute, which value was asked for, and what is possible."""


@dataclass(frozen=True)
class Request:
    """What is asked of an attribute: a change or a target, in its unit (mL for volumes).

    Args:
        attribute: name of the attribute.
        change: to be added to what a heart has.
        target: what it shall have afterwards, instead of a change.
        kind: one of ``KINDS``.

    Raises:
        RequestError: for anything else, naming the key.
    """

    attribute: str
    change: float | None = None
    target: float | None = None
    kind: str = ALL_ELSE_EQUAL

    def __post_init__(self) -> None:
        check_kind(self.kind)
        if not isinstance(self.attribute, str):
            raise RequestError(f"attribute is {self.attribute!r}; name the one to change, such as --attribute LVEDV")
        if (self.change is None) == (self.target is None):
            both = "both are" if self.change is not None else "neither is"
            raise RequestError(f"{self.attribute} needs either --change or --target, in mL; {both} given")
        key, value = ("change", self.change) if self.target is None else ("target", self.target)
        if not is_number(value):
            raise RequestError(f"{key} {value!r} of {self.attribute} is no number; expected one in mL, such as 20")
        object.__setattr__(self, key, float(value))  # NumPy's numbers are written to JSON, too
        if self.change == 0:
            raise RequestError(f"change 0 of {self.attribute} asks for nothing; expected one in mL, such as 20")

    @property
    def name(self) -> str:
        """Short, for a folder: ``LVEDV_+20``, ``LVEDV_to_150``, ``LVEDV_-10_population``."""
        asked = f"{self.change:+.12g}" if self.target is None else f"to_{self.target:.12g}"
        return f"{self.attribute}_{asked}" + ("" if self.kind == ALL_ELSE_EQUAL else f"_{self.kind}")

    def amounts(self, values: torch.Tensor) -> torch.Tensor:
        """By how much the attribute shall change in hearts that have these values (B,) of it."""
        return torch.full_like(values, self.change) if self.target is None else self.target - values


class Counterfactuals:
    """Codes that fulfill requests, by what the model itself says of codes.

    That is its self-report: whether the decoded *image* follows is for other instruments to measure.

    Args:
        network: decodes; is used in evaluation mode.
        view: of the channels of its images.
        spacing: pixel size in mm.
        population: of the model's training subjects, see ``scripts.calibration``.
    """

    def __init__(self, network: VariationalAutoencoder, view: View, spacing: float, population: Population) -> None:
        self.network, self.view, self.spacing, self.population = network, view, spacing, population
        self.names = tuple(population.attributes)
        effects = np.multiply(population.matrix, population.spread[: len(self.names)])
        self.cost = COST * float(np.linalg.norm(effects, axis=1).mean())

    @property
    def measured_by_decoder(self) -> bool:
        """Whether the decoded maps have the volumes; else a line through the training subjects estimates them."""
        return self.view.is_stack and bool(self.view.mapped) and set(self.names) <= set(VOLUMES)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (B, D) to all channels (B, C, H, W), without a gradient."""
        with eval_mode(self.network):
            return torch.cat([self.network.decode(part) for part in codes.split(CHUNK)])

    def attributes(self, codes: torch.Tensor) -> torch.Tensor:
        """What the model says of codes: (B, D) to (B, A), in the attributes' units (mL for volumes)."""
        if self.measured_by_decoder:
            measured = [self.view.volumes(self.decode(part), self.spacing) for part in codes.split(CHUNK)]
            return torch.cat([torch.stack([part[name] for name in self.names], dim=1) for part in measured])
        own = codes[:, : len(self.names)]
        return own @ self._like(codes, self.population.matrix).T + self._like(codes, self.population.intercept)

    def change(
        self, codes: torch.Tensor, name: str, amounts: torch.Tensor | float, kind: str = ALL_ELSE_EQUAL
    ) -> torch.Tensor:
        """The codes of hearts in which an attribute has changed.

        Of codes that are about as near to the request, the least moved one is meant: as for the mode of a posterior,
        moves in standard deviations of the training codes count beside errors in parts of ``COST``. Else dimensions
        that hardly change a volume would be moved far for the last mL, to where the decoder has learned nothing. What
        then cannot be had altogether is shared: the attribute that was asked for counts ``ASKED`` times as much as one
        that is to stay. No dimension moves by more than ``REACH``. ``residuals`` tells what is left of the request.

        Args:
            codes: (B, D); each row is solved for by itself.
            name: of the attribute.
            amounts: (B,), or one for all: by how much it shall change, in its unit.
            kind: ``all_else_equal`` or ``population``, see the head of this module.

        Returns:
            (B, D).

        Raises:
            RequestError: for an attribute that the model was not trained on, or an unknown kind.
        """
        directions, judged = self._directions(codes, name, kind)
        amounts = torch.as_tensor(amounts).to(codes).expand(len(codes))
        values = self.attributes(codes)
        targets = self.expected(values, name, amounts, kind)

        def moved(steps: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            found = weights * self.attributes(codes[rows] + steps @ directions)
            return torch.cat([found[:, judged], cost * steps], dim=1)

        weights = self._like(codes, [ASKED if other == name else 1.0 for other in self.names])
        cost = self.cost if kind == ALL_ELSE_EQUAL else 0.0  # of one direction, there is nothing to choose
        still = codes.new_zeros(len(codes), len(directions))
        before, after = (torch.cat([(weights * part)[:, judged], still], dim=1) for part in (values, targets))
        steps = solve(moved, before, after, len(directions), TOLERANCE, REACH)
        return codes + steps @ directions

    def expected(
        self, values: torch.Tensor, name: str, amounts: torch.Tensor, kind: str = ALL_ELSE_EQUAL
    ) -> torch.Tensor:
        """What a request makes of hearts that have these attributes (B, A): (B, A).

        All else equal, the others stay. In the population they follow as they do in the training subjects, which is
        what is to be expected and not what is solved for.
        """
        index, follow = self.index(name), self._like(values, torch.zeros(len(self.names)))
        if kind == IN_POPULATION:
            matrix, slopes = (self._like(values, getattr(self.population, part)) for part in ("matrix", "slopes"))
            along = matrix @ slopes[: len(self.names), index]
            follow = along / along[index] if along[index] > 0 else follow
        follow[index] = 1
        return values + amounts[:, None] * follow

    def residuals(
        self,
        codes: torch.Tensor,
        changed: torch.Tensor,
        name: str,
        amounts: torch.Tensor | float,
        kind: str = ALL_ELSE_EQUAL,
    ) -> torch.Tensor:
        """What changed codes (B, D) have more of each attribute than was expected of the request: (B, A)."""
        amounts = torch.as_tensor(amounts).to(codes).expand(len(codes))
        return self.attributes(changed) - self.expected(self.attributes(codes), name, amounts, kind)

    def distance(self, codes: torch.Tensor, changed: torch.Tensor) -> torch.Tensor:
        """By how many standard deviations of the training codes a dimension has moved at most, (B,)."""
        spread = self._like(codes, self.population.spread)
        moves = (changed - codes).abs()
        return torch.where(moves > 0, moves / spread, 0).amax(1)

    def allowed(
        self, values: torch.Tensor, name: str, amounts: torch.Tensor | float, kind: str = ALL_ELSE_EQUAL
    ) -> torch.Tensor:
        """Whether each request (B,) is within the trained range and leads to a possible heart, see ``refusals``."""
        refusals = self.refusals(values, name, amounts, kind)
        return torch.tensor([refusal is None for refusal in refusals], device=values.device)

    def refusals(
        self, values: torch.Tensor, name: str, amounts: torch.Tensor | float, kind: str = ALL_ELSE_EQUAL
    ) -> list[RequestError | None]:
        """Why requests to hearts that have these attributes (B, A) are refused; None for each that is not.

        A request is refused where the asked value is outside the range of the training subjects, a volume would not be
        above 0, or a ventricle's volume at ED not above that at ES.
        """
        index = self.index(name)
        check_kind(kind)
        amounts = torch.as_tensor(amounts).to(values).expand(len(values))
        both = values, self.expected(values, name, amounts, kind)
        hearts, changed = ([dict(zip(self.names, row, strict=True)) for row in part.tolist()] for part in both)
        limits = self.population.low[index], self.population.high[index]
        refusals: list[RequestError | None] = []
        for before, after in zip(hearts, changed, strict=True):
            problem = outside(name, after[name], limits) or impossible(name, before, after)
            refusals.append(problem and RequestError(f"{problem}; {left_to_ask(name, before, limits, kind)}"))
        return refusals

    def index(self, name: str) -> int:
        """The number of an attribute; raises RequestError for one that the model was not trained on."""
        if name not in self.names:
            raise RequestError(f"the model was not trained on attribute '{name}'; it has {', '.join(self.names)}")
        return self.names.index(name)

    def _directions(self, codes: torch.Tensor, name: str, kind: str) -> tuple[torch.Tensor, Sequence[int]]:
        """Along what codes move (n, D), one standard deviation of the training codes each, and what has to be met."""
        index, spread = self.index(name), self._like(codes, self.population.spread)
        check_kind(kind)
        if kind == ALL_ELSE_EQUAL:
            return torch.diag(spread)[: len(self.names)], range(len(self.names))
        along = self._like(codes, self.population.slopes)[:, index]
        longest = (along.abs() / spread.clamp(min=torch.finfo(spread.dtype).tiny)).amax()
        return (along / longest.clamp(min=torch.finfo(spread.dtype).tiny))[None], [index]

    @staticmethod
    def _like(codes: torch.Tensor, values: torch.Tensor | Sequence) -> torch.Tensor:
        """Numbers as a tensor of the kind and on the device of others."""
        return torch.as_tensor(values).to(codes)


def counterfactuals_of(
    network: VariationalAutoencoder, view: View, spacing: float, regularize: bool, calibration: Calibration | None
) -> Counterfactuals:
    """The counterfactuals of a trained model.

    Args:
        network, view, spacing: of the model.
        regularize: whether its dimensions follow attributes.
        calibration: of the model, with what its training subjects tell.

    Raises:
        ValueError: for a model or a calibration that knows too little, saying what to do.
    """
    if not regularize:
        raise ValueError(
            "this model was trained without attribute loss (regularize is False): no dimension of it follows an "
            "attribute that could be changed. Train one without sivae.json, beta_vae.json and --gamma 0"
        )
    if calibration is None or calibration.population is None:
        lack = (
            "has no calibration.json of these weights beside it (a warning above says if there is another)"
            if calibration is None
            else "has a calibration.json of an earlier version, which lacks what tells of codes and attributes together"
        )
        raise ValueError(
            f"this model {lack}: 'run calibrate' with train.json, and the overlays and paths of the training, writes it"
        )
    return Counterfactuals(network, view, spacing, calibration.population)


def is_number(value: Any) -> bool:
    """Whether a value is a number that a change may be: finite, no truth value, and none that a tensor cannot hold."""
    return not isinstance(value, bool) and isinstance(value, Real) and bool(abs(value) <= LARGEST)


def check_changes(changes: Any, key: str) -> None:
    """Raise ValueError, naming the key, for a list of changes that cannot be asked for."""
    known = isinstance(changes, list | tuple) and all(is_number(value) for value in changes)
    if not known or not changes or 0 in changes or len(set(changes)) < len(changes):
        raise ValueError(f"{key} is {changes!r}: expected a list of different numbers in mL, none of them 0.")


def check_kind(kind: str) -> None:
    """Raise RequestError for a kind of counterfactual that there is not."""
    if kind not in KINDS:
        raise RequestError(f"kind '{kind}' is unknown; expected one of {', '.join(KINDS)}")


def outside(name: str, value: float, limits: tuple[float, float]) -> str | None:
    """Why a value (or NaN) is not in the trained range, if it is not."""
    low, high = limits
    if low <= value <= high:
        return None
    unit = UNITS.get(name, "")
    return f"{name} of {value:.1f} {unit} is outside the trained range of {low:.0f} to {high:.0f} {unit}"


def impossible(name: str, before: Mapping[str, float], after: Mapping[str, float]) -> str | None:
    """Why there is no heart with these attributes, where a change of one, and what follows it, has made it so."""
    changed = {each for each, value in after.items() if value != before[each]}
    for each in after:
        if each in changed and each not in SIGNED and not after[each] > 0:
            return f"this would leave {each} at {after[each]:.0f} {UNITS.get(each, '')}; it has to be above 0"
    for larger, smaller in CAVITIES:
        pair = {larger, smaller}
        if pair & changed and pair <= set(after) and not after[larger] > after[smaller]:
            return (
                f"{name} of {after[name]:.0f} mL is not possible: {larger} of {after[larger]:.0f} mL has to be above "
                f"{smaller} of {after[smaller]:.0f} mL"
            )
    return None


def left_to_ask(name: str, before: Mapping[str, float], limits: tuple[float, float], kind: str) -> str:
    """Which changes of a heart are not refused, in words; in the population, as far as the trained range goes."""
    low, high = limits
    low = low if name in SIGNED else max(low, APART)
    for larger, smaller in CAVITIES if kind == ALL_ELSE_EQUAL else ():
        if name == larger:
            low = max(low, before.get(smaller, low) + APART)
        elif name == smaller:
            high = min(high, before.get(larger, high) - APART)
    # Not rounded to the next: all else equal, what is named must not be refused. Adding 0 makes -0 positive.
    least, most = np.ceil((low - before[name]) / APART) * APART + 0, np.floor((high - before[name]) / APART) * APART + 0
    unit = UNITS.get(name, "")
    heart = f"to the model this heart has {before[name]:.1f} {unit}"
    if least > most:
        return f"{heart}, and no change of it can be asked for"
    leaves = "which leaves" if kind == ALL_ELSE_EQUAL else "of which the trained range alone leaves"
    return f"{heart}, {leaves} changes from {least:+.1f} to {most:+.1f} {unit}"
