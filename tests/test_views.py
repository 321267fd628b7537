from __future__ import annotations

import json
import pickle

import pytest
import torch

from scripts.views import View, as_view, map_labels

LIST = ["basal", "mid", "apical"]


def test_images_come_first_phase_by_phase_then_maps():
    view = View(["ED", "ES"], ["basal", "apical"], "masks")
    assert view.channel_names[:4] == ("ED basal", "ED apical", "ES basal", "ES apical")
    assert view.channel_names[4:8] == ("ED basal LV", "ED basal Myo", "ED basal RV", "ED apical LV")
    assert (view.images, view.channels) == (4, len(view.channel_names)) == (4, 16)


def test_names_lead_to_the_channels():
    view = View(["ED", "ES"], "stack", "masks", stack_slices=5)
    values = torch.arange(view.channels).float()[:, None, None].expand(-1, 2, 2)
    images, maps = view.slice_images(values), view.slice_maps(values)
    name = view.channel_names.index
    assert images[1, 2, 0, 0] == name("ES 10 mm below")
    assert maps[1, 1, 2, 0, 0] == name("ES base RV")
    assert maps[0, 4, 0, 0, 0] == name("ED 30 mm below LV")


def test_the_papers_view_has_a_channel_per_phase():
    view = View(["ES"])
    assert view.channel_names == ("ES",)
    assert view.slice_maps(torch.rand(1, 4, 4)) is None
    assert as_view(["ES"]) == as_view(view) == view


@pytest.mark.parametrize("slices", ["basal", "stack", LIST, ["mid"]])
@pytest.mark.parametrize("anatomy", ["none", "masks"])
def test_settings_survive_json_and_give_the_view_back(slices, anatomy):
    view = View(["ED"], slices, anatomy, stack_slices=8, slice_distance=8)
    settings = json.loads(json.dumps(view.settings))
    assert View.of(settings | {"spacing": 1.8}).settings == view.settings
    assert View.of(settings).channel_names == view.channel_names
    assert pickle.loads(pickle.dumps(view)) == view  # a cache is named by it


def test_settings_of_old_models_mean_the_basal_slice():
    assert View.of({"phases": ["ED", "ES"], "spacing": 1.8}) == View()


def test_numbers_of_a_stack_are_no_setting_of_other_views():
    assert View(stack_slices=3).settings == View(stack_slices=9).settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"slices": "apical"}, "slices 'apical' is not a view"),
        ({"slices": ["apical", "basal"]}, "in this order"),
        ({"slices": ["basal", "basal"]}, "is not a view"),
        ({"slices": []}, "is not a view"),
        ({"anatomy": "mask"}, "anatomy 'mask' is unknown; expected one of none, masks"),
        ({"stack_slices": 0}, "stack_slices 0 needs"),
        ({"slice_distance": -10}, "slice_distance -10 needs"),
        ({"phases": ["EX"]}, "are not valid"),
    ],
)
def test_mistakes_name_their_key(values, message):
    with pytest.raises(ValueError, match=message):
        View(**values)


def test_pictures_show_base_and_lower_slices_of_a_stack():
    assert View(slices="stack").pictured == (1, 4, 7)
    assert View(slices=LIST).pictured == (0, 1, 2)
    assert View().pictured == (0,)


def test_slices_beyond_the_scan_are_told():
    view = View(["ED"], "stack", "masks", stack_slices=4)
    values = torch.ones(2, view.channels, 4, 4)
    values[1, 3] = 0
    assert view.inside(values).tolist() == [[[True] * 4], [[True, True, True, False]]]


def test_volumes_are_sums_over_slices():
    view = View(["ED", "ES"], "stack", "masks", stack_slices=3, slice_distance=10)
    values = torch.zeros(2, view.channels, 8, 8)
    view.slice_maps(values)[1, 1, :2, 2] = 0.5  # half of two slices of the second subject is RV, at ES
    volumes = view.volumes(values, spacing=2.5)
    assert volumes["RVESV"].tolist() == pytest.approx([0, 2 * 32 * 2.5**2 * 10 / 1000])
    assert set(volumes) == {"LVEDV", "MyoEDV", "RVEDV", "LVESV", "MyoESV", "RVESV"}
    assert volumes["LVESV"].sum() == 0


@pytest.mark.parametrize("view", [View(slices="stack"), View(anatomy="masks")])
def test_volumes_need_maps_of_the_whole_heart(view):
    with pytest.raises(ValueError, match="slices 'stack' and anatomy 'masks'"):
        view.volumes(torch.rand(1, view.channels, 4, 4), 2.5)


def test_the_largest_share_gives_the_label():
    maps = torch.tensor([[0.6, 0.3, 0.2, 0.0], [0.4, 0.3, 0.2, 0.1], [0.0, 0.4, 0.1, 0.2]])
    assert map_labels(maps, 0).tolist() == [1, 3, 0, 0]
