from __future__ import annotations

import csv

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from scripts.cohort import phantom
from scripts.cohort.layout import LABELS, PHASES, find_subjects, phase_files, read_image, read_mask
from scripts.cohort.phantom import COLUMNS, FAILURES, plan, write_cohort
from scripts.cohort.phantom_volumes import DISEASES, VOLUMES, draw_volumes
from scripts.storage import read_csv

SUBJECTS = 16
FRAMES = 5
DRAWS = 150


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A cohort of which 7 subjects must fail, 4 have a cine and 6 are diseased."""
    root = tmp_path_factory.mktemp("phantoms")
    write_cohort(root, SUBJECTS, seed=3, cine_fraction=0.25, diseased_fraction=0.4, failing=1, frames=FRAMES)
    return root


@pytest.fixture(scope="module")
def info(cohort):
    with open(cohort / "info.csv", newline="") as file:
        return {row["subject"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def scans(cohort):
    """Subject to phase to (image, mask), both (X, Y, Z)."""
    located = {folder.name: phase_files(folder) for folder in find_subjects(cohort)}
    return {
        name: {phase: (read_image(f.image, f.frame)[0], read_mask(f.mask, f.frame)) for phase, f in files.items()}
        for name, files in located.items()
    }


@pytest.fixture(scope="module")
def intact(scans, info):
    """Image and mask of each phase of the subjects that are not made to fail."""
    return [pair for name, phases in scans.items() if not info[name]["intended_failure"] for pair in phases.values()]


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    return {diagnosis: [draw_volumes(rng, diagnosis)[1] for _ in range(DRAWS)] for diagnosis in ("NOR", *DISEASES)}


def areas(mask, name):
    return np.count_nonzero(mask == LABELS[name], axis=(0, 1))


def base_first(mask):
    """Whether the heart's first slice is its base, where the cavity is wider."""
    area = areas(mask, "LV")[areas(mask, "LV") > 0]
    return area[0] > area[-1]


def fails(mask):
    """The quality rules of the UKBB pipeline, written apart from the phantom's own."""
    heart = np.flatnonzero((areas(mask, "LV") >= 10) & (areas(mask, "Myo") >= 10))
    middle = round(ndimage.center_of_mass(mask == LABELS["LV"])[2])
    return (
        any(areas(mask, name).sum() < 10 for name in LABELS)
        or len(heart) < 6
        or heart[-1] - heart[0] >= len(heart)
        or areas(mask, "RV")[middle] < 10
        or not lv_is_enclosed(mask)
    )


def lv_is_enclosed(mask):
    """Whether the myocardium parts the LV, and not the RV, from the background on the widest slice."""
    section = mask[:, :, np.argmax(areas(mask, "Myo"))]
    around = {name: ndimage.binary_dilation(section == LABELS[name]) & (section == 0) for name in ("LV", "RV")}
    return not around["LV"].any() and around["RV"].any()


@pytest.mark.parametrize("diagnosis", ["NOR", *DISEASES])
def test_drawn_volumes_are_physiological(drawn, diagnosis):
    for v in drawn[diagnosis]:
        assert 0.35 <= 1 - v["LVESV"] / v["LVEDV"] <= 0.75
        assert 0 < v["RVESV"] < v["RVEDV"]
        assert v["MyoESV"] == pytest.approx(v["MyoEDV"], rel=0.1)


def test_normal_volumes_are_positively_correlated(drawn):
    table = np.array([[v[name] for name in VOLUMES] for v in drawn["NOR"]])
    assert np.corrcoef(table.T).min() > 0.5


def test_disease_adds_axes_beside_size(drawn):
    mean = {d: {name: np.mean([v[name] for v in drawn[d]]) for name in VOLUMES} for d in drawn}
    assert mean["DCM"]["LVESV"] > 1.5 * mean["NOR"]["LVESV"]
    assert mean["HCM"]["MyoEDV"] > 1.3 * mean["NOR"]["MyoEDV"]
    assert mean["HCM"]["LVESV"] < mean["NOR"]["LVESV"]
    assert mean["RV"]["RVEDV"] > 1.3 * mean["NOR"]["RVEDV"]
    assert mean["RV"]["LVEDV"] < mean["NOR"]["LVEDV"]


def test_sexes_differ_in_size():
    rng = np.random.default_rng(1)
    drawn = [draw_volumes(rng) for _ in range(DRAWS)]
    mean = {sex: np.mean([v["LVEDV"] for drawn_sex, v in drawn if drawn_sex == sex]) for sex in ("male", "female")}
    assert mean["male"] > 1.15 * mean["female"]


def test_masks_have_the_drawn_volumes(scans, info, cohort):
    for name, row in info.items():
        if not row["intended_failure"]:
            zooms = nib.load(next((cohort / name).glob("sa*.nii.gz"))).header.get_zooms()[:3]
            for column in VOLUMES:
                mask = scans[name][column[-3:-1]][1]
                volume = areas(mask, column[:-3]).sum() * np.prod(zooms) / 1000
                assert volume == pytest.approx(float(row[column]), rel=0.03), (name, column)


def test_intact_subjects_pass_the_quality_rules(intact):
    assert not any(fails(mask) for _, mask in intact)


def test_every_intended_failure_is_present_and_fails(scans, info):
    intended = {row["intended_failure"]: name for name, row in info.items() if row["intended_failure"]}
    assert set(intended) == set(FAILURES)
    assert all(fails(mask) for name in intended.values() for _, mask in scans[name].values())


def test_rv_is_left_of_the_lv_as_displayed(intact):
    for _, mask in intact:
        lv, rv = (ndimage.center_of_mass(mask == LABELS[name]) for name in ("LV", "RV"))
        assert lv[0] - rv[0] > abs(lv[1] - rv[1])  # at most 45 degrees from horizontal


@pytest.mark.parametrize("name", LABELS)
def test_a_structure_is_one_piece_in_each_slice(intact, name):
    for _, mask in intact:
        for z in np.flatnonzero(areas(mask, name)):
            pieces, _ = ndimage.label(mask[:, :, z] == LABELS[name], np.ones((3, 3)))
            assert np.bincount(pieces[pieces > 0]).max() >= np.count_nonzero(pieces) - 3


def test_both_slice_orders_occur_and_base_moves_towards_apex(scans, intact):
    assert {bool(base_first(mask)) for _, mask in intact} == {True, False}
    heart = {phase: [np.count_nonzero(areas(s[phase][1], "LV")) for s in scans.values()] for phase in PHASES}
    assert np.mean(heart["ED"]) > np.mean(heart["ES"]) + 0.5


def test_basal_slice_holds_all_structures_and_is_larger_than_apex(intact):
    for _, mask in intact:
        heart = np.flatnonzero(areas(mask, "Myo"))
        base, apex = heart[[0, -1]] if base_first(mask) else heart[[-1, 0]]
        assert all(areas(mask, name)[base] > max(10, areas(mask, name)[apex]) for name in ("LV", "RV"))
        assert areas(mask, "Myo")[base] > 10


def test_cine_es_is_the_frame_of_smallest_lv(cohort, info):
    cines = [name for name, row in info.items() if row["layout"] == "cine" and not row["intended_failure"]]
    for name in cines:
        mask = read_mask(cohort / name / "seg_sa.nii.gz")
        lv = np.count_nonzero(mask == LABELS["LV"], axis=(0, 1, 2))
        assert (len(lv), np.argmax(lv), np.argmin(lv)) == (FRAMES, 0, 2)
        assert np.unique(lv).size > 2
    assert cines


def test_contrast_is_that_of_bssfp(intact):
    for image, mask in intact:
        blood, muscle = (image[mask == LABELS[name]].mean() for name in ("LV", "Myo"))
        around = ndimage.binary_dilation(mask > 0, np.ones((3, 3, 1)), iterations=12)
        lung = np.percentile(image[around & (mask == 0)], 5)
        assert blood > 1.8 * muscle > 3 * lung


def test_papillary_muscles_are_dark_cavity(intact):
    for image, mask in intact:
        cavity = image[mask == LABELS["LV"]]
        muscle = image[mask == LABELS["Myo"]]
        assert 0.005 < np.mean(cavity < 1.3 * np.median(muscle)) < 0.15


def test_scans_are_int16_with_oblique_affine(cohort):
    for folder in find_subjects(cohort):
        scan = nib.load(phase_files(folder)["ED"].image)
        assert scan.get_data_dtype() == np.int16
        assert scan.header.get_zooms()[:3] == pytest.approx((1.8, 1.8, 10.0))
        assert np.linalg.norm(scan.affine[:3, :3], axis=0) == pytest.approx([1.8, 1.8, 10.0])
        assert np.abs(scan.affine[:3, :3] / scan.header.get_zooms()[:3]).max() < 0.95


def test_same_seed_same_bytes_for_any_number_of_workers(tmp_path):
    for workers in (1, 2):
        write_cohort(tmp_path / str(workers), 3, seed=5, cine_fraction=0.34, failing=0, frames=4, workers=workers)
    first = sorted(path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*.*"))
    assert len(first) == 2 * 4 + 2 + 1
    assert all((tmp_path / "1" / path).read_bytes() == (tmp_path / "2" / path).read_bytes() for path in first)


def test_other_seed_other_volumes(tmp_path):
    for seed in (0, 1):
        write_cohort(tmp_path / str(seed), 1, seed=seed, failing=0, workers=1)
    assert (tmp_path / "0" / "info.csv").read_text() != (tmp_path / "1" / "info.csv").read_text()


def test_a_changed_cohort_is_the_same_but_for_the_volume_that_was_asked(tmp_path):
    sizes = {}
    for name, changes in (("drawn", None), ("changed", {"RVESV": 15})):
        write_cohort(tmp_path / name, 2, seed=3, diseased_fraction=0, cine_fraction=0, failing=0, changes=changes)
    for subject in ("phantom0001", "phantom0002"):
        for phase in PHASES:
            drawn, changed = (phase_files(tmp_path / name / subject)[phase] for name in ("drawn", "changed"))
            (image, affine), (other, other_affine) = (
                read_image(files.image, files.frame) for files in (drawn, changed)
            )
            mask, other_mask = (read_mask(files.mask, files.frame) for files in (drawn, changed))
            assert np.array_equal(affine, other_affine)
            voxel = abs(np.linalg.det(affine[:3, :3])) / 1000
            for structure, label in LABELS.items():
                grown = voxel * (np.count_nonzero(other_mask == label) - np.count_nonzero(mask == label))
                sizes[subject, structure, phase] = grown
            heart = ndimage.binary_dilation((mask | other_mask).any(2), iterations=12)
            assert np.array_equal(image[~heart], other[~heart])
            assert np.array_equal(image, other) == (phase == "ED")
    assert {key for key, grown in sizes.items() if abs(grown) > 1} == {(s, "RV", "ES") for s, _, _ in sizes}
    assert all(abs(grown - 15) < 1 for key, grown in sizes.items() if key[1:] == ("RV", "ES"))


@pytest.mark.parametrize("changes", [[], 0, {"LVEDV": "x"}, {"LVEDV": float("nan")}, {"LVEDV": True}, {"LVEDV": 1e9}])
def test_changes_that_are_no_numbers_are_refused_before_anything_is_removed(changes, tmp_path):
    write_cohort(tmp_path, 1, failing=0, frames=4)
    with pytest.raises(ValueError, match=r"changes is .*expected mL from -200 to 200 by volume"):
        write_cohort(tmp_path, 1, failing=0, changes=changes)
    assert list(tmp_path.glob("phantom0001/*.nii.gz"))


def test_changes_that_lead_to_no_heart_are_a_reason(tmp_path):
    with pytest.raises(RuntimeError, match="its LVEDV would not be above its LVESV"):
        write_cohort(tmp_path, 1, failing=0, changes={"LVESV": 150})
    with pytest.raises(RuntimeError, match="its RVEDV would not be above its RVESV, or that not above 0"):
        write_cohort(tmp_path, 1, failing=0, changes={"RVESV": -150})


def test_changes_that_are_of_no_volume_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"changes is \{'LVEF': 5\}; expected mL from"):
        write_cohort(tmp_path, 8, changes={"LVEF": 5})


def test_smaller_cohort_replaces_a_larger_one(tmp_path):
    (tmp_path / "phantom0001").mkdir()
    (tmp_path / "phantom0001" / "notes.txt").write_text("not a scan")
    write_cohort(tmp_path, 2, cine_fraction=1, failing=0, frames=4)
    write_cohort(tmp_path, 1, cine_fraction=0, failing=0, workers=1)
    assert [folder.name for folder in find_subjects(tmp_path)] == ["phantom0001"]
    assert not (tmp_path / "phantom0001" / "sa.nii.gz").exists()
    assert (tmp_path / "phantom0001" / "notes.txt").exists()


def test_info_has_its_columns_and_fractions(info):
    assert all(tuple(row) == COLUMNS for row in info.values())
    assert sum(row["layout"] == "cine" for row in info.values()) == 4
    assert sum(row["diagnosis"] != "NOR" for row in info.values()) == 6


def test_plan_counts_failures_per_rule():
    failures = [subject.failure for subject in plan(40, 0, 0.2, 0.3, failing=3)]
    assert all(failures.count(rule) == 3 for rule in FAILURES)


def test_refuses_a_file_and_a_foreign_folder(tmp_path):
    (tmp_path / "info.csv").write_text("patient,age\n")
    with pytest.raises(NotADirectoryError, match="under a file"):
        write_cohort(tmp_path / "info.csv", 1, failing=0)
    with pytest.raises(FileExistsError, match="not a phantom cohort's"):
        write_cohort(tmp_path, 1, failing=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"subjects": 0},
        {"cine_fraction": 1.5},
        {"diseased_fraction": -1},
        {"failing": 100},
        {"frames": 2},
        {"size": (90, 90)},
        {"spacing": (1.8, 1.8, 12)},
    ],
)
def test_refuses_numbers_out_of_range(tmp_path, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        write_cohort(tmp_path / "cohort", **wrong)
    assert not (tmp_path / "cohort").exists()


def test_a_phantom_that_cannot_be_written_is_named_after_all_others_are(tmp_path, monkeypatch):
    write = phantom.write_volume

    def no_third(path, *rest):
        if "phantom0003" in str(path):
            raise OSError("the disk is full")
        write(path, *rest)

    monkeypatch.setattr(phantom, "write_volume", no_third)
    with pytest.raises(RuntimeError, match=r"1 of 4 phantoms .* phantom0003: the disk is full"):
        write_cohort(tmp_path, 4, cine_fraction=0, failing=0, workers=1)
    names = [row["subject"] for row in read_csv(tmp_path / "info.csv")]
    assert names == ["phantom0001", "phantom0002", "phantom0004"]
