from __future__ import annotations

import hashlib

import pytest

from scripts.packaging.contents import DECLARED
from scripts.packaging.images import check_image, read_declared
from tests.packaging.examples import chunk, png

NAME = "docs/figures/x.png"


def reasons(data, declared=True):
    known = {NAME: hashlib.sha256(data).hexdigest()} if declared else {}
    return [finding.reason for finding in check_image(NAME, data, known)]


def test_a_declared_image_of_pixels_passes():
    assert reasons(png()) == []


def test_an_image_that_nobody_declared_is_refused_with_the_line_that_declares_it():
    (reason,) = reasons(png(), declared=False)
    assert f"put the line '{hashlib.sha256(png()).hexdigest()}  x.png' into {DECLARED}" in reason


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"prIv"])
def test_words_beside_the_pixels_are_refused(kind):
    assert reasons(png(chunk(kind, b"Comment\0x"))) == [
        f"has a chunk '{kind.decode()}' beside its pixels, which may name a subject: save it without."
    ]


@pytest.mark.parametrize("data", [png() + b"x", png()[:-6], b"GIF89a"])
def test_bytes_that_are_no_whole_png_are_refused(data):
    assert "is not a whole PNG file" in reasons(data)[0]


def test_declarations_are_read_as_sha256sum_writes_them():
    lines = f"# words\n{'a' * 64}  x.png\n{'b' * 64} *y.png\n"
    assert read_declared({DECLARED: lines.encode()}) == {NAME: "a" * 64, "docs/figures/y.png": "b" * 64}
