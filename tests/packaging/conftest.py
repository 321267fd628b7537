"""A bundle to package."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.packaging.examples import add_model


@pytest.fixture(scope="session")
def template(tmp_path_factory) -> Path:
    """The bundle of this checkout, with untrained weights."""
    root = tmp_path_factory.mktemp("template") / "bundle"
    shutil.copytree(ROOT / "bundle", root, ignore=shutil.ignore_patterns("models", "scripts"))
    (root / "scripts").symlink_to(ROOT / "scripts")
    add_model(root)
    return root


@pytest.fixture
def bundle(template, tmp_path) -> Path:
    """A copy of it to plant things in, with little code, since all of it is read."""
    root = shutil.copytree(template, tmp_path / "bundle", symlinks=True)
    (root / "scripts").unlink()
    (root / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "__init__.py", root / "scripts")
    return root
