"""Masks for subjects that come without them, predicted by a segmentation network and kept apart from the scans."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from scripts.checkpoint import fingerprint
from scripts.cohort.layout import (
    SubjectError,
    find_scans,
    given_mask,
    mask_origin,
    predicted_mask,
    read_origin,
    read_scan,
    write_like,
)
from scripts.data import STALLED
from scripts.parallel import Failed, Workers, attempt, parallel_map
from scripts.segmentation.segmenter import Segmenter, load_segmenter
from scripts.storage import StorageError, explained, output_folder

READERS = 4  # more cines at a time than these only fill the memory: the network is slower


class Scan(NamedTuple):
    """A scan to segment, one phase or a cine, and where its mask goes."""

    image: Path
    mask: Path

    @property
    def subject(self) -> str:
        """Whose scan it is."""
        return self.image.parent.name


def segment_missing(
    folders: Sequence[Path],
    masks_dir: str | os.PathLike,
    weights: str | os.PathLike,
    device: str | torch.device = "cpu",
    workers: Workers | int | None = None,
) -> dict[str, str]:
    """Segment the scans of all subjects that have no mask, but for those that the same network has segmented before.

    Args:
        folders: subjects' folders in the UKBB format.
        masks_dir: folder that gets ``<subject>/seg_sa_ED.nii.gz`` and so on, in the scan's own grid.
        weights: a checkpoint for ``load_segmenter``.
        device: of the network.
        workers: of this machine, processes that read scans ahead of one network, and None takes one per core; of a
            cluster, each has a network of its own.

    Returns:
        subject to the reason why it could not be segmented.

    Raises:
        FileNotFoundError, ValueError: for weights that cannot be used.
        PermissionError, NotADirectoryError, StorageError: where no masks can be written at all.
    """
    if not Path(weights).is_file():
        raise FileNotFoundError(f"segmentation '{weights}' is no file; name one with --segmentation, or null for none.")
    scans = [scan for folder in folders for scan in scans_without_mask(folder, masks_dir)]
    network = fingerprint(weights)
    waiting = [scan for scan in scans if read_origin(scan.mask) != mask_origin(scan.image, network)]
    if not waiting:
        return {}
    output_folder(masks_dir)  # what is wrong with it is no subject's own
    workers = Workers.of(workers)
    if workers.remote:
        task = partial(segment_there, weights=str(weights), network=network)
        outcomes = parallel_map(task, waiting, workers, "segment", "scan")
    else:
        outcomes = segment_here(waiting, load_segmenter(weights, device), network, workers.processes)
    reasons: dict[str, str] = {}
    for scan, reason in zip(waiting, outcomes, strict=True):
        if reason:
            reasons.setdefault(scan.subject, reason.reason if isinstance(reason, Failed) else reason)
    return reasons


def segment_here(scans: Sequence[Scan], segmenter: Segmenter, network: str, readers: int) -> Iterator[str | Failed]:
    """Segment scans with one network, which other processes read scans for; yields reasons, or "" where all is well.

    A scan with which the network fails has a ``Failed``, as it has on a cluster, and the others go on.
    """
    ahead = min(readers, len(scans), READERS)
    loader = DataLoader(_Scans(scans), batch_size=None, num_workers=ahead, prefetch_factor=1, timeout=STALLED)
    for scan, content in zip(scans, tqdm(loader, "segment", unit="scan"), strict=True):
        yield attempt(partial(write_mask, content=content, segmenter=segmenter, network=network), scan)


def segment_there(scan: Scan, weights: str, network: str) -> str:
    """Segment a scan on a worker of a cluster; returns the reason where that cannot be done."""
    return write_mask(scan, _Scans([scan])[0], _segmenter(weights, network), network)


@cache
def _segmenter(weights: str, network: str) -> Segmenter:
    """The network of this worker, on its GPU if it has one; ``network`` is the hash of the file, which may change."""
    return load_segmenter(weights, "cuda" if torch.cuda.is_available() else "cpu")


def write_mask(scan: Scan, content: tuple[np.ndarray, list[float]] | str, segmenter: Segmenter, network: str) -> str:
    """Segment what was read of a scan; returns the reason where that cannot be done, and "" where all is well."""
    if isinstance(content, str):
        return content
    try:
        labels = segmenter(*content)
    except SubjectError as error:
        return f"{scan.image.name}: {error}"
    return write_labels(scan, labels, network)


def write_labels(scan: Scan, labels: np.ndarray, network: str) -> str:
    """Write the mask of a scan; returns the reason where only this one cannot be written, and "" where all is well.

    Raises:
        StorageError: where no other could be written either.
    """
    try:
        with explained(scan.mask):
            scan.mask.parent.mkdir(parents=True, exist_ok=True)
        write_like(scan.mask, labels, scan.image, mask_origin(scan.image, network))
    except SubjectError as error:
        return str(error)
    except StorageError:
        raise
    except OSError as error:  # its own words name the subject, and a temporary file that nobody has to look for
        told = error.strerror or type(error).__name__
        return f"its predicted mask {scan.mask.name} cannot be written ({told}): remove what is in its place"
    return ""


def scans_without_mask(folder: Path, masks_dir: str | os.PathLike) -> list[Scan]:
    """What has to be segmented of a subject; nothing where none is found, of which its examination tells why."""
    try:
        return [Scan(image, predicted_mask(masks_dir, image)) for image in find_scans(folder) if not given_mask(image)]
    except (SubjectError, OSError):  # such as a folder that may not be looked into
        return []


class _Scans(Dataset):
    """Scans to read ahead: voxels (X, Y, Z) or (X, Y, Z, T), tensors once loaded, and voxel size in mm; or a reason."""

    def __init__(self, scans: Sequence[Scan]) -> None:
        self.scans = scans

    def __len__(self) -> int:
        return len(self.scans)

    def __getitem__(self, index: int) -> tuple[np.ndarray, list[float]] | str:
        try:
            voxels, affine = read_scan(self.scans[index].image)
        except (SubjectError, OSError) as error:
            return str(error)
        return voxels, np.linalg.norm(affine[:3, :3], axis=0).tolist()
