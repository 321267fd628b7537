"""What the page shows of hearts: frames before and after each request, as pictures and numbers ready for JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from scripts.cohort.attributes import UNITS
from scripts.counterfactual import ALL_ELSE_EQUAL, IN_POPULATION, KINDS, Counterfactuals
from scripts.figures import OUTLINES, attribute_name
from scripts.report_page.pictures import (
    BRIGHTER,
    DARKER,
    FINENESS,
    OPACITY,
    QUALITIES,
    STRONG,
    WEAK,
    montage,
    outline_paths,
)
from scripts.views import View

Measure = Callable[[torch.Tensor], Mapping[str, Any]]
BATCH = 32  # images measured at a time
BUDGET = 12e6  # bytes of all frames, where nobody says how many they may take
NOTES = {
    ALL_ELSE_EQUAL: "Only the attribute that you move is asked to change; the others should stay.",
    IN_POPULATION: "The rest of the heart follows, as it does on average in the training subjects.",
}


@dataclass(frozen=True)
class Heart:
    """A subject of the page.

    Args:
        number: its pseudonym.
        image: its scan (C, H, W).
        code: (D,).
        attributes: name to the value of its masks, NaN where unknown.
        notes: what the reader must know of it, most urgent first.
        out_of_range: whether the scan is one that the model does not know.
    """

    number: int
    image: torch.Tensor
    code: torch.Tensor
    attributes: Mapping[str, float]
    notes: Sequence[str] = ()
    out_of_range: bool = False


class HeartFrames:
    """Draw and measure hearts before and after requests.

    Args:
        counterfactuals: of the model.
        changes: in the attributes' units, that are asked of each attribute as far as they are allowed.
        measure: images (B, C, H, W) to attribute -> values (B,): an instrument that does not know what was asked; None
            where there is none.
        instrument: what it is, in a few words.
    """

    def __init__(
        self,
        counterfactuals: Counterfactuals,
        changes: Sequence[float],
        measure: Measure | None = None,
        instrument: str = "an independent instrument",
    ) -> None:
        self.counterfactuals, self.measure, self.instrument = counterfactuals, measure, instrument
        self.changes = sorted({float(change) for change in changes if change})
        self.names: tuple[str, ...] = counterfactuals.names
        self.view: View = counterfactuals.view
        self.quality = QUALITIES[0]

    def page(self, hearts: Sequence[Heart], budget: float = BUDGET) -> dict[str, Any]:
        """All that the page needs to show these hearts, in about so many bytes."""
        self.quality = self.affordable(hearts, budget)
        rows = [*self.names, *fractions(self.names)]
        return {
            "attributes": [{"name": name, "label": attribute_name(name), "unit": UNITS.get(name, "")} for name in rows],
            "sliders": len(self.names),
            "changes": sorted([0.0, *self.changes]),
            "kinds": [{"key": key, "label": KINDS[key].capitalize(), "note": note} for key, note in NOTES.items()],
            "phases": list(self.view.phases),
            "slices": list(self.view.slice_names),
            "first": self.view.pictured[len(self.view.pictured) // 2],
            "colors": [[round(255 * part) for part in color] for color in OUTLINES] if self.view.mapped else [],
            "difference": {"weak": WEAK, "strong": STRONG, "opacity": OPACITY, "brighter": BRIGHTER, "darker": DARKER},
            "fineness": FINENESS,
            "instrument": self.instrument if self.measure else "",
            "report": "volumes of its maps" if self.counterfactuals.measured_by_decoder else "told by its code alone",
            "subjects": [self.subject(heart) for heart in hearts],
        }

    def affordable(self, hearts: Sequence[Heart], budget: float) -> int:
        """The best quality at which the frames of all hearts fit, if they have no more detail than a scan has."""
        count = len(hearts) * (2 + len(KINDS) * len(self.names) * len(self.changes))
        for heart in hearts[:1]:
            maps, shown = self.view.slice_maps(heart.image), self.view.slice_images(heart.image)
            left = budget / count - (0 if maps is None else len(json.dumps(outline_paths(maps))))
            return next((each for each in QUALITIES if len(montage(shown, each)) <= left), QUALITIES[-1])
        return QUALITIES[0]

    def subject(self, heart: Heart) -> dict[str, Any]:
        """The frames of one heart."""
        code = heart.code[None]
        masks = torch.tensor([[heart.attributes[name] for name in self.names]])
        own = self.counterfactuals.attributes(code)
        return {
            "number": heart.number,
            "notes": list(heart.notes),
            "out_of_range": heart.out_of_range,
            "size": list(heart.image.shape[-2:]),
            "masks": listed(with_fractions(self.names, masks))[0],
            "scan": self.frames(heart.image[None])[0],
            "before": self.decoded(code, own)[0],
            "requests": {kind: {name: self.requests(code, own, name, kind) for name in self.names} for kind in KINDS},
        }

    def requests(self, code: torch.Tensor, own: torch.Tensor, name: str, kind: str) -> list[dict[str, Any]]:
        """Frames of all allowed changes of one attribute, each with its amount, of a code (1, D) with these values."""
        every = own.expand(len(self.changes), -1)
        allowed = self.counterfactuals.allowed(every, name, torch.tensor(self.changes).to(own), kind)
        # The page looks these up among its changes: no tensor may have rounded them.
        changes = [change for change, possible in zip(self.changes, allowed.tolist(), strict=True) if possible]
        if not changes:
            return []
        amounts = torch.tensor(changes).to(own)
        codes, values = code.expand(len(changes), -1), own.expand(len(changes), -1)
        changed = self.counterfactuals.change(codes, name, amounts, kind)
        frames = self.decoded(changed, self.counterfactuals.expected(values, name, amounts, kind))
        return [{"amount": change, **frame} for change, frame in zip(changes, frames, strict=True)]

    def decoded(self, codes: torch.Tensor, asked: torch.Tensor) -> list[dict[str, Any]]:
        """Frames of codes (B, D), with what was asked of them (B, A) and what the model itself says of them."""
        own, images = self.counterfactuals.attributes(codes), self.counterfactuals.decode(codes)
        asked, own = (listed(with_fractions(self.names, values)) for values in (asked, own))
        frames = zip(self.frames(images), asked, own, strict=True)
        return [{**frame, "asked": wanted, "own": said} for frame, wanted, said in frames]

    def frames(self, images: torch.Tensor) -> list[dict[str, Any]]:
        """Pictures, lines and measured values of images (B, C, H, W)."""
        measured = self.measured(images)
        shown, maps = self.view.slice_images(images), self.view.slice_maps(images)
        return [
            {
                "picture": montage(shown[row], self.quality),
                "lines": [] if maps is None else outline_paths(maps[row]),
                "measured": measured[row] if measured else [],
            }
            for row in range(len(images))
        ]

    @torch.no_grad()
    def measured(self, images: torch.Tensor) -> list[list[float | None]]:
        """What the instrument finds in images (B, C, H, W); nothing where there is none."""
        if self.measure is None:
            return []
        found = [self.measure(part) for part in images.split(BATCH)]
        nan = torch.full((len(images),), torch.nan)
        columns = [
            torch.cat([torch.as_tensor(each[name]).float().cpu() for each in found]) if name in found[0] else nan
            for name in self.names
        ]
        return listed(with_fractions(self.names, torch.stack(columns, dim=1)))


def fractions(names: Sequence[str]) -> list[str]:
    """The ejection fractions that follow from attributes."""
    return [f"{ventricle}EF" for ventricle in ("LV", "RV") if {f"{ventricle}EDV", f"{ventricle}ESV"} <= set(names)]


def with_fractions(names: Sequence[str], values: torch.Tensor) -> torch.Tensor:
    """Attributes (B, A), and behind them the ejection fractions (in %) that follow."""
    columns = dict(zip(names, values.unbind(1), strict=True))
    found = [100 * (1 - columns[f"{name[:2]}ESV"] / columns[f"{name[:2]}EDV"]) for name in fractions(names)]
    return torch.stack([*columns.values(), *found], dim=1)


def listed(values: torch.Tensor) -> list[list[float | None]]:
    """Numbers (B, A) for JSON, not yet as round as they are shown, and None for what is not finite."""
    return [[round(value, 3) if torch.tensor(value).isfinite() else None for value in row] for row in values.tolist()]
