from __future__ import annotations

import io
import zipfile
from collections import OrderedDict

import pytest
import torch
from monai.networks.nets import UNet
from torch import nn

from scripts.packaging.contents import MODEL, SEGMENTATION
from scripts.packaging.identifiers import Names
from scripts.packaging.weights import check_weights
from tests.packaging.examples import saved

NETWORK = nn.Linear(3, 2)
UNET = {"spatial_dims": 2, "in_channels": 1, "out_channels": 4, "channels": [4, 8], "strides": [2]}


def check(data, name=MODEL):
    return list(check_weights(name, data, NETWORK if name == MODEL else None, Names(["anna"])))


def state(**more):
    return NETWORK.state_dict() | more


def with_member(data, name, content):
    buffer = io.BytesIO(data)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def rewritten(data, member, change):
    """The archive with another content of one member."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if name == member else content)
    return buffer.getvalue()


def with_comment(data):
    buffer = io.BytesIO(data)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = b"anna"
    return buffer.getvalue()


def with_hidden_state():
    weights = NETWORK.state_dict()
    weights._metadata = OrderedDict(anna={"version": 1})
    return saved(weights)


def test_the_weights_of_the_network_pass():
    assert check(saved(state())) == []


@pytest.mark.parametrize(
    ("data", "place", "reason"),
    [
        (saved(state(subjects=torch.ones(1))), f"{MODEL}, key 'subjects'", "is not of the network"),
        (saved(state(bias="anna")), f"{MODEL}, key 'bias'", "is a str, no tensor"),
        (saved(state(bias=torch.ones(3))), f"{MODEL}, key 'bias'", r"is (3,), the config's (2,)"),
        (saved(state(bias=torch.ones(9)[:2])), f"{MODEL}, key 'bias'", "carries more values than it shows"),
        (saved({"weight": NETWORK.weight.detach()}), f"{MODEL}, key 'bias'", "is missing: name the overlays"),
        (saved([torch.ones(1)]), MODEL, "holds a list"),
        (saved(NETWORK), MODEL, "cannot be read as tensors only"),
        (b"nothing", MODEL, "is no archive of torch.save"),
        (with_hidden_state(), f"{MODEL}, 'anna'", "names 'anna', a subject of the given cohort"),
        (saved(state(patient001=torch.ones(1))), f"{MODEL}, 'patient001'", "names 'patient001', a numbered subject"),
        (saved(state(x="/home/a/scans")), f"{MODEL}, '/home/a/scans'", "a path of one machine"),
        (with_member(saved(state()), "archive/notes.txt", "x"), f"{MODEL}, member 'archive/notes.txt'", "is not of"),
        (with_comment(saved(state())), MODEL, "has comments"),
        (with_member(saved(state()), "archive/version", "3"), MODEL, "has comments or doubles"),
        (
            rewritten(saved(state()), "archive/version", lambda content: b"Anna"),
            f"{MODEL}, member 'archive/version'",
            "holds what torch.save does not write",
        ),
        (
            rewritten(saved(state()), "archive/data.pkl", lambda content: content + b"Anna"),
            f"{MODEL}, member 'archive/data.pkl'",
            "goes on behind its end",
        ),
        (saved(state(bias=torch.ones(2).double())), f"{MODEL}, key 'bias'", "is torch.float64, the network's"),
        (saved(state(bias=torch.tensor([1, float("nan")]))), f"{MODEL}, key 'bias'", "has values that are not finite"),
    ],
    # The bytes of random weights are no names: older versions of pytest take them, and each worker has its own.
    ids=lambda value: "data" if isinstance(value, bytes) else None,
)
def test_anything_else_is_told_by_its_place(data, place, reason):
    findings = check(data)
    assert place in [finding.place for finding in findings]
    assert reason in " ".join(finding.reason for finding in findings if finding.place == place)


def test_an_archive_named_after_the_file_that_was_written_is_refused(tmp_path):
    torch.save(state(), tmp_path / ".part-machine-17-model.pt")
    ((place, reason),) = check((tmp_path / ".part-machine-17-model.pt").read_bytes())
    assert place == MODEL
    assert "named '.part-machine-17-model' inside" in reason
    torch.save(state(), tmp_path / "model.pt")
    assert check((tmp_path / "model.pt").read_bytes()) == []


def segmentation(**more):
    return {"network": UNet(**UNET).state_dict(), "unet": UNET, "spacing": 1.8, "base_ratio": 0.7} | more


def test_a_segmentation_passes():
    assert check(saved(segmentation()), SEGMENTATION) == []


@pytest.mark.parametrize(
    ("more", "place"),
    [
        ({"subjects": ["anna"]}, f"{SEGMENTATION}, key 'subjects'"),
        ({"unet": {"no": 1}}, f"{SEGMENTATION}, key 'unet'"),
        ({"network": {"x": torch.ones(1)}}, f"{SEGMENTATION}, key 'x'"),
        ({"spacing": "wide"}, SEGMENTATION),
    ],
)
def test_a_segmentation_holds_its_network_and_nothing_else(more, place):
    assert place in [finding.place for finding in check(saved(segmentation(**more)), SEGMENTATION)]
