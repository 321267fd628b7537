from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from scripts.metrics.faithfulness import faithfulness, measurement, order_counts, subject_means

pytestmark = pytest.mark.filterwarnings("error")
NAMES = ["LVEDV", "RVEDV", "MyoEDV"]
CHANGES = np.array([-40.0, -20, -10, 10, 20, 40])


@pytest.fixture
def requested():
    """Of 30 subjects, some cannot be asked for the largest changes."""
    asked = np.tile(CHANGES, (3, 30, 1))
    asked[:, ::4, 0] = asked[1, ::3, 5] = np.nan
    return alone(asked)


def alone(asked):
    """Requests (A, subjects, R) that nothing else changes: (A, subjects, R, A)."""
    return asked[..., None] * np.eye(len(asked))[:, None, None]


def own(values):
    """Of what is asked for (A, subjects, R, A), the attribute that it is asked of: (A, subjects, R)."""
    return np.stack([values[k, ..., k] for k in range(len(values))])


def answered(requested, strength=1.0, drift=0.0, error=0.0):
    """What an instrument measures of a decoder with these faults."""
    others = np.array([1.0, -1, 1]) * drift  # of either sign: a mean that forgot to take absolutes would find nothing
    measured = own(requested)[..., None] * np.where(np.eye(3, dtype=bool)[:, None, None], strength, others)
    return measured + error * np.random.default_rng(0).standard_normal(measured.shape)


def values(found, figure):
    return [found[figure]["per_attribute"][name]["value"] for name in NAMES]


def test_a_true_answer_is_perfect(requested):
    found = faithfulness(requested, answered(requested), NAMES)
    assert values(found, "slope") == pytest.approx([1] * 3)
    assert values(found, "r2") == pytest.approx([1] * 3)
    assert values(found, "monotonicity") == [1] * 3
    assert values(found, "error") == values(found, "drift") == [0] * 3


def test_half_strength_has_slope_one_half_and_half_the_error(requested):
    found = faithfulness(requested, answered(requested, 0.5), NAMES)
    assert values(found, "slope") == pytest.approx([0.5] * 3)
    assert values(found, "r2") == pytest.approx([1] * 3)
    assert values(found, "error") == pytest.approx(np.nanmean(np.abs(own(requested)), axis=(1, 2)) / 2)


def test_the_wrong_direction_is_seen_in_slope_and_order_and_not_in_r2(requested):
    found = faithfulness(requested, answered(requested, -1), NAMES)
    assert values(found, "slope") == pytest.approx([-1] * 3)
    assert values(found, "r2") == pytest.approx([1] * 3)
    assert values(found, "monotonicity") == [0] * 3


def test_drift_is_what_the_others_do_in_parts_of_the_request(requested):
    assert values(faithfulness(requested, answered(requested, drift=0.2), NAMES), "drift") == pytest.approx([0.2] * 3)


def test_what_was_to_follow_is_no_drift(requested):
    following = answered(requested, drift=0.3)
    assert values(faithfulness(following, following, NAMES), "drift") == [0] * 3
    assert values(faithfulness(following, requested, NAMES), "drift") == pytest.approx([0.3] * 3)


def test_the_line_is_that_of_all_known_pairs(requested):
    measured = answered(requested, 0.7, error=8)
    measured[1, 5, :, 1] = np.nan
    x, y = requested[1, ..., 1], measured[1, ..., 1]
    known = np.isfinite(x + y)
    line = stats.linregress(x[known], y[known])
    found = faithfulness(requested, measured, NAMES)
    assert values(found, "slope")[1] == pytest.approx(line.slope)
    assert values(found, "r2")[1] == pytest.approx(line.rvalue**2)
    assert found["slope"]["value"] == pytest.approx(np.mean(values(found, "slope")))


def test_subjects_are_drawn_with_all_of_their_requests():
    rng = np.random.default_rng(1)
    strengths = rng.normal(1, 0.3, 200)
    requested = alone(np.tile(CHANGES, (1, 200, 1)))
    found = faithfulness(requested, requested * strengths[:, None, None], ["LVEDV"])["slope"]
    half = 1.96 * stats.sem(strengths)  # six times as many independent requests would make it narrower
    assert found["high"] - found["low"] == pytest.approx(2 * half, rel=0.15)


def test_what_does_not_answer_explains_nothing(requested):
    found = faithfulness(requested, answered(requested, 0), NAMES)
    for figure in ("slope", "r2", "monotonicity"):
        assert values(found, figure) == [0] * 3


def test_one_attribute_has_none_to_drift():
    requested = alone(np.tile(CHANGES, (1, 12, 1)))
    assert "undefined" in faithfulness(requested, requested, ["LVEDV"])["drift"]


def test_too_few_subjects_have_no_figures(requested):
    measured = answered(requested)
    measured[0, :, :, 0] = np.nan
    measured[1, 9:, :, 1] = np.nan
    found = faithfulness(requested, measured, NAMES)["slope"]["per_attribute"]
    reason = "9 subjects have requests that were measured, of at least 10"
    assert (found["LVEDV"]["undefined"], found["RVEDV"]["undefined"]) == (reason.replace("9", "0"), reason)
    assert found["MyoEDV"]["value"] == pytest.approx(1)


def test_nine_subjects_are_too_few_for_each_report_and_ten_are_enough():
    known = np.random.default_rng(0).normal(150, 40, (10, 1))
    known = np.column_stack([known, np.where(np.arange(10) < 9, known[:, 0], np.nan)])
    of_values = measurement(known, known, NAMES[:2])["error"]["per_attribute"]
    of_means = subject_means(known.T, NAMES[:2])["per_attribute"]
    for found, what in ((of_values, "values that were measured"), (of_means, "known values")):
        assert "undefined" not in found["LVEDV"]
        assert found["RVEDV"]["undefined"] == f"9 subjects have {what}, of at least 10"


def test_equal_seeds_draw_equal_subjects_and_others_do_not(requested):
    measured = answered(requested, 0.7, error=8)
    truth = np.random.default_rng(0).normal(150, 40, (30, 3))
    reports = (
        lambda **seed: faithfulness(requested, measured, NAMES, **seed)["slope"],
        lambda **seed: measurement(truth, truth + measured[0, :, 2], NAMES, **seed)["error"],
        lambda **seed: subject_means(np.abs(own(measured)), NAMES, **seed),
    )
    for found in reports:
        assert found(seed=3)["low"] == found(seed=3)["low"] != found()["low"]
        assert found()["low"] == found(seed=0)["low"]


def test_no_change_stands_among_the_neighbors():
    requested = np.array([[10.0, -10], [10, np.nan], [10, -10]])
    measured = np.array([[5.0, 2], [-1, np.nan], [3, np.nan]])
    rising, neighbors = order_counts(requested, measured)
    assert rising.tolist() == [1, 0, 1]  # 2 at -10, 0 at 0: falls; 5 at 10: rises
    assert neighbors.tolist() == [2, 1, 1]


def test_neighbors_are_those_of_the_requests_and_any_rise_counts():
    requested = np.array([[30.0, -10, 10, -30]])
    rising, neighbors = order_counts(requested, np.array([[0.9, -0.1, 0.2, -0.2]]))
    assert (rising.tolist(), neighbors.tolist()) == ([4], [4])
    rising, _ = order_counts(requested, np.array([[0.1, -0.1, 0.2, -0.2]]))
    assert rising.tolist() == [3]


@pytest.mark.parametrize(("broken", "message"), [("shape", r"give \(A, subjects, R, A\)"), ("zero", "leave it out")])
def test_other_arrays_are_refused(broken, message, requested):
    measured = answered(requested)
    if broken == "shape":
        measured = measured[:, :-1]
    else:
        requested[0, 0, 1, 0] = 0
    with pytest.raises(ValueError, match=message):
        faithfulness(requested, measured, NAMES)


def test_an_instrument_that_draws_hearts_to_the_mean_is_found_out():
    truth = np.random.default_rng(0).normal(150, 40, (50, 2))
    truth[::5, 1] = np.nan
    measured = 153 + 0.6 * (truth - 150)
    found = measurement(truth, measured, ["LVEDV", "RVEDV"])
    for k, name in enumerate(("LVEDV", "RVEDV")):
        wrong = (measured - truth)[np.isfinite(truth[:, k]), k]
        assert found["slope"]["per_attribute"][name]["value"] == pytest.approx(0.6)
        assert found["bias"]["per_attribute"][name]["value"] == pytest.approx(wrong.mean())
        assert found["error"]["per_attribute"][name]["value"] == pytest.approx(np.abs(wrong).mean())


def test_means_leave_out_what_is_not_known():
    errors = np.arange(40.0).reshape(1, 20, 2)
    errors[0, ::2, 1] = np.nan
    found = subject_means(errors, ["LVEDV"])
    assert found["value"] == pytest.approx(np.nanmean(errors))
    assert found["low"] < found["value"] < found["high"]


def test_a_mean_over_requests_of_several_kinds_is_over_all_of_them():
    errors = np.random.default_rng(0).normal(5, 1, (2, 12, 3, 2))
    found = subject_means(errors, NAMES[:2])
    for row, name in zip(errors, NAMES[:2], strict=True):
        assert found["per_attribute"][name]["value"] == pytest.approx(row.mean())
    assert found.keys() == {"value", "low", "high", "per_attribute"}
