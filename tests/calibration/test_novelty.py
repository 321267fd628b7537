import numpy as np
import pytest
import torch
from scipy import stats

from scripts.calibration.faults import crop_faults
from scripts.calibration.novelty import ANY, GENERAL, SCORE, NoveltyModel, Readings, readings
from scripts.views import View

PHASES = ("ED", "ES")
PROJECTION = torch.randn(2 * 16 * 16, 6, generator=torch.Generator().manual_seed(9)).double() / 16


def hearts(count, seed):
    """Crops (count, 2, 16, 16): a bright spot on a slope, larger in the first phase."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:16, :16]
    place = 8 + 0.5 * generator.standard_normal((2, count, 1, 1, 1))
    size = generator.normal(4, 0.3, (count, 1, 1, 1)) * np.array([1.0, 0.7])[:, None, None]
    spot = np.exp(-((rows - place[0]) ** 2 + (columns - place[1]) ** 2) / size**2)
    noise = 0.02 * generator.standard_normal(spot.shape)
    return torch.from_numpy((0.6 * spot + 0.3 * rows / 16 + noise).clip(0, 1))


def encode(image):
    """As a model that knows hearts: a projection, and a reconstruction that forgets half of what is unusual."""
    codes = image.flatten(1) @ PROJECTION
    reconstruction = 0.5 * image + 0.5 * MEAN
    return codes, torch.full_like(codes, -2.0), image, reconstruction


MEAN = hearts(200, 77).mean(0, keepdim=True)


def read(image):
    return readings(*encode(image), PHASES)


@pytest.fixture(scope="module")
def model():
    training = hearts(60, 0)
    faulty = crop_faults(PHASES, 2.5, torch.Generator().manual_seed(0))
    return NoveltyModel.fit(
        read(training), {name: read(fault(training)) for name, fault in faulty.items()}, read(hearts(30, 1))
    )


def judged(model, images, threshold=99):
    return [model.judge(read(image[None]), threshold) for image in images]


@pytest.mark.parametrize("fault", ["mirrored", "swapped", "inverted"])
def test_a_fault_is_flagged_and_named(model, fault):
    made = crop_faults(PHASES, 2.5, torch.Generator().manual_seed(5))[fault](hearts(20, 2))
    found = judged(model, made)
    assert np.mean([scan.out_of_range for scan in found]) > 0.9
    assert np.mean([scan.percentiles[fault] for scan in found]) > 99


def test_few_sound_scans_are_flagged(model):
    assert np.mean([scan.out_of_range for scan in judged(model, hearts(200, 3))]) < 0.05


def test_what_no_fault_resembles_is_flagged_by_its_distance(model):
    scan = judged(model, torch.rand(1, 2, 16, 16, generator=torch.Generator().manual_seed(0)).double())[0]
    assert scan.out_of_range
    assert min(scan.percentiles["error_ED"], scan.percentiles["code"]) > 99


def test_the_threshold_decides(model):
    image = hearts(1, 4)
    percentile = judged(model, image)[0].percentile
    assert judged(model, image, percentile - 0.1)[0].out_of_range
    assert not judged(model, image, percentile + 0.1)[0].out_of_range


def test_percentiles_of_sound_scans_are_spread_evenly(model):
    values = [scan.percentiles["error_ED"] for scan in judged(model, hearts(300, 6))]
    assert np.quantile(values, [0.25, 0.5, 0.75]) == pytest.approx([25, 50, 75], abs=20)


def test_a_model_is_the_same_after_saving(model):
    again = NoveltyModel(**model.state())
    first, second = (judged(each, hearts(1, 8))[0] for each in (model, again))
    assert first.score == pytest.approx(second.score, rel=1e-3)
    assert first.percentiles == pytest.approx(second.percentiles, abs=0.1)


def test_training_subjects_stand_in_for_missing_validation_subjects(model):
    training = read(hearts(60, 0))
    few = NoveltyModel.fit(training, {"inverted": read(1 - hearts(60, 0))}, read(hearts(2, 1)))
    assert few.subjects == 60
    assert judged(few, 1 - hearts(1, 5))[0].out_of_range


def test_one_phase_has_one_error():
    image = hearts(3, 0)[:, :1]
    codes = image.flatten(1)[:, :6]
    assert set(readings(codes, codes, image, image, ("ED",)).indicators) == {"error_ED", "kl"}


def test_batches_are_joined_in_order():
    whole, parts = read(hearts(5, 0)), [read(hearts(5, 0)[:2]), read(hearts(5, 0)[2:])]
    joined = Readings.join(parts)
    assert np.allclose(joined.features, whole.features)
    assert np.allclose(joined.indicators["kl"], whole.indicators["kl"])


def by_hand(subjects=4):
    """A model whose indicators are in standard deviations already."""
    names = ("error_ED", "error_ES", "kl", "code", "motion", "swapped", ANY, GENERAL, SCORE)
    reference = dict.fromkeys(names, (0.0, 1.0))
    return NoveltyModel(
        np.zeros(1), np.eye(1), ["motion", "swapped"], np.zeros((2, 1)), np.zeros(2), reference, subjects
    )


@pytest.mark.parametrize(
    ("values", "general", "score"),
    [
        ({"error_ES": 3, "kl": 1, "code": 2}, 2, 0.5),  # the worse phase counts, and the mean distance less the margin
        ({"error_ED": 6, "kl": 6, "code": 6, "motion": 1}, 6, 4.5),
        ({"swapped": 5}, 0, 3.5),  # the largest fault less the margin
        ({"motion": 2, ANY: 1.7}, 0, 1.7),  # any fault at all, as it is
    ],
)
def test_the_score_by_hand(values, general, score):
    names = ("error_ED", "error_ES", "kl", "code", "motion", "swapped", ANY)
    z = {name: np.array([float(values.get(name, 0))]) for name in names}
    combined = by_hand().combined(z)
    assert combined[GENERAL] == pytest.approx(general)
    assert combined[SCORE] == pytest.approx(score)


def test_percentiles_allow_for_the_few_that_they_are_known_from():
    expected = 100 * stats.t.cdf(2 / np.sqrt(1 + 1 / 4), 3)
    assert by_hand()._percentile(np.array([2.0])) == pytest.approx(expected)
    assert by_hand()._percentile(np.array([2.0])) < by_hand(400)._percentile(np.array([2.0]))


def test_the_scale_is_that_of_validation_subjects(model):
    assert model.subjects == 30
    z = model.standardized(model.indicators(read(hearts(30, 1))))
    assert all(abs(values.mean()) < 1e-6 for values in z.values())


def test_maps_are_no_reading_of_the_scan():
    view = View(["ED"], anatomy="masks")
    codes, image = torch.randn(4, 3), torch.rand(4, 4, 16, 16)
    other = image.clone()
    other[:, 1:] = 0
    first, second = (readings(codes, codes, seen, seen / 2, view) for seen in (image, other))
    assert np.array_equal(first.features, second.features)
    assert np.array_equal(first.indicators["error_ED"], second.indicators["error_ED"])
