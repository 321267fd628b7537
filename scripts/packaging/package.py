"""From a bundle to its archive: gather, fit to the weights, check, and only then write."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch

from scripts.calibration.calibration import Calibration
from scripts.checkpoint import refuse_other_settings
from scripts.export import safetensors
from scripts.packaging.archive import write_archive, write_checksum
from scripts.packaging.checksums import list_checksums
from scripts.packaging.configs import ModelConfig, merge_overlays
from scripts.packaging.contents import (
    CALIBRATION,
    CHECKSUMS,
    INFERENCE,
    METADATA,
    MODEL,
    SAFETENSORS,
    SEGMENTATION,
    SETTINGS,
    TRAINING,
    collect,
    is_text,
)
from scripts.packaging.findings import Finding, Refused
from scripts.packaging.identifiers import Names, identifiers
from scripts.packaging.images import check_image, read_declared
from scripts.packaging.large_files import check_large, large_files, list_large
from scripts.packaging.metadata import check_metadata, check_schema, is_measured, of_model
from scripts.packaging.texts import check_text, own_paths
from scripts.packaging.weights import check_weights
from scripts.storage import output_folder

NAME = "ventricular_short_axis_arsivae"


class Package(NamedTuple):
    """What was written.

    Args:
        path: of the archive.
        sha256: of the archive.
        files: in it.
        notes: what whoever publishes it has to know.
    """

    path: Path
    sha256: str
    files: int
    notes: list[str]


def package(
    bundle_root: str | os.PathLike,
    dist: str | os.PathLike = "dist",
    overlays: Sequence[str] = ("compact.json",),
    subjects: Sequence[str] | set[str] = (),
    urls: Mapping[str, str] | None = None,
    schema: str | os.PathLike | None = None,
) -> Package:
    """Write ``<dist>/ventricular_short_axis_arsivae_v<version>.zip`` and its checksum.

    Args:
        bundle_root: the bundle.
        dist: folder of the archive.
        overlays: that the weights were trained with.
        subjects: names that must not be in it, beside what looks like one.
        urls: name -> URL of weights that are too large.
        schema: a copy of the schema of metadata.json; None leaves its check out.

    Raises:
        Refused: with everything that must not be packaged; nothing is written then.
    """
    root, names, urls = Path(bundle_root), Names(subjects), urls or {}
    contents, findings = collect(root)
    contents = {name: data for name, data in contents.items() if name not in (SAFETENSORS, CHECKSUMS)}  # made anew
    if findings_on_parts(contents):  # what follows reads them
        raise Refused(findings + findings_on_parts(contents) + list(check_contents(contents, names, root)))
    contents |= merge_overlays(contents, overlays)
    metadata = json.loads(contents[METADATA])
    findings += check_contents(contents, names, root)
    findings += check_metadata(metadata, root.absolute().parent)
    findings += check_schema(metadata, Path(schema)) if schema else []
    findings += chain(check_large(contents, urls), check_urls(urls, names), check_model(contents, names, root))
    if findings:
        raise Refused(findings)
    sha256 = hashlib.sha256(contents[MODEL]).hexdigest()
    fitted = of_model(metadata, ModelConfig(contents[INFERENCE]).values, sha256)
    contents[METADATA] = (json.dumps(fitted, indent=4, ensure_ascii=False) + "\n").encode()
    contents |= safetensors_of(contents)
    contents = list_large(contents | list_checksums(contents), urls)
    path = output_folder(dist, "dist") / f"{NAME}_v{metadata['version']}.zip"
    write_archive(path, NAME, contents)
    return Package(path, write_checksum(path), len(contents), notes(metadata, sha256, names, schema))


def findings_on_parts(contents: Mapping[str, bytes]) -> list[Finding]:
    """Findings on JSON files without which no other check makes sense."""
    found = []
    for name in [name for name in contents if name.endswith(".json")]:
        try:
            readable = isinstance(json.loads(contents[name]), dict)
        except ValueError:
            readable = False
        if not readable:
            found.append(Finding(name, "is no object of JSON: mend it."))
    return found


def check_contents(contents: Mapping[str, bytes], names: Names, root: Path) -> Iterator[Finding]:
    """Findings in names, texts and images."""
    declared, paths = read_declared(dict(contents)), own_paths(root)
    for name, data in contents.items():
        yield from (Finding(name, f"has {found} in its name: rename it.") for found in identifiers(name, names, name))
        if is_text(name):
            yield from check_text(name, data, names, paths)
        elif name.endswith(".png"):
            yield from check_image(name, data, declared)


def check_urls(urls: Mapping[str, str], names: Names) -> Iterator[Finding]:
    """Findings in addresses that the archive will name."""
    for name, url in urls.items():
        yield from (
            Finding(f"--url {name}", f"names {found}: rename it there.") for found in identifiers(url, names, "")
        )


def check_model(contents: Mapping[str, bytes], names: Names, root: Path) -> Iterator[Finding]:
    """Findings in the checkpoints and in what binds them to configs and calibration."""
    try:
        config = ModelConfig(contents[INFERENCE])
    except Exception as error:  # whatever the config's own code raises
        yield Finding(INFERENCE, f"defines no network ({error}): mend it.")
        return
    if MODEL in contents:
        yield from check_weights(MODEL, contents[MODEL], config.network, names)
        yield from check_beside(contents, config.settings, root)
    if SEGMENTATION in contents:
        yield from check_weights(SEGMENTATION, contents[SEGMENTATION], None, names)


def check_beside(contents: Mapping[str, bytes], settings: Mapping[str, Any], root: Path) -> Iterator[Finding]:
    """Findings in the files beside the weights: those of another training, and what no training writes."""
    known = json.loads(contents.get(SETTINGS, b"{}"))
    for key in known.keys() - json.loads(contents[TRAINING]).keys() - {"cohort"}:
        yield Finding(f"{SETTINGS}, key '{key}'", "is no setting of a training: take it out.")
    if not re.fullmatch(r"[0-9a-f]{64}", str(known.get("cohort"))):
        yield Finding(f"{SETTINGS}, key 'cohort'", "is no hash of a datalist, which is all that a training writes.")
    for key in settings.keys() - known.keys():
        yield Finding(f"{SETTINGS}, key '{key}'", "is missing: take the file that the training wrote.")
    try:
        refuse_other_settings(known, settings, Path(SETTINGS))
    except ValueError:
        yield Finding(SETTINGS, "is of other configs: name the overlays of the training by --overlay.")
    if CALIBRATION in contents:
        try:
            Calibration.read(root / CALIBRATION, hashlib.sha256(contents[MODEL]).hexdigest())
        except (FileNotFoundError, ValueError) as error:
            yield Finding(CALIBRATION, f"does not belong to the weights ({error}).")


def safetensors_of(contents: Mapping[str, bytes]) -> dict[str, bytes]:
    """The weights once more as safetensors, where they are small enough to be packaged."""
    if MODEL in large_files(contents):
        return {}
    weights = torch.load(io.BytesIO(contents[MODEL]), map_location="cpu", weights_only=True)
    return {SAFETENSORS: safetensors(weights, ModelConfig(contents[INFERENCE]).settings)}


def notes(metadata: Mapping[str, Any], sha256: str, names: Names, schema: str | os.PathLike | None) -> list[str]:
    """What was not checked or is not there."""
    found = []
    if not is_measured(metadata, sha256):
        found.append(
            f"metadata.json has no figures of these weights (eval_metrics, model_sha256 {sha256}): the archive says so."
        )
    if names.too_short:
        found.append(f"{names.too_short} subject name(s) are too short to be looked for.")
    if not schema:
        found.append("metadata.json was not compared with its schema: give a copy by --schema.")
    return found
