from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.cohort.layout import read_image, read_mask
from scripts.cohort.mnms import import_mnms
from scripts.cohort.prepare import prepare
from scripts.storage import read_csv

TABLE = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"
HEADER = ",External code,VendorName,Vendor,Centre,ED,ES,Age,Pathology,Sex,Height,Weight\n"
ZOOMS = (1.5, 1.25, 9.6, 0.03)
DIRECTIONS = np.array([[0.8, 0, 0.6], [-0.36, 0.8, 0.48], [-0.48, -0.6, 0.64]])  # oblique in all axes


def write_row(source, code, ed=3, es=1):
    with open(source / TABLE, "a") as file:
        file.write(f"7,{code},SIEMENS,A,1,{ed},{es},41,DCM,F,170.0,\n")


def save(path, voxels, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    # Unit voxels in the affine, the true ones in the zooms, as after many a conversion.
    image = nib.Nifti1Image(voxels, nib.affines.from_matvec(DIRECTIONS, (5, -20, 40)) if affine is None else affine)
    image.header.set_zooms(ZOOMS[: voxels.ndim])
    nib.save(image, path)


@pytest.fixture
def masks(heart_mask):
    """The masks of a cine of 5 frames: ED is frame 3 and ES, whose apex is closed, frame 1."""
    masks = np.zeros((*heart_mask.shape, 5), np.uint8)
    masks[..., 3] = masks[..., 1] = heart_mask
    masks[..., 6, 1] = 0
    return masks


@pytest.fixture
def cine(masks):
    return np.random.default_rng(0).integers(0, 900, masks.shape).astype(np.int16)


@pytest.fixture
def source(tmp_path, cine, masks):
    """One subject with masks, as M&Ms ships it: a table with byte order mark and index column, oblique scans."""
    root = tmp_path / "OpenDataset"
    save(root / "Training/Labeled/A0S9V9/A0S9V9_sa.nii.gz", cine)
    save(root / "Training/Labeled/A0S9V9/A0S9V9_sa_gt.nii.gz", masks)
    (root / TABLE).write_text(HEADER, encoding="utf-8-sig")
    write_row(root, "A0S9V9")
    return root


@pytest.fixture
def target(tmp_path):
    return tmp_path / "ukbb"


@pytest.mark.parametrize(("phase", "frame"), [("ED", 3), ("ES", 1)])
def test_each_phase_is_its_frame(source, target, cine, masks, phase, frame):
    import_mnms(source, target)
    written = nib.load(target / "A0S9V9" / f"sa_{phase}.nii.gz")
    assert written.get_data_dtype() == np.int16
    assert np.array_equal(written.dataobj, cine[..., frame])
    assert np.array_equal(read_mask(target / "A0S9V9" / f"label_sa_{phase}.nii.gz"), masks[..., frame])


@pytest.mark.parametrize("name", ["sa_ED", "label_sa_ES"])
def test_directions_are_kept_and_the_scale_is_that_of_the_zooms(source, target, name, capsys):
    import_mnms(source, target)
    expected = nib.affines.from_matvec(DIRECTIONS * ZOOMS[:3], (5, -20, 40))
    header = nib.load(target / "A0S9V9" / f"{name}.nii.gz").header
    assert np.allclose(header.get_sform(), expected, atol=1e-4)
    assert np.allclose(header.get_qform(), expected, atol=1e-4)
    assert "warning 1: <subject>_sa.nii.gz: the affine's voxel size" in capsys.readouterr().out


def test_the_newest_table_is_gathered(source, target):
    (source / "201014_M&Ms_Dataset_Information_-_opendataset.csv").write_text("External code,ED,ES\nA0S9V9,0,4\n")
    import_mnms(source, target)
    known = {"vendor": "SIEMENS", "centre": "1", "diagnosis": "DCM", "sex": "F", "age": "41", "height": "170.0"}
    assert read_csv(target / "info.csv") == [{"subject": "A0S9V9", "section": "training", "weight": "", **known}]


def test_an_older_table_without_index_and_diagnoses_will_do(source, target):
    (source / TABLE).unlink()
    older = source / "201014_M&Ms_Dataset_Information_-_opendataset.csv"
    older.write_text("External code,Vendor,Centre,ED,ES\nA0S9V9,A,1,3,1\n")
    import_mnms(source, target)
    (row,) = read_csv(target / "info.csv")
    assert (row["vendor"], row["diagnosis"]) == ("A", "")


@pytest.mark.parametrize("empty_file", [True, False])
def test_a_subject_that_nobody_segmented_has_scans_only(source, target, cine, masks, empty_file):
    folder = source / "Training/Unlabeled/B1"
    save(folder / "B1_sa.nii.gz", cine)
    if empty_file:  # so they are distributed
        save(folder / "B1_sa_gt.nii.gz", np.zeros_like(masks))
    write_row(source, "B1")
    import_mnms(source, target)
    assert sorted(path.name for path in (target / "B1").iterdir()) == ["sa_ED.nii.gz", "sa_ES.nii.gz"]


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BREAKS = {
    "<subject>_sa.nii.gz is missing": lambda scan, gt, masks: scan.unlink(),
    "<subject>_sa.nii.gz cannot be read to its end": lambda scan, gt, masks: cut(scan),
    "expected a cine of 4 axes": lambda scan, gt, masks: save(scan, masks[..., :1, 0]),
    "<subject>_sa_gt.nii.gz has unknown labels 4": lambda scan, gt, masks: save(gt, masks + (masks > 2)),
    "but <subject>_sa.nii.gz has (40, 40, 8, 5)": lambda scan, gt, masks: save(gt, masks[..., :4]),
    "empty in frame 3, which the table calls ED; segmented are frames [2, 4]": lambda scan, gt, masks: save(
        gt, np.roll(masks, 1, axis=-1)
    ),
}


@pytest.mark.parametrize("reason", BREAKS)
def test_a_broken_subject_is_skipped_with_the_reason(source, target, cine, masks, reason, capsys):
    scan, gt = (source / "Testing/C1" / f"C1_{suffix}.nii.gz" for suffix in ("sa", "sa_gt"))
    save(scan, cine)
    save(gt, masks)
    write_row(source, "C1")
    BREAKS[reason](scan, gt, masks)
    import_mnms(source, target)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "skipped 1: " in line)
    assert reason in line
    assert not (target / "C1").exists()
    assert [row["subject"] for row in read_csv(target / "info.csv")] == ["A0S9V9"]


@pytest.mark.parametrize(
    ("ed", "es", "reason"),
    [
        (3, 5, "gives frame ES as '5'; <subject>_sa.nii.gz has frames 0 to 4"),
        ("", 1, "gives frame ED as ''"),
        (1, 1, "frame 1 both as ED and as ES"),
    ],
)
def test_frames_that_the_cine_has_not_are_named(source, target, cine, ed, es, reason, capsys):
    save(source / "Validation/C1/C1_sa.nii.gz", cine)
    write_row(source, "C1", ed, es)
    import_mnms(source, target)
    assert reason in capsys.readouterr().out


def test_table_and_folders_that_do_not_match_are_told(source, target, cine, capsys):
    save(source / "Validation/D1/D1_sa.nii.gz", cine)
    write_row(source, "E1")
    import_mnms(source, target)
    output = capsys.readouterr().out
    assert "skipped 1: the table has no row for it" in output
    assert f"1 subjects of '{TABLE}' have no folder, the first in line " in output
    assert [row["subject"] for row in read_csv(target / "import.csv") if row["status"] == "skipped"] == ["D1"]


def test_masks_that_lie_elsewhere_are_told(source, target, masks, capsys):
    for name in ("sa", "sa_gt"):  # a sound scan, whose masks have lost their place
        path = source / f"Training/Labeled/A0S9V9/A0S9V9_{name}.nii.gz"
        voxels = np.asanyarray(nib.load(path).dataobj)
        save(path, voxels, nib.affines.from_matvec(DIRECTIONS * ZOOMS[:3], (5 if name == "sa" else 0, 0, 0)))
    import_mnms(source, target)
    assert "warning 1: <subject>_sa_gt.nii.gz lies elsewhere than its scan" in capsys.readouterr().out
    affines = [read_image(target / "A0S9V9" / name)[1] for name in ("sa_ED.nii.gz", "label_sa_ED.nii.gz")]
    assert np.allclose(*affines)


def test_a_wrong_source_says_what_was_expected(source, target, tmp_path):
    with pytest.raises(FileNotFoundError, match="name the folder of M&Ms with --source_dir"):
        import_mnms(None, target)
    with pytest.raises(FileNotFoundError, match=r"holds no table.*expected the unpacked OpenDataset: 211230_M&Ms"):
        import_mnms(tmp_path, target)
    (tmp_path / TABLE).write_text(HEADER + "1,A,SIEMENS,A,1,0,9\n")
    with pytest.raises(FileNotFoundError, match=r"holds no subject; expected .*Training/Labeled/<code>"):
        import_mnms(tmp_path, target)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("External code;ED;ES\nA0S9V9;3;1\n", "needs rows with the columns External code, ED, ES, separated by commas"),
        (HEADER, "it has no row"),
        ("External code,ED,ES\nA0S9V9,3,1\nA0S9V9,2,1\n", "more than one row for a subject, in lines 2, 3"),
    ],
)
def test_a_wrong_table_is_refused(source, target, text, reason):
    (source / TABLE).write_text(text)
    with pytest.raises(ValueError, match=reason):
        import_mnms(source, target)


def test_prepare_takes_the_sections_of_the_challenge(source, target, tmp_path, cine, masks):
    for code, section in (("V1", "Validation"), ("T1", "Testing"), ("U1", "Training/Unlabeled")):
        save(source / section / code / f"{code}_sa.nii.gz", cine)
        save(source / section / code / f"{code}_sa_gt.nii.gz", masks * (code != "U1"))
        write_row(source, code)
    import_mnms(source, target, workers=2)
    prepare(target, tmp_path / "cohort", split_column="section", workers=1)
    content = json.loads((tmp_path / "cohort" / "datalist.json").read_text())
    sections = {name: [item["subject"] for item in content[name]] for name in ("training", "validation", "test")}
    assert sections == {"training": ["A0S9V9"], "validation": ["V1"], "test": ["T1"]}


def test_cohort_json_runs_it():
    config = json.loads((Path(__file__).resolve().parents[2] / "bundle/configs/cohort.json").read_text())
    expected = {"_target_": "scripts.cohort.mnms.import_mnms", "source_dir": "@source_dir"}
    assert expected.items() <= config["import_mnms"][1].items()
