from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine

from scripts.cohort.layout import write_volume
from scripts.storage import read_csv
from scripts.writers import CodesWriter, ReconstructionWriter


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


def test_each_phase_goes_into_the_grid_of_its_own_scan(tmp_path):
    item, output = {"subject": "a"}, {}
    for value, (phase, spacing) in enumerate((("ED", 1.5), ("ES", 2.0)), start=1):
        item[f"scan_{phase}"] = str(tmp_path / f"sa_{phase}.nii.gz")
        write_volume(item[f"scan_{phase}"], np.ones((4, 4, 4), np.int16), np.diag([spacing, spacing, 10, 1]))
        output[f"pred_{phase}"] = torch.full((1, 4, 4, 4), float(value))
    engine = Engine(lambda engine, batch: [output])
    ReconstructionWriter(tmp_path / "out", ["ED", "ES"]).attach(engine)
    engine.run([[item]])
    written = [nib.load(tmp_path / "out" / "a" / f"reconstruction_{phase}.nii.gz") for phase in ("ED", "ES")]
    assert [image.get_fdata().max() for image in written] == [1, 2]
    assert [image.affine[0, 0] for image in written] == [1.5, 2.0]
