from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from scripts import perceptual
from scripts.perceptual import (
    FeatureDistance,
    LPIPSDistance,
    PerceptualDistance,
    PooledFeatures,
    fetch_trunks,
    load_trunk,
)

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden" / "lpips"
ALEXNET_LAYERS = ("relu1", "relu2", "relu5")


@pytest.fixture(scope="module")
def alexnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of AlexNet's features: most properties do not depend on the pretrained ones."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("trunks") / "random.pt"
    torch.save(torchvision.models.alexnet(weights=None).features.state_dict(), path)
    return path


@pytest.fixture(params=["features", "features, normalized", "lpips"])
def distance(request: pytest.FixtureRequest, alexnet_file: Path) -> PerceptualDistance:
    if request.param == "lpips":
        return LPIPSDistance("alex", alexnet_file)
    return FeatureDistance("alexnet", ALEXNET_LAYERS, alexnet_file, imagenet_statistics="normalized" in request.param)


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hub cache, no trunks folder, no network."""

    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setenv(perceptual.TRUNKS_VARIABLE, str(tmp_path / "trunks"))


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(len(shape)))


def golden_image(name: str) -> torch.Tensor:
    """An RGB image as (1, 3, H, W) in [-1, 1]."""
    pixels = np.asarray(Image.open(GOLDEN / name).convert("RGB"), dtype=np.float32)
    return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None]


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden LPIPS images (../shared/golden/lpips) are not here")
@pytest.mark.parametrize(
    ("net", "image", "expected"),
    [
        ("alex", "ex_p0.png", 0.7218808),
        ("alex", "ex_p1.png", 0.1375656),
        ("vgg", "ex_p0.png", 0.5686128),
        ("vgg", "ex_p1.png", 0.4216643),
    ],
)
def test_lpips_agrees_with_published_examples(net: str, image: str, expected: float) -> None:
    try:
        network = LPIPSDistance(net).network
    except FileNotFoundError as error:
        pytest.skip(f"no pretrained trunk: {error}")
    with torch.no_grad():
        value = network(golden_image("ex_ref.png"), golden_image(image)).item()
    assert value == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("normalized", [False, True])
def test_gray_features_equal_those_of_three_equal_channels(alexnet_file: Path, normalized: bool) -> None:
    distance = FeatureDistance("alexnet", ALEXNET_LAYERS, alexnet_file, imagenet_statistics=normalized).double()
    network = torchvision.models.alexnet(weights=None).features
    network.load_state_dict(torch.load(alexnet_file, weights_only=True))
    gray = images(2, 1, 96, 80).double()
    repeated = gray.expand(-1, 3, -1, -1)
    if normalized:
        repeated = torchvision.transforms.functional.normalize(
            repeated, perceptual.IMAGENET_MEAN, perceptual.IMAGENET_STD
        )
    for length, features in zip((2, 5, 12), distance.features(gray), strict=True):
        torch.testing.assert_close(features, network.double()[:length](repeated), rtol=0, atol=1e-6)


def test_feature_distance_sums_layers_and_averages_channels(alexnet_file: Path) -> None:
    prediction, target = images(2, 2, 64, 64), images(2, 2, 64, 64).flip(0)
    single = [FeatureDistance("alexnet", [layer], alexnet_file) for layer in ALEXNET_LAYERS]
    channels = [sum(part(prediction[:, [c]], target[:, [c]]) for part in single) for c in range(2)]
    together = FeatureDistance("alexnet", ALEXNET_LAYERS, alexnet_file)(prediction, target)
    torch.testing.assert_close(together, (channels[0] + channels[1]) / 2)


def test_lpips_averages_channels(alexnet_file: Path) -> None:
    distance = LPIPSDistance("alex", alexnet_file)
    prediction, target = images(2, 2, 64, 64), images(2, 2, 64, 64).flip(0)
    first, second = (distance(prediction[:, [c]], target[:, [c]]) for c in range(2))
    torch.testing.assert_close(distance(prediction, target), (first + second) / 2)


def test_distance_is_per_sample_and_zero_for_equal_images(distance: PerceptualDistance) -> None:
    target = images(3, 2, 64, 64)
    prediction = target.clone()
    prediction[1] = 1 - prediction[1]
    values = distance(prediction, target)
    assert values.shape == (3,)
    assert values[[0, 2]].tolist() == [0, 0]
    assert values[1] > 0


def test_gradient_flows_to_prediction_only(distance: PerceptualDistance) -> None:
    prediction, target = images(2, 2, 64, 64).requires_grad_(), images(2, 2, 64, 64).flip(0).requires_grad_()
    distance(prediction, target).sum().backward()
    assert prediction.grad.abs().sum() > 0
    assert target.grad is None
    assert not any(parameter.requires_grad for parameter in distance.parameters())


def test_stays_in_evaluation_mode_inside_a_training_parent(distance: PerceptualDistance) -> None:
    parent = torch.nn.ModuleList([distance]).train()
    assert parent.training
    assert not any(module.training for module in distance.modules())


def test_float32_under_mixed_precision(distance: PerceptualDistance) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = distance(images(1, 1, 64, 64), images(1, 1, 64, 64).flip(2))
    assert values.dtype == torch.float32


def test_construction_draws_no_random_number(alexnet_file: Path) -> None:
    before = torch.get_rng_state()
    FeatureDistance("alexnet", ALEXNET_LAYERS, alexnet_file)
    LPIPSDistance("alex", alexnet_file)
    assert torch.equal(torch.get_rng_state(), before)


def test_construction_is_quiet(
    alexnet_file: Path, capsys: pytest.CaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    LPIPSDistance("alex", alexnet_file)
    assert "".join(capsys.readouterr()) == ""
    assert not recwarn.list


def test_pooled_features_are_means_of_each_channels_activations(alexnet_file: Path) -> None:
    pooled = PooledFeatures("alexnet", ALEXNET_LAYERS, alexnet_file)(images(2, 3, 64, 64))
    features = FeatureDistance("alexnet", ALEXNET_LAYERS, alexnet_file, imagenet_statistics=True).features
    expected = [
        torch.cat([layer.mean(dim=(2, 3)) for layer in features(images(2, 3, 64, 64)[:, [c]])], dim=1) for c in range(3)
    ]
    assert pooled.shape == (2, 3 * (64 + 192 + 256))
    torch.testing.assert_close(pooled, torch.cat(expected, dim=1))


def test_pooled_features_are_of_images_and_not_of_maps(alexnet_file: Path) -> None:
    values = images(2, 3, 64, 64)
    pooled = PooledFeatures("alexnet", ALEXNET_LAYERS, alexnet_file, image_channels=2)(values)
    assert torch.equal(pooled, PooledFeatures("alexnet", ALEXNET_LAYERS, alexnet_file)(values[:, :2]))


def test_pooled_features_clamp_and_stay_fixed(alexnet_file: Path) -> None:
    network = torch.nn.ModuleList([PooledFeatures("alexnet", ALEXNET_LAYERS, alexnet_file)]).train()[0]
    beyond = (3 * images(2, 1, 64, 64) - 1).requires_grad_()
    features = network(beyond)
    assert not features.requires_grad
    assert not any(module.training for module in network.network.modules())
    assert torch.equal(features, network(beyond.clamp(0, 1)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(features, network(beyond))


@pytest.mark.parametrize(("trunk", "deepest"), [("vgg16", "relu5_3"), ("vgg19", "relu5_4"), ("squeezenet1_1", "fire9")])
def test_layers_have_their_usual_names(trunk: str, deepest: str) -> None:
    with torch.device("meta"):
        network = getattr(torchvision.models, trunk)(weights=None).features
    positions = perceptual.layer_positions(trunk, network)
    assert list(positions)[-1] == deepest
    if trunk == "vgg16":
        assert [positions[name] for name in ("relu1_1", "relu2_1", "relu3_1", "relu4_1")] == [1, 6, 11, 18]


def test_trunk_stops_at_deepest_layer(alexnet_file: Path) -> None:
    assert len(FeatureDistance("alexnet", ["relu2", "relu1"], alexnet_file).trunk) == 5


def test_rejects_unknown_names_and_unequal_shapes(alexnet_file: Path) -> None:
    with pytest.raises(ValueError, match="choose one of alexnet"):
        load_trunk("resnet")
    with pytest.raises(ValueError, match="choose one of alex"):
        LPIPSDistance("alexnet")
    with pytest.raises(ValueError, match="choose from relu1, relu2"):
        FeatureDistance("alexnet", ["relu1_1"], alexnet_file)
    with pytest.raises(ValueError, match="does not hold the convolutions of vgg16"):
        load_trunk("vgg16", alexnet_file)
    with pytest.raises(ValueError, match="one shape"):
        FeatureDistance("alexnet", ["relu1"], alexnet_file)(images(1, 2, 64, 64), images(1, 1, 64, 64))
    with pytest.raises(ValueError, match=r"not \(1, 64, 64\)"):
        PooledFeatures("alexnet", ["relu1"], alexnet_file)(images(1, 64, 64))


def test_missing_weights_name_every_way_to_get_them(nowhere: None) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        load_trunk("vgg19")
    message = str(caught.value)
    for way in ("in the config", "internet access", "make weights", "alexnet and vgg16", "no route to host"):
        assert way in message


def test_missing_file_of_the_config_is_named(nowhere: None) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file 'my/vgg\.pth'"):
        load_trunk("vgg16", "my/vgg.pth")


@pytest.mark.parametrize("place", ["hub/checkpoints/alexnet-owt-7be5be79.pth", "trunks/alexnet.pt"])
def test_local_weights_are_found_without_download(
    nowhere: None, tmp_path: Path, alexnet_file: Path, place: str
) -> None:
    features = torch.load(alexnet_file, weights_only=True)
    whole = {f"features.{key}": value for key, value in features.items()} | {"classifier.1.bias": torch.zeros(4096)}
    (tmp_path / place).parent.mkdir(parents=True)
    torch.save(whole, tmp_path / place)
    assert torch.equal(load_trunk("alexnet")[0].weight, features["0.weight"])


def test_fetch_leaves_existing_trunks_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptual, "_download_package", None)
    for name in perceptual.OFFLINE_TRUNKS:
        (tmp_path / f"{name}.pt").touch()
    assert fetch_trunks(tmp_path) == tmp_path


def test_unpickler_admits_arrays() -> None:
    arrays = {"layer": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}
    read = perceptual.read_arrays(io.BytesIO(pickle.dumps(arrays, protocol=3)))
    np.testing.assert_array_equal(read["layer"]["kernel"], arrays["layer"]["kernel"])


def test_unpickler_refuses_code(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {tmp_path / 'harm'}",)

    with pytest.raises(pickle.UnpicklingError, match="only numpy arrays"):
        perceptual.read_arrays(io.BytesIO(pickle.dumps({"kernel": Attack()})))
    assert not (tmp_path / "harm").exists()
