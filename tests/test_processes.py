"""That a forked command line is what a shell would have started."""

from __future__ import annotations

import json
import os

import pytest

from tests.processes import Line, run

ENVIRONMENT = {"PATH": os.environ["PATH"], "WHO": "me"}
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
        return run(Line(arguments, folder, ENVIRONMENT), tmp_path / "log")

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


def test_code_that_is_on_the_path_of_the_tests_is_not_found(tmp_path, monkeypatch):
    (tmp_path / "elsewhere" / "scripts").mkdir(parents=True)
    (tmp_path / "elsewhere" / "scripts" / "__init__.py").touch()
    (tmp_path / "config.json").write_text(json.dumps({"run": ["$import scripts", "$scripts.__file__"]}))
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    status, text = run(Line(("run", "run", "--config_file", "config.json"), tmp_path, ENVIRONMENT), tmp_path / "log")
    assert status != 0
    assert "No module named 'scripts'" in text


def test_what_is_to_be_done_at_the_end_is_done(told):
    status, text = told("import atexit; atexit.register(print, 'given back')")
    assert status == 0, text
    assert text.count("given back") == 1


def test_a_missing_config_ends_it(tmp_path):
    status, text = run(Line(("run", "run", "--config_file", "none.json"), tmp_path, ENVIRONMENT), tmp_path / "log")
    assert status != 0
    assert "none.json" in text
