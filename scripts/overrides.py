"""Refuse overrides of keys that no config declares, which MONAI accepts in silence."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.utils import ID_SEP_KEY


def reject_unknown_keys() -> None:
    """Check the overrides of the ``monai.bundle run`` that evaluates this config.

    MONAI tells a config neither its overrides nor its files, so they are read from the call of ``run``; a workflow
    that was made in another way is not checked.

    Raises:
        ValueError: naming the first unknown key and the nearest known one.
    """
    call = bundle_run()
    if call is None:
        return
    arguments = call.f_locals
    overrides = dict(arguments["override"])
    if arguments["args_file"]:
        overrides |= ConfigParser.load_config_files(arguments["args_file"])
    check_keys(
        overrides, [*declared_keys(overrides.get("config_file") or arguments["config_file"]), *call.f_code.co_varnames]
    )


def bundle_run() -> FrameType | None:
    """The frame of ``monai.bundle.scripts.run`` that leads here, if there is one."""
    frame: FrameType | None = sys._getframe()
    while frame and (frame.f_code.co_name, frame.f_globals.get("__name__")) != ("run", "monai.bundle.scripts"):
        frame = frame.f_back
    return frame


def declared_keys(config_file: Any) -> list[str]:
    """Top-level keys of the configs in use."""
    files = [config_file] if isinstance(config_file, str | Path) else list(config_file or [])
    return list(ConfigParser.load_config_files(files))


def check_keys(keys: Iterable[str], declared: Iterable[str]) -> None:
    """Raise for the first key whose top level is not declared."""
    declared = list(declared)
    for key in keys:
        top = key.replace(ID_SEP_KEY, "#").split("#")[0]
        if top not in declared:
            near = difflib.get_close_matches(top, declared, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(sorted(declared))}."
            raise ValueError(f"no config declares the key '{key}': {hint}")
