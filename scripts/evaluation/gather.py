"""What a study has found: all runs in one table, tests between methods, and their pictures side by side."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from scripts.charts import pareto_figure
from scripts.checkpoint import read
from scripts.evaluation.comparison import label, paired_tests
from scripts.evaluation.images import QUALITIES
from scripts.evaluation.interpretability import MODEL, SAMPLED
from scripts.evaluation.study import LOG, METRICS, Run, execute, read_metrics
from scripts.evaluation.tables import ANSWER_COLUMNS, PAPER_COLUMNS, SOUND_COLUMNS, markdown_table, number
from scripts.figures import reconstruction_figure
from scripts.storage import atomic_path, output_folder, write_csv
from scripts.views import View

# Of a run's metrics.json: title -> keys.
IMAGES = {quality: ("images", "All", quality) for quality in QUALITIES} | {"KID": ("realism", "kid")}
PAPER = {title: (key,) for key, title in PAPER_COLUMNS.items()}
PAPER |= {f"Interp. {group}": ("interpretability", group) for group in ("all", "EDV", "ESV")}
SOUND = {title: (key,) for key, title in SOUND_COLUMNS.items()}
SOUND |= {"DCI": ("dci",), "active units": ("active_units",)}
WHATIF = {title: (key,) for key, title in ANSWER_COLUMNS.items()}
LEGEND = """Test subjects. SSIM, PSNR: higher is better; LPIPS, MSE, KID: lower. Paper protocol: dimension chosen and
line fitted on the subjects that are scored; Interp.: R² of that line. Sound protocol: fixed dimensions of mean codes,
fitted on training subjects; DCI is its disentanglement. Counterfactuals: changes in mL that an instrument measures in
decoded images, against those asked for (mean of the attributes, then each by the first instrument). *Rows in italics*
tell what a value means: pure noise, one size axis on all dimensions, the attributes themselves, a regressor that was
told them. More: model card, Evaluation.
"""
WORDS = {MODEL: "", SAMPLED: ", sampled z"}


def run_study(runs: Sequence[Run], output_dir: str | os.PathLike, workers: int = 1) -> None:
    """Execute what is left of a plan, and gather what is finished.

    Args:
        runs, output_dir: as of ``gather``.
        workers: runs at a time.

    Raises:
        RuntimeError: at the end, naming the logs of the runs that failed.
    """
    failed = execute(runs, workers)
    if any(run.finished for run in runs):
        gather(runs, output_dir)
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {len(runs)} runs failed: {', '.join(str(run.folder / LOG) for run in failed)}. "
            "The others are finished; the same command tries these again."
        )


def gather(runs: Sequence[Run], output_dir: str | os.PathLike) -> None:
    """Write ``study.md``, ``study.csv``, ``tests.csv`` and figures from the runs that are finished.

    Args:
        runs: of the plan; those that are not finished are named and left out.
        output_dir: of the study.

    Raises:
        ValueError: when no run is finished.
    """
    results = {run: read_metrics(run) for run in runs if run.finished}
    missing = [run.name for run in runs if run not in results]
    if not results:
        raise ValueError(
            f"none of the {len(runs)} runs is finished: 'run run' or 'run list' with study.json starts them."
        )
    output = output_folder(output_dir)
    tests = paired_tests(runs)
    pages = ["# Study\n", f"{len(results)} of {len(runs)} runs. Mean ± SD over seeds.\n", LEGEND]
    pages += [f"Not finished, and left out: {', '.join(missing)}.\n"] * bool(missing)
    for phases in dict.fromkeys(run.phases for run in results):
        some = {run: metrics for run, metrics in results.items() if run.phases == phases}
        pages += [f"## Input {phases}\n", *input_tables(some), test_table([t for t in tests if t["input"] == phases])]
        for name, figure in input_figures(some):
            with atomic_path(output_folder(output / "figures") / f"{name}_{phases.replace('+', '_')}.png") as part:
                figure.savefig(part)
    with atomic_path(output / "study.md") as part:
        part.write_text("\n".join(pages))
    rows = list(long_rows(results))
    write_csv(output / "study.csv", rows, list(rows[0]))
    if tests:
        write_csv(output / "tests.csv", tests, list(dict.fromkeys(key for test in tests for key in test)))
    print(f"Study of {len(results)} runs: {output / 'study.md'}")


# Tables: mean ± SD over seeds


def input_tables(results: Mapping[Run, Mapping[str, Any]]) -> Iterator[str]:
    """The tables of one input."""
    groups = {
        name: [m for run, m in results.items() if label(run) == name] for name in dict.fromkeys(map(label, results))
    }
    yield markdown("Reconstruction, and realism of generated images", {n: cells(g, IMAGES) for n, g in groups.items()})
    # What unmasks a metric depends on the subjects, not on the method: the rows of any one method will do.
    others = next(iter(groups.values()))
    for protocol, columns, title in (
        ("paper", PAPER, "Interpretability, paper protocol"),
        ("sound", SOUND, "Interpretability, sound protocol"),
    ):
        rows = {}
        for which in (MODEL, *([SAMPLED] if protocol == "paper" else [])):
            for name, group in groups.items():
                rows[name + WORDS[which]] = cells(group, prefixed(columns, protocol, which))
        for which in others[0]["interpretability"][protocol]:
            if which not in (MODEL, SAMPLED):
                rows[f"*{which}*"] = cells(others, prefixed(columns, protocol, which))
        yield markdown(title, rows)
    rows = dict(whatif_rows(groups))
    if rows:
        yield markdown("Counterfactuals: measured against requested changes", rows)


def whatif_rows(groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[tuple[str, dict[str, str]]]:
    """Per method the mean of all attributes by every instrument, and each attribute by the first one."""
    for name, group in groups.items():
        found = group[0].get("faithfulness")
        if found is None or any("faithfulness" not in metrics for metrics in group):
            continue
        first, *_ = instruments = list(found["answers"])
        for instrument in instruments:
            yield f"{name}, {instrument}", cells(group, answers(instrument))
        for attribute in found["requests"]:
            yield f"{name}, {first}, {attribute}", cells(group, answers(first, "per_attribute", attribute))


def answers(instrument: str, *of_attribute: str) -> dict[str, tuple[str, ...]]:
    """The columns of an instrument, of one attribute or the mean of all."""
    return {title: ("faithfulness", "answers", instrument, *keys, *of_attribute) for title, keys in WHATIF.items()}


def prefixed(columns: Mapping[str, Sequence[str]], protocol: str, row: str) -> dict[str, tuple[str, ...]]:
    """The columns of a protocol and row."""
    return {title: ("interpretability", protocol, row, *keys) for title, keys in columns.items()}


def cells(group: Sequence[Mapping[str, Any]], columns: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Title -> mean ± SD over the runs of a group; columns that no run has, as those of a phase, are left out."""
    found = {title: [value(metrics, keys) for metrics in group] for title, keys in columns.items()}
    return {title: mean_sd(values) for title, values in found.items() if any(v is not None for v in values)}


def value(metrics: Mapping[str, Any], keys: Sequence[str]) -> float | None:
    """A number of metrics.json; NaN where it is undefined, None where there is no such key."""
    node: Any = metrics
    for key in keys:
        if "undefined" in node:
            return math.nan
        if key not in node:
            return None
        node = node[key]
    return math.nan if node["value"] is None else node["value"]


def mean_sd(values: Sequence[float | None]) -> str:
    """Mean ± SD of the runs in which a value is defined, and how many these are where not all."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    if not known:
        return "n/a"
    spread = f" ± {number(float(np.std(known, ddof=1)))}" if len(known) > 1 else ""
    return f"{number(float(np.mean(known)))}{spread}" + (f" ({len(known)})" if len(known) < len(values) else "")


def markdown(title: str, rows: Mapping[str, Mapping[str, str]]) -> str:
    """A table with a heading."""
    return f"### {title}\n\n{markdown_table(rows)}\n"


def long_rows(results: Mapping[Run, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row per run and number, for a CSV file."""
    for run, metrics in results.items():
        about = {"run": run.name, "method": run.method, "input": run.phases, "gamma": run.gamma, "seed": run.seed}
        columns = {("images", MODEL, title): keys for title, keys in IMAGES.items()}
        for protocol, titles in (("paper", PAPER), ("sound", SOUND)):
            for row in metrics["interpretability"][protocol]:
                columns |= {(protocol, row, title): keys for title, keys in prefixed(titles, protocol, row).items()}
        for instrument in metrics.get("faithfulness", {}).get("answers", {}):
            columns |= {("whatif", instrument, title): keys for title, keys in answers(instrument).items()}
        for (table, row, title), keys in columns.items():
            found = value(metrics, keys)
            if found is not None:
                yield {**about, "table": table, "row": row, "column": title, "value": f"{found:.6g}"}


def test_table(tests: Sequence[Mapping[str, Any]]) -> str:
    """Differences between methods."""
    if not tests:
        return ""
    rows: dict[str, dict[str, str]] = {}
    for test in tests:
        if "p" in test:
            text = f"{test['difference']:+.3g} [{test['low']:+.3g}, {test['high']:+.3g}], p {test['p']:.2g}"
            rows.setdefault(f"{test['method']} (seeds: {test['seeds']})", {})[test["figure"]] = text
    note = (
        "\nOn the same test subjects, sound protocol; 95 % intervals by resampling of subjects, p adjusted for the "
        "number of tests. They are of these trainings: that a method is better in general takes more seeds to show.\n"
    )
    return markdown(f"Difference from {tests[0]['reference']}", rows) + note


# Figures


def input_figures(results: Mapping[Run, Mapping[str, Any]]) -> Iterator[tuple[str, Figure]]:
    """Reconstructions of all methods with the first seed, and what interpretability costs in reconstruction."""
    seed = min(run.seed for run in results)
    alike = [run for run in results if run.seed == seed and run.gamma is None]
    if alike:
        examples = {run.method: read(run.folder / METRICS.parent / "examples.pt") for run in alike}
        first = next(iter(examples.values()))
        view = View.of(next(iter(results.values()))["description"]["data"])
        pictures = {method: example["reconstructions"] for method, example in examples.items()}
        yield "reconstructions", reconstruction_figure(first["images"], pictures, view)
    points = [point for point in pareto_points(results) if math.isfinite(point["x"]) and math.isfinite(point["y"])]
    if points:
        labels = ("SSIM on test subjects, mean ± SD of seeds", "partial SCC on test subjects, mean ± SD of seeds")
        yield "pareto", pareto_figure(points, *labels)


def pareto_points(results: Mapping[Run, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """SSIM and partial SCC of each method and γ: mean ± SD over seeds."""
    for name in dict.fromkeys(map(label, results)):
        group = {run: metrics for run, metrics in results.items() if label(run) == name}
        point = {
            "method": next(iter(group)).method,
            "gamma": next(iter(group.values()))["description"]["training"].get("gamma"),
        }
        keys = {"x": ("images", "All", "SSIM"), "y": ("interpretability", "sound", MODEL, "partial_scc")}
        for axis, path in keys.items():
            values = np.array([value(metrics, path) for metrics in group.values()], dtype=float)
            values = values[np.isfinite(values)] if np.isfinite(values).any() else np.array([math.nan])
            spread = values.std(ddof=1) if len(values) > 1 else 0.0
            point |= {
                axis: values.mean(),
                f"{axis}_low": values.mean() - spread,
                f"{axis}_high": values.mean() + spread,
            }
        yield point
