"""Datasets whose deterministic transforms run once per subject, not once per epoch."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from monai.data import CacheDataset, Dataset, PersistentDataset, pickle_hashing


def cached_dataset(data: Sequence[dict[str, Any]], transform: Callable, cache_dir: str | os.PathLike | None) -> Dataset:
    """Cache preprocessed subjects in memory, or on disk where a folder is named.

    Args:
        data: items of a datalist.
        transform: preprocessing, deterministic transforms first; these are cached.
        cache_dir: folder for the cache of a cohort that memory cannot hold; None caches in memory. A change of the
            transforms makes a new cache.
    """
    if cache_dir:
        return PersistentDataset(data, transform, cache_dir, hash_transform=pickle_hashing)
    return CacheDataset(data, transform, num_workers=os.cpu_count())
