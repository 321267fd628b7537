"""Small sound subjects, and what a hostile or unlucky file can be in place of one of their scans and masks."""

from __future__ import annotations

import gzip
import os
import signal
from contextlib import contextmanager, suppress

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from scripts.cohort.layout import write_volume
from scripts.networks import VariationalAutoencoder
from scripts.storage import read_csv
from tests.conftest import ROOT, drawn_mask

AFFINE = np.diag([1.5, 1.6, 8, 1])
CONFIGS = ROOT / "bundle" / "configs"
SIZES = {"channels": [8, 8, 8], "latent_dim": 8}


def write_subject(folder):
    """A subject that passes the quality control, of 20 kB."""
    folder.mkdir(parents=True)
    heart_mask = drawn_mask()
    x, y = np.meshgrid(np.arange(40), np.arange(40), indexing="ij")
    cavity = np.hypot(x - 24, y - 20)[..., None] < 6 - 0.6 * np.arange(8)
    contracted = np.where((heart_mask == 1) & ~cavity, 2, heart_mask).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 900, heart_mask.shape).astype(np.int16)
    for phase, mask in (("ED", heart_mask), ("ES", contracted)):
        write_volume(folder / f"sa_{phase}.nii.gz", noise, AFFINE)
        write_volume(folder / f"label_sa_{phase}.nii.gz", mask, AFFINE)
    return folder


def put(content):
    """Replace a file by bytes."""
    return lambda path: path.write_bytes(content)


def fields(**values):
    """Replace fields of a NIfTI-1 header as they are stored; a list takes the first places of an array."""

    def change(path):
        raw = bytearray(gzip.decompress(path.read_bytes()))
        header = np.frombuffer(raw, nib.Nifti1Header.template_dtype, 1)
        for name, value in values.items():
            target = header[name][0, : len(value)] if isinstance(value, list) else header[name]
            target[...] = value
        path.write_bytes(gzip.compress(bytes(raw), 1))

    return change


def voxels(change):
    """Write a file again with its voxels changed, as float32."""

    def rewrite(path):
        image = nib.load(path)
        write_volume(path, change(np.asarray(image.dataobj, np.float32)), image.affine)

    return rewrite


def one(value):
    """Replace one voxel."""

    def change(array):
        array[20, 20, 3] = value
        return array

    return voxels(change)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def flip(path):
    """Break the compressed bytes amid the voxels."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :: 7] = bytes(len(content[len(content) // 2 :: 7]))
    path.write_bytes(content)


def replaced(make):
    """Put something else than a file in its place."""

    def replace(path):
        path.unlink()
        make(path)

    return replace


NO_SCAN = "cannot be opened .*expected"
SHORT = "cannot be read to its end"
# Of a scan or a mask: name -> (damage, the reason as a pattern).
FILES = {
    "empty": (put(b""), NO_SCAN),
    "text": (put(b"no NIfTI"), NO_SCAN),
    "gzip of text": (put(gzip.compress(b"no NIfTI")), NO_SCAN),
    "gzip cut in the header": (put(gzip.compress(bytes(400))[:12]), NO_SCAN),
    "truncated": (truncate, SHORT),
    "flipped bytes": (flip, f"{SHORT}|{NO_SCAN}"),
    "wrong magic": (fields(magic=b"xyz"), NO_SCAN),
    "no axes": (fields(dim=[0]), r"has shape \(0,\); expected positive numbers of voxels"),
    "negative length": (fields(dim=[3, -40]), "expected positive numbers of voxels"),
    "zero length": (fields(dim=[3, 40, 0]), "expected positive numbers of voxels"),
    "terabytes": (fields(dim=[3, 32767, 32767, 1000]), r"has shape \(32767, 32767, 1000\); expected at most"),
    "gigabyte": (fields(dim=[3, 640, 640, 640]), f"{SHORT}.*no file of"),
    "five axes": (fields(dim=[5, 40, 40, 8, 1, 1]), r"has shape \(40, 40, 8, 1, 1\); expected 3 (or 4 )?axes"),
    "two axes": (fields(dim=[2, 40, 320]), r"has shape \(40, 320\); expected 3 (or 4 )?axes"),
    "complex": (fields(datatype=32, bitpix=64), "type complex64; expected real numbers"),
    "RGB": (fields(datatype=128, bitpix=24), "type RGB; expected real numbers"),
    "unknown type": (fields(datatype=99), NO_SCAN),
    "voxels far behind": (fields(vox_offset=1e12), "has its voxels at byte 1e[+]12; expected"),
    "voxels at NaN": (fields(vox_offset=np.nan), NO_SCAN),
    "no voxel size": (fields(pixdim=[1, 1.5, 1.6, 0]), "voxel size 1.5, 1.6, 0; expected"),
    "voxel size of NaN": (fields(pixdim=[1, np.nan]), "voxel size nan.*expected"),
    "unknown unit": (fields(xyzt_units=7), "units of code 7; expected mm"),
    "meters": (fields(xyzt_units=1), "voxel size in meter; expected mm"),
    "folder": (replaced(lambda path: path.mkdir()), "no regular file.*expected"),
    "pipe": (replaced(os.mkfifo), "no regular file.*expected"),
    "endless device": (replaced(lambda path: path.symlink_to("/dev/zero")), "no regular file.*expected"),
    "other grid": (voxels(lambda array: array[:30]), r"\(30, 40, 8\).*expected the same"),
}
SCANS = {
    "NaN": (one(np.nan), "not finite.*expected"),
    "infinite": (one(-np.inf), "not finite.*expected"),
    "slope that overflows": (fields(scl_slope=3e38), "not finite.*expected"),
    "voxels that differences overflow with": (one(-3e38), "voxels of 3e[+]38; expected"),
    "affine of NaN": (fields(srow_x=[np.nan]), "affine that is not invertible; expected"),
    "infinite affine": (fields(srow_y=[np.inf]), "affine that is not invertible; expected"),
    "singular affine": (fields(srow_z=[0, 0, 0, 0]), "affine that is not invertible; expected"),
    "far origin": (fields(srow_x=[1.5, 0, 0, 1e20]), "its origin further off than .*expected"),
}
MASKS = {
    "255": (voxels(lambda array: array * 85), "unknown labels 85, 170, 255; expected 0, 1"),
    "NaN": (one(np.nan), "unknown labels nan; expected 0, 1"),
    "infinite": (one(np.inf), "unknown labels inf; expected 0, 1"),
    "negative": (one(-1), "unknown labels -1; expected 0, 1"),
    "blurred": (voxels(lambda array: array * 0.98), "unknown labels 0.98.*expected 0, 1"),
    "slope that overflows": (fields(scl_slope=3e38), "unknown labels .*expected 0, 1"),
    "no heart": (voxels(np.zeros_like), "has 0 voxels; at least 10 are needed|is not shown in the slice"),
}
LINKS = {"link to itself": replaced(lambda path: path.symlink_to(path.name))}
LOST = "is missing|no mask for .*expected|Too many levels of symbolic links"
# Subject -> (file, damage, reason).
CORPUS = {
    f"{file.split('_')[0]} {name}": (f"{file}.nii.gz", damage, reason)
    for file, own in (("sa_ED", SCANS), ("label_sa_ES", MASKS))
    for name, (damage, reason) in {**FILES, **own, **{key: (each, LOST) for key, each in LINKS.items()}}.items()
}


@contextmanager
def within(seconds):
    """Fail what takes longer, such as a wait for a pipe that nobody writes to."""

    def stop(*_):
        pytest.fail(f"took more than {seconds} s")  # no Exception, so that nobody takes it for a broken file

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def write_weights(path):
    """Weights of a small network that has learned nothing."""
    torch.manual_seed(0)
    norm = ("group", {"num_groups": 8})
    torch.save(VariationalAutoencoder(2, [64, 64], **SIZES, norm=norm, architecture="residual").state_dict(), path)
    return path


def infer(dataset_dir, output_dir, weights, **overrides):
    """Run inference.json in this process; returns subject -> reason of the excluded, and the subjects with codes."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in ("inference.json", "compact.json")])
    paths = {"dataset_dir": dataset_dir, "output_dir": output_dir, "ckpt_path": weights}
    options = {"workers": 1, "num_workers": 0, "pages": False, "device": "cpu"}
    parser.update({key: str(path) for key, path in paths.items()} | SIZES | options | overrides)
    with suppress(SystemExit):  # of an inference in which subjects are missing
        parser.get_parsed_content("run")
    excluded = {row["subject"]: row["reason"] for row in read_csv(output_dir / "excluded.csv")}
    return excluded, [row["subject"] for row in read_csv(output_dir / "codes.csv")]
