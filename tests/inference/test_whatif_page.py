from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scripts.counterfactual import IN_POPULATION, Request
from scripts.figures import OUTLINES, WHITE
from scripts.inference.answers import Answer
from scripts.inference.page import caution_lines
from scripts.inference.results import Result
from scripts.inference.whatif_page import draw_page, most_changed, page_figure, title
from scripts.views import View
from tests.inference.examples import measured
from tests.inference.hearts import NAMES, DrawnHeart

BEFORE = dict(zip(NAMES, (140.0, 150.0, 110.0, 60.0, 70.0, 115.0), strict=True))


def answer(request=None, missed=0.0, outside=False, view=None, moved=0.5):
    """20 mL more LVEDV in the mean heart, or what is missed of it."""
    request = request or Request("LVEDV", change=20)
    asked = BEFORE | {"LVEDV": 160.0}
    after = asked | {"RVESV": BEFORE["RVESV"] + missed}
    codes = torch.zeros(2, 8)
    codes[1, 0] = 0.5
    image, changed = DrawnHeart().decode(codes).numpy()
    if view is not None:  # of one slice and no maps
        image, changed = (each[[1, 13]] for each in (image, changed))
    novelty = SimpleNamespace(
        percentiles={"error_ED": 99.5}, percentile=99.9 if outside else 40.0, out_of_range=outside
    )
    result = Result(measured(), codes[0].numpy(), image, image, {}, novelty)
    asked = {"LVEDV": 160.0} if request.kind == IN_POPULATION else asked
    return Answer(
        request, result, changed, BEFORE, after, asked, view is None, dict.fromkeys(NAMES, (50.0, 200.0)), moved
    )


def texts(*arguments, view=None, **options):
    figure = page_figure(answer(view=view, **options), view or DrawnHeart().view, *arguments)
    return [text.get_text() for text in figure.texts]


def test_the_title_says_what_was_asked():
    assert texts()[0] == "What if LVEDV (ED) changed by +20 mL, from 140 to 160 mL, all else equal?"
    shown = answer()
    shown.asked["LVEDV"] = 142.5
    assert "changed by +2.5 mL, from 140.0 to 142.5 mL" in title(shown)
    population = texts(request=Request("LVEDV", target=160, kind=IN_POPULATION))
    assert population[0].endswith("from 140 to 160 mL, the rest as in the population?")


def test_numbers_of_each_attribute_stand_in_a_row():
    found = texts()
    row = found.index("LVEDV (ED)")
    assert found[row : row + 6] == ["LVEDV (ED)", "120", "140", "160", "160", "+20"]
    row = found.index("LVEF (%)")
    assert found[row : row + 6] == ["LVEF (%)", "58", "57", "–", "62", "+5"]
    population = texts(request=Request("LVEDV", target=160, kind=IN_POPULATION))
    row = population.index("RVEDV (ED)")
    assert population[row : row + 6] == ["RVEDV (ED)", "120", "150", "–", "150", "0"]


@pytest.mark.parametrize(("missed", "told"), [(0.5, False), (-7.0, True)])
def test_a_request_that_is_missed_is_told(missed, told):
    warning = f"NOT FULFILLED: RVESV is {BEFORE['RVESV'] - 7:.0f} instead of {BEFORE['RVESV']:.0f} mL."
    assert (warning in texts(missed=missed)) == told


def test_a_scan_out_of_range_and_a_bad_model_are_told():
    assert any(text.startswith("SCAN OUT OF RANGE") for text in texts(outside=True))
    assert "Scan in range: more unusual than 40% of known scans" in texts()
    assert "This model has a flaw." in texts("This model has a flaw.")


def test_what_is_wrong_stands_above_the_pictures():
    view = View()  # with which nothing is measured: the most there is to say
    shown = answer(view=view, outside=True, missed=7.0, moved=2.5)
    cautions = [
        "This model reconstructs hearts no better than their mean image: do not use it.",
        "The codes of this model do not tell volumes: do not use its estimates.",
        "The range is known from 12 scans only.",
    ]
    figure = page_figure(shown, view, caution_lines(cautions))
    figure.canvas.draw()
    images = max(axis.title.get_window_extent().y1 for axis in figure.axes)
    starts = ("This model reconstructs", "SCAN OUT OF RANGE", "A change starts from the heart as the model sees it")
    told = [text for text in figure.texts if text.get_text().startswith(starts)]
    assert len(told) == 3
    assert "NOT FULFILLED" in told[0].get_text()
    assert all(text.get_window_extent().y0 > images for text in told)
    assert all(text.get_window_extent().x1 < figure.bbox.x1 for text in figure.texts)
    for above, below in itertools.pairwise(told):
        assert above.get_window_extent().y0 > below.get_window_extent().y1


def test_numbers_that_are_not_measured_are_told():
    assert any("those of the decoded maps" in text for text in texts())
    warned = texts(view=View(), missed=6.0, moved=2.5)
    (warning,) = (text for text in warned if text.startswith("NOT MEASURED: numbers are told by the code"))
    assert "NOT FULFILLED: RVESV is" in warning
    assert "FAR: the code moved by up to 2.50 standard deviations" in warning


def test_images_and_outlines_are_those_of_both_hearts():
    given, view = answer(), DrawnHeart().view
    axes = page_figure(given, view).axes
    before, after = (view.slice_images(torch.as_tensor(each)) for each in (given.result.image, given.image))
    for row in range(6):
        phase, number = divmod(row, 3)
        shown = [axis.images[0].get_array() for axis in axes[4 * row : 4 * row + 4]]
        index = view.pictured[number]
        assert np.allclose(shown[0], before[phase, index])
        assert np.allclose(shown[2], after[phase, index])
        assert np.allclose(shown[3], after[phase, index] - before[phase, index], atol=1e-6)
    colors = [{tuple(color) for color in lines.get_array()[..., :3].reshape(-1, 3)} for lines in axes[2].images[1:]]
    assert colors[0] == {WHITE, (0, 0, 0)}  # those before, below
    assert set(OUTLINES) <= colors[1]
    large = axes[-1]
    assert large.get_title() == "ED, base: after (dashed: before)"


@pytest.mark.parametrize(("attribute", "row"), [("LVEDV", 1), ("LVESV", 2)])
def test_the_large_slice_is_the_most_changed_of_the_phase_that_was_asked(attribute, row):
    maps = torch.zeros(3, 4, 4)
    rows = [(None, (None, maps), (None, maps + change)) for change in (0.1, 0.5, 0.2, 0.1)]
    assert most_changed(attribute, ["ED base", "ED 10 mm below", "ES base", "ES 10 mm below"], rows) == row


def test_a_view_without_maps_has_no_outlines(tmp_path):
    view = View()
    assert all(len(axis.images) <= 1 for axis in page_figure(answer(view=view), view).axes)
    draw_page(answer(view=view), view, tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000
