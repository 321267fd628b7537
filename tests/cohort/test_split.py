from __future__ import annotations

from collections import Counter

import pytest

from scripts.cohort.split import split_by_column, split_subjects

NAMES = [f"s{i:03d}" for i in range(100)]


def test_shares_are_met_and_seeded():
    sections = split_subjects(NAMES, (0.7, 0.15, 0.15), seed=1)
    assert Counter(sections.values()) == {"training": 70, "validation": 15, "test": 15}
    assert sections == split_subjects(NAMES[::-1], (0.7, 0.15, 0.15), seed=1)
    assert sections != split_subjects(NAMES, (0.7, 0.15, 0.15), seed=2)


def test_paper_sizes():
    sections = split_subjects([str(i) for i in range(5360)], (3752 / 5360, 804 / 5360, 804 / 5360), seed=0)
    assert Counter(sections.values()) == {"training": 3752, "validation": 804, "test": 804}


@pytest.mark.parametrize(
    "fractions",
    [(0.7, 0.3), (0.8, 0.3, -0.1), (0.5, 0.2, 0.2), 0.7, "abc", ["a", "b", "c"], [0.5, 0.5, float("nan")]],
)
def test_wrong_shares_are_refused(fractions):
    with pytest.raises(ValueError, match="add up to 1"):
        split_subjects(NAMES, fractions, seed=0)


def test_split_from_a_column():
    rows = [{"subject": "a", "part": "test"}, {"subject": "b", "part": "training"}]
    assert split_by_column(rows, "part") == {"a": "test", "b": "training"}
    with pytest.raises(
        ValueError, match="split_column 'part' is none of training, validation, test for 1 of 3 subjects"
    ):
        split_by_column([*rows, {"subject": "c", "part": "train"}], "part")
