from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine

from scripts.storage import read_csv
from scripts.writers import CodesWriter


def test_codes_are_written_with_their_attributes(tmp_path):
    engine = Engine(lambda engine, batch: [{"codes": torch.tensor([1.5, -2.0, 0.25])} for _ in batch])
    CodesWriter(tmp_path, ["LVEDV", "RVEDV"]).attach(engine)
    engine.run([[{"subject": "a"}], [{"subject": "b"}]])
    row = {"z0_LVEDV": "1.5", "z1_RVEDV": "-2", "z2": "0.25"}
    assert read_csv(tmp_path / "codes.csv") == [{"subject": name, **row} for name in "ab"]


def test_codes_before_a_failure_are_kept(tmp_path):
    def encode(engine, batch):
        if batch[0]["subject"] == "b":
            raise RuntimeError("broken scan")
        return [{"codes": torch.tensor([1.5])}]

    engine = Engine(encode)
    CodesWriter(tmp_path, []).attach(engine)
    with pytest.raises(RuntimeError, match="broken scan"):
        engine.run([[{"subject": "a"}], [{"subject": "b"}]])
    assert [row["subject"] for row in read_csv(tmp_path / "codes.csv")] == ["a"]
