from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.transforms import Compose, RandGaussianNoise, Transform

from scripts.cohort.phantom import FAILURES
from scripts.data import cached_dataset, find_items
from scripts.storage import read_csv


class Counted(Transform):
    """A deterministic transform that counts its calls, even from the threads that fill a cache."""

    calls = 0

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, item):
        Counted.calls += 1
        return torch.full((1, 4), float(item["value"] * self.factor))


@pytest.fixture(params=["memory", "disk"])
def cache_dir(request, tmp_path):
    Counted.calls = 0
    return None if request.param == "memory" else str(tmp_path)


DATA = [{"value": 1}, {"value": 2}]


def test_preprocessing_runs_once_and_augmentation_each_time(cache_dir):
    dataset = cached_dataset(DATA, Compose([Counted(3), RandGaussianNoise(prob=1)]), cache_dir)
    first, second = dataset[1], dataset[1]
    assert not torch.equal(first, second)
    assert abs(float(first.mean()) - 6) < 1
    _ = dataset[0], dataset[0]
    assert Counted.calls == 2


def test_other_preprocessing_is_not_answered_from_the_cache(tmp_path):
    assert cached_dataset(DATA, Compose([Counted(3)]), str(tmp_path))[1][0, 0] == 6
    assert cached_dataset(DATA, Compose([Counted(5)]), str(tmp_path))[1][0, 0] == 10


def test_scans_to_encode_are_those_that_pass(phantoms, tmp_path):
    items = find_items(phantoms, tmp_path)
    excluded = read_csv(tmp_path / "excluded.csv")
    assert (len(items), len(excluded)) == (12, len(FAILURES))
    assert all(row["reason"] for row in excluded)
    assert all(Path(item["image_ED"]).is_file() for item in items)


def test_rules_apply_to_scans_to_encode(phantoms, tmp_path):
    assert len(find_items(phantoms, tmp_path, rules={"min_slices": 4})) > 12
    with pytest.raises(ValueError, match=r"none of the 19 subjects .* see .*excluded\.csv"):
        find_items(phantoms, tmp_path, rules={"min_slices": 40})


def test_a_section_needs_a_datalist(phantoms, prepared, tmp_path):
    assert len(find_items(phantoms, tmp_path, prepared / "datalist.json", "test")) == 3
    with pytest.raises(ValueError, match="section 'test' is one of a datalist"):
        find_items(phantoms, tmp_path, section="test")
