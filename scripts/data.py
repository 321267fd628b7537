"""What training and evaluation run over: datasets that are cached, or streamed."""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import math
import os
import pickle
import random
import sys
import uuid
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import ignite.distributed as idist
import joblib
import monai
import numpy as np
import torch
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor, PersistentDataset, get_track_meta, set_track_meta
from monai.transforms import RandomizableTrait, Transform
from torch.utils.data import get_worker_info
from tqdm import tqdm

from scripts.cohort.datalist import FILE_KEYS
from scripts.cohort.layout import SubjectError
from scripts.storage import explained, file_state, output_folder

FORMAT = 1  # of an entry; raise it when entries are written or found in another way
ALIGNMENT = 16  # bytes; no type of tensors needs more
UNSEEDED = -1  # in the place of an epoch's seed
STALLED = 1800  # seconds; no batch takes as long, even from a slow disk
FEW = 16  # subjects that this process preprocesses before others would have started


def cached_dataset(
    data: Sequence[dict[str, Any]], transform: Callable, cache_dir: str | os.PathLike | None, at_once: bool = True
) -> Dataset:
    """Cache preprocessed subjects on disk, or in memory where no folder is named.

    Args:
        data: items of a datalist.
        transform: preprocessing, deterministic transforms first; these are cached.
        cache_dir: folder for the cache, of which memory holds nothing; a false value (None) caches in memory.
        at_once: fill the cache now, and not only when subjects are asked for: a training that may turn out to have
            been done already needs none.

    Raises:
        SubjectError: for a subject that cannot be preprocessed. Its name would stay in the log: ``run prepare`` tells.
        PermissionError, NotADirectoryError: when ``cache_dir`` cannot be written to.
    """
    if not cache_dir:
        when = False if at_once else "threads"
        return MemoryCacheDataset(data, transform, num_workers=os.cpu_count(), runtime_cache=when)
    dataset = DiskCacheDataset(data, transform, cache_dir)
    if at_once:
        dataset.fill()
    return dataset


def streamed_dataset(
    data: Sequence[dict[str, Any]], transform: Callable, cache_dir: str | os.PathLike | None
) -> Dataset:
    """Preprocess subjects as they are asked for: memory does not grow with their number.

    Args:
        data, transform: as of ``cached_dataset``.
        cache_dir: folder of a cache that is read where it has a subject, and else written to; None has none.
    """
    return cached_dataset(data, transform, cache_dir, at_once=False) if cache_dir else Dataset(data, transform)


def cache_folder(datalist: str | os.PathLike, output_dir: str | os.PathLike) -> str:
    """Where the cache lies unless ``cache_dir`` names a folder.

    It lies beside the datalist, where all trainings on a cohort find what the first of them has preprocessed; in
    ``output_dir`` where the datalist's folder is read-only.
    """
    cohort = Path(datalist).resolve().parent
    return str((cohort if os.access(cohort, os.W_OK) else Path(output_dir)) / "cache")


class SeededBySubject:
    """A dataset whose random transforms are seeded anew for each subject, from an epoch's seed.

    What a subject gets then depends neither on those before it nor on the process that loads it: any number of workers
    gives the same.
    """

    transform: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # In memory that is shared with the workers of a loader: those that persist learn of a new epoch by it.
        self.epoch_seed = torch.full((), UNSEEDED, dtype=torch.int64).share_memory_()
        super().__init__(*args, **kwargs)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> SeededBySubject:
        """Take an epoch's seed. ``set_rnd`` calls it, and then visits no subject.

        In the worker of a loader, it passes over a seed of that worker, if there is one of the epoch.
        """
        if get_worker_info() is None:
            self.epoch_seed.fill_(UNSEEDED if seed is None else seed)
        if get_worker_info() is None or int(self.epoch_seed) == UNSEEDED:
            self.transform.set_random_state(seed, state)
        return self

    def seed(self, index: int) -> None:
        """Seed the random transforms for a subject, where there is an epoch's seed."""
        if (seed := int(self.epoch_seed)) != UNSEEDED:
            self.transform.set_random_state(int(np.random.SeedSequence([seed, index % len(self)]).generate_state(1)[0]))


class MemoryCacheDataset(SeededBySubject, CacheDataset):
    """MONAI's, seeded by subject."""

    def _transform(self, index: int) -> Any:
        self.seed(index)
        return super()._transform(index)


class DiskCacheDataset(SeededBySubject, PersistentDataset):
    """Preprocessed subjects in a file each, which are read when they are asked for.

    A file is named by a hash of all that it is made from: the datalist's row, size and time of scans and masks, the
    deterministic transforms with their settings and code. What has changed is thus never found, and processes that
    fill one cache together write the same bytes under the same name. Files appear whole or not at all, and carry a
    checksum: a broken one is made again.

    It departs from its base in that the hashes are taken once, and not each time; in the format, which is read five
    times as fast as that of ``torch.save``; and in augmenting plain tensors, which takes half of the time that it takes
    to augment a ``MetaTensor``, and gives the same voxels.

    Args:
        data: items of a datalist.
        transform: deterministic transforms first, which end in a dictionary of tensors (or one tensor); further values
            need to be of JSON's types.
        cache_dir: folder of the cache; any number of datasets may share it.

    Raises:
        PermissionError, NotADirectoryError: when ``cache_dir`` cannot be written to.
    """

    def __init__(
        self, data: Sequence[dict[str, Any]], transform: Sequence[Callable] | Callable, cache_dir: str | os.PathLike
    ) -> None:
        super().__init__(data, transform, output_folder(cache_dir, "cache_dir"))
        self.deterministic = self.transform.get_index_of_first(is_random)
        self.folder = self.cache_dir / settings_hash(self.transform.transforms[: self.deterministic])
        self.set_data(data)

    def set_data(self, data: Sequence[dict[str, Any]]) -> None:
        """Run over other subjects; what the folder has of those before stays."""
        self.data = data
        # An array and not a list: workers of a loader would copy every page of a list by counting references.
        self.names = np.array([item_hash(item) for item in data], dtype="S32")

    def fill(self) -> None:
        """Preprocess the subjects that the folder lacks, in as many processes as there are cores.

        Raises:
            SubjectError: for the first that cannot be preprocessed.
        """
        missing = np.flatnonzero(~np.isin(self.names, self.stored())).tolist()
        if not missing:
            return
        # Others may fill the folder too: each begins elsewhere and skips what it finds.
        first = random.SystemRandom().randrange(len(missing))
        todo = _Todo(self, missing[first:] + missing[:first])
        workers = max(1, joblib.cpu_count() // idist.get_nproc_per_node()) if len(missing) > FEW else 0
        # With a generator of its own: whether there was something to fill must not change what the training draws.
        patience = STALLED if workers else 0
        loader = torch.utils.data.DataLoader(
            todo, batch_size=None, num_workers=workers, timeout=patience, generator=torch.Generator()
        )
        bar = tqdm(loader, desc="cache", unit="subject", total=len(todo), disable=idist.get_rank() > 0)
        for problem in bar:
            if problem:
                bar.close()
                raise SubjectError(problem)

    def stored(self) -> np.ndarray:
        """Names of all entries that the folder has for these transforms."""
        folders = [entry.path for entry in os.scandir(self.folder) if entry.is_dir()] if self.folder.is_dir() else []
        names = (name for folder in folders for name in os.listdir(folder))
        return np.array([name for name in names if len(name) == 32 and name.isascii()], dtype="S32")

    def path(self, index: int) -> Path:
        """Where a subject's entry lies; a folder of 100,000 files would be slow on many file systems."""
        name = self.names[index].decode()
        return self.folder / name[:2] / name

    def store(self, index: int) -> Any:
        """Preprocess a subject and write it.

        Raises:
            SubjectError: when that is impossible.
        """
        try:
            item = plain(self._pre_transform(dict(self.data[index])))
        except RuntimeError as error:  # MONAI's, which names the transform and not the subject
            problem = cause(error, SubjectError)
            if problem is None:
                raise
            raise SubjectError(str(problem)) from error
        write_entry(self.path(index), item)
        return item

    def _transform(self, index: int) -> Any:
        item = read_entry(self.path(index))
        if item is None:
            item = self.store(index)
        if self.deterministic is None:
            return item
        self.seed(index)
        with untracked():
            return self.transform(item, start=self.deterministic)


class ReproducibleLoader(DataLoader):
    """A loader whose workers may persist and still let an epoch draw what it would draw in a resumed training.

    Starting workers draws one number from the generator of the main process; where they persist, this draws it too.
    Where a worker gives nothing for ``STALLED`` seconds, the loader raises RuntimeError: one that can open no more
    files, or whose disk does not answer, would be waited for for ever.

    Without workers it is MONAI's. A thread that loads ahead would not help on a CPU: it makes OpenMP's threads of the
    training step wait asleep instead of awake, which made a compact epoch on two cores slower.
    """

    def __init__(self, dataset: Dataset, num_workers: int = 0, **kwargs: Any) -> None:
        kwargs.setdefault("timeout", STALLED if num_workers else 0)
        super().__init__(dataset, num_workers, **kwargs)

    def __iter__(self) -> Iterator[Any]:
        if self.persistent_workers and self._iterator is not None:
            torch.empty((), dtype=torch.int64).random_(generator=self.generator)
        return super().__iter__()


def is_random(transform: Callable) -> bool:
    """Whether MONAI's caches end in front of a transform; they take a function of unknown kind for a random one."""
    return isinstance(transform, RandomizableTrait) or not isinstance(transform, Transform)


class _Todo(torch.utils.data.Dataset):
    """Getting a member stores a subject, and gives what is wrong with it; empty if nothing."""

    def __init__(self, dataset: DiskCacheDataset, indices: Sequence[int]) -> None:
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> str:
        index = self.indices[number]
        try:
            if not self.dataset.path(index).exists():
                self.dataset.store(index)
        except SubjectError as problem:  # as text: an exception of a worker would bury it in a traceback
            return str(problem)
        return ""


@contextmanager
def untracked() -> Iterator[None]:
    """Let transforms work on plain tensors."""
    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)


def cause(error: BaseException | None, kind: type[Exception]) -> Exception | None:
    """The error of a kind that has led to another one."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__
    return error


def item_hash(item: Mapping[str, Any]) -> str:
    """32 hexadecimal digits of all that a subject's entry depends on: its row and its files."""
    files = [file_state(item[key]) for key in FILE_KEYS if key in item]
    return hashlib.sha256(json.dumps([item, files], sort_keys=True).encode()).hexdigest()[:32]


def settings_hash(transforms: Sequence[Callable]) -> str:
    """16 hexadecimal digits of transforms: their settings, and the code that they run, ours and MONAI's."""
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, protocol=5)
    pickler.fast = True  # without it, the bytes tell whether two equal texts are one object
    pickler.dump(list(transforms))
    digest = hashlib.sha256(f"{FORMAT} {monai.__version__}".encode() + stream.getvalue())
    for module in sorted(own_modules(transforms), key=lambda module: module.__name__):
        digest.update(Path(module.__file__).read_bytes())
    return digest.hexdigest()[:16]


def own_modules(transforms: Sequence[Callable]) -> set[ModuleType]:
    """The modules of transforms that are not MONAI's, and those of the same package that these take names from."""
    found: set[ModuleType] = set()
    waiting = [inspect.getmodule(type(each)) for each in transforms]
    while waiting:
        module = waiting.pop()
        if module in found or not getattr(module, "__file__", None) or module.__name__.startswith("monai."):
            continue
        found.add(module)
        package = module.__name__.partition(".")[0] + "."
        names = {str(getattr(value, "__module__", "")) for value in vars(module).values()}
        waiting += [sys.modules[name] for name in names if name.startswith(package) and name in sys.modules]
    return found


def plain(item: Any) -> Any:
    """An item with plain, contiguous tensors instead of arrays and tensors with metadata."""
    if isinstance(item, Mapping):
        return {key: plain(value) for key, value in item.items()}
    if isinstance(item, MetaTensor):
        item = item.as_tensor()
    return torch.as_tensor(item).contiguous() if isinstance(item, (torch.Tensor, np.ndarray)) else item


def write_entry(path: Path, item: Any) -> None:
    """Write an item of ``plain``.

    Not by ``atomic_path``, which waits for the disk: the checksum tells what a loss of power has cost. The temporary
    name is that of no process of any machine that shares the folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".part-{uuid.uuid4().hex}")
    try:
        with explained(path):
            part.write_bytes(encode(item))
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_entry(path: Path) -> Any:
    """Read an entry; None where there is none that can be read, with a warning for a broken one."""
    try:
        return decode(np.fromfile(path, np.uint8))
    except FileNotFoundError:
        return None
    except ValueError as error:
        warnings.warn(f"the cache's entry {path} is broken ({error}); it is made again.", stacklevel=2)
        return None


def encode(item: Any) -> bytes:
    """An item as bytes: a checksum of what follows, the header's length, the header (JSON), the tensors' values."""
    fields = item if isinstance(item, Mapping) else {"": item}
    tensors = {key: value for key, value in fields.items() if isinstance(value, torch.Tensor)}
    types = [[key, str(value.dtype).removeprefix("torch."), list(value.shape)] for key, value in tensors.items()]
    others = {key: value for key, value in fields.items() if key not in tensors}
    header = json.dumps({"alone": not isinstance(item, Mapping), "tensors": types, "others": others}).encode()
    header += b" " * (-(8 + len(header)) % ALIGNMENT)  # eight bytes stand in front of it
    body = [len(header).to_bytes(4, "little"), header]
    for value in tensors.values():
        voxels = value.reshape(-1).view(torch.uint8).numpy().tobytes()
        body += [voxels, b" " * (-len(voxels) % ALIGNMENT)]
    content = b"".join(body)
    return zlib.crc32(content).to_bytes(4, "little") + content


def decode(data: np.ndarray) -> Any:
    """The item that ``encode`` has written; its tensors share the memory of ``data``.

    Raises:
        ValueError: when the checksum is not that of the content, or the content not that of an entry.
    """
    if len(data) < 8 or zlib.crc32(data[4:]) != int.from_bytes(data[:4].tobytes(), "little"):
        raise ValueError("its checksum does not fit")
    try:
        return decode_content(data)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:  # RecursionError is one
        raise ValueError(f"its content is none ({error})") from error


def decode_content(data: np.ndarray) -> Any:
    """The item of an entry whose checksum fits. No code is in it, but names of types; other names have no size."""
    start = 8 + int.from_bytes(data[4:8].tobytes(), "little")
    header = json.loads(data[8:start].tobytes())
    values, item = torch.from_numpy(data), header["others"]
    for key, name, shape in header["tensors"]:
        kind = getattr(torch, name)
        size = math.prod(shape) * kind.itemsize
        item[key] = values[start : start + size].view(kind).view(shape)
        start += -(-size // ALIGNMENT) * ALIGNMENT
    return item[""] if header["alone"] else item
