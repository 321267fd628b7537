"""Configs that stand for the packaged weights: what reads one of them alone gets the network that the weights fit.

The checkout's train.json and inference.json have the paper's settings; the weights may be of an overlay such as
compact.json. MONAI's ``load`` and the model zoo's checks read one config and no overlay, and ``load`` leaves a weight
whose shape does not fit at random without a word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import nn

from scripts.packaging.contents import INFERENCE, TRAINING

PAPER = "configs/paper.json"  # brings back what the overlays have replaced


def merge_overlays(contents: Mapping[str, bytes], overlays: Sequence[str]) -> dict[str, bytes]:
    """The configs that overlays change, and the overlay that undoes it.

    Args:
        contents: of the bundle.
        overlays: names of files in configs, the last one wins.

    Raises:
        FileNotFoundError: for an overlay that the bundle lacks.
        ValueError: for a bundle that has been packaged already, whose configs are no longer the paper's.
    """
    if PAPER in contents:
        raise ValueError(f"{PAPER} shows that this bundle was unpacked from an archive: package the checkout.")
    absent = [name for name in overlays if f"configs/{name}" not in contents]
    if absent:
        raise FileNotFoundError(f"--overlay: bundle/configs has no {', '.join(absent)}.")
    values = {key: value for name in overlays for key, value in json.loads(contents[f"configs/{name}"]).items()}
    if not values:
        return {}
    paper = {key: value for key, value in json.loads(contents[TRAINING]).items() if key in values}
    lines = ",\n".join(f'    "{key}": {json.dumps(value)}' for key, value in paper.items())
    merged = {name: with_values(contents[name].decode(), values).encode() for name in (TRAINING, INFERENCE)}
    return merged | {PAPER: f"{{\n{lines}\n}}\n".encode()}


def with_values(text: str, values: Mapping[str, Any]) -> str:
    """Replace values of a config's own top-level keys, each on a line of its own, and leave all else as it is written.

    Raises:
        ValueError: for a value that is not on one line.
    """
    content = json.loads(text)
    own = {key: value for key, value in values.items() if key in content}
    for key, value in own.items():
        line = re.compile(rf'^(    "{re.escape(key)}": )(.*?)(,?)$', re.MULTILINE)
        text = line.sub(rf"\g<1>{_escaped(json.dumps(value))}\g<3>", text, count=1)
    try:
        written = json.loads(text)
    except json.JSONDecodeError:
        written = None
    if written != content | own:
        raise ValueError(f"the keys {', '.join(own)} of a config stand on more than one line: write each on one.")
    return text


def _escaped(text: str) -> str:
    """A text as a replacement of ``re.sub`` that means itself."""
    return text.replace("\\", r"\\")


class ModelConfig:
    """What a packaged config says of its network.

    Args:
        text: of inference.json with the overlays of the weights.

    Attributes:
        network: on the device ``meta``, which has shapes and no values.
        settings: that the training must have had.
        values: the config's own numbers.
    """

    def __init__(self, text: bytes) -> None:
        parser = ConfigParser(json.loads(text))
        with torch.device("meta"):
            self.network: nn.Module = parser.get_parsed_content("network_def")
        self.settings: dict[str, Any] = parser.get_parsed_content("settings")
        keys = ("spatial_size", "latent_dim", "attributes")
        self.values: dict[str, Any] = {key: parser.get_parsed_content(key) for key in keys}
        self.values |= parser.get_parsed_content("view").settings
