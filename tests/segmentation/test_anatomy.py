from __future__ import annotations

import numpy as np
import pytest

from scripts.cohort.layout import write_volume
from scripts.segmentation.anatomy import (
    base_ratio,
    largest_piece,
    mended,
    regrowth,
    rv_areas,
    usual_base_ratio,
    with_trimmed_rv,
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
    """The base ratio of a mask that begins at the base."""
    return base_ratio(rv_areas(mask, True)[1])


def blobbed(mask, z):
    """A mask with RV beside the heart in slice z."""
    more = mask.copy()
    more[:12, 15:25, z][more[:12, 15:25, z] == 0] = 3
    return more


@pytest.mark.parametrize("order", [1, -1])
def test_a_partial_rv_at_the_base_goes_in_either_order_of_slices(heart_mask, order):
    cut = partial(heart_mask, 0)
    assert ratio_of(heart_mask) > 1 > ratio_of(cut)
    kept = with_trimmed_rv(cut[..., ::order], order == 1, 0.9)[..., ::order]
    assert not (kept[..., 0] == 3).any()
    assert np.array_equal(kept[..., 1:], heart_mask[..., 1:])
    assert np.array_equal(kept == 1, cut == 1)
    assert (cut[..., 0] == 3).any()  # what was given is as it was


def test_a_whole_rv_that_tapers_stays(heart_mask):
    assert np.array_equal(with_trimmed_rv(heart_mask, True, 0.9), heart_mask)
    assert np.array_equal(with_trimmed_rv(heart_mask, True, ratio_of(heart_mask)), heart_mask)
    assert np.array_equal(with_trimmed_rv(partial(heart_mask, 0), True, 0), partial(heart_mask, 0))
    nothing = np.zeros((8, 8, 3), np.uint8)
    assert np.array_equal(with_trimmed_rv(nothing, True, 0.9), nothing)


@pytest.mark.parametrize("order", [1, -1])
def test_an_rv_ends_where_it_grows_again_towards_the_apex(heart_mask, order):
    both = partial(blobbed(heart_mask, 6), 0)
    kept = with_trimmed_rv(both[..., ::order], order == 1, 0.9)[..., ::order]
    assert np.array_equal(np.flatnonzero((kept == 3).any((0, 1))), [1, 2, 3, 4, 5])
    assert np.array_equal(kept[..., 1:6], heart_mask[..., 1:6])
    assert np.array_equal(kept == 2, heart_mask == 2)


@pytest.mark.parametrize(
    ("areas", "end"),
    [
        ([100, 80, 45, 56, 30], 3),  # grows by more than a tenth
        ([100, 80, 45, 54, 30], 5),  # by less
        ([100, 55, 90, 30], 4),  # before it has tapered: a part is missing there
        ([20, 60, 100, 40, 60, 20], 4),  # not up to its largest slice
        ([20, 60, 100], 3),
        ([7], 1),
        ([], 0),
    ],
)
def test_what_counts_as_growing_again(areas, end):
    assert regrowth(np.array(areas, int)) == end


def test_the_usual_ratio_is_that_of_the_cohort(tmp_path, heart_mask):
    masks = {"ED": heart_mask, "ES": partial(heart_mask, 0)}
    items = []
    for order in (1, -1):
        folder = tmp_path / str(order)
        folder.mkdir()
        for phase, mask in masks.items():
            write_volume(folder / f"{phase}.nii.gz", mask[..., ::order], np.eye(4))
        files = {f"mask_{phase}": folder / f"{phase}.nii.gz" for phase in masks}
        items.append(files | {"frame_ED": None, "frame_ES": None})
    for chosen in (items, items[:1], items[1:]):
        assert usual_base_ratio(chosen, 40) == ratio_of(masks["ES"])
        assert usual_base_ratio(chosen, 100) == ratio_of(masks["ED"])


def test_a_cohort_without_rv_has_no_usual_ratio(tmp_path, heart_mask):
    write_volume(tmp_path / "mask.nii.gz", np.where(heart_mask == 3, 0, heart_mask), np.eye(4))
    item = {f"mask_{phase}": tmp_path / "mask.nii.gz" for phase in ("ED", "ES")} | {"frame_ED": None, "frame_ES": None}
    assert usual_base_ratio([item], 5) == 0


def test_one_slice_at_most_is_left_out_at_the_base(heart_mask):
    tapered = partial(partial(heart_mask, 0), 1)
    tapered[:11, :, 0][tapered[:11, :, 0] == 3] = 0
    assert ratio_of(tapered) < 0.9
    kept = with_trimmed_rv(tapered, True, 0.9)
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
