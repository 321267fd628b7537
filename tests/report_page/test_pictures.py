import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.report_page.pictures import FINENESS, figure_uri, montage, outline_paths, path, steps
from tests.report_page.examples import RADII, VIEW, Disks


def opened(uri):
    kind, content = re.fullmatch(r"data:image/(\w+);base64,(.*)", uri).groups()
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert image.format.lower() == kind
    return np.asarray(image.convert("L")).astype(int)


def points(line):
    """The points of a path of one line, as a browser reads it."""
    return np.cumsum(np.reshape([int(number) for number in re.findall(r"-?\d+", line)], (-1, 2)), axis=0)


def test_a_montage_has_a_row_per_phase_and_a_column_per_slice():
    images = torch.linspace(0, 1, 6).reshape(2, 3, 1, 1).expand(-1, -1, 16, 24)
    tiles = opened(montage(images))
    assert tiles.shape == (32, 72)
    assert tiles[8::16, 12::24] == pytest.approx(np.round(255 * images[..., 0, 0].numpy()), abs=3)


def test_values_beyond_the_range_are_black_and_white():
    tiles = opened(montage(torch.tensor([-0.5, 1.5]).reshape(1, 2, 1, 1).expand(-1, -1, 16, 16)))
    assert tiles[8, 8] <= 2
    assert tiles[8, 24] >= 253


def test_outlines_lie_where_the_structures_end():
    maps = VIEW.slice_maps(Disks().decode(torch.zeros(1, 8)))[0]
    endocardium, epicardium, rv = outline_paths(maps)[0][1]
    for line, radius in ((endocardium, RADII[0]), (epicardium, RADII[2])):
        distances = np.hypot(*(points(line) / FINENESS - [20.5, 16.5]).T)
        assert distances == pytest.approx(radius, abs=0.3)
    assert points(rv)[:, 0].max() < points(endocardium)[:, 0].min()  # on the left, in x


def test_nothing_has_no_outline():
    assert outline_paths(torch.zeros(1, 1, 3, 8, 8)) == [[["", "", ""]]]


def test_steps_begin_and_end_where_the_line_does():
    line = np.array([[1.0, 2], [1.5, 3], [2, 4], [2.5, 3], [1, 2]])
    found = points(steps(line)) / FINENESS - 0.5
    assert found.tolist() == [[2, 1], [4, 2], [2, 1]]


def test_each_island_of_a_region_starts_where_it_is():
    """And not beside the end of the island before, where a relative start would put it."""
    region = np.zeros((30, 30))
    region[4:8, 4:8] = region[20:24, 22:26] = 1
    starts = [points("M" + part)[0] / FINENESS - 0.5 for part in path(region).split("M")[1:]]
    assert len(starts) == 2
    for start, low, high in zip(starts, ([3, 3], [21, 19]), ([8, 8], [26, 24]), strict=True):
        assert ((start >= low) & (start <= high)).all()


def test_a_figure_keeps_its_bytes_and_tells_its_size(tmp_path):
    Image.new("L", (30, 20)).save(tmp_path / "a.png")
    uri, width, height = figure_uri(tmp_path / "a.png")
    assert base64.b64decode(uri.split(",")[1]) == (tmp_path / "a.png").read_bytes()
    assert (width, height) == (30, 20)
