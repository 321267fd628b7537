"""What a study has found: all runs in one table, tests between methods, and their pictures side by side."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from scripts.charts import pareto_figure
from scripts.checkpoint import read
from scripts.evaluation.images import QUALITIES
from scripts.evaluation.interpretability import MODEL, SAMPLED
from scripts.evaluation.study import METRICS, Run
from scripts.evaluation.tables import number
from scripts.figures import reconstruction_figure
from scripts.metrics.correlations import line_predictions, paired_spearman, partial_spearman, r2
from scripts.metrics.resampling import bootstrap
from scripts.storage import atomic_path, output_folder, read_csv, write_csv

# Of a run's metrics.json: title -> keys.
IMAGE_COLUMNS = {quality: ("images", "All", quality) for quality in QUALITIES} | {"KID": ("realism", "kid")}
PAPER_COLUMNS = {"SCC": ("scc",), "Modularity": ("modularity",), "SAP": ("sap",), "MIG": ("mig",)}
PAPER_COLUMNS |= {f"Interp. {group}": ("interpretability", group) for group in ("all", "EDV", "ESV")}
SOUND_COLUMNS = {"R²": ("r2",), "SCC": ("scc",), "partial SCC": ("partial_scc",), "DMIG": ("dmig",)}
SOUND_COLUMNS |= {"DCI": ("dci",), "active units": ("active_units",)}
TESTED = ("SSIM", "LPIPS", "MSE", "R²", "SCC", "partial SCC")
WORDS = {MODEL: "", SAMPLED: ", sampled z"}


def gather(runs: Sequence[Run], output_dir: str | os.PathLike) -> None:
    """Write ``study.md``, ``study.csv``, ``tests.csv`` and figures from the runs that are finished.

    Args:
        runs: of the plan; those that are not finished are named and left out.
        output_dir: of the study.

    Raises:
        ValueError: when no run is finished.
    """
    finished = [run for run in runs if run.finished]
    missing = [run.name for run in runs if not run.finished]
    if not finished:
        raise ValueError(
            f"none of the {len(runs)} runs is finished: 'run run' or 'run list' with study.json starts them."
        )
    output = output_folder(output_dir)
    results = {run: json.loads((run.folder / METRICS).read_text()) for run in finished}
    tests = list(paired_tests(finished))
    pages = ["# Study\n", f"{len(finished)} of {len(runs)} runs. Mean ± SD over seeds.\n"]
    pages += [f"Not finished, and left out: {', '.join(missing)}.\n"] * bool(missing)
    for phases in dict.fromkeys(run.phases for run in finished):
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
        write_csv(output / "tests.csv", tests, list(tests[0]))
    print(f"Study of {len(finished)} runs: {output / 'study.md'}")


def label(run: Run) -> str:
    """Method and, where it is not that of the configs, the weight of the attribute loss."""
    return run.method if run.gamma is None else f"{run.method}, γ {run.gamma:g}"


# Tables: mean ± SD over seeds


def input_tables(results: Mapping[Run, Mapping[str, Any]]) -> Iterator[str]:
    """The three tables of one input."""
    groups = {
        name: [m for run, m in results.items() if label(run) == name] for name in dict.fromkeys(map(label, results))
    }
    yield markdown(
        "Reconstruction, and realism of generated images", {n: cells(g, IMAGE_COLUMNS) for n, g in groups.items()}
    )
    # What unmasks a metric depends on the subjects, not on the method: the rows of any one method will do.
    others = next(iter(groups.values()))
    for protocol, columns, title in (
        ("paper", PAPER_COLUMNS, "Interpretability, paper protocol"),
        ("sound", SOUND_COLUMNS, "Interpretability, sound protocol"),
    ):
        rows = {}
        for which in (MODEL, *([SAMPLED] if protocol == "paper" else [])):
            for name, group in groups.items():
                rows[name + WORDS[which]] = cells(group, prefixed(columns, protocol, which))
        for which in others[0]["interpretability"][protocol]:
            if which not in (MODEL, SAMPLED):
                rows[f"*{which}*"] = cells(others, prefixed(columns, protocol, which))
        yield markdown(title, rows)


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
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [f"### {title}", "", f"| | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 1)}"]
    lines += [f"| {name} | {' | '.join(row.get(column, 'n/a') for column in columns)} |" for name, row in rows.items()]
    return "\n".join(lines) + "\n"


def long_rows(results: Mapping[Run, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row per run and number, for a CSV file."""
    for run, metrics in results.items():
        about = {"run": run.name, "method": run.method, "input": run.phases, "gamma": run.gamma, "seed": run.seed}
        columns = {("images", MODEL, title): keys for title, keys in IMAGE_COLUMNS.items()}
        for protocol, titles in (("paper", PAPER_COLUMNS), ("sound", SOUND_COLUMNS)):
            for row in metrics["interpretability"][protocol]:
                columns |= {(protocol, row, title): keys for title, keys in prefixed(titles, protocol, row).items()}
        for (table, row, title), keys in columns.items():
            found = value(metrics, keys)
            if found is not None:
                yield {**about, "table": table, "row": row, "column": title, "value": f"{found:.6g}"}


# Tests: the same subjects, judged by two methods


def paired_tests(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """Differences of each method from the first one, over the seeds that both have, by a bootstrap of subjects.

    A subject is drawn with all of its seeds, and the difference is averaged over seeds: its interval is of subjects,
    for these trainings.
    """
    for phases in dict.fromkeys(run.phases for run in runs):
        by_label: dict[str, dict[int, Run]] = {}
        for run in runs:
            if run.phases == phases:
                by_label.setdefault(label(run), {})[run.seed] = run
        first, *others = by_label
        for other in others:
            seeds = sorted(set(by_label[first]) & set(by_label[other]))
            if seeds:
                pairs = [(by_label[other][seed], by_label[first][seed]) for seed in seeds]
                yield from compare(pairs, {"input": phases, "method": other, "reference": first, "seeds": len(seeds)})


def compare(pairs: Sequence[tuple[Run, Run]], about: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The tests of one method against another."""
    loaded = [(run_statistics(a), run_statistics(b)) for a, b in pairs]
    subjects = sorted({subject for pair in loaded for subject in pair[0][0]})
    row = {subject: k for k, subject in enumerate(subjects)}

    def differences(weights: np.ndarray) -> np.ndarray:
        by_seed = []
        for (names, of_a), (others, of_b) in loaded:
            if names != others:
                raise ValueError(
                    f"{about['method']} and {about['reference']} were judged on different subjects of a seed."
                )
            own = weights[:, [row[name] for name in names]]
            by_seed.append(of_a(own) - of_b(own))
        return np.mean(by_seed, axis=0)

    values, samples = bootstrap(differences, len(subjects))
    for title, difference, drawn in zip(TESTED, values, samples.T, strict=True):
        drawn = drawn[np.isfinite(drawn)]
        if math.isfinite(difference) and len(drawn):
            low, high = np.percentile(drawn, [2.5, 97.5])
            # Two-sided: the level at which the interval of the resamples would reach zero.
            p = min(1.0, 2 * (1 + min((drawn <= 0).sum(), (drawn >= 0).sum())) / (1 + len(drawn)))
            yield {**about, "column": title, "difference": difference, "low": low, "high": high, "p": p}


def run_statistics(run: Run) -> tuple[list[str], Callable[[np.ndarray], np.ndarray]]:
    """Test subjects of a run, and the function from weights (W, subjects) to its figures (W, len(TESTED))."""
    description = json.loads((run.folder / METRICS).read_text())["description"]
    names, dimensions = description["data"]["attributes"], description["dimensions"]
    rows = read_csv(run.folder / METRICS.parent / "subjects.csv")
    tables = {}
    for which, members in (
        ("training", [row for row in rows if row["section"] == "training"]),
        ("test", [row for row in rows if row["section"] == description["section"]]),
    ):
        codes = np.array([[float(row[f"z{k}"]) for k in dimensions] for row in members])
        tables[which] = codes, np.array([[float(row[name] or "nan") for name in names] for row in members])
    test = [row for row in rows if row["section"] == description["section"]]
    phases = description["data"]["phases"]
    quality = np.array([[np.mean([float(row[f"{q}_{p}"]) for p in phases]) for q in TESTED[:3]] for row in test])
    return [row["subject"] for row in test], partial(_figures, quality, tables["training"], tables["test"])


def _figures(quality: np.ndarray, training: tuple, test: tuple, weights: np.ndarray) -> np.ndarray:
    codes, attributes = test
    predictions = line_predictions(*training, codes)
    # The codes of a method without attribute loss may fall with the attribute: what counts is how well they follow it.
    sign = np.sign(np.nan_to_num(paired_spearman(*training, np.ones((1, len(training[0]))))[0]))
    signs = np.where(sign == 0, 1, sign)
    count = codes.shape[1]
    own = partial_spearman(codes * signs, attributes, [True] * count, weights)[:, range(count), range(count)]
    interpretable = (r2(attributes, predictions, weights), paired_spearman(codes * signs, attributes, weights), own)
    means = weights @ quality / weights.sum(axis=1, keepdims=True)
    return np.column_stack([means, *(values.mean(axis=1) for values in interpretable)])


def test_table(tests: Sequence[Mapping[str, Any]]) -> str:
    """The tests as Markdown."""
    if not tests:
        return ""
    rows: dict[str, dict[str, str]] = {}
    for t in tests:
        difference = f"{t['difference']:+.3g} [{t['low']:+.3g}, {t['high']:+.3g}], p {t['p']:.2g}"
        rows.setdefault(t["method"], {})[t["column"]] = difference
    return markdown(f"Difference from {tests[0]['reference']} on the same subjects (sound protocol, 95 %)", rows)


# Figures


def input_figures(results: Mapping[Run, Mapping[str, Any]]) -> Iterator[tuple[str, Figure]]:
    """Reconstructions of all methods with the first seed, and what interpretability costs in reconstruction."""
    seed = min(run.seed for run in results)
    alike = [run for run in results if run.seed == seed and run.gamma is None]
    if alike:
        examples = {run.method: read(run.folder / METRICS.parent / "examples.pt") for run in alike}
        first = next(iter(examples.values()))
        phases = next(iter(results.values()))["description"]["data"]["phases"]
        pictures = {method: example["reconstructions"] for method, example in examples.items()}
        yield "reconstructions", reconstruction_figure(first["images"], pictures, phases)
    points = [point for point in pareto_points(results) if math.isfinite(point["x"]) and math.isfinite(point["y"])]
    if points:
        yield "pareto", pareto_figure(points)


def pareto_points(results: Mapping[Run, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """SSIM and partial SCC of each method and γ: mean ± SD over seeds."""
    for name in dict.fromkeys(map(label, results)):
        group = {run: metrics for run, metrics in results.items() if label(run) == name}
        point = {
            "method": next(iter(group)).method,
            "gamma": next(iter(group.values()))["description"]["loss"]["gamma"],
        }
        keys = {"x": ("images", "All", "SSIM"), "y": ("interpretability", "sound", MODEL, "partial_scc")}
        for axis, path in keys.items():
            values = np.array([value(metrics, path) for metrics in group.values()], dtype=float)
            spread = values.std(ddof=1) if len(values) > 1 else 0.0
            point |= {
                axis: values.mean(),
                f"{axis}_low": values.mean() - spread,
                f"{axis}_high": values.mean() + spread,
            }
        yield point
