"""What training and inference run over: cached datasets, and the subjects of new scans."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from monai.data import CacheDataset, Dataset, PersistentDataset, pickle_hashing

from scripts.cohort.datalist import load_items, locate
from scripts.cohort.examine import examine_all
from scripts.cohort.layout import find_subjects
from scripts.cohort.quality import QualityRules
from scripts.storage import output_folder, write_csv


def cached_dataset(
    data: Sequence[dict[str, Any]], transform: Callable, cache_dir: str | os.PathLike | None, at_once: bool = True
) -> Dataset:
    """Cache preprocessed subjects in memory, or on disk where a folder is named.

    Args:
        data: items of a datalist.
        transform: preprocessing, deterministic transforms first; these are cached.
        cache_dir: folder for the cache of a cohort that memory cannot hold; None caches in memory. A change of the
            transforms makes a new cache.
        at_once: fill the cache of the memory now, and not only when subjects are asked for: a training that may turn
            out to have been done already needs none.
    """
    if cache_dir:
        return PersistentDataset(data, transform, cache_dir, hash_transform=pickle_hashing)
    return CacheDataset(data, transform, num_workers=os.cpu_count(), runtime_cache=False if at_once else "threads")


def streamed_dataset(
    data: Sequence[dict[str, Any]], transform: Callable, cache_dir: str | os.PathLike | None
) -> Dataset:
    """Preprocess subjects as they are asked for: memory does not grow with their number.

    Args:
        data, transform: as of ``cached_dataset``.
        cache_dir: folder for the cache of a cohort that is read more than once.
    """
    return cached_dataset(data, transform, cache_dir) if cache_dir else Dataset(data, transform)


def find_items(
    dataset_dir: str | os.PathLike,
    output_dir: str | os.PathLike,
    datalist: str | os.PathLike | None = None,
    section: str | None = None,
    rules: Mapping[str, int] | None = None,
    workers: int | None = None,
) -> list[dict[str, Any]]:
    """The subjects to encode: those of a datalist, or all of a UKBB-format tree that pass the quality control.

    Subjects that do not pass are listed with their reason in ``output_dir/excluded.csv`` and do not stop the others.

    Args:
        dataset_dir: UKBB-format tree.
        output_dir: folder of ``excluded.csv``.
        datalist: a file written by ``run prepare``, instead of a new examination.
        section: section of the datalist; None for all.
        rules: thresholds of the quality control, see ``QualityRules``.
        workers: processes of the examination; None takes one per core.

    Raises:
        FileNotFoundError, ValueError: when no subject is left, or a section is named without a datalist.
    """
    if datalist:
        return load_items(datalist, dataset_dir, section)
    if section:
        raise ValueError(f"section '{section}' is one of a datalist: name that with --datalist too.")
    rows = list(examine_all(find_subjects(dataset_dir), QualityRules(**(rules or {})), workers or os.cpu_count()))
    excluded = [row for row in rows if row["status"] == "excluded"]
    path = output_folder(output_dir) / "excluded.csv"
    write_csv(path, [{key: row[key] for key in ("subject", "reason")} for row in excluded], ("subject", "reason"))
    for row in excluded:
        print(f"  excluded {row['subject']}: {row['reason']}")
    if len(excluded) == len(rows):
        raise ValueError(f"none of the {len(rows)} subjects in dataset_dir '{dataset_dir}' can be used; see {path}.")
    return [locate(row, dataset_dir) for row in rows if row["status"] == "included"]
