"""NIfTI files that nobody vouches for: what a header claims is checked before anything is allocated or read by it.

nibabel trusts a header: it allocates what the header claims before it finds that the file is short, and reads the
extensions behind it by the sizes that these give themselves, a negative one to the end of whatever a gzip expands to.
"""

from __future__ import annotations

import math
import os
import stat
from pathlib import Path

import nibabel as nib
from nibabel.arrayproxy import ArrayProxy
from nibabel.openers import ImageOpener

MAX_VOXELS = 2**28  # one GiB in float32; a cine of 512 x 512 x 20 in 50 frames has fewer
MAX_OFFSET = 2**24  # bytes in front of the voxels: header and extensions, which a gzip has to expand to get past
GZIP_RATIO = 1032  # no gzip expands to more than so many times its size
KINDS = (nib.Nifti1Image, nib.Nifti2Image)
UNITS = ("mm", "unknown")
VOXEL_SIZES = (0.2, 60.0)  # mm; beyond, the unit is another or the header is broken


class HeaderError(ValueError):
    """What is wrong with a file and what was expected: the end of a sentence that begins with its name."""


def open_nifti(path: str | os.PathLike) -> nib.Nifti1Image:
    """Open a NIfTI file whose header can be trusted; voxels are not read yet, and extensions never.

    Raises:
        HeaderError: for what no scan or mask can be.
        Exception: of many kinds, from nibabel, gzip and the file system, for a file that cannot be opened.
    """
    size = regular_size(path)
    kind, block = header_block(path)
    stored = kind.header_class(block, check=False)  # as stored: nibabel's checks read a zero voxel size as 1 mm
    check_voxels(stored, expanded(path, size), size)
    check_geometry(stored)
    header = kind.header_class(block)
    image = kind(ArrayProxy(str(path), header.copy()), None, header)
    # As nibabel does it: an affine that is given with the voxels would be written into the header.
    image._affine = header.get_best_affine()
    return image


def regular_size(path: str | os.PathLike) -> int:
    """Size of a file; a FIFO would be waited for, and a device may never end."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise HeaderError("is no regular file but a folder, pipe or device; expected a NIfTI file")
    return status.st_size


def expanded(path: str | os.PathLike, size: int) -> int:
    """How many bytes a file of this size holds at most."""
    return size * GZIP_RATIO if Path(path).suffix.lower() == ".gz" else size


def header_block(path: str | os.PathLike) -> tuple[type[nib.Nifti1Image], bytes]:
    """The kind of NIfTI and the bytes of its header."""
    with ImageOpener(path) as file:
        block = file.read(max(kind.header_class.sizeof_hdr for kind in KINDS))
    kind = next((kind for kind in KINDS if kind.header_class.may_contain_header(block)), None)
    if kind is None:
        raise HeaderError("cannot be opened (it does not begin with the header of a NIfTI file); expected NIfTI")
    return kind, block[: kind.header_class.sizeof_hdr]


def check_voxels(header: nib.Nifti1Header, capacity: int, size: int) -> None:
    """Shape and type are those of a scan, and no more voxels than the file can hold.

    Args:
        header: as stored.
        capacity: bytes that the file holds at most.
        size: of the file.
    """
    shape = tuple(int(length) for length in header.get_data_shape())
    if not shape or min(shape) < 1:
        raise HeaderError(f"has shape {shape}; expected positive numbers of voxels")
    if math.prod(shape) > MAX_VOXELS:
        raise HeaderError(f"has shape {shape}; expected at most {MAX_VOXELS} voxels")
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":  # neither complex nor RGB
        raise HeaderError(f"holds values of type {header.get_value_label('datatype')}; expected real numbers")
    offset = header.get_data_offset()
    if not 0 <= offset <= MAX_OFFSET:
        raise HeaderError(f"has its voxels at byte {offset:g}; expected them within the first {MAX_OFFSET}")
    claimed = offset + math.prod(shape) * dtype.itemsize
    if claimed > capacity:
        raise HeaderError(f"cannot be read to its end (it claims {claimed} bytes, which no file of {size} can hold)")


def check_geometry(header: nib.Nifti1Header) -> None:
    """The voxel size is in mm and that of a scan."""
    try:
        unit = header.get_xyzt_units()[0]
    except KeyError:
        raise HeaderError(f"has units of code {int(header['xyzt_units'])}; expected mm and seconds") from None
    if unit not in UNITS:
        raise HeaderError(f"gives its voxel size in {unit}; expected mm")
    size = abs(header["pixdim"][1:4])
    if not ((size >= VOXEL_SIZES[0]) & (size <= VOXEL_SIZES[1])).all():  # neither is NaN
        listed = ", ".join(f"{value:.4g}" for value in size)
        raise HeaderError(
            f"has voxel size {listed}; expected three numbers from {VOXEL_SIZES[0]:g} to {VOXEL_SIZES[1]:g} in mm"
        )
