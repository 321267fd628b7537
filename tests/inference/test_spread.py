from __future__ import annotations

import os
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch

from scripts.evaluation.study import command
from scripts.inference import spread as module
from scripts.inference.loading import Failure
from scripts.inference.spread import chunked, spread
from scripts.networks import VariationalAutoencoder
from scripts.parallel import Failed, Workers
from scripts.storage import read_csv
from tests.conftest import ROOT

ITEMS = [{"subject": f"s{number}"} for number in range(20)]
SIZES = {"channels": [8, 8, 8], "latent_dim": 8}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of a small network that has learned nothing."""
    torch.manual_seed(0)
    norm = ("group", {"num_groups": 8})
    network = VariationalAutoencoder(2, [64, 64], **SIZES, norm=norm, architecture="residual")
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(network.state_dict(), path)
    return path


def infer(dataset, datalist, output, weights, **overrides):
    """Run an inference from a folder of its own, and return its exit code and what it prints."""
    configs = [ROOT / "bundle" / "configs" / name for name in ("inference.json", "compact.json")]
    paths = {"dataset_dir": dataset, "datalist": datalist, "output_dir": output, "ckpt_path": weights}
    keys = (
        {key: str(value) for key, value in paths.items()}
        | SIZES
        | {"pages": False, "num_workers": 0, "batch_size": 4}
        | overrides
    )
    process = subprocess.run(
        command("run", configs, keys),
        cwd=output.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    return process.returncode, process.stdout


def test_a_cluster_gives_the_same_results(phantoms, prepared, weights, tmp_path, scheduler):
    dataset = shutil.copytree(phantoms, tmp_path / "scans")
    (tmp_path / "here").mkdir()
    broken = sorted(path.parent.name for path in dataset.glob("*/sa_ED.nii.gz"))[0]
    (dataset / broken / "sa_ED.nii.gz").write_bytes(b"no NIfTI")  # a datalist's subjects are not examined anew
    arguments = (dataset, prepared / "datalist.json")
    code, text = infer(*arguments, tmp_path / "here" / "alone", weights)
    assert code == 3, text[-2000:]
    code, text = infer(*arguments, tmp_path / "here" / "spread", weights, scheduler=scheduler)
    assert code == 3, text[-2000:]
    assert "encode: 100%" in text
    assert "Results of 11 subjects: " in text
    alone, spread = tmp_path / "here" / "alone", tmp_path / "here" / "spread"
    for name in ("codes.csv", "attributes.csv", "excluded.csv"):
        assert (alone / name).read_bytes() == (spread / name).read_bytes()
    assert read_csv(spread / "excluded.csv")[0]["subject"] == broken
    assert sorted(path.relative_to(spread) for path in spread.glob("*/*")) == sorted(
        path.relative_to(alone) for path in alone.glob("*/*")
    )


class Writer:
    """Knows 20 subjects, and notes which have a result."""

    def __init__(self):
        self.items = {item["subject"]: item for item in ITEMS}
        self.failures, self.written, self.done = [], 0, set()
        self.records = SimpleNamespace(remaining=lambda items: [i for i in items if i["subject"] not in self.done])


@pytest.fixture
def run(monkeypatch):
    """Spread the 20 subjects, with a stand-in for what a worker does with a chunk; returns the writer."""

    def run(encode):
        writer = Writer()

        def fake_map(task, chunks, *_):
            return [encode(writer, [item["subject"] for item in chunk]) for chunk in chunks]

        monkeypatch.setattr(module, "launch", lambda: (["inference.json"], {}))
        monkeypatch.setattr(module, "parallel_map", fake_map)
        spread(writer, Workers(scheduler="tcp://host:1"))
        return writer

    return run


def test_a_subject_that_kills_its_worker_takes_no_other_with_it(run):
    chunks = []

    def encode(writer, names):
        chunks.append(names)
        for name in names:
            if name == "s9":
                return Failed("died")
            writer.done.add(name)
        return []

    writer = run(encode)
    assert writer.failures == [Failure("s9", "died")]
    assert writer.written == 19
    assert [names for names in chunks if len(names) == 1] == [[f"s{number}"] for number in range(9, 16)]


def test_failures_within_a_chunk_are_told(run):
    def encode(writer, names):
        writer.done |= set(names) - {"s3"}
        return [Failure("s3", "cut off")] if "s3" in names else []

    writer = run(encode)
    assert (writer.failures, writer.written) == ([Failure("s3", "cut off")], 19)


def test_an_error_of_every_worker_is_raised(run):
    with pytest.raises(RuntimeError, match="the encoding fails on every worker: no module torch"):
        run(lambda writer, names: Failed("no module torch"))


def test_a_start_without_monai_is_refused():
    with pytest.raises(RuntimeError, match=r"needs a start by 'python -m monai\.bundle run'"):
        spread(Writer(), Workers(scheduler="tcp://host:1"))


@pytest.mark.parametrize(("subjects", "size"), [(3, 3), (100, 8), (1000, 16), (100000, 64)])
def test_sizes_of_chunks(subjects, size):
    chunks = chunked(list(range(subjects)))
    assert max(map(len, chunks)) == size
    assert [item for chunk in chunks for item in chunk] == list(range(subjects))
