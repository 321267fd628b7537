from __future__ import annotations

import numpy as np
import pytest
from sklearn.feature_selection import mutual_info_regression

from scripts.metrics import information
from scripts.metrics.information import information_of_subsets, mutual_information
from tests.metrics.examples import example

pytestmark = pytest.mark.filterwarnings("error")


def test_information_is_that_of_scikit_learn():
    codes, attributes = example()
    codes[:, 8] = 3
    expected = np.column_stack(
        [mutual_info_regression(codes[:, :8], column, random_state=1) for column in attributes.T]
    )
    found = mutual_information(codes, attributes)
    assert np.allclose(found[:8], expected, atol=1e-9)
    assert (found[8] == 0).all()


def test_information_of_tied_values_is_that_of_scikit_learn():
    codes, attributes = (np.round(2 * array) for array in example(2000))
    expected = np.mean([mutual_info_regression(codes[:, :1], attributes[:, 0], random_state=i) for i in range(5)])
    found = np.mean([mutual_information(codes[:, :1], attributes[:, :1], seed=i) for i in range(5)])
    assert found == pytest.approx(expected, abs=0.02)  # the jitter that parts the ties differs


def test_information_leaves_missing_values_out():
    codes, attributes = example()
    attributes[:50, 1] = np.nan
    found = mutual_information(codes, attributes)
    assert np.allclose(found[:, 1:2], mutual_information(codes[50:], attributes[50:, 1:2]), atol=1e-9)
    assert np.allclose(found[:, [0, 2]], mutual_information(codes, attributes[:, [0, 2]]), atol=1e-9)


@pytest.mark.parametrize("spare", [6, 1])  # with 1, most subsets need a search of their own
def test_information_of_subsets_is_that_of_their_subjects(monkeypatch, spare):
    monkeypatch.setattr(information, "SPARE", spare)
    codes, attributes = example(100)
    attributes[:30, 1] = np.nan
    subsets = np.random.default_rng(0).random((4, 100)) < 0.6
    subsets[0], subsets[1], subsets[2] = True, np.arange(100) < 33, np.arange(100) < 4
    found = information_of_subsets(codes, attributes, subsets)
    assert np.allclose(found[0], mutual_information(codes, attributes))
    expected = mutual_information(codes[subsets[3]], attributes[subsets[3]])
    assert np.abs(found[3] - expected).mean() < 0.02  # not exactly, as the units are those of all subjects
    assert np.isnan(found[1, :, 1]).all()  # three subjects know it
    assert np.isnan(found[2]).all()


def test_subsets_in_the_units_of_all_have_exactly_their_information(monkeypatch):
    monkeypatch.setattr(information, "_standardized", lambda values: values)
    monkeypatch.setattr(information, "JITTER", 0)
    codes, attributes = example(100)
    subsets = np.random.default_rng(0).random((3, 100)) < 0.7
    for rows, found in zip(subsets, information_of_subsets(codes, attributes, subsets), strict=True):
        assert np.allclose(found, mutual_information(codes[rows], attributes[rows]))
