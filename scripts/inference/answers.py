"""What if one attribute of a subject were another: the answer of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from scripts.cohort.attributes import UNITS
from scripts.counterfactual import ALL_ELSE_EQUAL, Counterfactuals, Request
from scripts.inference.results import Result, digits

NOTABLE = 1.0  # mL: what a request misses by more is told
FAR = 2.0  # standard deviations of the training codes: of a dimension that moves by more, that is told


@dataclass(frozen=True)
class Answer:
    """What became of a request to one subject.

    Args:
        request: what was asked.
        result: of the scan, with the check of the range; its reconstruction is the heart before.
        image: (C, H, W), the heart after.
        before, after: attribute to what the model says of both hearts, in mL.
        asked: attribute to what it shall be afterwards; those that may follow freely are left out.
        by_maps: whether these are volumes of decoded maps; else a line tells them from the code.
        limits: attribute to its range in the training subjects.
        moved: by how many standard deviations of the training codes a dimension has moved at most.
    """

    request: Request
    result: Result
    image: np.ndarray
    before: Mapping[str, float]
    after: Mapping[str, float]
    asked: Mapping[str, float]
    by_maps: bool
    limits: Mapping[str, tuple[float, float]]
    moved: float

    @property
    def missed(self) -> float:
        """By how much the heart after is at most not what was asked, in mL."""
        worst = farthest(self.after, self.asked)
        return abs(self.after[worst] - self.asked[worst])


def answer_of(result: Result, request: Request, counterfactuals: Counterfactuals) -> Answer:
    """Fulfill a request to one subject.

    Raises:
        RequestError: where it is refused.
    """
    tool, name, kind = counterfactuals, request.attribute, request.kind
    codes = torch.as_tensor(result.codes)[None].to(next(tool.network.parameters()))
    before = tool.attributes(codes)
    amounts = request.amounts(before[:, tool.index(name)])
    for refusal in filter(None, tool.refusals(before, name, amounts, kind)):
        raise refusal
    changed = tool.change(codes, name, amounts, kind)
    told = (before, tool.attributes(changed), tool.expected(before, name, amounts, kind))
    before, after, asked = (dict(zip(tool.names, values[0].tolist(), strict=True)) for values in told)
    ranges = zip(tool.names, zip(tool.population.low, tool.population.high, strict=True), strict=True)
    return Answer(
        request=request,
        result=result,
        image=tool.decode(changed)[0].float().cpu().numpy(),
        before=before,
        after=after,
        asked=judged(asked, name, kind),
        by_maps=tool.measured_by_decoder,
        limits=dict(ranges),
        moved=tool.distance(codes, changed)[0].item(),
    )


def judged(asked: Mapping[str, float], name: str, kind: str) -> Mapping[str, float]:
    """Of what a heart shall have after a change of one attribute, what the answer is judged by; the rest is free."""
    return asked if kind == ALL_ELSE_EQUAL else {name: asked[name]}


def far_sentence(moved: float) -> str:
    """What a move of more than ``FAR`` means; nothing for a smaller one."""
    return f"FAR: the code moved by up to {moved:.2f} standard deviations; pictures may break." if moved > FAR else ""


def farthest(after: Mapping[str, float], asked: Mapping[str, float]) -> str:
    """The attribute that is farthest from what it was to be."""
    return max(asked, key=lambda name: abs(after[name] - asked[name]))


def notable(after: Mapping[str, float], asked: Mapping[str, float]) -> str:
    """The same where its distance is more than ``NOTABLE``; else, or where nothing is asked, no name."""
    worst = farthest(after, asked) if asked else ""
    return worst if worst and abs(after[worst] - asked[worst]) > NOTABLE else ""


def missed_sentence(after: Mapping[str, float], asked: Mapping[str, float]) -> str:
    """Which attribute is farthest from what it was to be, where that is ``NOTABLE``."""
    worst = notable(after, asked)
    if not worst:
        return ""
    return f"NOT FULFILLED: {worst} is {after[worst]:.0f} instead of {asked[worst]:.0f} {UNITS.get(worst, '')}."


def gap_notes(own: Mapping[str, float], masks: Mapping[str, float | None]) -> list[str]:
    """How far the heart as a model sees it is from the scan's masks, where those are known.

    Args:
        own: attribute to what the model says of a scan's heart, by decoded maps or by its code.
        masks: attribute to what was measured on the masks; None, NaN or absent where unknown.
    """
    known = {name: masks[name] for name in own if masks.get(name) is not None and not math.isnan(masks[name])}
    worst = notable(own, known)
    if not worst:
        return []
    return [
        f"A change starts from the heart as the model sees it, which is not quite the scan's: its {worst} is "
        f"{own[worst]:.0f} where the masks have {known[worst]:.0f} {UNITS.get(worst, '')} (the largest difference)."
    ]


def answer_row(answer: Answer) -> dict[str, Any]:
    """A row of ``whatif.csv``; what was not asked stays empty."""
    result, request = answer.result, answer.request
    row: dict[str, Any] = {"subject": result.item["subject"], "attribute": request.attribute, "kind": request.kind}
    row["change"] = digits(answer.asked[request.attribute] - answer.before[request.attribute])
    row |= {
        "missed": digits(answer.missed),
        "moved": digits(answer.moved),
        "told_by": "decoded maps" if answer.by_maps else "code",
    }
    row |= {"out_of_range": bool(result.novelty.out_of_range), "percentile": digits(result.novelty.percentile)}
    for name in answer.before:
        row |= {f"{name}_mask": digits(result.item.get(name)), f"{name}_before": digits(answer.before[name])}
        row |= {f"{name}_asked": digits(answer.asked.get(name)), f"{name}_after": digits(answer.after[name])}
    return row
