from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from scripts.metrics import held_out_r2, spearman
from scripts.metrics.correlations import (
    all_correlations,
    line_predictions,
    paired_spearman,
    partial_spearman,
    r2,
    ranks,
)
from tests.metrics.examples import example

pytestmark = pytest.mark.filterwarnings("error")


def test_weights_count_a_subject_as_often():
    codes, attributes = (np.round(array, 1) for array in example(40))  # with ties
    attributes[::7, 2] = np.nan
    weights = np.random.default_rng(0).integers(0, 4, 40)
    repeated = [np.repeat(array, weights, axis=0) for array in (codes, attributes)]
    ones = np.ones((1, len(repeated[0])))
    drawn = weights[None].astype(float)
    assert np.allclose(ranks(codes[:, 0], drawn)[0].repeat(weights), stats.rankdata(repeated[0][:, 0]))
    assert np.allclose(paired_spearman(codes[:, :3], attributes, drawn)[0], spearman(*repeated))
    partial = partial_spearman(codes[:, :3], attributes, [True] * 3, drawn)
    assert np.allclose(partial, partial_spearman(repeated[0][:, :3], repeated[1], [True] * 3, ones))
    predictions = line_predictions(codes[:, :2], attributes[:, :2], codes[:, :2])
    expected = held_out_r2(codes, attributes[:, :2], repeated[0], repeated[1][:, :2])
    assert np.allclose(r2(attributes[:, :2], predictions, drawn)[0], expected)


def test_correlations_are_those_of_scipy():
    codes, attributes = (np.round(array) for array in example(40))  # with many ties
    codes[:, 1] = 1e9  # constant
    attributes[:5, 2] = np.nan
    pearson, spearman = all_correlations(codes, attributes)
    for i, k in ((0, 0), (4, 1), (8, 2)):
        known = np.isfinite(attributes[:, k])
        assert pearson[i, k] == pytest.approx(stats.pearsonr(codes[known, i], attributes[known, k]).statistic)
        assert spearman[i, k] == pytest.approx(stats.spearmanr(codes[known, i], attributes[known, k]).statistic)
    assert (pearson[1] == 0).all()
    assert (spearman[1] == 0).all()


def test_what_no_one_knows_correlates_with_nothing():
    codes, attributes = example(40)
    attributes[:, 0] = np.nan
    assert (np.array(all_correlations(codes, attributes))[:, :, 0] == 0).all()
