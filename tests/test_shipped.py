from __future__ import annotations

import hashlib
import subprocess

import pytest

from scripts.packaging.checksums import list_checksums
from scripts.packaging.contents import CHECKSUMS, LARGE_FILES, MODEL, SAFETENSORS
from scripts.packaging.large_files import LARGEST, list_large
from scripts.shipped import require_shipped

URL = "https://x.org/model.pt"


@pytest.fixture
def unpacked(tmp_path):
    """What concerns weights in an unpacked archive."""
    (tmp_path / "models").mkdir()
    contents = {MODEL: b"weights", SAFETENSORS: b"the same", "LICENSE": b"free"}
    for name, data in (contents | list_checksums(contents)).items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def test_the_weights_are_listed_and_nothing_else(unpacked):
    hashes = {"model.pt": b"weights", "model.safetensors": b"the same"}
    expected = {f"{hashlib.sha256(data).hexdigest()}  {name}" for name, data in hashes.items()}
    assert set((unpacked / CHECKSUMS).read_text().splitlines()) == expected


def test_other_programs_read_it(unpacked):
    command = ["sha256sum", "--check", "--strict", "checksums.sha256"]
    assert subprocess.run(command, cwd=unpacked / "models", capture_output=True).returncode == 0
    (unpacked / MODEL).write_bytes(b"others")
    assert subprocess.run(command, cwd=unpacked / "models", capture_output=True).returncode == 1


def test_the_weights_as_they_were_packaged_will_do(unpacked, monkeypatch):
    require_shipped(unpacked / MODEL)
    monkeypatch.chdir(unpacked)
    require_shipped(MODEL)


def test_other_weights_are_refused(unpacked):
    (unpacked / MODEL).write_bytes(b"others")
    listed = hashlib.sha256(b"weights").hexdigest()[:12]
    with pytest.raises(ValueError, match=rf"lists {listed}.*Remove it, and unpack the archive again.*by --ckpt_path"):
        require_shipped(unpacked / MODEL)


def test_missing_weights_say_where_they_come_from(unpacked):
    (unpacked / MODEL).unlink()
    with pytest.raises(FileNotFoundError, match="is missing: unpack the archive again"):
        require_shipped(unpacked / MODEL)
    (unpacked / LARGE_FILES).write_bytes(list_large({MODEL: b"w" * (LARGEST + 1)}, {MODEL: URL})[LARGE_FILES])
    with pytest.raises(FileNotFoundError, match=rf"is missing: fetch it by .*download_large_files.*or from {URL}"):
        require_shipped(unpacked / MODEL)


@pytest.mark.parametrize("text", ["", "[]", "large_files:\n- path: models/model.pt\n", '{"large_files": [{}]}'])
def test_other_lists_of_large_files_are_no_help_and_no_harm(text, unpacked):
    (unpacked / LARGE_FILES).write_text(text)
    (unpacked / MODEL).unlink()
    with pytest.raises(FileNotFoundError, match="is missing: unpack the archive again"):
        require_shipped(unpacked / MODEL)


def test_a_list_as_other_programs_write_it_will_do(unpacked):
    text = (unpacked / CHECKSUMS).read_text().upper().replace("MODEL.PT", "model.pt").replace("  ", " *")
    (unpacked / CHECKSUMS).write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    require_shipped(unpacked / MODEL)
    (unpacked / MODEL).write_bytes(b"others")
    with pytest.raises(ValueError, match="it is damaged"):
        require_shipped(unpacked / MODEL)


@pytest.mark.parametrize("line", ["", "# comment", "abc  model.pt", "../model.pt"])
def test_a_list_that_is_none_is_told(line, unpacked):
    with open(unpacked / CHECKSUMS, "a") as file:
        file.write(f"{line}\n")
    with pytest.raises(ValueError, match="has a line that is no checksum"):
        require_shipped(unpacked / MODEL)


def test_weights_that_are_not_listed_are_nobodys_concern(unpacked, tmp_path):
    require_shipped(unpacked / "models" / "own.pt")
    require_shipped(tmp_path / "model.pt")
