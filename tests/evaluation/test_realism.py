from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from scipy import linalg, stats

from scripts.evaluation.realism import frechet_distance, generate, kernel_distance, memorization
from scripts.networks import VariationalAutoencoder

DISTANCES = [kernel_distance, frechet_distance]
pytestmark = pytest.mark.filterwarnings("error")


def features(images: int, seed: int, shift: float = 0, count: int = 12) -> np.ndarray:
    """Correlated, positive features, as activations are."""
    rng = np.random.default_rng(seed)
    return np.abs(rng.normal(size=(images, count)) + 0.5 * rng.normal(size=(images, 1)) + shift)


@pytest.fixture(scope="module")
def network() -> VariationalAutoencoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VariationalAutoencoder(2, (16, 16), (4, 8), latent_dim=3)


@pytest.fixture(params=["residual", "plain"])
def either(request: pytest.FixtureRequest) -> VariationalAutoencoder:
    return VariationalAutoencoder(2, (16, 16), (4, 8), latent_dim=3, architecture=request.param)


def test_generated_images_are_decoded_from_the_prior(either):
    codes = torch.cat(list(generate(either.train(), 7, 3, seed=5, device="cpu")))
    expected = either.eval().decode(torch.randn(7, 3, generator=torch.Generator().manual_seed(5)))
    assert torch.allclose(codes, expected, atol=1e-6)


def test_prior_codes_do_not_depend_on_the_batch_size(network):
    sizes = [[len(batch) for batch in generate(network, 7, size, seed=5, device="cpu")] for size in (3, 7)]
    assert sizes == [[3, 3, 1], [7]]
    parts, whole = (torch.cat(list(generate(network, 7, size, seed=5, device="cpu"))) for size in (3, 7))
    assert torch.allclose(parts, whole, atol=1e-6)
    assert not torch.allclose(whole, next(generate(network, 7, 7, seed=6, device="cpu")), atol=1e-2)


def test_generation_leaves_no_trace(network):
    state = torch.get_rng_state()
    for images in generate(network.train(), 4, 2, seed=0, device="cpu"):
        assert not images.requires_grad
        assert network.training
        assert torch.is_grad_enabled()  # while a batch is out, the caller may train
    assert torch.equal(torch.get_rng_state(), state)


def test_kernel_distance_by_the_formula():
    real, generated = features(13, 0), features(11, 1, shift=0.5)

    def kernel(x, y):
        return (sum(a * b for a, b in zip(x, y, strict=True)) / len(x) + 1) ** 3

    def mean(first, second):
        pairs = product(first.tolist(), second.tolist())
        return np.mean([kernel(x, y) for x, y in pairs if x is not y and x != y])

    expected = mean(real, real) + mean(generated, generated) - 2 * mean(real, generated)
    assert kernel_distance(real, generated)["value"] == pytest.approx(expected)


def test_frechet_distance_by_the_formula():
    real, generated = features(70, 0), features(50, 1, shift=0.5)
    a, b = np.cov(real.T), np.cov(generated.T)
    means = np.square(real.mean(axis=0) - generated.mean(axis=0)).sum()
    expected = means + np.trace(a) + np.trace(b) - 2 * np.trace(linalg.sqrtm(a @ b).real)
    assert frechet_distance(real, generated)["value"] == pytest.approx(expected)


def test_frechet_distance_of_normal_distributions():
    sample = np.random.default_rng(0).normal(size=(4000, 2)) @ np.diag([1, 2])
    turned = np.random.default_rng(1).normal(size=(4000, 2)) @ np.diag([3, 1]) + [2, 0]
    found = frechet_distance(sample, turned)
    assert found["low"] < 2**2 + (3 - 1) ** 2 + (2 - 1) ** 2 < found["high"]


def test_frechet_distance_of_fewer_images_than_features():
    real = features(20, 0, count=50)
    assert frechet_distance(real, real)["value"] == pytest.approx(0, abs=1e-9)
    moved = frechet_distance(real, real + 2)
    assert moved["value"] == pytest.approx(50 * 2**2)
    assert (moved["n_real"], moved["n_generated"], moved["n_features"]) == (20, 20, 50)


def test_frechet_distance_is_biased_where_kernel_distance_is_not():
    repeats = [(features(20, seed, count=30), features(20, seed + 100, count=30)) for seed in range(20)]
    frechet, kernel = ([distance(*pair)["value"] for pair in repeats] for distance in reversed(DISTANCES))
    assert min(frechet) > 5
    assert abs(np.mean(kernel)) < 2 * stats.sem(kernel)


def test_kernel_distance_tells_distributions_apart():
    same = kernel_distance(features(80, 0), features(60, 1))
    other = kernel_distance(features(80, 0), features(60, 1, shift=2))
    assert same["low"] < 0 < same["high"]
    assert 0 < same["high"] < other["low"] < other["value"] < other["high"]


@pytest.mark.parametrize("distance", DISTANCES)
def test_intervals_have_the_spread_of_repeats(distance):
    found = [distance(features(60, seed, shift=0.5), features(40, seed + 500)) for seed in range(60)]
    middle = np.mean([entry["value"] for entry in found])
    assert np.mean([entry["low"] < middle < entry["high"] for entry in found]) > 0.85
    reach = np.mean([entry["high"] - entry["low"] for entry in found]) / 2
    assert 1.5 < reach / np.std([entry["value"] for entry in found]) < 4
    assert found[0] == distance(features(60, 0, shift=0.5), features(40, 500))


@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_that_are_undefined_say_why(distance):
    assert np.isnan([distance(features(9, 0), features(20, 1))[key] for key in ("value", "low", "high")]).all()
    assert "9 real images, of at least 10" in distance(features(9, 0), features(20, 1))["undefined"]
    assert "0 generated images" in distance(features(20, 0), features(0, 1))["undefined"]
    assert "generated images are not finite" in distance(features(20, 0), np.full((20, 12), np.nan))["undefined"]
    with pytest.raises(ValueError, match=r"\(20, 12\).*\(20, 11\)"):
        distance(features(20, 0), features(20, 1, count=11))


def test_a_decoder_that_memorizes_is_caught():
    train, test = features(50, 0), features(40, 1)
    copies = np.random.default_rng(2).integers(50, size=30)
    found = memorization(train, test, train[copies])
    assert found["value"] == found["high"] == 1
    assert found["chance"] < 1e-6
    assert found["distance"] == pytest.approx(np.zeros(30), abs=1e-6)
    assert (found["train"] == copies[found["generated"]]).all()
    assert found["median_generated"] < 1e-6 < found["median_test"]


def test_one_copy_comes_first():
    train, test, generated = features(50, 0), features(40, 1), features(30, 2)
    generated[17] = train[23]
    found = memorization(train, test, generated)
    assert (found["generated"][0], found["train"][0]) == (17, 23)
    assert (np.diff(found["distance"]) >= 0).all()
    assert sorted(found["generated"]) == list(range(30))
    assert found["value"] < 0.3


def test_nearest_images_by_the_formula():
    train, test, generated = features(50, 0), features(39, 1), features(30, 2)
    generated[:8] = train[10:18] + 0.05
    among = np.linalg.norm(generated[:, None] - train, axis=2)
    unseen = np.linalg.norm(test[:, None] - train, axis=2).min(axis=1)
    found = memorization(train, test, generated)
    assert (found["train"] == among.argmin(axis=1)[found["generated"]]).all()
    assert found["distance"] == pytest.approx(np.sort(among.min(axis=1)))
    assert found["median_test"] == pytest.approx(np.median(unseen))
    count = (among.min(axis=1) < np.sort(unseen)[1]).sum()  # 5% of 39 + 1
    assert found["value"] == count / 30
    assert (found["low"], found["high"]) == pytest.approx(
        (stats.beta.ppf(0.025, count, 31 - count), stats.beta.ppf(0.975, count + 1, 30 - count))
    )


def test_expected_share_where_nothing_is_memorized():
    train = features(60, 0)
    found = [memorization(train, features(39, 2 * seed + 1), features(20, 2 * seed + 2)) for seed in range(300)]
    assert found[0]["expected"] == 0.05
    assert memorization(train, features(10, 1), features(10, 2))["expected"] == pytest.approx(1 / 11)
    shares, chances = np.array([(entry["value"], entry["chance"]) for entry in found]).T
    assert abs(shares.mean() - 0.05) < 3 * stats.sem(shares)
    assert (chances[shares == 0] == 1).all()
    assert 0 < (chances < 0.1).mean() < 0.15


def test_memorization_that_is_undefined_says_why():
    for sets in ((5, 20, 20), (20, 5, 20), (20, 20, 5)):
        found = memorization(*(features(count, seed) for seed, count in enumerate(sets)))
        assert "5 " in found["undefined"]
        assert np.isnan([found[key] for key in ("value", "low", "expected", "chance", "median_test")]).all()
        assert [len(found[key]) for key in ("generated", "train", "distance")] == [0, 0, 0]
    with pytest.raises(ValueError, match="same features"):
        memorization(features(20, 0), features(20, 0), features(20, 0)[0])
