from __future__ import annotations

import pytest
from monai.bundle import download_large_files

from scripts.packaging import large_files
from scripts.packaging.contents import LARGE_FILES, MODEL
from scripts.packaging.large_files import check_large, list_large, parse_urls

URL = "https://x.org/model.pt"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Ten bytes are many here."""
    monkeypatch.setattr(large_files, "LARGEST", 10)


def test_large_weights_are_listed_and_not_packaged():
    contents = list_large({MODEL: b"weights" * 9, "LICENSE": b"free"}, {MODEL: URL})
    assert contents.keys() == {"LICENSE", LARGE_FILES}
    assert list_large({MODEL: b"weights"}, {}).keys() == {MODEL, LARGE_FILES}


def test_weights_that_cannot_be_downloaded_from_anywhere_are_told():
    (finding,) = check_large({MODEL: b"weights" * 9}, {})
    assert finding.place == MODEL
    assert "upload it, and give its address by --url models/model.pt=https://" in finding.reason
    assert list(check_large({MODEL: b"weights" * 9}, {MODEL: URL})) == []
    assert "make it smaller" in next(check_large({"docs/README.md": b"words" * 9}, {})).reason


@pytest.mark.parametrize(
    "given",
    [
        "models/model.pt",
        "model.pt=https://x.org",
        f"{MODEL}=ftp://x",
        f"{MODEL}=https://x.org/m.pt?token=1",
        f"{MODEL}=https://me:word@x.org",
    ],
)
def test_a_wrong_address_is_explained(given):
    with pytest.raises(ValueError, match=r"expected one of models/model\.pt"):
        parse_urls([given])


def test_monai_downloads_what_is_listed(tmp_path):
    pytest.importorskip("yaml")
    (tmp_path / "hosted.pt").write_bytes(b"weights" * 9)
    url = (tmp_path / "hosted.pt").as_uri()
    (tmp_path / "bundle" / "models").mkdir(parents=True)
    (tmp_path / "bundle" / LARGE_FILES).write_bytes(list_large({MODEL: b"weights" * 9}, {MODEL: url})[LARGE_FILES])
    download_large_files(str(tmp_path / "bundle"))
    assert (tmp_path / "bundle" / MODEL).read_bytes() == b"weights" * 9
