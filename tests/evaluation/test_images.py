import numpy as np
import pytest
import torch
from ignite.engine import Engine

from scripts.evaluation.images import ImageQuality, dice_summary, image_quality, quality_summary
from scripts.perceptual import PerceptualDistance
from scripts.views import View


class MeanDifference(PerceptualDistance):
    def compare(self, prediction, target):
        return (prediction - target).abs().mean((1, 2, 3))


@pytest.fixture
def image():
    return np.random.default_rng(0).random((16, 16))


def test_the_same_image_is_perfect(image):
    quality = image_quality(image, image)
    assert quality["SSIM"] == pytest.approx(1)
    assert quality["MSE"] == 0


def test_psnr_and_mse_of_a_known_error():
    quality = image_quality(np.full((16, 16), 0.5), np.full((16, 16), 0.6))
    assert quality["MSE"] == pytest.approx(0.01)
    assert quality["PSNR"] == pytest.approx(20)


def test_only_the_squared_error_sees_beyond_the_range_of_gray():
    white = np.ones((16, 16))
    quality = image_quality(white, white + 0.5)
    assert quality["SSIM"] == pytest.approx(1)
    assert quality["MSE"] == pytest.approx(0.25)


def measured(view, image, pred):
    quality = ImageQuality(view, MeanDifference())
    engine = Engine(lambda engine, batch: {"image": image, "pred": pred})
    quality.attach(engine)
    engine.run([None])
    return quality


def test_slices_beyond_the_scan_are_not_measured():
    view = View(["ED"], "stack", stack_slices=3)
    image = torch.full((2, 3, 16, 16), 0.5)
    image[1, 2] = 0
    pred = image + torch.tensor([0.1, 0.3, 0.5])[:, None, None]
    rows = measured(view, image, pred).rows
    assert [row["MSE_ED"] for row in rows] == pytest.approx([0.35 / 3, 0.05])
    assert rows[1]["LPIPS_ED"] == pytest.approx(0.2)


def test_decoded_maps_are_compared_with_those_of_the_masks():
    view = View(["ED", "ES"], ["basal", "mid"], "masks")
    image = torch.full((1, view.channels, 16, 16), 0.5)
    view.slice_maps(image)[:] = 0
    view.slice_maps(image)[:, :, 0, 0, 4:8] = 0.9  # an LV in the basal slices
    pred = image.clone()
    view.slice_maps(pred)[:, 1, 1, 0, 4:8] = 0.6  # at ES in the other slice, too
    quality = measured(view, image, pred)
    assert quality.rows[0]["MSE_ES"] == 0  # maps are no images
    assert (quality.rows[0]["Dice_LV_ED"], quality.rows[0]["Dice_LV_ES"]) == pytest.approx((1, 2 / 3))
    assert np.isnan(quality.rows[0]["Dice_RV_ED"])
    summary = dice_summary(quality.rows * 20, view.phases)
    assert summary["All"]["LV"]["value"] == pytest.approx(5 / 6)
    assert dice_summary([{"SSIM_ED": 1.0}], ["ED"]) == {}


def test_each_phase_is_measured_on_its_own_channels():
    image = torch.full((2, 4, 16, 16), 0.5)
    pred = image.clone()
    pred[:, 2:] += 0.1  # two slices of ES
    pred[1, 2:] += 0.1
    quality = measured(View(slices=["basal", "mid"]), image, pred)
    assert [row["MSE_ED"] for row in quality.rows] == [0, 0]
    assert [row["MSE_ES"] for row in quality.rows] == pytest.approx([0.01, 0.04])
    assert [row["LPIPS_ES"] for row in quality.rows] == pytest.approx([0.1, 0.2])


def test_all_is_the_mean_over_phases_with_an_interval_of_the_subjects():
    values = np.random.default_rng(1).random((30, 2))
    rows = [
        {
            f"{name}_{phase}": value
            for phase, value in zip(("ED", "ES"), pair, strict=True)
            for name in ("SSIM", "LPIPS", "PSNR", "MSE")
        }
        for pair in values
    ]
    summary = quality_summary(rows, ["ED", "ES"])
    assert list(summary) == ["All", "ED", "ES"]
    assert summary["All"]["SSIM"]["value"] == pytest.approx(values.mean())
    assert summary["ES"]["PSNR"]["value"] == pytest.approx(values[:, 1].mean())
    half = 1.96 * values[:, 1].std() / np.sqrt(30)
    assert summary["ES"]["PSNR"]["high"] - summary["ES"]["PSNR"]["low"] == pytest.approx(2 * half, rel=0.2)
