"""A small cohort, the commands that work on it, and what is compared of their results."""

from __future__ import annotations

import gzip
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from PIL import Image

from scripts.cohort.phantom import write_cohort
from scripts.inference.records import SEAL
from scripts.storage import read_csv
from tests.processes import Command

SIZES = {"spatial_size": [32, 32], "spacing": 5, "channels": [8, 8], "latent_dim": 8}
TRAINING = {
    **SIZES,
    "batch_size": 4,
    "perceptual_weight": 0,
    "max_epochs": 4,
    "warmup_epochs": 1,
    "picture_interval": 2,
}
EVALUATION = {"generated_samples": 8, "ceiling_epochs": 2, "ceiling_channels": [8, 8]}
EVALUATION |= {"page_subjects": 1, "page_changes": [10]}
NUMBER = re.compile(r"(?<![\w.])-?\d+\.\d+(?:e[-+]?\d+)?")
SEALED = re.compile(rf"\"{SEAL}\": \"[0-9a-f]*\"")  # of a record: differs where a last digit does
STEPS = ("prepare", "train", "evaluate", "infer")


def commands(root: Path) -> dict[str, Command]:
    """The steps of a cohort in ``root``, each of which needs the results of those before it."""
    scans = {"dataset_dir": str(root / "scans")}
    files = {**scans, "datalist": str(root / "prepared" / "datalist.json")}
    train, infer = ("train.json", "compact.json"), ("inference.json", "compact.json")
    return {
        "prepare": Command("prepare", ("cohort.json",), {**scans, "workers": 1, "split": [0.5, 0.1, 0.4]}),
        "train": Command("training", train, {**files, **TRAINING}),
        "evaluate": Command("run", (*train, "evaluate.json"), {**files, **TRAINING, **EVALUATION}),
        "infer": Command("run", infer, {**files, **SIZES, "workers": 1, "section": "test"}),
    }


def draw(root: Path, subjects: int = 16) -> None:
    """Phantoms, one of which is broken."""
    write_cohort(root / "scans", subjects=subjects, seed=5, cine_fraction=0, failing=1)


def copy(source: Path, target: Path) -> None:
    """Put a copy of a folder in the place of another."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def results(folder: Path) -> Iterator[Path]:
    """The files that a user finds, without logs of a training, caches and journals."""
    for path in sorted(folder.rglob("*")):
        hidden = {"tensorboard", "cache"} & set(path.parts) or path.name == "examined.jsonl"
        if path.is_file() and not hidden:
            yield path


def contents(folder: Path) -> dict[str, bytes]:
    """What the files of a folder say, whatever the folder is called."""
    return {str(path.relative_to(folder)): content(path).replace(str(folder).encode(), b"") for path in results(folder)}


def check_whole(folder: Path) -> None:
    """Raise for a file that is not whole, of those that have their names already."""
    for path in results(folder):
        if not path.name.startswith(".part-"):
            content(path)


def differences(folder: Path, expected: Path) -> list[str]:
    """Files of which two folders do not say the same.

    Numbers of an inference may differ in their last digits: a run that goes on has other batches, and the sums of a
    convolution are ordered by the size of the batch.
    """
    found, wanted = contents(folder), contents(expected)
    return sorted({*found, *wanted} - {name for name in wanted if alike(found.get(name), wanted[name], name)})


def alike(one: bytes | None, other: bytes, name: str) -> bool:
    """Whether two files say the same, to five digits where they are of an inference."""
    if one == other or one is None or not name.endswith((".csv", ".json", ".nii.gz", "page.png")):
        return one == other
    if name.endswith(".gz"):
        volumes = [nib.Nifti1Image.from_bytes(data).get_fdata() for data in (one, other)]
        return volumes[0].shape == volumes[1].shape and np.allclose(*volumes, rtol=0, atol=1e-4)
    if name.endswith(".png"):
        pages = [np.asarray(Image.open(io.BytesIO(data)), int) for data in (one, other)]
        return pages[0].shape == pages[1].shape and np.abs(pages[0] - pages[1]).max() <= 2
    whole = [SEALED.sub("", data.decode()) for data in (one, other)]
    texts = [NUMBER.split(text) for text in whole]
    numbers = [np.array(NUMBER.findall(text), float) for text in whole]
    return texts[0] == texts[1] and np.allclose(*numbers, rtol=1e-4, atol=1e-4)


def content(path: Path) -> bytes:
    """What a file says; raises for one that is not whole."""
    data = path.read_bytes()
    if path.suffix == ".pt":
        stream = io.BytesIO()
        torch.save(torch.load(path, weights_only=True), stream)
        return stream.getvalue()
    if path.suffix == ".gz":
        return gzip.decompress(data)
    if path.suffix == ".json":
        json.loads(data)
    if path.suffix == ".csv":
        assert data.endswith(b"\n"), path
        read_csv(path)
    if path.suffix == ".png":
        assert data.endswith(b"IEND\xaeB`\x82"), path
    return data
