"""Networks that judge a model: trained once, kept beside what they are of, and refused for anything else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.engines import SupervisedTrainer
from torch import nn

from scripts.checkpoint import differences, finite, fit_weights, read, save
from scripts.storage import output_folder, read_object, write_json


def fit_once(
    network: nn.Module,
    trainer: SupervisedTrainer,
    folder: str | os.PathLike,
    settings: Mapping[str, Any],
    name: str,
    keys: Mapping[str, str],
) -> nn.Module:
    """Train a network, or load it where that has been done.

    Args:
        network: is trained in place.
        trainer: trains it.
        folder: gets the weights ``<name>.pt`` and the settings ``<name>.json``. It can serve several methods, since
            only data decide what is learned.
        settings: what the network depends on; those of one that is found must be the same.
        name: of the network, as its files are called.
        keys: ``folder`` and ``learning_rate`` to the config keys that set them, for messages.

    Raises:
        ValueError: naming settings that differ, or when there are none beside the weights.
        FloatingPointError: for weights that are not finite; they are not saved.
    """
    folder = output_folder(folder, keys["folder"])
    weights, known = folder / f"{name}.pt", folder / f"{name}.json"
    if weights.is_file():
        _refuse_another(known, weights, settings, keys["folder"])
        fit_weights(network, read(weights), weights)
        return network
    print(f"Training the {name.replace('_', ' ')} for {trainer.state.max_epochs} epochs.", flush=True)
    trainer.run()
    if not finite(network.state_dict()):
        raise FloatingPointError(f"the {name.replace('_', ' ')} diverged: lower --{keys['learning_rate']}.")
    write_json(known, settings)
    save(network.state_dict(), weights)
    return network


def _refuse_another(known: Path, weights: Path, settings: Mapping[str, Any], key: str) -> None:
    if not known.is_file():
        raise ValueError(f"'{known}' is missing, so that {weights.name} beside it may be of other data: remove that.")
    remedy = f"remove it and {weights.name} beside it, which is then trained anew"
    # Not lenient: of other strides, weights fit in, and measure something else.
    other = differences(read_object(known, "settings", remedy), settings, lenient=False)
    if other:
        raise ValueError(
            f"{weights.name} is of other data or settings: '{known}' shows that {'; '.join(other)}. Use the configs "
            f"and overlays (such as compact.json, ed.json) that it was trained for, name another --{key}, or {remedy}."
        )
