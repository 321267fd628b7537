"""Loading of subjects in workers, so that one that cannot be loaded leaves its batch and stops no other."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from monai.data import Dataset, list_data_collate

from scripts.cohort.layout import SubjectError

FAILURES = "failures"


class Failure(NamedTuple):
    """A subject without a result, and why."""

    subject: str
    reason: str


class ScanDataset(Dataset):
    """A dataset in which a subject that cannot be loaded is a ``Failure``.

    Args:
        data: items with the key ``subject``.
        transform: as of ``monai.data.Dataset``.

    Raises:
        Exception: whatever a transform raises that is not about a subject's files, since that is an error in the
            program.
    """

    def _transform(self, index: int) -> Any:
        try:
            with warnings.catch_warnings():
                # The examination has told so already, once per subject.
                warnings.filterwarnings("ignore", message=".*disagrees with the header's")
                return super()._transform(index)
        except Exception as error:
            return Failure(self.data[index]["subject"], reason(error))


def reason(error: BaseException) -> str:
    """The problem of a subject within what MONAI and the transforms make of it, in words.

    Raises:
        BaseException: ``error`` again, when it is not about a subject or its files.
    """
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    expected = [link for link in chain if isinstance(link, SubjectError)][-1:]  # the innermost says just what is wrong
    expected += [link for link in chain if isinstance(link, OSError)]
    if not expected:
        raise error
    return str(expected[0])


def collate_scans(batch: Sequence[Any]) -> dict[str, Any]:
    """Collate what could be loaded, and put the rest under ``failures``; the batch may hold nothing else."""
    failures = [item for item in batch if isinstance(item, Failure)]
    loaded = [item for item in batch if not isinstance(item, Failure)]
    collated = list_data_collate(loaded) if loaded else {}
    return collated | ({FAILURES: failures} if failures else {})
