"""Ignite handlers that write each subject's files as soon as the subject is encoded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from scripts.calibration.calibration import Calibration
from scripts.cohort.layout import SubjectError, write_like
from scripts.inference.loading import FAILURES, Failure
from scripts.inference.page import Page, caution_lines
from scripts.inference.records import Records
from scripts.inference.results import attribute_row, code_row, result_of
from scripts.storage import output_folder, refusal, refused
from scripts.views import View, as_view, map_labels

SEGMENTATION = "segmentation"
VOLUMES = {"pred": "reconstruction", "difference": "difference"}  # of the evaluator's output -> name of the file


class SubjectWriter(ABC):
    """Write what comes of every subject, and list those that fail at any stage.

    A failing subject stops no other; a folder that cannot be written to, or a full disk, stops the run.

    Args:
        records: of the folder.
        items: the subjects, as ``find_items`` gives them.
        calibration: of the model, where there is one.
    """

    failing: tuple[type[Exception], ...] = (SubjectError, OSError)  # what only a subject without a result comes of

    def __init__(
        self, records: Records, items: Sequence[Mapping[str, Any]], calibration: Calibration | None = None
    ) -> None:
        self.records, self.calibration = records, calibration
        self.items = {item["subject"]: item for item in items}
        self.failures: list[Failure] = []
        self.written = 0

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator."""
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self.take_failures)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.write_batch)

    def take_failures(self, engine: Engine) -> None:
        """Take those out of the batch that could not be loaded."""
        self.failures += engine.state.batch.pop(FAILURES, [])

    def write_batch(self, engine: Engine) -> None:
        """Write one decollated batch."""
        for batch, output in zip(engine.state.batch, engine.state.output, strict=True):
            item, problem = self.items[batch["subject"]], None
            try:
                rows = self.write(item, {**batch, **output})
                self.records.write(item, rows)
                self.written += 1
            except self.failing as error:
                problem = error
            if problem:  # here and not above: what is raised then would be told with the subject's path behind it
                self.stop_where_nothing_can_be_written(problem)
                self.failures.append(Failure(item["subject"], str(problem)))

    @abstractmethod
    def write(self, item: Mapping[str, Any], output: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """Write one subject's files, and return its row of each table, of which the record is made.

        Args:
            item: the subject.
            output: what was loaded, and what the evaluator made of it.
        """

    def stop_where_nothing_can_be_written(self, error: Exception) -> None:
        """Raise when an error is one of the folder or the disk and not of a subject."""
        number = refusal(error, self.records.folder)
        if number is not None:
            raise refused(self.records.folder, number)
        output_folder(self.records.folder)


class ResultsWriter(SubjectWriter):
    """Write the results of an inference.

    Args:
        records, items: as of ``SubjectWriter``.
        attributes: names of the regularized attributes; dimension k belongs to attribute k.
        view: of the images, or phases.
        calibration: gives estimates and the check of the range, where there is one.
        volumes: write ``reconstruction_<phase>.nii.gz`` and ``difference_<phase>.nii.gz``, in the scan's own grid, and
            ``segmentation_<phase>.nii.gz`` where the model decodes occupancy maps.
        pages: draw ``page.png``.
    """

    def __init__(
        self,
        records: Records,
        items: Sequence[Mapping[str, Any]],
        attributes: Sequence[str],
        view: View | Sequence[str],
        calibration: Calibration | None = None,
        volumes: bool = True,
        pages: bool = True,
    ) -> None:
        super().__init__(records, items, calibration)
        self.attributes, self.view, self.volumes = tuple(attributes), as_view(view), volumes
        self.page = page_of(self.view, attributes, calibration) if pages else None

    def write(self, item: Mapping[str, Any], output: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        result = result_of(item, output, self.calibration)
        folder = self.records.begin(item)
        if self.volumes:
            write_volumes(folder, item, output, self.view)
        if self.page:
            self.page.draw(result, folder / "page.png")
        level = self.calibration.level if self.calibration else None
        return {"codes": code_row(result, self.attributes), "attributes": attribute_row(result, self.attributes, level)}


def page_of(view: View | Sequence[str], attributes: Sequence[str], calibration: Calibration | None) -> Page:
    """The page for this view and these attributes, with the calibration's distributions."""
    if calibration is None:
        return Page(view, dict.fromkeys(attributes))
    quantiles = {name: calibration.quantiles(name) for name in attributes}
    return Page(view, quantiles, calibration.level, caution_lines(calibration.cautions()))


def write_volumes(
    folder: Path,
    item: Mapping[str, Any],
    output: Mapping[str, Any],
    view: View | Sequence[str],
    names: Mapping[str, str] = VOLUMES,
    segmentation: str = SEGMENTATION,
) -> None:
    """Write a subject's reconstructions, and their differences to the scan, with the header of the scan.

    Intensities are those of the normalized crop, 0 to 1 for the scan's 1st to 99th percentile; outside of the crop, 0.
    Decoded maps become labels, those of the masks.

    Args:
        folder: of the subject.
        item: ``scan_<phase>`` is the scan's path.
        output: ``pred_<phase>`` and ``difference_<phase>`` (1, X, Y, Z), and ``pred_maps_<phase>`` (3, X, Y, Z) where
            the view has maps, in the scan's grid.
        view: of what is to be written, or phases.
        names: which of ``pred`` and ``difference`` to write, and the beginning of their files' names.
        segmentation: the beginning of the names of the labels' files.
    """
    view = as_view(view)
    for phase in view.phases:
        for key, name in names.items():
            voxels = output[f"{key}_{phase}"][0].cpu().numpy()
            write_like(folder / f"{name}_{phase}.nii.gz", voxels, item[f"scan_{phase}"])
    for phase in view.mapped:
        labels = map_labels(torch.as_tensor(output[f"pred_maps_{phase}"]), axis=0).cpu().numpy()
        write_like(folder / f"{segmentation}_{phase}.nii.gz", labels, item[f"scan_{phase}"])
