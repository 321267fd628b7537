from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from scripts.cohort.layout import SubjectError
from scripts.inference import results
from scripts.inference.results import attribute_row, code_row, find_calibration, result_of
from tests.inference.examples import NAMES, FixedCalibration, encoded, measured


def test_codes_are_named_by_their_attributes():
    row = code_row(result_of(measured(), encoded(), None), NAMES[:2])
    assert list(row)[:4] == ["subject", "z0_LVEDV", "z1_RVEDV", "z2"]
    assert (row["z0_LVEDV"], row["z2"]) == ("0.5", "0.25")


def test_estimates_stand_beside_the_values_of_the_mask():
    row = attribute_row(result_of(measured(HR=60.0, LVCO=4.2), encoded(), FixedCalibration()), NAMES)
    assert (row["LVEDV"], row["LVEDV_low"], row["LVEDV_high"], row["LVEDV_mask"]) == ("100.5", "80.5", "120.5", "120")
    assert (row["mask"], row["LVEF_mask"], row["HR"], row["LVCO_mask"]) == ("manual", "58", "60", "4.2")
    assert (row["out_of_range"], row["percentile"], row["percentile_kl"]) == (False, "55", "40")


def test_every_row_has_the_same_columns():
    full = attribute_row(result_of(measured(HR=60.0), encoded(), FixedCalibration()), NAMES)
    bare = attribute_row(result_of({"subject": "b"}, encoded(), FixedCalibration()), NAMES)
    assert list(full) == list(bare)
    assert bare["LVEDV_mask"] == bare["mask"] == ""


def test_without_a_calibration_there_are_no_estimates(tmp_path, capsys):
    assert find_calibration(tmp_path / "model.pt", "0" * 64, ["ED"], NAMES) is None
    assert "'run calibrate' with train.json" in capsys.readouterr().out
    row = attribute_row(result_of(measured(), encoded(), None), NAMES)
    assert "LVEDV" not in row
    assert "out_of_range" not in row
    assert row["LVEDV_mask"] == "120"


def test_numbers_that_are_not_finite_are_a_reason():
    with pytest.raises(SubjectError, match="not finite"):
        result_of(measured(), encoded() | {"codes": torch.tensor([float("nan")])}, None)


def test_a_calibration_of_other_phases_or_attributes_is_refused(tmp_path, monkeypatch):
    calibration = SimpleNamespace(settings={"phases": ["ED", "ES"], "attributes": list(NAMES)})
    monkeypatch.setattr(results.Calibration, "read", lambda *_: calibration)
    assert find_calibration(tmp_path / "model.pt", "0", ["ED", "ES"], NAMES) is calibration
    with pytest.raises(ValueError, match="is for phases ED, ES, not for ED"):
        find_calibration(tmp_path / "model.pt", "0", ["ED"], NAMES)
    with pytest.raises(ValueError, match=r"is for attributes LVEDV, .*, not for LVEDV;"):
        find_calibration(tmp_path / "model.pt", "0", ["ED", "ES"], NAMES[:1])


def test_another_calibration_makes_other_results(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"weights")
    hashes = []
    for content in ("one", "other"):
        (tmp_path / "calibration.json").write_text(content)
        hashes.append(results.calibration_hash(tmp_path / "model.pt", FixedCalibration()))
    assert hashes[0] != hashes[1]
    assert results.calibration_hash(tmp_path / "model.pt", None) is None


def test_intervals_carry_their_level():
    row = attribute_row(result_of(measured(), encoded(), FixedCalibration()), NAMES, 0.857)
    assert row["interval_level"] == "0.857"
