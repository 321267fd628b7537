"""Hearts that answer requests while somebody watches: codes of subjects or of the prior, pictures, and values."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image

from scripts.calibration.calibration import Calibration
from scripts.cohort.attributes import UNITS
from scripts.counterfactual import Counterfactuals
from scripts.figures import OUTLINES, attribute_name
from scripts.inference.answers import gap_notes
from scripts.inference.loading import reason
from scripts.inference.page import extent_notes, range_notes
from scripts.report_page.pictures import BRIGHTER, DARKER, FINENESS, OPACITY, STRONG, WEAK, data_uri, outline_paths

KEPT = 8  # decoded hearts
LARGEST = 2**32  # numbers of samples
COLUMNS = 6  # slices beside each other
BESIDE = 3  # slices of a phase up to which phases stand beside each other


class LiveHearts:
    """The hearts of a model, one at a time.

    Args:
        counterfactuals: of the model; its network is put into evaluation mode.
        calibration: of the model, tells what is wrong with it, and with a scan.
        items: subjects of a datalist, known by their number, which counts from 1.
        preprocessing: an item to its ``image`` (C, H, W).
        device: of the network.
    """

    def __init__(
        self,
        counterfactuals: Counterfactuals,
        calibration: Calibration,
        items: Sequence[Mapping[str, Any]],
        preprocessing: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        device: str | torch.device = "cpu",
    ) -> None:
        self.counterfactuals, self.calibration = counterfactuals, calibration
        self.items, self.preprocessing = list(items), preprocessing
        self.network, self.view, self.device = counterfactuals.network.eval(), counterfactuals.view, device
        self.names = counterfactuals.names
        self.decoded = lru_cache(KEPT)(self._decoded)

    @torch.no_grad()
    def subject(self, number: int) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
        """The code (1, D) of a subject, its scan (C, H, W), and what to know before one trusts what is shown of it.

        Raises:
            ValueError: for a number that none has, a scan that cannot be read or cropped (with the reason in words), or
                one of which the network gives no finite numbers.
        """
        if not 1 <= number <= len(self.items):
            raise ValueError(f"there is no subject {number}: the datalist has {len(self.items)}.")
        try:
            image = torch.as_tensor(self.preprocessing(self.items[number - 1])["image"]).float()
        except Exception as error:  # MONAI wraps what a transform has raised
            raise ValueError(f"subject {number}: {reason(error)}") from error
        codes, log_variances = self.network.encode(image[None].to(self.device))
        reconstruction = self.decode(codes)
        if not all(part.isfinite().all() for part in (codes, log_variances, reconstruction)):
            raise ValueError(f"the network gives values of subject {number} that are not finite (NaN or infinite).")
        novelty = self.calibration.novelty(codes[0].cpu(), log_variances[0].cpu(), image, reconstruction)
        gaps = gap_notes(self.values(codes), self.items[number - 1])
        return codes, image, [*range_notes(novelty), *gaps, *extent_notes(self.view, image)]

    def sample(self, number: int) -> torch.Tensor:
        """A code (1, D) drawn from the prior, the same each time for a number; ValueError for one beyond all."""
        if not 0 <= number < LARGEST:
            raise ValueError(f"there is no sample {number}: numbers run from 0 to {LARGEST - 1}.")
        generator = torch.Generator().manual_seed(number)
        return torch.randn(1, self.network.latent_dim, generator=generator).to(self.device)

    def values(self, code: torch.Tensor) -> dict[str, float]:
        """What the model says of a code (1, D): attribute to value."""
        if self.counterfactuals.measured_by_decoder:
            volumes = self.view.volumes(self.decode(code), self.counterfactuals.spacing)
            return {name: float(volumes[name]) for name in self.names}
        return dict(zip(self.names, self.counterfactuals.attributes(code)[0].tolist(), strict=True))

    def ask(self, code: torch.Tensor, name: str, value: float, kind: str) -> torch.Tensor:
        """The code (1, D) of the heart in which an attribute has another value.

        Raises:
            RequestError: for a value that is out of range or impossible.
        """
        before = self.counterfactuals.attributes(code)
        amount = value - before[:, self.counterfactuals.index(name)]
        refusal = self.counterfactuals.refusals(before, name, amount, kind)[0]
        if refusal:
            raise refusal
        return self.counterfactuals.change(code, name, amount, kind)

    def decode(self, code: torch.Tensor) -> torch.Tensor:
        """All channels (C, H, W) of a code (1, D); those of the last few are kept, since a move needs them again."""
        return self.decoded(tuple(code[0].tolist()))

    def _decoded(self, code: tuple[float, ...]) -> torch.Tensor:
        return self.counterfactuals.decode(torch.tensor([code], device=self.device))[0].float().cpu()

    def picture(self, image: torch.Tensor, before: torch.Tensor, outlines: bool, difference: bool) -> str:
        """A heart (C, H, W) as HTML: all slices of each phase.

        Args:
            image: what is shown.
            before: what it is compared with.
            outlines: draw those of its maps.
            difference: color what is brighter or darker than before.
        """
        shown, other = self.view.slice_images(image), self.view.slice_images(before)
        maps = self.view.slice_maps(image) if outlines else None
        paths = outline_paths(maps) if maps is not None else [[]] * len(shown)
        parts = [
            phase_picture(phase, *pair, difference)
            for phase, *pair in zip(self.view.phases, shown, other, paths, strict=True)
        ]
        least = "100%" if shown.shape[1] > BESIDE else "9rem"
        return f'<div class="hearts" style="--least: {least}">{"".join(parts)}</div>'

    def table(self, start: Mapping[str, float], now: Mapping[str, float]) -> str:
        """Attributes before and after a request as HTML."""
        rows = [
            f"<tr><th>{html.escape(attribute_name(name))}</th><td>{start[name]:.0f}</td><td>{now[name]:.0f}</td>"
            f"<td>{round(now[name]) - round(start[name]):+d}</td><td>{UNITS.get(name, '')}</td></tr>"
            for name in self.names
        ]
        head = "<tr><td></td><th>before</th><th>now</th><th>change</th><td></td></tr>"
        return f'<table class="values">{head}{"".join(rows).replace("-", "−")}</table>'


def phase_picture(
    phase: str, shown: torch.Tensor, before: torch.Tensor, paths: Sequence[Sequence[str]], difference: bool
) -> str:
    """The slices of one phase (S, H, W) as an SVG image in HTML, with outlines of the first slices."""
    height, width = shown.shape[-2:]
    rows, columns = -(-len(shown) // COLUMNS), min(len(shown), COLUMNS)
    layers = [png((grid(shown, columns).clip(0, 1) * 255).round().astype(np.uint8))]
    if difference:
        layers.append(png(colored(grid(shown.clamp(0, 1) - before.clamp(0, 1), columns))))
    size = f'width="{columns * width}" height="{rows * height}"'
    images = "".join(f'<image href="{layer}" {size}/>' for layer in layers)
    lines = "".join(slice_lines(each, *divmod(index, columns), height, width) for index, each in enumerate(paths))
    box = f'viewBox="0 0 {columns * width} {rows * height}"'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img" aria-label="{phase}">{images}{lines}</svg>'
    return f"<figure><figcaption>{phase}</figcaption>{svg}</figure>"


def slice_lines(paths: Sequence[str], row: int, column: int, height: int, width: int) -> str:
    """The outlines of one slice in its place."""
    colors = ["#" + "".join(f"{round(255 * part):02x}" for part in color) for color in OUTLINES]
    drawn = "".join(f'<path d="{path}" stroke="{color}"/>' for path, color in zip(paths, colors, strict=True) if path)
    place = f"translate({column * width} {row * height}) scale({1 / FINENESS})"
    return f'<g fill="none" stroke-width="{0.6 * FINENESS}" transform="{place}">{drawn}</g>'


def grid(slices: torch.Tensor, columns: int) -> np.ndarray:
    """Slices (S, H, W) in rows below each other; places that are left stay 0."""
    rows = -(-len(slices) // columns)
    filled = slices.new_zeros(rows * columns, *slices.shape[1:])
    filled[: len(slices)] = slices
    return filled.unflatten(0, (rows, columns)).transpose(1, 2).flatten(2, 3).flatten(0, 1).numpy()


def colored(difference: np.ndarray) -> np.ndarray:
    """Differences (H, W) as a transparent picture (H, W, 4)."""
    strength = ((255 * np.abs(difference) - WEAK) / (STRONG - WEAK)).clip(0, 1)
    color = np.where(difference[..., None] > 0, BRIGHTER, DARKER)
    return np.concatenate([color, OPACITY * strength[..., None]], axis=-1).astype(np.uint8)


def png(pixels: np.ndarray) -> str:
    """Pixels (H, W) or (H, W, 4) as the address of a picture; hardly compressed, which is fast."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return data_uri(file.getvalue(), "png")
