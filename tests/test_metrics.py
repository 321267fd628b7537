from __future__ import annotations

import numpy as np
import pytest

from scripts.metrics import held_out_r2, mean_spearman, spearman

RNG = np.random.default_rng(0)


def test_spearman_of_a_monotone_code_is_one():
    attributes = RNG.normal(size=(30, 2))
    codes = np.column_stack([np.exp(attributes[:, 0]), -(attributes[:, 1] ** 3), RNG.normal(size=30)])
    assert spearman(codes, attributes) == pytest.approx([1, -1])


def test_undefined_correlations_are_nan_without_a_warning(recwarn):
    codes = np.column_stack([np.ones(9), np.arange(9.0), np.arange(9.0)])
    attributes = np.column_stack([np.arange(9.0), np.full(9, np.nan), np.arange(9.0)])
    assert np.isnan(spearman(codes, attributes)[:2]).all()
    assert mean_spearman(codes, attributes) == 1
    assert not recwarn


def test_missing_values_leave_their_subject_out():
    codes, attributes = np.arange(8.0)[:, None], np.arange(8.0)[:, None]
    attributes[3] = np.nan
    assert spearman(codes, attributes) == pytest.approx([1])


def test_r2_is_of_the_line_of_the_training_subjects():
    codes = np.arange(10.0)[:, None]
    assert held_out_r2(codes, 3 * codes + 1, codes, 3 * codes + 1) == pytest.approx([1])
    biased = held_out_r2(codes, 3 * codes + 1, codes, 3 * codes + 11)  # a line fitted on the test subjects would give 1
    assert biased == pytest.approx([1 - 10**2 / (3**2 * np.arange(10).var())])
