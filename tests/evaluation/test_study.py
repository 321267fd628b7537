import json
import sys
from pathlib import Path

import fire
import pytest

from scripts.cohort.datalist import FILE_KEYS
from scripts.cohort.layout import PHASES
from scripts.evaluation.study import METRICS, Run, execute, plan, slug, write_list
from tests.conftest import ROOT

CONFIGS = ROOT / "bundle" / "configs"
METHODS = {"AR-SIVAE": [], "β-VAE": ["beta_vae.json"]}


@pytest.fixture
def datalist(tmp_path):
    keys = dict.fromkeys(FILE_KEYS, "x.nii.gz") | {f"frame_{p}": None for p in PHASES}
    keys |= {f"basal_slice_{p}": 0 for p in PHASES}
    items = [{"subject": f"s{k:02}", **keys} for k in range(10)]
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps({"training": items[:8], "validation": [], "test": items[8:]}))
    return path


def planned(datalist, tmp_path, **changes):
    options = {
        **{"methods": METHODS, "inputs": {"ED+ES": [], "ED": ["ed.json"]}, "seeds": [0, 1], "gammas": {}},
        **{"overlays": ["compact.json"], "overrides": {"max_epochs": 2}},
    } | changes
    return plan(CONFIGS, "scans", datalist, tmp_path / "study", **options)


def test_every_combination_has_a_folder_of_its_own(datalist, tmp_path):
    runs = planned(datalist, tmp_path)
    assert len({run.folder for run in runs}) == len(runs) == 8
    assert runs[0].folder.name == "ar_sivae_ed_es_seed_0"


def test_a_run_is_a_training_and_an_evaluation_with_the_same_keys(datalist, tmp_path):
    run = planned(datalist, tmp_path)[3]
    training, evaluation = run.commands
    assert training[1:5] == ("-m", "monai.bundle", "run", "training")
    files = ["train.json", "compact.json", "ed.json", "beta_vae.json"]
    assert training[5] == f"--config_file={[str(CONFIGS / file) for file in files]}"
    assert evaluation[5] == f"--config_file={[str(CONFIGS / file) for file in [*files, 'evaluate.json']]}"
    for key in ("--seed=0", "--max_epochs=2", f"--output_dir={run.folder}"):
        assert key in training
        assert key in evaluation


def test_weights_of_the_attribute_loss_are_runs_of_their_own(datalist, tmp_path):
    runs = planned(datalist, tmp_path, gammas={"AR-SIVAE": ["default", 0.5, 5]}, seeds=[0], inputs={"ED": ["ed.json"]})
    assert [run.gamma for run in runs] == [None, 0.5, 5, None]
    assert "--gamma=0.5" in runs[1].commands[0]
    assert not any("gamma" in argument for argument in runs[0].commands[0])
    with pytest.raises(ValueError, match="gammas name AR-SIVEA"):
        planned(datalist, tmp_path, gammas={"AR-SIVEA": [1]})
    with pytest.raises(ValueError, match="gammas of AR-SIVAE hold 'null'"):
        planned(datalist, tmp_path, gammas={"AR-SIVAE": ["null"]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"overrides": {"seed": 7, "gamma": 0.1}}, "overrides set seed, gamma, which the study sets for each run"),
        ({"seeds": []}, r"seeds is \[\]: expected a list"),
        ({"overrides": {"max_epoch": 2}}, "did you mean 'max_epochs'"),
        ({"seeds": [0, 0]}, "seeds hold 0: expected different whole numbers"),
        ({"inputs": {}}, "inputs is {}: expected names and their overlays"),
        ({"overlays": "compact.json"}, "overlays is 'compact.json': expected a list"),
        ({"methods": {"A-B": [], "A B": []}}, "two runs would have the folder a_b_ed_es_seed_0"),
        ({"gammas": {"β-VAE": [1]}}, "β-VAE, which has no attribute loss"),
        ({"gammas": {"AR-SIVAE": [True]}}, "gammas of AR-SIVAE hold True"),
        ({"gammas": {"AR-SIVAE": 5}}, "gammas of AR-SIVAE are 5: expected a list"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(changes, message, datalist, tmp_path):
    with pytest.raises(ValueError, match=message):
        planned(datalist, tmp_path, **changes)


def test_an_overlay_that_does_not_exist_is_named(datalist, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"overlay 'edd.json' of ED is not in"):
        planned(datalist, tmp_path, inputs={"ED": ["edd.json"]})


def test_a_folder_of_another_plan_is_refused(datalist, tmp_path):
    planned(datalist, tmp_path)
    planned(datalist, tmp_path)  # the same again may go on
    with pytest.raises(ValueError, match=r"was made by another study: max_epochs is 3, was 2"):
        planned(datalist, tmp_path, overrides={"max_epochs": 3})


def test_overrides_arrive_as_what_they_are(datalist, tmp_path):
    keys = {"regularize": False, "patience": None, "zoom_range": [0.9, 1.1], "trunk": "vgg16"}
    run = planned(datalist, tmp_path, overrides=keys)[0]
    parsed = {}
    fire.Fire(lambda **given: parsed.update(given), command=[a for a in run.commands[0] if a.startswith("--")])
    assert {key: parsed[key] for key in keys} == keys


def test_a_split_draws_the_same_subjects_for_all_methods_of_a_seed(datalist, tmp_path):
    runs = planned(datalist, tmp_path, split=[0.5, 0.2, 0.3])
    lists = {(run.seed, argument) for run in runs for argument in run.commands[0] if argument.startswith("--datalist=")}
    assert len(lists) == 2
    first, second = (json.loads(Path(argument.split("=")[1]).read_text()) for _, argument in sorted(lists))
    assert [len(first[name]) for name in ("training", "validation", "test")] == [5, 2, 3]
    assert first["test"] != second["test"]


def fake(tmp_path, name, code):
    folder = tmp_path / name
    script = f"import pathlib, sys; p = pathlib.Path({str(folder / METRICS)!r})\n"
    script += f"if {code}: sys.exit('broken')\np.parent.mkdir(); p.write_text('{{}}'); print('ran')"
    return Run(name, "m", "ED", None, 0, folder, ((sys.executable, "-c", script),))


def test_a_failing_run_does_not_stop_the_others_and_finished_ones_are_not_redone(tmp_path):
    runs = [fake(tmp_path, "bad", 1), fake(tmp_path, "good", 0)]
    assert execute(runs) == runs[:1]
    assert "broken" in (tmp_path / "bad" / "run.log").read_text()
    assert runs[1].finished
    (tmp_path / "good" / "run.log").unlink()
    assert execute(runs) == runs[:1]
    assert not (tmp_path / "good" / "run.log").exists()


def test_nothing_is_evaluated_that_could_not_be_trained(tmp_path):
    run = fake(tmp_path, "bad", 1)
    run = run._replace(commands=(*run.commands, *fake(tmp_path, "bad", 0).commands))
    assert execute([run]) == [run]
    assert not run.finished


def test_runs_that_share_a_ceiling_do_not_run_at_a_time(tmp_path):
    """Each fails if the other one is at work."""
    runs = []
    for name in "ab":
        script = "import os, sys, time\ntry: os.mkdir(sys.argv[1])\nexcept OSError: sys.exit('busy')\n"
        script += "time.sleep(0.5); os.rmdir(sys.argv[1])"
        command = (sys.executable, "-c", script, str(tmp_path / "lock"))
        runs.append(Run(name, name, "ED", None, 0, tmp_path / name, (command,)))
    assert execute(runs, workers=2) == []
    with pytest.raises(ValueError, match="workers is 0"):
        execute(runs, workers=0)


def test_the_ceiling_of_a_seed_and_input_is_shared(datalist, tmp_path):
    runs = planned(datalist, tmp_path)
    ceilings = [argument for run in runs for argument in run.commands[1] if argument.startswith("--ceiling_dir")]
    assert len(ceilings) == len(runs) == 8
    assert len(set(ceilings)) == 4


def test_the_list_for_a_scheduler_has_what_is_left(tmp_path):
    runs = [fake(tmp_path, "done", 0), fake(tmp_path, "left", 0)]
    execute(runs[:1])
    write_list(runs, tmp_path / "runs.txt")
    lines = (tmp_path / "runs.txt").read_text().splitlines()
    assert "left" in "\n".join(lines)
    assert "done" not in "\n".join(lines)


def test_slugs_are_plain():
    assert slug("β-VAE ED+ES seed 0 gamma 0.5") == "beta_vae_ed_es_seed_0_gamma_0.5"
