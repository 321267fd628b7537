from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from scripts.distributed import GatheredMetric, local_batch_size
from tests.conftest import ROOT

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def steps(path, *launcher):
    """What ``tests.distributed_steps`` writes."""
    command = [sys.executable, "-m", *launcher, "tests.distributed_steps", str(path)]
    run = subprocess.run(command, cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps")
    launcher = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m")
    return steps(folder / "one.pt"), steps(folder / "two.pt", *launcher)


@pytest.mark.parametrize("name", ["vae", "introspective", "micro-batches"])
@pytest.mark.parametrize("kind", ["gradients", "weights", "terms"])
def test_two_processes_make_the_steps_of_one(both, name, kind):
    one, two = (found[name][kind] for found in both)
    assert one.keys() == two.keys()
    assert len(one) > 3
    for key, values in one.items():
        assert torch.allclose(values, two[key], rtol=1e-9, atol=1e-12), key


def test_two_processes_start_from_the_components_of_one(both):
    one, two = (found["components"]["weights"] for found in both)
    assert one.keys() == two.keys()
    assert len(one) == 4
    for key, values in one.items():
        assert values.any(), key
        assert torch.allclose(values, two[key], atol=1e-4), key


def test_a_metric_gathers_what_processes_have_unevenly(both):
    assert [found["metric"]["terms"]["value"].item() for found in both] == [20, 20]


def test_a_metric_without_processes_is_ignites():
    metric = GatheredMetric(lambda predictions, targets: float((predictions * targets).sum()), check_compute_fn=False)
    for rows in (2, 3):
        metric.update((torch.full((rows, 1), 2.0), torch.ones(rows, 1)))
    assert metric.compute() == 10


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch):
    monkeypatch.setattr("ignite.distributed.get_world_size", lambda: 3)
    assert local_batch_size(12) == 4
    with pytest.raises(ValueError, match="batch_size 16 cannot be shared by 3 processes"):
        local_batch_size(16)
