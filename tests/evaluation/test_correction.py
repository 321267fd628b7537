from __future__ import annotations

import json

import pytest
import torch

from scripts.evaluation import correction
from scripts.evaluation.correction import Corrected, correct, scans_of

NAMES = ("LVEDV", "RVEDV", "MyoEDV")


def shrunk(image):
    """Reads 0.8 of the first attribute and 10 too much, the second one not at all, and the third one as it is."""
    truth = image[:, :3, 0, 0]
    return torch.stack([0.8 * truth[:, 0] + 10, 50 + 0 * truth[:, 1], truth[:, 2]], dim=1)


def known(count):
    """Batches of 8 scans that show their attributes; of the third one few are known."""
    truth = 100 + 30 * torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    images = truth[:, :, None, None].expand(-1, -1, 4, 4)
    truth = truth.clone()
    truth[5:, 2] = torch.nan
    return [{"image": one, "attributes": other} for one, other in zip(images.split(8), truth.split(8), strict=True)]


def test_an_instrument_is_corrected_by_scans_of_known_volumes():
    tool, scans = Corrected(shrunk, NAMES), known(40)
    image = scans[0]["image"]
    assert torch.equal(tool(image), shrunk(image))  # not yet
    tool.fit(scans, 30, "cpu")
    assert tool.lines == {"LVEDV": pytest.approx((0.8, 10), abs=1e-3)}
    assert torch.allclose(tool(image)[:, 0], image[:, 0, 0, 0], atol=0.01)
    assert torch.equal(tool(image)[:, 1:], shrunk(image)[:, 1:])  # no line makes these good


@pytest.mark.parametrize("count", [0, 29])
def test_with_few_scans_an_instrument_stays_as_it_is(count, capsys):
    tool = correct(Corrected(shrunk, NAMES), "reader", known(count) if count else [], 30, "cpu")
    assert tool.lines == {}
    assert "The reader is not corrected: that takes more such scans" in capsys.readouterr().out


def test_what_is_corrected_and_what_is_not_is_told(capsys):
    correct(Corrected(shrunk, NAMES), "reader", known(40), 30, "cpu")
    told = capsys.readouterr().out
    assert "The reader is corrected by scans that it has not learned from, on which its slopes were LVEDV 0.80;" in told
    assert "; it is not corrected for RVEDV, MyoEDV: that takes more such scans, or a slope within 0.5 to 2." in told


def test_scans_come_from_one_section_up_to_a_limit(tmp_path, monkeypatch):
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps({"training": [{}], "validation": [{}, {}], "test": []}))
    monkeypatch.setattr(correction, "load_items", lambda datalist, section: [f"{section} {k}" for k in range(3)])
    assert scans_of(None, path) == scans_of("test", path) == []
    assert scans_of("validation", path, limit=2) == ["validation 0", "validation 1"]
