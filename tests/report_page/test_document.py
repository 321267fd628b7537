from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from scripts.evaluation.tables import Table
from scripts.report_page.document import figure_parts, render, table_parts
from tests.report_page.examples import some_frames, some_heart

VOID = {"meta", "link", "input", "img", "br"}
VALUE = {"value": 0.944, "low": 0.902, "high": 0.961}
TABLE = Table("sound", "Sound & <safe>", "A <note>.", {"model": {"R²": VALUE, "MIG": {"undefined": "too few."}}})


class Outline(HTMLParser):
    """Tags that are open, ids, and texts; raises AssertionError for a tag that closes another one's."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.tags = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()


def page(**options):
    hearts = some_frames().page([some_heart(notes=["</script><b>"])])
    return render("<Title>", {"View": "a & b"}, [TABLE], [], **({"hearts": hearts} | options))


@pytest.mark.parametrize("options", [{}, {"hearts": None, "absent": "None <here>."}])
def test_the_page_is_well_formed(options):
    outline = Outline(page(**options))
    assert outline.open == []
    assert len(set(outline.ids)) == len(outline.ids)
    assert {target[1:] for tag, found in outline.tags if (target := found.get("href", "")) > "#"} - {"ata:,"} <= set(
        outline.ids
    )


def test_all_text_is_escaped():
    text = page() + page(hearts=None, absent="None <here>.")
    for part in ("<Title>", "<safe>", "<note>", "</script><b>", "<here>"):
        assert part not in text
    assert "&lt;Title&gt;" in text


def test_nothing_is_asked_of_a_server():
    text = page()
    addresses = [value for _, found in Outline(text).tags for name, value in found.items() if name in ("src", "href")]
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert "default-src 'none'" in text
    assert "http" not in text.replace("http-equiv", "")


def test_without_hearts_the_reason_stands_there_and_no_script():
    text = page(hearts=None, absent="None are left.")
    assert "None are left." in text
    assert "<script" not in text


def test_tables_tell_values_intervals_and_reasons():
    parts = table_parts(TABLE)
    assert parts["columns"] == ["R²", "MIG"]
    assert parts["rows"]["model"] == [("0.944", "[0.902, 0.961]"), ("n/a", "")]
    assert parts["reasons"] == ["too few"]


def test_figures_stand_in_reading_order(tmp_path: Path):
    for name in ("new_one", "scatter", "reconstructions"):
        Image.new("L", (4, 2)).save(tmp_path / f"{name}.png")
    parts = figure_parts(tmp_path.glob("*.png"))
    assert [part["title"] for part in parts] == ["Reconstructions", "Codes and attributes", "New one"]
    assert (parts[0]["width"], parts[0]["height"]) == (4, 2)
