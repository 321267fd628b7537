import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scripts.calibration.novelty import Novelty
from scripts.cohort.attributes import VOLUMES
from scripts.inference.page import extent_notes, range_notes
from scripts.report_page.report import EvaluatedHearts, ReportPage, read_metrics
from tests.report_page.examples import SPACING, VIEW, Disks, some_codes, some_population

PSEUDONYMS = [11, 7, 13, 5, 3]
IN_RANGE = Novelty({"kl": 40.0}, 0.1, 40.0, False)
OUT = Novelty({"kl": 99.97, "motion": 12.0}, 5.0, 99.97, True)
VALUE = {"value": 1.0, "low": 0.5, "high": None}


def evaluated(**options):
    """Five subjects, whose sizes are known but for one."""
    codes = some_codes(5, seed=1) / 4
    attributes = np.tile(100.0, (5, 6))
    attributes[:, 0] = [150, 90, np.nan, 200, 120]
    records = SimpleNamespace(
        pseudonyms=PSEUDONYMS, codes=codes.double().numpy(), log_variances=np.zeros((5, 8)), attributes=attributes
    )
    calibration = SimpleNamespace(
        population=some_population(),
        attributes=VOLUMES,
        cautions=lambda: ["This model knows <nothing>."],
        novelty=lambda *parts: OUT if parts[0][0] == codes[3, 0] else IN_RANGE,
    )
    images = Disks().decode(codes)
    defaults = {
        **{"network": Disks(), "view": VIEW, "spacing": SPACING, "calibration": calibration, "records": records},
        **{"dataset": [{"image": image} for image in images], "regularize": True, "count": 2, "changes": [20]},
    }
    return EvaluatedHearts(**defaults | options)


def written(folder, hearts):
    """A page of an evaluation that has little else."""
    row = {"model": {"r2": VALUE}}
    metrics = {
        "description": {"method": "AR-SIVAE", "seed": 0, "section": "test", "training": {}, "lpips_net": "vgg"}
        | {"data": {"attributes": ["LVEDV"]}, "dimensions": [0], "model": {"regularize": True}}
        | {"feature_trunk": "vgg16", "generated_samples": 12},
        "subjects": {"training": 9, "test": 5},
        "images": {"All": dict.fromkeys(("SSIM", "LPIPS", "PSNR", "MSE"), VALUE)},
        "interpretability": {"paper": row, "sound": row},
        "realism": dict.fromkeys(("kid", "kid_reference", "frechet", "frechet_reference", "memorization"), VALUE)
        | {"memorization": {"undefined": "too few"}},
    }
    (folder / "figures").mkdir()
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return ReportPage(folder, hearts).write().read_text()


def test_subjects_are_chosen_from_small_to_large():
    assert evaluated(count=2).rows() == [4, 3]
    assert evaluated(count=9).rows() == [1, 4, 0, 3]
    assert evaluated(count=0).rows() == []


@pytest.mark.parametrize("count", [-1, 2.5, "3", True])
def test_a_count_of_subjects_that_is_none_is_refused(count):
    with pytest.raises(ValueError, match="page_subjects is"):
        evaluated(count=count)


def test_without_a_subject_to_choose_the_page_says_why(tmp_path):
    hearts = evaluated()
    hearts.records.attributes[:, 0] = np.nan
    assert "no subject has a value of LVEDV" in written(tmp_path, hearts)


def test_numbers_are_pseudonyms(tmp_path):
    text = written(tmp_path, evaluated())
    assert [int(number) for number in re.findall(r'"number": (\d+)', text)] == [3, 5]
    assert not list(tmp_path.glob("*.csv"))


def test_what_is_wrong_with_the_model_stands_before_all_else(tmp_path, capsys):
    text = written(tmp_path, evaluated())
    assert text.index('<p class="warning">This model knows &lt;nothing&gt;.</p>') < text.index('id="hearts"')
    assert "Caution: This model knows <nothing>." in capsys.readouterr().out


def with_known_masks(hearts):
    """The same hearts, whose masks have what the model draws."""
    hearts.records.attributes = hearts.counterfactuals.attributes(torch.tensor(hearts.records.codes).float()).numpy()
    return hearts


def test_a_heart_drawn_unlike_its_masks_has_a_note():
    hearts = with_known_masks(evaluated())
    assert not hearts.heart(4).notes
    own = float(hearts.records.attributes[4, 1])
    hearts.records.attributes[4, 1] += 40
    hearts.records.attributes[4, 0] = np.nan
    (note,) = hearts.heart(4).notes
    assert f"its RVEDV is {own:.0f} where the masks have {own + 40:.0f} mL" in note


def test_a_scan_out_of_range_is_warned_of():
    hearts = with_known_masks(evaluated())
    in_range, out = (hearts.heart(row) for row in (4, 3))
    assert (in_range.out_of_range, list(in_range.notes)) == (False, [])
    assert out.out_of_range
    assert "more unusual than 99 % of known scans" in out.notes[0]
    assert range_notes(IN_RANGE) == []


def test_the_scan_and_its_reconstruction_tell_the_range():
    hearts = evaluated()
    asked = []
    hearts.calibration.novelty = lambda *parts: (asked.append(parts), IN_RANGE)[1]
    hearts.dataset[4]["image"] = scan = torch.rand_like(hearts.dataset[4]["image"])
    hearts.heart(4)
    code, _, image, reconstruction = asked[0]
    assert torch.equal(image, scan)
    assert torch.equal(reconstruction, Disks().decode(code[None])[0])


def test_a_heart_with_fewer_slices_has_a_note():
    hearts = with_known_masks(evaluated())
    hearts.dataset[4]["image"] = torch.ones(VIEW.channels, 4, 4)
    hearts.dataset[4]["image"][2] = 0
    assert "Of 3 slices, the scan has 2 at ED, 3 at ES" in hearts.heart(4).notes[0]


def test_a_scan_with_fewer_slices_is_told_of():
    image = torch.ones(VIEW.channels, 4, 4)
    assert extent_notes(VIEW, image) == []
    image[2] = 0  # the last slice at ED
    assert extent_notes(VIEW, image) == [
        "Of 3 slices, the scan has 2 at ED, 3 at ES; the others lie beyond it and are black."
    ]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"count": 0}, "page_subjects is 0"),
        ({"regularize": False}, "trained without attribute loss"),
        ({"calibration": None}, "'run calibrate' with"),
        ({"calibration": SimpleNamespace(population=None, cautions=list)}, "'run calibrate' with"),
    ],
)
def test_without_what_it_takes_there_are_tables_and_figures_only(options, reason, tmp_path):
    text = written(tmp_path, evaluated(**options))
    assert reason in text.replace("&#39;", "'")
    assert "Reconstruction (layout of Table 1)" in text
    assert "hearts-data" not in text


def test_a_large_page_says_what_makes_it_smaller(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("scripts.report_page.report.LARGEST", 1000)
    written(tmp_path, evaluated())
    assert "fewer --page_subjects or --page_changes" in capsys.readouterr().out


def test_what_was_not_finite_is_so_again(tmp_path):
    (tmp_path / "m.json").write_text('{"description": {"a": null}, "images": {"b": [null, 1]}}')
    found = read_metrics(tmp_path / "m.json")
    assert found["description"] == {"a": None}
    assert np.isnan(found["images"]["b"][0])
