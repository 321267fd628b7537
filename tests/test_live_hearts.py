import base64
import io
import re
import time

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

from scripts.cohort.layout import SubjectError
from scripts.counterfactual import ALL_ELSE_EQUAL, IN_POPULATION, RequestError
from scripts.live_hearts import colored, grid
from scripts.views import View
from tests.live_hearts import live_hearts
from tests.processes import CONFIGS


@pytest.fixture(scope="module")
def hearts():
    return live_hearts()


def test_a_subject_has_the_code_of_its_image(hearts):
    code, image, notes = hearts.subject(2)
    assert torch.equal(code[0], hearts.items[1]["image"][0, 0, : code.shape[1]])
    assert torch.equal(image, hearts.items[1]["image"])
    assert notes == []
    with pytest.raises(ValueError, match="there is no subject 4: the datalist has 3"):
        hearts.subject(4)


def test_a_scan_out_of_range_is_told_of(hearts):
    *_, (note,) = hearts.subject(3)
    assert note.startswith("This scan is out of the range that the model knows, more unusual than 99 %")


def test_a_heart_drawn_unlike_its_masks_is_told_of():
    hearts = live_hearts()
    own = hearts.values(hearts.subject(1)[0])
    hearts.items[0] |= own | {"LVEDV": None, "RVESV": own["RVESV"] - 30, "MyoEDV": own["MyoEDV"] + 20}
    *_, (note,) = hearts.subject(1)
    assert f"its RVESV is {own['RVESV']:.0f} where the masks have {own['RVESV'] - 30:.0f} mL" in note


def test_a_scan_with_fewer_slices_is_told_of(hearts, monkeypatch):
    monkeypatch.setattr(View, "inside", lambda view, image: torch.tensor([[True, False, False], [True, True, False]]))
    assert hearts.subject(1)[-1] == [
        "Of 3 slices, the scan has 1 at ED, 2 at ES; the others lie beyond it and are black."
    ]


def test_a_subject_without_finite_numbers_is_refused():
    hearts = live_hearts()
    hearts.items[1]["image"] = torch.full_like(hearts.items[1]["image"], torch.nan)
    with pytest.raises(ValueError, match="values of subject 2 that are not finite"):
        hearts.subject(2)


def test_a_scan_that_cannot_be_read_is_refused_in_words():
    def unreadable(item: dict) -> dict:
        try:
            raise SubjectError("no LV in sa_ED.nii.gz")
        except SubjectError as error:
            raise RuntimeError("applying transform <VentricleCropd>") from error

    hearts = live_hearts()
    hearts.preprocessing = unreadable
    with pytest.raises(ValueError, match=r"^subject 2: no LV in sa_ED\.nii\.gz$"):
        hearts.subject(2)


def test_a_number_draws_the_same_sample_again(hearts):
    assert torch.equal(hearts.sample(5), hearts.sample(5))
    assert not torch.equal(hearts.sample(5), hearts.sample(6))


def test_a_heart_gets_what_is_asked(hearts):
    code = hearts.subject(1)[0]
    value = hearts.values(code)["LVEDV"] + 5
    assert hearts.values(hearts.ask(code, "LVEDV", value, ALL_ELSE_EQUAL))["LVEDV"] == pytest.approx(value, abs=0.2)


def test_in_the_population_the_rest_of_a_heart_follows(hearts):
    code = hearts.subject(1)[0]
    value = hearts.values(code)["LVEDV"] + 5
    asked = hearts.ask(code, "LVEDV", value, IN_POPULATION)
    expected = hearts.counterfactuals.change(code, "LVEDV", 5.0, IN_POPULATION)
    assert torch.allclose(asked, expected, atol=1e-3)
    assert not torch.allclose(asked, hearts.ask(code, "LVEDV", value, ALL_ELSE_EQUAL), atol=1e-2)


@pytest.mark.parametrize("number", [-1, 2**40])
def test_a_number_that_draws_no_sample_is_refused(hearts, number):
    with pytest.raises(ValueError, match=f"there is no sample {number}"):
        hearts.sample(number)


def test_a_heart_is_decoded_once(monkeypatch):
    hearts, decoded = live_hearts(), []
    decode = hearts.counterfactuals.decode
    monkeypatch.setattr(hearts.counterfactuals, "decode", lambda code: (decoded.append(len(code)), decode(code))[1])
    code = hearts.subject(1)[0]
    assert hearts.values(code) == pytest.approx(hearts.values(code.clone()))
    assert torch.equal(hearts.decode(code), decode(code)[0])
    assert decoded == [1]


def test_a_request_out_of_range_is_refused(hearts):
    with pytest.raises(RequestError, match=r"LVEDV of 900\.0 mL is outside the trained range"):
        hearts.ask(hearts.subject(1)[0], "LVEDV", 900, ALL_ELSE_EQUAL)


def test_a_picture_has_what_is_switched_on(hearts):
    image, before = (hearts.decode(hearts.subject(number)[0]) for number in (1, 2))
    plain, lines, changes = (
        hearts.picture(image, before, *on) for on in ((False, False), (True, False), (False, True))
    )
    assert (plain.count("<image"), lines.count("<image"), changes.count("<image")) == (2, 2, 4)  # two phases
    assert (plain.count("<path"), lines.count("<path")) == (0, 2 * 3 * 3)
    assert re.findall(r'viewBox="([^"]*)"', plain) == ["0 0 96 32"] * 2


def test_slices_stand_in_rows():
    tiles = grid(torch.arange(5.0).reshape(5, 1, 1).expand(-1, 2, 3), columns=4)
    assert tiles.shape == (4, 12)
    assert tiles[::2, ::3].tolist() == [[0, 1, 2, 3], [4, 0, 0, 0]]


def test_only_strong_differences_are_colored():
    brighter, same, darker = colored(np.array([[0.5, 0.01, -0.5]]))[0]
    assert brighter[0] > brighter[2]
    assert darker[2] > darker[0]
    assert (brighter[3], same[3], darker[3]) == (230, 0, 230)


def test_what_is_brighter_than_before_is_yellow(hearts):
    before = hearts.decode(hearts.subject(1)[0])
    brighter = before + 0.3
    layers = re.findall(r'href="data:image/png;base64,([^"]+)"', hearts.picture(brighter, before, False, True))
    red, _, blue, opacity = np.asarray(Image.open(io.BytesIO(base64.b64decode(layers[1]))))[0, 0]
    assert red > blue
    assert opacity > 0


def test_a_table_tells_before_and_now(hearts):
    start = hearts.values(hearts.subject(1)[0])
    text = hearts.table(start, start | {"LVEDV": start["LVEDV"] - 20})
    assert text.count("<tr>") == 7
    assert f"<td>{start['LVEDV']:.0f}</td><td>{start['LVEDV'] - 20:.0f}</td><td>−20</td>" in text


@pytest.mark.parametrize("overlays", [["compact.json"], ["compact.json", "faithful.json"]])
def test_a_heart_is_decoded_in_less_than_50_ms(overlays):
    parser = ConfigParser()
    parser.read_config([CONFIGS / name for name in ("inference.json", *overlays)])
    hearts = live_hearts(parser.get_parsed_content("network_def"), parser.get_parsed_content("view"))
    taken = [timed(lambda code=code: hearts.decode(code)) for code in torch.randn(20, 1, 32)]  # none is known yet
    assert min(taken) < 0.05  # s, on one core that others use, too


def timed(action):
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
