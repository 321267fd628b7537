"""The files of inference, written by Ignite handlers: codes.csv and reconstructions in the scan's own grid."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ignite.engine import Engine, Events

from scripts.cohort.layout import write_like
from scripts.engines import CODES
from scripts.storage import output_folder, write_csv


class CodesWriter:
    """Write ``codes.csv``: one row per subject with the mean of every dimension.

    A column is named by its dimension and, where that is regularized, its attribute: ``z0_LVEDV``, ..., ``z6``.

    Args:
        output_dir: folder of the file.
        attributes: names of the regularized attributes; dimension k belongs to attribute k.
    """

    def __init__(self, output_dir: str | os.PathLike, attributes: Sequence[str]) -> None:
        self.path = output_folder(output_dir) / "codes.csv"
        self.attributes = tuple(attributes)
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.COMPLETED, self.write)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.rescue)

    def collect(self, engine: Engine) -> None:
        """Add one decollated batch."""
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            values = {self.column(k): f"{float(value):.7g}" for k, value in enumerate(output[CODES])}
            self.rows.append({"subject": item["subject"], **values})

    def column(self, dimension: int) -> str:
        """Name of a dimension's column."""
        regularized = dimension < len(self.attributes)
        return f"z{dimension}_{self.attributes[dimension]}" if regularized else f"z{dimension}"

    def write(self, engine: Engine) -> None:
        """Write all rows."""
        write_csv(self.path, self.rows, list(self.rows[0]) if self.rows else ["subject"])
        print(f"Codes of {len(self.rows)} subjects: {self.path}")

    def rescue(self, engine: Engine, error: BaseException) -> None:
        """Keep the codes of the subjects before the one that failed."""
        self.write(engine)
        raise error


class ReconstructionWriter:
    """Write each subject's reconstructions into the scan's own grid: ``<subject>/reconstruction_<phase>.nii.gz``.

    Intensities are those of the normalized crop, 0 to 1 for the scan's 1st to 99th percentile; outside of the crop, 0.

    Args:
        output_dir: folder of the subjects' folders.
        phases: phases to write; ``pred_<phase>`` is in the scan's grid, ``scan_<phase>`` the scan's path.
    """

    def __init__(self, output_dir: str | os.PathLike, phases: Sequence[str]) -> None:
        self.folder = output_folder(output_dir)
        self.phases = tuple(phases)

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.write)

    def write(self, engine: Engine) -> None:
        """Write one decollated batch."""
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            self.write_subject(item, output)

    def write_subject(self, item: Mapping[str, Any], output: Mapping[str, Any]) -> None:
        """Write one subject's phases."""
        folder = self.folder / item["subject"]
        folder.mkdir(exist_ok=True)
        for phase in self.phases:
            voxels = output[f"pred_{phase}"][0].cpu().numpy()
            write_like(folder / f"reconstruction_{phase}.nii.gz", voxels, item[f"scan_{phase}"])
