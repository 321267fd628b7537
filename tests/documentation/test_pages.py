"""What the pages say of themselves and of others: links lead somewhere, figures are those of the shipped weights."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from pathlib import Path

import pytest

from scripts.packaging.contents import DECLARED, METADATA, MODEL
from tests.conftest import ROOT

PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md")]
PAGES += sorted([*(ROOT / "bundle" / "docs").glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)")


def anchors(page: Path) -> set[str]:
    """What headings can be linked to by, as GitHub makes it of them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for target, anchor in LINK.findall(page.read_text()):
        file = page.parent / target if target else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


def test_pages_of_the_archive_link_to_nothing_outside_of_it():
    for page in (ROOT / "bundle" / "docs").glob("*.md"):
        for target, _ in LINK.findall(page.read_text()):
            assert not target.startswith("../../"), f"{page.name}: {target}"


def test_figures_in_metadata_and_card_are_those_of_the_shipped_weights():
    metadata = json.loads((ROOT / "bundle" / METADATA).read_text())
    measured = metadata["eval_metrics"]
    assert measured["model_sha256"] == hashlib.sha256((ROOT / "bundle" / MODEL).read_bytes()).hexdigest()
    card = (ROOT / "bundle" / "docs" / "README.md").read_text()
    figures = {name: value for name, value in measured.items() if isinstance(value, float)}
    assert len(figures) >= 6
    for name, value in figures.items():
        assert re.search(rf"\| {re.escape(name)} \| {value:g}\b", card), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_code_is_python(page):
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        ast.parse(code)


def test_the_card_says_first_that_the_weights_are_synthetic():
    first = (ROOT / "bundle" / "docs" / "README.md").read_text().split("\n\n")[1]
    assert "synthetic hearts" in first
    assert "train on your own cohort" in first


def test_every_figure_of_the_pages_is_declared_and_shown():
    shown = {Path(name).name for page in PAGES for name in re.findall(r"!\[[^]]*\]\(([^)]*)\)", page.read_text())}
    declared = {line.split()[-1] for line in (ROOT / "bundle" / DECLARED).read_text().splitlines() if line[0] != "#"}
    assert shown == declared
