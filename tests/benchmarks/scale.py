"""Cohorts of growing size: what prepare, the cache, the start of a training and its epochs take, and what they fill.

``python -m tests.benchmarks.scale <work folder> [--subjects 200 1000 5000] [--epochs 3] [--output scale.json]`` draws
phantoms (from 5,000 on of few voxels), then runs the command line: prepare; a training that has to fill the cache,
until its first iteration; another one that finds the cache filled, for some epochs of ``compact.json`` without
generated images, which are the shortest. Loading is timed alone, by passes over the loaders of an epoch. Phantoms and
sizes that an earlier run in the same work folder has finished are taken from it, and stay in the result.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monai.bundle import ConfigParser

from scripts.cohort.phantom import write_cohort
from scripts.evaluation.study import command
from scripts.storage import write_json
from tests.benchmarks.inference import proportional_memory
from tests.benchmarks.report import RESULTS, OtherLoad, write_result

CONFIGS = Path(__file__).resolve().parents[2] / "bundle" / "configs"
TRAINING = [CONFIGS / f"{name}.json" for name in ("train", "compact")]
SMALL = {"size": (112, 112), "spacing": (2.0, 2.0, 10.0)}
STARTED = "Training for"  # what a training prints in front of its first iteration
NOTE = (
    "Phantoms, `compact.json`; from {small_from:,} subjects on, scans of 112 x 112 instead of 208 x 187 pixels. 70 % "
    "of the subjects train, 15 % validate. Starts are from the command line to the first iteration, imports included. "
    "Loading is that of training and validation subjects from the warm cache, alone; an epoch has both, without "
    "generated images. Memory is the largest of all processes together, shared pages counted once. Other load is what "
    "others took of the cores."
)


class Watched(NamedTuple):
    """What was seen of a command: seconds until it ended, its largest memory in bytes, and seconds of its marks."""

    seconds: float
    memory: int
    marks: list[float]


def watch(line: Sequence[str], log: Path, mark: Callable[[], Any], enough: int) -> Watched:
    """Run a command and look at it until it has ended, or has set enough marks; it is then ended.

    Args:
        line: of the command.
        log: file for its output.
        mark: gives another value than before each time that a mark has been set, and None before the first.
        enough: number of marks.

    Raises:
        RuntimeError: when it fails, with the end of its output.
    """
    start, memory, marks, last = time.perf_counter(), 0, [], mark()
    looked = start
    with open(log, "w") as file:
        process = subprocess.Popen(line, stdout=file, stderr=subprocess.STDOUT)
        while process.poll() is None and len(marks) < enough:
            now = time.perf_counter()
            if mark() != last:
                last = mark()
                marks.append(now - start)
            if now - looked > 0.5:
                looked, memory = now, max(memory, proportional_memory(process.pid))
            time.sleep(0.02)
    seconds = time.perf_counter() - start
    process.terminate()
    if process.wait() and len(marks) < enough:
        raise RuntimeError(f"{' '.join(line)}:\n{log.read_text()[-3000:]}")
    return Watched(seconds, memory, marks)


def draw(folder: Path, subjects: int, small: bool) -> float | None:
    """Draw phantoms; seconds, or None where they are there already."""
    if (folder / "info.csv").is_file():
        return None
    start = time.perf_counter()
    write_cohort(folder, subjects, cine_fraction=0, failing=0, **(SMALL if small else {}))
    return time.perf_counter() - start


def train(paths: dict[str, str], output: Path, mark: Callable[[Path, Path], Any], enough: int) -> Watched:
    """Begin a training of its own folder; ``mark`` is told its log and its folder."""
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    log = output / "run.log"
    log.touch()
    line = command("training", TRAINING, paths | {"output_dir": str(output)})
    return watch(line, log, lambda: mark(log, output), enough)


def started(log: Path, output: Path) -> bool | None:
    """Whether the first iteration is about to run."""
    return STARTED in log.read_text() or None


def progress(log: Path, output: Path) -> Any:
    """Changes at the first iteration and with each epoch's checkpoint."""
    last = output / "last.pt"
    return last.stat().st_mtime_ns if last.is_file() else started(log, output)


def loading(paths: dict[str, str], output: Path, passes: int = 3) -> float:
    """Seconds to load an epoch's training and validation subjects: the least of some passes."""
    parser = ConfigParser(ConfigParser.load_config_files([str(path) for path in TRAINING]))
    parser.update(paths | {"output_dir": str(output), "bundle_root": str(CONFIGS.parent)})
    loaders = [parser.get_parsed_content(f"{part}#dataloader") for part in ("train", "validate")]
    seconds = []
    for _ in range(passes):
        start = time.perf_counter()
        for loader in loaders:
            for _ in loader:
                pass
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def disk(folder: Path) -> tuple[int, int]:
    """Bytes and number of the files below a folder."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return sum(sizes), len(sizes)


def measure(work: Path, subjects: int, epochs: int, small: bool) -> dict[str, Any]:
    """All figures of one size, as a row of the table."""
    load = OtherLoad()
    scans, cohort, cache = work / "scans", work / "cohort", work / "cohort" / "cache"
    drawing = draw(scans, subjects, small)
    shutil.rmtree(cohort, ignore_errors=True)
    cohort.mkdir(parents=True)
    line = command("prepare", [CONFIGS / "cohort.json"], {"dataset_dir": str(scans), "output_dir": str(cohort)})
    prepared = watch(line, work / "prepare.log", lambda: None, 1)
    paths = {"dataset_dir": str(scans), "datalist": str(cohort / "datalist.json")}
    first = train(paths, work / "first", started, 1)
    cached = train(paths, work / "cached", progress, 1 + epochs)
    alone = loading(paths, work / "cached")
    marks = cached.marks[1 if epochs > 1 else 0 :]  # the first epoch has the warming up of all
    epoch = (marks[-1] - marks[0]) / (len(marks) - 1)
    scan_bytes, _ = disk(scans)
    cache_bytes, entries = disk(cache)
    return {
        "subjects": subjects,
        "phantom (subjects/s)": subjects / drawing if drawing else None,
        "prepare (subjects/s)": subjects / prepared.seconds,
        "prepare, memory (GB)": prepared.memory / 1e9,
        "first start (s)": first.marks[0],
        "first start, memory (GB)": first.memory / 1e9,
        "cached start (s)": cached.marks[0],
        "training, memory (GB)": cached.memory / 1e9,
        "epoch (s)": epoch,
        "loading (s)": alone,
        "loading (% of an epoch)": 100 * alone / epoch,
        "scans (MB)": scan_bytes / 1e6,
        "cache (MB)": cache_bytes / 1e6,
        "cache (files)": entries,
        "other load (%)": 100 * load.share(),
    }


def main() -> None:
    """Measure the sizes asked for, and write those that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--subjects", type=int, nargs="+", default=[200, 1000, 5000])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--small-from", type=int, default=5000, help="subjects from which on scans are small")
    parser.add_argument("--again", action="store_true", help="measure sizes again that were finished")
    parser.add_argument("--output", type=Path, default=RESULTS / "scale.json")
    arguments = parser.parse_args()
    for subjects in arguments.subjects:
        folder = arguments.work / str(subjects)
        folder.mkdir(parents=True, exist_ok=True)
        if arguments.again or not (folder / "figures.json").is_file():
            write_json(
                folder / "figures.json", measure(folder, subjects, arguments.epochs, subjects >= arguments.small_from)
            )
    found = [json.loads(path.read_text()) for path in arguments.work.glob("*/figures.json")]
    rows = sorted(found, key=lambda row: row["subjects"])
    write_result(
        arguments.output, "Data at scale", NOTE.format(small_from=arguments.small_from), rows, epochs=arguments.epochs
    )


if __name__ == "__main__":
    main()
