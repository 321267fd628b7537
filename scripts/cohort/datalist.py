"""The datalist: which subjects belong to which section, with paths relative to dataset_dir."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from scripts.cohort.attributes import AREAS, CARDIAC_OUTPUT, DERIVED, VOLUMES
from scripts.cohort.layout import MASKS, PHASES, PREDICTED, printable
from scripts.cohort.privacy import without_name
from scripts.cohort.split import SECTIONS
from scripts.storage import read_object, write_json

FILE_KEYS = tuple(f"{kind}_{phase}" for phase in PHASES for kind in ("image", "mask"))
PHASE_KEYS = tuple(f"{kind}_{phase}" for phase in PHASES for kind in ("frame", "basal_slice"))
MEASURED = (*VOLUMES, *DERIVED, *AREAS, *CARDIAC_OUTPUT)
BEYOND = 1e6  # in any unit of these, no heart; and JSON may have whole numbers that no float can hold


def datalist_item(row: Mapping[str, Any]) -> dict[str, Any]:
    """One subject of the datalist, from its row of the examination."""
    item = {key: row[key] for key in ("subject", "mask", *FILE_KEYS, *PHASE_KEYS, *VOLUMES, *DERIVED, *AREAS)}
    return item | {key: row[key] for key in CARDIAC_OUTPUT if key in row}


def write_datalist(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]], sections: Mapping[str, str]) -> None:
    """Write the decathlon-style datalist of the included subjects.

    Args:
        path: target file.
        rows: rows of the examination, included subjects only.
        sections: subject to section.
    """
    content: dict[str, Any] = {
        "name": "short-axis cardiac MRI cohort",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "LV cavity", "2": "myocardium", "3": "RV cavity"},
        "attributes": {**dict.fromkeys(VOLUMES, "mL"), **dict.fromkeys(AREAS, "cm2")},
    }
    for section in SECTIONS:
        members = [row for row in rows if sections[row["subject"]] == section]
        content[f"num{section.capitalize()}"] = len(members)
        content[section] = [datalist_item(row) for row in members]
    write_json(path, content)


def load_items(
    datalist: str | os.PathLike,
    dataset_dir: str | os.PathLike,
    section: str | None = None,
    attributes: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Read subjects of a datalist, located in ``dataset_dir``.

    Args:
        datalist: a file written by ``run prepare``.
        dataset_dir: the folder that its paths are relative to.
        section: ``training``, ``validation`` or ``test``; None for all of them.
        attributes: names that every subject must have a value for (null counts: it is a missing value).

    Raises:
        FileNotFoundError: when the datalist or a file that it names is missing.
        ValueError: when the section is empty, or the cohort lacks an attribute.
    """
    items = section_items(datalist, section)
    check_attributes(items, attributes, datalist)
    masks_dir = Path(datalist).parent / MASKS
    check_files(items, datalist, dataset_dir, masks_dir)
    return [locate(item, dataset_dir, masks_dir) for item in items]


def section_items(datalist: str | os.PathLike, section: str | None) -> list[dict[str, Any]]:
    """The items of a section, or of all, as the file has them.

    Raises:
        FileNotFoundError, ValueError: when the datalist is missing or broken, or the section is empty.
    """
    content = read_datalist(datalist)
    if section is not None and section not in SECTIONS:
        raise ValueError(f"section is {section!r}; expected one of {', '.join(SECTIONS)}, or null for all of them.")
    # All sections are checked: a subject in two of them would be judged by a model that has learned from it.
    check_items([item for name in SECTIONS for item in content.get(name, [])], datalist)
    items = [item for name in ([section] if section else SECTIONS) for item in content.get(name, [])]
    if not items:
        raise ValueError(f"datalist '{datalist}' has no subject in {section or SECTIONS}; see 'split' of run prepare.")
    return items


def locate(
    item: Mapping[str, Any], dataset_dir: str | os.PathLike, masks_dir: str | os.PathLike | None = None
) -> dict[str, Any]:
    """Give an item the full paths of its files, and note when these last changed, so that no cache outlives them.

    The scans' paths are kept under ``scan_<phase>`` too, since loading replaces ``image_<phase>`` by its voxels.
    """
    paths = full_paths(item, dataset_dir, masks_dir)
    scans = {f"scan_{phase}": paths[f"image_{phase}"] for phase in PHASES}
    return {**item, **paths, **scans, "modified": [os.stat(path).st_mtime_ns for path in paths.values()]}


def full_paths(
    item: Mapping[str, Any], dataset_dir: str | os.PathLike, masks_dir: str | os.PathLike | None
) -> dict[str, str]:
    """Where an item's files lie: in ``dataset_dir``, but for predicted masks, which lie in ``masks_dir``."""
    paths = {}
    for key in FILE_KEYS:
        in_dataset = os.path.join(dataset_dir, item[key])
        predicted = item.get("mask") == PREDICTED and key.startswith("mask_") and not os.path.exists(in_dataset)
        paths[key] = os.path.join(masks_dir, item[key]) if predicted and masks_dir else in_dataset
    return paths


def read_datalist(path: str | os.PathLike) -> dict[str, Any]:
    """Read the file, with a clear error when it is missing or no datalist."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"datalist '{path}' does not exist; 'run prepare' with cohort.json writes it.")
    remedy = "write it again with 'run prepare'"
    content = read_object(path, "datalist", remedy)
    if not all(isinstance(content.get(name, []), list) for name in SECTIONS):
        raise ValueError(f"datalist '{path}' needs sections {', '.join(SECTIONS)}, each a list of subjects; {remedy}.")
    return content


def attribute_values(items: Sequence[Mapping[str, Any]], attributes: Sequence[str]) -> np.ndarray:
    """Attributes of subjects, (subjects, A); NaN where missing."""
    return np.array([[np.nan if item[name] is None else item[name] for name in attributes] for item in items], float)


def attribute_scale(items: Sequence[Mapping[str, Any]], attributes: Sequence[str]) -> dict[str, list[float]]:
    """Mean and standard deviation of each attribute over subjects that have it, as ``mean`` and ``std``.

    Of what does not vary, the standard deviation is given as 1, since it needs no scale.

    Args:
        items: subjects of a datalist.
        attributes: their names.
    """
    values = attribute_values(items, attributes)
    std = np.nanstd(values, axis=0)
    return {"mean": np.nanmean(values, axis=0).tolist(), "std": np.where(std > 0, std, 1).tolist()}


def attribute_correlation(items: Sequence[Mapping[str, Any]], attributes: Sequence[str]) -> list[list[float]]:
    """Pearson's correlation (A, A) of attributes, over subjects that have all of them; 0 with what does not vary."""
    values = attribute_values(items, attributes)
    complete = values[np.isfinite(values).all(1)]
    spread = complete.std(0)
    standardized = (complete - complete.mean(0)) / np.where(spread > 0, spread, 1)
    correlation = standardized.T @ standardized / max(len(complete), 1)
    np.fill_diagonal(correlation, 1)
    return correlation.tolist()


def file_hash(datalist: str | os.PathLike) -> str:
    """SHA-256 of a datalist: tells whether two trainings had the same subjects, and no subject's name.

    Raises:
        FileNotFoundError, ValueError: as ``read_datalist``.
    """
    read_datalist(datalist)
    return hashlib.sha256(Path(datalist).read_bytes()).hexdigest()


def check_items(items: Sequence[Any], datalist: Any) -> None:
    """Raise for the first item that prepare did not write so, and for a subject that is named twice.

    Items are known by their numbers, which count from 0 through all sections: a log must name nobody.
    """
    names: dict[str, int] = {}
    for number, item in enumerate(items):
        wrong = wrong_keys(item) if isinstance(item, dict) else ["it is not an object"]
        if wrong:
            raise ValueError(
                f"item {number} of datalist '{datalist}' (counted from 0 through all sections) is broken: "
                f"{', '.join(wrong)}. Mend it, or write the datalist again with 'run prepare'."
            )
        first = names.setdefault(item["subject"], number)
        if first != number:
            raise ValueError(
                f"datalist '{datalist}' names a subject more than once, as items {first} and {number} (counted from 0 "
                "through all sections); keep one of them."
            )


def wrong_keys(item: Mapping[str, Any]) -> list[str]:
    """Keys of an item that are missing or whose values are of another type than prepare writes."""
    expected: dict[str, tuple[type, ...]] = dict.fromkeys(("subject", *FILE_KEYS), (str,))
    expected |= {f"frame_{phase}": (int, type(None)) for phase in PHASES}
    expected |= {f"basal_slice_{phase}": (int,) for phase in PHASES}
    wrong = [f"{key} is missing" for key in expected if key not in item]
    expected |= {"mask": (str, type(None)), **dict.fromkeys(MEASURED, (int, float, type(None)))}
    for key, types in expected.items():
        if key in item and (not isinstance(item[key], types) or isinstance(item[key], bool)):
            wrong.append(f"{key} is of type {type(item[key]).__name__}")  # the value may be a subject's name
        elif isinstance(item.get(key), int | float) and not abs(item[key]) < BEYOND:  # NaN is not below it, either
            wrong.append(f"{key} is no number of a heart")
    if not wrong and not is_folder_name(item["subject"]):
        wrong.append("subject is no name of a folder")
    if not wrong:
        wrong += [f"{key} is no path within dataset_dir" for key in FILE_KEYS if not is_inside(item[key])]
    return wrong


def is_folder_name(name: str) -> bool:
    """Whether a subject's name is that of a folder, and leads nowhere else."""
    return os.sep not in name and name not in ("", ".", "..") and printable(name) == name


def is_inside(path: str) -> bool:
    """Whether a path is one below the folder that it is relative to, by its words: links there are the owner's."""
    return not os.path.isabs(path) and ".." not in PurePath(path).parts and printable(path) == path


def check_attributes(items: Sequence[Mapping[str, Any]], attributes: Sequence[str], datalist: Any) -> None:
    """Raise for the first attribute that a subject does not have."""
    for item in items:
        lacking = [name for name in attributes if name not in item]
        if lacking:
            known = ", ".join(name for name in (*VOLUMES, *DERIVED, *AREAS) if name in item)
            raise ValueError(
                f"a subject of datalist '{datalist}' lacks the attributes {', '.join(lacking)}; it has "
                f"{known or 'none'}. Choose among these with --attributes, or run prepare again."
            )
    empty = [name for name in attributes if all(item[name] is None for item in items)]
    if empty:
        raise ValueError(f"no subject of datalist '{datalist}' has a value for {', '.join(empty)}; leave it out.")


def check_files(items: Sequence[Mapping[str, Any]], datalist: Any, dataset_dir: Any, masks_dir: Any = None) -> None:
    """Raise for files that have vanished, with the first's path but for the subject's name."""
    paths = ((item, path) for item in items for path in full_paths(item, dataset_dir, masks_dir).values())
    gone = [(item, path) for item, path in paths if not os.path.exists(path)]
    if gone:
        item, path = gone[0]
        raise FileNotFoundError(
            f"{len(gone)} files of datalist '{datalist}' are missing under dataset_dir '{dataset_dir}', the first: "
            f"{without_name(path, item['subject'])}. Check dataset_dir, or run prepare again."
        )
