"""Encoding on a cluster: each worker runs the ordinary inference on a chunk of the subjects, all but its tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial, reduce
from typing import Any

from monai.bundle import ConfigParser

from scripts.cohort.privacy import without_name
from scripts.inference.items import Subjects
from scripts.inference.loading import Failure
from scripts.inference.writers import SubjectWriter
from scripts.overrides import launch
from scripts.parallel import Failed, Workers, parallel_map

CHUNKS = 64  # so many, so that many workers have something to do,
SIZES = (8, 64)  # but for few subjects fewer, since each builds the network, and for many more, since each may be lost

Items = Sequence[Mapping[str, Any]]


def spread(writer: SubjectWriter, workers: Workers) -> None:
    """Encode the writer's subjects on a cluster; results go to the same folder, which all workers must reach.

    A chunk that fails twice is done again subject by subject, so that one bad subject takes no other with it.

    Args:
        writer: knows the subjects, and gets their failures.
        workers: of the cluster.

    Raises:
        RuntimeError: when every one of several chunks fails, which no single subject can be the reason of.
    """
    launched = launch()
    if launched is None:
        raise RuntimeError("encoding on a cluster needs a start by 'python -m monai.bundle run'.")
    files, overrides = launched
    task = partial(encode, files=files, overrides=overrides)
    chunks = chunked(list(writer.items.values()))
    broken = encode_all(task, chunks, writer, workers)
    if len(broken) == len(chunks) > 1:
        (chunk, failed), *_ = broken
        reason = reduce(lambda text, item: without_name(text, item["subject"]), chunk, failed.reason)
        raise RuntimeError(f"the encoding fails on every worker: {reason}")
    singles = [[item] for chunk, _ in broken for item in writer.records.remaining(chunk)]
    for (item,), failed in encode_all(task, singles, writer, workers):
        writer.failures.append(Failure(item["subject"], failed.reason))


def chunked(items: Items) -> list[Items]:
    """Chunks of subjects, in their order."""
    size = min(max(math.ceil(len(items) / CHUNKS), SIZES[0]), SIZES[1])
    return [items[start : start + size] for start in range(0, len(items), size)]


def encode_all(
    task: partial, chunks: Sequence[Items], writer: SubjectWriter, workers: Workers
) -> list[tuple[Items, Failed]]:
    """Encode chunks, and tell the writer what became of their subjects; returns the chunks that failed themselves."""
    broken = []
    for chunk, outcome in zip(chunks, parallel_map(task, chunks, workers, "encode", "chunk"), strict=True):
        if isinstance(outcome, Failed):
            broken.append((chunk, outcome))
            writer.written += len(chunk) - len(writer.records.remaining(chunk))
        else:
            writer.failures += outcome
            writer.written += len(chunk) - len(outcome)
    return broken


def encode(items: Items, files: Sequence[str], overrides: Mapping[str, Any]) -> list[Failure]:
    """Run the inference of a config on some subjects in this process, as far as their own files go.

    Args:
        items: as ``find_items`` gives them; what has a result meanwhile is not encoded again.
        files, overrides: of the config.

    Returns:
        The subjects without a result.
    """
    # As a global and not as a part of the config, which would take a subject's name that begins with $ for code.
    parser = ConfigParser(globals={"chunk": Subjects(list(items), [])})
    parser.read_config(files)
    parser.update(dict(overrides))
    parser["subjects"] = "$chunk"
    parser["num_workers"] = 0  # a worker of Dask must not have processes of its own
    writer, evaluator = (parser.get_parsed_content(key) for key in ("writer", "evaluator"))
    parser.get_parsed_content("load_weights")
    if writer.items:
        evaluator.run()
    return writer.failures
