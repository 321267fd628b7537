from __future__ import annotations

import numpy as np
import pytest

from scripts.cohort.layout import SubjectError
from scripts.cohort.quality import QualityRules, check_mask

RULES = QualityRules()


def test_a_sound_heart_passes_in_both_orders(heart_mask):
    check_mask(heart_mask, RULES)
    check_mask(heart_mask[..., ::-1], RULES)


@pytest.mark.parametrize("label", [1, 2, 3])
def test_too_few_voxels(heart_mask, label):
    places = np.flatnonzero(heart_mask == label)
    heart_mask.flat[places[9:]] = 0
    with pytest.raises(SubjectError, match="has 9 voxels; at least 10"):
        check_mask(heart_mask, RULES)


def test_too_few_slices(heart_mask):
    heart_mask[..., 5:] = 0
    with pytest.raises(SubjectError, match="shown in 5 slices; at least 6"):
        check_mask(heart_mask, RULES)


def test_threshold_is_a_setting(heart_mask):
    heart_mask[..., 5:] = 0
    check_mask(heart_mask, QualityRules(min_slices=5))


def test_gap_between_slices(heart_mask):
    heart_mask[..., 3][heart_mask[..., 3] == 2] = 0
    with pytest.raises(SubjectError, match="missing in slice 3"):
        check_mask(heart_mask, RULES)


def test_scattered_rv_at_mid_cavity(heart_mask):
    section = heart_mask[..., 3]
    section[section == 3] = 0
    section[::3, ::3][section[::3, ::3] == 0] = 3  # many pixels, none connected
    section[section == 3] = np.where(np.arange((section == 3).sum()) < 30, 3, 0)
    middle = round(np.nonzero(heart_mask == 1)[2].mean())
    heart_mask[..., middle] = section
    with pytest.raises(SubjectError, match="RV has a largest component of 1 pixels"):
        check_mask(heart_mask, RULES)


def test_exchanged_labels(heart_mask):
    exchanged = np.array([0, 3, 2, 1], np.uint8)[heart_mask]
    with pytest.raises(SubjectError, match="labels 1 and 3 look exchanged"):
        check_mask(exchanged, RULES)


@pytest.mark.parametrize("rules", [{"foo": 1}, [1, 2], {"min_voxels": "ten"}, {"min_slices": -5}, {"min_slices": 5.5}])
def test_rules_that_are_none_are_named(rules):
    with pytest.raises(ValueError, match="rules"):
        QualityRules.of(rules)


def test_rules_that_are_not_named_are_the_papers():
    assert QualityRules.of({"min_slices": 5}) == QualityRules(10, 10, 5)
    assert QualityRules.of(None) == QualityRules()
