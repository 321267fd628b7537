from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from scripts.storage import (
    MACHINE,
    PART,
    StorageError,
    atomic_path,
    output_folder,
    read_csv,
    read_object,
    write_csv,
    write_json,
)
from tests.broken import NO_OBJECTS


def test_an_error_leaves_the_old_file_and_no_remains(tmp_path):
    write_json(tmp_path / "a.json", {"old": 1})
    before = (tmp_path / "a.json").read_text()
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": object()})
    assert (tmp_path / "a.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_an_error_while_writing_leaves_no_remains(tmp_path):
    with pytest.raises(ValueError, match="field"):
        write_csv(tmp_path / "a.csv", [{"subject": "x", "unknown": 1}], ["subject"])
    assert list(tmp_path.iterdir()) == []


def test_a_byte_order_mark_is_not_part_of_a_name(tmp_path):
    (tmp_path / "a.csv").write_text("\ufeffsubject,age\nx,3\n", encoding="utf-8")
    assert read_csv(tmp_path / "a.csv") == [{"subject": "x", "age": "3"}]


def test_a_file_is_flushed_before_it_takes_its_place(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda number: flushed.append(os.readlink(f"/proc/self/fd/{number}")))
    write_json(tmp_path / "a.json", {"subject": "x"})
    (part,) = flushed
    assert part.endswith("~a.json")
    assert os.path.dirname(part) == str(tmp_path)


@pytest.mark.parametrize("text", ['subject,age\nx,"3\ny,4\n', 'subject,age\nx,"' + "a" * 200_000 + '"\n'])
def test_a_table_that_is_none_is_named(text, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=r"a\.csv' is no table separated by commas .* look for an open quote"):
        read_csv(tmp_path / "a.csv")


def test_suffixes_are_kept(tmp_path):
    with atomic_path(tmp_path / "scan.nii.gz") as part:
        assert part.name.endswith(".nii.gz")
        part.touch()


def test_csv_round_trip(tmp_path):
    write_csv(tmp_path / "a.csv", [{"subject": "x, y", "age": 3}, {"subject": "z"}], ["subject", "age"])
    assert read_csv(tmp_path / "a.csv") == [{"subject": "x, y", "age": "3"}, {"subject": "z", "age": ""}]


def test_output_folder_under_a_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"output_dir .*--output_dir"):
        output_folder(tmp_path / "file" / "out")


def test_output_folder_is_made_and_left_empty(tmp_path):
    assert list(output_folder(tmp_path / "a" / "b").iterdir()) == []


def test_another_encoding_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("subject,group\nx,über\n", encoding="latin-1")
    with pytest.raises(ValueError, match=r"a\.csv' is not encoded in UTF-8"):
        read_csv(tmp_path / "a.csv")


def test_a_row_that_is_too_long_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("subject,age\nx,3\ny,4,5\n")
    with pytest.raises(ValueError, match=r"line 3 of .*a\.csv' has more cells"):
        read_csv(tmp_path / "a.csv")


@pytest.mark.parametrize("content", NO_OBJECTS)
def test_a_file_that_holds_no_object_is_named_with_what_to_do(content, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"settings '.*a\.json' (is not valid JSON|holds a .*expected an object).*mend it"
    ):
        read_object(tmp_path / "a.json", "settings", "mend it")


def test_an_object_is_read_as_it_was_written(tmp_path):
    write_json(tmp_path / "a.json", {"ü": [1, None]})
    assert read_object(tmp_path / "a.json", "settings", "") == {"ü": [1, None]}


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    gone = tmp_path / PART.format(process=ended.pid, machine=MACHINE, name="a.csv")
    others = [
        tmp_path / PART.format(process=process, machine=machine, name="b.csv")
        for process, machine in (
            (os.getpid(), MACHINE),
            (ended.pid, f"another-{MACHINE}"),
            (ended.pid, f"{MACHINE}0"),
            ("x", MACHINE),
            (10**20, MACHINE),
        )
    ]
    for path in (gone, *others):
        path.touch()
    output_folder(tmp_path)
    assert not gone.exists()
    assert all(path.exists() for path in others)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ESTALE])
def test_what_a_disk_refuses_is_told_with_the_file_and_what_to_do(number, tmp_path):
    def refuse():
        with atomic_path(tmp_path / "a.pt"):
            try:
                raise OSError(number, "refused")
            except OSError:
                raise RuntimeError("as PyTorch does")  # noqa: B904 - it names no cause either

    expected = rf"'{tmp_path}/a.pt' cannot be written \(.*\): .*The same command"
    with pytest.raises(StorageError, match=expected) as caught:
        refuse()
    assert caught.value.errno == number
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_there_to_be_read_is_no_fault_of_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, atomic_path(tmp_path / "a.csv"):
        (tmp_path / "missing").read_text()
    assert not isinstance(caught.value, StorageError)
    with pytest.raises(StorageError, match="bring its folder back"), atomic_path(tmp_path / "lost" / "a.csv") as part:
        part.touch()


def test_a_full_disk_is_not_hidden_by_what_was_looked_for_before(tmp_path):
    def write():
        with atomic_path(tmp_path / "a.csv"):
            try:
                (tmp_path / "missing").read_text()
            except FileNotFoundError:
                raise OSError(errno.ENOSPC, "full")  # noqa: B904

    with pytest.raises(StorageError, match="make room"):
        write()
