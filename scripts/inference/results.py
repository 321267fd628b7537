"""What is known of a subject once it is encoded: its codes, estimates in mL, and whether it is in range."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.utils.enums import CommonKeys as Keys

from scripts.calibration.calibration import FILE, Calibration
from scripts.calibration.lines import Estimate
from scripts.calibration.novelty import Novelty
from scripts.checkpoint import fingerprint
from scripts.cohort.attributes import DERIVED, VOLUMES
from scripts.cohort.layout import SubjectError
from scripts.engines import CODES, LOG_VARIANCES
from scripts.views import View, as_view


@dataclass(frozen=True)
class Result:
    """One subject's result.

    Args:
        item: the subject as ``find_items`` gives it, with the values that were measured on its masks.
        codes: (D,), mean of q(z|x).
        image, reconstruction: (C, H, W), crops.
        estimates: attribute to its estimate with interval; empty without a calibration.
        novelty: how unusual the scan is; None without a calibration.
    """

    item: Mapping[str, Any]
    codes: np.ndarray
    image: np.ndarray
    reconstruction: np.ndarray
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    novelty: Novelty | None = None


def find_calibration(
    ckpt_path: str | os.PathLike, checkpoint: str, view: View | Sequence[str], attributes: Sequence[str]
) -> Calibration | None:
    """The calibration beside a checkpoint; None, with a warning that says what to do, where there is none of it.

    Args:
        ckpt_path: the checkpoint.
        checkpoint: its SHA-256.
        view: of the inference, or its phases.
        attributes: those of the inference.

    Raises:
        ValueError: when the calibration is of another view or other attributes.
    """
    path = Path(ckpt_path).with_name(FILE)
    try:
        calibration = Calibration.read(path, checkpoint)
    except (FileNotFoundError, ValueError) as error:
        print(
            f"Warning: {error} (with the overlays of the training). Until then there are codes and pictures, but no "
            "estimates in mL and no check of the range."
        )
        return None
    known = calibration.settings | View.of(calibration.settings).settings
    asked = as_view(view).settings | {"attributes": list(attributes)}
    for name, values in asked.items():
        if known[name] != values:
            raise ValueError(
                f"calibration '{path}' is for {name} {listed(known[name])}, not for {listed(values)}; use the configs "
                "and overlays of the training."
            )
    return calibration


def listed(values: Any) -> str:
    """A setting for people."""
    return ", ".join(values) if isinstance(values, list) else str(values)


def calibration_hash(ckpt_path: str | os.PathLike, calibration: Calibration | None) -> str | None:
    """Tells whether results are of the present calibration; None where there is none."""
    return None if calibration is None else fingerprint(Path(ckpt_path).with_name(FILE))


def result_of(item: Mapping[str, Any], output: Mapping[str, torch.Tensor], calibration: Calibration | None) -> Result:
    """Gather a subject's result from the evaluator's output.

    Raises:
        SubjectError: when the network gives no finite numbers for it.
    """
    keys = (CODES, LOG_VARIANCES, Keys.IMAGE, Keys.PRED)
    arrays = [torch.as_tensor(output[key]).detach().cpu().numpy() for key in keys]
    if not all(np.isfinite(array).all() for array in arrays):
        raise SubjectError("the network gives values that are not finite (NaN or infinite)")
    codes, log_variances, image, reconstruction = arrays
    if calibration is None:
        return Result(item, codes, image, reconstruction)
    novelty = calibration.novelty(codes, log_variances, image, reconstruction)
    return Result(item, codes, image, reconstruction, calibration.estimate(codes), novelty)


def code_row(result: Result, attributes: Sequence[str]) -> dict[str, str]:
    """A row of ``codes.csv``: the mean of every dimension.

    A column is named by its dimension and, where that is regularized, its attribute: ``z0_LVEDV``, ..., ``z6``.
    """
    names = [f"z{k}_{name}" for k, name in enumerate(attributes)]
    names += [f"z{k}" for k in range(len(names), len(result.codes))]
    values = {name: f"{value:.7g}" for name, value in zip(names, result.codes.tolist(), strict=True)}
    return {"subject": result.item["subject"], **values}


def attribute_row(result: Result, attributes: Sequence[str], level: float | None = None) -> dict[str, Any]:
    """A row of ``attributes.csv``: what kind of mask there is, the check of the range, estimates, values of the masks.

    Every row has the same columns; a value that is not known stays empty. ``level`` is that of the intervals.
    """
    item, novelty = result.item, result.novelty
    row: dict[str, Any] = {"subject": item["subject"], "mask": item.get("mask", "")}
    if novelty is not None:
        row |= {"out_of_range": bool(novelty.out_of_range), "percentile": digits(novelty.percentile)}
        row |= {f"percentile_{name}": digits(value) for name, value in novelty.percentiles.items()}
    if result.estimates:
        row["interval_level"] = digits(level)
    for name in dict.fromkeys((*attributes, *VOLUMES, *DERIVED)):
        if name in result.estimates:
            estimate = result.estimates[name]
            row |= {name: digits(estimate.value), f"{name}_low": digits(estimate.low)}
            row |= {f"{name}_high": digits(estimate.high)}
        row[f"{name}_mask"] = digits(item.get(name))
    return row | {"HR": digits(item.get("HR")), "LVCO_mask": digits(item.get("LVCO"))}


def digits(value: float | None) -> str:
    """Six significant digits, which are below the precision of any scan; nothing for a value that is missing."""
    return "" if value is None or not np.isfinite(value) else f"{value:.6g}"
