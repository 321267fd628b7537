"""The shipped weights do on hearts that they have never seen what the card says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from scipy import ndimage

from scripts.api import load
from scripts.calibration.calibration import Calibration
from scripts.checkpoint import fingerprint
from scripts.counterfactual import counterfactuals_of
from scripts.metrics import spearman
from scripts.storage import read_csv


@pytest.fixture(scope="module")
def model(packaged):
    return load(packaged, device="cpu")


@pytest.fixture(scope="module")
def codes(model, crops):
    return model.encode(crops)


def test_they_were_trained_by_the_configs_that_the_card_names(packaged, tmp_path):
    """All that a training notes of its settings, but for the cohort's hash."""
    parser = ConfigParser()
    parser.read_config([str(packaged / "configs" / name) for name in ("train.json", "phantom.json")])
    parser.update({"cohort_hash": None, "output_dir": str(tmp_path)})
    noted = json.loads((packaged / "models" / "settings.json").read_text())
    assert json.loads(json.dumps(parser.get_parsed_content("settings"))) == noted | {"cohort": None}


def test_a_reconstruction_is_nearer_to_its_heart_than_the_mean_heart_is(model, crops, codes):
    error = (model.decode(codes) - crops).square().mean((1, 2, 3))
    spread = (crops.mean(0) - crops).square().mean((1, 2, 3))
    assert (error < spread).float().mean() > 0.95
    assert error.mean() < 0.5 * spread.mean()


def test_each_dimension_grows_with_its_volume(model, unseen, codes):
    rows = {row["subject"]: row for row in read_csv(unseen / "info.csv")}
    volumes = np.array([[float(rows[name][volume]) for volume in model.attributes] for name in sorted(rows)])
    correlations = spearman(codes.numpy(), volumes)
    assert (correlations > 0.85).all(), dict(zip(model.attributes, correlations, strict=True))


@pytest.mark.parametrize(("attribute", "phase"), [("LVEDV", 0), ("LVESV", 1)])
def test_a_walk_along_its_dimension_grows_the_left_ventricle(attribute, phase, model, codes):
    dimension = model.attributes.index(attribute)
    steps = torch.linspace(-1.5, 1.5, 7)
    walk = codes.mean(0).repeat(len(steps), 1)
    walk[:, dimension] += steps * codes[:, dimension].std()
    areas = [cavity_area(image[phase].numpy()) for image in model.decode(walk)]
    assert all(np.diff(areas) > 0), areas
    assert areas[-1] > 1.2 * areas[0], areas


def cavity_area(image: np.ndarray) -> int:
    """Pixels of the bright pool in the center, which the darker myocardium surrounds."""
    center = tuple(np.array(image.shape) // 2)
    pools, _ = ndimage.label(image > 0.75 * image[center])
    return int((pools == pools[center]).sum())


def test_it_can_be_asked_for_changes(packaged, model):
    """The calibration beside the weights tells how codes and attributes belong together."""
    calibration = Calibration.read(
        packaged / "models" / "calibration.json", fingerprint(packaged / "models" / "model.pt")
    )
    asked = counterfactuals_of(model.network, model.view, 2.5, True, calibration)
    code = torch.tensor(asked.population.mean)[None]
    changed = asked.change(code, "LVEDV", 10.0)
    assert (asked.attributes(changed) - asked.attributes(code))[0].tolist() == pytest.approx(
        [10, 0, 0, 0, 0, 0], abs=0.5
    )
