"""The cohort road on the 100 training patients of ACDC; skipped where they are not at hand."""

from __future__ import annotations

import math
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose
from scipy import ndimage

from scripts.cohort.acdc import import_acdc
from scripts.cohort.attributes import VOLUMES
from scripts.cohort.datalist import load_items
from scripts.cohort.layout import LABELS, PHASES
from scripts.cohort.prepare import prepare
from scripts.storage import read_csv
from scripts.transforms import LoadSubjectd, VentricleCropd, ViewsToChannelsd
from scripts.views import View
from tests.conftest import ROOT, shared

VOLUME_COLUMNS = {"LV": "LV_ml", "RV": "RV_ml", "Myo": "MYO_ml"}


@pytest.fixture(scope="module")
def acdc(tmp_path_factory):
    """ACDC in the UKBB format with its cohort, and the processor seconds of the first and of the second run."""
    source, root = shared("data/acdc/training"), tmp_path_factory.mktemp("acdc")
    times = [processor_seconds()]
    import_acdc(source, root / "dataset")
    prepare(root / "dataset", root / "out")
    times.append(processor_seconds())
    prepare(root / "dataset", root / "out")
    times.append(processor_seconds())
    return root, *np.diff(times)


def processor_seconds():
    """Of this process and its ended workers: unlike the clock, the same on a busy machine."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


@pytest.fixture(scope="module")
def cohort(acdc):
    return {row["subject"]: row for row in read_csv(acdc[0] / "out" / "cohort.csv")}


def test_all_patients_are_included(cohort):
    assert len(cohort) == 100
    assert {row["status"] for row in cohort.values()} == {"included"}


def test_volumes_are_the_reference(cohort):
    golden = read_csv(shared("golden/acdc_training_volumes.csv"))
    for row in golden:
        for structure, column in VOLUME_COLUMNS.items():
            ours = float(cohort[row["patient"]][f"{structure}{row['phase']}V"])
            assert ours == pytest.approx(float(row[column]), abs=0.01)
    assert len(golden) == 200


def test_patients_keep_their_diagnosis(cohort):
    groups = [row["diagnosis"] for row in cohort.values()]
    assert {group: groups.count(group) for group in set(groups)} == dict.fromkeys(
        ("NOR", "DCM", "HCM", "MINF", "RV"), 20
    )


def test_images_keep_their_voxels(acdc):
    original = nib.load(shared("data/acdc/training") / "patient090" / "patient090_frame11.nii.gz")
    written = nib.load(acdc[0] / "dataset" / "patient090" / "sa_ES.nii.gz")
    assert np.array_equal(original.dataobj, written.dataobj)
    assert original.get_data_dtype() == written.get_data_dtype()


def test_fast(acdc):
    assert acdc[1] / 2 < 60  # on two cores
    assert acdc[2] < 5


@pytest.mark.skipif(sys.platform != "linux", reason="reads memory under /proc")
def test_prepare_stays_within_memory(acdc, tmp_path):
    command = [sys.executable, "-m", "monai.bundle", "run", "prepare", "--config_file", "bundle/configs/cohort.json"]
    command += ["--dataset_dir", str(acdc[0] / "dataset"), "--output_dir", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, proportional_memory(process.pid))
        time.sleep(0.2)
    assert process.returncode == 0
    assert 0 < peak < 1.5 * 2**30


def proportional_memory(parent):
    """Bytes of a process and its children, pages that they share counted once."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if parent in (int(folder.name), int(re.search(r"PPid:\s+(\d+)", (folder / "status").read_text())[1])):
                total += int(re.search(r"Pss:\s+(\d+)", (folder / "smaps_rollup").read_text())[1]) * 1024
        except OSError:  # ended while it was looked at
            continue
    return total


@pytest.fixture(scope="module")
def crops(acdc):
    """LV and RV of all patients as soft maps, cropped like their images: patient and phase to two (128, 128)."""
    load, crop, found = LoadSubjectd(), VentricleCropd(PHASES, (128, 128), 1.8), {}
    for item in load_items(acdc[0] / "out" / "datalist.json", acdc[0] / "dataset"):
        for structure in ("LV", "RV"):
            data = load(item)
            for phase in PHASES:
                data[f"image_{phase}"].copy_(data[f"mask_{phase}"].as_tensor() == LABELS[structure])
            for phase, key in zip(PHASES, crop.keys, strict=True):
                found.setdefault((item["subject"], phase), []).append(crop(data)[key][0, ..., 0].numpy())
    return found


def test_every_crop_is_centered_and_turned(crops):
    assert len(crops) == 200
    for name, structures in crops.items():
        lv, rv = (np.array(ndimage.center_of_mass(structure)) for structure in structures)
        down, right = rv - lv
        assert np.abs(lv - 63.5).max() < 0.2, name
        assert abs(math.degrees(math.atan2(down, -right))) < 1, name


def test_a_crop_keeps_the_area_of_the_lv(crops, cohort):
    for (subject, phase), (lv, _) in crops.items():
        area = float(cohort[subject][f"LV{phase}A"])
        assert lv.sum() * 0.18**2 == pytest.approx(area, rel=0.02)


def test_a_crop_overlays_its_own_slice(acdc):
    item = load_items(acdc[0] / "out" / "datalist.json", acdc[0] / "dataset")[0]
    crop = VentricleCropd(PHASES, (128, 128), 1.8)
    data = LoadSubjectd()(item)
    mask = (data["mask_ED"].as_tensor() == LABELS["LV"]).float()
    data["image_ED"].copy_(mask)
    back = crop.inverse(crop(data))["image_ED"]
    basal = item["basal_slice_ED"]
    assert torch.nonzero(back.abs().sum((0, 1, 2))).flatten().tolist() == [basal]
    there, here = (ndimage.center_of_mass(volume[0, ..., basal].numpy()) for volume in (mask, back))
    assert np.allclose(there, here, atol=0.2)


def test_stacks_are_centered_and_their_maps_have_the_volumes_of_the_masks(acdc):
    view = View(PHASES, "stack", "masks")
    transform = Compose([LoadSubjectd(), VentricleCropd(view, (64, 64), 2.5), ViewsToChannelsd(view)])
    errors = []
    for item in load_items(acdc[0] / "out" / "datalist.json", acdc[0] / "dataset"):
        image = transform(item)["image"]
        volumes = view.volumes(image, spacing=2.5)
        errors.append([abs(float(volumes[name]) / item[name] - 1) for name in VOLUMES])
        heart = view.slice_maps(image)[:, :, 0].sum((0, 1)).numpy()  # the LV of all slices and phases
        assert np.abs(np.subtract(ndimage.center_of_mass(heart), 31.5)).max() < 2, item["subject"]
    assert np.mean(errors, axis=0).max() < 0.025
