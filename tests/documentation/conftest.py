"""Where documented commands run: copies of the checkout and of a packaged bundle, small scans, and no internet."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import torchvision

from scripts.cohort.phantom import write_cohort
from scripts.cohort.prepare import prepare
from scripts.packaging.package import package
from scripts.perceptual import OFFLINE_TRUNKS, TRUNKS_VARIABLE, trunks_folder
from tests.conftest import CALM, ROOT, SHARED
from tests.documentation.documents import blocks, documents, servers
from tests.documentation.reductions import ENVIRONMENT, reduced
from tests.packaging.examples import add_model
from tests.zoo.conftest import OFFLINE

NOT_COPIED = (".git", ".venv*", "output", "dist", "build", "trunks", "__pycache__", ".pytest_cache", ".ruff_cache")
OF_MAKE = ("MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "MFLAGS", "VENV", "PYTHON")  # what it hands to a make below it
SCHEMA = "schema/meta_schema_20240725.json"
ACDC_VALUES = np.array([0, 3, 2, 1], np.uint8)  # of our labels 0 to 3
MNMS_TABLE = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"
MNMS_ROWS = """,External code,VendorName,Vendor,Centre,ED,ES,Age,Pathology,Sex,Height,Weight
7,A0S9V9,SIEMENS,A,1,0,1,41,DCM,F,170.0,
"""
SCANS = {"size": (112, 112), "spacing": (2.0, 2.0, 10.0), "cine_fraction": 0, "failing": 0}


@pytest.fixture(scope="session")
def work(tmp_path_factory) -> Path:
    """The folder in which placeholders stand for files, and in which commands write."""
    folder = tmp_path_factory.mktemp("documentation")
    copy_checkout(folder / "checkout")
    unpack_bundle(folder)
    write_cohort(folder / "scans", subjects=24, seed=3, **SCANS)
    prepare(folder / "scans", folder / "cohort")
    for subject in sorted((folder / "scans").glob("phantom*"))[:2]:
        shutil.copytree(subject, folder / "new_scans" / subject.name)
    write_foreign(folder, folder / "scans" / "phantom0001")
    if (SHARED / SCHEMA).is_file():
        shutil.copy(SHARED / SCHEMA, folder / "schema.json")
    write_trunks(folder / "trunks")
    write_queue(folder)
    return folder


def copy_checkout(folder: Path) -> None:
    """What git tracks, weights to package, and an environment that make takes for its own and finds up to date."""
    shutil.copytree(ROOT, folder, symlinks=True, ignore=shutil.ignore_patterns(*NOT_COPIED))
    if not (folder / "bundle" / "models" / "model.pt").is_file():
        shutil.rmtree(folder / "bundle" / "models", ignore_errors=True)
        add_model(folder / "bundle")
    (folder / ".venv").mkdir()
    for path in Path(sys.prefix).iterdir():
        if path.name != ".ready":
            (folder / ".venv" / path.name).symlink_to(path)
    (folder / ".venv" / ".ready").touch()


def unpack_bundle(folder: Path) -> None:
    """The bundle as users get it."""
    archive = package(folder / "checkout" / "bundle", folder / "dist").path
    with zipfile.ZipFile(archive) as content:
        content.extractall(folder / "dist")
    next(path for path in (folder / "dist").iterdir() if path.is_dir()).rename(folder / "bundle")


def write_foreign(folder: Path, subject: Path) -> None:
    """A phantom as ACDC, M&Ms and a scanner ship it."""
    images = [nib.load(subject / f"sa_{phase}.nii.gz") for phase in ("ED", "ES")]
    masks = [np.asarray(nib.load(subject / f"label_sa_{phase}.nii.gz").dataobj) for phase in ("ED", "ES")]
    scans, affine = [np.asarray(image.dataobj).astype(np.int16) for image in images], images[0].affine

    def save(path: Path, voxels: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(voxels, affine), path)

    patient = folder / "ACDC" / "training" / "patient001"
    for frame, scan, mask in zip((1, 9), scans, masks, strict=True):
        save(patient / f"patient001_frame{frame:02d}.nii.gz", scan)
        save(patient / f"patient001_frame{frame:02d}_gt.nii.gz", ACDC_VALUES[mask])
    (patient / "Info.cfg").write_text("ED: 1\nES: 9\nGroup: NOR\nHeight: 170.0\nNbFrame: 12\nWeight: 70.0\n")

    labeled = folder / "MnMs" / "OpenDataset" / "Training" / "Labeled" / "A0S9V9"
    save(labeled / "A0S9V9_sa.nii.gz", np.stack(scans, 3))
    save(labeled / "A0S9V9_sa_gt.nii.gz", np.stack(masks, 3).astype(np.uint8))
    (folder / "MnMs" / "OpenDataset" / MNMS_TABLE).write_text(MNMS_ROWS, encoding="utf-8-sig")

    from tests.cohort.test_dicom import make_cine, write_dicom

    write_dicom(folder / "DICOM" / "1234567_20209_2_0", make_cine())


def write_trunks(folder: Path) -> None:
    """The trunks that ``make weights`` has fetched, or random ones: what they compute is tested elsewhere."""
    folder.mkdir()
    for name in OFFLINE_TRUNKS:
        if (trunks_folder() / f"{name}.pt").is_file():
            (folder / f"{name}.pt").symlink_to(trunks_folder() / f"{name}.pt")
        else:
            torch.save(getattr(torchvision.models, name)().features.state_dict(), folder / f"{name}.pt")


def write_queue(folder: Path) -> None:
    """A SLURM that starts its jobs at once, and the profile that the documents print, for two workers."""
    from tests.test_cluster import SBATCH

    (folder / "queue").mkdir()
    for name, script in (("sbatch", SBATCH.format(folder=folder / "queue")), ("scancel", "#!/bin/sh\nkill $1\n")):
        (folder / "queue" / name).write_text(script)
        (folder / "queue" / name).chmod(0o755)
    texts = [block.text for text in documents(ROOT).values() for block in blocks(text) if block.language == "yaml"]
    profile = next((text for text in texts if text.startswith("jobqueue:")), "")
    profile = re.sub(r"memory: \S+", "memory: 6GB", re.sub(r"(cores|processes): \d+", r"\1: 2", profile))
    config = folder / "home" / ".config" / "dask" / "jobqueue.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(profile.replace("<partition>", "heart"))


@pytest.fixture(scope="session")
def environment(work) -> dict[str, str]:
    """Of the commands: that of the tests, another home, no internet, and no path to this checkout."""
    path = f"{work / 'queue'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = {"PATH": path, "HOME": str(work / "home"), "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    given = {name: value for name, value in os.environ.items() if name not in OF_MAKE}
    return {**given, **OFFLINE, **ENVIRONMENT, **own, TRUNKS_VARIABLE: str(work / "trunks")}


@pytest.fixture(scope="session")
def cluster(work, environment) -> Iterator[None]:
    """The Dask cluster that the documents tell to start; that of the other tests has another checkout's code."""
    processes, file = [], work / "home" / "scheduler.json"
    lines = dict.fromkeys(line for text in documents(ROOT).values() for line in servers(text))
    for number, printed in enumerate(lines):
        line = f"exec {reduced(printed)} --no-dashboard {'--port 0' if ' scheduler ' in printed else ''}"
        with open(work / f"dask{number}.log", "w") as log:
            started = subprocess.Popen(["bash", "-c", line], cwd=work, env=environment | CALM, stdout=log, stderr=log)
        processes.append(started)
    while not file.exists():
        logs = [log.read_text()[-1000:] for log in sorted(work.glob("dask*.log"))]
        assert processes, "no comment of a bash block tells to start 'dask scheduler' and 'dask worker'"
        assert all(process.poll() is None for process in processes), logs
        time.sleep(0.1)
    assert json.loads(file.read_text())["address"]
    yield
    for process in reversed(processes):
        process.terminate()
        process.wait(30)
