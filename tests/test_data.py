from __future__ import annotations

import pytest
import torch
from monai.transforms import Compose, RandGaussianNoise, Transform

from scripts.data import cached_dataset


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
