import json
from dataclasses import replace

import pytest
import torch

from scripts.cohort.attributes import VOLUMES
from scripts.counterfactual import ALL_ELSE_EQUAL, IN_POPULATION
from scripts.report_page.hearts import listed, with_fractions
from scripts.report_page.pictures import QUALITIES
from scripts.views import View
from tests.report_page.examples import ruler, some_frames, some_heart

ROWS = [*VOLUMES, "LVEF", "RVEF"]


@pytest.fixture(scope="module")
def subject():
    return some_frames(measure=ruler).page([some_heart()])["subjects"][0]


def test_a_request_is_asked_measured_and_reported(subject):
    (smaller, larger), before = subject["requests"][ALL_ELSE_EQUAL]["LVEDV"], subject["before"]
    assert [smaller["amount"], larger["amount"]] == [-10, 10]
    for key, share in (("asked", 1), ("own", 1), ("measured", 0.9)):
        assert larger[key][0] - before[key][0] == pytest.approx(10 * share, abs=0.3)
        assert larger[key][1:6] == pytest.approx(before[key][1:6], abs=0.3)
    assert larger["picture"] != before["picture"]
    assert larger["lines"][0][0] != before["lines"][0][0]


def test_in_the_population_the_rest_follows_as_expected(subject):
    (_, larger), before = subject["requests"][IN_POPULATION]["LVEDV"], subject["before"]
    assert larger["asked"][0] - before["asked"][0] == pytest.approx(10, abs=0.1)
    assert any(abs(larger["asked"][k] - before["asked"][k]) > 0.5 for k in range(1, 6))


def test_the_heart_of_each_kind_is_the_one_that_was_solved_for():
    frames, heart = some_frames(changes=(10,)), some_heart()
    requests, tool = frames.subject(heart)["requests"], frames.counterfactuals
    for kind in (ALL_ELSE_EQUAL, IN_POPULATION):
        changed = tool.attributes(tool.change(heart.code[None], "LVEDV", 10.0, kind))[0]
        assert requests[kind]["LVEDV"][0]["own"][:6] == pytest.approx(changed.tolist(), abs=0.05)
    own = [requests[kind]["LVEDV"][0]["own"] for kind in (ALL_ELSE_EQUAL, IN_POPULATION)]
    assert own[0] != pytest.approx(own[1], abs=0.5)


def test_requests_that_are_not_allowed_are_not_offered():
    frames = some_frames(changes=(-1000, 7.7, 10, 1000))
    offers = frames.subject(some_heart())["requests"][ALL_ELSE_EQUAL]["LVEDV"]
    assert [offer["amount"] for offer in offers] == [7.7, 10]  # the very numbers of the page, which looks them up


def test_what_is_allowed_depends_on_what_else_may_change(monkeypatch):
    frames = some_frames(changes=(10, 20))
    only = {ALL_ELSE_EQUAL: 10, IN_POPULATION: 20}
    monkeypatch.setattr(frames.counterfactuals, "allowed", lambda values, name, amounts, kind: amounts == only[kind])
    requests = frames.subject(some_heart())["requests"]
    assert {kind: [offer["amount"] for offer in requests[kind]["LVEDV"]] for kind in only} == {
        kind: [amount] for kind, amount in only.items()
    }


def test_without_an_instrument_there_is_only_the_self_report():
    page = some_frames().page([some_heart()])
    assert page["instrument"] == ""
    assert page["subjects"][0]["before"]["measured"] == []
    assert len(page["subjects"][0]["before"]["own"]) == len(ROWS)


def test_an_instrument_may_know_less_than_all_attributes():
    frames = some_frames(measure=lambda images: {"LVEDV": images.sum((1, 2, 3))})
    measured = frames.subject(some_heart())["scan"]["measured"]
    assert measured[0] > 0
    assert measured[1:] == [None] * 7


def test_a_view_without_maps_has_no_lines():
    view = View(slices=["basal", "mid"])
    page = some_frames(view).page([some_heart(view=view)])
    assert page["colors"] == []
    assert page["subjects"][0]["before"]["lines"] == []
    assert page["slices"] == ["basal", "mid"]


def test_the_page_is_json_without_names():
    page = some_frames().page([some_heart(7, notes=["out"], out_of_range=True)])
    json.dumps(page, allow_nan=False)
    assert [row["name"] for row in page["attributes"]] == ROWS
    assert page["attributes"][6]["unit"] == "%"
    assert page["changes"] == [-10, 0, 10]
    subject = page["subjects"][0]
    assert (subject["number"], subject["notes"], subject["out_of_range"]) == (7, ["out"], True)


def test_ejection_fractions_follow_from_volumes():
    values = torch.tensor([[160.0, 150, 100, 40, 60, 110]])
    assert listed(with_fractions(VOLUMES, values))[0][6:] == [75, 60]
    assert with_fractions(("LVEDV",), values[:, :1]).shape == (1, 1)


def test_what_is_not_finite_is_null():
    values = torch.tensor([[69.4774, torch.nan, torch.inf]])
    assert listed(values) == [[69.477, None, None]]  # the page rounds, once


def noisy_heart():
    heart = some_heart()
    noise = torch.rand(heart.image.shape, generator=torch.Generator().manual_seed(0))
    return replace(heart, image=heart.image + 0.1 * noise)


def test_quality_is_what_the_budget_affords():
    chosen = [some_frames().affordable([noisy_heart()], budget) for budget in (1e6, 9.4e4, 1e3)]
    assert chosen[0] == QUALITIES[0] > chosen[1] > chosen[2] == QUALITIES[-1]
    assert some_frames().affordable([], 1e6) == QUALITIES[0]


def test_a_page_keeps_to_its_budget():
    sizes = [len(json.dumps(some_frames().page([noisy_heart()], budget))) for budget in (2e5, 1e3)]
    assert sizes[1] < sizes[0] < 2e5
