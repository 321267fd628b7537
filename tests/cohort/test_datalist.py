from __future__ import annotations

import numpy as np
import pytest

from scripts.cohort.datalist import attribute_correlation, attribute_scale

NAMES = ("LVEDV", "RVEDV", "MyoEDV")


def items(rows):
    return [dict(zip(NAMES, row, strict=True)) for row in rows]


def test_the_scale_leaves_out_what_is_missing_and_needs_none_for_what_does_not_vary():
    found = attribute_scale(items([(1, 5, 2), (3, 5, None), (5, 5, 4)]), NAMES)
    assert found["mean"] == pytest.approx([3, 5, 3])
    assert found["std"] == pytest.approx([np.sqrt(8 / 3), 1, 1])


def test_correlation_is_that_of_the_complete_subjects():
    rows = [(*row, None) for row in np.zeros((3, 2))] + list(np.random.default_rng(0).normal(size=(20, 3)))
    expected = np.corrcoef(np.array(rows[3:]).T)
    assert np.allclose(attribute_correlation(items(rows), NAMES), expected)


def test_what_does_not_vary_is_correlated_with_nothing():
    found = attribute_correlation(items([(1, 5, 2), (3, 5, 4), (5, 5, 6)]), NAMES)
    assert np.allclose(found, [[1, 0, 1], [0, 1, 0], [1, 0, 1]])
