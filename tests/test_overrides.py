from __future__ import annotations

import json

import pytest
from monai.bundle import run

from scripts.overrides import RUN_KEYS, check_keys, check_path


def test_the_nearest_key_is_named():
    with pytest.raises(ValueError, match="'batchsize': did you mean 'batch_size'"):
        check_keys(["batchsize"], ["batch_size", "patience"])


def test_without_a_near_key_all_are_listed():
    with pytest.raises(ValueError, match=r"known keys: batch_size, patience\."):
        check_keys(["zzz"], ["batch_size", "patience"])


@pytest.mark.parametrize("key", ["train#trainer#max_epochs", "train::trainer::max_epochs", "train"])
def test_nested_keys_count_by_their_top(key):
    check_keys([key], ["train"])


@pytest.fixture
def config(tmp_path):
    content = {"number": 1, "run": [{"_target_": "scripts.overrides.reject_unknown_keys"}]}
    (tmp_path / "config.json").write_text(json.dumps(content))
    return str(tmp_path / "config.json")


def test_overrides_are_read_from_the_call(config):
    run(config_file=config, number=2)
    with pytest.raises(RuntimeError) as error:
        run(config_file=config, numbr=2)
    assert "did you mean 'number'" in str(error.value.__cause__)


def test_a_key_that_the_users_own_overlay_refers_to(config, tmp_path):
    (tmp_path / "mine").mkdir()
    mine = tmp_path / "mine" / "overlay.json"
    mine.write_text('{"my_number": 3, "number": "@my_number"}')
    run(config_file=[config, str(mine)], my_number=4)


def test_a_misspelled_key_of_an_overlay(config, tmp_path):
    (tmp_path / "mine").mkdir()
    mine = tmp_path / "mine" / "overlay.json"
    mine.write_text('{"nubmer": 3}')
    with pytest.raises(RuntimeError) as error:
        run(config_file=[config, str(mine)])
    assert "'nubmer': did you mean 'number'" in str(error.value.__cause__)


def test_overrides_of_an_args_file_are_checked(config, tmp_path):
    (tmp_path / "mine").mkdir()
    arguments = tmp_path / "mine" / "args.json"
    arguments.write_text(json.dumps({"config_file": config, "numbr": 2}))
    with pytest.raises(RuntimeError) as error:
        run(args_file=str(arguments))
    assert "did you mean 'number'" in str(error.value.__cause__)


def test_keys_of_experiment_tracking_are_known():
    check_keys(["tracking_uri", "experiment_name", "config_file"], RUN_KEYS)


CONFIG = {"rules": {"min_voxels": 10}, "train": {"trainer": {"_target_": "x", "epochs": 1}, "handlers": []}}


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("train#handler", "did you mean 'handlers'"),
        ("rules#min_voxel", "did you mean 'min_voxels'"),
        ("train::zzz", "known there: handlers, trainer"),
    ],
)
def test_a_nested_key_that_its_section_lacks(key, hint):
    with pytest.raises(ValueError, match=hint):
        check_path(key, CONFIG)


@pytest.mark.parametrize("key", ["train#trainer#amp", "train#handlers#0#seed", "rules#min_voxels", "new"])
def test_a_nested_key_that_may_be(key):
    check_path(key, CONFIG)


def test_a_key_of_another_config_is_no_key_of_this_one(config, tmp_path):
    (tmp_path / "train.json").write_text('{"seed": 0}')  # as study.json, which has seeds, lies beside train.json
    with pytest.raises(RuntimeError) as error:
        run(config_file=config, seed=1)
    assert "no config declares the key 'seed'" in str(error.value.__cause__)


def test_the_config_of_another_bundle_is_refused(config, tmp_path):
    other = tmp_path / "other"
    (other / "scripts").mkdir(parents=True)
    (other / "configs").mkdir()
    moved = other / "configs" / "config.json"
    moved.write_text((tmp_path / "config.json").read_text())
    run(config_file=str(moved))  # a folder of this name alone makes no bundle
    (other / "scripts" / "__init__.py").touch()
    with pytest.raises(RuntimeError) as error:
        run(config_file=str(moved))
    assert f"belongs to the bundle '{other}', but the code that runs is of" in str(error.value.__cause__)
