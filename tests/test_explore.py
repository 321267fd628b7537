"""The live page: served on this machine alone, it answers a slider with another heart."""

from __future__ import annotations

import json
import re
import sys
from urllib.parse import urlsplit

import pytest
import torch
from gradio_client import Client
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from scripts.counterfactual import ALL_ELSE_EQUAL, IN_POPULATION
from scripts.explore import HOST, NO_SCAN, SAMPLE, SUBJECT, Explorer, gradio_module, subjects_of
from tests.browser import chromium, until
from tests.live_hearts import live_hearts

LOCAL = {"data", "blob", "about", "chrome", "devtools"}  # schemes that ask nobody


@pytest.fixture(scope="module")
def hearts():
    return live_hearts()


@pytest.fixture(scope="module")
def address(hearts):
    explorer = Explorer(hearts)
    yield explorer.launch(block=False)
    explorer.blocks.close()


@pytest.fixture
def client(address):
    return Client(address, verbose=False, analytics_enabled=False)


def ask(client, value):
    """What moving the slider of LVEDV gives: other sliders, picture, table and message."""
    return client.predict(value, ALL_ELSE_EQUAL, True, False, api_name="/ask_LVEDV")


def test_of_what_is_typed_or_moved_fast_the_last_counts(hearts):
    explorer = Explorer(hearts)
    events = [
        event for event in explorer.blocks.config["dependencies"] if ("input" in [kind for _, kind in event["targets"]])
    ]
    assert len(events) == 2 + 2 + len(hearts.names)  # heart, number, contours, difference, sliders
    fast = [event for event in events if event["trigger_mode"] == "always_last"]
    assert fast == events


def test_it_is_served_on_this_machine_alone(address):
    assert urlsplit(address).hostname == HOST == "127.0.0.1"


def test_a_slider_gives_another_image(client, hearts):
    notes, _, *sliders, before, _, _ = client.predict(SUBJECT, 2, True, False, api_name="/choose")
    assert notes == ""
    assert sliders == [round(value) for value in hearts.values(hearts.subject(2)[0]).values()]
    value = sliders[0] + 5
    *others, after, table, message = ask(client, value)
    assert after != before
    assert after.count("<image") == before.count("<image") == 2
    assert others == pytest.approx(sliders[1:], abs=1)
    assert f"<td>{value}</td>" in table
    assert f"{value} mL asked, {value} by its own account" in message


def test_the_scan_stands_beside_what_the_model_draws_of_it(client, hearts):
    scans = [client.predict(SUBJECT, number, False, True, api_name="/choose")[1] for number in (1, 2)]
    images = [hearts.items[row]["image"] for row in (0, 1)]
    assert scans == [hearts.picture(image, image, outlines=True, difference=False) for image in images]
    assert client.predict(SAMPLE, 3, True, False, api_name="/choose")[1] == NO_SCAN


def test_a_refused_request_says_why_and_changes_nothing(client):
    _, _, *before = client.predict(SUBJECT, 1, True, False, api_name="/choose")
    asked = client.predict(before[0] + 1, ALL_ELSE_EQUAL, True, False, api_name="/ask_LVESV")
    assert asked[-1].startswith(f"Refused: LVESV of {before[0] + 1} mL is not possible: LVEDV of")
    assert client.predict(True, False, api_name="/keep")[-3] == before[-3]


def test_what_is_wrong_with_model_and_scan_is_told(client, address, tmp_path):
    notes, *_ = client.predict(SUBJECT, 3, True, False, api_name="/choose")
    assert "This scan is out of the range that the model knows" in notes
    assert client.predict(SAMPLE, 3, True, False, api_name="/choose")[0] == ""
    with chromium(tmp_path) as browser:
        browser.get(address)
        until(browser, lambda: "The range is known from 3 scans only." in browser.page_source)


def test_what_could_not_be_held_is_told(client, hearts, monkeypatch):
    _, _, *before = client.predict(SUBJECT, 2, True, False, api_name="/choose")
    monkeypatch.setattr(hearts, "ask", lambda code, name, value, kind: hearts.sample(4))
    message = client.predict(before[0] + 3, ALL_ELSE_EQUAL, True, False, api_name="/ask_LVEDV")[-1]
    assert re.search(r"\*\*NOT FULFILLED: \w+ is -?\d+ instead of \d+ mL\.\*\*", message)
    free = client.predict(before[0] + 3, IN_POPULATION, True, False, api_name="/ask_LVEDV")[-1]
    assert "NOT FULFILLED" not in free or "LVEDV is" in free


def test_a_far_move_is_told(client, hearts, monkeypatch):
    _, _, *before = client.predict(SUBJECT, 2, True, False, api_name="/choose")
    assert "FAR" not in ask(client, before[0] + 1)[-1]
    monkeypatch.setattr(hearts.counterfactuals, "distance", lambda start, changed: torch.tensor([2.5]))
    assert "FAR: the code moved by up to 2.50 standard deviations" in ask(client, before[0] + 2)[-1]


def test_what_is_no_number_is_told(hearts):
    page = Explorer(hearts)
    with pytest.raises(page.gradio.Error, match="nan is the number of no heart"):
        page.choose(SAMPLE, float("nan"), True, False)
    code = hearts.sample(1).tolist()
    assert page.ask("LVEDV", None, code, code, ALL_ELSE_EQUAL, True, False)[-1].startswith("Refused: choose a heart")
    assert page.ask("LVEDV", 100, [], [], ALL_ELSE_EQUAL, True, False)[-1].startswith("Refused: choose a heart")


def test_the_difference_is_that_to_the_heart_that_was_asked(hearts):
    page, codes = Explorer(hearts), [hearts.sample(number).tolist() for number in (1, 2)]
    images = [hearts.decode(hearts.sample(number)) for number in (1, 2)]
    assert page.redraw(codes[0], codes[1], False, True) == hearts.picture(images[1], images[0], False, True)
    assert page.redraw(codes[0], codes[1], False, True) != hearts.picture(images[1], images[1], False, True)


def test_a_kept_heart_is_the_next_one_asked(client):
    _, _, *first = client.predict(SAMPLE, 3, True, False, api_name="/choose")
    asked = ask(client, first[0] + 4)
    kept = client.predict(True, False, api_name="/keep")
    assert kept[0] == first[0] + 4
    assert kept[-3] == asked[-3]
    assert client.predict(True, False, api_name="/reset")[-3] == asked[-3]


def test_the_page_asks_no_other_host_and_follows_its_slider(address, tmp_path):
    with chromium(tmp_path) as browser:
        browser.get(address)
        picture = until(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#picture svg"))[0]
        first = until(browser, lambda: picture.get_attribute("innerHTML"))
        browser.find_element(By.CSS_SELECTOR, "#LVEDV input[type=range]").send_keys(Keys.ARROW_RIGHT * 3)
        until(browser, lambda: shown(browser) not in (None, first))
        assert asked_addresses(browser)
        assert not [url for url in asked_addresses(browser) if urlsplit(url).hostname != HOST]


def shown(browser):
    """The picture, None while it is replaced."""
    return browser.execute_script("return document.querySelector('#picture svg')?.innerHTML")


def asked_addresses(browser):
    """All addresses that the page has asked for, whether or not they were refused."""
    if not hasattr(browser, "asked"):
        messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        sent = [each["params"] for each in messages if each["method"] == "Network.requestWillBeSent"]
        browser.asked = [each["request"]["url"] for each in sent]
    return [url for url in browser.asked if urlsplit(url).scheme not in LOCAL]


def test_telemetry_is_off(monkeypatch):
    monkeypatch.delenv("GRADIO_ANALYTICS_ENABLED")
    gradio = gradio_module()
    with gradio.Blocks() as blocks:
        assert not blocks.analytics_enabled


def test_without_gradio_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r"pip install '.\[explore\]'"):
        gradio_module()


def test_without_a_datalist_there_are_no_subjects(prepared, phantoms):
    assert subjects_of(None, "nowhere", None) == []
    assert len(subjects_of(prepared / "datalist.json", phantoms, "test")) == 3
