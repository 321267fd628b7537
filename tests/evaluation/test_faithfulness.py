from __future__ import annotations

import numpy as np
import pytest
import torch

from scripts.counterfactual import IN_POPULATION, Counterfactuals, RequestError
from scripts.evaluation.faithfulness import measurable, own
from scripts.views import View
from tests.evaluation.world import NAMES, SCALE, Generator, ask, hearts

pytestmark = pytest.mark.filterwarnings("error")


def value(metrics, figure, instrument="reader", attribute="LVEDV"):
    return metrics["answers"][instrument][figure]["per_attribute"][attribute]["value"]


def test_a_true_decoder_is_found_true():
    metrics, _ = ask(Generator())
    for name in NAMES:
        assert value(metrics, "slope", attribute=name) == pytest.approx(1, abs=0.01)
        assert value(metrics, "r2", attribute=name) > 0.999
        assert value(metrics, "monotonicity", attribute=name) == 1
        for figure in ("error", "reversibility", "composition", "idle"):
            assert value(metrics, figure, attribute=name) < 0.2
        assert value(metrics, "drift", attribute=name) < 0.02


def test_half_strength_is_seen_by_the_instrument_and_not_by_the_model():
    metrics, _ = ask(Generator(strength=0.5))
    assert value(metrics, "slope") == pytest.approx(0.5, abs=0.01)
    assert value(metrics, "slope", "self-report") == pytest.approx(1, abs=0.01)
    assert value(metrics, "error") == pytest.approx(7.5, abs=0.1)  # half of 10 and 20


def test_drift_is_of_the_others_alone():
    metrics, _ = ask(Generator(drift=0.4))
    assert value(metrics, "drift") == pytest.approx(0.2, abs=0.01)  # of two others, one follows
    assert value(metrics, "drift", attribute="RVEDV") < 0.02
    assert value(metrics, "slope") == pytest.approx(1, abs=0.01)


def test_an_encoder_that_forgets_is_not_reversible():
    codes = hearts()
    metrics, _ = ask(Generator(memory=0.9), codes)
    z, change = codes[:, :1], np.array([-10, 10])
    back = SCALE * (0.9 * (z + change / SCALE) - change / SCALE - z)
    twice = SCALE * (0.9 * (z + change / 2 / SCALE) + change / 2 / SCALE - z) - change
    assert value(metrics, "reversibility") == pytest.approx(np.abs(back).mean(), abs=0.1)
    assert value(metrics, "composition") == pytest.approx(np.abs(twice).mean(), abs=0.1)
    assert value(metrics, "idle") == pytest.approx(np.abs(0.1 * SCALE * z).mean(), abs=0.1)


def test_what_changes_beside_the_heart_is_found():
    metrics, _ = ask(Generator(spill=0.2))
    per_attribute = metrics["identity"]["changed"]["per_attribute"]
    assert per_attribute["LVEDV"]["value"] == pytest.approx(0.2 * 10 / SCALE, abs=0.002)
    assert per_attribute["RVEDV"]["value"] < 0.002
    assert metrics["identity"]["reconstruction"]["value"] == pytest.approx(
        0.2 * np.abs(hearts()[:, 0]).mean(), abs=1e-6
    )


def test_instruments_are_judged_on_scans_and_on_reconstructions():
    metrics, _ = ask(Generator(strength=0.5))
    errors = {images: found["error"]["value"] for images, found in metrics["instruments"]["reader"].items()}
    assert errors["scans"] == pytest.approx(0, abs=1e-3)
    assert errors["reconstructions"] == pytest.approx(np.abs(0.5 * SCALE * hearts()).mean(), rel=1e-3)


def test_a_request_that_is_not_met_is_not_counted_as_met(monkeypatch):
    monkeypatch.setattr(Counterfactuals, "residuals", lambda self, codes, *request: torch.full((len(codes), 3), -5.0))
    metrics, _ = ask(Generator())
    assert metrics["requests"]["LVEDV"] == {"asked": 48, "allowed": 48, "met": 0}


def test_what_is_allowed_depends_on_what_else_may_change(monkeypatch):
    kinds = []
    allowed = Counterfactuals.allowed
    monkeypatch.setattr(Counterfactuals, "allowed", lambda *request: (kinds.append(request[-1]), allowed(*request))[1])
    ask(Generator(), kind=IN_POPULATION)
    assert set(kinds) == {IN_POPULATION}


def test_requests_beyond_the_trained_range_are_left_out_and_counted():
    codes = hearts()
    codes[:3, 0] = 2.8  # 156 of at most 160 mL
    metrics, answers = ask(Generator(), codes)
    assert metrics["requests"]["LVEDV"] == {"asked": 48, "allowed": 42, "met": 42}
    assert metrics["requests"]["RVEDV"]["allowed"] == 48
    asked = own(answers.requested)[0]
    assert np.isnan(asked[:3, 2:]).all()
    assert np.isfinite(asked[:3, :2]).all()
    assert answers.changes == [-20, -10, 10, 20]


@pytest.mark.parametrize("kind", ["all_else_equal", "population"])
def test_all_subjects_are_asked_for_the_very_same_changes(kind):
    _, answers = ask(Generator(), hearts() + 1 / 3, kind=kind)
    for change, asked in zip(answers.changes, np.moveaxis(own(answers.requested), 2, 0), strict=True):
        assert set(asked[np.isfinite(asked)]) == {change}


def test_without_an_allowed_request_the_reason_is_given():
    metrics, _ = ask(Generator(), changes=[500], round_trip=[])
    assert metrics["requests"]["LVEDV"]["allowed"] == 0
    assert "0 subjects have requests" in metrics["answers"]["reader"]["slope"]["undefined"]
    assert metrics["instruments"]["reader"]["scans"]["error"]["value"] < 1e-3


def test_in_the_population_the_others_follow():
    metrics, answers = ask(Generator(), kind="population")
    follows = answers.requested[0, 0, 3]
    assert follows[0] == pytest.approx(20)
    assert abs(follows[1]) > 1
    assert value(metrics, "slope") == pytest.approx(1, abs=0.02)
    assert metrics["kind"] == "population"


def test_a_limit_leaves_out_the_others():
    metrics, answers = ask(Generator(), hearts(14), limit=11)
    assert metrics["subjects"] == 11
    assert answers.requested.shape[1] == 11


def test_rows_hold_what_was_asked_and_measured():
    _, answers = ask(Generator(strength=0.5))
    rows = list(answers.rows(range(12)))
    assert len(rows) == 12 * 3 * 4 * 2
    row = next(
        row for row in rows if row["pseudonym"] == 3 and row["attribute"] == "RVEDV" and row["requested"] == "20"
    )
    assert row["instrument"] == "reader"
    assert float(row["RVEDV"]) == pytest.approx(10, abs=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"changes": []}, "whatif_changes"),
        ({"changes": [0, 10]}, "none of them 0"),
        ({"changes": "10"}, "whatif_changes"),
        ({"round_trip": [15]}, "whatif_round_trip"),
        ({"limit": 0}, "whatif_subjects"),
        ({"limit": 2.5}, "whatif_subjects"),
        ({"limit": "ten"}, "whatif_subjects"),
        ({"kind": "magic"}, "kind 'magic'"),
        ({"regularized": False}, "measure_whatif"),
    ],
)
def test_requests_that_tell_nothing_are_refused(changes, message):
    with pytest.raises((ValueError, RequestError), match=message):
        ask(Generator(), **changes)


def test_what_is_measured_by_default():
    stack = View(slices="stack")
    assert measurable(stack, ["LVEDV"], True)
    assert not measurable(stack, ["LVEDV"], False)
    assert not measurable(View(), ["LVEDV"], True)
    assert not measurable(stack, ["LVEF"], True)
