"""Counterfactuals against the truth: phantoms rendered again with the volume that was asked for.

``python -m tests.benchmarks.rerendered <scans> <datalist> <model folder> <work folder> --subjects 620 --seed 7``
takes a model of phantom hearts and the arguments of ``run phantom`` that its cohort was written with. For each
attribute and change, held-out hearts are rendered once more with that change, all else equal, and compared with what
the model makes of the request: Dice of its maps, and squared error of its images where either shows a heart. Beside it
stand a model that does nothing (the reconstruction of the unchanged heart against the changed one) and what the model's
reconstructions reach without a request. The segmentation that evaluates the model reads the change in both: what it
finds in rendered hearts is as much as any model can show it. Writes ``rerendered.json``.
"""

from __future__ import annotations

import argparse
import filecmp
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset

from scripts.cohort.datalist import locate, section_items
from scripts.cohort.phantom import Protocol, plan, write_subject
from scripts.counterfactual import Counterfactuals
from scripts.evaluation.correction import Corrected
from scripts.evaluation.images import dice
from scripts.metrics.resampling import bootstrap_mean
from scripts.parallel import Workers, parallel_map
from scripts.storage import write_json
from scripts.views import STRUCTURES, View

CONFIGS = Path(__file__).resolve().parents[2] / "bundle" / "configs"
COUNTERFACTUALS = {
    "_target_": "scripts.counterfactual.counterfactuals_of",
    "calibration": "@page#calibration",
    **{name: f"@{name}" for name in ("network", "view", "spacing", "regularize")},
}
SIZE, SPACING = (208, 187), (1.8, 1.8, 10.0)


def render(options: argparse.Namespace, folder: Path, names: list[str], changes: dict[str, float]) -> None:
    """Write phantoms of the cohort once more, with changes (mL) of their volumes."""
    folder.mkdir(parents=True, exist_ok=True)
    protocol = Protocol(folder, options.seed, 8, SIZE, SPACING, changes)
    cohort = plan(options.subjects, options.seed, options.cine_fraction, options.diseased_fraction, options.failing)
    chosen = [subject for subject in cohort if subject.name in names]
    list(parallel_map(partial(write_subject, protocol=protocol), chosen, Workers.of(None), "phantom", "subject"))


def check_same(options: argparse.Namespace, folder: Path, name: str) -> None:
    """Raise ValueError unless a phantom without a change is, byte for byte, that of the cohort."""
    render(options, folder, [name], {})
    for scan in sorted((folder / name).iterdir()):
        if not filecmp.cmp(scan, options.scans / name / scan.name, shallow=False):
            raise ValueError(
                f"{scan.name} of {name} is another one: give the arguments that the cohort was written with."
            )


def crops(parser: ConfigParser, items: list[dict[str, Any]]) -> torch.Tensor:
    """All channels (B, C, H, W) of subjects."""
    dataset = Dataset(items, parser.get_parsed_content("validate#preprocessing"))
    return torch.cat([batch["image"] for batch in DataLoader(dataset, batch_size=16)])


def likeness(decoded: torch.Tensor, rendered: torch.Tensor, view: View) -> dict[str, np.ndarray]:
    """Dice of each structure, mean over phases, and mean squared error within either heart: (B,) each."""
    found = dice(rendered, decoded, view)
    values = {name: np.nanmean([found[f"Dice_{name}_{phase}"] for phase in view.phases], axis=0) for name in STRUCTURES}
    heart = (view.slice_maps(rendered).sum(-3) + view.slice_maps(decoded).sum(-3)).flatten(1, 2) > 0.5
    squares = torch.where(heart, decoded[:, : view.images] - rendered[:, : view.images], 0).square()
    return values | {"MSE": (squares.flatten(1).sum(1) / heart.flatten(1).sum(1)).numpy()}


def compare(
    model: Counterfactuals, segmentation: Corrected, parser: ConfigParser, options: argparse.Namespace
) -> dict[str, Any]:
    """Per attribute and change: the model's answer, nothing done, and reconstructions, against rendered hearts, and by
    how many mL the segmentation finds the attribute changed."""
    items = section_items(options.datalist, "test")[: options.limit]
    names = [item["subject"] for item in items]
    check_same(options, options.work / "same", names[0])
    original = crops(parser, [locate(item, options.scans, options.work) for item in items])
    codes = model.network.encode(original)[0]
    before, values, results = model.decode(codes), model.attributes(codes), {}
    results["reconstruction"] = summary(likeness(before, original, model.view))
    read_of = {"rendered": segmentation(original), "answer": segmentation(before)}
    for column, name in enumerate(segmentation.names):
        for change in options.changes:
            folder = options.work / f"{name}_{change:+g}"
            render(options, folder, names, {name: change})
            allowed = model.allowed(values, name, change).nonzero()[:, 0].tolist()
            rows = [row for row in allowed if (folder / names[row]).is_dir()]
            if not rows:
                continue
            rendered = crops(parser, [locate(items[row], folder, options.work) for row in rows])
            answer = model.decode(model.change(codes[rows], name, change))
            results[f"{name} {change:+g}"] = {
                "hearts": len(rows),
                "answer": summary(likeness(answer, rendered, model.view)),
                "nothing": summary(likeness(before[rows], rendered, model.view)),
                "read": {
                    kind: bootstrap_mean((segmentation(images) - read_of[kind][rows])[:, column].numpy(), 0)
                    for kind, images in (("rendered", rendered), ("answer", answer))
                },
            }
            print(name, change, results[f"{name} {change:+g}"], flush=True)
    return results


def summary(values: dict[str, np.ndarray]) -> dict[str, Any]:
    """Mean with an interval over subjects."""
    return {name: bootstrap_mean(part, 0) for name, part in values.items()}


@torch.no_grad()
def main() -> None:
    """Render, compare, and write the results."""
    arguments = argparse.ArgumentParser(description=__doc__)
    for name in ("scans", "datalist", "model", "work"):
        arguments.add_argument(name, type=Path)
    arguments.add_argument("--overlays", nargs="*", default=["compact.json", "phantom.json", "faithful.json"])
    arguments.add_argument("--changes", nargs="*", type=float, default=[-20.0, 20.0])
    arguments.add_argument("--instruments", type=Path, help="the evaluation's ceiling_dir, by default the model folder")
    arguments.add_argument(
        "--keys", type=json.loads, default={}, help="of the evaluation, '{\"instrument_epochs\":30}'"
    )
    arguments.add_argument("--limit", type=int, default=30, help="held-out subjects")
    for name, kind, default in (("subjects", int, 200), ("seed", int, 0), ("failing", int, 1)):
        arguments.add_argument(f"--{name}", type=kind, default=default, help="of run phantom")
    for name, default in (("cine_fraction", 0.2), ("diseased_fraction", 0.3)):
        arguments.add_argument(f"--{name}", type=float, default=default, help="of run phantom")
    options = arguments.parse_args()
    parser = ConfigParser()
    parser.read_config([CONFIGS / name for name in ("train.json", *options.overlays, "evaluate.json")])
    parser.update({"device": "$torch.device('cpu')", **options.keys})
    paths = {"dataset_dir": options.scans, "datalist": options.datalist, "output_dir": options.model}
    paths["ceiling_dir"] = options.instruments or options.model
    parser.update({key: str(path) for key, path in paths.items()})
    parser["counterfactuals"] = COUNTERFACTUALS
    parser.get_parsed_content("load_weights")
    parser.get_parsed_content("network").eval()
    with torch.enable_grad():  # trained, unless the evaluation has done so
        parser.get_parsed_content("instruments#segmentation#fit")
    segmentation = parser.get_parsed_content("instruments#segmentation#correct")
    found = compare(parser.get_parsed_content("counterfactuals"), segmentation, parser, options)
    write_json(options.work / "rerendered.json", found)


if __name__ == "__main__":
    main()
