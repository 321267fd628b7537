"""Refuse keys that no config declares, which MONAI accepts in silence."""

from __future__ import annotations

import difflib
import inspect
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from monai.bundle import ConfigParser, run
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS, ID_SEP_KEY

from scripts import bundle_root

# What ``run`` itself takes, and what its experiment tracking adds to a config.
RUN_KEYS = {*inspect.signature(run).parameters, *DEFAULT_MLFLOW_SETTINGS["configs"]}


def reject_unknown_keys() -> None:
    """Check the overrides and overlays of the ``monai.bundle run`` that evaluates this config.

    MONAI tells a config neither its overrides nor its files, so they are read from the call of ``run``; a workflow
    that was made in another way is not checked.

    Raises:
        ValueError: naming the first unknown key and the nearest known one.
    """
    launched = launch()
    if launched is None:
        return
    files, overrides = launched
    refuse_other_code(files[0])
    overlays = [key for file in files[1:] for key in ConfigParser.load_config_file(file)]
    declared = declared_keys(files)
    check_keys(overrides, [*declared, *RUN_KEYS])
    check_keys(overlays, declared | keys_beside(files[0]))
    config = ConfigParser.load_config_files([str(file) for file in files])
    for key in overrides:
        check_path(key, config)


def refuse_other_code(config: str | Path) -> None:
    """Refuse the config of another bundle than the one whose code runs.

    Python puts the folder that it is started in first on its path: started in one bundle with the config of another
    one, it would take the code and the weights of the first.

    Raises:
        ValueError: naming both bundles.
    """
    root = Path(config).resolve().parent.parent
    own = Path(bundle_root()).resolve()
    if (root / "scripts" / "__init__.py").is_file() and (root / "configs").is_dir() and root != own:
        raise ValueError(
            f"'{config}' belongs to the bundle '{root}', but the code that runs is of '{own}', which Python found "
            "first: start the command in another folder."
        )


def launch() -> tuple[list[str | Path], dict[str, Any]] | None:
    """Config files and overrides of the ``monai.bundle run`` that leads here, if there is one."""
    call = bundle_run()
    if call is None:
        return None
    arguments = call.f_locals
    overrides = dict(arguments["override"])
    if arguments["args_file"]:
        overrides |= ConfigParser.load_config_files(arguments["args_file"])
    files = overrides.get("config_file") or arguments["config_file"]
    return [files] if isinstance(files, str | Path) else list(files), overrides


def bundle_run() -> FrameType | None:
    """The frame of ``monai.bundle.scripts.run`` that leads here, if there is one."""
    frame: FrameType | None = sys._getframe()
    while frame and (frame.f_code.co_name, frame.f_globals.get("__name__")) != ("run", "monai.bundle.scripts"):
        frame = frame.f_back
    return frame


def declared_keys(files: Sequence[str | Path]) -> set[str]:
    """Keys of the first config and of all of this bundle's own ones, and keys that any config in use refers to.

    A key of a user's own overlay counts when something refers to it; one that nothing reads is a misspelling.
    """
    own = [file for file in files if Path(file).absolute().parent == Path(files[0]).absolute().parent]
    declared = {key for path in own for key in ConfigParser.load_config_file(path)}
    text = json.dumps(ConfigParser.load_config_files([str(file) for file in files]))
    return declared | set(re.findall(r"[@%](\w+)", text))


def keys_beside(path: str | Path) -> set[str]:
    """Keys of all configs beside one, any of which an overlay may set: it serves several of them."""
    others = [other for other in Path(path).parent.glob("*.json") if other.name != "metadata.json"]
    return {key for other in others for key in ConfigParser.load_config_file(other)}


def check_path(key: str, config: Mapping[str, Any]) -> None:
    """Raise for a nested key that its section lacks; the arguments of a ``_target_`` are its own matter."""
    node: Any = config
    for part in key.replace(ID_SEP_KEY, "#").split("#"):
        if not isinstance(node, dict) or "_target_" in node:
            return
        if part not in node and node is not config:
            near = difflib.get_close_matches(part, node, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"known there: {', '.join(sorted(node))}."
            raise ValueError(f"no config declares the key '{key}': {hint}")
        node = node.get(part)


def check_keys(keys: Iterable[str], declared: Iterable[str]) -> None:
    """Raise for the first key whose top level is not declared."""
    declared = set(declared)
    for key in keys:
        top = key.replace(ID_SEP_KEY, "#").split("#")[0]
        if top not in declared:
            near = difflib.get_close_matches(top, declared, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(sorted(declared))}."
            raise ValueError(f"no config declares the key '{key}': {hint}")
