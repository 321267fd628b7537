from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from scripts.metrics.resampling import (
    bootstrap,
    bootstrap_mean,
    interval_within,
    jackknife,
    jackknife_interval,
    two_sided_p,
    without_groups,
)

pytestmark = pytest.mark.filterwarnings("error")


def test_interval_of_the_jackknife_is_that_of_the_mean():
    sample = np.random.default_rng(0).normal(size=40)
    means = np.array([np.delete(sample, i).mean() for i in range(40)])
    expected = stats.t.interval(0.95, 39, sample.mean(), stats.sem(sample))
    assert jackknife_interval(sample.mean(), means) == pytest.approx(expected)


def test_each_subject_is_left_out_once():
    for subjects in (10, 47):
        left = without_groups(subjects)
        assert left.shape == (10, subjects)
        assert (left.sum(axis=0) == 9).all()
        assert set((~left).sum(axis=1)) <= {subjects // 10, subjects // 10 + 1}


def test_jackknife_of_two_sets():
    a, b = np.random.default_rng(0).normal(size=50), np.random.default_rng(1).normal(size=30)
    value, replicates = jackknife(lambda rows, others: np.array([a[rows].mean() - b[others].mean()]), 50, 30)
    assert value == pytest.approx(a.mean() - b.mean())
    expected = [a[i].mean() - b[j].mean() for i, j in zip(without_groups(50), without_groups(30), strict=True)]
    assert replicates[:, 0] == pytest.approx(expected)


def test_interval_of_a_mean():
    values = np.random.default_rng(0).normal(5, 1, size=400)
    found = bootstrap_mean([*values, np.nan])
    assert found["value"] == pytest.approx(values.mean())
    half = 1.96 * stats.sem(values)
    assert (found["low"], found["high"]) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)


def test_p_is_the_level_at_which_the_interval_reaches_zero():
    error = np.random.default_rng(0).normal(0.25, 1, size=50)
    _, samples = bootstrap(lambda weights: (weights @ error / 50)[:, None], 50)
    assert two_sided_p(samples[:, 0]) == pytest.approx(stats.ttest_1samp(error, 0).pvalue, abs=0.03)
    assert two_sided_p(-samples[:, 0]) == pytest.approx(two_sided_p(samples[:, 0]), abs=0.003)
    assert two_sided_p(np.ones(1000)) == pytest.approx(2 / 1001)
    assert two_sided_p(np.zeros(1000)) == 1


def test_an_interval_stays_within_the_bounds_of_its_metric():
    samples = np.array([0.9, 1.0, 0.8, 1.0])
    assert jackknife_interval(0.95, samples)[1] > 1
    assert interval_within(-1, 1)(0.95, samples)[1] == 1
    assert interval_within(-1, 1)(-0.95, -samples)[0] == -1


def test_two_subjects_have_no_interval_and_three_have_one():
    found = bootstrap_mean([1, 2, np.nan])
    assert found["undefined"] == "values are known for 2 subjects, of at least 3"
    assert np.isnan([found[name] for name in ("value", "low", "high")]).all()
    assert bootstrap_mean([1, 2, 3])["value"] == 2


def test_equal_seeds_draw_equal_subjects_and_others_do_not():
    values = np.random.default_rng(0).normal(size=20)
    assert bootstrap_mean(values, seed=4) == bootstrap_mean(values, seed=4)
    assert bootstrap_mean(values) == bootstrap_mean(values, seed=0) != bootstrap_mean(values, seed=4)
