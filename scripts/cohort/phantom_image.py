"""The phantom's appearance: a balanced steady-state free precession (bSSFP) scan of the heart in its chest.

Bright blood and fat, dark-gray muscle, black lung. Intensities are relative to blood (about 1) until the last step.
Lengths are in mm; x runs to the right and y downwards as displayed by ``volume[:, :, z].T``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from scripts.cohort.phantom_heart import Heart, HeartState

EDGE = 2.2  # width over which a border is blurred in plane
SLICE_CUTS = (-0.27, 0.0, 0.27)  # of the slice distance: where a slice is sampled, for its partial volume
RV_WALL = 3.0
ATRIAL_WALL = 2.0
PAPILLARY_ANGLES = (2.3, -1.9)  # rad from the septum: anterolateral, posteromedial
PAPILLARY_DEPTHS = (0.22, 0.75)  # of the cavity's length
PAPILLARY_OFFSET = 0.74  # of the cavity's radius, from the long axis
GAIN = 250.0  # scanner units of blood


@dataclass(frozen=True)
class Tissues:
    """Signal of each tissue relative to blood, and of the scan as a whole."""

    blood: float
    rv_blood: float
    myocardium: float
    fat: float
    lung: float
    liver: float
    viscera: float
    muscle: float
    marrow: float
    noise: float
    gain: float


@dataclass(frozen=True)
class Body:
    """The chest around the heart, in mm from the heart's long axis.

    Args:
        center: (x, y) of the torso.
        radii: (x, y) half-widths of the torso.
        rotation: of the torso in rad, clockwise as displayed.
        fat: thickness of the subcutaneous fat.
        muscle: thickness of the chest wall inside it.
        pericardial_fat: typical thickness of the fat around the heart.
        diaphragm: height (y) of the diaphragm's dome at mid-depth.
        dome: (x) of the dome's top.
        stomach: (x, y) of its center.
        pad: half-widths of the fat between the heart and the anterior chest wall.
        papillary: septal angle and relative radius of each papillary muscle.
    """

    center: tuple[float, float]
    radii: tuple[float, float]
    rotation: float
    fat: float
    muscle: float
    pericardial_fat: float
    diaphragm: float
    dome: float
    stomach: tuple[float, float]
    pad: tuple[float, float]
    papillary: tuple[tuple[float, float], ...]


def draw_tissues(rng: np.random.Generator) -> Tissues:
    """Draw one subject's contrast."""
    return Tissues(
        blood=1.0,
        rv_blood=rng.uniform(0.92, 1.04),
        myocardium=rng.uniform(0.27, 0.38),
        fat=rng.uniform(0.85, 1.15),
        lung=rng.uniform(0.04, 0.09),
        liver=rng.uniform(0.38, 0.52),
        viscera=rng.uniform(0.45, 0.7),
        muscle=rng.uniform(0.24, 0.34),
        marrow=rng.uniform(0.45, 0.6),
        noise=rng.uniform(0.025, 0.05),
        gain=GAIN * rng.uniform(0.75, 1.25),
    )


def draw_body(rng: np.random.Generator, rotation: float, heart_radius: float) -> Body:
    """Draw one subject's chest around a heart of the given ED epicardial radius."""
    diaphragm = heart_radius + rng.uniform(4, 12)
    return Body(
        center=(rng.uniform(10, 28), rng.uniform(18, 34)),
        radii=(rng.uniform(158, 186), rng.uniform(122, 146)),
        rotation=0.5 * rotation + rng.normal(0, 0.06),
        fat=rng.uniform(8, 22),
        muscle=rng.uniform(9, 15),
        pericardial_fat=rng.uniform(2.0, 6.0),
        diaphragm=diaphragm,
        dome=rng.uniform(-50, -20),
        stomach=(rng.uniform(80, 115), diaphragm + rng.uniform(48, 70)),
        pad=(rng.uniform(45, 70), rng.uniform(18, 34)),
        papillary=tuple((angle + rng.normal(0, 0.2), rng.uniform(0.15, 0.25)) for angle in PAPILLARY_ANGLES),
    )


class Scanner:
    """Takes scans of one heart in one chest, which differ by the heart's state and the noise.

    Args:
        rng: source of all randomness.
        heart: the heart on its grid.
        size: voxels of the scan along x and y.
        spacing: voxel size in mm.
        center: position (x, y) of the heart's long axis, in mm from the first voxel.
        rotation: of the heart in rad.
        heart_radius: ED epicardial radius.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        heart: Heart,
        size: tuple[int, int],
        spacing: tuple[float, float, float],
        center: np.ndarray,
        rotation: float,
        heart_radius: float,
    ) -> None:
        self.rng = rng
        self.heart = heart
        self.cuts = [cut * spacing[2] for cut in SLICE_CUTS]
        self.tissues = draw_tissues(rng)
        self.body = draw_body(rng, rotation, heart_radius)
        x = (np.arange(size[0]) * spacing[0] - center[0]).astype(np.float32)[:, None, None]
        y = (np.arange(size[1]) * spacing[1] - center[1]).astype(np.float32)[None, :, None]
        noise = rng.standard_normal((*size, heart.grid.depth.size), dtype=np.float32)
        self.texture = 8 * gaussian_filter(noise, (2.2, 2.2, 0.6), truncate=3)
        self.chest = self._chest(x, y)
        self.fat = self._epicardial_fat()
        self.position = heart.grid.radius * np.exp(1j * heart.grid.angle)  # complex: the septum on the real axis
        self.gain = self.tissues.gain * _bias(rng, x, y)

    def scan(self, state: HeartState) -> np.ndarray:
        """Image the heart in one state: (X, Y, Z) int16."""
        signal = self.chest.copy()
        box = self.heart.grid.box
        signal[box] = sum(self._heart(state, cut) for cut in self.cuts) / len(self.cuts)
        signal *= 1 + 0.05 * self.texture
        noise = self.tissues.noise * self.rng.standard_normal((2, *signal.shape), dtype=np.float32)
        magnitude = np.sqrt((signal + noise[0]) ** 2 + noise[1] ** 2)
        return np.rint(self.gain * magnitude).astype(np.int16)

    def _chest(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Paint everything but the heart: (X, Y, Z)."""
        body, tissue = self.body, self.tissues
        cos, sin = math.cos(body.rotation), math.sin(body.rotation)
        right, down = cos * x + sin * y, cos * y - sin * x
        torso = _ellipse_distance(right - body.center[0], down - body.center[1], body.radii, power=2.6)
        around = np.arctan2(down - body.center[1], right - body.center[0])
        muscle = torso + body.fat * (1 + 0.3 * np.cos(around - body.rotation) + 0.2 * np.cos(2 * around))
        cavity = muscle + body.muscle * (1 + 0.3 * np.sin(around))
        image = _soft(torso) * tissue.fat
        image = _mix(image, tissue.muscle, _soft(muscle))
        image = image + self._ribs(around, muscle)
        vessels = 0.35 * np.clip(self.texture - 1.3, 0, 1)
        image = _mix(image, tissue.lung + vessels, _soft(cavity))
        image = self._viscera(image, right, down, cavity)
        return self._mediastinum(image, right, down, cavity)

    def _ribs(self, around: np.ndarray, muscle: np.ndarray) -> np.ndarray:
        """Marrow and fat between the layers of the chest wall, as a change of signal: (X, Y, Z)."""
        layer = np.exp(-(((muscle + 0.6 * self.body.muscle) / (0.25 * self.body.muscle)) ** 2))
        slant = (self.heart.grid.depth / 25).astype(np.float32)  # an oblique rib moves along the wall between slices
        return 0.3 * layer * np.clip(np.sin(13 * around + slant), 0, 1)

    def _viscera(self, image: np.ndarray, right: np.ndarray, down: np.ndarray, cavity: np.ndarray) -> np.ndarray:
        """Add liver, stomach and spleen under the diaphragm, which is higher towards the apex."""
        body, tissue = self.body, self.tissues
        height = body.diaphragm - 0.12 * (self.heart.grid.depth - self.heart.shape.length / 2)
        below = height + (right - body.dome) ** 2 / 420 - down
        inside = _soft(np.maximum(below, cavity))
        image = _mix(image, tissue.muscle, _soft(np.maximum(below - 3, cavity)))
        vessels = 0.25 * np.clip(self.texture - 0.9, 0, 1)
        stomach = _ellipse_distance(right - body.stomach[0], down - body.stomach[1], (64.0, 50.0))
        organ = _mix(tissue.liver + vessels, tissue.fat, _soft(stomach - 4))
        organ = _mix(organ, tissue.muscle, _soft(stomach))
        organ = _mix(organ, tissue.viscera, _soft(stomach + 4))
        return _mix(image, organ, inside)

    def _mediastinum(self, image: np.ndarray, right: np.ndarray, down: np.ndarray, cavity: np.ndarray) -> np.ndarray:
        """Add the fat before the heart, the descending aorta and the vertebra behind it."""
        tissue = self.tissues
        wall = down - self.body.center[1] + self.body.radii[1]  # the pad fills the recess between heart and chest wall
        pad = _ellipse_distance(right + 40, wall - 26, self.body.pad) + 4 * self.texture
        image = _mix(image, (0.7 + 0.05 * self.texture) * tissue.fat, _soft(np.maximum(pad, cavity), 3 * EDGE))
        spine = _ellipse_distance(right - 112, down - 52, (24.0, 21.0))
        image = _mix(image, tissue.muscle, _soft(spine - 5))
        image = _mix(image, tissue.marrow, _soft(spine))
        aorta = _ellipse_distance(right - 76, down - 36, (11.5, 12.5))
        image = _mix(image, tissue.muscle, _soft(aorta - 2))
        return _mix(image, np.float32(tissue.blood), _soft(aorta))

    def _heart(self, state: HeartState, cut: float) -> np.ndarray:
        """Paint the heart's box as cut at an offset from the slices' centers: (X, Y, Z)."""
        grid, tissue, radius = self.heart.grid, self.tissues, self.heart.grid.radius
        endo, epi, rv = self.heart.contours(state, cut)
        atrial = np.clip((state.base - grid.depth - cut) / 3, 0, 1)
        endo = endo + atrial * (epi - endo - ATRIAL_WALL)
        rv_wall = RV_WALL * np.clip((rv - epi) / 4, 0, 1)
        texture = self.texture[grid.box]
        image = _mix(self.chest[grid.box], tissue.fat, _disc(radius, rv + rv_wall + np.where(epi > 0, self.fat, 0)))
        image = _mix(image, tissue.myocardium, _disc(radius, rv + rv_wall))
        image = _mix(image, tissue.rv_blood * (1 - 0.16 * np.clip(texture, 0, 2)), _disc(radius, rv))
        image = _mix(image, tissue.myocardium, _disc(radius, epi))
        image = _mix(image, np.float32(tissue.blood), _disc(radius, endo + 0.5 * texture))
        return _mix(image, tissue.myocardium, self._papillary(state, cut) * (1 - atrial))

    def _epicardial_fat(self) -> np.ndarray:
        """Thickness of the epicardial fat, most at the base and in the grooves between the ventricles: (X, Y, Z)."""
        grid, shape = self.heart.grid, self.heart.shape
        groove = np.exp(-(((np.abs(grid.angle - shape.rv_tilt) - shape.rv_span) / 0.4) ** 2))
        base = np.clip(1 - grid.depth / shape.length, 0, 1)
        return self.body.pericardial_fat * (0.4 + 1.3 * groove + 0.8 * base)

    def _papillary(self, state: HeartState, cut: float) -> np.ndarray:
        """Share of each voxel that is papillary muscle: (X, Y, Z)."""
        grid = self.heart.grid
        position = (grid.depth + cut - state.base) / (state.apex - state.base)
        first, last = PAPILLARY_DEPTHS
        bulge = np.sqrt(np.clip((position - first) * (last - position), 0, None)) * 2 / (last - first)
        endo = state.endo * np.sqrt(np.clip(1 - position**2, 0, 1))
        share = np.zeros_like(grid.radius)
        for angle, size in self.body.papillary:
            center = PAPILLARY_OFFSET * endo * np.exp(1j * angle).astype(np.complex64)
            share = np.maximum(share, _disc(np.abs(self.position - center), size * state.endo * bulge))
        return share


def _bias(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sensitivity of a surface coil in front of the chest: (X, Y, 1), about 1 at the heart."""
    slope = (rng.normal(0, 0.08), rng.normal(-0.18, 0.08))
    curvature = rng.uniform(-0.08, 0.02)
    u, v = x / 100, y / 100
    return np.exp(slope[0] * u + slope[1] * v + curvature * (u**2 + v**2)).astype(np.float32)


def _ellipse_distance(x: np.ndarray, y: np.ndarray, radii: tuple[float, float], power: float = 2.0) -> np.ndarray:
    """Distance from a (super)ellipse around the origin, negative inside; exact only on it."""
    norm = (np.abs(x / radii[0]) ** power + np.abs(y / radii[1]) ** power) ** (1 / power)
    return (norm - 1) * (sum(radii) / 2)


def _soft(distance: np.ndarray, edge: float = EDGE) -> np.ndarray:
    """Share of a voxel within a border at a signed distance, negative inside."""
    return np.clip(0.5 - distance / edge, 0, 1)


def _disc(radius: np.ndarray, contour: np.ndarray) -> np.ndarray:
    """Share of a voxel within a contour around the long axis; none where the contour has no extent."""
    return _soft(radius - contour) * (contour > 0)


def _mix(under: np.ndarray, over: np.ndarray | float, share: np.ndarray) -> np.ndarray:
    return under + share * (over - under)
