"""report.html of an evaluation: which hearts it shows, and what it says of the run."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.calibration.calibration import Calibration
from scripts.calibration.novelty import Novelty
from scripts.counterfactual import check_changes, counterfactuals_of
from scripts.evaluation.records import SubjectRecords
from scripts.evaluation.report import METRICS_FILE, PAGE_FILE, device_of
from scripts.evaluation.tables import all_tables
from scripts.inference.answers import gap_notes
from scripts.inference.page import extent_notes, range_notes
from scripts.networks import VariationalAutoencoder
from scripts.report_page.document import figure_parts, render
from scripts.report_page.hearts import Heart, HeartFrames, Measure
from scripts.storage import atomic_path
from scripts.views import View

LARGEST = 15e6  # bytes: what mail and browsers take without complaint
TEXTS = 0.5e6  # bytes left for tables and the page itself


class EvaluatedHearts:
    """The hearts of a page: subjects of an evaluation from the smallest to the largest, by the first attribute.

    Args:
        network: the model.
        view: of its images.
        spacing: pixel size in mm.
        regularize: whether its dimensions follow attributes.
        calibration: of its weights; None where there is none.
        records: of the judged subjects, which have gone through the network.
        dataset: their images, in the same order.
        count: how many subjects are shown; all, where there are fewer.
        changes: that are asked of each attribute, in its unit.
        measure, instrument: see ``HeartFrames``.

    Attributes:
        absent: why there are no hearts to change; nothing where there are.

    Raises:
        ValueError: for a count or changes that tell nothing, naming their key.
    """

    def __init__(
        self,
        network: VariationalAutoencoder,
        view: View,
        spacing: float,
        regularize: bool,
        calibration: Calibration | None,
        records: SubjectRecords,
        dataset: Sequence[Mapping[str, Any]],
        count: int,
        changes: Sequence[float],
        measure: Measure | None = None,
        instrument: str = "an independent instrument",
    ) -> None:
        if type(count) is not int or count < 0:
            raise ValueError(f"page_subjects is {count!r}: expected a whole number of subjects, 0 for none.")
        if count:
            check_changes(changes, "page_changes")
        self.network, self.view, self.calibration = network, view, calibration
        self.records, self.dataset, self.count = records, dataset, count
        self.changes, self.measure, self.instrument = changes, measure, instrument
        self.absent = "" if count else "no subjects were asked for (page_subjects is 0)"
        try:
            self.counterfactuals = counterfactuals_of(network, view, spacing, regularize, calibration)
        except ValueError as error:
            self.absent = str(error)

    def rows(self) -> list[int]:
        """Which of the subjects are shown, the smallest first."""
        size = self.records.attributes[:, 0]
        order = np.argsort(size, kind="stable")[: np.isfinite(size).sum()]
        count = min(self.count, len(order))
        return [int(row) for row in order[((np.arange(count) + 0.5) * len(order) / count).astype(int)]] if count else []

    def page(self, budget: float) -> dict[str, Any]:
        """What the page needs of them, in about so many bytes."""
        frames = HeartFrames(self.counterfactuals, self.changes, self.measure, self.instrument)
        return frames.page([self.heart(row) for row in self.rows()], budget)

    def heart(self, row: int) -> Heart:
        """One subject."""
        device = device_of(self.network)
        image = torch.as_tensor(self.dataset[row]["image"]).float().to(device)
        code = torch.as_tensor(self.records.codes[row], dtype=torch.float32, device=device)
        novelty, told = self.novelty(row, image, code), self.counterfactuals.attributes(code[None])[0].tolist()
        own = dict(zip(self.counterfactuals.names, told, strict=True))
        masks = dict(zip(self.calibration.attributes, self.records.attributes[row].tolist(), strict=True))
        return Heart(
            number=self.records.pseudonyms[row],
            image=image,
            code=code,
            attributes=masks,
            notes=[*range_notes(novelty), *gap_notes(own, masks), *extent_notes(self.view, image)],
            out_of_range=novelty.out_of_range,
        )

    def novelty(self, row: int, image: torch.Tensor, code: torch.Tensor) -> Novelty:
        """How unusual a subject's scan is."""
        reconstruction = self.counterfactuals.decode(code[None])[0]
        return self.calibration.novelty(code.cpu(), self.records.log_variances[row], image.cpu(), reconstruction.cpu())


class ReportPage:
    """Write ``report.html``, in which pseudonyms stand for subjects.

    Args:
        folder: of an evaluation that has written its metrics and figures.
        hearts: to be changed on the page.
    """

    def __init__(self, folder: str | os.PathLike, hearts: EvaluatedHearts) -> None:
        self.folder, self.hearts = Path(folder), hearts

    def write(self) -> Path:
        """Write the page and print where it is, with what to do where it got too large."""
        metrics = read_metrics(self.folder / METRICS_FILE)
        figures, absent = figure_parts((self.folder / "figures").glob("*.png")), self.hearts.absent
        if not absent and not self.hearts.rows():
            absent = f"no subject has a value of {self.hearts.calibration.attributes[0]}, by which they are chosen"
        left = LARGEST - TEXTS - sum(len(figure["source"]) for figure in figures)
        calibration = self.hearts.calibration
        cautions = calibration.cautions() if calibration is not None else []
        text = render(
            title(metrics),
            facts(metrics["description"], self.hearts.view),
            all_tables(metrics),
            figures,
            None if absent else self.hearts.page(left),
            absent,
            cautions,
        )
        path = self.folder / PAGE_FILE
        with atomic_path(path) as part:
            part.write_text(text, encoding="utf-8")
        size = path.stat().st_size
        print(f"Page to look at ({size / 1e6:.1f} MB): {path}")
        for caution in cautions:
            print(f"Caution: {caution}")
        if size > LARGEST:
            print(f"It is larger than {LARGEST / 1e6:.0f} MB: fewer --page_subjects or --page_changes make it smaller.")
        return path


def title(metrics: Mapping[str, Any]) -> str:
    """Of the page."""
    description = metrics["description"]
    count = metrics["subjects"][description["section"]]
    return f"{description['method']} on {count} {description['section']} subjects"


def facts(description: Mapping[str, Any], view: View) -> dict[str, str]:
    """What was judged: name to value."""
    return {
        "View": f"{' and '.join(view.phases)}, {view.description}",
        "Attributes": ", ".join(description["data"]["attributes"]),
        "Seed": str(description["seed"]),
        "Checkpoint": str(description.get("checkpoint_sha256", ""))[:12],
        "Cohort": str(description.get("cohort_sha256", ""))[:12],
    }


def read_metrics(path: Path) -> dict[str, Any]:
    """What an evaluation has written, with NaN for the numbers that JSON has no word for."""
    metrics = json.loads(path.read_text(encoding="utf-8"))
    return {key: value if key == "description" else with_nan(value) for key, value in metrics.items()}


def with_nan(value: Any) -> Any:
    """The same with NaN for null."""
    if isinstance(value, Mapping):
        return {key: with_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_nan(item) for item in value]
    return math.nan if value is None else value
