import copy
import json
import operator
from functools import partial, reduce

import numpy as np
import pytest
import torch
from monai.data import DataLoader

from scripts.calibration.calibration import FILE, Calibration, Calibrator, ImageSums
from scripts.checkpoint import fingerprint, save
from scripts.engines import CodeEvaluator
from scripts.networks import VariationalAutoencoder
from tests.broken import NO_OBJECTS

PHASES = ["ED", "ES"]
SETTINGS = {"phases": PHASES, "attributes": ["LVEDV", "RVEDV"], "level": 0.95, "threshold": 99}


def items(count, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 2, 16, 16, generator=generator)
    volumes = 100 + 50 * torch.rand(count, 2, generator=generator)
    volumes[0, 0] = torch.nan
    return [{"image": image, "attributes": row} for image, row in zip(images, volumes, strict=True)]


def calibrator(folder, regularized=True, validation=20, **settings):
    torch.manual_seed(0)
    network = VariationalAutoencoder(2, (16, 16), (4, 4), 5, "batch")
    if not (folder / "model.pt").exists():
        save(network.state_dict(), folder / "model.pt")
    counts = {"training": 20, "other_slice": 20, "validation": validation}
    datasets = {name: items(count, len(name)) for name, count in counts.items()}
    loader = partial(DataLoader, batch_size=8)
    evaluator = partial(CodeEvaluator, device=torch.device("cpu"), network=network, decollate=False)
    return Calibrator(folder, network, {}, SETTINGS | settings, regularized, datasets, loader, evaluator, spacing=2.5)


def calibrated(folder, **options):
    path = calibrator(folder, **options).run()
    return Calibration.read(path, fingerprint(folder / "model.pt"))


def subject(seed=7):
    generator = torch.Generator().manual_seed(seed)
    codes, image = torch.rand(2, 5, generator=generator), torch.rand(2, 2, 16, 16, generator=generator)
    return codes[0], -codes[1], image[0], image[1]


def test_a_calibration_gives_volumes_and_the_check(tmp_path):
    calibration = calibrated(tmp_path)
    assert calibration.attributes == ("LVEDV", "RVEDV")
    estimates = calibration.estimate(subject()[0])
    assert list(estimates) == ["LVEDV", "RVEDV"]
    assert all(0 <= each.low <= each.value <= each.high for each in estimates.values())
    novelty = calibration.novelty(*subject())
    names = {"error_ED", "error_ES", "kl", "code", "motion", "inverted", "mirrored", "swapped", "other_slice"}
    assert set(novelty.percentiles) == names
    assert 0 <= novelty.percentile <= 100
    assert calibration.novelty(*(part.numpy() for part in subject())) == novelty


def test_quantiles_are_those_of_the_training_subjects(tmp_path):
    calibration = calibrated(tmp_path)
    known = [float(item["attributes"][0]) for item in items(20, len("training"))][1:]
    values = calibration.quantiles("LVEDV")
    assert values[len(values) // 2] == pytest.approx(np.median(known), abs=1e-3)
    assert min(known) < values[0] < values[-1] < max(known)  # no single subject's value
    with pytest.raises(KeyError, match="knows no attribute 'LVEF'; it has LVEDV, RVEDV"):
        calibration.quantiles("LVEF")


def test_without_regularized_attributes_only_the_check_is_left(tmp_path):
    calibration = calibrated(tmp_path, regularized=False)
    assert calibration.estimate(subject()[0]) == {}
    assert np.isfinite(calibration.novelty(*subject()).score)
    assert len(calibration.quantiles("LVEDV"))


def test_it_keeps_how_codes_and_attributes_belong_together(tmp_path):
    population = calibrated(tmp_path).population
    assert population.attributes == ("LVEDV", "RVEDV")
    known = [item["attributes"][1] for item in items(20, len("training"))]
    assert population.low[1] <= min(known) < population.low[1] + 1
    assert np.shape(population.slopes) == (5, 2)
    (tmp_path / FILE).unlink()
    assert calibrated(tmp_path, regularized=False).population is None


def test_one_of_an_earlier_version_is_read_and_replaced(tmp_path):
    path = calibrator(tmp_path).run()
    content = json.loads(path.read_text())
    del content["population"]
    path.write_text(json.dumps(content))
    assert Calibration.read(path, fingerprint(tmp_path / "model.pt")).population is None
    assert calibrated(tmp_path).population is not None


def test_too_few_validation_subjects_are_told(tmp_path, capsys):
    calibration = calibrated(tmp_path, validation=10)
    assert calibration.lines["LVEDV"].level == pytest.approx(0.9)  # one of the ten has no LVEDV
    assert calibration.level == pytest.approx(0.9)
    assert "Intervals of LVEDV hold at 90 % only" in capsys.readouterr().out


def test_a_calibration_of_these_weights_is_kept(tmp_path, capsys):
    path = calibrator(tmp_path).run()
    written = path.stat().st_mtime_ns
    calibrator(tmp_path).run()
    assert path.stat().st_mtime_ns == written
    assert "is already that of" in capsys.readouterr().out
    calibrator(tmp_path, threshold=90).run()
    assert path.stat().st_mtime_ns > written


def test_a_calibration_of_other_weights_is_replaced(tmp_path):
    path = calibrator(tmp_path).run()
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    save({name: (tensor + 0.01).to(tensor.dtype) for name, tensor in weights.items()}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"is of the checkpoint with SHA-256 .* not of that with .*run calibrate"):
        Calibration.read(path, fingerprint(tmp_path / "model.pt"))
    calibrator(tmp_path).run()
    assert Calibration.read(path, fingerprint(tmp_path / "model.pt"))


def test_the_last_weights_serve_where_there_are_no_best(tmp_path):
    tool = calibrator(tmp_path)
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    (tmp_path / "model.pt").unlink()
    save({"network": weights, "epoch": 3}, tmp_path / "last.pt")
    assert Calibration.read(tool.run(), fingerprint(tmp_path / "last.pt"))


def test_the_calibrated_weights_are_those_of_the_file(tmp_path):
    tool = calibrator(tmp_path)
    expected = Calibration.read(tool.run(), fingerprint(tmp_path / "model.pt")).lines
    (tmp_path / FILE).unlink()
    tool = calibrator(tmp_path)
    with torch.no_grad():
        for parameter in tool.network.parameters():
            parameter.mul_(2)  # as an epoch after the best would leave it
    assert Calibration.read(tool.run(), fingerprint(tmp_path / "model.pt")).lines == expected


def test_a_missing_calibration_says_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist; 'run calibrate'"):
        Calibration.read(tmp_path / FILE, "0")


@pytest.mark.parametrize("content", [*NO_OBJECTS, b"{}", b'{"lines": {}, "novelty": {"mean": [0]}}'])
def test_a_broken_calibration_says_what_to_run(content, tmp_path):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(ValueError, match=r"calibration\.json' .*'run calibrate'"):
        Calibration.read(tmp_path / FILE, "0")


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """A calibration as its file has it."""
    return json.loads(calibrator(tmp_path_factory.mktemp("calibration")).run().read_text())


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("checkpoint_sha256", None),
        ("settings", [*SETTINGS]),
        ("settings/phases", -1),
        ("settings/attributes", 5),
        ("settings/attributes/0", None),
        ("settings/level", "x"),
        ("settings/threshold", None),
        ("lines/LVEDV/dimension", "x"),
        ("lines/LVEDV/dimension", 99),
        ("lines/LVEDV/slope", None),
        ("lines/LVEDV/intercept", float("nan")),
        ("lines/LVEDV/half_width", "x"),
        ("lines/LVEDV/level", "x"),
        ("lines/LVEDV/r2", "x"),
        ("quantiles/LVEDV", None),
        ("quantiles/LVEDV/0", "x"),
        ("quantiles", {}),
        ("novelty/mean", 0),
        ("novelty/mean/0", None),
        ("novelty/precision", [[1]]),
        ("novelty/faults/0", None),
        ("novelty/weights/0/0", "x"),
        ("novelty/offsets", [0]),
        ("novelty/offsets/0", float("inf")),
        ("novelty/reference/score/0", None),
        ("novelty/reference/score/1", 0),
        ("novelty/reference/kl", [1]),
        ("novelty/subjects", 0),
        ("novelty/subjects", "x"),
        ("explained", "x"),
        ("population/attributes", None),
        ("population/mean", 3),
        ("population/low/0", "x"),
        ("population/slopes/0/0", None),
    ],
)
def test_a_calibration_that_would_fail_later_is_refused_by_name(place, value, content, tmp_path):
    changed = copy.deepcopy(content)
    *keys, last = (int(key) if key.isdigit() else key for key in place.split("/"))
    reduce(operator.getitem, keys, changed)[last] = value
    (tmp_path / FILE).write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=r"calibration\.json' cannot be read .*'run calibrate'"):
        Calibration.read(tmp_path / FILE, content["checkpoint_sha256"])


def test_it_holds_numbers_of_the_cohort_only(tmp_path):
    content = json.loads(calibrator(tmp_path).run().read_text())
    fitted = {"lines", "quantiles", "novelty", "explained", "population"}
    assert set(content) == {"version", "checkpoint_sha256", "settings"} | fitted


@pytest.mark.parametrize(
    ("settings", "key"), [({"level": 95}, "interval_level"), ({"threshold": 0.99e3}, "novelty_threshold")]
)
def test_a_level_that_means_nothing_is_refused(settings, key, tmp_path):
    with pytest.raises(ValueError, match=key):
        calibrator(tmp_path, **settings)


def test_images_are_compared_with_the_mean_image_of_others():
    training, validation = ImageSums(), ImageSums()
    images = torch.rand(6, 2, 4, 4, dtype=torch.float64)
    training.add(images[:4], images[:4])
    for image in images[4:]:
        validation.add(image[None], torch.full_like(image, 0.5)[None])
    about = (images[4:] - images[:4].mean(0)).square().sum()
    error = (images[4:] - 0.5).square().sum()
    assert validation.explained(training) == pytest.approx(float(1 - error / about))
    validation = ImageSums()
    validation.add(images[4:], images[:4].mean(0).expand(2, 2, 4, 4))
    assert validation.explained(training) == pytest.approx(0)
    assert ImageSums().explained(training) is None


def test_a_model_that_has_learned_nothing_is_told(tmp_path, capsys):
    calibration = calibrated(tmp_path)  # of random weights
    assert any("no better than their mean image" in caution for caution in calibration.cautions())
    assert "Warning: This model reconstructs hearts no better" in capsys.readouterr().out
    calibration.explained = 0.5
    calibration.lines = {name: line._replace(r2=0.3) for name, line in calibration.lines.items()}
    assert calibration.cautions() == []
    calibration.lines = {name: line._replace(r2=-0.1) for name, line in calibration.lines.items()}
    assert calibration.cautions() == ["The codes of this model do not tell volumes: do not use its estimates."]


def test_a_range_known_from_few_scans_is_told(tmp_path):
    assert "The range is known from 10 scans only." in calibrated(tmp_path, validation=10).cautions()
