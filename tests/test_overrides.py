from __future__ import annotations

import json

import pytest
from monai.bundle import run

from scripts.overrides import check_keys


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
    assert "did you mean 'number'" in str(error.value.__cause__ or error.value)


def test_keys_of_the_users_own_overlay_are_declared(config, tmp_path):
    (tmp_path / "mine.json").write_text('{"my_key": 3}')
    run(config_file=[config, str(tmp_path / "mine.json")], my_key=4)


def test_overrides_of_an_args_file_are_checked(config, tmp_path):
    (tmp_path / "args.json").write_text(json.dumps({"config_file": config, "numbr": 2}))
    with pytest.raises(RuntimeError):
        run(args_file=str(tmp_path / "args.json"))
