from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.cohort import examine
from scripts.cohort.datalist import load_items
from scripts.cohort.layout import read_image, write_volume
from scripts.cohort.phantom import FAILURES
from scripts.cohort.prepare import prepare, read_user_table, refuse_vanished
from scripts.parallel import Workers
from scripts.storage import read_csv, write_json


@pytest.fixture
def cohort(phantoms, tmp_path):
    """A copy of the phantom cohort that a test may break, and the names of its sound subjects with phase files."""
    root = shutil.copytree(phantoms, tmp_path / "cohort")
    rows = read_csv(root / "info.csv")
    return root, [row["subject"] for row in rows if not row["intended_failure"] and row["layout"] == "phases"]


def rows_by_subject(folder):
    return {row["subject"]: row for row in read_csv(folder / "cohort.csv")}


def test_every_subject_has_a_row_and_the_reasons_are_those_intended(phantoms, prepared):
    rows, info = rows_by_subject(prepared), {row["subject"]: row for row in read_csv(phantoms / "info.csv")}
    assert set(rows) == set(info)
    words = {
        "LV below 10 voxels": "LV has 6 voxels",
        "RV below 10 voxels": "RV has",
        "myocardium below 10 voxels": "Myo has",
        "fewer than 6 slices": "slices; at least 6",
        "gap between slices": "between slices that show them",
        "no RV on the mid-cavity slice": "RV has a largest component of 0 pixels in the mid-cavity slice",
        "LV and RV labels swapped": "look exchanged",
    }
    assert set(words) == set(FAILURES)
    for name, row in rows.items():
        intended = info[name]["intended_failure"]
        assert (row["status"] == "excluded") == bool(intended)
        assert words.get(intended, "") in row["reason"]


def test_volumes_are_those_drawn(prepared):
    for row in rows_by_subject(prepared).values():
        if row["status"] == "included":
            for name in ("LVEDV", "RVESV", "MyoESV"):
                assert float(row[name]) == pytest.approx(float(row[f"user_{name}"]), rel=0.03)


def test_user_columns_are_joined(prepared, phantoms):
    rows, info = rows_by_subject(prepared), {row["subject"]: row for row in read_csv(phantoms / "info.csv")}
    assert all(row["diagnosis"] == info[name]["diagnosis"] for name, row in rows.items())


def test_datalist_is_relative_and_split_by_subject(prepared, phantoms):
    content = json.loads((prepared / "datalist.json").read_text())
    names = [item["subject"] for section in ("training", "validation", "test") for item in content[section]]
    assert len(names) == len(set(names)) == 12
    assert [content[f"num{section}"] for section in ("Training", "Validation", "Test")] == [6, 3, 3]
    assert all((phantoms / item[key]).is_file() for item in content["training"] for key in ("image_ED", "mask_ES"))
    assert not any(item["image_ED"].startswith("/") for item in content["training"])


def test_second_run_examines_only_what_changed(cohort, tmp_path, monkeypatch):
    root, sound = cohort
    prepare(root, tmp_path / "out", workers=1)
    before = (tmp_path / "out" / "cohort.csv").read_text()
    image, affine = read_image(root / sound[0] / "sa_ED.nii.gz")
    write_volume(root / sound[0] / "sa_ED.nii.gz", np.round(image * 2).astype(np.int16), affine)
    seen = []
    measure = examine.measure
    monkeypatch.setattr(examine, "measure", lambda folder, *rest: seen.append(folder.name) or measure(folder, *rest))
    prepare(root, tmp_path / "out", workers=1)
    assert seen == [sound[0]]
    assert (tmp_path / "out" / "cohort.csv").read_text() == before


def test_torn_journal_is_mended(cohort, tmp_path):
    root, _ = cohort
    prepare(root, tmp_path / "out", workers=1)
    before, journal = (tmp_path / "out" / "cohort.csv").read_text(), tmp_path / "out" / "examined.jsonl"
    journal.write_text(journal.read_text()[:-200])
    prepare(root, tmp_path / "out", workers=1)
    prepare(root, tmp_path / "out", workers=1)
    assert (tmp_path / "out" / "cohort.csv").read_text() == before


def test_workers_do_not_change_the_result(cohort, tmp_path, prepared):
    prepare(cohort[0], tmp_path / "out", split=(0.5, 0.25, 0.25), workers=1)
    assert (tmp_path / "out" / "cohort.csv").read_text() == (prepared / "cohort.csv").read_text()


def same_files(folder, other):
    return all((folder / name).read_bytes() == (other / name).read_bytes() for name in ("cohort.csv", "datalist.json"))


def test_a_cluster_gives_the_same_files(phantoms, tmp_path, prepared, scheduler):
    prepare(phantoms, tmp_path, split=(0.5, 0.25, 0.25), workers=Workers(scheduler=scheduler))
    assert same_files(tmp_path, prepared)


def worker_of_this_process(_):
    psutil = pytest.importorskip("psutil")
    children = psutil.Process().children()
    return next(child.pid for child in children if "popen_loky" in " ".join(child.cmdline()))


def worker_of_cluster(scheduler):
    from scripts.cluster import connect

    return next(iter(connect(Workers(scheduler=scheduler)).run(os.getpid).values()))


@pytest.mark.parametrize("find_worker", [worker_of_this_process, worker_of_cluster])
def test_a_worker_that_is_killed_loses_nothing(find_worker, phantoms, tmp_path, prepared, scheduler):
    killed_after = []

    def kill():
        while not killed_after:
            done = len(examined(tmp_path))
            if done:
                os.kill(find_worker(scheduler), signal.SIGKILL)
                killed_after.append(done)
            time.sleep(0.002)

    thread = threading.Thread(target=kill)
    thread.start()
    workers = Workers(scheduler=scheduler) if find_worker is worker_of_cluster else Workers(2)
    prepare(phantoms, tmp_path, split=(0.5, 0.25, 0.25), workers=workers)
    thread.join()
    assert killed_after[0] < len(rows_by_subject(tmp_path))  # while others were under way
    assert same_files(tmp_path, prepared)


def examined(folder):
    """Lines of the journal."""
    journal = folder / "examined.jsonl"
    return [line for line in journal.read_text().splitlines() if line] if journal.exists() else []


def test_a_failed_examination_is_listed_and_not_remembered(cohort, tmp_path, monkeypatch):
    root, sound = cohort
    failing = sound[0]
    attempts, measure = [], examine.measure

    def fail(folder, *rest):
        if folder.name == failing:
            attempts.append(folder.name)
            raise MemoryError("no memory")
        return measure(folder, *rest)

    monkeypatch.setattr(examine, "measure", fail)
    prepare(root, tmp_path / "out", workers=1)
    row = rows_by_subject(tmp_path / "out")[failing]
    assert row["status"] == "excluded"
    assert row["reason"].startswith("unexpected MemoryError: no memory (examine.py, line ")
    assert len(attempts) == 2
    assert len(examined(tmp_path / "out")) == len(rows_by_subject(tmp_path / "out")) - 1
    monkeypatch.setattr(examine, "measure", measure)
    prepare(root, tmp_path / "out", workers=1)
    assert rows_by_subject(tmp_path / "out")[failing]["status"] == "included"


def test_a_disk_that_fails_is_not_the_subjects_fault(cohort, tmp_path, monkeypatch):
    root, sound = cohort
    read, failures = np.asarray, []

    def fail_once(voxels, *rest, **options):
        if not failures and type(voxels).__name__ == "ArrayProxy":
            failures.append(voxels)
            raise OSError(errno.EIO, "Input/output error")
        return read(voxels, *rest, **options)

    monkeypatch.setattr(np, "asarray", fail_once)
    prepare(root, tmp_path / "out", workers=1)
    assert failures
    assert all(rows_by_subject(tmp_path / "out")[name]["status"] == "included" for name in sound)


def test_a_broken_subject_is_excluded_and_the_run_goes_on(cohort, tmp_path):
    root, sound = cohort
    affine = read_image(root / sound[0] / "sa_ED.nii.gz")[1]
    truncated, shape, nan, missing, swapped, flat = sound[:6]
    scan = root / truncated / "sa_ED.nii.gz"
    scan.write_bytes(scan.read_bytes()[:-5000])
    write_volume(root / shape / "label_sa_ED.nii.gz", np.zeros((8, 8, 8), np.uint8), affine)
    write_volume(root / nan / "sa_ES.nii.gz", np.full_like(read_image(root / nan / "sa_ES.nii.gz")[0], np.nan), affine)
    (root / missing / "sa_ES.nii.gz").unlink()
    for kind in ("sa", "label_sa"):
        ed, es, other = (root / swapped / f"{kind}_{phase}.nii.gz" for phase in ("ED", "ES", "other"))
        ed.rename(other), es.rename(ed), other.rename(es)
    write_volume(root / flat / "sa_ED.nii.gz", np.ones_like(read_image(root / flat / "sa_ED.nii.gz")[0]), affine)
    prepare(root, tmp_path / "out")
    rows = rows_by_subject(tmp_path / "out")
    reasons = {name: rows[name]["reason"] for name in sound[:6]}
    assert "cannot be read to its end" in reasons[truncated]
    assert "its mask has (8, 8, 8)" in reasons[shape]
    assert "not finite" in reasons[nan]
    assert "sa_ES.nii.gz is missing" in reasons[missing]
    assert "ED and ES look exchanged" in reasons[swapped]
    assert "constant" in reasons[flat]
    assert rows[sound[6]]["status"] == "included"


def test_an_excluded_subject_keeps_what_was_measured(prepared):
    rows = [row for row in rows_by_subject(prepared).values() if row["status"] == "excluded"]
    assert all(float(row["LVEDV"]) > 0 and row["slices_ED"] and row["spacing_z"] == "10" for row in rows)


def test_relative_and_absolute_dataset_dir_agree(cohort, tmp_path, monkeypatch):
    root, _ = cohort
    monkeypatch.chdir(root.parent)
    prepare(root.name, tmp_path / "out", workers=1)
    first = (tmp_path / "out" / "datalist.json").read_text()
    monkeypatch.chdir(tmp_path)
    prepare(root, tmp_path / "out", workers=1)
    assert (tmp_path / "out" / "datalist.json").read_text() == first


def test_user_table_that_names_a_subject_twice(cohort, tmp_path):
    (tmp_path / "table.csv").write_text("subject,age\nb,49\na,50\na,51\n")
    with pytest.raises(ValueError, match="names a subject more than once, in lines 3, 4"):
        prepare(cohort[0], tmp_path / "out", user_table=tmp_path / "table.csv")


def test_unwritable_output_is_named(cohort, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="output_dir"):
        prepare(cohort[0], tmp_path / "file" / "out")


def test_items_of_a_datalist_have_absolute_paths(prepared, phantoms):
    items = load_items(prepared / "datalist.json", phantoms, "validation", ["LVEDV"])
    assert len(items) == 3
    assert all(Path(item["image_ED"]).is_file() and Path(item["image_ED"]).is_absolute() for item in items)
    assert items[0]["scan_ES"] == items[0]["image_ES"]


def changed(prepared, folder, **values):
    """A datalist whose first training subject has other values."""
    content = json.loads((prepared / "datalist.json").read_text())
    content["training"][0] |= values
    write_json(folder / "datalist.json", content)
    return folder / "datalist.json"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("HR", "fast"),
        ("LVCO", {"a": 1}),
        ("LVEDV", 10**400),
        ("LVEDV", float("inf")),
        ("RVEF", float("nan")),
        ("mask", 5),
    ],
)
def test_a_value_that_no_heart_has_is_refused_before_it_ends_an_inference(key, value, prepared, phantoms, tmp_path):
    with pytest.raises(ValueError, match=rf"item 0 of datalist .* is broken: {key} is (of type|no number)"):
        load_items(changed(prepared, tmp_path, **{key: value}), phantoms, "test")


@pytest.mark.parametrize("content", [{"training": 5}, {"training": [], "validation": None}])
def test_sections_that_are_no_lists_are_refused(content, phantoms, tmp_path):
    write_json(tmp_path / "datalist.json", content)
    with pytest.raises(ValueError, match="each a list of subjects"):
        load_items(tmp_path / "datalist.json", phantoms, "training")


@pytest.mark.parametrize("section", [["test"], "testing"])
def test_another_section_is_refused(section, prepared, phantoms):
    with pytest.raises(ValueError, match="expected one of training, validation, test"):
        load_items(prepared / "datalist.json", phantoms, section)


def test_a_table_without_a_header_names_nobody(tmp_path):
    (tmp_path / "table.csv").write_text("phantom0001,male,55\nphantom0002,female,60\n")
    with pytest.raises(ValueError, match="header line with a column 'subject'") as refusal:
        read_user_table(tmp_path, tmp_path / "table.csv")
    assert "phantom" not in str(refusal.value)


def test_a_dataset_that_is_lost_meanwhile_is_refused(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    folders[0].mkdir()
    excluded = [{"status": "excluded"}] * 2
    refuse_vanished(folders[:1], excluded[:1], tmp_path)
    with pytest.raises(FileNotFoundError, match=r"2 of 3 folders .* have vanished"):
        refuse_vanished(folders, [{"status": "included"}, *excluded], tmp_path)


def test_what_examining_raises_is_not_about_the_journal(cohort, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")
        yield

    monkeypatch.setattr("scripts.cohort.journal.examine_all", full)
    with pytest.raises(OSError, match="No space left") as refusal:
        prepare(cohort[0], tmp_path)
    assert "examined.jsonl" not in str(refusal.value)


def test_vanished_file_is_told(prepared, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"files of datalist .* the first: .*/<subject>/sa"):
        load_items(prepared / "datalist.json", tmp_path)


def test_missing_attribute_is_named_with_those_there_are(prepared, phantoms):
    with pytest.raises(ValueError, match="lacks the attributes LAEDV; it has LVEDV"):
        load_items(prepared / "datalist.json", phantoms, "training", ["LVEDV", "LAEDV"])


def test_missing_datalist_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="run prepare"):
        load_items(tmp_path / "datalist.json", tmp_path)


def test_empty_section_is_an_error(prepared, phantoms, tmp_path):
    prepare(phantoms, tmp_path, split=(1, 0, 0))
    with pytest.raises(ValueError, match="has no subject in validation"):
        load_items(tmp_path / "datalist.json", phantoms, "validation")


def seen_by(monkeypatch):
    """Names of the subjects that the next runs measure."""
    seen, measure = [], examine.measure
    monkeypatch.setattr(examine, "measure", lambda folder, *rest: seen.append(folder.name) or measure(folder, *rest))
    return seen


def test_other_rules_examine_anew_and_decide(cohort, tmp_path, monkeypatch):
    root, _ = cohort
    prepare(root, tmp_path / "out", workers=1)
    included = sum(row["status"] == "included" for row in rows_by_subject(tmp_path / "out").values())
    seen = seen_by(monkeypatch)
    prepare(root, tmp_path / "out", rules={"min_slices": 4}, workers=1)
    assert len(seen) == len(rows_by_subject(tmp_path / "out"))
    assert sum(row["status"] == "included" for row in rows_by_subject(tmp_path / "out").values()) > included


def test_a_file_that_changed_without_growing_is_seen(cohort, tmp_path, monkeypatch):
    root, sound = cohort
    prepare(root, tmp_path / "out", workers=1)
    os.utime(root / sound[1] / "label_sa_ES.nii.gz")
    seen = seen_by(monkeypatch)
    prepare(root, tmp_path / "out", workers=1)
    assert seen == [sound[1]]


def training_subjects(folder):
    return {item["subject"] for item in json.loads((folder / "datalist.json").read_text())["training"]}


def test_split_follows_its_seed(cohort, tmp_path, prepared):
    prepare(cohort[0], tmp_path / "out", split=(0.5, 0.25, 0.25), seed=1, workers=1)
    assert training_subjects(tmp_path / "out") != training_subjects(prepared)


def test_split_follows_the_users_column(cohort, tmp_path):
    root, sound = cohort
    names = [row["subject"] for row in read_csv(root / "info.csv")]
    chosen = sound[1::2]
    lines = [f"{name},{'training' if name in chosen else 'test'}" for name in names]
    (tmp_path / "table.csv").write_text("\n".join(["subject,part", *lines]))
    prepare(root, tmp_path / "out", user_table=tmp_path / "table.csv", split_column="part", workers=1)
    assert training_subjects(tmp_path / "out") == set(chosen)


def test_a_vanished_mask_is_noticed(cohort, prepared):
    root, _ = cohort
    item = json.loads((prepared / "datalist.json").read_text())["training"][0]
    (root / item["mask_ES"]).unlink()
    with pytest.raises(FileNotFoundError, match="files of datalist"):
        load_items(prepared / "datalist.json", root)


def test_items_change_with_their_files_and_have_areas(cohort, prepared):
    root, _ = cohort
    before = load_items(prepared / "datalist.json", root, "training", ["LVEDA", "LVEF"])
    os.utime(before[0]["mask_ES"], (1, 1))
    after = load_items(prepared / "datalist.json", root, "training")
    assert [old == new for old, new in zip(before, after, strict=True)] == [False] + [True] * (len(before) - 1)


def test_a_folder_without_a_scan_is_listed(cohort, tmp_path):
    root, _ = cohort
    (root / "empty").mkdir()
    (root / "uncompressed").mkdir()
    (root / "uncompressed" / "sa_ED.nii").touch()
    (root / ".hidden").mkdir()
    prepare(root, tmp_path / "out", workers=1)
    rows = rows_by_subject(tmp_path / "out")
    assert "there is neither" in rows["empty"]["reason"]
    assert "there is neither" in rows["uncompressed"]["reason"]
    assert ".hidden" not in rows


def test_a_broken_link_excludes_its_subject_only(cohort, tmp_path):
    root, sound = cohort
    link = root / sound[0] / "sa_ED.nii.gz"
    link.unlink()
    link.symlink_to(tmp_path / "nowhere")
    prepare(root, tmp_path / "out", workers=1)
    rows = rows_by_subject(tmp_path / "out")
    assert (rows[sound[0]]["status"], rows[sound[1]]["status"]) == ("excluded", "included")


def test_a_mirror_image_is_told(cohort, tmp_path, capsys):
    root, sound = cohort
    for name in ("sa_ED", "sa_ES", "label_sa_ED", "label_sa_ES"):
        path = root / sound[0] / f"{name}.nii.gz"
        scan = nib.load(path)
        flip = np.diag([-1.0, 1, 1, 1])
        flip[0, 3] = scan.shape[0] - 1
        write_volume(path, np.asanyarray(scan.dataobj)[::-1].copy(), scan.affine @ flip)
    prepare(root, tmp_path / "out", workers=1)
    assert "1 subjects are mirror images of the others by their affines" in capsys.readouterr().out


def test_a_user_table_of_other_subjects_is_told(cohort, tmp_path, capsys):
    (tmp_path / "table.csv").write_text("subject,age\nnobody,50\n")
    prepare(cohort[0], tmp_path / "out", user_table=tmp_path / "table.csv", workers=1)
    assert "1 subjects of the user table have no scan, the first in line 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"basal_slice_ED": "1"}, "basal_slice_ED is of type str"),
        ({"LVEDV": "big"}, "LVEDV is of type str"),
        ({"frame_ES": None, "image_ES": None}, "image_ES is of type NoneType"),
        ({"subject": "a/b"}, "subject is no name of a folder"),
        ({"subject": ".."}, "subject is no name of a folder"),
    ],
)
def test_a_datalist_that_was_edited(cohort, prepared, tmp_path, change, message):
    content = json.loads((prepared / "datalist.json").read_text())
    content["training"][1] |= change
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"item 1 of datalist .* is broken") as error:
        load_items(tmp_path / "datalist.json", cohort[0], "training")
    assert message in str(error.value)


def without_values(content):
    for item in content["training"]:
        item["LVEDV"] = None


def without_a_key(content):
    del content["test"][0]["frame_ED"]


def with_a_subject_twice(content):
    content["validation"].append(content["validation"][0])


def with_a_training_subject_in_the_test(content):
    content["test"].append(content["training"][0])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_values, "has a value for LVEDV"),
        (without_a_key, "frame_ED is missing"),
        (with_a_subject_twice, "more than once"),
        (with_a_training_subject_in_the_test, "more than once"),
    ],
)
def test_a_broken_datalist_is_refused(spoil, message, cohort, prepared, tmp_path):
    content = json.loads((prepared / "datalist.json").read_text())
    spoil(content)
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        load_items(tmp_path / "datalist.json", cohort[0], "training", ["LVEDV", "RVEDV"])
