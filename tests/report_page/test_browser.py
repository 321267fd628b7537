"""The page as its readers see it: opened from a file, in Chromium."""

from __future__ import annotations

import json

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from scripts.evaluation.tables import Table
from scripts.report_page.document import render
from tests.browser import chromium, resize, until
from tests.report_page.examples import ruler, some_frames, some_heart

VALUE = {"value": 0.944, "low": 0.902, "high": 0.961}
TABLE = Table("wide", "A wide table", "With many columns.", {"model": {f"column {k}": VALUE for k in range(12)}})
PIXELS = "return [...document.querySelectorAll('#panes canvas')].map((canvas) => canvas.toDataURL()).join()"
YELLOW_AND_BLUE = """
    const found = [0, 0];
    for (const canvas of document.querySelectorAll('#panes canvas')) {
        const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d', {willReadFrequently: true});
        copy.drawImage(canvas, 0, 0);
        const {data} = copy.getImageData(0, 0, canvas.width, canvas.height);
        for (let i = 0; i < data.length; i += 4) {
            found[0] += data[i] - data[i + 2] > 60;
            found[1] += data[i + 2] - data[i] > 60;
        }
    }
    return found;
"""
REQUESTED = "return performance.getEntriesByType('resource').map((entry) => entry.name)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def hearts():
    subjects = [some_heart(1), some_heart(2, notes=["This scan is out of range."], out_of_range=True)]
    return some_frames(measure=ruler).page(subjects)


@pytest.fixture(scope="module")
def path(hearts, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(render("Disks", {}, [TABLE], [], hearts), encoding="utf-8")
    return file


@pytest.fixture
def page(browser, path):
    """The page, freshly opened and drawn."""
    resize(browser, 1440)
    browser.get(path.as_uri())
    until(browser, lambda: len(set(pixels(browser).split(","))) > 2)  # both panes, and what all addresses begin with
    return browser


def pixels(page):
    return page.execute_script(PIXELS)


def text(page, name):
    return page.find_element(By.ID, name).text


def press(page, name, *keys):
    page.find_element(By.ID, name).send_keys(*keys)


def click(page, selector):
    page.execute_script("arguments[0].click()", page.find_element(By.CSS_SELECTOR, selector))


def changes(page, action):
    """Whether an action changes the picture, in time."""
    before = pixels(page)
    action()
    return until(page, lambda: pixels(page) != before)


def test_nothing_goes_wrong_and_nothing_is_fetched(page):
    assert page.get_log("browser") == []
    assert all(name.startswith("data:") for name in page.execute_script(REQUESTED))
    assert page.title == "Disks"


def test_a_slider_changes_picture_and_values(page, hearts):
    assert changes(page, lambda: press(page, "slider-LVEDV", Keys.ARROW_RIGHT))
    frame = hearts["subjects"][0]["requests"]["all_else_equal"]["LVEDV"][1]
    assert frame["amount"] == 10
    for key in ("asked", "measured", "own"):
        assert text(page, f"{key}-LVEDV") == f"{frame[key][0]:.0f}"
    assert [text(page, f"{key}-change-LVEDV") for key in ("asked", "measured")] == ["+10", "+9"]
    slider = page.find_element(By.ID, "slider-LVEDV")
    assert slider.get_attribute("aria-valuetext") == "+10 mL"


def test_another_slider_takes_the_first_one_back(page):
    press(page, "slider-LVEDV", Keys.ARROW_RIGHT)
    press(page, "slider-RVESV", Keys.ARROW_LEFT)
    values = [page.find_element(By.ID, f"slider-{name}").get_property("value") for name in ("LVEDV", "RVESV")]
    assert values == ["1", "0"]
    assert text(page, "asked-change-LVEDV") == "0"


def test_contours_and_difference_can_be_switched(page):
    press(page, "slider-LVEDV", Keys.ARROW_RIGHT)
    assert "brighter" not in text(page, "legend")
    assert "epicardium" in text(page, "legend")
    assert changes(page, lambda: click(page, "#outlines"))
    assert text(page, "legend") == ""
    assert changes(page, lambda: click(page, "#difference"))
    assert text(page, "legend").split("\n") == ["brighter than the reconstruction", "darker"]


def test_what_became_brighter_is_yellow_and_what_became_darker_blue(page):
    click(page, "#outlines")
    assert page.execute_script(YELLOW_AND_BLUE) == [0, 0]
    press(page, "slider-LVEDV", Keys.ARROW_RIGHT)  # more bright blood
    assert changes(page, lambda: click(page, "#difference"))
    yellow, blue = page.execute_script(YELLOW_AND_BLUE)
    assert yellow > 2 * blue
    assert changes(page, lambda: press(page, "slider-LVEDV", Keys.ARROW_LEFT, Keys.ARROW_LEFT))
    yellow, blue = page.execute_script(YELLOW_AND_BLUE)
    assert blue > 2 * yellow


def test_kind_slice_scan_and_subject_can_be_chosen(page):
    press(page, "slider-LVEDV", Keys.ARROW_RIGHT)
    assert changes(page, lambda: click(page, "input[value=population]"))
    assert changes(page, lambda: click(page, "input[value=before]"))
    press(page, "slice", Keys.HOME)
    assert text(page, "slice-name") == "10 mm above"
    click(page, "input[value=scan]")
    assert text(page, "asked-LVEDV") == "–"
    assert changes(page, lambda: click(page, "input[name=subject][value='1']"))
    assert text(page, "notes") == "This scan is out of range."


def test_the_heart_beats_when_asked_to(page):
    click(page, "#play")
    first = pixels(page)
    assert until(page, lambda: pixels(page) != first)
    captions = [caption.text for caption in page.find_elements(By.CSS_SELECTOR, "#panes figcaption")]
    assert captions == ["reconstruction", "reconstruction"]
    click(page, "#play")
    assert text(page, "play") == "Play"


@pytest.mark.parametrize("width", [1440, 768, 390])
def test_nothing_is_wider_than_the_screen(width, page):
    resize(page, width)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    boxes = page.execute_script(
        "return [...document.querySelectorAll('.request, .stage, .choices, input[type=range]')]"
        ".map((each) => each.getBoundingClientRect()).filter((box) => box.width).map((box) => [box.left, box.right])"
    )
    assert len(boxes) > 10
    assert all(left >= 0 and right <= width for left, right in boxes)


def test_pictures_keep_their_shape(page):
    sizes = page.execute_script(
        "return [...document.querySelectorAll('#panes canvas')].map((each) => [each.clientWidth, each.clientHeight])"
    )
    assert len(sizes) == 2
    assert all(width > 200 and abs(width - height) <= 1 for width, height in sizes)


def test_a_single_phase_is_shown_before_and_after(browser, hearts, tmp_path):
    hearts = json.loads(json.dumps(hearts)) | {"phases": ["ED"], "slices": ["basal"], "first": 0, "colors": []}
    (tmp_path / "report.html").write_text(render("One phase", {}, [], [], hearts), encoding="utf-8")
    browser.get((tmp_path / "report.html").as_uri())
    assert changes(browser, lambda: press(browser, "slider-LVEDV", Keys.ARROW_RIGHT))
    captions = [caption.text for caption in browser.find_elements(By.CSS_SELECTOR, "#panes figcaption")]
    assert captions == ["reconstruction", "LVEDV +10 mL"]
    assert not browser.find_element(By.ID, "play").is_displayed()
    assert browser.get_log("browser") == []
