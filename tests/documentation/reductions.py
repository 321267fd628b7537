"""How the tests run what the documents print: what placeholders stand for, and how long commands are made short.

Whoever documents a command that the tests cannot run adds it to the tables here.
"""

from __future__ import annotations

import json
import re
import shlex
import zlib
from pathlib import Path
from typing import Any

from tests.documentation.documents import Command

HERE = "tests/documentation/reductions.py"

# Patterns that are written like a command, and why they are none.
TEMPLATES = {"python -m monai.bundle run <what> --config_file <configs>": "the form of all commands"}

# What is asked for its help, plan or keys instead: pattern -> what is put in its place, and why options do not help.
NOT_EXECUTED = {
    r"(python -m tests\.benchmarks\.acdc\b.*)": (r"\1 --help", "trains for hours on ACDC, which is not shipped"),
    r"(python -m tests\.benchmarks\.masks\b.*)": (r"\1 --help", "needs a model and a segmentation of ACDC"),
    r"(python -m tests\.benchmarks\.novelty\b.*)": (r"\1 --help", "needs a model of ACDC"),
    r"(python -m monai\.bundle run) (--.*\bstudy\.json.* --split .*)": (r"\1 list \2", "one study is run already"),
    r"(python -m tests\.benchmarks\.rerendered\b.*)": (r"\1 --help", "needs a model of phantom hearts"),
    r"(python -m tests\.benchmarks\.scale\b.*)": (r"\1 --help", "trains for minutes, whatever the size"),
    r"make demo": ("make -n demo", "'make model' runs it"),
    r"make explore\b.*": ("make -n explore", "serves until it is stopped; tests/test_explore.py does so"),
    r"(python -m monai\.bundle run) explore\b(.*)": (r"\1 check_keys\2", "the same"),
    r"(python -m monai\.bundle run) whatif\b(.*)": (r"\1 check_keys\2", "an untrained model refuses requests"),
    r"make bench": ("make -n bench", "measures for half an hour, alone on the machine"),
}

# Folders and files of the work folder. What a training makes has a folder for each combination of overlays, since
# another one is refused there. So are results or a study of other options, and a cohort that has been prepared is not
# examined again: these have a folder for each command.
PLACEHOLDERS = {
    "scans": "{drawn}scans",
    "new scans": "new_scans",
    "cohort": "{prepared}cohort",
    "scans or cohort": "cohort",
    "ACDC": "ACDC",
    "M&Ms": "MnMs",
    "DICOM": "DICOM",
    "copy of the schema": "schema.json",
    "bundle": "bundle",
    "model": "{place}_model{overlays}",
    "results": "{place}_results_{options}",
    "study": "{place}_study_{options}",
    "segmentation": "{place}_segmentation",
    "exports": "exports",
    "work folder": "{place}_work",
}
PLACEHOLDER = re.compile(r"<([^<>\n]+)>")
NO_OVERLAYS = ("train", "evaluate", "inference", "inference_trt", "export", "deploy")  # they tell what is done

SIZES = {"spatial_size": [32, 32], "spacing": 5, "channels": [8, 8], "latent_dim": 8}
TRAINING = {"batch_size": 8, "max_epochs": 1, "warmup_epochs": 0}
EVALUATION = {
    "generated_samples": 12,
    "evaluation_workers": 0,
    "ceiling_epochs": 1,
    "ceiling_channels": [8, 8],
    "page_subjects": 0,
}
SEGMENTATION = {"spatial_size": [96, 96], "spacing": 2.5, "channels": [8, 16, 32], "batch_size": 2, "max_epochs": 1}
STUDY = {"methods": {"AR-SIVAE": []}, "inputs": {"ED": ["ed.json"]}, "overrides": SIZES | TRAINING | EVALUATION}

# A pattern of the command -> options that it gets.
ADDED: dict[str, dict[str, Any]] = {
    r"\b(train|inference)\.json.*<model>": SIZES,  # others have the sizes of the packaged weights
    r"\btrain\.json": TRAINING,
    r"\bevaluate\.json": EVALUATION,
    r"\bsegment\.json": SEGMENTATION,
    r"\bstudy\.json": STUDY,
    r"run phantom\b": {"subjects": 12},
    r"run prepare\b(?!.* --(workers|scheduler))": {"workers": 1},  # further ones would first import everything
}
# An option -> its value wherever the command has it.
REPLACED = {
    "--nproc_per_node": 2,
    "--nworkers": 2,
    "--workers": 2,
    "--subjects": 12,
    "--seeds": [0],
    "--gammas": {"AR-SIVAE": [5]},
    "DEMO_SUBJECTS": 18,
    "DEMO_EPOCHS": 2,
    "DEMO_WARMUP": 1,
    "MODEL_SUBJECTS": 18,
}
# For make, which reads them where the command does not set them. Tests are collected and not run: this is one of them.
ENVIRONMENT = {name: str(value) for name, value in REPLACED.items() if not name.startswith("--")}
ENVIRONMENT["MODEL_EVALUATION"] = "--ceiling_epochs 1 --generated_samples 12 --evaluation_workers 0 --page_subjects 0"
ENVIRONMENT |= {"PYTEST_ADDOPTS": "--collect-only --quiet"}
# Titles of commands that take more than ten seconds.
SLOW = re.compile(r": (make model|study|torchrun|.* (evaluate|export))")


class Unprepared(ValueError):
    """A command that these tables do not cover; the message says what to add."""


def place(command: Command) -> str:
    """Where a command is run: in a checkout, or in the folder of a packaged bundle."""
    return "bundle" if re.search(r"(?<![\w/])configs/\w+\.json", command.text) else "checkout"


def option_pattern(name: str) -> str:
    """A pattern of an option, or a variable of make, and its value."""
    value = r"""(?:'[^']*'|"[^"]*"|\S+)(?:\s+\d+)*"""
    return rf"(?<!\S){re.escape(name)}(=|\s+){value}" if name.startswith("-") else rf"(?<!\S){name}(=){value}"


def quoted(value: Any) -> str:
    """A value as the shell takes it."""
    return shlex.quote(json.dumps(value, ensure_ascii=False).replace(" ", ""))


def replace_option(text: str, name: str, value: Any) -> str:
    """The command with another value of an option that it has; others stay as they are."""
    return re.sub(option_pattern(name), lambda match: f"{name}{match[1]}{quoted(value)}", text)


def add_option(text: str, name: str, value: Any) -> str:
    """The command with an option, which may have had another value."""
    if re.search(option_pattern(name), text):
        return replace_option(text, name, value)
    return f"{text} {name} {quoted(value)}"


def reduced(text: str) -> str:
    """The command at a small size."""
    for name, value in REPLACED.items():
        text = replace_option(text, name, value)
    printed = text
    for pattern, options in ADDED.items():
        for name, value in options.items() if re.search(pattern, printed) else ():
            text = add_option(text, f"--{name}", value)
    return text


def steps(command: Command, work: Path) -> list[str]:
    """The command lines that run a documented command.

    Raises:
        Unprepared: for a command or a placeholder that is not known.
    """
    if not command.is_runnable:
        raise Unprepared(
            f"{command.where}: the tests do not know how to run '{command.text}': add its kind to RUNNABLE in "
            f"tests/documentation/documents.py, and to {HERE} what makes it short."
        )
    for pattern, (instead, _) in NOT_EXECUTED.items():
        if re.fullmatch(pattern, command.text):
            return [filled(re.sub(pattern, instead, command.text), command, work)]
    parts = [reduced(command.text)]
    if re.search(r"run --.*\bstudy\.json", command.text):  # planned with all that is printed, and run with less
        parts.insert(0, command.text.replace(" run --", " run list --"))
    return [filled(part, command, work) for part in parts]


def filled(text: str, command: Command, work: Path) -> str:
    """A command line with a path for each placeholder."""
    drawn = re.search(r"run (import_\w+|phantom)", text)
    options = re.sub(r"\brun (list|gather|run) ", "run ", text)
    digest = f"{zlib.crc32(options.encode()):08x}"
    values = {
        "place": place(command),
        "overlays": "".join(f"_{name}" for name in command.configs if name not in NO_OVERLAYS),
        "options": digest,
        "drawn": f"{drawn[1]}_" if drawn else "",
        "prepared": f"prepared_{digest}_" if "run prepare " in text else "",
    }

    def path(match: re.Match) -> str:
        if match[1] not in PLACEHOLDERS:
            raise Unprepared(
                f"{command.where}: nobody knows what <{match[1]}> stands for in '{command.text}': add it to "
                f"PLACEHOLDERS in {HERE}, or write one of {', '.join(f'<{name}>' for name in PLACEHOLDERS)}."
            )
        return str(work / PLACEHOLDERS[match[1]].format(**values))

    return PLACEHOLDER.sub(path, text)
