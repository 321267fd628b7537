"""The segmentation as its users run it: train it, and prepare subjects that have no masks."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from scripts import checkpoint
from scripts.networks import VariationalAutoencoder
from scripts.storage import read_csv
from tests.test_bundle import bundle

TINY = {
    "channels": [8, 16, 32],
    "spatial_size": [96, 96],
    "spacing": 2.5,
    "max_epochs": 50,
    "batch_size": 2,
    "max_rotation": 0.2,
}


@pytest.fixture(scope="module")
def segmented(prepared, phantoms, tmp_path_factory):
    """A network trained for some seconds on phantoms."""
    output = tmp_path_factory.mktemp("segmented")
    paths = {"dataset_dir": str(phantoms), "datalist": str(prepared / "datalist.json"), "output_dir": str(output)}
    code, text = bundle("training", "segment.json", **paths, **TINY)
    assert code == 0, text[-3000:]
    return output


@pytest.mark.slow
def test_training_reports_dice_of_held_out_subjects(segmented):
    assert {"segmentation.pt", "segmentation"} <= {path.name for path in segmented.iterdir()}
    rows = read_csv(segmented / "segmentation" / "segmentation.csv")
    assert len(rows) == 2 * len({row["pseudonym"] for row in rows}) > 0
    assert {row["pseudonym"] for row in rows} == {row["pseudonym"] for row in read_csv(segmented / "pseudonyms.csv")}
    assert np.mean([float(row["LV_Dice"]) for row in rows]) > 0.8
    assert b"phantom" not in (segmented / "segmentation.pt").read_bytes()


@pytest.mark.slow
def test_subjects_without_masks_are_prepared_by_it(segmented, phantoms, tmp_path):
    scans = tmp_path / "scans"
    shutil.copytree(phantoms, scans, ignore=shutil.ignore_patterns("seg_*", "label_*"))
    code, text = bundle("prepare", "cohort.json", dataset_dir=str(scans), output_dir=str(segmented))
    assert code == 0, text[-3000:]
    rows = read_csv(segmented / "cohort.csv")
    included = [row for row in rows if row["status"] == "included"]
    assert len(included) >= 14, [row["reason"] for row in rows]
    assert {row["mask"] for row in included} == {"predicted"}


@pytest.mark.slow
def test_inference_takes_the_network_beside_the_model(segmented, phantoms, tmp_path):
    scans = tmp_path / "scans"
    for name in ("phantom0001", "phantom0006"):
        shutil.copytree(phantoms / name, scans / name, ignore=shutil.ignore_patterns("seg_*", "label_*"))
    sizes = {"channels": [8, 8, 8], "latent_dim": 8}
    network = VariationalAutoencoder(2, (64, 64), norm=("group", {"num_groups": 8}), **sizes)
    checkpoint.save(network.state_dict(), segmented / "model.pt")
    paths = {"dataset_dir": str(scans), "output_dir": str(tmp_path / "out"), "ckpt_path": str(segmented / "model.pt")}
    code, text = bundle("run", "inference.json", "compact.json", **paths, **sizes)
    assert code == 0, text[-3000:]
    assert [row["mask"] for row in read_csv(tmp_path / "out" / "attributes.csv")] == ["predicted"] * 2
    assert len(list((tmp_path / "out").glob("phantom*/page.png"))) == 2
