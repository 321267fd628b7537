from __future__ import annotations

import numpy as np
import pytest

from scripts.cohort.attributes import areas, basal_slices, base_is_first, derived, in_plane_power, volumes
from scripts.cohort.layout import SubjectError


def test_volume_is_voxels_times_voxel_size(heart_mask):
    values = volumes({"ED": heart_mask, "ES": heart_mask}, (1.5, 2.0, 8.0))
    assert values["LVEDV"] == pytest.approx((heart_mask == 1).sum() * 0.024)
    assert values["RVESV"] == pytest.approx((heart_mask == 3).sum() * 0.024)


def test_derived_values():
    volume = {"LVEDV": 150, "LVESV": 60, "RVEDV": 160, "RVESV": 80, "MyoEDV": 100}
    assert derived(volume) == {"LVSV": 90, "LVEF": 60, "LVM": 105, "RVSV": 80, "RVEF": 50}


def test_base_is_found_in_either_order(heart_mask):
    assert base_is_first({"ED": heart_mask, "ES": heart_mask})
    assert not base_is_first({"ED": heart_mask[..., ::-1], "ES": heart_mask[..., ::-1]})


def test_basal_slice_shows_all_three(heart_mask):
    es = heart_mask.copy()
    es[..., 0][es[..., 0] == 3] = 0  # no RV in the first slice at ES
    assert basal_slices({"ED": heart_mask, "ES": es}) == {"ED": 0, "ES": 1}
    flipped = {"ED": heart_mask[..., ::-1], "ES": es[..., ::-1]}
    assert basal_slices(flipped) == {"ED": 7, "ES": 6}


def test_no_complete_slice_is_an_error(heart_mask):
    with pytest.raises(SubjectError, match="ED: no slice shows"):
        basal_slices({"ED": np.where(heart_mask == 3, 0, heart_mask), "ES": heart_mask})


def test_area_is_of_the_basal_slice_in_cm2(heart_mask):
    masks = {"ED": heart_mask, "ES": heart_mask}
    values = areas(masks, {"ED": 0, "ES": 2}, (2, 2, 10))
    assert values["LVEDA"] == pytest.approx((heart_mask[..., 0] == 1).sum() * 0.04)
    assert values["LVESA"] < values["LVEDA"]


def test_both_phases_and_both_cavities_tell_the_base(heart_mask):
    even = np.repeat(heart_mask[..., 3:4], 8, axis=2)  # the same section in every slice: no tendency
    assert base_is_first({"ED": even, "ES": heart_mask})
    assert not base_is_first({"ED": even, "ES": heart_mask[..., ::-1]})
    even_lv = np.where(heart_mask == 3, 3, np.where(even == 3, 0, even))
    assert base_is_first({"ED": even_lv})
    assert not base_is_first({"ED": even_lv[..., ::-1]})


def test_a_ventricle_that_is_widest_near_its_apex_does_not_turn_the_heart(heart_mask):
    aneurysm = heart_mask.copy()
    aneurysm[30:39, :, 5:7] = 1
    cavities = np.isin(aneurysm, (1, 3)).sum((0, 1))
    assert np.average(np.arange(8), weights=cavities) > 3  # the middle of the seven slices that show any
    for phase in ("ED", "ES"):
        assert base_is_first({phase: aneurysm})
        assert not base_is_first({phase: aneurysm[..., ::-1]})


def test_one_wrong_slice_does_not_turn_a_heart_that_its_cavities_tell(heart_mask):
    tall = np.repeat(heart_mask, 4, axis=2)
    tall[:18, 10:30, 22][tall[:18, 10:30, 22] == 0] = 3  # more RV than at the base
    assert np.argmax((tall == 3).sum((0, 1))) == 22
    assert base_is_first({"ED": tall})
    assert not base_is_first({"ED": tall[..., ::-1]})


def test_what_shows_nothing_has_no_tendency(heart_mask):
    nothing = np.zeros_like(heart_mask)
    assert base_is_first({"ED": nothing, "ES": heart_mask})
    assert not base_is_first({"ED": nothing, "ES": heart_mask[..., ::-1]})
    for label in (1, 3):
        assert base_is_first({"ED": np.where(heart_mask == label, label, 0)})


def test_a_few_pixels_do_not_make_a_basal_slice(heart_mask):
    first = heart_mask[..., 0]
    first[tuple(np.argwhere(first == 3)[9:].T)] = 0
    masks = {"ED": heart_mask}
    assert basal_slices(masks, 10) == {"ED": 1}
    assert basal_slices(masks, 9) == {"ED": 0}


def test_in_plane_power():
    assert [in_plane_power(name) for name in ("LVEDV", "RVESA", "LVM", "LVEF")] == [2, 2, 2, 0]
    with pytest.raises(ValueError, match="'age' is not an attribute"):
        in_plane_power("age")
