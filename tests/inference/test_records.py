from __future__ import annotations

import json

import pytest

from scripts.inference.records import RECORD, Records
from scripts.storage import read_csv
from tests.broken import NO_OBJECTS

ITEMS = [{"subject": name, "state": f"state of {name}"} for name in "abc"]


def records(folder, redo=None, **settings):
    return Records(folder, {"spacing": 2.5, "phases": ("ED", "ES")} | settings, redo or {"pages": True})


def fill(kept, items=ITEMS):
    kept.claim()
    for item in items:
        kept.begin(item)
        rows = {table: {"subject": item["subject"], "x": ord(item["subject"])} for table in ("codes", "attributes")}
        kept.write(item, rows)


def test_only_what_has_no_result_remains(tmp_path):
    fill(records(tmp_path), ITEMS[:2])
    assert records(tmp_path).remaining(ITEMS) == ITEMS[2:]


@pytest.mark.parametrize("change", ["state", "redo", "torn"])
def test_a_record_that_no_longer_holds_is_done_again(change, tmp_path):
    fill(records(tmp_path))
    items, redo = [dict(item) for item in ITEMS], None
    if change == "state":
        items[0]["state"] = "another"
    elif change == "redo":
        redo = {"pages": False}
    else:
        (tmp_path / "a" / "result.json").write_text('{"state": "stat')
    assert len(records(tmp_path, redo).remaining(items)) == (3 if change == "redo" else 1)


def test_a_subject_in_work_has_no_record(tmp_path):
    fill(records(tmp_path))
    records(tmp_path).begin(ITEMS[0])
    assert records(tmp_path).remaining(ITEMS) == ITEMS[:1]


def test_results_of_other_settings_are_refused_or_overwritten(tmp_path):
    fill(records(tmp_path))
    (tmp_path / "a" / "page.png").touch()
    (tmp_path / "b" / "notes.txt").touch()
    records(tmp_path).claim()  # the same settings are welcome
    other = records(tmp_path, spacing=1.8, checkpoint="f" * 64)
    with pytest.raises(ValueError, match=r"spacing is 1\.8, was 2\.5; checkpoint is f{12}\.\.\., was None.*--over"):
        other.claim()
    other.claim(overwrite=True)
    assert other.remaining(ITEMS) == ITEMS
    assert not (tmp_path / "a").exists()
    assert (tmp_path / "b" / "notes.txt").exists()  # what is not ours stays
    assert json.loads((tmp_path / "inference_settings.json").read_text())["spacing"] == 1.8


@pytest.mark.parametrize("content", NO_OBJECTS)
def test_broken_settings_of_results_are_refused_or_overwritten(content, tmp_path):
    fill(records(tmp_path))
    (tmp_path / "inference_settings.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"inference_settings\.json' .*--overwrite True"):
        records(tmp_path).claim()
    records(tmp_path).claim(overwrite=True)
    records(tmp_path).claim()


def test_settings_without_results_refuse_nothing(tmp_path):
    records(tmp_path).claim()
    records(tmp_path, spacing=1.8).claim()


def test_tables_are_gathered_from_the_records(tmp_path):
    kept = records(tmp_path)
    fill(kept)
    assert kept.gather(ITEMS[::2], [{"subject": "b", "reason": "cut off"}]) == 2
    for table in ("codes", "attributes"):
        assert read_csv(tmp_path / f"{table}.csv") == [{"subject": "a", "x": "97"}, {"subject": "c", "x": "99"}]
    assert read_csv(tmp_path / "excluded.csv") == [{"subject": "b", "reason": "cut off"}]
    assert (tmp_path / "b" / RECORD).exists()  # what excludes it may pass, and its result then holds again


def test_other_tables_can_be_gathered(tmp_path):
    kept = Records(tmp_path, {}, {}, ["whatif"])
    kept.claim()
    kept.begin(ITEMS[0])
    kept.write(ITEMS[0], {"whatif": {"subject": "a"}})
    assert kept.gather(ITEMS, []) == 1
    assert {path.name for path in tmp_path.glob("*.csv")} == {"whatif.csv", "excluded.csv"}


def test_tables_without_any_result_have_a_header(tmp_path):
    kept = records(tmp_path)
    kept.claim()
    assert kept.gather([], []) == 0
    assert (tmp_path / "codes.csv").read_text() == "subject\n"


def test_overwriting_leaves_what_this_run_has_already_redone(tmp_path):
    fill(records(tmp_path))
    other = records(tmp_path, checkpoint="other")
    other.claim(overwrite=True)
    assert not list(tmp_path.glob(f"*/{RECORD}"))
    other.begin(ITEMS[0])
    other.write(ITEMS[0], {"codes": {}, "attributes": {}})
    other.claim(overwrite=True)  # the same command again, after an interruption
    assert other.read(ITEMS[0]) is not None


def test_a_subject_begun_anew_keeps_nothing_of_the_old_result(tmp_path):
    kept = records(tmp_path)
    fill(kept)
    page = tmp_path / "a" / "page.png"
    page.touch()
    kept.begin(ITEMS[0])
    assert not page.exists()


def test_settings_belong_to_the_run(tmp_path):
    assert records(tmp_path).run != records(tmp_path, spacing=1.8).run
    assert records(tmp_path).run != records(tmp_path, {"pages": False}).run


@pytest.mark.parametrize(
    "content", [*NO_OBJECTS, b"{}", b'{"sha256": null, "codes": ' + b"[" * 900 + b"]" * 900 + b"}"]
)
def test_a_record_that_is_none_is_done_again(content, tmp_path):
    fill(records(tmp_path))
    (tmp_path / "b" / RECORD).write_bytes(content)
    kept = records(tmp_path)
    assert kept.remaining(ITEMS) == ITEMS[1:2]
    assert kept.gather(ITEMS, []) == 2
    kept.claim(overwrite=True)
    assert kept.remaining(ITEMS) == ITEMS[1:2]


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.pop("attributes"),
        lambda record: record.update(attributes=None),
        lambda record: record["codes"].update(extra=1),
        lambda record: record["codes"].pop("x"),
        lambda record: record["codes"].update(x=1),
    ],
    ids=["a table less", "no row", "a column more", "a column less", "another value"],
)
def test_a_record_that_was_changed_is_done_again(change, tmp_path):
    fill(records(tmp_path))
    path = tmp_path / "a" / RECORD
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    kept = records(tmp_path)
    assert kept.remaining(ITEMS) == ITEMS[:1]
    assert kept.gather(ITEMS, []) == 2
    fill(kept, ITEMS[:1])
    assert kept.gather(ITEMS, []) == 3


@pytest.mark.parametrize("value", [float("nan"), 0.1, None, "ü", [1, (2,)], True])
def test_a_record_is_the_same_after_reading(value, tmp_path):
    kept = records(tmp_path)
    kept.claim()
    kept.begin(ITEMS[0])
    kept.write(ITEMS[0], {"codes": {"subject": "a", "z": value}, "attributes": {"b": 1, "a": 2}})
    assert kept.remaining(ITEMS[:1]) == []


def test_what_no_inference_has_written_stays(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "page.png").touch()
    records(tmp_path).discard("a")
    assert (tmp_path / "a" / "page.png").exists()


def test_what_a_killed_run_has_left_half_written_goes_when_its_subject_is_done_again(tmp_path):
    kept = records(tmp_path)
    kept.claim()
    part = kept.begin(ITEMS[0]) / ".part-host-1-after_ED.nii.gz"
    part.write_text("half")
    kept.begin(ITEMS[0])
    assert not part.exists()


def test_a_folder_that_is_closed_stops_no_other(tmp_path, monkeypatch):
    fill(records(tmp_path))
    discard = Records.discard

    def closed(self, subject):
        if subject == "a":
            raise PermissionError(13, "Permission denied")
        discard(self, subject)

    monkeypatch.setattr(Records, "discard", closed)
    other = records(tmp_path, spacing=1.8)
    other.claim(overwrite=True)
    assert other.remaining(ITEMS) == ITEMS
    assert not (tmp_path / "b" / RECORD).exists()
    with pytest.raises(PermissionError):  # when its turn comes, where it is a failure of this subject
        other.begin(ITEMS[0])
