from __future__ import annotations

import json

import pytest
import torch
from monai.bundle import ConfigParser
from packaging.requirements import Requirement

from scripts.packaging.metadata import UNMEASURED, check_metadata, check_schema, of_model
from scripts.views import View
from tests.conftest import ROOT, shared

METADATA = json.loads((ROOT / "bundle" / "configs" / "metadata.json").read_text())
VALUES = {"spatial_size": [64, 48], "latent_dim": 32, "phases": ["ES"], "attributes": ["LVESV"]}


def reasons(repository=ROOT / "nowhere", **changes):
    return [finding.reason for finding in check_metadata(METADATA | changes, repository)]


def test_the_checkout_has_one_version():
    assert list(check_metadata(METADATA, ROOT)) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": "1.0"}, "write three numbers"),
        ({"version": "0.2.0"}, "newest entry 0.1.0, and the version is 0.2.0"),
        ({"changelog": {"0.1.0": "", "0.10.0": ""}}, "newest entry 0.1.0"),
        ({"limits": ""}, "lacks limits: fill it in"),
    ],
)
def test_a_wrong_version_or_a_gap_is_told(changes, reason):
    assert any(reason in each for each in reasons(**changes))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pyproject.toml", '[project]\nversion = "0.0.9"\n'),
        ("CITATION.cff", "cff-version: 1.2.0\nversion: 0.0.9\n"),
        ("CHANGELOG.md", "# Changelog\n\n## 0.0.9\n"),
    ],
)
def test_a_file_with_another_version_is_told(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    assert reasons(tmp_path) == ["has version 0.0.9, configs/metadata.json has 0.1.0: write the latter there."]


def test_the_schema_is_checked_offline():
    schema = shared("schema/meta_schema_20240725.json")
    assert list(check_schema(METADATA, schema)) == []
    (finding,) = check_schema(METADATA | {"references": "a paper"}, schema)
    assert finding.place == "configs/metadata.json, key 'references'"
    (finding,) = check_schema(METADATA | {"schema": "https://x.org/older.json"}, schema)
    assert "does not end in meta_schema_20240725.json" in finding.reason


def test_all_dependencies_are_named():
    tomllib = pytest.importorskip("tomllib", reason="is part of Python 3.11")
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    apart = {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}
    names = {Requirement(text).name for text in listed} - apart.keys()
    assert names == METADATA["required_packages_version"].keys()
    versions = METADATA["required_packages_version"] | {name: METADATA[key] for name, key in apart.items()}
    assert all(Requirement(text).specifier.contains(versions[Requirement(text).name]) for text in listed)


def tensor(section, part, name):
    given = METADATA[f"{section}_data_format"][part][name]
    return (given["num_channels"], *given["spatial_shape"])


def test_encoder_and_decoder_take_and_give_what_the_metadata_say():
    parser = ConfigParser()
    parser.read_config(str(ROOT / "bundle" / "configs" / "inference.json"))
    with torch.device("meta"):
        network = parser.get_parsed_content("network_def")
        image = torch.zeros(1, *tensor("encoder", "inputs", "image"))
        mean, log_variance = network.encode(image)
        codes = torch.zeros(1, *tensor("decoder", "inputs", "codes"))
        assert network.decode(codes).shape[1:] == tensor("decoder", "outputs", "pred")
    assert mean.shape[1:] == tensor("encoder", "outputs", "mean")
    assert log_variance.shape[1:] == tensor("encoder", "outputs", "log_variance")
    named = METADATA["encoder_data_format"]["outputs"]["mean"]["channel_def"]
    assert list(named.values()) == parser.get_parsed_content("attributes")


def test_shapes_become_those_of_the_weights():
    fitted = of_model(METADATA, VALUES, "")
    image = fitted["network_data_format"]["outputs"]["pred"]
    assert (image["num_channels"], image["spatial_shape"], image["channel_def"]) == (1, [64, 48], {"0": "ES"})
    codes = fitted["decoder_data_format"]["inputs"]["codes"]
    assert (codes["num_channels"], codes["channel_def"]) == (32, {"0": "LVESV"})


def test_channels_of_a_whole_heart_are_named():
    fitted = of_model(METADATA, VALUES | {"slices": "stack", "anatomy": "masks", "stack_slices": 3}, "")
    image = fitted["encoder_data_format"]["inputs"]["image"]
    assert (image["num_channels"], image["channel_def"]["1"], image["channel_def"]["8"]) == (
        12,
        "ES base",
        "ES base RV",
    )
    assert fitted["image_classes"].startswith("3 short-axis slices every 10 mm from one above the base with occupancy")


def test_the_papers_view_is_that_of_the_checkouts_metadata():
    assert of_model(METADATA, VALUES, "")["image_classes"] == METADATA["image_classes"]
    assert METADATA["image_classes"].startswith(View().description)


def test_figures_stay_with_the_weights_that_they_are_of():
    measured = METADATA | {"eval_metrics": {"model_sha256": "abc", "SCC": 0.5}}
    assert of_model(measured, VALUES, "abc")["eval_metrics"] == {"model_sha256": "abc", "SCC": 0.5}
    assert of_model(measured, VALUES, "def")["eval_metrics"] == {"protocol": UNMEASURED}
