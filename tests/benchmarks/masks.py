"""Inference without masks against inference with them, on subjects that neither network has learned from.

``python -m tests.benchmarks.masks <dataset> <datalist> <model folder> <segmentation.pt> <work folder>`` copies the test
subjects' scans without their masks, encodes them by the command line with masks predicted, and compares with the codes
of the given masks: distance of crop centers, slices chosen, rank correlation of the regularized dimensions, and their
(partial) correlation with the volumes of the given masks, beside that of the predicted masks' own volumes: what a
segmentation has lost, no model that looks at its masks can bring back.
Overlays of the model are named with ``--overlays``. Writes ``results.json``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from scripts.cohort.attributes import VOLUMES
from scripts.cohort.datalist import load_items
from scripts.cohort.examine import examine_subject
from scripts.cohort.layout import LABELS, PHASES, read_image, read_mask
from scripts.cohort.quality import QualityRules
from scripts.evaluation.study import command
from scripts.metrics import partial_correlations, spearman
from scripts.storage import read_csv, write_json
from scripts.transforms import barycenter

CONFIGS = Path(__file__).resolve().parents[2] / "bundle" / "configs"
CLOSE = 4.0  # mm
RULES = QualityRules()


def encode(overlays: list[str], dataset: Path, output: Path, **options: object) -> dict[str, list[float]]:
    """Subject to the codes of its regularized dimensions."""
    paths = {"dataset_dir": str(dataset), "output_dir": str(output)}
    configs = [CONFIGS / name for name in ("inference.json", *overlays)]
    subprocess.run(command("run", configs, paths | options), check=False)  # it ends with 3 when a subject is excluded
    rows = read_csv(output / "codes.csv")
    columns = list(rows[0])[1 : 1 + len(VOLUMES)]
    return {row["subject"]: [float(row[column]) for column in columns] for row in rows}


def crop_centers(
    dataset: Path, row: dict[str, Any], masks_dir: Path | None = None
) -> dict[str, tuple[np.ndarray, int]]:
    """Phase to the LV barycenter of the basal slice (mm, in-plane) and the index of that slice.

    Args:
        dataset: of the scans, and of the masks where ``masks_dir`` is None.
        row: what ``examine_subject`` found for the subject.
        masks_dir: of predicted masks.
    """
    centers = {}
    for phase in PHASES:
        index = row[f"basal_slice_{phase}"]
        folder = masks_dir if masks_dir else dataset
        mask = read_mask(folder / row[f"mask_{phase}"], row[f"frame_{phase}"])
        affine = read_image(dataset / row[f"image_{phase}"], row[f"frame_{phase}"])[1]
        voxel = np.linalg.norm(affine[:3, :3], axis=0)
        centers[phase] = (barycenter(mask[..., index], LABELS["LV"], voxel), index)
    return centers


def agreement(values: np.ndarray, volumes: np.ndarray) -> dict[str, float]:
    """Mean rank correlation of values (N, 6) with volumes (N, 6), and that with the other volumes held fixed."""
    return {
        "scc": float(spearman(values, volumes).mean()),
        "partial_scc": float(np.diag(partial_correlations(values, volumes)).mean()),
    }


def main() -> None:
    """Compare and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("dataset", "datalist", "model", "segmentation", "work"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--overlays", nargs="*", default=["compact.json"])
    arguments = parser.parse_args()
    items = load_items(arguments.datalist, arguments.dataset, "test")
    bare = arguments.work / "scans"
    for item in items:
        source = arguments.dataset / item["subject"]
        shutil.copytree(
            source, bare / item["subject"], ignore=shutil.ignore_patterns("seg_*", "label_*"), dirs_exist_ok=True
        )
    weights = {"ckpt_path": str(arguments.model / "model.pt")}
    given = encode(
        *(arguments.overlays, arguments.dataset, arguments.work / "given"),
        **weights,
        datalist=str(arguments.datalist),
        section="test",
    )
    predicted = encode(
        *(arguments.overlays, bare, arguments.work / "predicted"), **weights, segmentation=str(arguments.segmentation)
    )
    both = [subject for subject in given if subject in predicted]
    codes = [np.array([source[subject] for subject in both]) for source in (given, predicted)]
    by_name = {item["subject"]: item for item in items}
    volumes = np.array([[by_name[subject][name] for name in VOLUMES] for subject in both])
    distances, same_slice, measured = [], [], []
    masks = arguments.work / "predicted" / "masks"
    for subject in both:
        rows = [examine_subject(arguments.dataset / subject, RULES), examine_subject(bare / subject, RULES, masks)]
        measured.append([rows[1][name] for name in VOLUMES])
        pair = crop_centers(arguments.dataset, rows[0]), crop_centers(bare, rows[1], masks)
        for phase in PHASES:
            (center, index), (other, other_index) = (centers[phase] for centers in pair)
            distances.append(float(np.linalg.norm(center - other)))
            same_slice.append(index == other_index)
    results = {
        "subjects": len(items),
        "excluded": sorted(set(given) - set(predicted)),
        "centers_within_4_mm": float(np.mean(np.array(distances) <= CLOSE)),
        "distance_mm": {"median": float(np.median(distances)), "largest": max(distances)},
        "same_slice": float(np.mean(same_slice)),
        "rank_correlation": dict(zip(VOLUMES, spearman(*codes).round(4).tolist(), strict=True)),
        "agreement_with_given_volumes": {
            "codes_of_given_masks": agreement(codes[0], volumes),
            "codes_of_predicted_masks": agreement(codes[1], volumes),
            "volumes_of_predicted_masks": agreement(np.array(measured), volumes),
        },
    }
    write_json(arguments.work / "results.json", results)
    print(json.dumps({key: value for key, value in results.items() if key != "excluded"}))


if __name__ == "__main__":
    main()
