"""Three lines of Python, from anywhere, with the bundle as it is packaged."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
import torch

from scripts.api import load
from scripts.checkpoint import find_weights
from scripts.cohort.layout import SubjectError
from tests.conftest import ROOT
from tests.zoo.conftest import run_offline


@pytest.fixture(scope="module")
def model(packaged):
    return load(packaged, device="cpu")


def test_an_image_is_encoded_and_a_code_decoded(model):
    images = torch.rand(70, 2, 64, 64)  # more than one batch
    codes = model.encode(images)
    assert codes.shape == (70, model.latent_dim)
    with torch.no_grad():
        assert torch.allclose(codes, model.network.encode(images)[0], atol=1e-5)
        assert torch.allclose(model.decode(codes), model.network(images), atol=1e-5)
    assert model.attributes[:2] == ("LVEDV", "RVEDV")
    assert model.image_size == (2, 64, 64)
    assert not codes.requires_grad


def test_one_image_or_an_array_will_do(model):
    image = np.random.default_rng(0).random((2, 64, 64))
    codes = model.encode(image)
    assert torch.equal(codes, model.encode(torch.tensor(image, dtype=torch.float32)[None]))
    assert model.decode(codes[0].numpy()).shape == (1, 2, 64, 64)


@pytest.mark.parametrize("shape", [(2, 128, 128), (3, 1, 64, 64), (0, 2, 64, 64), (64, 64)])
def test_other_shapes_are_refused(shape, model):
    with pytest.raises(ValueError, match=r"expected \(B, 2, 64, 64\)"):
        model.encode(torch.rand(shape))


def test_a_subject_is_cropped_as_the_training_did(model, random_scans):
    image = model.crop(random_scans / "case0")
    assert image.shape == (2, 64, 64)
    assert image.min() == 0
    assert image.max() <= 1
    assert not torch.equal(image, model.crop(random_scans / "case1"))


def test_a_subject_that_cannot_be_used_is_refused_with_its_reason(model, tmp_path):
    with pytest.raises(SubjectError, match="there is neither sa_ED"):
        model.crop(tmp_path)


def test_a_zip_holds_the_same_model(model, archive):
    image = torch.rand(1, 2, 64, 64)
    assert torch.equal(load(archive, device="cpu").encode(image), model.encode(image))


@pytest.mark.parametrize("page", ["README.md", "bundle/docs/programs.md"])
def test_the_example_of_a_page_runs_from_anywhere(page, packaged, random_scans, tmp_path):
    text = (ROOT / page).read_text()
    (example,) = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "scripts.api" in code]
    for placeholder, path in {"<bundle>": packaged, "<scans>/1001": random_scans / "case0"}.items():
        assert placeholder in example
        example = example.replace(placeholder, str(path))
    checked = f"{example}\nprint('shapes', tuple(codes.shape), tuple(images.shape))"
    assert "shapes (1, 32) (1, 2, 64, 64)" in run_offline("-c", checked, cwd=tmp_path)


@pytest.mark.filterwarnings("ignore:.*which is a no-op")
def test_options_reach_the_model(packaged):
    with pytest.raises(ValueError, match="regularize is False, was True"):
        load(packaged, device="cpu", regularize=False)
    assert next(load(packaged, device="meta").network.parameters()).device.type == "meta"


def test_a_checkout_is_loaded_with_its_overlays(packaged):
    weights = packaged / "models" / "model.pt"
    model = load(ckpt_path=weights, overlays=["compact.json"])
    assert model.image_size == (2, 64, 64)
    with pytest.raises(ValueError, match=r"such as\s+compact.json"):
        load(ckpt_path=weights)


def test_without_weights_it_says_where_to_get_them(packaged, tmp_path):
    with pytest.raises(FileNotFoundError, match="name a file with ckpt_path"):
        load(packaged, ckpt_path=tmp_path / "nowhere.pt")
    with pytest.raises(FileNotFoundError, match=r"is no bundle of this kind"):
        load(tmp_path)


def test_damaged_or_missing_weights_of_the_archive_are_told(packaged, tmp_path):
    bundle = shutil.copytree(packaged, tmp_path / "bundle")
    weights = bundle / "models" / "model.pt"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"model\.pt' has the SHA-256 .* unpack the archive again"):
        load(bundle)
    with pytest.raises(ValueError, match=r"model\.pt' has the SHA-256"):
        find_weights(tmp_path, bundle)  # as the configs do
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.pt' belongs to the bundle and is missing: unpack"):
        load(bundle)


def test_an_older_monai_is_refused_by_the_import(packaged, tmp_path):
    code = "import importlib.metadata, sys\nimportlib.metadata.version = lambda name: '1.3.2'\n"
    code += f"sys.path.insert(0, {str(packaged)!r})\n"
    code += "try:\n    import scripts.api\nexcept ImportError as error:\n    print(error)"
    assert "needs MONAI 1.5 or newer, not 1.3.2: pip install" in run_offline("-c", code, cwd=tmp_path)


def test_a_misspelled_key_is_refused(packaged):
    with pytest.raises(ValueError, match="did you mean 'spacing'"):
        load(packaged, spacng=2)
