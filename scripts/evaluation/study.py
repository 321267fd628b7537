"""A study: many trainings and evaluations, each an ordinary ``monai.bundle run``, that a scheduler can run as well."""

from __future__ import annotations

import ast
import itertools
import json
import math
import os
import re
import shlex
import subprocess
import sys
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from scripts.cohort.datalist import check_items, file_hash, read_datalist
from scripts.cohort.split import SECTIONS, split_subjects
from scripts.overrides import check_keys
from scripts.storage import atomic_path, output_folder, read_object, write_json

METRICS = Path("eval") / "metrics.json"  # in the folder of a run: there once it is finished
PLAN = "plan.json"
LOG = "run.log"
DEFAULT = "default"
# Keys that tell runs apart, or where they lie: as an override of all runs they would make them the same.
RESERVED = ("dataset_dir", "datalist", "output_dir", "eval_dir", "ceiling_dir", "instrument_dir", "seed", "gamma")


class Run(NamedTuple):
    """One training and its evaluation.

    Args:
        name: of its folder.
        method, phases: as the study names them.
        gamma: weight of the attribute loss; None for the one of the configs.
        seed: of the training, and of the split where the study makes one.
        folder: its output_dir.
        commands: to be run one after the other.
    """

    name: str
    method: str
    phases: str
    gamma: float | None
    seed: int
    folder: Path
    commands: tuple[tuple[str, ...], ...]

    @property
    def finished(self) -> bool:
        """Whether its evaluation is there."""
        return (self.folder / METRICS).is_file()


def read_metrics(run: Run) -> dict[str, Any]:
    """A run's metrics.json; raises ValueError naming the file where it is broken."""
    return read_object(run.folder / METRICS, "metrics", f"remove it, and 'run run' evaluates {run.name} again")


def plan(
    config_dir: str | os.PathLike,
    dataset_dir: str | os.PathLike,
    datalist: str | os.PathLike,
    output_dir: str | os.PathLike,
    methods: Mapping[str, Sequence[str]],
    inputs: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    gammas: Mapping[str, Sequence[float | str]],
    overlays: Sequence[str],
    overrides: Mapping[str, Any],
    split: Sequence[float] | None = None,
) -> list[Run]:
    """Every combination of methods, inputs, seeds and weights of the attribute loss.

    Args:
        config_dir: of train.json, evaluate.json and the overlays.
        dataset_dir, datalist: the cohort.
        output_dir: gets a folder per run.
        methods, inputs: name -> overlays.
        seeds: of the runs.
        gammas: method -> weights to try; "default" is that of the configs, and all that a method has that is not named.
        overlays: of all runs.
        overrides: keys of all runs.
        split: shares of training, validation and test, to draw the subjects of the datalist anew with each seed; None
            keeps the sections of the datalist, so that seeds differ by training only.

    Raises:
        ValueError: for weights of a method that the study does not have, or that are no numbers; for overrides of keys
            that the study sets; for a study without runs; for a run's folder that was made by another plan.
        FileNotFoundError: for an overlay that does not exist.
    """
    trained, evaluated = (config_keys(Path(config_dir) / file) for file in ("train.json", "evaluate.json"))
    check_study(config_dir, methods, inputs, seeds, overlays)
    check_overrides(overrides, trained | evaluated)
    check_gammas(gammas, methods, config_dir)
    output, runs = output_folder(output_dir).resolve(), []
    # Once per seed and not per run: the datalist of a large cohort takes long to read.
    lists = {
        seed: seed_datalist(datalist, output, split, seed) if split else Path(datalist).resolve() for seed in seeds
    }
    cohorts = {path: file_hash(path) for path in set(lists.values())}
    for seed, (phases, of_input), (method, of_method) in itertools.product(seeds, inputs.items(), methods.items()):
        for weight in gammas.get(method, [DEFAULT]):
            gamma = None if weight == DEFAULT else float(weight)
            name = slug(f"{method} {phases} seed {seed}" + ("" if gamma is None else f" gamma {gamma:g}"))
            keys = {
                "dataset_dir": str(Path(dataset_dir).resolve()),
                "datalist": str(lists[seed]),
                "output_dir": str(output / name),
                "seed": seed,
                **({} if gamma is None else {"gamma": gamma}),
                **overrides,
            }
            files = ["train.json", *overlays, *of_input, *of_method]
            training = {key: value for key, value in keys.items() if key not in evaluated - trained}
            ceiling = {"ceiling_dir": str(output / slug(f"ceiling {phases} seed {seed}"))}
            commands = (
                command("training", [Path(config_dir) / file for file in files], training),
                command("run", [Path(config_dir) / file for file in [*files, "evaluate.json"]], keys | ceiling),
            )
            runs.append(Run(name, method, phases, gamma, seed, output / name, commands))
    names = [run.name for run in runs]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(
            f"two runs would have the folder {twice[0]}: give methods, inputs and gammas that differ more."
        )
    for run in runs:
        keep_plan(run, cohorts[lists[run.seed]])
    return runs


def check_study(
    config_dir: str | os.PathLike,
    methods: Mapping[str, Sequence[str]],
    inputs: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    overlays: Sequence[str],
) -> None:
    """Raise for what would make a study empty, or fail in each of its runs."""
    for key, chosen, kind in (("methods", methods, dict), ("inputs", inputs, dict), ("seeds", seeds, (list, tuple))):
        if not isinstance(chosen, kind) or not chosen:
            raise ValueError(
                f"{key} is {chosen!r}: expected {'names and their overlays' if kind is dict else 'a list'}."
            )
    wrong = [seed for seed in seeds if type(seed) is not int or seed < 0 or seeds.count(seed) > 1]
    if wrong:
        raise ValueError(f"seeds hold {wrong[0]!r}: expected different whole numbers, none of them negative.")
    for key, files in {"overlays": overlays, **methods, **inputs}.items():
        if isinstance(files, str):
            raise ValueError(f"{key} is '{files}': expected a list, such as ['{files}'].")
        for file in files:
            if not (Path(config_dir) / file).is_file():
                raise FileNotFoundError(
                    f"overlay '{file}' of {key} is not in {config_dir}; name one of these, or a full path."
                )


def check_overrides(overrides: Mapping[str, Any], declared: Collection[str]) -> None:
    """Raise ValueError for keys that the study sets by itself, or that no config of its runs declares."""
    reserved = [key for key in RESERVED if key in overrides]
    if reserved:
        raise ValueError(f"overrides set {', '.join(reserved)}, which the study sets for each run by itself.")
    check_keys(overrides, declared)


def config_keys(path: Path) -> set[str]:
    """The top-level keys of a config."""
    return set(json.loads(path.read_text()))


def keep_plan(run: Run, cohort: str) -> None:
    """Note by which commands and subjects a run's folder is made.

    Args:
        run: the run.
        cohort: hash of its datalist.

    Raises:
        ValueError: when it was made by others: its results would stand in a table to which they do not belong.
    """
    path, content = run.folder / PLAN, plan_of(run, cohort)
    if path.is_file():
        known = json.loads(path.read_text())
        if known != content:
            keys = [key for key in {**known, **content} if known.get(key) != content.get(key)]
            other = "; ".join(f"{key} is {content.get(key)}, was {known.get(key)}" for key in keys)
            raise ValueError(
                f"{run.folder} was made by another study: {other}. Name another --output_dir, or remove the folder to "
                "train it anew."
            )
        return
    write_json(output_folder(run.folder) / PLAN, content)


def plan_of(run: Run, cohort: str) -> dict[str, str]:
    """The keys of a run's training, without the places of configs, scans and datalist, which may move."""
    pairs = [argument.removeprefix("--").split("=", 1) for argument in run.commands[0] if argument.startswith("--")]
    keys = {key: value for key, value in pairs if key not in ("dataset_dir", "output_dir")}
    keys["config_file"] = ", ".join(Path(file).name for file in ast.literal_eval(keys["config_file"]))
    return keys | {"datalist": cohort}


def check_gammas(
    gammas: Mapping[str, Sequence[float | str]], methods: Mapping[str, Sequence[str]], config_dir: str | os.PathLike
) -> None:
    """Raise ValueError for a method without attribute loss, or a weight that is neither a number nor "default"."""
    for method, weights in gammas.items():
        if method not in methods:
            raise ValueError(f"gammas name {method}, which is none of the methods {', '.join(methods)}.")
        if not isinstance(weights, list | tuple) or not weights:
            raise ValueError(f"gammas of {method} are {weights!r}: expected a list of numbers or '{DEFAULT}'.")
        wrong = [weight for weight in weights if weight != DEFAULT and not is_number(weight)]
        if wrong:
            raise ValueError(f"gammas of {method} hold {wrong[0]!r}: expected numbers or '{DEFAULT}'.")
        overlays = [json.loads((Path(config_dir) / file).read_text()) for file in methods[method]]
        if any(overlay.get("regularize") is False for overlay in overlays):
            raise ValueError(f"gammas name {method}, which has no attribute loss: its weight would change nothing.")


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def slug(name: str) -> str:
    """A name that is safe as a folder's: lower case ASCII letters, digits, dots and underscores."""
    plain = unicodedata.normalize("NFKD", name.replace("β", "beta")).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9.]+", "_", plain).strip("_")


def seed_datalist(datalist: str | os.PathLike, folder: Path, split: Sequence[float], seed: int) -> Path:
    """Write the datalist with its subjects drawn into sections anew, unless that has been done."""
    path = folder / f"datalist_seed_{seed}.json"
    content = read_datalist(datalist)
    members = [item for name in SECTIONS for item in content.get(name, [])]
    check_items(members, datalist)
    items = {item["subject"]: item for item in members}
    sections = split_subjects(list(items), split, seed)
    for name in SECTIONS:
        content[name] = [items[subject] for subject in sorted(items) if sections[subject] == name]
        content[f"num{name.capitalize()}"] = len(content[name])
    if not path.is_file() or json.loads(path.read_text()) != content:
        write_json(path, content)
    return path


def command(run_id: str, files: Sequence[Path], keys: Mapping[str, Any]) -> tuple[str, ...]:
    """One ``monai.bundle run``, argument by argument."""
    # Fire reads Python's literals: JSON's "false" would arrive as a text, which counts as true.
    values = {key: value if isinstance(value, str) else repr(value) for key, value in keys.items()}
    arguments = [
        f"--config_file={[str(file) for file in files]}",
        *(f"--{key}={value}" for key, value in values.items()),
    ]
    return (sys.executable, "-m", "monai.bundle", "run", run_id, *arguments)


def write_list(runs: Sequence[Run], path: str | os.PathLike) -> None:
    """Write the commands of the runs that are not finished, one run per line, for a cluster's scheduler."""
    left = [run for run in runs if not run.finished]
    with atomic_path(path) as part:
        part.write_text("".join(" && ".join(map(shlex.join, run.commands)) + "\n" for run in left))
    print(f"{len(left)} of {len(runs)} runs are left, one per line of {path}")


def execute(runs: Sequence[Run], workers: int = 1) -> list[Run]:
    """Run what is not finished; a run that fails does not stop the others.

    What a run prints goes to ``run.log`` in its folder.

    Args:
        runs: of the plan.
        workers: runs at a time.

    Returns:
        The runs that failed.

    Raises:
        ValueError: without workers.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}: expected 1 or more runs at a time.")
    left = [run for run in runs if not run.finished]
    print(f"{len(runs) - len(left)} of {len(runs)} runs are finished.", flush=True)
    # Runs of one input and seed share a ceiling, which must not be trained twice at a time: they keep their order.
    shared = itertools.groupby(left, key=lambda run: (run.seed, run.phases))
    with ThreadPoolExecutor(workers) as pool:
        return list(itertools.chain(*pool.map(_execute_in_order, [list(group) for _, group in shared])))


def _execute_in_order(runs: Sequence[Run]) -> list[Run]:
    """Run them one after the other, and return those that failed."""
    return [run for run in runs if not _succeeds(run)]


def _succeeds(run: Run) -> bool:
    print(f"{run.name} runs", flush=True)
    log = output_folder(run.folder) / LOG
    with open(log, "w") as file:
        codes = (subprocess.run(args, stdout=file, stderr=subprocess.STDOUT).returncode for args in run.commands)
        failed = any(codes)  # stops at the first that fails
    print(f"{run.name} {f'failed: see {log}' if failed else 'is finished'}", flush=True)
    return not failed
