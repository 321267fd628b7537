"""What the benchmarks share: how the machine is described, how a result is written, and the page of all results.

``python -m tests.benchmarks.report [folder] [page]`` makes ``docs/benchmarks.md`` from the JSON files in
``docs/benchmarks``, each written by one benchmark with ``write_result``. They stay beside the page, so that the figures
of one machine survive a run on another.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import joblib
import torch

from scripts.evaluation.tables import markdown_table, number
from scripts.storage import write_json

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "benchmarks"
PAGE = ROOT / "docs" / "benchmarks.md"

# In reading order. A result of another name comes last; a section without a result says that it was not measured.
SECTIONS = {
    "step": "Training step",
    "scale": "Data at scale",
    "memory": "Memory of a training step",
    "parallel": "Training on several devices",
    "gpu": "Training step on a GPU",
    "soak": "Soak: four methods from many seeds",
}
INTRODUCTION = """# Benchmarks

Made by `make bench` (`python -m tests.benchmarks.report`) from the JSON files in `docs/benchmarks`: do not edit. Each
section names the machine that it was measured on; figures of different machines are not to be compared.
"""


def machine() -> dict[str, Any]:
    """Describe this machine and what runs on it."""
    return {
        "processor": processor(),
        "cores": joblib.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
    }


def processor() -> str:
    """Model name of the processor."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def commit() -> str:
    """Short hash of the checkout, marked where files differ from it; "unknown" outside of git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=9", "--exclude=*"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return run.stdout.strip() or "unknown"


class OtherLoad:
    """How much of the machine others took since this was made: a disturbed measurement is worth less."""

    def __init__(self) -> None:
        self.start = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Seconds: wall clock, all processors' busy time, this process's and its ended children's time."""
        try:
            ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        except OSError:
            return time.perf_counter(), float("nan"), float("nan")
        idle = ticks[3] + ticks[4]
        times = os.times()
        own = times.user + times.system + times.children_user + times.children_system
        return time.perf_counter(), (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK"), own

    def share(self) -> float:
        """Share of all cores that was busy for others, 0 to 1; NaN where the system does not tell. End children first.

        It counts the whole machine's cores, also where this process may use some of them only.
        """
        wall, busy, own = (now - before for now, before in zip(self._now(), self.start, strict=True))
        return max(0.0, busy - own) / (wall * (os.cpu_count() or 1))


def write_result(
    path: str | os.PathLike, title: str, note: str, rows: Sequence[Mapping[str, Any]], **further: Any
) -> None:
    """Write one benchmark's result for the page, and print its table.

    Args:
        path: of the JSON file; its stem decides where on the page it stands.
        title: heading of the section.
        note: what the reader must know.
        rows: column -> value; the first column names the row, and no other row has the same.
        further: whatever else the file is to keep; the page does not show it.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    result = {"title": title, "note": note, "machine": machine(), "rows": [dict(row) for row in rows], **further}
    write_json(path, result)
    print(section(result))


def section(result: Mapping[str, Any]) -> str:
    """A heading, the note, the machine and the table."""
    lines = [f"## {result['title']}", "", result["note"], "", describe(result["machine"])]
    return "\n".join([*lines, "", table(result["rows"])]) + "\n"


def describe(found: Mapping[str, Any]) -> str:
    """The machine in one line."""
    known = found | {"gpu": found.get("gpu") or "no GPU"}
    return (
        "{processor}, {cores} cores, {memory_gb} GB, {gpu}; torch {torch} on {torch_threads} threads; {date}, commit "
        "{commit}."
    ).format_map(known)


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows whose first column names them, as a Markdown table.

    Raises:
        ValueError: when two rows have the same name.
    """
    named: dict[str, dict[str, str]] = {}
    for row in rows:
        name, *cells = ((column, cell(value)) for column, value in row.items())
        if name[1] in named:
            raise ValueError(f"two rows are called '{name[1]}'.")
        named[name[1]] = dict(cells)
    return markdown_table(named)


def cell(value: Any) -> str:
    """A value as people read it."""
    if value is None or value != value:
        return "n/a"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else number(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """All results, by name, as one Markdown page."""
    missing = "Not measured yet."
    names = [*SECTIONS, *sorted(results.keys() - SECTIONS.keys())]
    sections = [section(results[name]) if name in results else f"## {SECTIONS[name]}\n\n{missing}\n" for name in names]
    return "\n".join([INTRODUCTION, *sections])


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=RESULTS)
    parser.add_argument("page", type=Path, nargs="?", default=PAGE)
    arguments = parser.parse_args()
    results = {path.stem: json.loads(path.read_text()) for path in sorted(arguments.folder.glob("*.json"))}
    arguments.page.write_text(page(results))
    print(f"{arguments.page}: {', '.join(results) or 'no results'}")


if __name__ == "__main__":
    main()
