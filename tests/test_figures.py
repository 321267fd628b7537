from __future__ import annotations

import numpy as np
import pytest
import torch

from scripts.figures import (
    CHANGED,
    FINER,
    OUTLINE_NOTE,
    STEPS,
    WIDTH,
    attribute_name,
    number,
    outlines,
    reconstruction_figure,
    samples_figure,
    traversal,
    traversal_figure,
)
from scripts.networks import VariationalAutoencoder
from scripts.views import View

SQUARE = slice(4, 9), slice(18, 26)  # rows and columns


@pytest.fixture
def network():
    torch.manual_seed(0)
    return VariationalAutoencoder(2, (16, 16), (4, 8), 6, "instance").eval()


class GrowingSquare:
    """Decodes dimension 0 into the brightness of a square in the first of two channels."""

    @staticmethod
    def decode(codes):
        images = torch.full((len(codes), 2, 32, 32), 0.5)
        images[:, 0][:, SQUARE[0], SQUARE[1]] += 0.2 * codes[:, :1, None]
        return images


def shown(axis) -> torch.Tensor:
    return torch.as_tensor(axis.images[0].get_array().data)


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def left(axis) -> float:
    return axis.get_position().x0


def test_a_walk_moves_one_dimension_by_standard_deviations(network):
    codes = torch.randn(20, 6)
    images = traversal(network, codes, 1)
    for step, image in zip(STEPS, images, strict=True):
        code = codes.mean(0)
        code[1] += step * codes[:, 1].std()
        assert torch.allclose(network.decode(code[None])[0], image, atol=1e-5)


def test_the_walk_of_a_single_subject_has_the_length_of_the_prior(network):
    code = torch.randn(1, 6)
    moved = code.clone()
    moved[:, 1] += STEPS[0]
    assert torch.allclose(network.decode(moved)[0], traversal(network, code, 1)[0], atol=1e-5)


def test_one_panel_per_attribute_phase_and_step(network):
    codes = torch.randn(9, 6)
    figure = traversal_figure(network, codes, ["LVEDV", "RVESV", "age"], ["ED", "ES"])
    axes = np.reshape(figure.axes, (3, 2, len(STEPS)))
    assert [axis.get_ylabel() for axis in axes[:, 0, 0]] == ["LVEDV (ED)", "RVESV (ES)", "age"]
    assert [axis.get_title() for axis in axes[0, 1]] == ["−2 SD", "−1 SD", "mean", "+1 SD", "+2 SD"]
    assert texts(figure)[:2] == ["ED", "ES"]
    assert torch.allclose(shown(axes[1, 1, 3]), traversal(network, codes, 1)[3, 1])


def test_phases_stand_in_blocks_under_their_header(network):
    figure = traversal_figure(network, torch.randn(9, 6), ["LVEDV"], ["ED", "ES"])
    steps = np.diff([left(axis) for axis in figure.axes])
    assert steps.argmax() == len(STEPS) - 1
    assert steps.max() > 1.1 * np.median(steps)
    assert left(figure.axes[0]) < figure.texts[0].get_position()[0] < left(figure.axes[5])
    assert figure.texts[1].get_position()[0] > left(figure.axes[5])


def test_the_region_that_changed_is_outlined_and_nothing_else():
    codes = torch.randn(50, 3)
    figure = traversal_figure(GrowingSquare, codes, ["LVEDV"], ["ED", "ES"])
    outlines = [axis.collections for axis in figure.axes]
    assert [len(lines) for lines in outlines] == [1, 1, 0, 1, 1] + [0] * 5
    corners = np.concatenate([path.vertices for path in outlines[0][0].get_paths()])
    assert np.allclose(corners.min(0), (18, 4), atol=1.5)
    assert np.allclose(corners.max(0), (25, 8), atol=1.5)


def test_what_changes_less_than_the_threshold_is_not_outlined():
    codes = torch.randn(50, 3)
    codes[:, 0] *= CHANGED / 0.2 / 2 * 0.9 / codes[:, 0].std()
    figure = traversal_figure(GrowingSquare, codes, ["LVEDV"], ["ED", "ES"])
    assert not any(axis.collections for axis in figure.axes)


def test_correlations_stand_beside_their_walks(network):
    figure = traversal_figure(network, torch.randn(9, 6), ["LVEDV", "RVEDV"], ["ED", "ES"], [0.912, float("nan")])
    assert [axis.get_ylabel() for axis in figure.axes[:: 2 * len(STEPS)]] == [
        "LVEDV (ED)\nSCC 0.91",
        "RVEDV (ED)\nSCC –",
    ]


def test_scan_reconstruction_and_difference():
    image = torch.rand(2, 2, 16, 16)
    figure = reconstruction_figure(image, image / 2, ["ED", "ES"])
    axes = np.reshape(figure.axes[:12], (3, 4))
    assert [axis.get_ylabel() for axis in axes[:, 0]] == ["scan", "reconstruction", "difference"]
    assert torch.equal(shown(axes[0, 3]), image[1, 1])
    assert torch.equal(shown(axes[1, 2]), image[1, 0] / 2)
    assert torch.allclose(shown(axes[2, 0]), -image[0, 0] / 2)


def test_two_rows_for_each_method():
    image = torch.rand(3, 2, 16, 16)
    figure = reconstruction_figure(image, {"AR-SIVAE": image, "β-VAE": image / 4}, ["ED", "ES"])
    axes = np.reshape(figure.axes[:30], (5, 6))
    assert torch.equal(shown(axes[3, 4]), image[2, 0] / 4)
    assert shown(axes[2, 4]).abs().max() == 0
    names = {text.get_text(): text.get_position()[1] for text in figure.texts}
    for name, row in (("AR-SIVAE", 1), ("β-VAE", 3)):
        assert axes[row + 1, 0].get_position().y0 < names[name] < axes[row, 0].get_position().y1
    assert {"subject A", "subject C"} < names.keys()


def test_subjects_stand_apart_and_the_page_is_not_left():
    image = torch.rand(4, 2, 16, 16)
    figure = reconstruction_figure(image, image, ["ED", "ES"])
    within, between = np.diff([left(axis) for axis in figure.axes[:3]])
    assert between > 1.1 * within
    assert figure.get_figwidth() == pytest.approx(WIDTH)
    assert figure.axes[7].get_position().x1 < 1


def test_the_gray_values_of_a_difference_grow_with_it_and_have_a_scale():
    image = torch.rand(1, 1, 16, 16)
    figure = reconstruction_figure(image, image, ["ED"])
    difference, bar = figure.axes[2].images[0], figure.axes[-1]
    dark, middle, light = difference.to_rgba([-0.5, 0, 0.5])[:, 0]
    assert dark < middle < light
    assert [tick.get_text() for tick in bar.get_xticklabels()] == ["−0.5", "0", "+0.5"]


def test_samples_stand_above_their_nearest_scans_in_bands():
    samples, nearest = torch.rand(2, 5, 2, 16, 16)
    figure = samples_figure(samples, nearest, [0.1, 0.2, 0.3, 0.4, 0.5], ["ED", "ES"], "RMS difference")
    assert len(figure.axes) == 2 * 5 * 2
    upper, lower = figure.axes[:8], figure.axes[8:16]
    assert torch.equal(shown(upper[5]), samples[2, 1])
    assert torch.equal(shown(lower[5]), nearest[2, 1])
    assert left(upper[5]) == left(lower[5])
    assert torch.equal(shown(figure.axes[18]), nearest[4, 0])
    assert texts(figure)[:5] == [f"d = 0.{tenths}0" for tenths in (1, 2, 3, 4, 5)]
    assert "RMS difference" in texts(figure)[5]


def test_every_channel_needs_a_name():
    image = torch.rand(1, 3, 16, 16)
    with pytest.raises(ValueError, match="3 channels, and names are given for 2"):
        reconstruction_figure(image, image, ["ED", "ES"])


@pytest.mark.parametrize(
    ("name", "label"), [("LVEDV", "LVEDV (ED)"), ("MyoESA", "MyoESA (ES)"), ("LVEF", "LVEF"), ("LVSV", "LVSV")]
)
def test_attributes_are_named_with_their_phase(name, label):
    assert attribute_name(name) == label


@pytest.mark.parametrize(("value", "text"), [(0.456, "0.46"), (-0.3, "−0.30"), (-0.001, "0.00"), (np.nan, "–")])
def test_numbers_are_written_as_people_do(value, text):
    assert number(value) == text


HEART = View(["ED", "ES"], "stack", "masks", stack_slices=8)


def hearts(count):
    """Stacks whose images tell phase and slice, with an LV in the middle."""
    values = torch.zeros(count, HEART.channels, 16, 16)
    HEART.slice_images(values)[:] = torch.arange(16).reshape(2, 8, 1, 1) / 16
    HEART.slice_maps(values)[..., 0, 4:12, 4:12] = 1
    return values


def test_lines_run_around_what_is_more_than_half():
    maps = torch.zeros(3, 16, 16)
    maps[0, 4:12, 4:12] = 1
    line = np.argwhere(outlines(maps)[..., 3] > 0) / FINER - 0.5
    assert np.allclose(line.min(0), 4, atol=0.8)
    assert np.allclose(line.max(0), 11, atol=0.8)
    assert len(line) < 0.3 * (8 * FINER) ** 2  # a line, and no area
    assert not outlines(maps * 0.4).any()


def test_three_slices_of_a_stack_stand_below_each_other():
    figure = reconstruction_figure(hearts(2), hearts(2) / 2, HEART)
    axes = np.reshape(figure.axes[:36], (9, 4))
    assert [round(float(shown(axis).max()) * 16) for axis in axes[[0, 3, 6], 0]] == [1, 3, 5]
    assert [round(float(shown(axis).max()) * 16) for axis in axes[[0, 3, 6], 3]] == [9, 11, 13]
    assert {"base", "20 mm below", "40 mm below"} < set(texts(figure))
    assert [len(axis.images) for axis in axes[:3, 0]] == [2, 2, 1]  # outlines over scan and reconstruction
    assert texts(figure)[-1].replace("\n", " ").endswith(OUTLINE_NOTE)


def test_a_walk_of_a_stack_shows_its_maps_beside_those_of_the_mean():
    class Growing:
        @staticmethod
        def decode(codes):
            values = hearts(len(codes))
            HEART.slice_maps(values)[codes[:, 0] > 0.5, :, :, 0, 2:14, 2:14] = 1
            return values

    figure = traversal_figure(Growing, torch.randn(50, 3), ["LVEDV", "LVESV"], HEART)
    axes = np.reshape(figure.axes, (2, 3, 2, len(STEPS)))
    assert axes[0, 0, 0, 0].get_ylabel() == "LVEDV (ED)\nbase"
    assert axes[1, 2, 0, 0].get_ylabel() == "40 mm below"
    mean, own = axes[0, 1, 1, 4].images[1:]
    assert np.argwhere(own.get_array()[..., 3]).min() < np.argwhere(mean.get_array()[..., 3]).min()


def test_samples_of_a_stack_stand_above_their_scans_slice_by_slice():
    figure = samples_figure(hearts(3), hearts(3) / 2, [0.1, 0.2, 0.3], HEART)
    axes = np.reshape(figure.axes, (6, 6))
    assert [round(float(shown(axis).max()) * 32) for axis in axes[:, 1]] == [18, 22, 26, 9, 11, 13]
