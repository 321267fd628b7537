"""The files of a bundle: which belong to the archive, and which must not be there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from scripts import shipped
from scripts.packaging.findings import Finding

MODEL, SETTINGS, CALIBRATION = "models/model.pt", "models/settings.json", "models/calibration.json"
SEGMENTATION, SAFETENSORS = "models/segmentation.pt", "models/model.safetensors"
CHECKSUMS = f"models/{shipped.CHECKSUMS}"
INFERENCE, TRAINING, METADATA = "configs/inference.json", "configs/train.json", "configs/metadata.json"
LARGE_FILES, DECLARED = shipped.LARGE_FILES, "docs/figures/synthetic.sha256"
WEIGHTS = (MODEL, SEGMENTATION)
REQUIRED = {
    MODEL: "is missing: 'make model' trains it.",
    SETTINGS: "is missing: 'make model' writes it beside the weights; it tells which configs they belong to.",
    CALIBRATION: "is missing: 'make model' writes it, or 'run calibrate' with train.json beside the weights.",
    **dict.fromkeys((INFERENCE, TRAINING, METADATA), "is missing."),
    **dict.fromkeys(("LICENSE", "docs/README.md", "docs/data_license.txt"), "is missing."),
}
LAYOUT = re.compile(
    r"LICENSE|large_files\.yml|configs/[\w.-]+\.json|configs/logging\.conf|docs/[\w.-]+\.(?:md|txt)"
    r"|docs/figures/[\w.-]+\.png|docs/figures/synthetic\.sha256|scripts/(?:\w+/)*\w+\.py"
    r"|scripts/report_page/page\.(?:html|css|js)"  # by name: a page that was written holds pictures of subjects
    r"|models/(?:model\.pt|segmentation\.pt|settings\.json|calibration\.json|model\.safetensors|checksums\.sha256)"
)
# The trunks of the perceptual loss are fetched by the user; the rest are caches.
SKIPPED = re.compile(r"models/trunks/.*|(?:.*/)?(?:__pycache__|\.ruff_cache|\.pytest_cache)/.*|(?:.*/)?\.DS_Store")
LINKS = ("scripts", "LICENSE")  # of a checkout, whose bundle folder shares them with the repository
CARRIERS = {
    r"datalist[^/]*\.json": "a datalist, which lists subjects: take it out of the bundle.",
    r"[^/]*\.(?:csv|tsv|xlsx?|ods|parquet|jsonl)": "a table, which may list subjects: take it out of the bundle.",
    r"[^/]*\.(?:nii|nii\.gz|dcm|mha|mhd|nrrd|hdr|img|npy|npz|h5|zip|tar|gz)": "a scan, or may hold one: "
    "take it out of the bundle.",
    r"[^/]*\.(?:png|jpe?g|gif|tiff?|bmp|webp|svg|pdf)": "an image that may show a patient: only PNG files in "
    "docs/figures are packaged.",
    r"[^/]*\.(?:pt|pth|ckpt|ts|onnx|pkl|pickle)": f"a checkpoint other than {' and '.join(WEIGHTS)}: "
    "take it out of the bundle.",
}
TEXTS = (".json", ".conf", ".md", ".txt", ".py", ".yml", ".sha256", ".html", ".css", ".js")


def collect(bundle_root: str | os.PathLike) -> tuple[dict[str, bytes], list[Finding]]:
    """Read a bundle.

    Returns:
        name within the bundle -> content, texts with line feeds only; and findings on files that have no place in it.
    """
    contents, findings = {}, []
    for name, path in walk(Path(bundle_root)):
        reason = objection(name, path)
        if reason:
            findings.append(Finding(name, reason))
        else:
            data = path.read_bytes()
            contents[name] = data.replace(b"\r\n", b"\n") if is_text(name) else data
    absent = REQUIRED.keys() - contents.keys() - {finding.place for finding in findings}
    return contents, findings + [Finding(name, REQUIRED[name]) for name in absent]


def walk(root: Path) -> Iterator[tuple[str, Path]]:
    """All files of a bundle but caches and trunks, each with its name within the bundle."""
    for top in sorted(root.iterdir()):
        resolved = top.resolve() if top.name in LINKS else top
        found = [top] if not resolved.is_dir() or resolved.is_symlink() else resolved.rglob("*")
        for path in sorted(found):
            name = top.name if path == top else f"{top.name}/{path.relative_to(resolved).as_posix()}"
            if (path.is_symlink() or not path.is_dir()) and not SKIPPED.fullmatch(name):
                yield name, path


def objection(name: str, path: Path) -> str | None:
    """Why a file has no place in the archive; None for one that has."""
    if path.is_symlink() and name not in LINKS:
        return "is a link, whose target may be anything: put the file itself there, or take it out."
    if not path.is_file():
        return "is not a file that can be read."
    folder, file = os.path.split(name)
    for pattern, reason in CARRIERS.items():
        if re.fullmatch(pattern, file, re.IGNORECASE) and not (LAYOUT.fullmatch(name) and folder != "configs"):
            return f"is {reason}"
    if not LAYOUT.fullmatch(name):
        return "is no file of a bundle (LICENSE, configs, docs, models, scripts, large_files.yml): take it out."
    return None


def is_text(name: str) -> bool:
    """Whether a file is read as text."""
    return name == "LICENSE" or name.endswith(TEXTS)
