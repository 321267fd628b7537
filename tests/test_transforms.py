from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Affine, Compose, Invertd, RandAdjustContrastd
from scipy import ndimage

from scripts.cohort.attributes import basal_slices
from scripts.cohort.datalist import load_items
from scripts.cohort.layout import PHASES, SubjectError, write_volume
from scripts.transforms import (
    ChannelsToViewsd,
    LoadSubjectd,
    RandAdjustContrastHeartd,
    RandAffineHeartd,
    StackAttributesd,
    VentricleCropd,
    ViewsToChannelsd,
    barycenter,
    low_pass,
    rows_of,
)
from scripts.views import View, map_labels

SIZE = (64, 64)


def oblique(voxel, seed=1):
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0] * voxel
    affine[:3, 3] = (12, -40, 33)
    return affine


def subject(mask, voxel=(1.8, 1.8, 10.0)):
    """The item of a heart whose image shows LV 3, RV 2 and myocardium 1."""
    image = np.choose(mask, [0.0, 3.0, 1.0, 2.0]).astype(np.float32)[None]
    item = {f"mask_{phase}": MetaTensor(torch.from_numpy(mask[None])) for phase in PHASES}
    images = {f"image_{phase}": MetaTensor(torch.from_numpy(image), affine=oblique(voxel)) for phase in PHASES}
    slices = basal_slices(dict.fromkeys(PHASES, mask))
    return item | images | {f"basal_slice_{phase}": slices[phase] for phase in PHASES}


def centers(crop):
    """Row and column of LV and RV in a crop (H, W)."""
    return [ndimage.center_of_mass(np.abs(crop - value) < 0.3) for value in (3, 2)]


@pytest.fixture(params=[0, 1, 2, 3])
def turned(request, heart_mask):
    """The heart turned by a multiple of 90 degrees, in alternating slice order."""
    mask = np.rot90(heart_mask, request.param)
    return np.ascontiguousarray(mask[..., :: 1 if request.param % 2 else -1])


def test_lv_is_centered_and_rv_on_its_left(turned):
    crop = VentricleCropd(PHASES, SIZE, 1.8)(subject(turned))["image_ED"].numpy()[0, ..., 0]
    (row, column), (rv_row, rv_column) = centers(crop)
    assert abs(row - 31.5) < 0.6
    assert abs(column - 31.5) < 0.6
    assert abs(rv_row - row) < 0.8
    assert rv_column < column - 8


@pytest.mark.parametrize("angle", [-50, 20, 130])
def test_any_rotation_is_undone(heart_mask, angle):
    mask = ndimage.rotate(heart_mask, angle, axes=(0, 1), reshape=False, order=0)
    crop = VentricleCropd(PHASES, SIZE, 1.8)(subject(mask))["image_ED"].numpy()[0, ..., 0]
    (row, column), (rv_row, rv_column) = centers(crop)
    assert abs(rv_row - row) < 1.5
    assert rv_column < column


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_crop_is_never_a_mirror_image(heart_mask, turns):
    item = subject(np.ascontiguousarray(np.rot90(heart_mask, turns)))
    marked = np.zeros((40, 40, 8), np.float32)
    marked[24, 8] = 9  # above the LV as displayed, with the RV on its left
    item["image_ED"].copy_(torch.from_numpy(np.rot90(marked, turns).copy())[None])
    crop = VentricleCropd(PHASES, SIZE, 1.8)(item)["image_ED"].numpy()[0, ..., 0]
    row, column = ndimage.center_of_mass(crop)
    assert row < 24
    assert abs(column - 31.5) < 1


@pytest.mark.parametrize("spacing", [1.0, 1.8, 2.5])
def test_pixels_have_the_asked_size(heart_mask, spacing):
    item = subject(heart_mask)
    item["image_ED"].zero_()
    item["image_ED"][0, 34, 20] = 9  # 10 voxels to the right of the LV's center
    crop = VentricleCropd(PHASES, (128, 128), spacing)(item)["image_ED"].numpy()[0, ..., 0]
    row, column = ndimage.center_of_mass(crop)
    assert (column - 63.5) * spacing == pytest.approx(10 * 1.8, abs=0.4 * spacing)
    assert row == pytest.approx(63.5, abs=0.5)


def test_anisotropic_pixels_become_square(heart_mask):
    stretched = heart_mask.repeat(2, axis=0)
    crop = VentricleCropd(PHASES, SIZE, 1.8)(subject(stretched, (0.9, 1.8, 10)))["image_ED"].numpy()[0, ..., 0]
    lv = np.argwhere(np.abs(crop - 3) < 0.3)
    assert abs(np.subtract(*np.ptp(lv, axis=0))) <= 1


def test_shrinking_does_not_alias():
    stripes = torch.zeros(1, 80, 80, 8)
    stripes[:, ::3] = 1
    x, y = np.meshgrid(np.arange(80), np.arange(80), indexing="ij")
    mask = np.zeros((80, 80, 8), np.uint8)
    for label, center, radius in ((2, 48, 18), (1, 48, 14), (3, 20, 8)):
        mask[np.hypot(x - center, y - 40) < radius] = label
    item = subject(mask, (0.7, 0.7, 8)) | {"image_ED": MetaTensor(stripes, affine=oblique((0.7, 0.7, 8)))}
    crop = VentricleCropd(PHASES, (16, 16), 2.5)(item)["image_ED"].numpy()
    assert crop.std() < 0.1  # half of 0.5 without smoothing


@pytest.mark.parametrize("spacing", [1.8, 2.5])
def test_a_crop_returns_to_the_scans_own_grid(turned, spacing):
    pipeline = Compose([VentricleCropd(PHASES, SIZE, spacing)])
    item = pipeline(subject(turned))
    item["pred_ED"] = MetaTensor(item["image_ED"].clone().as_tensor())
    back = Invertd("pred_ED", pipeline, "image_ED", nearest_interp=False)(item)["pred_ED"]
    original = subject(turned)["image_ED"]
    basal = item["basal_slice_ED"]
    assert back.shape == original.shape
    assert torch.allclose(back.affine, original.affine)
    assert np.flatnonzero(back.numpy().any((0, 1, 2))).tolist() == [basal]
    restored, truth = (ndimage.center_of_mass(volume[0, ..., basal].numpy() > 2.4) for volume in (back, original))
    assert np.allclose(restored, truth, atol=0.3)


@pytest.mark.parametrize("anatomy", ["none", "masks"])
def test_channels_and_views_are_inverse(anatomy):
    view = View(PHASES, ["basal", "apical"], anatomy)
    crops = {f"image_{phase}": MetaTensor(torch.rand(1, 8, 8, 2)) for phase in PHASES}
    maps = {f"maps_{phase}": MetaTensor(torch.rand(3, 8, 8, 2)) for phase in view.mapped}
    image = ViewsToChannelsd(view)(crops | maps)["image"]
    views = ChannelsToViewsd(view)({"pred": image})
    assert image.shape == (view.channels, 8, 8)
    assert torch.equal(image[1], crops["image_ED"][0, ..., 1].as_tensor())
    for key, crop in (crops | maps).items():
        back = views[key.replace("image", "pred").replace("maps", "pred_maps")]
        assert torch.equal(back.as_tensor(), crop.as_tensor())


def test_the_difference_is_what_the_reconstruction_adds():
    image, prediction = torch.rand(2, 8, 8), torch.rand(2, 8, 8)
    views = ChannelsToViewsd(PHASES)({"image": image, "pred": prediction})
    assert torch.equal(views["difference_ES"][0, ..., 0].as_tensor(), (prediction - image)[1])


def test_loading_reads_one_frame_of_a_cine(tmp_path, heart_mask):
    cine = np.stack([heart_mask * 0, heart_mask], -1)
    write_volume(tmp_path / "sa.nii.gz", cine, oblique((1.8, 1.8, 10)), 0.03)
    item = {f"{kind}_{phase}": str(tmp_path / "sa.nii.gz") for kind in ("image", "mask") for phase in PHASES}
    loaded = LoadSubjectd(["ES"])(item | {"frame_ED": 0, "frame_ES": 1})
    assert np.array_equal(loaded["image_ES"][0].numpy(), heart_mask)
    assert loaded["image_ED"] == str(tmp_path / "sa.nii.gz")


def test_missing_attributes_become_nan():
    vector = StackAttributesd(["LVEDV", "RVEDV"])({"LVEDV": None, "RVEDV": 150.0})["attributes"]
    assert vector[0].isnan()
    assert vector[1] == 150


@pytest.mark.parametrize("zoom", [0.8, 1.3])
def test_zoom_scales_volumes_by_its_square(zoom):
    disc = torch.from_numpy((np.hypot(*np.mgrid[-32:32, -32:32]) < 15).astype(np.float32))[None]
    names = ["LVEDV", "LVEF", "RVEDA"]
    move = RandAffineHeartd(["image"], 1, 0.3, 3, (zoom, zoom), names)
    item = move({"image": disc, "attributes": torch.tensor([100.0, 60.0, 20.0])})
    assert item["image"].shape == disc.shape
    assert float(item["image"].sum() / disc.sum()) == pytest.approx(zoom**2, rel=0.03)
    assert item["attributes"].tolist() == pytest.approx([100 * zoom**2, 60, 20 * zoom**2], rel=1e-4)


def test_attributes_follow_the_zoom_that_the_image_got():
    disc = torch.from_numpy((np.hypot(*np.mgrid[-32:32, -32:32]) < 12).astype(np.float32))[None]
    move = RandAffineHeartd(["image"], 1, 0.3, 0, (0.7, 1.5), ["LVEDV"])
    for _ in range(5):
        item = move({"image": disc, "attributes": torch.ones(1)})
        assert float(item["attributes"]) == pytest.approx(float(item["image"].sum() / disc.sum()), rel=0.03)


def test_zoom_does_not_distort():
    disc = torch.from_numpy((np.hypot(*np.mgrid[-32:32, -32:32]) < 12).astype(np.float32))[None]
    move = RandAffineHeartd(["image"], 1, 0, 0, (0.7, 1.5), ["LVEDV"])
    for _ in range(5):
        extent = np.ptp(
            np.argwhere(move({"image": disc, "attributes": torch.ones(1)})["image"][0].numpy() > 0.5), axis=0
        )
        assert abs(extent[0] - extent[1]) <= 1


def test_without_a_zoom_volumes_stay():
    item = {"image": torch.rand(1, 8, 8), "attributes": torch.tensor([100.0])}
    assert RandAffineHeartd(["image"], 0, 0, 0, (0.5, 0.6), ["LVEDV"])(item)["attributes"] == 100
    assert RandAffineHeartd(["image"], 1, 0.2, 0, (1, 1), ["LVEDV"])(item)["attributes"] == pytest.approx(100)


@pytest.mark.parametrize("shape", [(1, 30, 40), (2, 33, 21)])
def test_an_image_moves_as_monai_moves_it(shape):
    image = torch.rand(shape)
    move = RandAffineHeartd(["image"], 1, 0.4, 5, (0.7, 1.4), ["LVEDV"]).set_random_state(2)
    moved = move({"image": image, "attributes": torch.ones(1)})["image"]
    matrix = np.eye(3)
    cosine, sine = np.cos(move.angle), np.sin(move.angle)
    matrix[:2, :2] = np.array([[cosine, sine], [-sine, cosine]]) / move.zoom  # rows before columns
    matrix[:2, 2] = move.shift[::-1]
    theirs = Affine(affine=matrix, image_only=True, padding_mode="zeros")
    assert torch.allclose(moved, theirs(image).as_tensor(), atol=1e-5)
    assert not torch.allclose(moved, image, atol=0.1)


def test_moves_are_drawn_over_their_whole_range():
    move = RandAffineHeartd(["image"], 0.5, 0.4, 5, (0.5, 2), ["LVEDV"]).set_random_state(0)
    drawn = []
    for _ in range(2000):
        move.randomize()
        if move._do_transform:
            drawn.append([move.angle, *move.shift, 1 / move.zoom])
    assert len(drawn) == pytest.approx(1000, rel=0.1)
    assert np.allclose(np.min(drawn, axis=0), [-0.4, -5, -5, 0.5], rtol=0.03, atol=0.02)
    assert np.allclose(np.max(drawn, axis=0), [0.4, 5, 5, 2], rtol=0.03, atol=0.02)
    assert np.allclose(np.mean(drawn, axis=0), [0, 0, 0, 1.25], atol=0.3)
    assert abs(np.corrcoef(drawn, rowvar=False)[1, 2]) < 0.2


def test_zoom_follows_the_seed():
    item = {"image": torch.rand(1, 8, 8), "attributes": torch.tensor([100.0])}
    first, second = (
        RandAffineHeartd(["image"], 1, 0, 0, (0.8, 1.2), ["LVEDV"]).set_random_state(3)(item)["attributes"]
        for _ in range(2)
    )
    assert first == second != 100


@pytest.mark.parametrize("phases", [[], ["ED", "EX"], "diastole"])
def test_unknown_phases_are_refused(phases):
    with pytest.raises(ValueError, match="are not valid"):
        LoadSubjectd(phases)


def test_smoothing_has_the_width_of_the_shrinking_along_each_axis():
    image = MetaTensor(torch.rand(1, 30, 30, 3))
    smooth = low_pass(image, 1, np.array([0.9, 1.8, 10]), spacing=2.7)
    expected = ndimage.gaussian_filter(image[0, ..., 1].numpy(), (1.0, 0.25))
    assert np.allclose(smooth[0, ..., 1], expected, atol=1e-6)
    assert torch.equal(smooth[..., [0, 2]].as_tensor(), image[..., [0, 2]].as_tensor())


def test_each_phase_has_its_own_mask_slice_and_place(heart_mask):
    shifted = np.roll(heart_mask, 5, axis=1)
    ed, es = subject(heart_mask), subject(shifted)
    item = ed | {key: es[key] for key in ("image_ES", "mask_ES")} | {"basal_slice_ES": 2}
    crops = VentricleCropd(PHASES, SIZE, 1.8)(item)
    areas = []
    for phase in PHASES:
        crop = crops[f"image_{phase}"].numpy()[0, ..., 0]
        assert np.allclose(centers(crop)[0], 31.5, atol=0.6)
        areas.append((crop > 2.5).sum())
    assert areas[1] < areas[0]  # slice 2 is nearer to the apex


def test_loading_keeps_the_geometry_and_each_phases_frame(tmp_path, heart_mask):
    affine = oblique((1.5, 1.6, 9))
    write_volume(tmp_path / "sa.nii.gz", np.stack([heart_mask, heart_mask * 0], -1), affine, 0.03)
    item = {f"{kind}_{phase}": str(tmp_path / "sa.nii.gz") for kind in ("image", "mask") for phase in PHASES}
    loaded = LoadSubjectd()(item | {"frame_ED": 0, "frame_ES": 1})
    assert np.allclose(loaded["image_ED"].affine, affine, atol=1e-5)
    assert loaded["mask_ED"].sum() > 0 == loaded["mask_ES"].sum()


@pytest.mark.parametrize(
    ("size", "spacing", "message"),
    [((64,), 1.8, "two positive numbers"), (64, 1.8, "two positive numbers"), (SIZE, 0, "pixel size in mm")],
)
def test_a_crop_without_extent_is_refused(size, spacing, message):
    with pytest.raises(ValueError, match=message):
        VentricleCropd(PHASES, size, spacing)


def test_a_scan_that_broke_after_prepare_is_told(tmp_path, heart_mask):
    path = tmp_path / "subject7" / "sa_ED.nii.gz"
    path.parent.mkdir()
    write_volume(path, heart_mask, oblique((1.8, 1.8, 10)))
    item = {"image_ED": str(path), "mask_ED": str(path), "frame_ED": None}
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(SubjectError, match=r"^sa_ED.*run prepare again"):
        LoadSubjectd(["ED"])(item)


def test_a_slice_that_is_not_there_is_named(heart_mask):
    with pytest.raises(SubjectError, match="slice 99 is not one of the 8 slices"):
        VentricleCropd(PHASES, SIZE, 1.8)(subject(heart_mask) | {"basal_slice_ED": 99})


STACK = View(PHASES, "stack", "masks", stack_slices=10)
LIST = View(PHASES, ["basal", "mid", "apical"])
SPACING = 1.8


def long_heart(order=1, distance=10.0):
    """A heart of 70 mm in 12 slices, the base in slice 2 of those from base to apex, and its item."""
    x, y = np.meshgrid(np.arange(60), np.arange(60), indexing="ij")
    mask = np.zeros((60, 60, 12), np.uint8)
    for z in range(2, 2 + int(70 / distance)):
        size = 10 - (z - 2) * distance / 10
        mask[..., z][np.hypot(x - 16, y - 30) < size] = 3
        mask[..., z][np.hypot(x - 34, y - 30) < size + 2] = 2
        mask[..., z][np.hypot(x - 34, y - 30) < size] = 1
    return subject(np.ascontiguousarray(mask[..., ::order]), (1.8, 1.8, distance))


@pytest.fixture(params=[1, -1], ids=["base first", "apex first"])
def order(request):
    return request.param


def areas(volume):
    """How much of a heart each slice of (1, ..., slices) shows; an interpolation in plane keeps sums."""
    return np.asarray(volume)[0].sum((0, 1))


def tapering(first, last, count, order):
    """LV and RV, smaller from slice to slice, which the LV shows in the first to the last of them, the RV one less."""
    mask = np.zeros((40, 20, count), np.uint8)
    for z in range(first, last + 1):
        mask[2 : 30 - z, 2:6, z] = 1
        if z < last:
            mask[2 : 30 - z, 10:14, z] = 3
    return mask if order > 0 else mask[..., ::-1]


@pytest.mark.parametrize(
    ("slices", "last", "first", "step"),
    [
        (
            ["basal", "mid", "apical"],
            10,
            1,
            4,
        ),  # 0.8 of the 9 slices from the base to the last that shows the LV, in two
        (["basal", "apical"], 10, 1, 8),
        (["mid", "apical"], 10, 5, 4),
        (["apical"], 10, 9, 4),
        (["basal", "mid"], 2, 1, 1),  # as near to each other as slices are
        ("basal", 10, 1, 1),
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_where_the_slices_of_a_list_lie(slices, last, first, step, order):
    mask = tapering(1, last, 13, order)
    mirrored = slices != "basal"  # whose crop has one slice, and no way to go
    rows = rows_of(View(["ED"], slices), {"ED": mask}, "ED", 1 if order > 0 else 11, 10.0)
    assert rows.basal == (1 if order > 0 else 11)
    assert (rows.first, rows.step) == ((first, step) if order > 0 else (12 - first, -step if mirrored else step))
    shown = [rows.basal] if slices == "basal" else [z for z in range(13) if 3 in mask[..., z]]
    assert list(rows.aligned) == shown


def test_the_slice_behind_the_last_is_none_of_the_scan():
    mask = tapering(1, 10, 13, 1)
    for basal in (-1, 13):
        with pytest.raises(SubjectError, match=f"slice {basal} is not one of the 13 slices"):
            rows_of(View(["ED"]), {"ED": mask}, "ED", basal, 10.0)


def test_a_structure_that_a_slice_does_not_show_is_named():
    with pytest.raises(SubjectError, match="label 3 is not shown in the slice"):
        barycenter(np.ones((4, 4)), 3, np.ones(3))


def test_a_stack_runs_from_one_slice_above_the_base_to_the_apex(order):
    item = VentricleCropd(STACK, SIZE, SPACING)(long_heart(order))
    given = areas(long_heart(1)["image_ED"])
    assert np.allclose(areas(item["image_ED"]), given[1:11], rtol=0.03)  # ten slices from the one above the base
    assert given[2:9].all()
    assert not given[[1, 9, 10]].any()


def test_beyond_the_scan_a_stack_is_zero(order):
    scan = long_heart(order)
    scan["image_ED"] += 1  # so that the background is not zero
    stack = VentricleCropd(View(PHASES, "stack", stack_slices=14), SIZE, SPACING)(scan)["image_ED"]
    assert stack[:, 20:44, 20:44, :11].amin() > 0.9
    assert stack[..., 11:].abs().max() < 1e-4


def test_one_center_and_rotation_serve_all_slices(order):
    mask = long_heart(order)["mask_ED"].numpy()[0]
    apex = 8 if order == 1 else 3
    mask[..., apex] = np.roll(mask[..., apex], 4, axis=1)  # an apex that lies elsewhere
    crop = VentricleCropd(STACK, SIZE, SPACING)(subject(mask))["image_ED"].numpy()[0]
    shift = np.subtract(centers(crop[..., 7])[0], centers(crop[..., 1])[0])
    assert np.hypot(*shift) == pytest.approx(4, abs=0.3)
    assert np.allclose(centers(crop[..., 1])[0], 31.5, atol=0.6)  # one small slice moves the center little


def test_maps_show_the_structures_where_the_image_does(order):
    item = VentricleCropd(STACK, SIZE, SPACING)(long_heart(order))
    image, maps = item["image_ED"].numpy()[0], item["maps_ED"].numpy()
    assert maps.shape == (3, *SIZE, 10)
    assert np.allclose(maps[0] * 3 + maps[1] * 1 + maps[2] * 2, image, atol=1e-4)
    assert 0 <= maps.min() < maps.max() <= 1 + 1e-6


def test_maps_are_smoothed_as_the_image_is():
    item = VentricleCropd(STACK, (32, 32), 3.6)(long_heart())
    maps = item["maps_ED"].numpy()
    assert np.allclose(maps[0] * 3 + maps[1] * 1 + maps[2] * 2, item["image_ED"].numpy()[0], atol=1e-4)
    assert ((maps > 0.05) & (maps < 0.95)).sum() > 200  # every other voxel would be 0 or 1


@pytest.mark.parametrize("distance", [10.0, 8.0])
def test_a_stack_returns_to_the_scans_own_grid(order, distance):
    view = View(PHASES, "stack", "masks", stack_slices=12)
    original, pipeline = long_heart(order, distance), Compose([VentricleCropd(view, SIZE, SPACING)])
    item = pipeline(long_heart(order, distance))
    item |= {f"pred{key[5:]}": MetaTensor(item[key].clone().as_tensor()) for key in ("image_ED", "image_ES")}
    item["pred_maps_ED"] = MetaTensor(item["maps_ED"].clone().as_tensor())
    back = Invertd(["pred_ED", "pred_maps_ED"], pipeline, ["image_ED", "maps_ED"], nearest_interp=False)(item)
    assert back["pred_ED"].shape == original["image_ED"].shape
    assert torch.allclose(back["pred_ED"].affine, original["image_ED"].affine)
    labels, mask = map_labels(back["pred_maps_ED"].as_tensor(), 0).numpy(), original["mask_ED"].numpy()[0]
    for label in (1, 2, 3):
        ours, theirs = labels == label, mask == label
        # Of slices 10 mm apart, those 8 mm apart are interpolated twice.
        assert 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) > (0.97 if distance == 10 else 0.87)


def test_a_list_shows_whole_slices_from_base_to_apex(order):
    item = VentricleCropd(LIST, SIZE, SPACING)(long_heart(order))
    given = areas(long_heart(1)["image_ED"])
    assert np.allclose(areas(item["image_ED"]), given[[2, 4, 6]], rtol=0.03)
    lower = VentricleCropd(View(PHASES, ["mid", "apical"]), SIZE, SPACING)(long_heart(order))
    assert torch.allclose(lower["image_ED"].as_tensor(), item["image_ED"][..., 1:].as_tensor(), atol=1e-5)


def test_a_list_returns_to_its_own_slices_only(order):
    crop = VentricleCropd(LIST, SIZE, SPACING)
    back = crop.inverse({key: crop(long_heart(order))[key] for key in crop.keys})["image_ED"]
    expected = {2, 4, 6} if order == 1 else {11 - 2, 11 - 4, 11 - 6}
    assert set(np.flatnonzero(back.numpy().any((0, 1, 2)))) == expected


def test_a_view_of_several_slices_needs_one_with_lv_and_rv():
    item = long_heart()
    for phase in PHASES:
        mask = item[f"mask_{phase}"]
        mask[0, ..., 2:6][mask[0, ..., 2:6] == 3] = 0
        mask[0, ..., 6:][mask[0, ..., 6:] == 1] = 0
    with pytest.raises(SubjectError, match="no slice shows LV and RV"):
        VentricleCropd(STACK, SIZE, SPACING)(item)


def test_moves_take_maps_along():
    disc = torch.from_numpy((np.hypot(*np.mgrid[-32:32, -32:32]) < 12).astype(np.float32))
    view = View(["ED"], anatomy="masks")
    image = disc.expand(view.channels, -1, -1)
    moved = RandAffineHeartd(["image"], 1, 0.3, 5, (0.8, 1.2), ["LVEDV"])({"image": image, "attributes": torch.ones(1)})
    assert torch.equal(moved["image"][:1].expand(4, -1, -1), moved["image"])
    assert float(moved["image"][1].sum() / disc.sum()) == pytest.approx(float(moved["attributes"]), rel=0.03)


def test_contrast_changes_images_alike_and_maps_never():
    view = View(PHASES, anatomy="masks")
    image = torch.rand(1, 8, 8).expand(view.channels, -1, -1)
    changed = RandAdjustContrastHeartd(view, keys=["image"], prob=1, gamma=[2, 3])({"image": image})["image"]
    assert torch.equal(changed[0], changed[1])
    assert (changed[0] - image[0]).abs().max() > 0.1
    assert torch.equal(changed[2:], image[2:])


def test_contrast_of_a_view_without_maps_is_monais():
    image = torch.rand(2, 8, 8)
    ours = RandAdjustContrastHeartd(PHASES, keys=["image"], prob=0.9, gamma=[0.5, 2]).set_random_state(4)
    theirs = RandAdjustContrastd(keys=["image"], prob=0.9, gamma=[0.5, 2]).set_random_state(4)
    for _ in range(5):
        assert torch.equal(ours({"image": image})["image"], theirs({"image": image})["image"])


@pytest.mark.slow
def test_maps_have_the_volumes_of_the_masks(prepared, phantoms):
    items = load_items(prepared / "datalist.json", phantoms, "training")
    view = View(PHASES, "stack", "masks")
    transform = Compose([LoadSubjectd(PHASES), VentricleCropd(view, SIZE, 2.5), ViewsToChannelsd(view)])
    for item in items:
        volumes = view.volumes(transform(item)["image"], spacing=2.5)
        for name, value in volumes.items():
            assert float(value) == pytest.approx(item[name], rel=0.01)
