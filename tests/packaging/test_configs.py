from __future__ import annotations

import json

import pytest

from scripts.packaging.configs import PAPER, merge_overlays, with_values
from scripts.packaging.contents import INFERENCE, TRAINING
from tests.conftest import ROOT

CONTENTS = {path.relative_to(ROOT / "bundle").as_posix(): path.read_bytes() for path in ROOT.glob("bundle/configs/*")}


def test_configs_take_over_the_values_of_an_overlay():
    merged = merge_overlays(CONTENTS, ["compact.json"])
    compact = json.loads(CONTENTS["configs/compact.json"])
    for name in (TRAINING, INFERENCE):
        before, after = json.loads(CONTENTS[name]), json.loads(merged[name])
        assert after == before | {key: value for key, value in compact.items() if key in before}
        changed = zip(CONTENTS[name].splitlines(), merged[name].splitlines(), strict=True)
        assert 0 < sum(old != new for old, new in changed) <= len(compact)
    assert json.loads(merged[TRAINING]) | json.loads(merged[PAPER]) == json.loads(CONTENTS[TRAINING])


def test_without_an_overlay_configs_stay():
    assert merge_overlays(CONTENTS, []) == {}


def test_an_overlay_that_is_not_there_is_told():
    with pytest.raises(FileNotFoundError, match=r"bundle/configs has no tiny.json"):
        merge_overlays(CONTENTS, ["tiny.json"])


def test_backslashes_in_values_stay():
    assert json.loads(with_values('{\n    "a": 1\n}', {"a": r"\1 \n", "b": 2})) == {"a": r"\1 \n"}


def test_a_value_of_several_lines_is_told():
    with pytest.raises(ValueError, match="more than one line"):
        with_values('{\n    "a": [\n        1\n    ]\n}', {"a": 2})
