from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats
from sklearn.feature_selection import mutual_info_regression

from scripts.metrics import (
    active_units,
    disentanglement,
    held_out_r2,
    mean_spearman,
    paper_intervals,
    paper_protocol,
    partial_correlations,
    reference_codes,
    resampling,
    sound_protocol,
    spearman,
)
from scripts.metrics.correlations import all_correlations, significant
from tests.conftest import shared
from tests.metrics.examples import example, halves, hearts

RNG = np.random.default_rng(0)
METRICS = ("r2", "scc", "partial_scc", "dmig")
NAMES = ["LVEDV", "LVESV", "RVEDV", "RVESV", "MyoEDV", "MyoESV"]
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


def test_held_out_r2_leaves_missing_values_out_and_is_nan_where_undefined(recwarn):
    rng = np.random.default_rng(0)
    attributes = rng.normal(size=(60, 4))
    codes = attributes + rng.normal(size=(60, 4))
    expected = held_out_r2(codes[5:30], attributes[5:30], codes[30:55], attributes[30:55])[0]
    attributes[:5, 0] = attributes[55:, 0] = attributes[2:30, 1] = np.nan
    attributes[30:, 2] = 0.1
    codes[:30, 3] = 7
    found = held_out_r2(*halves(codes, attributes))
    assert found[0] == pytest.approx(expected)
    assert np.isnan(found[1:]).all()
    assert not recwarn


def test_codes_of_an_untrained_network_may_be_nan():
    attributes = np.arange(9.0)[:, None]
    assert np.isnan(mean_spearman(np.full((9, 4), np.nan), attributes))
    assert np.isnan(held_out_r2(attributes, attributes, np.full((9, 4), np.nan), attributes)).all()
    assert np.isnan(spearman(attributes[:2], attributes[:2])).all()


def test_partial_correlations_by_the_formula():
    codes, attributes = example()
    attributes = np.column_stack([attributes, np.full(240, 3)])
    codes[:, 8] = 1
    found = partial_correlations(codes, attributes)
    z, a = stats.rankdata(codes, axis=0), stats.rankdata(attributes[:, :3], axis=0)
    for k in range(3):
        others = np.column_stack([np.ones(240), np.delete(a, k, axis=1)])
        left = np.column_stack([a[:, k], z[:, :8]])
        left -= others @ np.linalg.lstsq(others, left, rcond=None)[0]
        assert found[k, :8] == pytest.approx(np.corrcoef(left.T)[0, 1:])
    assert np.isnan(found[3]).all()
    assert np.isnan(found[:, 8]).all()


def test_partial_correlations_of_few_subjects_are_nan():
    codes, attributes = example(9)
    assert np.isnan(partial_correlations(codes, attributes)).all()
    with pytest.raises(ValueError, match="same subjects"):
        partial_correlations(codes, attributes[1:])


def test_paper_intervals_hold_the_values_of_the_paper_protocol():
    codes, attributes = example()
    names = ["a", "b", "c"]
    value = paper_protocol(codes, attributes, names)
    found = paper_intervals(codes, attributes, names, {"all": names, "some": ["b", "c"]})
    interpretability = found.pop("interpretability")
    for name in names:
        each = interpretability["each"][name]
        assert (each["dimension"], each["value"]) == (
            value["interpretability"][name][0],
            pytest.approx(value["interpretability"][name][1]),
        )
    assert interpretability["all"]["value"] == pytest.approx(value["interpretability"]["mean"][1])
    some = np.mean([value["interpretability"][name][1] for name in ("b", "c")])
    assert interpretability["some"]["value"] == pytest.approx(some)
    assert {name: entry["value"] for name, entry in found.items()} == pytest.approx(
        {name: value[name] for name in ("scc", "modularity", "sap", "mig")}
    )
    for entry in (interpretability["all"], interpretability["each"]["a"], found["scc"], found["sap"], found["mig"]):
        assert entry["low"] < entry["value"] < entry["high"] < entry["low"] + 0.5


def test_paper_intervals_repeat_the_protocol_without_each_group():
    codes, attributes = example()
    kept = resampling.without_groups(len(codes), seed=3)
    replicates = [paper_protocol(codes[rows], attributes[rows], ["a", "b", "c"]) for rows in kept]
    found = paper_intervals(codes, attributes, ["a", "b", "c"], seed=3)
    for metric in ("scc", "sap"):
        samples = np.array([replicate[metric] for replicate in replicates])
        expected = resampling.jackknife_interval(found[metric]["value"], samples)
        assert (found[metric]["low"], found[metric]["high"]) == pytest.approx(expected)


def test_paper_intervals_leave_undefined_attributes_out():
    codes, attributes = example()
    holey = np.column_stack([attributes, np.full(240, 0.1), attributes[:, 0]])
    holey[9:, 4] = np.nan
    found = paper_intervals(codes, holey, [*"abcde"], {"all": [*"abcde"], "none": ["d", "e"]})
    alone = paper_intervals(codes, attributes, ["a", "b", "c"])
    interpretability = found["interpretability"]
    assert found["mig"] == alone["mig"]
    assert interpretability["all"] == alone["interpretability"]["all"]
    assert "constant" in interpretability["each"]["d"]["undefined"]
    assert "known for 9 subjects" in interpretability["each"]["e"]["undefined"]
    assert "constant" in interpretability["none"]["undefined"]
    nothing = paper_intervals(codes, holey[:, 3:], ["d", "e"])
    assert all("constant" in nothing[metric]["undefined"] for metric in ("scc", "modularity", "sap", "mig"))
    assert nothing["interpretability"]["each"]["d"]["dimension"] == -1


def test_paper_intervals_of_constant_codes_are_zero():
    found = paper_intervals(np.ones((20, 3)), example(20)[1], ["a", "b", "c"])
    assert found["mig"] == found["interpretability"]["all"] == {"value": 0, "low": 0, "high": 0}


@pytest.mark.parametrize("groups", [{"all": ["a", "x"]}, {"none": []}, {"each": ["a"]}, {"all": "abc"}])
def test_invalid_groups(groups):
    with pytest.raises(ValueError, match="The group"):
        paper_intervals(**broken(), groups=groups)


@pytest.fixture
def quick(monkeypatch):
    """Few resamples, groups and trees, where intervals are not the matter."""
    monkeypatch.setattr(resampling, "RESAMPLES", 40)
    monkeypatch.setattr(resampling, "GROUPS", 2)
    monkeypatch.setitem(disentanglement.DCI_TREES, "n_estimators", 5)


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
    rank = all_correlations(data["codes"], data["attributes"])[1]
    assert np.allclose(
        significant(rank[None], np.full((1, 6), len(data["codes"])))[0], data["spearman_thresholded"], atol=1e-6
    )


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


def test_reference_codes_by_the_formula():
    attributes = hearts(60) * np.array([1, 2, 0.5, 1, 1, 1])
    attributes[[3, 7], [1, 4]] = np.nan
    found = reference_codes(attributes, 8, seed=1)
    standardized = (attributes - np.nanmean(attributes, axis=0)) / np.nanstd(attributes, axis=0)
    standardized = np.nan_to_num(standardized)  # what is missing counts as the mean
    assert np.allclose(found["oracle"][:, :6], standardized)
    values, axes = np.linalg.eigh(standardized.T @ standardized)
    size = standardized @ axes[:, values.argmax()] * np.sign(axes[:, values.argmax()].sum())
    assert np.allclose(found["heart size"][:, :6], (size / size.std())[:, None])
    assert all(np.array_equal(codes[:, 6:], found["noise"][:, 6:]) for codes in found.values())
    assert np.array_equal(found["noise"], reference_codes(attributes, 8, seed=1)["noise"])
    assert reference_codes(attributes, 6, seed=1)["oracle"].shape == (60, 6)


def test_an_error_of_the_size_axis_is_the_same_on_all_dimensions():
    attributes = hearts(400)
    exact, measured = (reference_codes(attributes, 8, 1, size_error=error)["heart size"] for error in (0, 0.3))
    error = measured[:, :6] - exact[:, :6]
    assert np.array_equal(error, np.repeat(error[:, :1], 6, axis=1))
    assert error[:, 0].std() == pytest.approx(0.3, rel=0.15)


@pytest.mark.slow
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


def test_active_units_vary_over_test_subjects(quick):
    codes, attributes = example()
    codes[:, 5] = 40 + 0.05 * codes[:, 5]  # variance 0.0025
    codes[:120, 6] = 1000
    codes[120:, 6] = 7  # varies between training and test only
    found = sound_protocol(*halves(codes, attributes), ["a", "b", "c"])["active_units"]
    assert found == {"value": 7, "low": 7, "high": 7}
    assert active_units(codes[120:]) == 7
    assert active_units(codes) == 8


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
