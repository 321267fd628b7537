from __future__ import annotations

import json
import zipfile
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from scripts.cohort.dicom import import_dicom
from scripts.cohort.layout import find_subjects
from scripts.cohort.phantom import write_cohort
from scripts.storage import read_csv

DIRECTIONS = np.array([[0.8, 0, 0.6], [-0.36, 0.8, 0.48], [-0.48, -0.6, 0.64]])  # oblique in all axes
UID = "1.2.826.0.1.3680043.8.498"
IDENTIFIERS = {"PatientName": "Doe^Jane", "PatientID": "NHS4857773456", "PatientBirthDate": "19481224"}
PLANTED = ("Doe", "Jane", "NHS4857773456", "19481224", UID)


def make_cine(directions=DIRECTIONS):
    """A cine (32, 28, 5, 4) of voxels that are all different, every 0.2 s."""
    voxels = np.random.default_rng(0).permutation(32 * 28 * 5 * 4).reshape(32, 28, 5, 4).astype(np.int16)
    image = nib.Nifti1Image(voxels, nib.affines.from_matvec(directions * (1.8, 1.5, 10), (12.5, -80, 31)))
    image.header.set_zooms((1.8, 1.5, 10, 0.2))
    return image


def describe(scan, z, t):
    """The DICOM header of one image of a scan, as a scanner writes it, one series per slice."""
    lps = np.diag([-1, -1, 1, 1]) @ scan.affine
    dx, dy = scan.header.get_zooms()[:2]
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.SOPClassUID, file.SOPInstanceUID = MRImageStorage, f"{UID}.{z}.{t}"
    file.StudyInstanceUID, file.SeriesInstanceUID = UID, f"{UID}.{z + 1}"
    file.SeriesNumber, file.AcquisitionNumber, file.InstanceNumber = 10 + z, 1, t + 1
    file.SeriesDescription = f"CINE_segmented_SAX_b{z + 1}"
    file.ImagePositionPatient = [f"{number:.10g}" for number in (lps @ (0, 0, z, 1))[:3]]
    file.ImageOrientationPatient = [f"{number:.10g}" for number in (*lps[:3, 0] / dx, *lps[:3, 1] / dy)]
    file.PixelSpacing = [float(dy), float(dx)]
    file.SliceThickness = 8  # and a gap
    file.TriggerTime = f"{1000 * scan.header.get_zooms()[3] * t:.10g}"
    for name, value in IDENTIFIERS.items():
        setattr(file, name, value)
    return file


def set_pixels(file, pixels):
    """Pixels (X, Y), int16."""
    file.Columns, file.Rows = pixels.shape
    file.SamplesPerPixel, file.PhotometricInterpretation, file.PixelRepresentation = 1, "MONOCHROME2", 1
    file.BitsAllocated = file.BitsStored = 16
    file.HighBit = 15
    file.PixelData = pixels.T.astype("<i2").tobytes()


def write_dicom(folder, scan, edit=lambda file, z, t: file):
    """Write a scan as DICOM files of shuffled names; ``edit`` may change a file, or leave it out by returning None."""
    folder.mkdir(parents=True, exist_ok=True)
    places = list(np.ndindex(scan.shape[2:]))
    names = np.random.default_rng(1).permutation(len(places)) + 1000 * len(list(folder.iterdir()))
    for (z, t), name in zip(places, names, strict=True):
        file = describe(scan, z, t)
        set_pixels(file, np.asarray(scan.dataobj[:, :, z, t]))
        if edit(file, z, t) is not None:
            file.save_as(folder / f"{name:06d}.dcm", enforce_file_format=True)


def changed(where=lambda z, t: True, **values):
    """An edit that sets attributes of the images ``where`` says so; a value can be a function of file, z and t."""

    def edit(file, z, t):
        for name, value in values.items() if where(z, t) else ():
            setattr(file, name, value(file, z, t) if callable(value) else value)
        return file

    return edit


def assert_same(path, scan):
    written = nib.load(path)
    assert written.get_data_dtype() == np.int16
    assert np.array_equal(written.dataobj, scan.dataobj)
    assert np.allclose(written.affine, scan.affine, atol=1e-3)
    assert np.allclose(written.header["pixdim"][:5], scan.header["pixdim"][:5], atol=1e-3)
    assert written.header.get_xyzt_units() == ("mm", "sec")
    assert written.header["toffset"] == 0


@pytest.fixture
def cine():
    return make_cine()


@pytest.fixture
def source(tmp_path):
    return tmp_path / "dicom"


@pytest.fixture
def target(tmp_path):
    return tmp_path / "ukbb"


@pytest.fixture
def skipped(source, target, capfd):
    """Imports a source, of which subject S1 must be skipped without an identifier; returns the reason."""

    def run():
        with suppress(ValueError):  # where S1 is the only subject
            import_dicom(source, target)
        output = "".join(capfd.readouterr())  # of GDCM too
        assert not any(word in output for word in PLANTED)
        assert not (target / "S1").exists()
        (line,) = (line for line in output.splitlines() if "skipped 1: " in line)
        assert [row["subject"] for row in read_csv(target / "import.csv")] == ["S1"]
        return line

    return run


def test_phantoms_come_back_as_they_were(source, target, tmp_path):
    write_cohort(
        tmp_path / "phantoms", 4, 1, cine_fraction=1, failing=0, frames=4, workers=1, size=(56, 64), spacing=(4, 3.6, 9)
    )
    scans = {folder.name: nib.load(folder / "sa.nii.gz") for folder in find_subjects(tmp_path / "phantoms")}
    assert {np.sign(np.linalg.det(scan.affine)) for scan in scans.values()} == {-1, 1}  # both orders of slices
    for name, scan in scans.items():
        write_dicom(source / name, scan)
    import_dicom(source, target, workers=2)
    for name, scan in scans.items():
        assert_same(target / name / "sa.nii.gz", scan)
    assert [row["subject"] for row in read_csv(target / "info.csv")] == sorted(scans)


@pytest.mark.parametrize("turn", [(1, 1, 1), (1, 1, -1), (-1, 1, 1)])
def test_one_series_that_holds_all_slices(source, target, turn):
    cine = make_cine(DIRECTIONS * turn)
    number = changed(
        SeriesInstanceUID=UID, SeriesNumber=7, SeriesDescription="sa stack", InstanceNumber=lambda f, z, t: 4 * z + t
    )
    write_dicom(source / "S1", cine, number)
    import_dicom(source, target)
    assert_same(target / "S1/sa.nii.gz", cine)


def test_without_numbers_slices_follow_the_normal(source, target, cine):
    write_dicom(source / "S1", cine, changed(SeriesNumber=None, SeriesInstanceUID=UID, InstanceNumber=None))
    import_dicom(source, target)
    assert_same(target / "S1/sa.nii.gz", cine)


def test_a_zip_of_uk_biobank(source, target, cine, tmp_path):
    write_dicom(tmp_path / "files", cine)
    source.mkdir()
    with zipfile.ZipFile(source / "1234567_20209_2_0.zip", "w") as archive:
        for path in (tmp_path / "files").iterdir():
            archive.write(path, path.name)
        archive.writestr("manifest.cvs", "filename,patientid,patientname\n" + "x.dcm,NHS4857773456,Doe\n" * 9)
    import_dicom(source, target)
    assert_same(target / "1234567_20209_2_0/sa.nii.gz", cine)


def test_nothing_leaves_the_folder_that_a_zip_is_unpacked_in(source, target, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    source.mkdir()
    with zipfile.ZipFile(source / "S1.zip", "w") as archive:
        archive.writestr("../../escaped.dcm", "x")
        archive.writestr(str(tmp_path / "absolute.dcm"), "x")
    with pytest.raises(ValueError, match="none of the 1 DICOM subjects could be imported"):
        import_dicom(source, target)
    found = {path.name for path in tmp_path.rglob("*")}
    assert found == {"temporary", "dicom", "S1.zip", "ukbb", "info.csv", "import.csv"}


def test_no_identifier_is_copied(source, target, cine, capfd):
    write_dicom(source / "S1", cine)
    import_dicom(source, target)
    written = nib.load(target / "S1/sa.nii.gz")
    stored = b"".join(path.read_bytes() for path in target.rglob("*.csv"))
    stored += written.header.binaryblock + np.asarray(written.dataobj).tobytes()
    assert not any(word.encode() in stored for word in PLANTED)
    assert not any(word in "".join(capfd.readouterr()) for word in PLANTED)
    assert not written.header.extensions


def test_other_series_and_files_are_left_out(source, target, cine):
    folder = source / "S1"
    for name in ("CINE_segmented_LAX_4Ch", "cine_tagging_3sl_SAX_b1s", "CINE_segmented_SAX_InlineVF", "sagittal"):
        other = changed(SeriesDescription=name, SeriesNumber=99, ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
        write_dicom(folder / name, cine, other)
    write_dicom(folder, cine)
    (folder / "manifest.csv").write_text("filename,patientid\n")
    import_dicom(source, target)
    assert_same(target / "S1/sa.nii.gz", cine)


@pytest.mark.parametrize(
    "repeat",
    [
        {"SeriesNumber": 30, "SeriesInstanceUID": f"{UID}.0"},
        {"SeriesTime": "110000", "SeriesInstanceUID": f"{UID}.0"},
        {"AcquisitionNumber": 2},
    ],
)
def test_the_last_acquisition_of_a_slice_is_used(source, target, cine, repeat, capsys):
    write_dicom(source / "S1/last", cine, changed(**repeat, SeriesDescription="CINE_segmented_SAX_b3"))
    only_third = changed(PixelData=bytes(2 * 32 * 28))
    write_dicom(source / "S1/first", cine, lambda file, z, t: only_third(file, z, t) if z == 2 else None)
    import_dicom(source, target)
    assert_same(target / "S1/sa.nii.gz", cine)
    assert "warning 1: some slices were acquired more than once; the last" in capsys.readouterr().out


def test_acquisition_numbers_that_count_frames_tell_nothing(source, target, cine):
    write_dicom(source / "S1", cine, changed(AcquisitionNumber=lambda file, z, t: t))
    import_dicom(source, target)
    assert_same(target / "S1/sa.nii.gz", cine)


def test_a_rescaling_is_applied_and_told(source, target, cine, capsys):
    write_dicom(source / "S1", cine, changed(lambda z, t: z == 1, RescaleSlope="2.5", RescaleIntercept="-3"))
    import_dicom(source, target)
    written = nib.load(target / "S1/sa.nii.gz")
    expected = np.asarray(cine.dataobj, dtype=np.float32)
    expected[:, :, 1] = 2.5 * expected[:, :, 1] - 3
    assert written.get_data_dtype() == np.float32
    assert np.allclose(written.dataobj, expected)
    assert "warning 1: the files ask for a rescaling" in capsys.readouterr().out


def test_frame_time_is_the_median_of_the_slices(source, target, cine):
    heartbeats = [150, 180, 190, 210, 400]
    write_dicom(source / "S1", cine, changed(TriggerTime=lambda file, z, t: 7 + heartbeats[z] * t))
    import_dicom(source, target)
    assert nib.load(target / "S1/sa.nii.gz").header["pixdim"][4] == pytest.approx(0.19)


def tilted(file, z, t):
    return np.add(file.ImageOrientationPatient, (0, 0, 0.004, 0, 0.004, 0)).round(6).tolist()


def moved(*lps):
    return lambda file, z, t: [float(a + b) for a, b in zip(file.ImagePositionPatient, lps, strict=True)]


def third(z, t):
    return z == 2


def one(z, t):
    return (z, t) == (2, 1)


def cropped(file, z, t):
    if z == 2:
        set_pixels(file, np.zeros((30, 28)))
    return file


ALONG_NORMAL = -2 * DIRECTIONS[:, 2] * (-1, -1, 1)  # 2 mm
IN_PLANE = 2 * DIRECTIONS[:, 0] * (-1, -1, 1)

BREAKS = {
    "its short-axis images are not parallel": changed(third, ImageOrientationPatient=tilted),
    "not two perpendicular directions": changed(one, ImageOrientationPatient=[0, 0, 0, 0, 1, 0]),
    "slices 2 and 3 of 4 are 20.0 mm apart where others are 10.0 mm: a slice is missing": (
        lambda file, z, t: None if z == 2 else file
    ),
    "slices 2 and 3 of 5 are 8.0 mm apart where others are 10.0 mm": changed(
        third, ImagePositionPatient=moved(*ALONG_NORMAL)
    ),
    "its slices are shifted against each other by up to 2.0 mm in plane": changed(
        third, ImagePositionPatient=moved(*IN_PLANE)
    ),
    "with numbers of pixels 30 x 28 and 32 x 28": cropped,
    "with pixel spacings (mm) 1.8 x 1.5 and 1.8 x 1.6": changed(third, PixelSpacing=[1.6, 1.8]),
    "slice 3 of 5 has 3 frames where others have 4": lambda file, z, t: None if one(z, t) else file,
    "slice 3 of 5 has two images of the same trigger time": changed(one, TriggerTime=0),
    ".dcm has no usable trigger time (0018,1060)": changed(one, TriggerTime=None),
    ".dcm has no usable position (0020,0032)": changed(one, ImagePositionPatient=None),
    ".dcm has no usable orientation (0020,0037)": changed(one, ImageOrientationPatient=None),
    ".dcm has no usable pixel spacing (0028,0030)": changed(one, PixelSpacing=None),
    "it has one frame per slice; a cine has several": lambda file, z, t: None if t else file,
    "lie at one position": lambda file, z, t: None if z else file,
    "are of 2 studies": changed(third, StudyInstanceUID=f"{UID}.9"),
    "none of its 20 DICOM images belongs to a short-axis cine": changed(SeriesDescription="CINE_segmented_LAX_2Ch"),
    "holds several frames or colors": changed(one, NumberOfFrames=2, PixelData=bytes(2 * 2 * 32 * 28)),
}


@pytest.mark.parametrize("reason", BREAKS)
def test_a_broken_subject_is_skipped_with_the_reason(source, target, cine, reason, skipped):
    write_dicom(source / "S1", cine, BREAKS[reason])
    write_dicom(source / "S2", cine)
    assert reason in skipped()
    assert_same(target / "S2/sa.nii.gz", cine)
    assert read_csv(target / "info.csv") == [{"subject": "S2"}]


def test_a_damaged_file_is_named(source, cine, skipped):
    write_dicom(source / "S1", cine)
    path = source / "S1/000007.dcm"
    path.write_bytes(path.read_bytes()[:-900])
    assert "000007.dcm is a damaged DICOM file" in skipped()


def test_a_file_name_that_is_a_uid_is_not_shown(source, cine, skipped):
    write_dicom(source / "S1", cine)
    path = source / "S1/000007.dcm"
    path.write_bytes(path.read_bytes()[:-900])
    path.rename(path.with_name(f"{UID}.7.dcm"))
    assert "a file that is named by its UID is a damaged" in skipped()


def test_pixels_that_cannot_be_decompressed_are_a_reason(source, cine, skipped):
    write_dicom(source / "S1", cine)
    file = pydicom.dcmread(source / "S1/000007.dcm")
    file.compress(pydicom.uid.RLELossless)
    file.PixelData = file.PixelData[:60] + bytes(len(file.PixelData) - 60)
    file.save_as(source / "S1/000007.dcm")
    assert "000007.dcm cannot be read to its end" in skipped()


def test_a_damaged_zip_is_a_reason(source, skipped):
    source.mkdir()
    (source / "S1.zip").write_bytes(b"PK and no more")
    assert "<subject>.zip cannot be unpacked: it is damaged, encrypted or no zip" in skipped()


def test_a_zip_beside_its_folder_is_not_imported_twice(source, target, cine, capsys):
    write_dicom(source / "S1", cine)
    (source / "S1.zip").write_bytes(b"")
    import_dicom(source, target)
    assert "skipped 1: the folder of the same name beside it is imported" in capsys.readouterr().out
    assert_same(target / "S1/sa.nii.gz", cine)


def test_a_wrong_source_says_what_was_expected(source, target):
    with pytest.raises(FileNotFoundError, match="name the folder of DICOM subjects with --source_dir"):
        import_dicom(None, target)
    with pytest.raises(FileNotFoundError, match="holds no DICOM subject; expected one folder or zip"):
        import_dicom(source, target)


def test_cohort_json_runs_it():
    config = json.loads((Path(__file__).resolve().parents[2] / "bundle/configs/cohort.json").read_text())
    expected = {"_target_": "scripts.cohort.dicom.import_dicom", "source_dir": "@source_dir"}
    assert expected.items() <= config["import_dicom"][1].items()
