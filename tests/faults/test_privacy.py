"""Subjects are planted whose names no program knows, and what may leave the place of the scans is searched for them.

What stays beside the scans names subjects, since it is of no use without: cohort.csv, datalist.json, examined.jsonl,
pseudonyms.csv, import.csv, and the tables and folders of an inference.
"""

from __future__ import annotations

import base64
import errno
import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import traceback
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose

from scripts.cohort.acdc import import_acdc
from scripts.cohort.datalist import load_items
from scripts.cohort.phantom import write_cohort
from scripts.cohort.prepare import prepare
from scripts.data import cached_dataset
from scripts.evaluation.report import refuse_overlap
from scripts.inference.batch import infer
from scripts.inference.items import find_items
from scripts.inference.records import Records
from scripts.inference.writers import SubjectWriter
from scripts.packaging.__main__ import main as package
from scripts.packaging.contents import objection
from scripts.packaging.identifiers import read_names
from scripts.packaging.images import SIGNATURE
from scripts.perceptual import TRUNKS_VARIABLE
from scripts.storage import atomic_path, read_csv, write_csv, write_json
from scripts.transforms import LoadSubjectd
from tests.conftest import ROOT
from tests.documentation.conftest import write_trunks
from tests.inference.damage import lose_mask, truncate
from tests.packaging.examples import chunk, png

NAME = "Marsupial"  # in every planted name, and nowhere else
SUBJECTS = 16
SMALL = {"size": (112, 112), "spacing": (2.0, 2.0, 10.0), "cine_fraction": 0, "failing": 0}
TINY = {"spatial_size": [32, 32], "spacing": 5, "channels": [8, 8], "latent_dim": 8, "batch_size": 6}
TINY |= {"perceptual_weight": 0, "max_epochs": 2, "warmup_epochs": 0, "picture_interval": 1}
JUDGED = {"ceiling_epochs": 1, "ceiling_channels": [8, 8], "page_subjects": 3, "page_changes": [10]}
JUDGED |= {"generated_samples": 12, "lpips_net": "alex", "evaluation_workers": 0}
SIZES = ("spatial_size", "spacing", "channels", "latent_dim")
LOCAL = ("pseudonyms.csv", "cohort.csv", "datalist.json", "examined.jsonl")  # what names subjects in a run's folder


def layers(data: bytes) -> Iterator[bytes]:
    """The bytes, and what is packed in them: members of archives, texts of pictures, pictures in pages."""
    yield data
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield name.encode()
                yield from layers(archive.read(name))
    if data[:2] == b"\x1f\x8b":
        yield from layers(gzip.decompress(data))
    for found in re.finditer(re.escape(SIGNATURE), data):  # the file itself, or what TensorBoard holds
        yield from picture_texts(data[found.end() :])
    for found in re.finditer(rb"base64,([\w+/=]+)", data):
        yield from layers(base64.b64decode(found[1]))


def picture_texts(data: bytes) -> Iterator[bytes]:
    """Contents of the chunks of a PNG file behind its signature that are not pixels, unpacked where they are packed."""
    position, kind = 0, b""
    while kind != b"IEND":
        length, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        content = data[position + 8 : position + 8 + length]
        position += 12 + length
        for start in [match.end() for match in re.finditer(b"\0", content)] if kind in (b"zTXt", b"iTXt") else ():
            try:
                yield zlib.decompress(content[start:])
            except zlib.error:
                continue


def names_somebody(data: bytes) -> bool:
    """Whether a planted name is in the bytes, or in what is packed in them, in any case and encoding."""
    spelled = [NAME.lower().encode(encoding) for encoding in ("utf-8", "utf-16-le", "utf-16-be")]
    return any(word in layer.lower() for layer in layers(data) for word in spelled)


def plant(scans: Path, subjects: int = SUBJECTS) -> None:
    """Phantoms under planted names: sound ones, some of which a warning is about, and some that are excluded."""
    write_cohort(scans, subjects=subjects, seed=5, workers=1, **SMALL)
    rows = [row | {"subject": row["subject"].replace("phantom", NAME) + "_2_0"} for row in read_csv(scans / "info.csv")]
    names = [row["subject"] for row in rows]
    for folder, name in zip(sorted(scans.glob("phantom*")), names, strict=True):
        folder.rename(scans / name)
    write_csv(scans / "info.csv", [*rows, rows[0] | {"subject": f"{NAME}Absent"}], list(rows[0]))
    lose_mask(scans / names[0])
    truncate(scans / names[1])
    (scans / names[2] / "sa_ES.nii.gz").write_bytes(b"no scan")  # of which nibabel says where it lies
    mirror(scans / names[3])
    resize(scans / names[4])


def mirror(folder: Path) -> None:
    """Turn around an axis of a subject's affines."""
    for path in folder.glob("*.nii.gz"):
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine @ np.diag([-1, 1, 1, 1])), path)


def resize(folder: Path) -> None:
    """Make the affines of a subject disagree with its zooms."""
    for path in folder.glob("*.nii.gz"):
        image = nib.load(path)
        zooms = image.header.get_zooms()
        image.set_sform(image.affine @ np.diag([1.1, 1.1, 1, 1]), 1)
        image.header.set_zooms(zooms)
        nib.save(image, path)


def commands(folder: Path) -> list[tuple[str, list[str], dict]]:
    """From the scans to codes and the report."""
    configs, run = ROOT / "bundle" / "configs", folder / "run"
    paths = {"dataset_dir": str(folder / "scans"), "output_dir": str(run)}
    train, judge, infer = (
        [str(configs / name) for name in names]
        for names in (
            ("train.json", "compact.json"),
            ("train.json", "compact.json", "evaluate.json"),
            ("inference.json", "compact.json"),
        )
    )
    encode = paths | {key: TINY[key] for key in SIZES} | {"output_dir": str(folder / "inference")}
    encode |= {"ckpt_path": str(run / "model.pt"), "workers": 1, "num_workers": 0}
    return [
        ("prepare", [str(configs / "cohort.json")], paths | {"split": [0.4, 0.2, 0.4], "workers": 1}),
        ("training", train, paths | TINY),
        ("run", judge, paths | TINY | JUDGED),
        ("run", infer, encode),
    ]


@pytest.fixture(scope="module")
def leaving(tmp_path_factory) -> Path:
    """The folder in which every command has run, with what they said in ``log.txt``."""
    folder = tmp_path_factory.mktemp("leaving")
    plant(folder / "scans")
    write_trunks(folder / "trunks")
    write_json(folder / "commands.json", commands(folder))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", TRUNKS_VARIABLE: str(folder / "trunks")}
    with open(folder / "log.txt", "wb") as log:
        command = [sys.executable, "-m", "tests.faults.commands", str(folder / "commands.json")]
        ran = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=log, timeout=1800)
    assert ran.returncode == 0, (folder / "log.txt").read_text()[-3000:]
    return folder


@pytest.mark.slow
def test_nothing_that_leaves_names_a_subject(leaving):
    run = leaving / "run"
    shared = {path.relative_to(leaving).as_posix(): path for path in run.rglob("*") if path.is_file()}
    shared = {name: path for name, path in shared.items() if path.name not in LOCAL and "/cache/" not in name}
    found = [name for name, path in shared.items() if names_somebody(name.encode() + path.read_bytes())]
    assert found == []
    kinds = ("model.pt", "last.pt", "settings.json", "calibration.json", "events.out", "reconstructions.png")
    kinds += ("report.html", "tables.md", "subjects.csv", "metrics.json", "examples.pt")
    assert all(any(kind in name for name in shared) for kind in kinds)


@pytest.mark.slow
def test_no_figure_is_drawn_with_a_name(leaving):
    assert "LVEDV" in (leaving / "drawn.json").read_text()
    assert not names_somebody((leaving / "drawn.json").read_bytes())


@pytest.mark.slow
def test_the_log_counts_subjects_and_says_where_their_names_are(leaving):
    log, run = (leaving / "log.txt").read_text(), leaving / "run"
    assert not names_somebody(log.encode())
    for told in (
        f"Found {SUBJECTS} subjects: {SUBJECTS - 3} included, 3 excluded.",
        "excluded 1: no mask for sa_ES.nii.gz",
        "excluded 1: sa_ES.nii.gz cannot be opened",
        f"see 'reason' in {run / 'cohort.csv'}",
        "warning: 1 subjects of the user table have no scan, the first in line",
        "warning: 1 subjects are mirror images",
        "warning about 1 subjects: sa_ED.nii.gz: the affine's voxel size",
        f"see 'warnings' in {run / 'examined.jsonl'}",
        f"No result for 3 subjects: {leaving / 'inference' / 'excluded.csv'}",
    ):
        assert told in log
    local = [run / "cohort.csv", run / "datalist.json", run / "examined.jsonl", leaving / "inference" / "excluded.csv"]
    assert all(names_somebody(path.read_bytes()) for path in local)


@pytest.mark.slow
def test_pseudonyms_lead_back_beside_the_scans_only(leaving):
    run = leaving / "run"
    names = {int(row["pseudonym"]): row["subject"] for row in read_csv(run / "pseudonyms.csv")}
    rows = {row["subject"]: row for row in read_csv(run / "cohort.csv")}
    judged = read_csv(run / "eval" / "subjects.csv")
    assert len(judged) > 5
    for row in judged:  # the table is right: its names have the attributes that the evaluation tells
        assert float(row["LVEDV"]) == pytest.approx(float(rows[names[int(row["pseudonym"])]]["LVEDV"]), rel=1e-4)
    page = (run / "eval" / "report.html").read_text()
    hearts = json.loads(re.search(r'id="hearts-data">(.*?)</script>', page)[1])["subjects"]
    test = {row["pseudonym"]: row for row in judged if row["section"] == "test"}
    assert len(hearts) == 3
    assert {str(heart["number"]) for heart in hearts} <= set(test)
    for heart in hearts:
        assert heart["masks"][0] == pytest.approx(float(test[str(heart["number"])]["LVEDV"]), abs=1)


@pytest.mark.slow
def test_the_package_names_nobody(leaving, capsys):
    bundle = leaving / "bundle"
    shutil.copytree(ROOT / "bundle", bundle, ignore=shutil.ignore_patterns("models", "scripts"))
    (bundle / "scripts").symlink_to(ROOT / "scripts")
    (bundle / "models").mkdir()
    for name in ("model.pt", "settings.json", "calibration.json"):
        shutil.copy(leaving / "run" / name, bundle / "models")
    write_json(bundle / "configs" / "tiny.json", TINY)
    options = ["--bundle_root", str(bundle), "--dist", str(leaving / "dist"), "--cohort", str(leaving / "run")]
    package([*options, "--overlay", "compact.json", "tiny.json"])
    said = capsys.readouterr()
    assert f"{SUBJECTS} names of subjects" in said.out
    assert not names_somebody((said.out + said.err).encode())
    (archive,) = (leaving / "dist").glob("*.zip")
    assert not names_somebody(archive.read_bytes())


@pytest.mark.parametrize("place", ["", "models/", "docs/", "docs/figures/", "configs/"])
@pytest.mark.parametrize("name", ["pseudonyms.csv", "import.csv", "subjects.csv", "report.html", "last.pt"])
def test_what_names_or_shows_subjects_has_no_place_in_a_package(place, name, tmp_path):
    (tmp_path / name).touch()
    assert objection(place + name, tmp_path / name)


@pytest.mark.parametrize("name", ["pseudonyms.csv", "import.csv"])
def test_a_package_is_searched_for_the_names_of_every_local_table(name, tmp_path):
    write_csv(tmp_path / name, [{"subject": f"{NAME}7"}], ["subject", "pseudonym"])
    assert read_names(tmp_path) == {f"{NAME}7"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
def test_the_search_finds_names_wherever_they_are_packed(encoding):
    word = f"x{NAME.upper()}x".encode(encoding)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("data.pkl", word * 9)
    note = chunk(b"zTXt", b"Title\0\0" + zlib.compress(word))
    page = b'<img src="data:image/png;base64,' + base64.b64encode(png(note)) + b'">'
    for hidden in (word, archive.getvalue(), gzip.compress(word), png(note), b"event" + png(note) + b"end", page):
        assert names_somebody(hidden)
    assert not names_somebody(png(chunk(b"zTXt", b"Title\0\0" + zlib.compress(b"nobody"))))


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Path:
    """Few planted subjects, of every kind."""
    scans = tmp_path_factory.mktemp("planted") / "scans"
    plant(scans, subjects=7)
    return scans


def test_prepare_and_inference_name_nobody_but_in_their_tables(planted, tmp_path, capfd):
    prepare(planted, tmp_path / "cohort", workers=1)
    subjects = find_items(planted, tmp_path / "codes", workers=1)
    records = Records(tmp_path / "codes", {}, {})
    with pytest.raises(SystemExit):
        infer(None, SimpleNamespace(records=records, failures=[], written=0, calibration=None), subjects, 0)
    said = "".join(capfd.readouterr())
    assert "excluded 1: no mask for sa_ES.nii.gz" in said
    assert "No result for 3 subjects" in said
    assert not names_somebody(said.encode())
    local = (tmp_path / "cohort" / "cohort.csv", tmp_path / "codes" / "excluded.csv")
    assert all(names_somebody(path.read_bytes()) for path in local)


def test_a_warning_while_a_network_is_fed_names_nobody(planted, recwarn):
    folder = sorted(planted.glob(f"{NAME}*"))[4]
    image, mask = folder / "sa_ED.nii.gz", folder / "label_sa_ED.nii.gz"
    LoadSubjectd(["ED"])({"image_ED": str(image), "mask_ED": str(mask), "frame_ED": None})
    assert any("disagrees with the header's" in str(warning.message) for warning in recwarn)
    assert not any(NAME in str(warning.message) for warning in recwarn)


def small_cohort(folder: Path) -> Path:
    """Three planted subjects with their datalist."""
    write_cohort(folder / "scans", subjects=3, seed=1, workers=1, **SMALL)
    for scan in sorted((folder / "scans").glob("phantom*")):
        scan.rename(scan.with_name(scan.name.replace("phantom", NAME)))
    (folder / "scans" / "info.csv").unlink()
    prepare(folder / "scans", folder, split=(1, 0, 0), workers=1)
    return folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """A small cohort to break copies of."""
    return small_cohort(tmp_path_factory.mktemp("sound"))


def items_of(folder: Path) -> list[dict]:
    return load_items(folder / "datalist.json", folder / "scans", "training", ["LVEDV"])


def edited(folder: Path, **changes) -> None:
    """Read the datalist after the first subject's item was changed."""
    content = json.loads((folder / "datalist.json").read_text())
    content["training"][0] |= changes
    write_json(folder / "datalist.json", content)
    items_of(folder)


def broken_scan(folder: Path, cache_dir: Path | None) -> None:
    """Preprocess for a training after a scan broke."""
    items = items_of(folder)
    Path(items[0]["image_ED"]).write_bytes(b"no scan")
    cached_dataset(items, Compose([LoadSubjectd()]), cache_dir)


def full_disk(folder: Path) -> None:
    """An inference that can write no more."""
    items = [{"subject": f"{NAME}1"}]
    writer = FullDisk(SimpleNamespace(folder=folder), items)
    writer.write_batch(SimpleNamespace(state=SimpleNamespace(batch=items, output=[{}])))


class FullDisk(SubjectWriter):
    """Fails as a full disk does: with the path of what was written."""

    def write(self, item, output):
        with atomic_path(self.records.folder / f"{item['subject']}.png") as part:
            raise OSError(errno.ENOSPC, "No space left on device", str(part))


def user_table(folder: Path, text: str, **options) -> None:
    """Prepare with a user table."""
    (folder / "table.csv").write_text(text.replace("NAME", NAME))
    prepare(folder / "scans", folder / "again", user_table=folder / "table.csv", workers=1, **options)


def of_another_layout(folder: Path) -> None:
    """Prepare a folder of other files."""
    for path in (folder / "scans").glob("*/*"):
        path.unlink()
    for name in (f"{NAME}9_20209_2_0.zip", f"1.2.{NAME}", f"{NAME}.nii.gz"):
        (folder / "scans" / name).touch()
    prepare(folder / "scans", folder / "again", workers=1)


MISTAKES = {
    "a broken scan": (lambda f: broken_scan(f, f / "cache"), "sa_ED.nii.gz cannot be opened"),
    "a broken scan, cached in memory": (lambda f: broken_scan(f, None), "sa_ED.nii.gz cannot be opened"),
    "vanished scans": (lambda f: (shutil.rmtree(f / "scans" / f"{NAME}0002"), items_of(f)), "the first: "),
    "an item of another type": (lambda f: edited(f, image_ED=[f"{NAME}1/sa_ED.nii.gz"]), "image_ED is of type list"),
    "an item without a folder": (lambda f: edited(f, subject=f"a/{NAME}"), "subject is no name of a folder"),
    "a subject twice": (lambda f: edited(f, subject=f"{NAME}0002"), "more than once, as items 0 and 1"),
    "a lacking attribute": (lambda f: load_items(f / "datalist.json", f / "scans", None, ["LAV"]), "lacks the attri"),
    "judged training subjects": (lambda f: refuse_overlap(items_of(f), items_of(f), "training"), "3 of 3 subjects"),
    "a user table with a double": (lambda f: user_table(f, "subject\nNAME1\nNAME1\n"), "in lines 2, 3"),
    "a split column": (
        lambda f: user_table(f, "subject,part\nNAME0001,x\n", split_column="subject"),
        "for 3 of 3 subjects",
    ),
    "another layout": (of_another_layout, "Found: 3 folder, 1 "),
    "an unknown subject": (lambda f: find_items(f / "scans", f, subject="Nobody"), "is not among the 3 of"),
    "a full disk": (full_disk, "cannot be written (No space left on device)"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_an_error_names_nobody(mistake, sound, tmp_path):
    folder = shutil.copytree(sound, tmp_path / "copy")
    make, message = MISTAKES[mistake]
    with pytest.raises((ValueError, OSError, RuntimeError)) as caught:
        make(folder)
    text = "".join(traceback.format_exception(caught.value))  # as a log has it, with what led to the error
    assert message in text
    said = re.sub(r"^ .*\n", "", text, flags=re.MULTILINE)  # without lines of code, which are these
    assert NAME.lower() not in said.lower()


def test_an_import_counts_subjects_and_names_them_in_a_table(tmp_path, capsys):
    for number in (1, 2):
        patient = tmp_path / "acdc" / f"patient{NAME}{number}"
        patient.mkdir(parents=True)
        (patient / "Info.cfg").write_text("ED: 1\nES: 9\n")
    with pytest.raises(ValueError, match="none of the 2 ACDC subjects"):
        import_acdc(tmp_path / "acdc", tmp_path / "scans", workers=1)
    said = "".join(capsys.readouterr())
    assert "skipped 2: <subject>_frame01.nii.gz is missing" in said
    assert NAME not in said
    assert [row["subject"] for row in read_csv(tmp_path / "scans" / "import.csv")] == [
        f"patient{NAME}1",
        f"patient{NAME}2",
    ]
