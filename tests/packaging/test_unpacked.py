"""The archive as its users have it: unpacked somewhere, with nothing of the checkout at hand."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile

import pytest

from scripts.cohort.phantom import write_cohort
from scripts.evaluation.study import command
from scripts.packaging.package import NAME, package
from scripts.storage import read_csv

# What MONAI's users ask of a bundle with one config and no overlay.
LOAD = """
import sys, torch
from pathlib import Path
from monai.bundle import load

root = Path(sys.argv[1])
sys.path.insert(0, str(root))
weights = torch.load(f"{root}/models/model.pt", weights_only=True)
for kind in ("train", "inference"):
    network = load(root.name, bundle_dir=root.parent, workflow_type=kind, device="cpu")
    assert network.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items()), kind
import scripts
assert Path(scripts.__file__).is_relative_to(root)
"""


@pytest.fixture(scope="module")
def unpacked(template, tmp_path_factory):
    """The unpacked archive, in a path with spaces, which nobody may write to."""
    folder = tmp_path_factory.mktemp("packaged")
    with zipfile.ZipFile(package(template, folder / "dist").path) as archive:
        archive.extractall(folder / "read only")
    for path in (folder / "read only").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    return folder / "read only" / NAME


def run(arguments, cwd, path=""):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(path)}
    return subprocess.run(arguments, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def files(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def infer(unpacked, *overlays, **options):
    return command("run", [unpacked / "configs" / name for name in ("inference.json", *overlays)], options)


def test_inference_needs_the_archive_alone_and_leaves_it_as_it_is(unpacked, tmp_path):
    write_cohort(tmp_path / "my scans", subjects=2, seed=1, cine_fraction=0, failing=0, workers=1)
    before = files(unpacked)
    paths = {"dataset_dir": str(tmp_path / "my scans"), "output_dir": str(tmp_path / "the results")}
    done = run(infer(unpacked, "compact.json", **paths, num_workers=0), tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Warning" not in done.stdout  # weights, settings and calibration belong together
    rows = read_csv(tmp_path / "the results" / "attributes.csv")
    assert len(rows) == 2
    assert rows[0]["LVEDV"]
    assert files(unpacked) == before


def test_one_config_alone_has_the_network_of_the_weights(unpacked, tmp_path):
    done = run([sys.executable, "-c", LOAD, str(unpacked)], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
