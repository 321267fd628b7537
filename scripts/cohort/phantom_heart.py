"""The phantom's heart: a truncated ellipsoid LV in its wall, with a crescent RV around the septum.

All contours are distances from the LV's long axis, as functions of the angle around it and the depth along it, and
each is linear in one unknown (endocardial radius, epicardial radius, RV width). So the unknown that gives a mask of
exactly n voxels is an order statistic, and no iteration is needed.

Lengths are in mm. Depth is 0 at the ED base plane and grows towards the apex. The septal angle is 0 at the middle of
the septum, which the unrotated heart has on the left of ``volume[:, :, z].T``, and is positive anteriorly (upwards).
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np

from scripts.cohort.layout import LABELS, PHASES

LENGTH_PER_ROOT_VOLUME = {"NOR": 1.70, "DCM": 1.52, "HCM": 1.78, "RV": 1.70}  # a dilated LV is rounder
MIN_LENGTH = 78.0  # so that 6 slices 10 mm apart hold the LV at ES, too
SHORTENING_PER_EF = 0.24  # the base descends by about 14 % of the length at an ejection fraction of 60 %
APICAL_WALL = {"ED": 6.0, "ES": 8.0}
HEART_BOX_HALF = 88.0  # the heart and its fat lie within this square
HEART_BOX_SHIFT = -18.0  # of the square's middle towards the RV, from the LV axis
RV_APEX_WIDTH = 0.35  # of the basal RV's width, where its cavity ends ...
RV_TIP_WIDTH = 0.05  # ... towards the apex and at its tips: in anything thinner the mask's voxels would lie scattered
SEPTAL_WIDTH = 0.75  # rad, of a local change of septal curvature or thickness


@dataclass(frozen=True)
class HeartShape:
    """What distinguishes one heart from another of the same volumes.

    Args:
        length: ED long axis of the LV cavity.
        shortening: part of it by which the base descends until ES.
        equator: depth of the largest cross-section as a fraction of the long axis.
        ellipticity: relative elongation of the LV cross-section.
        ellipse_angle: septal angle of that elongation.
        ripple: amplitudes of the cross-section's third and fourth harmonics.
        ripple_angle: their phases.
        septal_flattening: relative inward shift of the septum.
        septal_hypertrophy: relative excess thickness of the septum.
        rv_span: half of the angle that the RV embraces.
        rv_tilt: septal angle of the RV's middle.
        rv_skew: excess width towards the outflow tract.
        rv_length: RV length as a fraction of the LV's.
        drift: in-plane shift (x, y) of the long axis per mm of depth.
    """

    length: float
    shortening: float
    equator: float
    ellipticity: float
    ellipse_angle: float
    ripple: tuple[float, float]
    ripple_angle: tuple[float, float]
    septal_flattening: float
    septal_hypertrophy: float
    rv_span: float
    rv_tilt: float
    rv_skew: float
    rv_length: float
    drift: tuple[float, float]


@dataclass(frozen=True)
class HeartState:
    """The heart at one instant: depth of base, LV apex and outer apex; endocardial and epicardial radius; RV width."""

    base: float
    apex: float
    outer_apex: float
    endo: float
    epi: float
    rv: float


@dataclass(frozen=True)
class HeartGrid:
    """Voxels around the heart in the heart's own coordinates.

    Args:
        box: x and y slices of the scan that hold the heart.
        depth: (Z,) depth of each slice's center.
        radius: (X, Y, Z) distance from the long axis.
        angle: (X, Y, Z) septal angle.
        voxel: volume of a voxel in mL.
    """

    box: tuple[slice, slice]
    depth: np.ndarray
    radius: np.ndarray
    angle: np.ndarray
    voxel: float


def draw_shape(rng: np.random.Generator, volumes: dict[str, float], diagnosis: str) -> HeartShape:
    """Draw a heart's shape to go with its volumes (mL) and its diagnosis (NOR, DCM, HCM, RV)."""
    root_volume = (1000 * volumes["LVEDV"]) ** (1 / 3)
    length = max(MIN_LENGTH, LENGTH_PER_ROOT_VOLUME[diagnosis] * root_volume * rng.normal(1, 0.03))
    rv_excess = min(max(volumes["RVEDV"] / volumes["LVEDV"] - 1.08, -0.4), 0.6)
    return HeartShape(
        length=length,
        shortening=SHORTENING_PER_EF * (1 - volumes["LVESV"] / volumes["LVEDV"]) * rng.uniform(0.9, 1.1),
        equator=rng.uniform(0.12, 0.24),
        ellipticity=rng.uniform(0.0, 0.06),
        ellipse_angle=rng.uniform(0, np.pi),
        ripple=tuple(rng.normal(0, 0.012, 2)),
        ripple_angle=tuple(rng.uniform(0, 2 * np.pi, 2)),
        septal_flattening=rng.uniform(0.14, 0.24) if diagnosis == "RV" else rng.uniform(0.0, 0.07),
        septal_hypertrophy=rng.uniform(0.3, 0.7) if diagnosis == "HCM" else rng.uniform(-0.05, 0.12),
        rv_span=rng.normal(1.42, 0.06) + 0.25 * rv_excess,
        rv_tilt=rng.uniform(-0.02, 0.12),
        rv_skew=rng.uniform(0.0, 0.15),
        rv_length=rng.uniform(0.84, 0.93),
        drift=tuple(rng.normal(0, 0.05, 2)),
    )


def heart_grid(
    shape: HeartShape,
    size: tuple[int, int],
    spacing: tuple[float, float, float],
    depth: np.ndarray,
    center: np.ndarray,
    rotation: float,
) -> HeartGrid:
    """Lay the heart's coordinates over the part of a scan that holds it.

    Args:
        shape: the heart.
        size: voxels of the scan along x and y.
        spacing: voxel size in mm.
        depth: (Z,) depth of each slice.
        center: position (x, y) of the long axis at mid-depth, in mm from the first voxel.
        rotation: of the heart about its long axis in rad, clockwise as displayed.
    """
    middle = center + HEART_BOX_SHIFT * np.array([np.cos(rotation), np.sin(rotation)])
    first = np.maximum(np.ceil((middle - HEART_BOX_HALF) / spacing[:2]), 0).astype(int)
    last = np.minimum(np.floor((middle + HEART_BOX_HALF) / spacing[:2]) + 1, size).astype(int)
    shift = np.outer(shape.drift, depth - shape.length / 2)
    x = (np.arange(first[0], last[0]) * spacing[0])[:, None, None] - center[0] - shift[0]
    y = (np.arange(first[1], last[1]) * spacing[1])[None, :, None] - center[1] - shift[1]
    lateral = (np.cos(rotation) * x + np.sin(rotation) * y).astype(np.float32)
    inferior = (np.cos(rotation) * y - np.sin(rotation) * x).astype(np.float32)
    return HeartGrid(
        box=(slice(first[0], last[0]), slice(first[1], last[1])),
        depth=depth.astype(np.float32),
        radius=np.hypot(lateral, inferior),
        angle=np.arctan2(-inferior, -lateral),
        voxel=float(np.prod(spacing)) / 1000,
    )


class Heart:
    """A heart of given volumes on a grid.

    Args:
        shape: the heart.
        grid: the voxels around it.
    """

    def __init__(self, shape: HeartShape, grid: HeartGrid) -> None:
        self.shape = shape
        self.grid = grid
        septum = np.exp(-((grid.angle / SEPTAL_WIDTH) ** 2))
        self._section = 1 + shape.ellipticity * np.cos(2 * (grid.angle - shape.ellipse_angle))
        for order, amplitude, phase in zip((3, 4), shape.ripple, shape.ripple_angle, strict=True):
            self._section += amplitude * np.cos(order * grid.angle - phase)
        self._section -= shape.septal_flattening * septum
        self._wall = 1 + shape.septal_hypertrophy * septum

    def solve(self, volumes: dict[str, float]) -> dict[str, HeartState]:
        """Find the state at ED and ES whose masks have the volumes (mL) LVEDV, MyoEDV, RVEDV, LVESV, ..."""
        return {phase: self._solve_phase(volumes, phase) for phase in PHASES}

    def _solve_phase(self, volumes: dict[str, float], phase: str) -> HeartState:
        shape, radius = self.shape, self.grid.radius
        contracted = phase == "ES"
        outer_apex = shape.length + APICAL_WALL["ED"]
        frame = (contracted * shape.shortening * shape.length, outer_apex - APICAL_WALL[phase], outer_apex)
        inside = np.broadcast_to(self.grid.depth >= frame[0], radius.shape)
        lv, wall, correction, rv = self._unit_contours(HeartState(*frame, 0, 0, 0), self.grid.depth)
        endo = self._root(radius, lv, inside, volumes[f"LV{phase}V"])
        outside = inside & (radius >= endo * lv)
        epi = self._root(radius - endo * correction, wall, outside, volumes[f"Myo{phase}V"])
        beyond = inside & (radius >= epi * wall + endo * correction)
        width = self._root(radius - epi * wall - endo * correction, rv, beyond, volumes[f"RV{phase}V"])
        return HeartState(*frame, endo, epi, width)

    def _root(self, distance: np.ndarray, unit: np.ndarray, where: np.ndarray, volume: float) -> float:
        """The factor of a unit contour that leaves ``volume`` mL of the voxels ``where`` inside it."""
        where = where & (unit > 0)
        factors = distance[where] / unit[where]
        count = round(volume / self.grid.voxel)
        if not 0 < count < factors.size:
            raise ValueError(f"a volume of {volume:.0f} mL does not fit into the scan's {factors.size} heart voxels")
        return float(np.partition(factors, [count - 1, count])[count - 1 : count + 1].mean())

    def _unit_contours(self, state: HeartState, depth: np.ndarray) -> tuple[np.ndarray, ...]:
        """Arrays A, B, C, D with endocardium = endo·A, epicardium = epi·B + endo·C, RV = epicardium + rv·D."""
        shape = self.shape
        inner = _profile(depth, state.base, state.apex, shape.equator)
        outer = _profile(depth, state.base, state.outer_apex, shape.equator)
        rv_apex = state.base + shape.rv_length * (state.apex - state.base)
        right = _profile(depth, state.base, rv_apex, 0.0)
        position = (self.grid.angle - shape.rv_tilt) / (shape.rv_span * (0.7 + 0.3 * right))
        crescent = np.clip(1 - position**2, 0, None) * (1 + shape.rv_skew * position)
        width = np.where(right < RV_APEX_WIDTH, 0, right) * crescent
        width[width < RV_TIP_WIDTH] = 0
        return inner * self._section, outer * self._wall, inner * (self._section - self._wall), width

    def contours(self, state: HeartState, offset: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Endocardium, epicardium and outer border of the RV cavity, each (X, Y, Z) in mm from the long axis.

        Above the base they are those of the base; below the apex they are 0.

        Args:
            state: the heart's instant.
            offset: of the depth at which the slices are cut from their centers.
        """
        lv, wall, correction, rv = self._unit_contours(state, self.grid.depth + np.float32(offset))
        epi = state.epi * wall + state.endo * correction
        return state.endo * lv, epi, epi + state.rv * rv

    def mask(self, state: HeartState) -> np.ndarray:
        """Label the grid's voxels: (X, Y, Z) uint8, papillary muscles counting as cavity."""
        endo, epi, rv = self.contours(state)
        labels = np.zeros(endo.shape, np.uint8)
        for name, contour in (("RV", rv), ("Myo", epi), ("LV", endo)):
            labels[self.grid.radius < contour] = LABELS[name]
        labels[:, :, self.grid.depth < state.base] = 0
        return labels


def between(start: HeartState, end: HeartState, fraction: float) -> HeartState:
    """The state at a fraction (0 to 1) of the way from one to another."""
    pairs = zip(astuple(start), astuple(end), strict=True)
    return HeartState(*((1 - fraction) * first + fraction * second for first, second in pairs))


def _profile(depth: np.ndarray, base: float, apex: float, equator: float) -> np.ndarray:
    """Relative radius of an ellipsoid cut at its base, at each depth; that of the base above it, 0 below the apex."""
    position = (np.maximum(depth, base) - base) / (apex - base)
    return np.sqrt(np.clip(1 - ((position - equator) / (1 - equator)) ** 2, 0, None)).astype(np.float32)
