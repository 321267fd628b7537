import numpy as np
import pytest
import torch

from scripts.calibration.faults import OtherSlice, crop_faults, towards_apex
from scripts.cohort.datalist import load_items
from scripts.cohort.layout import read_mask
from scripts.views import View

PHASES = ("ED", "ES")


@pytest.fixture
def image():
    return torch.rand(3, 2, 16, 16, generator=torch.Generator().manual_seed(0))


def faults(seed=0, phases=PHASES):
    return crop_faults(phases, 2.5, torch.Generator().manual_seed(seed))


def test_faults_do_what_they_say(image):
    made = {name: fault(image) for name, fault in faults().items()}
    assert torch.equal(made["inverted"], 1 - image)
    assert torch.equal(made["mirrored"][..., 0, :], image[..., -1, :])
    assert torch.equal(made["swapped"], image[:, [1, 0]])
    assert all(fault.shape == image.shape and fault.min() >= 0 and fault.max() <= 1 for fault in made.values())


def test_motion_is_drawn_by_the_seed(image):
    first, again, other = (faults(seed)["motion"](image) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert not torch.allclose(first, image, atol=0.05)


def test_motion_leaves_a_uniform_image_alone():
    image = torch.full((2, 2, 16, 16), 0.5)
    assert torch.allclose(faults()["motion"](image), image, atol=1e-5)


def test_one_phase_cannot_be_swapped():
    assert "swapped" not in faults(phases=("ED",))


def test_slices_run_from_the_base_to_the_apex(heart_mask):
    assert towards_apex(heart_mask, 0).tolist() == list(range(7))
    assert towards_apex(heart_mask, 1).tolist() == list(range(1, 7))
    assert towards_apex(heart_mask[..., ::-1], 7).tolist() == list(range(7, 0, -1))


def test_another_slice_is_of_the_apical_half_and_always_the_same(prepared, phantoms):
    item = load_items(prepared / "datalist.json", phantoms, "training")[0]
    moved, again = OtherSlice(PHASES)(item), OtherSlice(PHASES)(item)
    assert moved == again
    for phase in PHASES:
        slices = towards_apex(read_mask(item[f"mask_{phase}"], item[f"frame_{phase}"]), item[f"basal_slice_{phase}"])
        assert moved[f"basal_slice_{phase}"] in slices[len(slices) // 2 :]
        assert np.isin(item[f"basal_slice_{phase}"], slices)


def test_faults_of_a_whole_heart_are_those_of_its_scan():
    view = View(PHASES, "stack", "masks", stack_slices=3)
    image = torch.rand(2, view.channels, 16, 16, generator=torch.Generator().manual_seed(0))
    image[:, 2] = 0  # beyond the scan
    made = {name: fault(image) for name, fault in faults(phases=view).items()}
    maps = slice(view.images, None)
    for name in ("motion", "inverted"):
        assert torch.equal(made[name][:, maps], image[:, maps])
        assert not made[name][:, 2].any()
        assert not torch.allclose(made[name][:, 1], image[:, 1], atol=0.05)
    assert torch.equal(view.slice_maps(made["swapped"])[:, 0], view.slice_maps(image)[:, 1])
    assert torch.equal(view.slice_images(made["swapped"])[:, 1], view.slice_images(image)[:, 0])
    assert torch.equal(made["mirrored"], image.flip(-2))
