"""metadata.json: the one place of the version, and what it says of the weights that are packaged with it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scripts.packaging.contents import METADATA
from scripts.packaging.findings import Finding
from scripts.views import View

VERSION = re.compile(r"\d+\.\d+\.\d+")
REQUIRED = (
    *("schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version"),
    *("required_packages_version", "task", "description", "authors", "copyright", "intended_use", "limits"),
    *("data_license", "network_data_format", "encoder_data_format", "decoder_data_format", "eval_metrics"),
)
# Other files of a checkout that repeat the version, since their formats cannot refer to it.
REPEATED = {
    "pyproject.toml": re.compile(r'^version = "(.*)"$', re.MULTILINE),
    "CITATION.cff": re.compile(r"^version: (.*)$", re.MULTILINE),
    "CHANGELOG.md": re.compile(r"^## (.*)$", re.MULTILINE),
}
UNMEASURED = "not measured on these weights"


def check_metadata(metadata: Mapping[str, Any], repository: Path) -> Iterator[Finding]:
    """Findings in the metadata.

    Args:
        metadata: content of metadata.json.
        repository: the folder of the files that repeat the version, where there are any.
    """
    absent = [key for key in REQUIRED if not metadata.get(key)]
    if absent:
        yield Finding(METADATA, f"lacks {', '.join(absent)}: fill it in.")
        return
    version, changes = metadata["version"], list(metadata["changelog"])
    if not VERSION.fullmatch(version):
        yield Finding(f"{METADATA}, key 'version'", f"is '{version}': write three numbers, such as 0.1.0.")
    elif changes[0] != version or any(number(other) > number(version) for other in changes):
        yield Finding(
            f"{METADATA}, key 'changelog'",
            f"has the newest entry {changes[0]}, and the version is {version}: put an entry for {version} first.",
        )
    for name, pattern in REPEATED.items():
        found = pattern.search((repository / name).read_text()) if (repository / name).is_file() else None
        if found and found[1].strip("'\" ") != version:
            yield Finding(f"../{name}", f"has version {found[1]}, {METADATA} has {version}: write the latter there.")


def check_schema(metadata: Mapping[str, Any], schema: Path) -> Iterator[Finding]:
    """Findings of a copy of the schema that the metadata name.

    Raises:
        ImportError: where jsonschema is not installed.
    """
    from jsonschema import Draft201909Validator  # only who develops the bundle has it

    if Path(metadata.get("schema", "")).name != schema.name:
        yield Finding(f"{METADATA}, key 'schema'", f"does not end in {schema.name}, the copy given by --schema.")
    for error in Draft201909Validator(json.loads(schema.read_text())).iter_errors(metadata):
        place = "#".join(map(str, error.absolute_path))
        yield Finding(f"{METADATA}, key '{place}'", f"does not fit the schema: {error.message}.")


def number(version: str) -> tuple[int, ...]:
    """A version as numbers that compare; 0 for what has none."""
    return tuple(int(part) for part in re.findall(r"\d+", version)) or (0,)


def of_model(metadata: Mapping[str, Any], values: Mapping[str, Any], sha256: str) -> dict[str, Any]:
    """The metadata of the packaged weights: shapes are theirs, and figures are left out that belong to others.

    Args:
        metadata: of the checkout, whose shapes are those of the paper's settings.
        values: ``spatial_size``, ``latent_dim``, ``attributes`` and what makes a ``View`` of the weights' config.
        sha256: of the weights.
    """
    content = json.loads(json.dumps(metadata))
    view = View.of(values)
    content["image_classes"] = content["image_classes"].replace(View().description, view.description)
    channels = {str(k): name for k, name in enumerate(view.channel_names)}
    dimensions = {str(k): name for k, name in enumerate(values["attributes"])}
    for network in ("network", "encoder", "decoder"):
        for tensors in content[f"{network}_data_format"].values():
            for tensor in tensors.values():
                if tensor["type"] == "image":
                    shape = {"num_channels": len(channels), "spatial_shape": list(values["spatial_size"])}
                    tensor |= shape | {"channel_def": channels}
                else:
                    tensor |= {"num_channels": values["latent_dim"], "channel_def": dimensions}
    if not is_measured(metadata, sha256):
        content["eval_metrics"] = {"protocol": UNMEASURED}
    return content


def is_measured(metadata: Mapping[str, Any], sha256: str) -> bool:
    """Whether the metadata have figures of these weights."""
    return metadata["eval_metrics"].get("model_sha256") == sha256
