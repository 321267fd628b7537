from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.ensemble import GradientBoostingRegressor

from scripts.metrics import disentanglement, reference_codes, resampling
from scripts.metrics.disentanglement import dci, dmig, dmig_jackknife
from scripts.metrics.information import mutual_information
from scripts.metrics.resampling import without_groups
from tests.metrics.examples import example, halves, hearts

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def quick(monkeypatch):
    """Few groups and trees, where intervals are not the matter."""
    monkeypatch.setattr(resampling, "GROUPS", 2)
    monkeypatch.setitem(disentanglement.DCI_TREES, "n_estimators", 5)


def test_jackknife_of_dmig_leaves_groups_out():
    codes, attributes = example()
    dimensions = np.array([4, 0, 7])
    _, replicates = dmig_jackknife(codes, attributes, dimensions, seed=0)
    for rows, found in zip(without_groups(len(codes), seed=0), replicates, strict=True):
        z, a = codes[rows], attributes[rows]
        # not exactly, as the units are those of all subjects
        assert found == pytest.approx(dmig(mutual_information(z, a), mutual_information(a, a), dimensions), abs=0.02)


def test_dci_by_the_formula(quick):
    codes, attributes = example()
    train_codes, train_attributes, test_codes, test_attributes = halves(codes, attributes)
    models = [
        GradientBoostingRegressor(**disentanglement.DCI_TREES, random_state=4).fit(train_codes, column)
        for column in train_attributes.T
    ]
    r2 = [model.score(test_codes, column) for model, column in zip(models, test_attributes.T, strict=True)]
    assert min(r2) > 0
    importance = np.array([model.feature_importances_ for model in models]) * np.array(r2)[:, None]

    def certainty(amounts):
        shares = [amount / sum(amounts) for amount in amounts if amount > 0]
        return 1 + sum(share * math.log(share, len(amounts)) for share in shares)

    share = importance.sum(axis=0) / importance.sum()
    expected = sum(share[i] * certainty(importance[:, i]) for i in range(9) if share[i])
    found = dci((train_codes, train_attributes), (test_codes, test_attributes), [""] * 3, seed=4)
    assert found["value"] == pytest.approx(expected)
    assert found["completeness"]["value"] == pytest.approx(np.mean([certainty(row) for row in importance]))
    assert found["informativeness"]["value"] == pytest.approx(np.mean(r2))


def test_dci_tells_the_oracle_from_size_and_noise_among_many_dimensions(monkeypatch):
    monkeypatch.setattr(resampling, "GROUPS", 2)
    attributes = hearts(300)
    rows = reference_codes(attributes, 128, seed=0)
    halved = {row: halves(codes, attributes) for row, codes in rows.items()}
    score = {row: dci(sets[:2], sets[2:], [""] * 6)["value"] for row, sets in halved.items()}
    assert score["oracle"] > 0.9
    assert score["noise"] == 0
    assert score["heart size"] < 0.15


def test_trees_see_at_most_so_many_subjects_of_each_attribute(monkeypatch):
    monkeypatch.setattr(disentanglement, "DCI_SUBJECTS", 20)
    attributes = example(90)[1]
    attributes[::2, 1] = np.nan
    thinned = disentanglement._thinned(attributes, seed=0)
    assert np.isfinite(thinned).sum(axis=0).tolist() == [20, 20, 20]
    assert (np.isfinite(thinned[:, 0]) == np.isfinite(thinned[:, 2])).all()


def test_dci_depends_on_the_drawn_subjects_only(quick, monkeypatch):
    monkeypatch.setattr(disentanglement, "DCI_SUBJECTS", 50)
    codes, attributes = example()
    other = np.where(np.isfinite(disentanglement._thinned(attributes, seed=0)[:, :1]), codes, 0)
    test = codes, attributes
    assert dci((codes, attributes), test, [""] * 3) == dci((other, attributes), test, [""] * 3)


def test_trees_choose_among_the_most_correlated_dimensions(quick, monkeypatch):
    monkeypatch.setattr(disentanglement, "DCI_DIMENSIONS", 1)
    codes, attributes = example()
    found = dci((codes, attributes), (codes, attributes), [""] * 3)
    assert found["completeness"]["value"] == pytest.approx(1)
    assert found["value"] == pytest.approx(1)  # each attribute has its own
