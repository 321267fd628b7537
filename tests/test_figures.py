from __future__ import annotations

import pytest
import torch

from scripts.figures import STEPS, reconstruction_figure, traversal, traversal_figure
from scripts.networks import VariationalAutoencoder


@pytest.fixture
def network():
    torch.manual_seed(0)
    return VariationalAutoencoder(2, (16, 16), (4, 8), 6, "instance").eval()


def test_a_walk_moves_one_dimension_by_standard_deviations(network):
    codes = torch.randn(20, 6)
    images = traversal(network, codes, 1)
    for step, image in zip(STEPS, images, strict=True):
        code = codes.mean(0)
        code[1] += step * codes[:, 1].std()
        assert torch.allclose(network.decode(code[None])[0], image, atol=1e-5)


def test_one_panel_per_attribute_phase_and_step(network):
    figure = traversal_figure(network, torch.randn(9, 6), ["LVEDV", "RVEDV", "MyoEDV"], ["ED", "ES"])
    assert len(figure.axes) == 3 * 2 * len(STEPS)
    assert [axis.get_ylabel() for axis in figure.axes[:: 2 * len(STEPS)]] == ["LVEDV", "RVEDV", "MyoEDV"]
    assert figure.axes[0].get_title() == "ED  −2 SD"


def test_scan_reconstruction_and_difference(network):
    image = torch.rand(2, 2, 16, 16)
    figure = reconstruction_figure(image, image / 2, ["ED", "ES"])
    assert len(figure.axes) == 3 * 4
    shown = figure.axes[8].images[0].get_array()
    assert torch.allclose(torch.as_tensor(shown.data), -image[0, 0] / 2)
