from __future__ import annotations

import pytest
import torch
from torch import nn

from scripts.evaluation.instruments import (
    CLASSES,
    ImageRegressor,
    MapsApartd,
    PrepareSlices,
    Segmentation,
    SelfReport,
    instruments,
)
from scripts.views import View

VIEW = View(slices="stack", anatomy="masks", stack_slices=2, slice_distance=10)
NAMES = ("LVEDV", "RVEDV", "MyoEDV", "LVESV", "RVESV", "MyoESV", "LVEF")


class Grays(nn.Module):
    """Labels a pixel by its gray value: 0.1 LV, 0.2 Myo, 0.3 RV."""

    def forward(self, slices):
        assert slices.shape[1] == 2
        label = (slices[:, 0] * 10).round().long()
        return 30.0 * nn.functional.one_hot(label, CLASSES).movedim(-1, 1)


@pytest.fixture
def image():
    """Two subjects; the second one's LV is twice as large at ED."""
    image = torch.zeros(2, VIEW.channels, 8, 8)
    ed, es = image[:, :2], image[:, 2:4]
    ed[0, 0, :2] = 0.1  # 16 pixels
    ed[1, :, :2] = 0.1  # 32
    ed[:, 1, 4] = 0.2
    es[:, 0, 5, :4] = 0.3
    return image


def test_the_segmentation_measures_each_structure_of_each_phase(image):
    found = Segmentation(Grays(), VIEW, 10.0, NAMES)(image)  # a pixel is 1 mL
    assert found[:, :6].tolist() == [[16, 0, 8, 0, 4, 0], [32, 0, 8, 0, 4, 0]]
    assert found[:, 6].isnan().all()


def test_the_segmentation_does_not_look_at_decoded_maps(image):
    measure = Segmentation(Grays(), VIEW, 10.0, NAMES)
    claiming = image.clone()
    claiming[:, VIEW.images :] = 0.3
    assert torch.equal(measure(image).nan_to_num(), measure(claiming).nan_to_num())
    without = Segmentation(Grays(), View(slices="stack", stack_slices=2), 10.0, NAMES)
    assert torch.equal(measure(image).nan_to_num(), without(image[:, : VIEW.images]).nan_to_num())


@pytest.mark.parametrize(("view", "places"), [(VIEW, [0, 1, 0, 1]), (View(), [0, 0])])
def test_the_segmentation_is_told_which_slice_of_the_view_it_sees(view, places):
    class Places(nn.Module):
        def forward(self, slices):
            seen.append(slices[:, 1])
            return torch.zeros(len(slices), CLASSES, 8, 8)

    seen = []
    Segmentation(Places(), view, 10.0, NAMES).segment(torch.rand(2, view.images, 8, 8))
    assert seen[0].amin((1, 2)).tolist() == seen[0].amax((1, 2)).tolist() == places * 2


def test_the_segmentation_sees_images_as_scans_are():
    class Watch(nn.Module):
        def forward(self, slices):
            seen.append(slices[:, 0])
            return torch.zeros(len(slices), CLASSES, 8, 8)

    seen = []
    Segmentation(Watch(), VIEW, 10.0, NAMES).segment(torch.linspace(-1, 2, 8).expand(1, VIEW.channels, 8, 8))
    assert (seen[0].min(), seen[0].max()) == (0, 1)


def test_a_new_batch_is_segmented_anew(image):
    measure = Segmentation(Grays(), VIEW, 10.0, NAMES)
    first = measure(image)
    assert measure.segment(image) is measure.segment(image)
    assert not torch.equal(measure(image.flip(0))[:, 0], first[:, 0])


def test_the_self_report_measures_the_maps_alone(image):
    VIEW.slice_maps(image)[:, 1, :, 2, :4] = 0.25  # RV at ES: 2 slices, 32 pixels
    found = SelfReport(VIEW, 10.0, NAMES)(image)
    assert found[0, :6].tolist() == pytest.approx([0, 0, 0, 0, 16, 0])


def test_the_regressor_sees_images_as_scans_are():
    seen = []
    network = nn.Module()
    network.forward = lambda images: (seen.append(images), images.mean((2, 3)))[1]
    ImageRegressor(network, VIEW)(2 * torch.ones(1, VIEW.channels, 8, 8))
    assert seen[0].shape[1] == VIEW.images
    assert seen[0].max() == 1


def test_slices_and_shares_belong_together(image):
    image[:, : VIEW.images] += torch.rand(2, VIEW.images, 1, 1)  # tells slices apart
    image[:, VIEW.images :] = torch.rand(2, VIEW.images * 3, 1, 1) / 3
    apart = [MapsApartd(VIEW)({"image": part}) for part in image]
    batch = {key: torch.stack([part[key] for part in apart]) for key in ("image", "maps")}
    slices, shares = PrepareSlices(VIEW, 3)(batch)
    assert (slices.shape, shares.shape) == ((6, 2, 8, 8), (6, CLASSES, 8, 8))
    assert torch.allclose(shares.sum(1), torch.ones(6, 8, 8))
    found = set()
    for row, (one, share) in enumerate(zip(slices, shares, strict=True)):
        (place,) = (k for k in range(VIEW.images) if torch.equal(image[row // 3, k], one[0]))
        assert torch.equal(share[1:], image[row // 3, VIEW.images + 3 * place :][:3])
        assert one[1].unique().tolist() == [place % 2]
        found.add((row // 3, place))
    assert len(found) == 6  # none twice


def test_all_slices_of_both_phases_have_their_turn():
    image = torch.arange(5.0 * VIEW.images).reshape(5, VIEW.images, 1, 1)
    batch = {"image": image, "maps": torch.zeros(5, 3 * VIEW.images, 1, 1)}
    torch.manual_seed(0)
    drawn = [PrepareSlices(VIEW, 2)(batch)[0][:, 0].flatten().tolist() for _ in range(30)]
    counts = torch.tensor(drawn).flatten().long().bincount(minlength=image.numel())
    assert counts.min() > 5
    assert counts.max() < 25


def test_a_view_has_the_instruments_that_can_measure_it():
    regressor = ImageRegressor(nn.Identity(), VIEW)
    names = {}
    for view in (VIEW, View(slices="stack"), View(), View(anatomy="masks")):
        segmentation = Segmentation(Grays(), view, 10.0, NAMES)
        names[view] = list(instruments(segmentation, regressor, view, 10.0, NAMES))
    assert list(names.values()) == [
        ["segmentation", "regressor", "self-report"],
        ["segmentation", "regressor"],
        ["regressor"],
        ["regressor"],
    ]
