"""Inference on a cohort with broken subjects: results, reasons, exit codes, subjects per second, and memory.

``python -m tests.benchmarks.inference <work folder> [subjects]`` draws phantoms, breaks five in five ways, encodes all
with a compact model of random weights by the command line, and once more, which must redo nothing. It stops with an
AssertionError where something is not as it should be, and prints and writes ``inference_benchmark.json``.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import time
from pathlib import Path

import torch
from monai.bundle import ConfigParser

from scripts.cohort.phantom import write_cohort
from scripts.evaluation.study import command
from scripts.storage import read_csv, write_json
from tests.inference.damage import break_five

CONFIGS = [
    Path(__file__).resolve().parents[2] / "bundle" / "configs" / f"{name}.json" for name in ("inference", "compact")
]
INCOMPLETE = 3


def make_model(path: Path) -> None:
    """Save random weights of the compact network."""
    parser = ConfigParser(ConfigParser.load_config_files([str(config) for config in CONFIGS]))
    torch.manual_seed(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(parser.get_parsed_content("network_def").state_dict(), path)


def proportional_memory(process: int) -> int:
    """Bytes that a process and its children occupy; what they share is counted once."""
    total = 0
    for number in [process, *children(process)]:
        try:
            text = Path(f"/proc/{number}/smaps_rollup").read_text()
        except OSError:  # it has ended
            continue
        total += 1024 * int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)[1])
    return total


def children(process: int) -> list[int]:
    """Processes that descend from one."""
    try:
        direct = [int(n) for path in Path(f"/proc/{process}/task").glob("*/children") for n in path.read_text().split()]
    except OSError:
        return []
    return [descendant for child in direct for descendant in (child, *children(child))]


def infer(dataset: Path, model: Path, output: Path) -> dict[str, object]:
    """Run the command line; exit code, text, seconds, and samples of memory (bytes, twice a second)."""
    paths = {"dataset_dir": str(dataset), "ckpt_path": str(model), "output_dir": str(output)}
    start, memory = time.perf_counter(), []
    with open(output.with_suffix(".log"), "w+") as log:
        process = subprocess.Popen(command("run", CONFIGS, paths), stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            memory.append(proportional_memory(process.pid))
            time.sleep(0.5)
        log.seek(0)
        text = log.read()
    return {"code": process.returncode, "text": text, "seconds": time.perf_counter() - start, "memory": memory}


def modification_times(output: Path) -> dict[str, int]:
    """When each subject's files were written."""
    return {str(path): path.stat().st_mtime_ns for path in output.glob("*/*")}


def check(run: dict[str, object], output: Path, subjects: int, reasons: dict[str, str]) -> None:
    """All but the broken subjects have a result, and these have their reason."""
    assert run["code"] == INCOMPLETE, run["text"][-3000:]
    for table in ("codes", "attributes"):
        assert len(read_csv(output / f"{table}.csv")) == subjects - len(reasons)
    excluded = {row["subject"]: row["reason"] for row in read_csv(output / "excluded.csv")}
    assert excluded.keys() == reasons.keys(), excluded
    assert all(reason in excluded[name] for name, reason in reasons.items()), excluded


def quarters(memory: list[int]) -> list[float]:
    """The largest memory in GB of each quarter of a run, which tells whether it grows."""
    step = -(-len(memory) // 4)
    return [round(max(memory[start : start + step]) / 1e9, 2) for start in range(0, len(memory), step)]


def main() -> None:
    """Draw, break, encode twice, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("subjects", type=int, nargs="?", default=500)
    arguments = parser.parse_args()
    dataset, model, output = (arguments.work / name for name in ("scans", "model/model.pt", "results"))
    write_cohort(dataset, arguments.subjects, cine_fraction=0, failing=0)
    reasons = break_five(dataset)
    make_model(model)
    first = infer(dataset, model, output)
    check(first, output, arguments.subjects, reasons)
    before = modification_times(output)
    second = infer(dataset, model, output)
    check(second, output, arguments.subjects, reasons)
    assert modification_times(output) == before, "the second run has redone something"
    figures = {
        "subjects": arguments.subjects,
        "seconds": round(first["seconds"], 1),
        "subjects_per_second": round(arguments.subjects / first["seconds"], 2),
        "second_run_seconds": round(second["seconds"], 1),
        "peak_memory_gb": round(max(first["memory"]) / 1e9, 2),
        "memory_gb_by_quarter": quarters(first["memory"]),
    }
    write_json(arguments.work / "inference_benchmark.json", figures)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
