"""The bundle as users get it: packaged, and unpacked again."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from scripts.api import load
from scripts.cohort.layout import write_volume
from scripts.cohort.phantom import write_cohort
from scripts.packaging.package import NAME, package
from tests.conftest import ROOT

OFFLINE = {f"{protocol}_proxy": "http://127.0.0.1:9" for protocol in ("http", "https")}  # where nobody listens
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}


def run_offline(*arguments, cwd, timeout=300):
    """Run this Python without the checkout on its path and without internet."""
    environment = {**os.environ, **OFFLINE, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    process = subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, env=environment, timeout=timeout, **PIPES)
    assert process.returncode == 0, process.stdout[-3000:]
    return process.stdout


@pytest.fixture(scope="session")
def archive(tmp_path_factory) -> Path:
    """The zip of the bundle, with the weights that it ships."""
    return package(ROOT / "bundle", tmp_path_factory.mktemp("archive")).path


@pytest.fixture(scope="session")
def packaged(archive, tmp_path_factory) -> Path:
    """The folder of the unpacked bundle."""
    folder = tmp_path_factory.mktemp("packaged")
    with zipfile.ZipFile(archive) as content:
        content.extractall(folder)
    return folder / NAME


@pytest.fixture(scope="session")
def unseen(tmp_path_factory) -> Path:
    """A hundred synthetic hearts of another seed than those that the shipped weights have learned from."""
    root = tmp_path_factory.mktemp("unseen")
    write_cohort(root, subjects=100, seed=1000, cine_fraction=0, failing=0)
    return root


@pytest.fixture(scope="session")
def crops(packaged, unseen) -> torch.Tensor:
    """What the network sees of them, (100, 2, 64, 64), in the order of their names."""
    model = load(packaged, device="cpu")
    return torch.stack([model.crop(folder) for folder in sorted(unseen.glob("phantom*"))])


@pytest.fixture(scope="session")
def random_scans(tmp_path_factory) -> Path:
    """Scans of pure noise in the UKBB format, with masks that pass the quality control."""
    root, generator = tmp_path_factory.mktemp("scans"), np.random.default_rng(0)
    for number in range(8):
        for phase, shrink in (("ED", 1.0), ("ES", 0.8)):
            folder = root / f"case{number}"
            folder.mkdir(exist_ok=True)
            affine = np.diag([1.8, 1.8, 10, 1])
            noise = generator.normal(100, 20, (48, 48, 8)).astype(np.float32)
            write_volume(folder / f"sa_{phase}.nii.gz", noise, affine)
            write_volume(folder / f"label_sa_{phase}.nii.gz", mask(shrink * (1 + number / 40)), affine)
    return root


@pytest.fixture(scope="session")
def cohort(packaged, random_scans, tmp_path_factory) -> dict[str, str]:
    """The paths of those scans as a cohort, prepared by the packaged config."""
    paths = {"dataset_dir": str(random_scans), "output_dir": str(tmp_path_factory.mktemp("cohort"))}
    config = str(packaged / "configs" / "cohort.json")
    options = {"run_id": "prepare", "workflow_type": None, "split": [0.5, 0.25, 0.25], "workers": 1}
    workflow = ConfigWorkflow(config, **files(packaged), **options, **paths)
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return paths | {"datalist": paths["output_dir"] + "/datalist.json"}


def files(bundle: Path) -> dict[str, str]:
    """What the zoo hands to every workflow."""
    names = {"logging_file": "logging.conf", "meta_file": "metadata.json"}
    return {argument: str(bundle / "configs" / name) for argument, name in names.items()}


def mask(scale: float) -> np.ndarray:
    """A label mask: an LV in a ring of myocardium, an RV beside it, larger towards slice 0."""
    x, y = np.meshgrid(np.arange(48), np.arange(48), indexing="ij")
    labels = np.zeros((48, 48, 8), np.uint8)
    for z in range(7):
        size = scale * (8 - 0.6 * z)
        labels[..., z][np.hypot(x - 15, y - 24) < size] = 3
        labels[..., z][np.hypot(x - 28, y - 24) < size + 2] = 2
        labels[..., z][np.hypot(x - 28, y - 24) < size] = 1
    return labels
