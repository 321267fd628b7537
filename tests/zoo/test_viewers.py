"""What MONAI Label and MONAI Deploy do to a bundle's config, done here to this one.

Neither is installed; these functions do what theirs do, with what they hand over and what they want back.
"""

from __future__ import annotations

import json
import zipfile

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ckpt_export
from monai.data import MetaTensor
from monai.transforms import LoadImaged, MapTransform, SaveImaged
from monai.utils import convert_to_dst_type, ensure_tuple

from scripts.api import load
from scripts.cohort.layout import SubjectError, read_image, write_volume
from scripts.cohort.single import subject_item
from tests.zoo.conftest import run_offline


def in_label(bundle, request):
    """The request of a viewer through MONAI Label's task for bundles; gives the data that its writer gets."""
    config = ConfigParser()
    config.read_config(str(bundle / "configs" / "inference.json"))
    config.config.update({"bundle_root": str(bundle)})
    network = config.get_parsed_content("network_def", instantiate=True)
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True), strict=True)
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    image, pred = (next(iter(metadata["network_data_format"][side])) for side in ("inputs", "outputs"))

    data = {"device": "cpu", "model": "bundle", "result_extension": ".nii.gz", "image_path": request, "image": request}
    before = config.get_parsed_content("preprocessing", instantiate=True).transforms
    assert not any(isinstance(transform, LoadImaged) for transform in before)  # else the server puts in one of its own
    for transform in before:
        data = transform(data)
    inferer = config.get_parsed_content("inferer", instantiate=True)
    with torch.no_grad():
        data[pred] = inferer(data[image][None], network.eval())[0]
    for transform in config.get_parsed_content("postprocessing", instantiate=True).transforms:
        data = data if isinstance(transform, SaveImaged) else transform(data)
    return restored(data, pred, image)


def restored(data, pred, image):
    """What the server does last: bring the result to the image's shape and note where it lies."""
    meta = data[image].meta
    shape = tuple(meta["spatial_shape"])
    assert tuple(data[pred].shape[1:]) == shape, "the server would stretch the result"
    return {**data, pred: data[pred][0], "affine": meta["original_affine"]}


def inferred(bundle, folder):
    """What the bundle's own inference gives for a subject."""
    config = ConfigParser()
    config.read_config(str(bundle / "configs" / "inference.json"))
    item = config.get_parsed_content("preprocessing")(subject_item(folder))
    with torch.no_grad():
        item["pred"] = load(bundle, device="cpu").network(item["image"][None])[0]
    return config.get_parsed_content("postprocessing")(item)


@pytest.mark.parametrize("phase", ["ED", "ES"])
def test_label_gets_the_reconstruction_of_the_scan_it_shows(phase, packaged, random_scans, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    scan = random_scans / "case1" / f"sa_{phase}.nii.gz"
    data = in_label(packaged, str(scan))
    voxels, affine = read_image(scan)
    assert data["pred"].shape == voxels.shape
    assert np.allclose(data["affine"], affine)
    shown = np.flatnonzero(np.asarray(data["pred"]).any(axis=(0, 1)))
    assert len(shown) == 1  # the basal slice
    assert torch.allclose(data["pred"], inferred(packaged, scan.parent)[f"pred_{phase}"][0], atol=1e-5)
    assert data["result_extension"] == ".nii.gz"  # what the server's writer reads survives


def test_label_gets_a_phase_of_a_cine(packaged, random_scans, tmp_path):
    for cine, phases in (("sa", "sa_{}"), ("label_sa", "label_sa_{}")):
        images = [nib.load(random_scans / "case1" / f"{phases.format(phase)}.nii.gz") for phase in ("ED", "ES")]
        write_volume(
            tmp_path / f"{cine}.nii.gz", np.stack([np.asarray(image.dataobj) for image in images], 3), images[0].affine
        )
    pred = in_label(packaged, str(tmp_path / "sa.nii.gz"))["pred"]
    assert torch.allclose(pred, in_label(packaged, str(random_scans / "case1" / "sa_ED.nii.gz"))["pred"], atol=1e-4)


def test_label_is_told_why_a_scan_without_masks_cannot_be_shown(packaged, tmp_path):
    for phase in ("ED", "ES"):
        (tmp_path / f"sa_{phase}.nii.gz").write_bytes(b"")
    with pytest.raises(SubjectError, match="no mask for sa_ED"):
        in_label(packaged, str(tmp_path / "sa_ED.nii.gz"))


@pytest.fixture(scope="module")
def torchscript(packaged, tmp_path_factory):
    """The bundle as MONAI Deploy takes it."""
    path = tmp_path_factory.mktemp("deploy") / "model.ts"
    configs = [str(packaged / "configs" / f"{name}.json") for name in ("inference", "deploy")]
    ckpt_export("network_def", str(path), config_file=configs, bundle_root=str(packaged))
    return path


def in_deploy(path, names, value):
    """An image through MONAI Deploy's operator for bundles; gives the array that its output image holds."""
    config = ConfigParser()
    with zipfile.ZipFile(path) as archive:
        config.read_meta(json.loads(archive.read(f"{path.stem}/extra/metadata.json")))
        config.read_config([archive.extract(f"{path.stem}/extra/{name}.json", path.parent) for name in names])
    config.parse()
    inputs, outputs = (config["_meta_"]["network_data_format"][side] for side in ("inputs", "outputs"))
    (image,), (pred,) = inputs, outputs
    pre, post = (without_files(config.get_parsed_content(name)) for name in ("preprocessing", "postprocessing"))
    inferer, network = config.get_parsed_content("inferer"), torch.jit.load(path).eval()

    with torch.no_grad():
        value = MetaTensor.ensure_torch_and_prune_meta(convert_to_dst_type(value, dst=value)[0], {})
        assert isinstance(pre.transforms[0], MapTransform), "the operator would run it on each value"
        data = pre({image: value})
        kept = data.pop(image)
        others = {key: tensor[None] for key, tensor in data.items() if isinstance(tensor, torch.Tensor)}
        result = inferer(inputs=kept[None], network=network, **others)
        data = post({pred: ensure_tuple(result)[0], image: kept})
    voxels = np.squeeze(data[pred].cpu().numpy(), 0)
    return np.swapaxes(voxels, 0, 2).astype(np.uint8)


def without_files(compose):
    """Take out what reads or writes files, known by the name of its class."""
    names = [type(transform).__name__ for transform in compose.transforms]
    kept = [
        transform
        for name, transform in zip(names, compose.transforms, strict=True)
        if "LoadImage" not in name and "SaveImage" not in name
    ]
    compose.transforms = tuple(kept)
    return compose


def test_deploy_gives_a_crop_and_gets_its_reconstruction(torchscript, packaged, random_scans):
    model = load(packaged, device="cpu")
    crop = model.crop(random_scans / "case1")
    given = in_deploy(torchscript, ["inference", "deploy"], crop.numpy())
    expected = 255 * model.decode(model.encode(crop))[0].clamp(0, 1)
    assert given.shape == (2, 64, 64)
    assert np.abs(given - expected.numpy()).max() <= 1.01  # the operator rounds down
    assert given.max() > 0


def test_deploy_needs_no_code_of_the_bundle(torchscript, tmp_path):
    code = "import json, sys, torch\nfrom monai.bundle import ConfigParser\nconfig = ConfigParser()\n"
    code += "extra = {'inference.json': '', 'deploy.json': ''}\ntorch.jit.load(sys.argv[1], _extra_files=extra)\n"
    code += "config.read_config({**json.loads(extra['inference.json']), **json.loads(extra['deploy.json'])})\n"
    code += "[config.get_parsed_content(key) for key in ('device', 'inferer', 'preprocessing', 'postprocessing')]\n"
    run_offline("-c", code + "assert 'scripts' not in sys.modules", torchscript, cwd=tmp_path)


def test_torchscript_gives_the_numbers_of_pytorch_on_100_crops(torchscript, packaged, crops):
    network, model = torch.jit.load(torchscript), load(packaged, device="cpu")
    with torch.no_grad():
        assert (network(crops) - model.network(crops)).abs().max() <= 1e-6
        assert (network.encode(crops)[0] - model.network.encode(crops)[0]).abs().max() <= 1e-6
