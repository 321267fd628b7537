from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from torch import nn

from scripts.evaluation.records import Examples, ImageOutputs, SubjectRecords


def run(handler, batches):
    """Attach a handler to an engine that puts each batch into its output."""
    engine = Engine(lambda engine, batch: batch)
    handler.attach(engine)
    engine.run(batches)
    return handler


def batch(start, size, dims=4):
    torch.manual_seed(start)
    return {
        "image": torch.rand(size, 2, 8, 8),
        "pred": torch.rand(size, 2, 8, 8),
        "codes": torch.randn(size, dims),
        "log_variances": torch.full((size, dims), -2.0),
        "attributes": torch.arange(start, start + size).float()[:, None],
    }


@pytest.fixture
def batches():
    return [batch(0, 3), batch(3, 2)]


def test_records_keep_the_order_of_the_subjects(batches):
    records = run(
        SubjectRecords([{"subject": name} for name in "abcde"], dict(zip("edcba", range(5), strict=True))), batches
    )
    assert records.pseudonyms == [4, 3, 2, 1, 0]
    assert records.attributes[:, 0].tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(records.codes, torch.cat([b["codes"] for b in batches]))


def test_a_second_run_starts_anew(batches):
    records = SubjectRecords([], {})
    run(records, batches)
    run(records, batches)
    assert len(records.codes) == 5


def test_sampled_codes_spread_as_the_posterior_does(batches):
    records = SimpleNamespace(codes=np.zeros((4000, 2)), log_variances=np.tile([0.0, np.log(4)], (4000, 1)))
    drawn = SubjectRecords.sampled_codes(records, seed=0)
    np.testing.assert_allclose(drawn.std(axis=0), [1, 2], rtol=0.05)
    np.testing.assert_array_equal(drawn, SubjectRecords.sampled_codes(records, seed=0))


def test_outputs_of_another_network_stop_at_the_limit(batches):
    network = nn.Sequential(nn.Dropout(0.5), nn.Flatten())  # evaluated, so that nothing is dropped
    outputs = run(ImageOutputs(network, limit=4), batches)
    np.testing.assert_allclose(outputs.values, torch.cat([b["image"] for b in batches])[:4].flatten(1))


def test_examples_are_the_first_subjects(batches):
    examples = run(Examples(4), batches)
    torch.testing.assert_close(examples.images, torch.cat([b["image"] for b in batches])[:4])
    torch.testing.assert_close(examples.reconstructions, torch.cat([b["pred"] for b in batches])[:4])
