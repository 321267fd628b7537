from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.feature_selection import mutual_info_regression

from scripts import metrics
from scripts.information import mutual_information
from scripts.metrics import held_out_r2, mean_spearman, paper_protocol, reference_codes, sound_protocol, spearman
from tests.conftest import shared

RNG = np.random.default_rng(0)
METRICS = ("r2", "scc", "partial_scc", "dmig")
NAMES = ["LVEDV", "LVESV", "RVEDV", "RVESV", "MyoEDV", "MyoESV"]
# of the attributes in 20 healthy hearts of ACDC, below the diagonal
HEALTHY = [[], [0.87], [0.92, 0.81], [0.78, 0.75, 0.75], [0.85, 0.82, 0.80, 0.80], [0.71, 0.76, 0.66, 0.75, 0.94]]
pytestmark = pytest.mark.filterwarnings("error")


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


def hearts(subjects: int, seed: int = 0) -> np.ndarray:
    correlation = np.eye(6)
    for i, row in enumerate(HEALTHY):
        correlation[i, :i] = correlation[:i, i] = row
    return 100 + 30 * np.random.default_rng(seed).multivariate_normal(np.zeros(6), correlation, subjects)


def example(subjects: int = 240, noise: float = 0.4) -> tuple[np.ndarray, np.ndarray]:
    """Codes (subjects, 9) and three attributes: noisy on dimensions 0 to 2, one of them leaking into dimension 4."""
    rng = np.random.default_rng(5)
    attributes = rng.normal(size=(subjects, 3)) + rng.normal(size=(subjects, 1))
    codes = rng.normal(size=(subjects, 9))
    codes[:, :3] = attributes + noise * rng.normal(size=(subjects, 3))
    codes[:, 4] = attributes[:, 1] + 0.3 * rng.normal(size=subjects)
    return codes, attributes


@pytest.fixture
def quick(monkeypatch):
    """Few resamples, groups and trees, where intervals are not the matter."""
    monkeypatch.setattr(metrics, "RESAMPLES", 40)
    monkeypatch.setattr(metrics, "GROUPS", 2)
    monkeypatch.setitem(metrics.DCI_TREES, "n_estimators", 5)


def halves(codes: np.ndarray, attributes: np.ndarray) -> tuple[np.ndarray, ...]:
    half = len(codes) // 2
    return codes[:half], attributes[:half], codes[half:], attributes[half:]


def values(report: dict) -> list[float]:
    return [entry["value"] for entry in report["per_attribute"].values()]


@pytest.mark.parametrize("size", ["small", "paper_size"])
def test_golden_paper_protocol(size):
    data = np.load(shared(f"golden/interpretability_{size}.npz"))
    golden = json.loads(shared("golden/interpretability.json").read_text())[size]
    found = paper_protocol(data["codes"], data["attributes"], data["names"].tolist())
    assert found["interpretability"].keys() == golden["interpretability"].keys()
    for name, (dimension, r2) in golden["interpretability"].items():
        assert found["interpretability"][name] == (dimension, pytest.approx(r2, abs=1e-6))
    assert found["scc"] == pytest.approx(golden["Corr_score"], abs=1e-6)
    assert found["sap"] == pytest.approx(golden["SAP_score"], abs=1e-6)
    assert found["modularity"] == pytest.approx(golden["modularity_score"], abs=1e-3)
    assert found["mig"] == pytest.approx(golden["mig"], abs=1e-3)
    rank = metrics._correlations(data["codes"], data["attributes"])[1]
    assert np.allclose(metrics._significant(rank, data["attributes"]), data["spearman_thresholded"], atol=1e-6)


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


def test_paper_protocol_leaves_missing_values_out():
    codes, attributes = example()
    attributes[:50] = np.nan
    assert paper_protocol(codes, attributes, ["a", "b", "c"])["scc"] == pytest.approx(
        paper_protocol(codes[50:], attributes[50:], ["a", "b", "c"])["scc"]
    )


def test_paper_protocol_of_constants_is_zero():
    found = paper_protocol(np.ones((20, 3)), np.full((20, 2), 7.1), ["a", "b"])
    assert found.pop("interpretability") == {"a": (0, 0), "b": (0, 0), "mean": (-1, 0)}
    assert set(found.values()) == {0}


def test_reference_rows_unmask_bad_metrics(quick):
    attributes = hearts(1608)
    codes = reference_codes(attributes, 128, seed=1)
    codes["measured size"] = reference_codes(attributes, 128, seed=1, size_error=0.2)["heart size"]
    paper = {row: paper_protocol(z[804:], attributes[804:], NAMES) for row, z in codes.items()}
    sound = {row: sound_protocol(*halves(z, attributes), NAMES) for row, z in codes.items()}
    for row in ("heart size", "measured size"):
        assert paper[row]["scc"] > 0.85
        assert sound[row]["scc"]["value"] > 0.85
        assert paper[row]["interpretability"]["mean"][1] > 0.75
        assert abs(sound[row]["dmig"]["value"]) < 0.05
    assert np.abs(values(sound["measured size"]["partial_scc"])).mean() <= 0.35
    assert sound["heart size"]["partial_scc"]["value"] > 0.6  # its blind spot: an exact mixture of the attributes
    assert values(sound["oracle"]["dmig"]) == pytest.approx([1] * 6)
    assert values(sound["oracle"]["partial_scc"]) == pytest.approx([1] * 6)
    assert values(sound["oracle"]["r2"]) == pytest.approx([1] * 6)
    assert paper["noise"]["modularity"] > 0.8
    assert sound["noise"]["r2"]["value"] <= 0.05
    assert abs(sound["noise"]["dmig"]["value"]) < 0.05


def test_reference_codes_take_missing_and_constant_attributes():
    attributes = hearts(30)
    attributes[3, 0], attributes[:, 1] = np.nan, 5
    codes = reference_codes(attributes, 8, seed=0)
    assert all(np.isfinite(row).all() and row.shape == (30, 8) for row in codes.values())
    assert codes["oracle"][3, 0] == 0
    assert spearman(codes["heart size"][:, [0, 2]], attributes[:, [0, 2]]).min() > 0.5  # large hearts, large codes


def test_dmig_by_the_formula(quick):
    codes, attributes = example()
    dimensions = [2, 0, 1]
    codes[:, dimensions] = codes[:, :3].copy()
    test_codes, test_attributes = halves(codes, attributes)[2:]

    def information(x, y):
        return mutual_info_regression(x[:, None], y, random_state=3)[0]

    expected, seconds = [], []
    for i, own in enumerate(dimensions):
        a = test_attributes[:, i]
        gains = {j: information(z, a) for j, z in enumerate(test_codes.T)}
        first = gains.pop(own)
        second = max(gains, key=gains.get)
        entropy = information(a, a)
        if second in dimensions:
            entropy -= information(test_attributes[:, dimensions.index(second)], a)
        seconds.append(second)
        expected.append((first - gains[second]) / entropy)
    assert {second in dimensions for second in seconds} == {True, False}  # both forms of the entropy occur
    found = sound_protocol(*halves(codes, attributes), ["a", "b", "c"], dimensions)["dmig"]
    assert values(found) == pytest.approx(expected, abs=2e-3)
    assert found["value"] == pytest.approx(np.mean(expected), abs=2e-3)


def test_jackknife_of_dmig_leaves_groups_out():
    codes, attributes = example()
    dimensions = np.array([4, 0, 7])
    _, replicates = metrics._dmig_jackknife(codes, attributes, dimensions, seed=0)
    groups = metrics._without_groups(len(codes), seed=0)
    assert np.bincount(np.concatenate(groups)).tolist() == [9] * 240
    for rows, found in zip(groups, replicates, strict=True):
        z, a = codes[rows], attributes[rows]
        assert found == pytest.approx(metrics._dmig(mutual_information(z, a), mutual_information(a, a), dimensions))


def test_dci_by_the_formula(quick):
    codes, attributes = example()
    train_codes, train_attributes, test_codes, test_attributes = halves(codes, attributes)
    models = [
        GradientBoostingRegressor(**metrics.DCI_TREES, random_state=4).fit(train_codes, column)
        for column in train_attributes.T
    ]
    importance = np.array([model.feature_importances_ for model in models])  # attributes × dimensions

    def certainty(amounts):
        shares = [amount / sum(amounts) for amount in amounts if amount > 0]
        return 1 + sum(share * math.log(share, len(amounts)) for share in shares)

    share = importance.sum(axis=0) / importance.sum()
    disentanglement = sum(share[i] * certainty(importance[:, i]) for i in range(9) if share[i])
    found = sound_protocol(*halves(codes, attributes), ["a", "b", "c"], seed=4)["dci"]
    assert found["value"] == pytest.approx(disentanglement)
    assert found["completeness"]["value"] == pytest.approx(np.mean([certainty(row) for row in importance]))
    r2 = [model.score(test_codes, column) for model, column in zip(models, test_attributes.T, strict=True)]
    assert found["informativeness"]["value"] == pytest.approx(np.mean(r2))


def test_partial_scc_and_r2_by_the_formula(quick):
    codes, attributes = example()
    test_codes, test_attributes = halves(codes, attributes)[2:]
    z, a = stats.rankdata(test_codes, axis=0), stats.rankdata(test_attributes, axis=0)
    expected = []
    for k in range(3):
        others = np.column_stack([np.ones(len(a)), np.delete(a, k, axis=1)])
        left = [y - others @ np.linalg.lstsq(others, y, rcond=None)[0] for y in (z[:, k], a[:, k])]
        expected.append(np.corrcoef(*left)[0, 1])
    found = sound_protocol(*halves(codes, attributes), ["a", "b", "c"])
    assert values(found["partial_scc"]) == pytest.approx(expected)
    assert values(found["scc"]) == pytest.approx(spearman(test_codes, test_attributes))
    assert values(found["r2"]) == pytest.approx(held_out_r2(*halves(codes, attributes)))


def test_weights_count_a_subject_as_often():
    codes, attributes = (np.round(array, 1) for array in example(40))  # with ties
    attributes[::7, 2] = np.nan
    weights = np.random.default_rng(0).integers(0, 4, 40)
    repeated = [np.repeat(array, weights, axis=0) for array in (codes, attributes)]
    ones = np.ones((1, len(repeated[0])))
    drawn = weights[None].astype(float)
    assert np.allclose(metrics._ranks(codes[:, 0], drawn)[0].repeat(weights), stats.rankdata(repeated[0][:, 0]))
    assert np.allclose(metrics._scc(codes[:, :3], attributes, drawn)[0], spearman(*repeated))
    partial = metrics._partial_scc(codes[:, :3], attributes, [True] * 3, drawn)
    assert np.allclose(partial, metrics._partial_scc(repeated[0][:, :3], repeated[1], [True] * 3, ones))
    line = metrics._r2(codes[:, :2], attributes[:, :2], codes[:, :2], attributes[:, :2], ["", ""])
    assert np.allclose(line(drawn)[0], held_out_r2(codes, attributes[:, :2], repeated[0], repeated[1][:, :2]))


def test_intervals_hold_the_truth_and_repeat():
    rng = np.random.default_rng(2)
    attributes = rng.normal(size=(400, 2))
    codes = attributes + rng.normal(size=(400, 2))  # R² 0.5
    found = sound_protocol(*halves(codes, attributes), ["a", "b"])
    for metric, truth in (("r2", 0.5), ("scc", 6 / np.pi * np.arcsin(np.sqrt(0.5) / 2))):
        entry = found[metric]["per_attribute"]["a"]
        assert entry["low"] < entry["value"] < entry["high"]
        assert entry["low"] < truth < entry["high"]
        assert 0.1 < entry["high"] - entry["low"] < 0.3
    for entry in (found["dmig"], found["dci"], found["dci"]["completeness"], found["dci"]["informativeness"]):
        assert entry["low"] < entry["value"] < entry["high"] < entry["low"] + 0.6
    assert found == sound_protocol(*halves(codes, attributes), ["a", "b"])
    assert found["scc"]["low"] != sound_protocol(*halves(codes, attributes), ["a", "b"], seed=1)["scc"]["low"]


def test_interval_of_the_jackknife_is_that_of_the_mean():
    sample = np.random.default_rng(0).normal(size=40)
    means = np.array([np.delete(sample, i).mean() for i in range(40)])
    expected = stats.t.interval(0.95, 39, sample.mean(), stats.sem(sample))
    assert metrics._jackknife_interval(sample.mean(), means) == pytest.approx(expected)


def test_active_units_vary_over_test_subjects(quick):
    codes, attributes = example()
    codes[:, 5] = 40 + 0.05 * codes[:, 5]  # variance 0.0025
    codes[:120, 6] = 1000
    codes[120:, 6] = 7  # varies between training and test only
    found = sound_protocol(*halves(codes, attributes), ["a", "b", "c"])["active_units"]
    assert found == {"value": 7, "low": 7, "high": 7}


def test_undefined_values_have_a_reason(quick):
    codes, attributes = example()
    attributes = np.column_stack([attributes, attributes[:, 0], np.ones(240), attributes[:, 0]])
    codes[:, 1] = 2
    attributes[125:, 2] = np.nan
    attributes[0, 0] = np.nan
    found = sound_protocol(*halves(codes, attributes), NAMES, [0, 1, 2, 3, 4, 5])
    reasons = {metric: [e.get("undefined") for e in found[metric]["per_attribute"].values()] for metric in METRICS}
    for metric in METRICS:
        assert "its code is constant" in reasons[metric][1]
        assert "known for 5 test subjects" in reasons[metric][2]
        assert "attribute is constant" in reasons[metric][4]
        assert np.isnan([values(found[metric])[k] for k in (1, 2, 4)]).all()
    assert reasons["r2"][0] is reasons["scc"][0] is None
    assert "other attributes determine" in reasons["partial_scc"][0]
    assert found["scc"]["value"] == pytest.approx(np.mean([values(found["scc"])[k] for k in (0, 3, 5)]))
    assert np.isnan(found["partial_scc"]["value"])
    assert found["partial_scc"]["undefined"]
    assert np.isfinite(found["dci"]["value"])


def test_duplicate_attributes_have_no_dmig(quick):
    codes, attributes = example()
    attributes = attributes[:, [0, 0]]
    codes[:, :2] = attributes
    found = sound_protocol(*halves(codes, attributes), ["a", "b"])["dmig"]
    assert "another attribute carries" in found["per_attribute"]["a"]["undefined"]


def test_nothing_to_score_is_undefined_throughout(quick):
    found = sound_protocol(*halves(np.ones((20, 2)), np.ones((20, 1))), ["a"])
    assert found["active_units"]["value"] == 0
    for metric in (*METRICS, "dci"):
        assert "constant" in found[metric]["undefined"]


def test_one_attribute_on_one_dimension(quick):
    codes, attributes = (array[:, :1] for array in example())
    found = sound_protocol(*halves(codes, attributes), ["a"])
    assert found["partial_scc"]["value"] == pytest.approx(found["scc"]["value"])
    assert 0 < found["dmig"]["value"] < 1
    assert "two attributes" in found["dci"]["undefined"]
    assert "two dimensions" in found["dci"]["completeness"]["undefined"]


def test_missing_values_leave_their_subject_out_of_their_attribute_only(quick):
    codes, attributes = example()
    holey = attributes.copy()
    holey[100:150, 1] = np.nan
    found, whole = (sound_protocol(*halves(codes, a), ["a", "b", "c"]) for a in (holey, attributes))
    fewer = sound_protocol(codes[:100], attributes[:100], codes[150:], attributes[150:], ["a", "b", "c"])
    for metric in ("r2", "scc", "dmig"):
        assert values(found[metric])[1] == pytest.approx(values(fewer[metric])[1], abs=2e-3)
    for metric in ("r2", "scc"):
        assert values(found[metric])[0] == pytest.approx(values(whole[metric])[0])
    assert values(found["partial_scc"]) == pytest.approx(values(fewer["partial_scc"]))


def test_small_cohorts_and_rare_values_warn_of_nothing(quick):
    codes, attributes = example(20)
    attributes[:, 2] = 0
    attributes[[3, 13], 2] = 1  # constant in most resamples
    assert sound_protocol(*halves(codes, attributes), ["a", "b", "c"])["scc"]["low"] <= 1


def broken(**changes) -> dict:
    codes, attributes = example(24)
    return {"codes": codes, "attributes": attributes, "names": ["a", "b", "c"]} | changes


INVALID = [
    ({"codes": np.ones((9, 4)), "attributes": np.ones((9, 3))}, "9 .*subjects: give at least 10"),
    ({"codes": np.ones((23, 4))}, "same subjects"),
    ({"attributes": np.ones(24)}, r"\(24,\)"),
    ({"codes": np.full((24, 4), np.nan)}, "not finite"),
    ({"codes": np.full((24, 4), np.inf)}, r"rows \[0, 1, 2, 3, 4\]"),
    ({"attributes": np.full((24, 3), np.inf)}, "infinite"),
    ({"names": ["a", "b"]}, "3 columns"),
    ({"names": "abc"}, "one each"),
    ({"names": ["a", "b", "b"]}, "differ"),
    ({"names": ["a", "b", "mean"]}, "'mean'"),
]


@pytest.mark.parametrize(("changes", "message"), INVALID)
def test_invalid_input(changes, message):
    wrong, right = broken(**changes), broken()
    with pytest.raises(ValueError, match=message):
        paper_protocol(**wrong)
    for train, test in ((wrong, right), (right, wrong)):
        with pytest.raises(ValueError, match=message):
            sound_protocol(train["codes"], train["attributes"], test["codes"], test["attributes"], wrong["names"])


def test_paper_protocol_needs_known_attributes():
    attributes = example(24)[1]
    attributes[9:, 1] = np.nan
    with pytest.raises(ValueError, match="b is known for 9 subjects"):
        paper_protocol(**broken(attributes=attributes))


@pytest.mark.parametrize("dimensions", [[0, 1], [0, 1, 9], [0, 1, 1], [-1, 0, 1], [0, 1, 0.5]])
def test_invalid_dimensions(dimensions):
    codes, attributes = example(24)
    with pytest.raises(ValueError, match="3 different integers, one per attribute, from 0 to 8"):
        sound_protocol(*halves(codes, attributes), ["a", "b", "c"], dimensions)


def test_more_attributes_than_dimensions():
    codes, attributes = example(24)
    with pytest.raises(ValueError, match="from 0 to 1"):
        sound_protocol(*halves(codes[:, :2], attributes), ["a", "b", "c"])
    with pytest.raises(ValueError, match="give at least 3"):
        reference_codes(attributes, 2, seed=0)
    with pytest.raises(ValueError, match="shape"):
        reference_codes(attributes[0], 2, seed=0)


def test_codes_of_different_models():
    codes, attributes = example(24)
    with pytest.raises(ValueError, match="9 dimensions and test codes 8"):
        sound_protocol(codes[:12], attributes[:12], codes[12:, :8], attributes[12:], ["a", "b", "c"])
