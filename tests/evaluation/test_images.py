import numpy as np
import pytest
import torch
from ignite.engine import Engine

from scripts.evaluation.images import ImageQuality, image_quality, quality_summary
from scripts.perceptual import PerceptualDistance


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


def test_each_phase_is_measured_on_its_own_channels():
    image = torch.full((2, 4, 16, 16), 0.5)
    pred = image.clone()
    pred[:, 2:] += 0.1  # two slices of ES
    pred[1, 2:] += 0.1
    quality = ImageQuality(["ED", "ES"], MeanDifference())
    engine = Engine(lambda engine, batch: {"image": image, "pred": pred})
    quality.attach(engine)
    engine.run([None])
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
