"""Counterfactuals of many subjects, as files, pages and a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from scripts.calibration.calibration import Calibration
from scripts.counterfactual import Counterfactuals, Request, RequestError
from scripts.inference.answers import answer_of, answer_row
from scripts.inference.page import caution_lines
from scripts.inference.records import Records
from scripts.inference.results import Result, result_of
from scripts.inference.whatif_page import draw_page
from scripts.inference.writers import SEGMENTATION, SubjectWriter, write_volumes

TABLE = "whatif"
# Of the postprocessed output: the names of the files.
BEFORE, AFTER = {"pred": "before"}, {"pred": "after", "difference": "difference"}


class WhatIfWriter(SubjectWriter):
    """Ask the same of every subject, and write what comes of it; one whose request is refused fails with the reason.

    Args:
        records, items: as of ``SubjectWriter``.
        counterfactuals: find the codes.
        request: what is asked.
        calibration: gives the check of the range.
        postprocessing: of ``pred`` and ``image`` (C, H, W) into the grid of the subject's scan, see inference.json.
        volumes: write ``before_<phase>.nii.gz``, ``after_<phase>.nii.gz`` and ``difference_<phase>.nii.gz`` (after -
            before) in the scan's own grid, and ``segmentation_before_<phase>.nii.gz`` and
            ``segmentation_after_<phase>.nii.gz`` where the model decodes occupancy maps.
        pages: draw ``page.png``.
    """

    failing = (*SubjectWriter.failing, RequestError)

    def __init__(
        self,
        records: Records,
        items: Sequence[Mapping[str, Any]],
        counterfactuals: Counterfactuals,
        request: Request,
        calibration: Calibration,
        postprocessing: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        volumes: bool = True,
        pages: bool = True,
    ) -> None:
        super().__init__(records, items, calibration)
        self.counterfactuals, self.request = counterfactuals, request
        self.postprocessing, self.volumes, self.pages = postprocessing, volumes, pages

    def write(self, item: Mapping[str, Any], output: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        self.records.discard(item["subject"])  # before a refusal, which leaves nothing of an earlier answer
        result = result_of(item, output, self.calibration)
        answer = answer_of(result, self.request, self.counterfactuals)
        folder = self.records.begin(item)
        if self.volumes:
            before, after = (self.in_scan(output, result, heart) for heart in (result.reconstruction, answer.image))
            write_volumes(folder, item, before, self.counterfactuals.view, BEFORE, f"{SEGMENTATION}_before")
            write_volumes(folder, item, after, self.counterfactuals.view, AFTER, f"{SEGMENTATION}_after")
        if self.pages:
            warning = caution_lines(self.calibration.cautions())
            draw_page(answer, self.counterfactuals.view, folder / "page.png", warning)
        return {TABLE: answer_row(answer)}

    def in_scan(self, output: Mapping[str, Any], result: Result, heart: np.ndarray) -> Mapping[str, Any]:
        """A heart (C, H, W) in the grid of the scan, and what it has more than the one before."""
        compared = {"pred": torch.as_tensor(heart), "image": torch.as_tensor(result.reconstruction)}
        return self.postprocessing({**output, **compared})
