from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from scripts.metrics.resampling import bootstrap_mean, jackknife, jackknife_interval, paired_difference, without_groups

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


def test_subjects_and_not_rows_are_drawn():
    subjects = np.random.default_rng(0).normal(size=40)
    rows = np.tile(subjects, 5)  # five trainings that agree add nothing
    ids = np.tile([f"s{i}" for i in range(40)], 5)
    alone, pooled = bootstrap_mean(np.sort(subjects)), bootstrap_mean(rows, groups=ids)
    assert pooled["high"] - pooled["low"] == pytest.approx(alone["high"] - alone["low"], rel=0.1)
    naive = bootstrap_mean(rows)
    assert naive["high"] - naive["low"] < 0.6 * (pooled["high"] - pooled["low"])


def test_paired_difference():
    a, rng = np.arange(50.0), np.random.default_rng(0)
    better = paired_difference(a + 1 + 0.1 * rng.normal(size=50), a)
    assert better["low"] < better["value"] < better["high"]
    assert better["value"] == pytest.approx(1, abs=0.1)
    assert better["p"] == pytest.approx(2 / 1001)
    assert paired_difference(a, a)["p"] == 1
    error = rng.normal(0.25, 1, size=50)
    t_test = stats.ttest_1samp(error, 0).pvalue
    assert paired_difference(a + error, a)["p"] == pytest.approx(t_test, abs=0.03)


def test_missing_pairs_are_left_out():
    assert paired_difference([1, 2, 3, np.nan, 9], [0, 0, 0, 0, np.nan])["value"] == 2


def test_two_subjects_have_no_interval():
    assert "2 subjects have a value" in bootstrap_mean([1, 2, np.nan])["undefined"]
    pooled = paired_difference([1, 2, 3, 4], [0, 0, 0, 0], groups=["a", "a", "a", "a"])
    assert "1 subject has a value" in pooled["undefined"]
    assert np.isnan([pooled[key] for key in ("value", "low", "high", "p")]).all()


def test_values_and_subjects_must_match():
    with pytest.raises(ValueError, match="same subjects"):
        paired_difference([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="one value per row"):
        bootstrap_mean([1, 2, 3], groups=["a", "b"])
