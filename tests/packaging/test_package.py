from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import zipfile

import pytest
import torch
from safetensors.torch import load

from scripts.packaging import large_files
from scripts.packaging.__main__ import main
from scripts.packaging.findings import Refused
from scripts.packaging.package import NAME, package
from tests.conftest import ROOT, shared
from tests.packaging.examples import chunk, png, saved

ZIP = f"{NAME}_v0.1.0.zip"


def refusal(bundle, tmp_path, **options):
    """Place -> reasons of all findings, after making sure that nothing was written."""
    with pytest.raises(Refused) as caught:
        package(bundle, tmp_path / "dist", **options)
    assert not (tmp_path / "dist").exists()
    reasons = {}
    for place, reason in caught.value.findings:
        reasons[place] = f"{reasons.get(place, '')} {reason}"
    return reasons


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_archive_is_laid_out_as_the_specification_says(template, tmp_path):
    written = package(template, tmp_path / "dist")
    assert written.path == tmp_path / "dist" / ZIP
    with zipfile.ZipFile(written.path) as archive:
        names = archive.namelist()
        assert archive.testzip() is None
        assert all(entry.date_time == (1980, 1, 1, 0, 0, 0) for entry in archive.infolist())
        assert {entry.external_attr >> 16 for entry in archive.infolist()} == {0o100644}
        assert b"\r\n" not in archive.read(f"{NAME}/docs/README.md")
    assert names == sorted(names)
    below = {name.split("/")[1] for name in names}
    assert below == {"LICENSE", "configs", "docs", "models", "scripts", "large_files.yml"}
    configs = {f"{NAME}/configs/{path.name}" for path in (ROOT / "bundle" / "configs").iterdir()}
    assert configs | {f"{NAME}/configs/paper.json"} == {name for name in names if "/configs/" in name}
    kinds = {".py", ".html", ".css", ".js"}
    code = {f"{NAME}/{path.relative_to(ROOT)}" for path in (ROOT / "scripts").rglob("*") if path.suffix in kinds}
    assert code == {name for name in names if f"{NAME}/scripts/" in name}
    models = {name.rsplit("/", 1)[-1] for name in names if "/models/" in name}
    assert models == {"model.pt", "model.safetensors", "settings.json", "calibration.json", "checksums.sha256"}


def test_twice_gives_the_same_bytes(bundle, tmp_path):
    first = package(bundle, tmp_path / "a")
    (bundle / "models" / "trunks").mkdir()
    (bundle / "models" / "trunks" / "alexnet.pt").touch()
    readme = bundle / "docs" / "README.md"
    readme.write_bytes(readme.read_bytes().replace(b"\n", b"\r\n"))
    (bundle / "scripts" / "__pycache__").mkdir()
    (bundle / "scripts" / "__pycache__" / "x.pyc").touch()
    second = package(bundle, tmp_path / "b")
    assert first.path.read_bytes() == second.path.read_bytes()
    subprocess.run(["sha256sum", "--check", f"{ZIP}.sha256"], cwd=tmp_path / "a", check=True, capture_output=True)
    assert (tmp_path / "a" / f"{ZIP}.sha256").read_text() == f"{first.sha256}  {ZIP}\n"


def test_the_weights_are_there_as_safetensors_too(bundle, tmp_path):
    (bundle / "models" / "model.safetensors").write_bytes(b"of an earlier training")
    (bundle / "models" / "checksums.sha256").write_text("of an earlier training")
    with zipfile.ZipFile(package(bundle, tmp_path).path) as archive:
        content = archive.read(f"{NAME}/models/model.safetensors")
        listed = archive.read(f"{NAME}/models/checksums.sha256").decode()
    weights, safe = torch.load(bundle / "models" / "model.pt", weights_only=True), load(content)
    assert safe.keys() == weights.keys()
    assert all(torch.equal(safe[name], tensor) for name, tensor in weights.items())
    assert f"{hashlib.sha256(content).hexdigest()}  model.safetensors\n" in listed


def in_a_config(bundle):
    edit(bundle / "configs" / "ed.json", note="without patient042")
    return "configs/ed.json, line 1", "names 'patient042'"


def in_a_datalist(bundle):
    (bundle / "configs" / "datalist.json").write_text(json.dumps({"numTest": 0, "test": []}))
    return "configs/datalist.json", "is a datalist"


def in_a_datalist_of_another_name(bundle):
    (bundle / "configs" / "x.json").write_text(json.dumps({"test": [{"image_ED": "a.nii"}]}))
    return "configs/x.json", "lists subjects by section"


def in_a_checkpoint(bundle):
    path = bundle / "models" / "model.pt"
    path.write_bytes(saved(torch.load(path, weights_only=True) | {"anna": torch.ones(1)}))
    return "models/model.pt, key 'anna'", "is not of the network"


def in_the_docs(bundle):
    (bundle / "docs" / "notes.md").write_text("One\nwith eid 2345678.\n")
    return "docs/notes.md, line 2", "names '2345678'"


def in_the_name_of_an_image(bundle):
    (bundle / "docs" / "figures" / "patient042.png").write_bytes(png())
    return "docs/figures/patient042.png", "has 'patient042', a numbered subject in its name"


def in_an_image(bundle):
    (bundle / "docs" / "figures" / "phantom_traversals.png").write_bytes(png(chunk(b"tEXt", b"Title\0anna")))
    return "docs/figures/phantom_traversals.png", "has a chunk 'tEXt'"


def in_a_table(bundle):
    (bundle / "models" / "codes.csv").write_text("subject,z0\nanna,1\n")
    return "models/codes.csv", "is a table"


def in_the_calibration(bundle):
    edit(bundle / "models" / "calibration.json", subjects=["anna"])
    return "models/calibration.json, key 'subjects'", "names a subject"


def in_an_escape(bundle):
    (bundle / "configs" / "ed.json").write_text('{"note": "\\u0070atient042"}')
    return "configs/ed.json, key 'note'", "names 'patient042'"


def with_a_space(bundle):
    (bundle / "docs" / "notes.md").write_text("Patient 042 is an outlier.\n")
    return "docs/notes.md, line 1", "names 'Patient 042'"


def in_code(bundle):
    (bundle / "scripts" / "notes.py").write_text("# as for patient042\n")
    return "scripts/notes.py, line 1", "names 'patient042'"


def in_the_settings(bundle):
    edit(bundle / "models" / "settings.json", trained_on="Anna")
    return "models/settings.json, key 'trained_on'", "is no setting of a training"


def as_the_cohort(bundle):
    edit(bundle / "models" / "settings.json", cohort="Anna of ward 7")
    return "models/settings.json, key 'cohort'", "is no hash of a datalist"


def in_a_scan(bundle):
    (bundle / "docs" / "figures" / "sa_ED.nii.gz").touch()
    return "docs/figures/sa_ED.nii.gz", "is a scan"


def in_a_page(bundle):
    add_page(bundle, "report.html", "<p>One subject</p>")
    return "scripts/report_page/report.html", "is no file of a bundle"


def in_the_template_of_a_page(bundle):
    add_page(bundle, "page.html", "<p>As for patient042</p>")
    return "scripts/report_page/page.html, line 1", "names 'patient042'"


def in_an_image_within_a_text(bundle):
    add_page(bundle, "page.js", f"const scan =\n  'data:image/webp;base64,{'A' * 80}';")
    return "scripts/report_page/page.js, line 2", "holds an image"


def add_page(bundle, name, text):
    (bundle / "scripts" / "report_page").mkdir(exist_ok=True)
    (bundle / "scripts" / "report_page" / name).write_text(text)


def in_another_checkpoint(bundle):
    torch.save({"subjects": ["anna"]}, bundle / "models" / "last.pt")
    return "models/last.pt", "is a checkpoint other than"


def behind_a_link(bundle):
    (bundle / "docs" / "linked.md").symlink_to("/etc/hostname")
    return "docs/linked.md", "is a link"


def as_a_path(bundle):
    edit(bundle / "configs" / "ed.json", dataset_dir="/odd/anna")
    return "configs/ed.json, key 'dataset_dir'", "of one machine"


def beside_the_layout(bundle):
    (bundle / "eval").mkdir()
    (bundle / "eval" / "page.html").touch()
    return "eval/page.html", "is no file of a bundle"


PLANTED = [
    in_a_config,
    in_a_datalist,
    in_a_datalist_of_another_name,
    in_a_checkpoint,
    in_the_docs,
    in_the_name_of_an_image,
    in_an_image,
    in_a_table,
    in_the_calibration,
    in_an_escape,
    with_a_space,
    in_code,
    in_the_settings,
    as_the_cohort,
    in_a_scan,
    in_a_page,
    in_the_template_of_a_page,
    in_an_image_within_a_text,
    in_another_checkpoint,
    behind_a_link,
    as_a_path,
    beside_the_layout,
]


@pytest.mark.parametrize("plant", PLANTED)
def test_a_planted_subject_is_refused_with_its_place(plant, bundle, tmp_path):
    place, words = plant(bundle)
    assert words in refusal(bundle, tmp_path)[place]


def test_all_places_are_told_at_once(bundle, tmp_path):
    overwriting = (in_an_escape, with_a_space)  # files in which others have planted something
    places = {plant(bundle)[0] for plant in PLANTED if plant not in overwriting}
    assert places <= refusal(bundle, tmp_path).keys()


def test_the_names_of_a_cohort_are_looked_for(bundle, tmp_path):
    (bundle / "docs" / "notes.txt").write_text("of Anna Meier")
    package(bundle, tmp_path / "elsewhere")
    assert "docs/notes.txt, line 1" in refusal(bundle, tmp_path, subjects=["anna_meier"])


def test_a_name_is_found_however_its_letters_are_written(bundle, tmp_path):
    edit(bundle / "configs" / "ed.json", note="with J\u00fcrgen M\u00fcller")
    (bundle / "docs" / "notes.txt").write_text("Ju\u0308rgen Mu\u0308l\u00adler")
    found = refusal(bundle, tmp_path, subjects=["J\u00fcrgen M\u00fcller"])
    assert {"configs/ed.json, key 'note'", "docs/notes.txt, line 1"} <= found.keys()


def test_an_address_is_looked_at_too(bundle, tmp_path):
    assert (
        "names 'patient042'"
        in refusal(bundle, tmp_path, urls={"models/model.pt": "https://x.org/patient042.pt"})["--url models/model.pt"]
    )


def test_an_unpacked_archive_is_not_packaged_again(bundle, tmp_path):
    (bundle / "configs" / "paper.json").write_text("{}")
    with pytest.raises(ValueError, match="was unpacked from an archive: package the checkout"):
        package(bundle, tmp_path)


def test_settings_that_say_nothing_are_refused(bundle, tmp_path):
    (bundle / "models" / "settings.json").write_text("{}")
    assert "is missing: take the file" in refusal(bundle, tmp_path)["models/settings.json, key 'spacing'"]


def test_the_schema_is_compared(bundle, tmp_path):
    schema = shared("schema/meta_schema_20240725.json")
    assert not any("schema" in note for note in package(bundle, tmp_path / "elsewhere", schema=schema).notes)
    edit(bundle / "configs" / "metadata.json", references="a paper")
    assert (
        "does not fit the schema" in refusal(bundle, tmp_path, schema=schema)["configs/metadata.json, key 'references'"]
    )


def test_only_scripts_and_license_may_be_links(bundle, tmp_path):
    (bundle / "docs").rename(tmp_path / "docs")
    (bundle / "docs").symlink_to(tmp_path / "docs")
    assert "is a link" in refusal(bundle, tmp_path)["docs"]


@pytest.mark.parametrize("name", ["model.pt", "settings.json", "calibration.json"])
def test_a_missing_model_names_the_command(name, bundle, tmp_path):
    (bundle / "models" / name).unlink()
    assert "'make model'" in refusal(bundle, tmp_path)[f"models/{name}"]


def test_a_bundle_without_models_names_the_command(bundle, tmp_path):
    shutil.rmtree(bundle / "models")
    assert "'make model' trains it" in refusal(bundle, tmp_path)["models/model.pt"]


def test_weights_of_other_configs_are_refused(bundle, tmp_path):
    found = refusal(bundle, tmp_path, overlays=())
    assert any("name the overlays" in reason for place, reason in found.items() if place.startswith("models/model.pt"))
    assert "name the overlays" in found["models/settings.json"]


def test_a_calibration_of_other_weights_is_refused(bundle, tmp_path):
    path = bundle / "models" / "model.pt"
    weights = torch.load(path, weights_only=True)
    path.write_bytes(saved({name: tensor * 2 for name, tensor in weights.items()}))
    assert "does not belong to the weights" in refusal(bundle, tmp_path)["models/calibration.json"]


def test_a_version_that_the_changelog_lacks_is_refused(bundle, tmp_path):
    edit(bundle / "configs" / "metadata.json", version="0.2.0")
    assert "put an entry for 0.2.0 first" in refusal(bundle, tmp_path)["configs/metadata.json, key 'changelog'"]


def test_broken_json_is_told_beside_all_else(bundle, tmp_path):
    (bundle / "configs" / "metadata.json").write_text("{")
    in_the_docs(bundle)
    found = refusal(bundle, tmp_path)
    assert {"configs/metadata.json", "docs/notes.md, line 2"} <= found.keys()


def test_large_weights_are_listed_instead(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(large_files, "LARGEST", 1_000_000)
    assert "--url models/model.pt=https://" in refusal(bundle, tmp_path)["models/model.pt"]
    written = package(bundle, tmp_path / "dist", urls={"models/model.pt": "https://x.org/m.pt"})
    with zipfile.ZipFile(written.path) as archive:
        models = {name.rsplit("/", 1)[-1] for name in archive.namelist() if "/models/" in name}
        assert models == {"settings.json", "calibration.json", "checksums.sha256"}
        assert b"  model.pt\n" in archive.read(f"{NAME}/models/checksums.sha256")
        (entry,) = json.loads(archive.read(f"{NAME}/large_files.yml"))["large_files"]
    assert (entry["path"], entry["url"]) == ("models/model.pt", "https://x.org/m.pt")


def test_what_was_not_checked_is_noted(bundle, tmp_path):
    noted = " ".join(package(bundle, tmp_path / "dist", subjects=["x"]).notes)
    assert "no figures of these weights" in noted
    assert "1 subject name(s) are too short" in noted
    assert "was not compared with its schema" in noted


def test_the_command_tells_what_it_wrote_and_what_it_refused(bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "output" / "demo").mkdir(parents=True)
    (tmp_path / "output" / "demo" / "cohort.csv").write_text("subject\nanna\n")  # found without being named
    (tmp_path / "output" / "cohort.csv").write_text("subject\n")  # of nobody, which nobody asked about
    main(["--bundle_root", str(bundle)])
    assert f"dist/{ZIP}: " in capsys.readouterr().out
    (bundle / "docs" / "notes.txt").write_text("anna")
    with pytest.raises(SystemExit, match=r"docs/notes.txt, line 1: names 'anna', a subject of the given cohort"):
        main(["--bundle_root", str(bundle)])
    with pytest.raises(SystemExit, match=r"--cohort 'nowhere' does not exist"):
        main(["--cohort", "nowhere"])
