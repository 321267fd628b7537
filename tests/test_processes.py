"""That a forked command line is what a shell would have started."""

from __future__ import annotations

import json
import os

import pytest

from tests.processes import Line, run

TOLD = "print('code of', __file__, 'in', os.getcwd(), os.environ.get('WHO'), os.environ.get('HOME'))"


@pytest.fixture
def told(tmp_path):
    """A function that runs a bundle of its own, whose code is given, and tells its exit status and output."""

    def told(code):
        folder = tmp_path / "other"
        (folder / "scripts").mkdir(parents=True)
        (folder / "scripts" / "__init__.py").write_text("import os, warnings\n\n\ndef tell():\n    " + code)
        (folder / "config.json").write_text(json.dumps({"run": ["$import scripts", "$scripts.tell()"]}))
        arguments = ("run", "run", "--config_file", "config.json")
        return run(Line(arguments, folder, {"PATH": os.environ["PATH"], "WHO": "me"}), tmp_path / "log")

    return told


def test_it_has_the_code_of_its_folder_and_its_own_environment(told, tmp_path):
    status, text = told(TOLD)
    assert status == 0, text
    folder = tmp_path / "other"
    assert f"code of {folder}/scripts/__init__.py in {folder} me None" in text


@pytest.mark.parametrize("category", ["DeprecationWarning", "RuntimeWarning"])
def test_what_our_code_does_that_is_deprecated_or_undefined_ends_it(category, told):
    status, text = told(f"warnings.warn('no more', {category}, stacklevel=1)")
    assert status != 0
    assert f"{category}: no more" in text


def test_what_our_code_tells_its_users_does_not(told):
    status, text = told("warnings.warn('look here', UserWarning, stacklevel=1)")
    assert status == 0, text
    assert "look here" in text


def test_a_missing_config_ends_it(told, tmp_path):
    assert run(Line(("run", "run", "--config_file", "none.json"), tmp_path, dict(os.environ)), tmp_path / "log")[0] != 0
