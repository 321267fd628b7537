from __future__ import annotations

import numpy as np

from scripts.segmentation.anatomy import largest_piece, mended


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
