"""Ten thousand headers that nobody vouches for: each is a sane scan, or refused by the reader's own error."""

from __future__ import annotations

import gzip
import logging
import re
import struct
import tracemalloc
import warnings
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.cohort.headers import VOXEL_SIZES
from scripts.cohort.layout import MAX_INTENSITY, SubjectError, frame_time, read_image, read_mask, write_like
from tests.faults.corpus import within

resource = pytest.importorskip("resource", reason="limits of memory are those of Unix")

COUNT = 10_000
ROOM = 128 * 2**20  # bytes that reading one header of 400 bytes after the other may take in all
LIMIT = 4 * 2**20  # bytes that a file of 400 may make the reader allocate; no gzip of it expands to more than 0.4 MB
SHAPE = (4, 4, 4)
ANY = settings(max_examples=150, deadline=None, derandomize=True, database=None)
# What breaks programs: ends of the ranges of integers and floats, and what is no number.
NUMBERS = (0, 1, -1, 2, 3, 5, 7, 127, -128, 255, 256, 32767, -32768, 2**31 - 1, -(2**31), 1e-45, 1e38, -3e38, 0.5)
FLOATS = (*NUMBERS, float("nan"), float("inf"), -float("inf"))


def written(kind, order, **more):
    """The bytes of a sound file, not compressed."""
    header = kind.header_class(endianness=order)
    header.set_data_shape(SHAPE)
    header.set_data_dtype(np.int16)
    header.set_sform(np.diag([1.8, 1.8, 8, 1]), code=1)
    header.set_zooms((1.8, 1.8, 8))
    header.set_xyzt_units("mm", "sec")
    header["vox_offset"] = header.single_vox_offset
    content = np.arange(64, dtype=header.get_data_dtype()).tobytes()
    return header.binaryblock + bytes(4) + content


BASES = [(kind, order, written(kind, order)) for kind in (nib.Nifti1Image, nib.Nifti2Image) for order in "<>"]


def flip_bits(rng, raw, size):
    """One to eight bytes of the header become others."""
    for place in rng.integers(0, size, rng.integers(1, 9)):
        raw[place] = rng.integers(0, 256)


def set_fields(rng, raw, header):
    """One to three fields, or single values of arrays, become what breaks programs."""
    for name in rng.choice(header.dtype.names, rng.integers(1, 4)):
        target = header[name].reshape(-1)
        if target.dtype.kind == "S":
            target[0] = rng.bytes(target.dtype.itemsize)
            continue
        choice = FLOATS if target.dtype.kind == "f" else [each for each in NUMBERS if each == int(each)]
        value = choice[rng.integers(len(choice))]
        with np.errstate(all="ignore"):
            target[rng.integers(target.size)] = np.array(value, np.float64).astype(target.dtype)


def fuzzed(rng):
    """The bytes of a file whose header was damaged at random."""
    kind, order, base = BASES[rng.integers(len(BASES))]
    raw, dtype = bytearray(base), kind.header_class.template_dtype.newbyteorder(order)
    if rng.random() < 0.4:
        flip_bits(rng, raw, dtype.itemsize)
    else:
        set_fields(rng, raw, np.frombuffer(raw, dtype, 1))
    return bytes(raw[: rng.integers(len(raw))] if rng.random() < 0.05 else raw)


@contextmanager
def silence():
    """Neither warn nor log: nibabel says what it mends in each header."""
    logging.disable()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def check_mask(path):
    """Read a file as a mask."""
    try:
        mask = read_mask(path)
    except SubjectError as error:
        assert_refusal(error, path)
    else:
        assert mask.dtype == np.uint8
        assert mask.max() <= 3


def check(path, content):
    """Read a file as a scan; returns whether it is a sane one."""
    path.write_bytes(gzip.compress(content, 1))
    try:
        image, affine = read_image(path)
    except SubjectError as error:
        assert_refusal(error, path)
        return False
    assert image.dtype == np.float32
    assert image.ndim == 3
    assert 0 < image.size <= len(content)
    assert np.abs(image).max() <= MAX_INTENSITY
    size = np.linalg.norm(affine[:3, :3], axis=0)
    assert np.isfinite(affine).all()
    assert abs(np.linalg.det(affine[:3, :3])) > 0
    assert (size > VOXEL_SIZES[0] * 0.98).all()
    assert (size < VOXEL_SIZES[1] * 1.02).all()
    return True


def assert_refusal(error, path):
    """The error speaks of the file, and of no accident of the program."""
    assert type(error) is SubjectError
    assert str(error).startswith(path.name)
    assert not re.search("MemoryError|Unable to allocate", str(error))


@contextmanager
def little_memory():
    """Let allocations of more than ROOM fail."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_ten_thousand_fuzzed_headers(tmp_path):
    rng, sane, path = np.random.default_rng(2024), [], tmp_path / "sa_ED.nii.gz"
    with silence(), little_memory():
        for number in range(COUNT):
            content = fuzzed(rng)
            with within(20):
                if check(path, content):
                    sane.append(content)
                if number % 8 == 0:
                    check_mask(path)
    assert COUNT // 10 < len(sane) < COUNT * 9 // 10  # it fuzzes both
    for content in sane[::20]:  # what is read can be answered in its own grid, or is refused as such
        path.write_bytes(gzip.compress(content, 1))
        frame_time(path)
        write_back(path, read_image(path)[0])


def write_back(path, image):
    try:
        write_like(path.with_name("out.nii.gz"), image, path)
    except SubjectError as error:
        refused = str(error)
    else:
        return
    assert "has a header that nothing can be written with" in refused


@given(st.data())
@ANY
def test_any_values_of_the_fields_that_decide(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "sa_ES.nii.gz"
    raw = bytearray(BASES[0][2])
    header = np.frombuffer(raw, nib.Nifti1Header.template_dtype, 1)
    for name in data.draw(st.lists(st.sampled_from(DECISIVE), min_size=1, max_size=3, unique=True)):
        target = header[name].reshape(-1)
        kind, width = target.dtype.kind, 8 * target.dtype.itemsize
        value = st.floats(width=width) if kind == "f" else st.integers(*bounds(target.dtype))
        for place in range(data.draw(st.integers(1, target.size))):
            target[place] = data.draw(value)
    with within(20), silence():
        check(path, bytes(raw))
        check_mask(path)


DECISIVE = (
    *("dim", "pixdim", "datatype", "bitpix", "vox_offset", "scl_slope", "scl_inter", "xyzt_units", "qform_code"),
    *("sform_code", "quatern_b", "qoffset_x", "srow_x", "srow_y", "srow_z", "sizeof_hdr"),
)


def bounds(dtype):
    info = np.iinfo(dtype)
    return info.min, info.max


@given(st.binary(min_size=348, max_size=348))
@ANY
def test_any_bytes_are_no_header(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "sa.nii.gz"
    with silence():
        assert not check(path, content + bytes(200))


@pytest.mark.parametrize("size", [-1, -(2**31), 0, 8, 2**31 - 1])
def test_extensions_are_never_read(size, tmp_path):
    """nibabel reads an extension of a negative size to the end of the gzip, and one of size 0 as well."""
    raw = bytearray(BASES[0][2])
    raw[348:352] = b"\1\0\0\0"
    struct.pack_into("<f", raw, 108, 2**20)  # vox_offset
    bomb = bytes(raw[:352]) + struct.pack("<ii", size, 6) + bytes(2 * LIMIT)
    path = tmp_path / "sa_ED.nii.gz"
    path.write_bytes(gzip.compress(bomb, 1))
    del bomb
    tracemalloc.start()
    try:
        with within(20):
            assert read_mask(path).max() == 0
        assert tracemalloc.get_traced_memory()[1] < LIMIT
    finally:
        tracemalloc.stop()
    write_like(tmp_path / "out.nii.gz", np.zeros(SHAPE, np.float32), path)
    assert nib.load(tmp_path / "out.nii.gz").shape == SHAPE
