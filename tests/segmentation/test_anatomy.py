from __future__ import annotations

import numpy as np

from scripts.cohort.layout import write_volume
from scripts.segmentation.anatomy import base_ratio, largest_piece, mended, usual_base_ratio, without_partial_base


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


def test_a_partial_rv_at_the_base_goes_in_either_order_of_slices(heart_mask):
    cut = partial(heart_mask, 0)
    assert base_ratio(heart_mask) > 1 > base_ratio(cut)
    for order in (1, -1):
        kept = without_partial_base(cut[..., ::order], 0.9)
        assert not (kept[..., 0 if order == 1 else -1] == 3).any()
        assert np.array_equal(kept[..., ::order][..., 1:], heart_mask[..., 1:])
        assert np.array_equal(kept == 1, cut[..., ::order] == 1)


def test_a_whole_rv_stays(heart_mask):
    assert np.array_equal(without_partial_base(heart_mask, 0.9), heart_mask)
    assert np.array_equal(without_partial_base(partial(heart_mask, 0), 0), partial(heart_mask, 0))
    nothing = np.zeros((8, 8, 3), np.uint8)
    assert np.array_equal(without_partial_base(nothing, 0.9), nothing)


def test_the_usual_ratio_is_that_of_the_cohort(tmp_path, heart_mask):
    masks = {"ED": heart_mask, "ES": partial(heart_mask, 0)}
    for phase, mask in masks.items():
        write_volume(tmp_path / f"{phase}.nii.gz", mask, np.eye(4))
    item = {f"mask_{phase}": tmp_path / f"{phase}.nii.gz" for phase in masks} | {"frame_ED": None, "frame_ES": None}
    assert usual_base_ratio([item], 0) == base_ratio(masks["ES"])
    assert usual_base_ratio([item], 100) == base_ratio(masks["ED"])


def test_one_slice_at_most_is_left_out(heart_mask):
    tapered = partial(partial(heart_mask, 0), 1)
    tapered[:11, :, 0][tapered[:11, :, 0] == 3] = 0
    assert base_ratio(tapered) < 0.9
    kept = without_partial_base(tapered, 0.9)
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
