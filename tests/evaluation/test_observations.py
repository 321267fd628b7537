from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from scripts.calibration.population import fit_population
from scripts.counterfactual import ALL_ELSE_EQUAL, Counterfactuals
from scripts.evaluation.observations import AGREEMENT, MARGIN, Observer
from scripts.views import View
from tests.evaluation.world import MEAN, NAMES, SCALE, SIZE, SPACING, TRAINED, VIEW, Generator, Segmentation, distance


@pytest.fixture
def observer():
    population = fit_population(TRAINED, MEAN + SCALE * TRAINED, NAMES)
    model = Counterfactuals(Generator(), VIEW, SPACING, population)
    return Observer(model, {}, Segmentation(), distance, ALL_ELSE_EQUAL)


def test_agreement_is_the_overlap_of_decoded_maps_and_segmented_image(observer):
    image = torch.zeros(2, 4, SIZE, SIZE)
    image[0, 1, 0] = 1  # LV where the segmentation finds it
    image[1, 1, 0, :4] = 1  # in half of it
    image[1, 2, 3] = 1  # and myocardium where it finds none
    found = observer.agreement(image)[AGREEMENT, ""]
    assert found[:, 0].tolist() == pytest.approx([1, 2 * 4 / 12])
    assert found[1, 1] == 0
    assert found[:, 2].isnan().all()


def test_only_what_changes_beside_the_heart_counts(observer):
    image = torch.full((1, 4, SIZE, SIZE), 0.5)
    inside, beside = image.clone(), image.clone()
    inside[0, 0, MARGIN, 2] = 0.9
    beside[0, 0, MARGIN + 1, 2] = 0.6
    assert observer.outside(inside, image).item() == 0
    assert observer.outside(beside, image).item() == pytest.approx(0.1)


def test_the_heart_of_either_image_does_not_count(observer):
    observer.segmentation = SimpleNamespace(
        view=VIEW, segment=lambda image: torch.cat([image[:, :1], (image[:, :1] == 1).float().repeat(1, 3, 1, 1)], 1)
    )
    image = torch.full((1, 4, SIZE, SIZE), 0.5)
    grown = image.clone()
    grown[0, 0, 4, 4] = 1
    assert observer.outside(grown, image).item() == observer.outside(image, grown).item() == 0


def test_gray_values_beyond_those_of_scans_are_clipped(observer):
    image = torch.ones(1, 4, SIZE, SIZE)
    assert observer.outside(image + 0.5, image).item() == 0


def test_of_a_stack_only_the_slices_of_pictures_are_compared(observer):
    view = View(["ED"], "stack", stack_slices=5)
    heartless = SimpleNamespace(
        view=replace(view, anatomy="masks"), segment=lambda image: torch.zeros(1, 20, SIZE, SIZE)
    )
    observer.view, observer.segmentation = view, heartless
    image = torch.full((1, 5, SIZE, SIZE), 0.5)
    for index in range(5):
        other = image.clone()
        other[0, index] = 0.6
        assert observer.outside(other, image).item() == pytest.approx(0.1 if index in view.pictured else 0)
