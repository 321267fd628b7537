"""What training and evaluation run over: datasets that are cached, or streamed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from monai.data import CacheDataset, Dataset, PersistentDataset, pickle_hashing


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
