from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.calibration.lines import Estimate
from scripts.figures import OUTLINES
from scripts.inference.page import Page, estimate_text
from scripts.inference.results import result_of
from scripts.inference.writers import page_of
from scripts.views import View
from tests.inference.examples import NAMES, FixedCalibration, encoded, measured

PHASES = ("ED", "ES")


@pytest.fixture
def page():
    return page_of(PHASES, NAMES, FixedCalibration())


def drawn(page, path, first_code=0.5, **values):
    page.draw(result_of(measured(**values), encoded(first_code), FixedCalibration()), path)
    return np.asarray(Image.open(path)).astype(int)


def test_a_page_is_wide_enough_for_the_screen(page, tmp_path):
    assert drawn(page, tmp_path / "page.png").shape[1] >= 1000


def test_a_page_shows_nothing_of_the_one_before(page, tmp_path):
    first = drawn(page, tmp_path / "first.png")
    other = drawn(page, tmp_path / "other.png", first_code=40, mask="predicted", LVEDV=180.0)
    again = drawn(page, tmp_path / "again.png")
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_images_are_those_of_the_subject(page, tmp_path):
    drawn(page, tmp_path / "page.png")
    scan, reconstruction, difference = (shown.get_array() for shown in page.images[0])
    image = encoded()["image"][0].numpy()
    assert np.allclose(scan, image)
    assert np.allclose(reconstruction, 0.9 * image)
    assert np.allclose(difference, -0.1 * image)


def test_a_whole_heart_shows_three_slices_of_each_phase_with_their_outlines(tmp_path):
    view = View(PHASES, "stack", "masks", stack_slices=8)
    image = torch.rand(view.channels, 8, 8)
    view.slice_maps(image)[1, 5] = 0
    view.slice_maps(image)[1, 5, 2, 2:6, 2:6] = 1  # an RV at ES
    page = page_of(view, NAMES, FixedCalibration())
    output = encoded() | {"image": image, "pred": image / 2}
    page.draw(result_of(measured(), output, FixedCalibration()), tmp_path / "page.png")
    assert page.names == ["ED, base", "ED, 20 mm below", "ED, 40 mm below", "ES, base", *page.names[4:]]
    assert np.allclose(page.images[5][0].get_array(), view.slice_images(image)[1, 5])
    assert np.allclose(page.images[5][2].get_array(), -view.slice_images(image)[1, 5] / 2, atol=1e-6)
    line = page.outlines[5][0].get_array()[..., 3] > 0
    assert {tuple(color) for color in page.outlines[5][0].get_array()[line][:, :3]} == {OUTLINES[2]}
    assert page.outlines[5][0].get_extent() == page.images[5][0].get_extent()
    assert not np.array(page.outlines[5][1].get_array()[..., 3]).any()  # of a half, none is more


def test_estimate_interval_and_mask_value_are_placed(page, tmp_path):
    drawn(page, tmp_path / "page.png", LVEDV=130.0)
    row = page.strips.rows[0]
    assert row.dot.get_xdata() == pytest.approx([100.5])
    assert list(row.interval.get_xdata()) == pytest.approx([80.5, 120.5])
    assert row.diamond.get_xdata() == pytest.approx([130])
    assert row.upper.get_text() == "mask: 130 mL"  # what to rely on comes first
    assert row.lower.get_text() == "code: 100 mL  (80 to 120)"


def test_without_a_mask_value_the_estimate_stands_alone(page, tmp_path):
    drawn(page, tmp_path / "page.png", LVEDV=None)
    row = page.strips.rows[0]
    assert (row.upper.get_text(), row.lower.get_text()) == ("code: 100 mL  (80 to 120)", "")


def test_an_estimate_below_zero_is_no_volume():
    assert estimate_text(Estimate(0.0, 0.0, 28.0), "mL") == "below 0  (0 to 28)"
    assert estimate_text(Estimate(12.0, float("nan"), float("nan")), "mL") == "12 mL"


def test_every_page_says_what_is_wrong_with_the_model(page, tmp_path):
    assert "Something is wrong with this model." in [text.get_text() for text in page.figure.texts]


def test_a_missing_mask_value_is_not_drawn(page, tmp_path):
    drawn(page, tmp_path / "page.png", LVEDV=None)
    assert len(page.strips.rows[0].diamond.get_xdata()) == 0


def test_a_scan_in_range_is_told_so(page, tmp_path):
    drawn(page, tmp_path / "page.png", first_code=0.5)
    assert page.range_note.get_text() == "Scan in range: more unusual than 55% of known scans"


def test_a_scan_out_of_range_is_told_why_in_words(page, tmp_path):
    drawn(page, tmp_path / "page.png", first_code=2)
    text = page.range_note.get_text()
    assert text.startswith("SCAN OUT OF RANGE")
    assert "reconstruction error at ED 99, divergence of the code 40" in text


def test_a_predicted_mask_is_noted(page, tmp_path):
    drawn(page, tmp_path / "page.png", mask="predicted")
    assert "the predicted mask (look at it):  LVEF 58 %" in page.mask_note.get_text()


def test_no_page_names_its_subject(page, tmp_path):
    first = drawn(page, tmp_path / "first.png")
    assert np.array_equal(first, drawn(page, tmp_path / "second.png", subject="another name"))


def test_without_a_calibration_the_page_says_so(tmp_path):
    page = page_of(PHASES, NAMES, None)
    page.draw(result_of(measured(), encoded(), None), tmp_path / "page.png")
    assert "No calibration" in page.range_note.get_text()
    assert page.strips.rows[0].diamond.get_xdata() == pytest.approx([120])


def test_a_model_without_attributes_has_images_only(tmp_path):
    page = Page(PHASES, {})
    page.draw(result_of(measured(), encoded(), None), tmp_path / "page.png")
    assert page.strips is None
