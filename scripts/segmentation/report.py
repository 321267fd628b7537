"""How good a segmentation is, on subjects that it has not learned from: overlap, volumes and contours."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from monai.metrics import compute_dice
from torch.nn.functional import one_hot
from tqdm import tqdm

from scripts.cohort.layout import LABELS, PHASES, read_image, read_mask
from scripts.evaluation.tables import markdown_table
from scripts.segmentation.segmenter import Segmenter, load_segmenter
from scripts.segmentation.slices import CLASSES
from scripts.storage import atomic_path, output_folder, write_csv, write_json

POOR = 0.7  # Dice of a network that is of no use
COLORS = {"Myo": "deepskyblue", "RV": "magenta", "LV": "gold"}  # the LV last: the myocardium shares its border
HEIGHTS = {"basal": 0.15, "mid-cavity": 0.5, "apical": 0.85}  # parts of the heart's slices
MARGIN = 15  # mm around the heart


def write_report(
    folder: str | os.PathLike,
    weights: str | os.PathLike,
    items: Sequence[Mapping[str, Any]],
    pseudonyms: Mapping[str, int],
    device: str | torch.device,
) -> None:
    """Segment subjects and compare with their masks: ``segmentation.md``, ``.json``, ``.csv`` and ``contours.png``.

    None of these names a subject.

    Args:
        folder: target.
        weights: a checkpoint for ``load_segmenter``.
        items: subjects of a datalist with full paths, which the network has not learned from.
        pseudonyms: subject to the number that stands for it, see ``pseudonyms_of``.
        device: of the network.
    """
    target = output_folder(folder)
    segmenter = load_segmenter(weights, device)
    rows, sections = [], []
    for item in tqdm(items, "segment held-out subjects", unit="subject"):
        for phase in PHASES:
            image, mask, predicted, voxel = segment_phase(segmenter, item, phase)
            about = {"pseudonym": pseudonyms[item["subject"]], "phase": phase}
            rows.append(about | compared(mask, predicted, voxel))
            sections.append((rows[-1]["Dice"], phase, contour_sections(image, mask, predicted, voxel)))
    table = summary(rows)
    # In the order of the datalist, which is that of the names, places would tell who is who.
    listed = sorted(rows, key=lambda row: row["pseudonym"])
    write_csv(target / "segmentation.csv", [rounded(row) for row in listed], list(rows[0]))
    write_json(target / "segmentation.json", {"subjects": len(items), "structures": table})
    with atomic_path(target / "segmentation.md") as part:
        part.write_text(markdown(table, len(items)))
    with atomic_path(target / "contours.png") as part:
        contour_figure(examples(sections)).savefig(part)
    poor = [row["structure"] for row in table if row["phase"] == "+".join(PHASES) and row["Dice"] < POOR]
    if poor:
        print(f"Warning: mean Dice below {POOR:g} for {', '.join(poor)}: train longer, or on more subjects.")
    print(markdown(table, len(items)) + f"Written: {target / 'segmentation.md'}, {target / 'contours.png'}")


def rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with as many digits as a mask is worth."""
    return {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()}


def segment_phase(
    segmenter: Segmenter, item: Mapping[str, Any], phase: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scan, mask and predicted mask (X, Y, Z) of one phase, and its voxel size in mm."""
    frame = item[f"frame_{phase}"]
    image, affine = read_image(item[f"image_{phase}"], frame)
    voxel = np.linalg.norm(affine[:3, :3], axis=0)
    return image, read_mask(item[f"mask_{phase}"], frame), segmenter(image, voxel), voxel


def compared(mask: np.ndarray, predicted: np.ndarray, voxel: Sequence[float]) -> dict[str, float]:
    """Dice of the volume and both volumes (mL) of every structure, and the mean Dice."""
    classes = [one_hot(torch.from_numpy(labels).long(), CLASSES).movedim(-1, 0)[None] for labels in (predicted, mask)]
    dice = compute_dice(*classes, include_background=False)[0].tolist()
    row = {"Dice": float(np.mean(dice))}
    for (structure, label), value in zip(LABELS.items(), dice, strict=True):
        row[f"{structure}_Dice"] = value
        for name, labels in (("mL", mask), ("predicted_mL", predicted)):
            row[f"{structure}_{name}"] = float(np.count_nonzero(labels == label) * np.prod(voxel) / 1000)
    return row


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per structure, and both phases together and apart: mean and SD of Dice, mean (absolute) volume error in mL."""
    table = []
    for structure in LABELS:
        for phases in (PHASES, *((phase,) for phase in PHASES)):
            chosen = [row for row in rows if row["phase"] in phases]
            dice = np.array([row[f"{structure}_Dice"] for row in chosen])
            error = np.array([row[f"{structure}_predicted_mL"] - row[f"{structure}_mL"] for row in chosen])
            table.append(
                {
                    "structure": structure,
                    "phase": "+".join(phases),
                    "Dice": float(dice.mean()),
                    "Dice_SD": float(dice.std(ddof=1)) if len(dice) > 1 else float("nan"),
                    "volume_MAE_mL": float(np.abs(error).mean()),
                    "volume_bias_mL": float(error.mean()),
                }
            )
    return table


def markdown(table: Sequence[Mapping[str, Any]], subjects: int) -> str:
    """The summary for people."""
    rows = {
        f"{row['structure']}, {row['phase']}": {
            "Dice (mean ± SD)": f"{row['Dice']:.3f} ± {row['Dice_SD']:.3f}",
            "absolute volume error (mL)": f"{row['volume_MAE_mL']:.1f}",
            "bias (mL)": f"{row['volume_bias_mL']:+.1f}",
        }
        for row in table
    }
    title = f"Segmentation of {subjects} held-out subjects, per volume, in the scans' own grid."
    return f"{title}\n\n{markdown_table(rows)}\n"


def examples(sections: Sequence[tuple[float, str, list]]) -> list[tuple[str, list]]:
    """The volumes of highest, middle and lowest Dice, each with its title."""
    ordered = sorted(sections, key=lambda entry: entry[0])
    chosen = {"best": ordered[-1], "middle": ordered[len(ordered) // 2], "worst": ordered[0]}
    return [(f"{name} ({phase})\nmean Dice {dice:.2f}", views) for name, (dice, phase, views) in chosen.items()]


def contour_sections(image: np.ndarray, mask: np.ndarray, predicted: np.ndarray, voxel: Sequence[float]) -> list:
    """Image, mask and predicted mask around the heart in one slice per height, with the aspect of a pixel."""
    slices = np.flatnonzero(mask.any(axis=(0, 1)))
    heart = np.argwhere(mask.any(axis=2))
    margin = np.ceil(MARGIN / np.asarray(voxel[:2])).astype(int)
    box = tuple(slice(max(a - m, 0), b + m + 1) for a, b, m in zip(heart.min(0), heart.max(0), margin, strict=True))
    views = []
    low, high = np.percentile(image, (1, 99))
    for part in HEIGHTS.values():
        z = slices[round(part * (len(slices) - 1))]
        gray = np.uint8(255 * np.clip((image[..., z] - low) / (high - low), 0, 1))
        # Copies: a view would keep the whole volume in memory.
        cut = (volume[box].T.copy() for volume in (gray, mask[..., z], predicted[..., z]))
        views.append((*cut, voxel[1] / voxel[0]))
    return views


def contour_figure(rows: Sequence[tuple[str, list]]) -> Figure:
    """Contours of the network (solid) and of the mask (dotted) on slices at three heights."""
    figure = Figure(figsize=(7.5, 2.5 * len(rows) + 0.5), dpi=130, layout="constrained")
    axes = figure.subplots(len(rows), len(HEIGHTS), squeeze=False)
    for axis, name in zip(axes[0], HEIGHTS, strict=True):
        axis.set_title(name)
    for row, (title, views) in zip(axes, rows, strict=True):
        for axis, (gray, mask, predicted, aspect) in zip(row, views, strict=True):
            axis.imshow(gray, cmap="gray", vmin=0, vmax=255, aspect=aspect)
            for structure, color in COLORS.items():
                for labels, style in ((mask, "dotted"), (predicted, "solid")):
                    region = labels == LABELS[structure]
                    if region.any():
                        axis.contour(region, [0.5], colors=color, linestyles=style, linewidths=1)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(title)
    figure.supxlabel("solid: network, dotted: given mask; gold LV, blue myocardium, magenta RV", fontsize=9)
    return figure
