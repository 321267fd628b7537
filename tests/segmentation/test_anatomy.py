from __future__ import annotations

import numpy as np
import pytest

from scripts.cohort.layout import write_volume
from scripts.segmentation.anatomy import (
    RVLimits,
    apical_growth,
    base_ratio,
    largest_piece,
    mended,
    rv_areas,
    usual_limits,
    within,
)


def test_a_sound_heart_stays_as_it_is(heart_mask):
    assert np.array_equal(mended(heart_mask), heart_mask)


def test_a_piece_beside_the_heart_goes(heart_mask):
    spoiled = heart_mask.copy()
    spoiled[34:38, 2:6, 3] = 3
    assert np.array_equal(mended(spoiled), heart_mask)


def test_a_second_piece_of_a_structure_in_a_slice_takes_the_label_around_it(heart_mask):
    spoiled = heart_mask.copy()
    spoiled[24, 19:22, 3:5] = 3  # inside of the LV, and connected through two slices
    assert np.array_equal(mended(spoiled), heart_mask)


def test_a_piece_that_overlaps_with_no_neighbor_goes(heart_mask):
    spoiled = heart_mask.copy()
    spoiled[2:8, 2:8, 7] = 1  # where no other slice has an LV
    assert not mended(spoiled)[..., 7].any()
    assert np.array_equal(mended(spoiled)[..., :7], heart_mask[..., :7])


def test_a_hole_in_the_cavity_is_filled(heart_mask):
    spoiled = heart_mask.copy()
    spoiled[24, 20, 2] = 0
    assert mended(spoiled)[24, 20, 2] == 1


def test_nothing_stays_nothing():
    assert not mended(np.zeros((8, 8, 3), np.uint8)).any()
    assert not largest_piece(np.zeros((4, 4), bool)).any()


def partial(mask, z):
    """A mask whose RV is cut in slice z."""
    cut = mask.copy()
    cut[:9, :, z][cut[:9, :, z] == 3] = 0
    return cut


def ratio_of(mask):
    """The base ratio of a mask."""
    return base_ratio(rv_areas(mask)[1])


BASE = RVLimits(base_ratio=0.9)
APEX = RVLimits(apical_growth=0.1)


def test_a_partial_rv_at_the_base_goes_in_either_order_of_slices(heart_mask):
    cut = partial(heart_mask, 0)
    assert ratio_of(heart_mask) > 1 > ratio_of(cut)
    for order in (1, -1):
        kept = within(cut[..., ::order], BASE)
        assert not (kept[..., 0 if order == 1 else -1] == 3).any()
        assert np.array_equal(kept[..., ::order][..., 1:], heart_mask[..., 1:])
        assert np.array_equal(kept == 1, cut[..., ::order] == 1)


def test_a_ventricle_that_is_widest_near_its_apex_does_not_hide_the_base(heart_mask):
    cut = partial(heart_mask, 0)
    cut[30:39, :, 5:7] = 1  # an aneurysm
    kept = within(cut, BASE)
    assert not (kept[..., 0] == 3).any()
    assert np.array_equal(kept[..., 1:], cut[..., 1:])


def test_an_rv_that_tapers_stays(heart_mask):
    assert np.array_equal(within(heart_mask, RVLimits(0.9, 0.0)), heart_mask)
    assert np.array_equal(within(partial(heart_mask, 0), RVLimits()), partial(heart_mask, 0))
    nothing = np.zeros((8, 8, 3), np.uint8)
    assert np.array_equal(within(nothing, RVLimits(0.9, 0.0)), nothing)


@pytest.mark.parametrize("order", [1, -1])
def test_an_rv_ends_where_it_grows_again_towards_the_apex(heart_mask, order):
    blob = heart_mask.copy()
    blob[:12, 15:25, 5][blob[:12, 15:25, 5] == 0] = 3
    areas = rv_areas(blob[..., ::order])[1]
    assert areas[0] > areas[5] > areas[4] > areas[6]
    kept = within(blob[..., ::order], APEX)[..., ::order]
    assert np.array_equal(kept[..., :5], heart_mask[..., :5])
    assert not (kept[..., 5:] == 3).any()
    assert np.array_equal(kept == 2, heart_mask == 2)


def test_growth_within_the_limit_or_up_to_the_largest_slice_stays(heart_mask):
    assert apical_growth(np.array([5, 10, 8, 9, 6, 8, 3])).tolist() == [0, 0, 0, 0.1, 0, 0.2, 0]
    assert apical_growth(np.array([7])).tolist() == [0]
    assert apical_growth(np.array([], int)).tolist() == []
    basal = partial(heart_mask, 0)
    assert rv_areas(basal)[1][1] > 1.2 * rv_areas(basal)[1][0]
    assert np.array_equal(within(basal, RVLimits(apical_growth=0.0)), basal)
    dented = partial(heart_mask, 3)
    growth = apical_growth(rv_areas(dented)[1]).max()
    assert np.array_equal(within(dented, RVLimits(apical_growth=growth)), dented)
    assert not (within(dented, RVLimits(apical_growth=growth - 0.01))[..., 4:] == 3).any()


def test_the_usual_limits_are_those_of_the_cohort(tmp_path, heart_mask):
    grown = heart_mask.copy()
    grown[:5, 15:25, 5] = 3
    masks = {"ED": heart_mask, "ES": partial(grown, 0)}
    for phase, mask in masks.items():
        write_volume(tmp_path / f"{phase}.nii.gz", mask, np.eye(4))
    item = {f"mask_{phase}": tmp_path / f"{phase}.nii.gz" for phase in masks} | {"frame_ED": None, "frame_ES": None}
    growth = apical_growth(rv_areas(masks["ES"])[1]).max()
    assert growth > 0
    assert usual_limits([item], 0, 0) == (ratio_of(masks["ES"]), growth)
    assert usual_limits([item], 100, 100) == (ratio_of(masks["ED"]), 0)


def test_one_slice_at_most_is_left_out_at_the_base(heart_mask):
    tapered = partial(partial(heart_mask, 0), 1)
    tapered[:11, :, 0][tapered[:11, :, 0] == 3] = 0
    assert ratio_of(tapered) < 0.9
    kept = within(tapered, BASE)
    assert not (kept[..., 0] == 3).any()
    assert np.array_equal(kept[..., 1:], tapered[..., 1:])


def test_pieces_that_touch_by_a_corner_only_are_two(heart_mask):
    spoiled = heart_mask.copy()
    spoiled[..., 7] = 0
    x, y = np.argwhere(heart_mask[..., 6] == 3).min(0)
    spoiled[x - 2 : x, y - 2 : y, 7] = 3  # beside the RV of the slice before, not over it
    assert not (mended(spoiled)[..., 7] == 3).any()


def test_a_larger_cavity_away_from_the_heart_is_no_rv(heart_mask):
    wide = np.pad(heart_mask, ((0, 40), (0, 40), (0, 0)))
    spoiled = wide.copy()
    spoiled[50:78, 50:78, :] = 3
    assert np.count_nonzero(spoiled == 3) > 2 * np.count_nonzero(wide == 3)
    assert np.array_equal(mended(spoiled), wide)


def test_without_a_border_the_largest_rv_is_kept(heart_mask):
    alone = np.where(heart_mask == 3, heart_mask, 0).astype(np.uint8)
    spoiled = alone.copy()
    spoiled[34:37, 2:5, 3] = 3
    assert np.array_equal(mended(spoiled), mended(alone))
