from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.packaging.identifiers import Names
from scripts.packaging.texts import check_text, own_paths


def check(name, text, **options):
    return [(place, reason) for place, reason in check_text(name, text.encode(), Names(), **options)]


@pytest.mark.parametrize(
    "text",
    [
        "see /home/anna/scans",
        '"/mnt/ukbb/x.nii"',
        r"C:\Users\anna",
        r"C:\\scans",
        "file:///x/y",
        "open('/data/cohort')",
    ],
)
def test_a_path_of_one_machine_is_told_by_its_line(text):
    ((place, reason),) = check("docs/notes.txt", f"one\n{text}\n")
    assert place == "docs/notes.txt, line 2"
    assert "of one machine: write it relative" in reason


@pytest.mark.parametrize(
    "text", ["https://x.org/home/data/a.zip", "$@output_dir + '/data/x'", "<scans>/data/x", "{root}/tmp/x", "ED/ES"]
)
def test_addresses_and_ends_of_paths_are_none(text):
    assert check("docs/notes.txt", text) == []


def test_the_paths_of_who_packages_are_told_wherever_they_lie():
    assert check("LICENSE", "in /odd/place/main/x", own_paths=["/odd/place/main"])
    assert str(Path("/odd/place")) in own_paths(Path("/odd/place/bundle"))


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"a": {"subject": "anna"}}, "a#subject"),
        ({"subjects": ["anna"]}, "subjects"),
        ({"PatientID": 17}, "PatientID"),
        ({"a": [{"dataset_dir": "/odd/place"}]}, "a#0#dataset_dir"),
        ({"x": {"test": [{"subject": "$x", "image": "a.nii"}]}}, "x"),
    ],
)
def test_json_is_told_by_its_key(content, key):
    assert [place for place, _ in check("configs/x.json", json.dumps(content))] == [f"configs/x.json, key '{key}'"]


def test_numbers_of_subjects_and_references_name_nobody():
    content = {"subjects": 200, "a": {"subjects": "@subjects", "subject": None}, "keys": "$['subject', 'image']"}
    assert check("configs/x.json", json.dumps(content)) == []


def test_a_text_must_be_one():
    assert "not encoded in UTF-8" in next(check_text("LICENSE", b"\xff\xfe", Names())).reason
    assert "is not JSON" in check("configs/x.json", "{")[0][1]
