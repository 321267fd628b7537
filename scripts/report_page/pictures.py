"""Pictures for a page of one file: images of a heart as one compact picture, outlines of its maps as lines."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage.measure import find_contours

QUALITIES = (80, 65, 50, 35, 20)  # of WebP: errors of 1 % of the gray range at best, and twice as much at worst
WEAK, STRONG = 10, 64  # gray levels from which a difference is shown (compression makes smaller ones), and in full
BRIGHTER, DARKER = (255, 214, 10), (30, 110, 255)  # told apart by the color-blind, too
OPACITY = 230  # of 255, of a strong difference
FINENESS = 8  # parts of a pixel in which lines are given


def data_uri(content: bytes, kind: str) -> str:
    """A picture as the address that holds it; ``kind`` is ``png``, ``webp``, ..."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def montage(images: torch.Tensor, quality: int = QUALITIES[0]) -> str:
    """Images (P, S, H, W) with values 0 to 1 as the address of one picture: a row per phase, a column per slice."""
    phases, slices, height, width = images.shape
    gray = (images.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    tiles = gray.permute(0, 2, 1, 3).reshape(phases * height, slices * width)
    file = io.BytesIO()
    Image.fromarray(tiles.numpy()).save(file, "WEBP", quality=quality)
    return data_uri(file.getvalue(), "webp")


def figure_uri(path: str | os.PathLike) -> tuple[str, int, int]:
    """A PNG file as the address that holds it, and its width and height in pixels."""
    content = Path(path).read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        return data_uri(content, "png"), *image.size


def outline_paths(maps: torch.Tensor) -> list[list[list[str]]]:
    """Where the share of a pixel is a half: lines of endocardium, epicardium and RV.

    Args:
        maps: (P, S, 3, H, W): occupancy of LV, Myo and RV.

    Returns:
        By phase, slice and these three structures: an SVG path in ``FINENESS``-ths of a pixel from the image's upper
        left corner; empty where there is no line.
    """
    lv, myocardium, rv = maps.detach().float().cpu().unbind(2)
    filled = torch.stack([lv, lv + myocardium, rv], dim=2).numpy()
    return [[[path(region) for region in of_slice] for of_slice in of_phase] for of_phase in filled]


def path(region: np.ndarray) -> str:
    """The lines around a region (H, W) of shares, see ``outline_paths``."""
    return "".join(steps(line) for line in find_contours(region, 0.5))


def steps(line: np.ndarray) -> str:
    """A line (n, 2) in rows and columns of pixels' centers as its start and steps from there, which take least space.

    Every second point, since there are two in each pixel that a line crosses; the last stays, which closes the line.
    """
    points = np.vstack([line[:-1:2], line[-1:]])[:, ::-1]
    places = np.rint((points + 0.5) * FINENESS).astype(int)
    start, moves = places[0], np.diff(places, axis=0)
    # A minus sign parts numbers, too.
    return f"M{start[0]} {start[1]}l" + " ".join(map(str, moves.ravel())).replace(" -", "-")
