"""No code runs from data: neither what a pickle asks for, nor what MONAI's configs would take for code."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
import zlib
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Lambda

from scripts import api, checkpoint
from scripts.calibration.calibration import FILE, Calibration
from scripts.cohort.datalist import load_items
from scripts.cohort.journal import read_journal
from scripts.cohort.prepare import prepare
from scripts.data import DiskCacheDataset
from scripts.inference.items import find_items
from scripts.inference.spread import encode as encode_chunk
from scripts.perceptual import load_trunk
from scripts.segmentation.segmenter import load_segmenter
from scripts.storage import read_csv, write_csv
from tests.conftest import ROOT
from tests.faults.corpus import CONFIGS, SIZES, infer, write_subject, write_weights

MARKER = "executed"
# Each is code to MONAI's ConfigParser and may be the name of a folder.
CODE = f"$__import__('pathlib').Path('{MARKER}').touch()"
MACRO = "%datalist.json::training"
REFERENCE = "@dataset_dir"
TARGET = {"_target_": "os.mkdir", "path": MARKER}
NESTED = {"deeper": [CODE, TARGET, MACRO, REFERENCE]}


class Attack:
    """Unpickling it makes the marker."""

    def __reduce__(self):
        return exec, (f"open('{MARKER}', 'w').close()",)


@pytest.fixture(autouse=True)
def _nothing_is_executed(tmp_path, monkeypatch):
    """Every test begins in its own folder, and nothing may have made the marker there."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not os.path.exists(MARKER)


@pytest.mark.parametrize("payload", [CODE, TARGET, {"a": [CODE]}], ids=["expression", "target", "nested"])
def test_the_payloads_are_live_where_a_config_holds_them(payload):
    ConfigParser({"value": payload}).get_parsed_content("value")
    path = Path(MARKER)
    assert path.exists()
    path.rmdir() if path.is_dir() else path.unlink()


def test_the_pickle_is_live():
    pickle.loads(pickle.dumps(Attack()))
    Path(MARKER).unlink()


def save_plain(content, path):
    path.write_bytes(pickle.dumps(content))


def save_legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


READERS = {
    "checkpoint": checkpoint.read,
    "weights": lambda path: checkpoint.load_weights(torch.nn.Linear(1, 1), path),
    "segmentation": load_segmenter,
    "trunk": lambda path: load_trunk("alexnet", path),
}


@pytest.mark.parametrize("save", [torch.save, save_legacy, save_plain])
@pytest.mark.parametrize("reader", READERS)
def test_no_weights_run_code(reader, save, tmp_path):
    path = tmp_path / "model.pt"
    save({"weight": torch.ones(1, 1), "network": Attack()}, path)
    with pytest.raises((ValueError, pickle.UnpicklingError), match=r"model\.pt|Unsupported|GLOBAL"):
        READERS[reader](path)


def test_a_training_state_runs_no_code(tmp_path):
    torch.save({"network": {}, "epoch": 1, "best": Attack()}, tmp_path / checkpoint.LAST)
    network = torch.nn.Linear(1, 1)
    training = checkpoint.TrainingCheckpoint(tmp_path, network, {"optimizer": torch.optim.Adam(network.parameters())})
    with pytest.raises(ValueError, match=r"last\.pt' cannot be read"):
        training.restore(None, tmp_path / checkpoint.LAST)


def numbers(item):
    return {"image": torch.ones(1, 2)}


def forged(header):
    """An entry as one who knows the format would forge it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    content = len(text).to_bytes(4, "little") + text
    return zlib.crc32(content).to_bytes(4, "little") + content


FORGED_ENTRIES = [
    pickle.dumps(Attack()),
    {"alone": False, "tensors": [["image", "compile", [1]]], "others": TARGET},
    {"alone": False, "tensors": [["image", "__builtins__", [1]]], "others": {}},
    {"alone": False, "tensors": [["image", CODE, [1, 2]]], "others": {}},
    {"alone": False, "tensors": [["image", "float32", [2**40]]], "others": {}},
    {"alone": False, "tensors": TARGET, "others": CODE},
    {"alone": True, "tensors": [], "others": {}},
    CODE,
]


@pytest.mark.parametrize("header", FORGED_ENTRIES)
def test_no_entry_of_a_cache_runs_code(header, tmp_path):
    dataset = DiskCacheDataset([{"value": 1}], [Lambda(numbers)], tmp_path / "cache")
    dataset.fill()
    dataset.path(0).write_bytes(forged(header))
    with pytest.warns(UserWarning, match="is broken"):
        assert torch.equal(dataset[0]["image"], torch.ones(1, 2))


@pytest.fixture
def cohort(tmp_path):
    """Subjects whose names are code to a config, with a table that is code in every cell, prepared."""
    root = tmp_path / "scans"
    template = write_subject(root / "plain")
    for name in (CODE, MACRO.replace(":", "."), REFERENCE, "$subjects", r"$\frac{$"):
        shutil.copytree(template, root / name)
    rows = [
        {"subject": path.name, "diagnosis": CODE, CODE: MACRO, "age": json.dumps(TARGET)} for path in root.iterdir()
    ]
    write_csv(root / "info.csv", rows, list(rows[0]))
    prepare(root, tmp_path / "cohort", workers=1, split=(1, 0, 0))
    return root, tmp_path / "cohort"


def poisoned(cohort):
    """The cohort's datalist with code wherever a datalist has room for it."""
    path = cohort[1] / "datalist.json"
    content = json.loads(path.read_text())
    content |= {"name": CODE, "more": TARGET, "labels": NESTED}
    for item in content["training"]:
        item |= {"_target_": "os.mkdir", "path": MARKER, "diagnosis": CODE, "more": NESTED, CODE: TARGET}
    path.write_text(json.dumps(content))
    return path


def names(root):
    return sorted(path.name for path in root.iterdir() if path.is_dir())


def test_names_and_tables_are_no_code_to_prepare(cohort):
    rows = read_csv(cohort[1] / "cohort.csv")
    assert [row["subject"] for row in rows if row["status"] == "included"] == names(cohort[0])
    assert rows[0]["diagnosis"] == CODE


def test_what_a_datalist_holds_is_no_code_to_an_inference(cohort, tmp_path):
    weights = write_weights(tmp_path / "model.pt")
    excluded, encoded = infer(cohort[0], tmp_path / "out", weights, datalist=str(poisoned(cohort)), pages=True)
    assert (excluded, sorted(encoded)) == ({}, names(cohort[0]))


def test_names_are_no_code_to_an_inference_without_datalist(cohort, tmp_path):
    weights = write_weights(tmp_path / "model.pt")
    excluded, encoded = infer(cohort[0], tmp_path / "out", weights, volumes=False)
    assert (excluded, encoded) == ({}, names(cohort[0]))


def test_names_are_no_code_to_a_worker_of_a_cluster(cohort, tmp_path):
    items = find_items(cohort[0], tmp_path / "out", poisoned(cohort)).items
    (tmp_path / "out").mkdir()
    paths = {
        "dataset_dir": cohort[0],
        "output_dir": tmp_path / "out",
        "ckpt_path": write_weights(tmp_path / "model.pt"),
    }
    overrides = {key: str(path) for key, path in paths.items()} | SIZES | {"pages": False, "device": "cpu"}
    files = [str(CONFIGS / name) for name in ("inference.json", "compact.json")]
    assert encode_chunk(items, files, overrides) == []
    assert len(list((tmp_path / "out").glob("*/result.json"))) == len(items)


def test_what_a_datalist_holds_is_no_code_to_a_training(cohort):
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in ("train.json", "compact.json")])
    paths = {"dataset_dir": str(cohort[0]), "datalist": str(poisoned(cohort)), "output_dir": "run"}
    parser.update(paths | SIZES | {"device": "cpu", "num_workers": 0})
    assert parser.get_parsed_content("cohort_hash")
    dataset = parser.get_parsed_content("train#dataset")
    assert len(dataset) == len(names(cohort[0]))
    assert dataset[0]["image"].shape == (2, 64, 64)


@pytest.mark.parametrize("value", [CODE, TARGET, NESTED])
def test_settings_and_calibration_are_no_code(value, cohort, tmp_path):
    weights = write_weights(tmp_path / "model.pt")
    (tmp_path / checkpoint.SETTINGS).write_text(json.dumps({"unknown": value, CODE: value}))
    calibration = {"version": 1, "settings": value, "lines": {CODE: value}, "novelty": value, CODE: value}
    (tmp_path / FILE).write_text(json.dumps(calibration))
    _, encoded = infer(cohort[0], tmp_path / "out", weights, datalist=str(cohort[1] / "datalist.json"), volumes=False)
    assert len(encoded) == len(names(cohort[0]))
    (tmp_path / checkpoint.SETTINGS).write_text(json.dumps({"spacing": value}))
    with pytest.raises(ValueError, match=r"other settings: spacing is 2\.5"):
        checkpoint.load_weights(torch.nn.Linear(1, 1), weights, {"spacing": 2.5})


@pytest.mark.parametrize("place", ["settings", "lines", "novelty", "population", "quantiles"])
def test_a_calibration_is_read_as_values(place, tmp_path):
    content = {"version": 1, "checkpoint_sha256": "0", "settings": {}, "lines": {}, "quantiles": {}, "novelty": {}}
    for version in range(10):
        (tmp_path / FILE).write_text(json.dumps(content | {"version": version, place: TARGET | {"x": CODE}}))
        with pytest.raises(ValueError, match="calibration"):
            Calibration.read(tmp_path / FILE, "0")


def test_a_name_of_weights_is_no_code(tmp_path):
    write_weights(tmp_path / CODE)
    model = api.load(ROOT / "bundle", ckpt_path=CODE, device="cpu", overlays=["compact.json"], **SIZES)
    assert model.latent_dim == SIZES["latent_dim"]


OUTSIDE = [
    "/etc/passwd",
    "../secret/sa_ED.nii.gz",
    "plain/../../secret/sa_ED.nii.gz",
    "..",
    "plain/sa\n.nii.gz",
    "a\0b",
]


@pytest.mark.parametrize("path", OUTSIDE)
@pytest.mark.parametrize("key", ["image_ED", "mask_ES"])
def test_a_datalist_does_not_lead_out_of_the_dataset(key, path, cohort, tmp_path):
    write_subject(tmp_path / "secret")
    datalist = cohort[1] / "datalist.json"
    content = json.loads(datalist.read_text())
    content["training"][2][key] = path
    datalist.write_text(json.dumps(content))
    for read in (load_items, lambda datalist, root: find_items(root, tmp_path / "out", datalist)):
        with pytest.raises(ValueError, match=rf"item 2 .*{key} is no path within dataset_dir. Mend it"):
            read(datalist, cohort[0])


@pytest.mark.parametrize("name", ["new\nline", "bell\a", "\udce9"])
def test_a_datalist_names_folders_that_a_line_can_hold(name, cohort):
    datalist = cohort[1] / "datalist.json"
    content = json.loads(datalist.read_text())
    content["training"][2]["subject"] = name
    datalist.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="subject is no name of a folder"):
        load_items(datalist, cohort[0])


def test_a_link_within_the_dataset_is_its_owners(cohort, tmp_path):
    shutil.move(cohort[0] / "plain", tmp_path / "elsewhere")
    (cohort[0] / "plain").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert len(load_items(cohort[1] / "datalist.json", cohort[0])) == len(names(cohort[0]))


def test_a_datalist_nested_beyond_reason_is_refused(tmp_path):
    (tmp_path / "datalist.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"datalist\.json' is not valid JSON"):
        load_items(tmp_path / "datalist.json", tmp_path)
    (tmp_path / "datalist.json").write_bytes(b'{"training": "\xff"}')
    with pytest.raises(ValueError, match=r"datalist\.json' is not valid JSON"):
        load_items(tmp_path / "datalist.json", tmp_path)


FORGED = [
    {"subject": "../../elsewhere"},
    {"image_ED": "../secret/sa_ED.nii.gz"},
    {"mask_ES": "/etc/passwd"},
    {"status": TARGET},
    {"reason": TARGET, "status": "excluded"},
    {"basal_slice_ED": CODE},
    {"LVEDV": [CODE]},
]


@pytest.mark.parametrize("change", FORGED)
def test_a_forged_row_of_a_journal_is_examined_again(change, cohort, tmp_path):
    journal = cohort[1] / "examined.jsonl"
    before = (cohort[1] / "cohort.csv").read_text()
    lines = [json.loads(line) for line in journal.read_text().splitlines() if line]
    key, row = lines[1]["key"], lines[1]["row"]
    lines[1]["row"] = row | change
    forged = [json.dumps(line) for line in lines]
    journal.write_text("\n".join([*forged, "[" * 100_000, "7", '{"key": []}', json.dumps({"key": key, "row": 7})]))
    assert key not in read_journal(journal, {key: row["subject"]})
    prepare(cohort[0], cohort[1], workers=1, split=(1, 0, 0))
    assert (cohort[1] / "cohort.csv").read_text() == before
    subjects = find_items(cohort[0], cohort[1], workers=1)
    assert sorted(item["subject"] for item in subjects.items) == names(cohort[0])


def test_a_pickle_is_no_journal(cohort):
    (cohort[1] / "examined.jsonl").write_bytes(pickle.dumps(Attack()) + b"\n" + CODE.encode())
    prepare(cohort[0], cohort[1], workers=1, split=(1, 0, 0))
    assert len(read_csv(cohort[1] / "cohort.csv")) == len(names(cohort[0]))


# Calls that run what a file says, and where one of them is meant: Dask's worker calls what its own client sent.
RUNNING = {"eval", "exec", "loads", "load", "Unpickler", "compile", "system", "popen", "unsafe_load", "full_load"}
ADMITTED = {("cluster.py", "pickle.loads"), ("perceptual.py", "pickle.Unpickler")}
HARMLESS = {"json.load", "json.loads", "torch.load", "re.compile", "torch.compile"}


def calls(path):
    """Names of what a module calls or inherits from, with the keywords of the calls."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {each.arg: ast.unparse(each.value) for each in node.keywords}
        elif isinstance(node, ast.ClassDef):
            yield from ((ast.unparse(base), {}) for base in node.bases)


def test_no_module_reads_what_could_run():
    found = set()
    for path in (ROOT / "scripts").rglob("*.py"):
        for name, keywords in calls(path):
            where = f"{path.name}: {name}"
            assert name != "torch.load" or keywords.get("weights_only") == "True", where
            assert "allow_pickle" not in keywords, where
            assert keywords.get("shell", "False") == "False", where
            own = name.split(".")[0] in ("pickle", "yaml", "joblib", "os", "marshal", "shelve", "dill", "cloudpickle")
            if name in ("eval", "exec", "compile") or (own and name.split(".")[-1] in RUNNING):
                found.add((path.name, name))
    assert found <= ADMITTED, found - ADMITTED
