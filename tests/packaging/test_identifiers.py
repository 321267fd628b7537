from __future__ import annotations

import json

import pytest

from scripts.packaging.identifiers import Names, identifiers, is_datalist, read_names

NOBODY = Names()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("trained without patient042.", "'patient042', a numbered subject"),
        ("Subject_12", "'Subject_12', a numbered subject"),
        ("bids/sub-HC07/anat", "'sub-HC07', a BIDS subject"),
        ("eid 2345678, say", "'2345678', a UK Biobank participant"),
        ("2345678_20209_2_0.zip", "'2345678', a UK Biobank participant"),
        ("as in A0S9V9.", "'A0S9V9', an M&Ms subject"),
        ("1.2.826.0.1.3680043.8.498.42", "'1.2.826.0.1.3680043.8.498.42', a DICOM identifier"),
        ("phantom0001", "'phantom0001', a phantom"),
    ],
)
def test_an_identifier_is_known_by_its_form(text, found):
    assert list(identifiers(text, NOBODY, "docs/notes.txt")) == [found]


@pytest.mark.parametrize(
    "text",
    [
        "sub-pixel shifts of each subject, patients and 100 cases",
        "doi 10.1109/TMI.2018.2837502",
        "0.1234567 and 2345678.5 and 23456789",
        "5feceb66ffc86f38d952786c6d696c79c2dbc239dd4e91b46729d73a27fb57e9",
        "a2345678b" * 7 + "c",
        "transfer syntax 1.2.840.10008.1.2.1",
        "such as 1234567_20209_2_0.zip",
    ],
)
def test_other_words_and_numbers_are_none(text):
    assert list(identifiers(text, NOBODY, "docs/notes.txt")) == []


def test_only_the_documentation_may_name_phantoms():
    assert list(identifiers("phantom0001", NOBODY, "docs/README.md")) == []
    assert list(identifiers("phantom0001", NOBODY, "configs/train.json"))


def test_names_of_a_cohort_are_found_however_they_are_written():
    names = Names(["Anna_Meier", "x17a"])
    place = "docs/README.md"
    assert list(identifiers("the heart of ANNA-MEIER", names, place)) == ["'anna_meier', a subject of the given cohort"]
    assert list(identifiers("x17a.png", names, place))
    assert not list(identifiers("Anna saw x17ab", names, place))


def test_a_name_that_has_a_known_form_is_told_once():
    assert len(list(identifiers("patient042", Names(["patient042"]), "LICENSE"))) == 1


def test_names_too_short_to_tell_are_counted():
    names = Names(["LV", "1024", "10245"])
    assert names.too_short == 2
    assert list(names.find("1024 LV 10245")) == ["10245"]


def test_names_come_from_tables_datalists_and_folders_of_scans(tmp_path):
    (tmp_path / "cohort.csv").write_text("subject,LVEDV\nanna,150\n")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "datalist.json").write_text(json.dumps({"test": [{"subject": "berta", "image_ED": "x"}]}))
    (tmp_path / "scans" / "carla").mkdir(parents=True)
    (tmp_path / "scans" / "carla" / "sa_ED.nii.gz").touch()
    assert read_names(tmp_path) == {"anna", "berta", "carla"}
    assert read_names(tmp_path / "cohort.csv") == {"anna"}


def test_a_cohort_that_names_nobody_is_no_cohort(tmp_path):
    with pytest.raises(ValueError, match=r"names no subject: expected cohort\.csv"):
        read_names(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_names(tmp_path / "elsewhere")


def test_a_datalist_is_known_by_its_items():
    assert is_datalist({"training": [{"image_ED": "a/sa_ED.nii.gz"}]})
    assert not is_datalist({"training": ["$@train#trainer.run()"], "test": [{"_target_": "x"}]})
