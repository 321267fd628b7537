import json

import numpy as np
import pytest
import torch

from scripts.cohort.privacy import PSEUDONYMS
from scripts.evaluation.comparison import compare, paired_tests
from scripts.evaluation.gather import gather, mean_sd
from scripts.evaluation.interpretability import MODEL, SAMPLED
from scripts.evaluation.study import METRICS, Run
from scripts.storage import read_csv, write_csv

NAMES = ["LVEDV", "RVEDV"]
SUBJECTS = [f"s{k:02}" for k in range(30)]


def number(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def protocol(value):
    keys = ("scc", "modularity", "sap", "mig", "r2", "partial_scc", "dmig", "dci", "active_units")
    return {key: number(value) for key in keys} | {"interpretability": {"all": number(value)}}


def finished_run(root, method, seed, ssim, error, gamma=None, subjects=SUBJECTS):
    """A run whose codes are the attributes with an error."""
    run = Run(f"{method}-{seed}-{gamma}", method, "ED", gamma, seed, root / f"{method}-{seed}-{gamma}", ())
    folder = run.folder / METRICS.parent
    folder.mkdir(parents=True)
    description = {"section": "test", "dimensions": [0, 1], "data": {"attributes": NAMES, "phases": ["ED"]}}
    description |= {"training": {"gamma": 1 if gamma is None else gamma}, "signs": [1, 1]}
    rows = {MODEL: protocol(1 - error), SAMPLED: protocol(0.5), "oracle": protocol(1.0)}
    images = {"All": {"SSIM": number(ssim), "LPIPS": number(0.2), "PSNR": number(20), "MSE": number(0.01)}}
    metrics = {"description": description, "images": images, "realism": {"kid": number(2)}}
    metrics["interpretability"] = {"paper": rows, "sound": rows}
    (run.folder / METRICS).write_text(json.dumps(metrics))
    everybody = [*(f"t{k}" for k in range(30)), *subjects]
    numbers = dict(zip(everybody, np.random.default_rng([seed, len(method)]).permutation(1000).tolist(), strict=False))
    write_csv(
        run.folder / PSEUDONYMS, [{"subject": s, "pseudonym": n} for s, n in numbers.items()], ["subject", "pseudonym"]
    )
    table, rng = [], np.random.default_rng(seed)
    for section, names in (("training", [f"t{k}" for k in range(30)]), ("test", subjects)):
        for name in names:
            volumes = rng.normal(100, 20, 2)
            codes = volumes + 20 * error * np.random.default_rng([seed, len(table)]).standard_normal(2)
            quality = {"SSIM_ED": ssim + 0.01 * rng.standard_normal(), "LPIPS_ED": 0.2, "MSE_ED": 0.01}
            values = dict(zip(NAMES, volumes, strict=True)) | {"z0": codes[0], "z1": codes[1]}
            table.append(
                {"pseudonym": numbers[name], "section": section, **(quality if section == "test" else {}), **values}
            )
    write_csv(
        folder / "subjects.csv", table, ["pseudonym", "section", "SSIM_ED", "LPIPS_ED", "MSE_ED", *NAMES, "z0", "z1"]
    )
    torch.save({"images": torch.rand(2, 1, 8, 8), "reconstructions": torch.rand(2, 1, 8, 8)}, folder / "examples.pt")
    return run


@pytest.fixture
def runs(tmp_path):
    return [
        finished_run(tmp_path, method, seed, ssim + 0.1 * seed, error)
        for seed in (0, 1)
        for method, ssim, error in (("ours", 0.5, 0.1), ("theirs", 0.6, 2.0))
    ]


def test_a_table_has_mean_and_sd_over_seeds(runs, tmp_path):
    gather(runs, tmp_path)
    text = (tmp_path / "study.md").read_text()
    assert "| ours | 0.550 ± 0.0707 |" in text
    assert "| *oracle* | 1.000 ± 0" in text
    assert "| theirs, sampled z | " in text
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"reconstructions_ED.png", "pareto_ED.png"}


def answer_whatif(run, slope):
    """Add what an evaluation says of counterfactuals."""
    path = run.folder / METRICS
    metrics = json.loads(path.read_text())
    answers = {
        name: {
            "slope": number(value) | {"per_attribute": {NAMES[0]: number(value + 0.1), NAMES[1]: number(value - 0.1)}}
        }
        for name, value in (("segmentation", slope), ("self-report", 1.0))
    }
    metrics["faithfulness"] = {"answers": answers, "requests": {name: {} for name in NAMES}}
    path.write_text(json.dumps(metrics))


def test_counterfactuals_stand_by_instrument_and_by_attribute_of_the_first(runs, tmp_path):
    for run, slope in zip(runs[::2], (0.6, 0.8), strict=True):  # of "ours"
        answer_whatif(run, slope)
    gather(runs, tmp_path)
    text = (tmp_path / "study.md").read_text()
    assert "| ours, segmentation | 0.700 ± 0.141 |" in text
    assert f"| ours, segmentation, {NAMES[1]} | 0.600 ± 0.141 |" in text
    assert "| ours, self-report | 1.000 ± 0 |" in text
    assert "theirs, segmentation" not in text
    rows = read_csv(tmp_path / "study.csv")
    found = [float(row["value"]) for row in rows if (row["table"], row["row"]) == ("whatif", "segmentation")]
    assert found == pytest.approx([0.6, 0.8])


def test_the_csv_has_every_run_and_number(runs, tmp_path):
    gather(runs, tmp_path)
    rows = read_csv(tmp_path / "study.csv")
    found = [row["value"] for row in rows if (row["column"], row["run"]) == ("SSIM", "theirs-1-None")]
    assert [float(value) for value in found] == pytest.approx([0.7])


def test_missing_runs_are_named_and_left_out(runs, tmp_path):
    missing = runs[0]._replace(name="absent", folder=tmp_path / "absent")
    gather([*runs, missing], tmp_path)
    assert "4 of 5 runs" in (tmp_path / "study.md").read_text()
    assert "left out: absent" in (tmp_path / "study.md").read_text()
    with pytest.raises(ValueError, match="none of the 1 runs is finished"):
        gather([missing], tmp_path)


def test_the_better_method_is_found_on_the_same_subjects(runs):
    tests = {test["figure"]: test for test in paired_tests(runs)}
    assert tests["SSIM"]["difference"] == pytest.approx(0.1, abs=0.01)
    assert tests["SSIM"]["p"] < 0.01
    assert tests["SCC"]["difference"] < 0
    assert tests["SCC"]["p"] < 0.01
    assert tests["LPIPS"]["difference"] == 0
    assert tests["LPIPS"]["p"] == 1
    assert tests["SSIM"]["seeds"] == 2


def test_codes_that_an_evaluation_turned_are_turned_here(tmp_path):
    ours, theirs = (finished_run(tmp_path, name, 0, 0.5, 0.1) for name in ("ours", "theirs"))
    folder = theirs.folder / METRICS.parent
    rows = read_csv(folder / "subjects.csv")
    write_csv(folder / "subjects.csv", [row | {"z0": -float(row["z0"])} for row in rows], list(rows[0]))
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["description"]["signs"] = [-1, 1]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    tests = {test["figure"]: test for test in paired_tests([ours, theirs])}
    for figure in ("SCC", "R²", "partial SCC"):
        assert tests[figure]["difference"] == pytest.approx(0)


def test_methods_that_were_judged_on_other_subjects_are_not_compared(tmp_path):
    subjects = SUBJECTS[1:]
    runs = [
        finished_run(tmp_path, "ours", 0, 0.5, 0.1),
        finished_run(tmp_path, "theirs", 0, 0.5, 0.1, subjects=subjects),
    ]
    [test] = paired_tests(runs)
    assert "different subjects" in test["undefined"]
    gather(runs, tmp_path)  # the tables are there all the same


def test_subjects_whose_pseudonyms_are_lost_are_not_compared(runs, tmp_path):
    (runs[0].folder / PSEUDONYMS).unlink()
    assert {test["undefined"] for test in paired_tests(runs[:2])} == {
        "pseudonyms.csv of a run, by which subjects are paired, lacks some of them"
    }


def test_the_reference_is_the_first_method_of_the_plan_even_where_it_lacks_a_seed(runs):
    runs[0] = runs[0]._replace(folder=runs[0].folder / "absent")
    tests = paired_tests(runs)
    assert {(test["reference"], test["method"], test["seeds"]) for test in tests} == {("ours", "theirs", 1)}


def test_many_tests_make_a_chance_finding_less_likely(runs):
    alone = {test["figure"]: test["p"] for test in compare([(runs[1], runs[0]), (runs[3], runs[2])])}
    together = {test["figure"]: test["p"] for test in paired_tests(runs)}
    assert all(together[figure] >= alone[figure] for figure in alone)
    assert together["SSIM"] > alone["SSIM"]


def swapped(run):
    """The same run, its two attributes on each other's dimension."""
    folder = run.folder / METRICS.parent
    rows = read_csv(folder / "subjects.csv")
    write_csv(folder / "subjects.csv", [row | {"z0": row["z1"], "z1": row["z0"]} for row in rows], list(rows[0]))
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["description"]["dimensions"] = [1, 0]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return run


def test_each_attribute_is_tested_on_its_own_dimension(tmp_path):
    ours, theirs = (finished_run(tmp_path, name, 0, 0.5, 0.1) for name in ("ours", "theirs"))
    tests = {test["figure"]: test["difference"] for test in paired_tests([ours, swapped(theirs)])}
    assert [tests[figure] for figure in ("SCC", "R²", "partial SCC")] == pytest.approx([0, 0, 0])


def test_lines_are_those_of_training_subjects(tmp_path):
    """Codes of the test subjects on another scale: only a line of the training subjects is wrong there."""
    ours, theirs = (finished_run(tmp_path, name, 0, 0.5, 0.1) for name in ("ours", "theirs"))
    path = theirs.folder / METRICS.parent / "subjects.csv"
    rows = read_csv(path)
    shift = [row | ({"z0": float(row["z0"]) + 500} if row["section"] == "test" else {}) for row in rows]
    write_csv(path, shift, list(rows[0]))
    tests = {test["figure"]: test["difference"] for test in paired_tests([ours, theirs])}
    assert tests["R²"] < -10
    assert tests["SCC"] == pytest.approx(0)


def test_subjects_are_paired_by_name_over_seeds(tmp_path):
    """Two seeds with other test subjects: the interval is that of all of them."""
    names = [f"u{k:02}" for k in range(30)]
    runs = [
        finished_run(tmp_path, method, seed, ssim, 0.1, subjects=subjects)
        for seed, subjects in ((0, SUBJECTS), (1, names))
        for method, ssim in (("ours", 0.5), ("theirs", 0.6))
    ]
    [test] = [test for test in paired_tests(runs) if test["figure"] == "SSIM"]
    assert test["difference"] == pytest.approx(0.1, abs=0.01)
    assert test["low"] < test["difference"] < test["high"]


def test_a_mean_tells_how_many_runs_it_is_of():
    assert mean_sd([0.5, float("nan"), 0.7]) == "0.600 ± 0.141 (2)"
    assert mean_sd([float("nan")]) == "n/a"
    assert mean_sd([0.5]) == "0.500"
