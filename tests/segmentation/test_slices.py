from __future__ import annotations

import numpy as np
import pytest
import torch

from scripts.cohort.layout import SubjectError, write_volume
from scripts.segmentation.slices import (
    LoadPhase,
    RandSlicesd,
    VolumeToSlicesd,
    phase_items,
    resized,
    to_slices,
    with_given_masks,
)


def test_slices_keep_their_extent():
    volume = torch.zeros(1, 120, 90, 7)
    assert to_slices(volume, (0.9, 1.2, 8), 1.8).shape == (7, 1, 60, 60)
    assert to_slices(volume, (0.9, 1.2, 8), None).shape == (7, 1, 120, 90)


def test_a_volume_of_too_many_pixels_is_refused_before_there_are_any():
    with pytest.raises(SubjectError, match=r"2 slices of 3072 x 3072 pixels; expected at most 16777216 .* voxel size"):
        to_slices(torch.zeros(1, 256, 256, 2), (21.6, 21.6, 8), 1.8)
    assert to_slices(torch.zeros(1, 512, 512, 20), (1.8, 1.8, 8), 1.8).shape == (20, 1, 512, 512)


def test_a_structure_stays_where_it_is_and_as_large():
    mask = torch.zeros(1, 100, 100, 2, dtype=torch.uint8)
    mask[0, 20:60, 30:70] = 1
    item = {"image": mask.float(), "label": mask, "voxel": (0.9, 0.9, 8)}
    out = VolumeToSlicesd(["image", "label"], 1.8)(item)
    assert out["label"].shape == out["image"].shape == (2, 1, 50, 50)
    assert torch.equal(out["label"][0, 0].nonzero().min(0).values, torch.tensor([10, 15]))
    assert torch.equal(out["label"][0, 0].nonzero().max(0).values, torch.tensor([29, 34]))
    assert torch.equal(out["image"].round(), out["label"].float())


def test_labels_stay_labels_when_slices_shrink():
    mask = torch.randint(0, 4, (1, 64, 64, 3), dtype=torch.uint8)
    out = VolumeToSlicesd(["image", "label"], 2.5)({"image": mask.float(), "label": mask, "voxel": (1, 1, 8)})
    assert set(out["label"].unique().tolist()) <= {0, 1, 2, 3}
    assert out["label"].dtype == torch.uint8


def test_scores_come_back_to_the_scans_size():
    scores = torch.rand(3, 4, 50, 40)
    assert resized(scores, (120, 90)).shape == (3, 4, 120, 90)
    assert torch.equal(resized(scores, (50, 40)), scores)


def test_scan_and_mask_give_the_same_slices():
    slices = torch.arange(6).view(6, 1, 1, 1)
    pick = RandSlicesd(["image", "label"], count=4).set_random_state(0)
    items = pick({"image": slices, "label": slices + 10, "voxel": (1, 1, 8)})
    assert len(items) == 4
    assert all(torch.equal(item["label"], item["image"] + 10) for item in items)
    assert len({int(item["image"]) for item in items}) == 4


def test_a_volume_of_few_slices_gives_as_many_items():
    slices = torch.arange(2).view(2, 1, 1, 1)
    assert len(RandSlicesd(["image", "label"], count=5)({"image": slices, "label": slices})) == 5


def test_each_phase_is_an_item_and_is_read_with_its_voxel_size(tmp_path):
    for name in ("image_ED", "mask_ED", "image_ES", "mask_ES"):
        write_volume(tmp_path / f"{name}.nii.gz", np.ones((4, 5, 3), np.uint8), np.diag([1.5, 2, 8, 1]))
    subject = {name: str(tmp_path / f"{name}.nii.gz") for name in ("image_ED", "mask_ED", "image_ES", "mask_ES")}
    items = phase_items([subject | {"frame_ED": None, "frame_ES": None, "modified": [1]}])
    assert [item["image"].split("/")[-1] for item in items] == ["image_ED.nii.gz", "image_ES.nii.gz"]
    assert all(item["modified"] == [1] for item in items)
    out = LoadPhase()(items[1])
    assert out["image"].shape == out["label"].shape == (1, 4, 5, 3)
    assert np.allclose(out["voxel"], (1.5, 2, 8))


def test_each_phase_has_its_own_frame():
    files = {f"{kind}_{phase}": f"{kind}.nii.gz" for kind in ("image", "mask") for phase in ("ED", "ES")}
    items = phase_items([files | {"frame_ED": 0, "frame_ES": 3, "modified": []}])
    assert [item["frame"] for item in items] == [0, 3]


def test_shrinking_does_not_alias():
    board = (torch.arange(8).view(-1, 1) + torch.arange(8)) % 2
    assert torch.allclose(resized(board[None, None].float(), (4, 4))[..., 1:-1, 1:-1], torch.tensor(0.5), atol=0.05)


def test_predicted_masks_are_not_learned_from(capsys):
    items = [{"subject": "a", "mask": "manual"}, {"subject": "b", "mask": "predicted"}, {"subject": "c"}]
    assert [item["subject"] for item in with_given_masks(items)] == ["a", "c"]
    assert "1 of 3 subjects have predicted masks" in capsys.readouterr().out
    with pytest.raises(ValueError, match="nothing to learn from"):
        with_given_masks(items[1:2])
