"""The view: which slices of a heart a model sees, and how they lie in the channels of ``image`` and ``pred``.

Everything that looks into channels asks the view. They are, in this order:

1. images, phase by phase and in each slice by slice from base to apex: P * S channels;
2. with ``anatomy: masks``, occupancy maps in the same order, for each slice LV, Myo and RV: P * S * 3 channels. A value
   is the share of a pixel that the structure takes, 0 to 1; what none of the three takes is background.

So ``image[:, :view.images]`` are images in every view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from scripts.cohort.layout import LABELS, PHASES

STRUCTURES = tuple(LABELS)  # in the order of their labels, which is that of the maps
LEVELS = ("basal", "mid", "apical")
STACK = "stack"
ANATOMIES = ("none", "masks")
PICTURES = 3  # slices of a phase that pictures show; more would be too small to judge


@dataclass(frozen=True)
class View:
    """What of a heart the channels of an image show.

    Args:
        phases: ``ED``, ``ES`` or both.
        slices: ``basal`` is the paper's view: the basal slice, aligned by itself. A list of basal, mid and apical, in
            this order, shows these slices; ``stack`` the whole heart, from one slice above the basal one towards the
            apex. All slices of a list or stack share one center and rotation.
        anatomy: ``masks`` adds occupancy maps of LV, Myo and RV to each slice, ``none`` adds nothing.
        stack_slices: number of slices of a stack; where the scan ends before, they are zero.
        slice_distance: of the slices of a stack, in mm.

    Raises:
        ValueError: naming the key whose value is none of these.
    """

    phases: Sequence[str] = PHASES
    slices: str | Sequence[str] = "basal"
    anatomy: str = "none"
    stack_slices: int = 12
    slice_distance: float = 10.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "phases", checked_phases(self.phases))
        object.__setattr__(self, "slices", checked_slices(self.slices))
        if self.anatomy not in ANATOMIES:
            raise ValueError(f"anatomy '{self.anatomy}' is unknown; expected one of {', '.join(ANATOMIES)}.")
        if type(self.stack_slices) is not int or self.stack_slices < 1:
            raise ValueError(f"stack_slices {self.stack_slices!r} needs to be a whole number of at least 1.")
        if not self.slice_distance > 0:
            raise ValueError(f"slice_distance {self.slice_distance} needs to be a positive number, in mm.")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> View:
        """The view among the settings of a model; those made before there was a choice name ``phases`` only."""
        return cls(**{field.name: settings[field.name] for field in fields(cls) if field.name in settings})

    @property
    def settings(self) -> dict[str, Any]:
        """What tells this view from others, for JSON: without the numbers of a stack where there is none."""
        slices = self.slices if isinstance(self.slices, str) else list(self.slices)
        settings = {"phases": list(self.phases), "slices": slices, "anatomy": self.anatomy}
        stack = {"stack_slices": self.stack_slices, "slice_distance": self.slice_distance}
        return settings | (stack if self.is_stack else {})

    @property
    def is_stack(self) -> bool:
        """Whether slices follow each other at a known distance, so that volumes can be measured."""
        return self.slices == STACK

    @property
    def mapped(self) -> tuple[str, ...]:
        """The phases that have occupancy maps: all of them, or none."""
        return self.phases if self.anatomy == "masks" else ()

    @property
    def slice_names(self) -> tuple[str, ...]:
        """Name of each slice of a phase, from base to apex."""
        if not self.is_stack:
            return (self.slices,) if isinstance(self.slices, str) else self.slices
        below = [f"{number * self.slice_distance:g} mm below" for number in range(1, self.stack_slices - 1)]
        return (f"{self.slice_distance:g} mm above", "base", *below)[: self.stack_slices]

    @property
    def images(self) -> int:
        """Number of channels that are images; the others, behind them, are occupancy maps."""
        return len(self.phases) * len(self.slice_names)

    @property
    def channels(self) -> int:
        """Number of all channels."""
        return self.images + len(self.mapped) * len(self.slice_names) * len(STRUCTURES)

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Name of each channel: ``ED``, of several slices ``ED basal``; of a map ``ED basal LV``."""
        single = len(self.slice_names) == 1
        images = [phase if single else f"{phase} {name}" for phase in self.phases for name in self.slice_names]
        return (*images, *(f"{image} {name}" for image in images if self.mapped for name in STRUCTURES))

    @property
    def description(self) -> str:
        """The view in words."""
        names = f"{', '.join(self.slice_names)} short-axis slice{'s' if len(self.slice_names) > 1 else ''}"
        if self.is_stack:
            names = f"{self.stack_slices} short-axis slices every {self.slice_distance:g} mm from one above the base"
        return names + (" with occupancy maps of LV, myocardium and RV" if self.mapped else "")

    @property
    def pictured(self) -> tuple[int, ...]:
        """Which slices of a phase pictures show: of a stack the base, and two of the hearts' middle and lower parts."""
        count = len(self.slice_names)
        return tuple(range(count)) if count <= PICTURES else (1, 1 + count // 4, 1 + count // 2)

    def slice_images(self, values: torch.Tensor) -> torch.Tensor:
        """The images of all channels (..., C, H, W) by phase and slice: (..., P, S, H, W)."""
        return values[..., : self.images, :, :].unflatten(-3, (len(self.phases), -1))

    def slice_maps(self, values: torch.Tensor) -> torch.Tensor | None:
        """The maps of all channels (..., C, H, W) by phase, slice and structure: (..., P, S, 3, H, W); or None."""
        if not self.mapped:
            return None
        return values[..., self.images :, :, :].unflatten(-3, (len(self.phases), -1, len(STRUCTURES)))

    def inside(self, values: torch.Tensor) -> torch.Tensor:
        """Which slices (..., P, S) of all channels (..., C, H, W) of a scan show anything: others lie beyond it."""
        return self.slice_images(values).flatten(-2).any(-1)

    def volumes(self, values: torch.Tensor, spacing: float) -> dict[str, torch.Tensor]:
        """Volumes in mL that the occupancy maps of a stack show; differentiable.

        Args:
            values: all channels, (..., C, H, W).
            spacing: pixel size in mm.

        Returns:
            Name of the attribute (``LVEDV``, ...) to its volumes (...).

        Raises:
            ValueError: for a view whose maps have no volume.
        """
        maps = self.slice_maps(values)
        if maps is None or not self.is_stack:
            raise ValueError("volumes need occupancy maps of the whole heart: slices 'stack' and anatomy 'masks'.")
        volumes = map_volumes(maps, spacing, self.slice_distance)
        return {
            f"{structure}{phase}V": volumes[..., row, column]
            for row, phase in enumerate(self.phases)
            for column, structure in enumerate(STRUCTURES)
        }


def map_volumes(maps: torch.Tensor, spacing: float, slice_distance: float) -> torch.Tensor:
    """Volume in mL of occupancy maps: the sum of map times pixel area times slice distance.

    Args:
        maps: (..., S, K, H, W) of K structures.
        spacing, slice_distance: pixel size, and distance of the slices, in mm.

    Returns:
        (..., K).
    """
    return maps.sum((-4, -2, -1)) * (spacing**2 * slice_distance / 1000)


def map_labels(maps: torch.Tensor, axis: int) -> torch.Tensor:
    """The label of the largest share at each place, 0 of the background; the axis of the structures vanishes."""
    background = 1 - maps.sum(axis, keepdim=True)
    return torch.cat([background, maps], axis).argmax(axis).to(torch.uint8)


def as_view(view: View | Sequence[str]) -> View:
    """A view; of phases alone, the paper's."""
    return view if isinstance(view, View) else View(view)


def checked_phases(phases: Sequence[str]) -> tuple[str, ...]:
    """Phases as a tuple; raises ValueError for one that is not ED or ES."""
    phases = (phases,) if isinstance(phases, str) else tuple(phases)
    if not phases or not set(phases) <= set(PHASES):
        raise ValueError(f"phases {list(phases)} are not valid; expected ['ED', 'ES'], ['ED'] or ['ES'].")
    return phases


def checked_slices(slices: str | Sequence[str]) -> str | tuple[str, ...]:
    """The name of a view, or a tuple of levels; raises ValueError for any other."""
    if slices in ("basal", STACK):
        return slices
    levels = () if isinstance(slices, str) else tuple(slices)
    if not levels or levels != tuple(level for level in LEVELS if level in levels):
        raise ValueError(
            f"slices {slices!r} is not a view; expected 'basal', 'stack', or a list of some of {', '.join(LEVELS)} in "
            "this order."
        )
    return levels
