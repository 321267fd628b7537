"""Checkpoints: the tensors of the network that a config defines, and nothing else."""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import torch
from monai.networks.nets import UNet
from torch import nn

from scripts.packaging.contents import SEGMENTATION
from scripts.packaging.findings import Finding
from scripts.packaging.identifiers import Names, identifiers
from scripts.packaging.texts import PATHS, nodes

# What torch.save puts into an archive: below the archive's name.
MEMBER = re.compile(
    r"data/\d+|data\.pkl|byteorder|version|\.(?:format_version|storage_alignment|data/serialization_id)"
)
SMALL = re.compile(rb"(?:little|big|\d{1,40})\s*")  # all that members other than tensors and the pickle hold
SEGMENTATION_KEYS = {"network", "unet", "spacing", "base_ratio"}


def check_weights(name: str, data: bytes, network: nn.Module | None, names: Names) -> Iterator[Finding]:
    """Findings in a checkpoint.

    Args:
        name: of the file within the bundle.
        data: its content.
        network: that it belongs to; None where the checkpoint tells it, as that of the segmentation does.
        names: of the cohorts at hand.
    """
    if not zipfile.is_zipfile(io.BytesIO(data)):
        yield Finding(name, "is no archive of torch.save: save the network's state dict with torch.save.")
        return
    yield from check_archive(name, data, names)
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is no checkpoint
        words = str(error).splitlines()[0]
        yield Finding(name, f"cannot be read as tensors only ({words}): save the state dict alone.")
        return
    if not isinstance(content, dict):
        yield Finding(name, f"holds a {type(content).__name__}: save the network's state dict alone.")
    elif name == SEGMENTATION:
        yield from check_segmentation(content)
    elif network is not None:
        yield from check_state(name, content, network)


def check_archive(name: str, data: bytes, names: Names) -> Iterator[Finding]:
    """Findings in the archive around the tensors: foreign members, and names that the writer left."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.namelist()
        strings = [text for member in members if member.endswith(".pkl") for text in pickled(archive.read(member))]
        yield from check_members(name, archive)
    root = members[0].split("/")[0]
    if root not in ("archive", PurePosixPath(name).stem):
        yield Finding(
            name,
            f"is an archive named '{root}' inside, after the file that it was written to, which may tell a machine or "
            "a subject: save it to an open file, with torch.save(weights, file), and calibrate it again.",
        )
    for member in members:
        if not (member.startswith(f"{root}/") and MEMBER.fullmatch(member[len(root) + 1 :])):
            yield Finding(f"{name}, member '{member}'", "is not of torch.save: save the weights anew.")
    for text in dict.fromkeys(strings):
        paths = [f"'{match.group()}', a path of one machine" for match in PATHS.finditer(text)]
        for found in (*identifiers(text, names, name), *paths):
            yield Finding(f"{name}, '{text[:60]}'", f"names {found}: save the network's state dict alone.")


def check_members(name: str, archive: zipfile.ZipFile) -> Iterator[Finding]:
    """Findings in what surrounds the tensors: notes, doubles, and content that torch.save does not write."""
    members = archive.namelist()
    noted = [entry.filename for entry in archive.infolist() if entry.comment]
    if archive.comment or noted or len(set(members)) < len(members):
        yield Finding(name, "has comments or doubles in its archive: save it anew with torch.save.")
    for member in members:
        content = archive.read(member)
        if member.endswith("data.pkl") and pickle_end(content) != len(content):
            yield Finding(f"{name}, member '{member}'", "goes on behind its end: save it anew with torch.save.")
        if re.search(r"(?:version|byteorder|alignment|_id)$", member) and not SMALL.fullmatch(content):
            yield Finding(f"{name}, member '{member}'", "holds what torch.save does not write: save it anew.")


def pickle_end(data: bytes) -> int:
    """Where a pickle, which is not executed, ends."""
    return max(position for _, _, position in pickletools.genops(data)) + 1


def pickled(data: bytes) -> Iterator[str]:
    """Every string in a pickle, which is not executed."""
    for _, argument, _ in pickletools.genops(data):
        if isinstance(argument, str | bytes):
            yield argument if isinstance(argument, str) else argument.decode("utf-8", "replace")


def check_segmentation(content: Mapping[str, Any]) -> Iterator[Finding]:
    """Findings in the checkpoint of a segmentation, which holds its network's arguments too."""
    for key in content.keys() - SEGMENTATION_KEYS:
        yield Finding(f"{SEGMENTATION}, key '{key}'", "is not one that a segmentation has: take it out.")
    for key in SEGMENTATION_KEYS - content.keys():
        yield Finding(f"{SEGMENTATION}, key '{key}'", "is missing: 'run training' with segment.json writes it.")
    for key, value in nodes([content.get("spacing"), content.get("base_ratio")]):
        if key and not isinstance(value, int | float):
            yield Finding(SEGMENTATION, "has a spacing or base_ratio that is no number: train it anew.")
    try:
        with torch.device("meta"):
            network = UNet(**content["unet"])
    except Exception as error:  # whatever a UNet makes of wrong arguments
        yield Finding(f"{SEGMENTATION}, key 'unet'", f"makes no network ({error}): train it anew.")
        return
    yield from check_state(SEGMENTATION, content["network"], network)


def check_state(name: str, state: Mapping[str, Any], network: nn.Module) -> Iterator[Finding]:
    """Findings in a state dict: what is not of the network, and tensors that carry more than they show."""
    own = network.state_dict()
    for key in state:
        if key not in own:
            yield Finding(f"{name}, key '{key}'", "is not of the network: save its state dict alone.")
        elif not isinstance(state[key], torch.Tensor):
            yield Finding(f"{name}, key '{key}'", f"is a {type(state[key]).__name__}, no tensor: save the state dict.")
        elif state[key].shape != own[key].shape:
            yield Finding(
                f"{name}, key '{key}'",
                f"is {tuple(state[key].shape)}, the config's {tuple(own[key].shape)}: name the overlays that it was "
                "trained with by --overlay.",
            )
        elif state[key].dtype != own[key].dtype:
            yield Finding(f"{name}, key '{key}'", f"is {state[key].dtype}, the network's {own[key].dtype}: save it so.")
        elif not state[key].isfinite().all():
            yield Finding(f"{name}, key '{key}'", "has values that are not finite: train it anew.")
        elif state[key].untyped_storage().nbytes() > state[key].numel() * state[key].element_size():
            yield Finding(f"{name}, key '{key}'", "carries more values than it shows: clone() it before it is saved.")
    for key in own.keys() - state.keys():
        yield Finding(f"{name}, key '{key}'", "is missing: name the overlays that it was trained with by --overlay.")
