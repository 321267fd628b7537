"""The shipped weights do on hearts that they have never seen what the card says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from scripts.api import load
from scripts.cohort.phantom import write_cohort
from scripts.metrics import spearman
from scripts.storage import read_csv


@pytest.fixture(scope="module")
def model(packaged):
    return load(packaged, device="cpu")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Forty hearts of another seed than those of the training."""
    root = tmp_path_factory.mktemp("unseen")
    write_cohort(root, subjects=40, seed=1000, cine_fraction=0, failing=0)
    return root


@pytest.fixture(scope="module")
def images(model, cohort):
    return torch.stack([model.crop(folder) for folder in sorted(cohort.glob("phantom*"))])


@pytest.fixture(scope="module")
def codes(model, images):
    return model.encode(images)


def test_a_reconstruction_is_nearer_to_its_heart_than_the_mean_heart_is(model, images, codes):
    error = (model.decode(codes) - images).square().mean((1, 2, 3))
    spread = (images.mean(0) - images).square().mean((1, 2, 3))
    assert (error < spread).all()
    assert error.mean() < 0.5 * spread.mean()


def test_each_dimension_grows_with_its_volume(model, cohort, codes):
    rows = {row["subject"]: row for row in read_csv(cohort / "info.csv")}
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
