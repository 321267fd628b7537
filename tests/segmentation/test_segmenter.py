from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from monai.networks.nets import UNet

from scripts import checkpoint
from scripts.cohort.layout import SubjectError
from scripts.segmentation.segmenter import ZOO_UNET, Segmenter, find_segmenter, load_segmenter, save_segmenter

UNET = ZOO_UNET | {"channels": [4, 8], "strides": [2], "num_res_units": 0}


class Thresholds(torch.nn.Module):
    """Labels pixels by their gray value, so that a mask shown as a scan comes back; notes the sizes that it saw."""

    def __init__(self):
        super().__init__()
        self.anything = torch.nn.Parameter(torch.zeros(1))
        self.sizes = []

    def forward(self, slices):
        self.sizes.append(tuple(slices.shape[-2:]))
        return -(slices - torch.arange(4).view(1, 4, 1, 1)).abs()


def segmenter(spacing=None, divisor=1, **options):
    return Segmenter(Thresholds(), lambda slices: slices, spacing, divisor, **options)


def test_a_mask_comes_back_in_the_scans_grid(heart_mask):
    assert np.array_equal(segmenter()(heart_mask.astype(np.float32), (1, 1, 8)), heart_mask)


def test_resampling_keeps_place_and_area(heart_mask):
    fine = (heart_mask == 1).astype(np.uint8).repeat(3, axis=0).repeat(3, axis=1)
    predicted = segmenter(spacing=1.0, divisor=16)(fine.astype(np.float32), (0.5, 0.5, 8))
    assert predicted.shape == fine.shape
    assert np.count_nonzero(predicted) == pytest.approx(np.count_nonzero(fine), rel=0.03)
    middle = [np.argwhere(volume).mean(0) for volume in (predicted, fine)]
    assert np.abs(middle[0] - middle[1]).max() < 0.5


def test_an_rv_that_is_partial_at_the_base_is_left_out(heart_mask):
    partial = heart_mask.copy()
    partial[:9, :, 0] = 0
    scan = partial.astype(np.float32)
    assert (segmenter(base_ratio=0.0)(scan, (1, 1, 8))[..., 0] == 3).any()
    assert not (segmenter(base_ratio=0.8)(scan, (1, 1, 8))[..., 0] == 3).any()


def test_frames_of_a_cine_decide_together_which_end_is_the_base(heart_mask):
    partial = heart_mask.copy()
    partial[:9, :, 0][partial[:9, :, 0] == 3] = 0
    turned = partial[..., ::-1]
    kept = segmenter(base_ratio=0.9)(np.stack([partial, partial, turned], axis=-1).astype(np.float32), (1, 1, 8))
    assert not (kept[..., 0, :2] == 3).any()
    assert np.array_equal(kept[..., 7, 2], turned[..., 7])  # its own base, but not that of the others
    alone = segmenter(base_ratio=0.9)(turned.astype(np.float32), (1, 1, 8))
    assert not (alone[..., 7] == 3).any()


def test_slices_are_padded_to_what_the_network_can_take(heart_mask):
    padding = segmenter(divisor=16)
    padding(heart_mask[:39, :33].astype(np.float32), (1, 1, 8))
    assert padding.network.sizes == [(48, 48)]


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 40, 3)])
def test_a_scan_of_few_pixels_is_padded_until_the_network_can_take_it(shape):
    few = Segmenter(UNet(**UNET), lambda slices: slices, 1.0, divisor=2)
    assert few(np.ones(shape, np.float32), (1, 1, 8)).shape == shape


def test_what_is_larger_than_the_divisor_is_padded_no_further():
    padding = segmenter(divisor=16)
    for size in (16, 17, 32, 33):
        padding(np.zeros((size, 64, 1), np.float32), (1, 1, 8))
    assert padding.network.sizes == [(32, 64), (32, 64), (32, 64), (48, 64)]


def test_small_slices_that_padding_makes_too_many_pixels_are_refused():
    with pytest.raises(SubjectError, match="300 slices of 256 x 256 pixels; expected at most"):
        segmenter(min_size=256)(np.zeros((1, 1, 300), np.float32), (1, 1, 8))


def test_a_cine_is_segmented_frame_by_frame(heart_mask):
    cine = np.stack([heart_mask, np.roll(heart_mask, 1, axis=0)], axis=-1)
    assert np.array_equal(segmenter()(cine.astype(np.float32), (1, 1, 8)), cine)


def test_written_weights_are_read_with_what_they_need(tmp_path, heart_mask):
    torch.manual_seed(0)
    network = UNet(**UNET)
    save_segmenter(network, UNET, 1.8, 0.7, tmp_path / "segmentation.pt")
    loaded = load_segmenter(tmp_path / "segmentation.pt")
    assert (loaded.spacing, loaded.divisor, loaded.base_ratio) == (1.8, 2, 0.7)
    slices = torch.rand(2, 1, 16, 16)
    assert torch.equal(loaded.scores(slices), network.eval()(slices))
    assert not loaded.network.training


def test_intensities_are_those_of_the_training(tmp_path):
    save_segmenter(UNet(**UNET), UNET, 1.8, 0.7, tmp_path / "segmentation.pt")
    scaled = load_segmenter(tmp_path / "segmentation.pt").scale(torch.linspace(100, 900, 1000).view(10, 10, 10))
    assert (float(scaled.min()), float(scaled.max())) == (0, 1)
    assert float(scaled.mean()) == pytest.approx(0.5, abs=0.01)


def test_the_model_zoos_weights_are_known_by_their_shape(tmp_path):
    checkpoint.save(UNet(**ZOO_UNET).state_dict(), tmp_path / "model.pt")
    loaded = load_segmenter(tmp_path / "model.pt")
    assert (loaded.spacing, loaded.divisor, loaded.min_size) == (None, 16, 256)
    slices = torch.stack([torch.full((8, 8), 5.0), torch.linspace(2, 6, 64).view(8, 8)])
    assert loaded.scale(slices).amax((1, 2)).tolist()[1] == 1  # each slice by itself
    pair = loaded.scale(torch.stack([slices[1], 100 * slices[1]]))
    assert torch.allclose(pair[0], pair[1])
    assert loaded(np.random.default_rng(0).random((40, 30, 2)), (1, 1, 8)).shape == (40, 30, 2)


def test_other_weights_are_refused(tmp_path):
    checkpoint.save({"layer.weight": torch.zeros(2)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"segmentation .*model\.pt' cannot be used"):
        load_segmenter(tmp_path / "model.pt")


BROKEN = {
    "unet: [1]": ({"unet": [1]}, "unet is .* makes no network .* expected the arguments of monai"),
    "unet: unknown key": ({"unet": UNET | {"depth": 3}}, "unet is .* makes no network .*'depth'.* expected"),
    "network: 5": ({"network": 5}, "weights are not tensors by name; expected"),
    "network: numbers": ({"network": {"model.0.conv.weight": 5}}, "weights are not tensors by name; expected"),
    "strides: [0]": ({"unet": UNET | {"strides": [0]}}, r"strides \[0\]; expected whole numbers of at least 1"),
    "strides: [-2]": ({"unet": UNET | {"strides": [-2]}}, r"strides \[-2\]; expected whole numbers of at least 1"),
    "strides: [2.0]": ({"unet": UNET | {"strides": [2.0]}}, r"strides \[2\.0\]; expected whole numbers"),
    "strides: [10000]": ({"unet": UNET | {"strides": [10000]}}, "takes no slices .*expected at most 16777216 pixels"),
    "in_channels: 2": ({"unet": UNET | {"in_channels": 2}}, "takes no slices .* one channel in and four out"),
    "out_channels: 3": ({"unet": UNET | {"out_channels": 3}}, r"gives \(1, 3, 1, 1\) .* expected \(1, 4, 1, 1\)"),
    "spatial_dims: 3": ({"unet": UNET | {"spatial_dims": 3}}, "takes no slices .* expected the arguments of monai"),
    **{
        f"spacing: {value}": ({"spacing": value}, f"spacing is {re.escape(repr(value))}; expected a pixel size in mm")
        for value in (0, "x", float("nan"), -1, float("inf"), [1.8, 1.8], True)
    },
    **{
        f"base_ratio: {value}": ({"base_ratio": value}, f"base_ratio is {value!r}; expected a number of at least 0")
        for value in (None, "x", float("nan"), -0.5)
    },
}


@pytest.mark.parametrize("change", BROKEN)
def test_a_broken_file_is_refused_when_it_is_read(change, tmp_path):
    broken, expected = BROKEN[change]
    unet = broken.get("unet", UNET)
    try:  # weights that fit, where there are any: another mistake is not to hide this one
        weights = UNet(**unet).state_dict()
    except Exception:
        weights = UNet(**UNET).state_dict()
    content = {"network": weights, "unet": unet, "spacing": 1.8, "base_ratio": 0.7} | broken
    checkpoint.save(content, tmp_path / "segmentation.pt")
    with pytest.raises(ValueError, match=rf"segmentation '.*segmentation\.pt' cannot be used: .*{expected}"):
        load_segmenter(tmp_path / "segmentation.pt")


@pytest.mark.parametrize("options", [(1, 0), (None, 0.7), (1.8, float("inf"))])
def test_what_a_training_may_write_is_read(options, tmp_path):
    save_segmenter(UNet(**UNET), UNET, *options, tmp_path / "segmentation.pt")
    loaded = load_segmenter(tmp_path / "segmentation.pt")
    assert (loaded.spacing, loaded.base_ratio) == options


def test_the_network_of_the_folder_comes_before_that_of_the_bundle(tmp_path):
    assert find_segmenter(tmp_path / "out", tmp_path) is None
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "segmentation.pt").touch()
    assert find_segmenter(tmp_path / "out", tmp_path) == str(tmp_path / "models" / "segmentation.pt")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "segmentation.pt").touch()
    (tmp_path / "out" / "model.pt").touch()
    for near in (tmp_path / "out", tmp_path / "out" / "model.pt"):
        assert find_segmenter(near, tmp_path) == str(tmp_path / "out" / "segmentation.pt")
