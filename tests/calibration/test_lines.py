import numpy as np
import pytest

from scripts.calibration.lines import Estimate, conformal_quantile, fit_line, shortfalls


def subjects(count, seed, noise=10.0):
    generator = np.random.default_rng(seed)
    codes = generator.standard_normal((count, 3))
    return codes, 150 + 40 * codes[:, 1] + noise * generator.standard_normal(count)


def test_a_line_gives_the_attribute_in_its_unit():
    line = fit_line(subjects(50, 0, noise=0), subjects(30, 1, noise=0), 1, 0.95)
    estimate = line.estimate(np.array([9.0, 1.0, 9.0]))
    assert estimate == pytest.approx((190, 190, 190))


def test_new_subjects_are_covered_as_often_as_promised():
    covered = []
    for seed in range(200):
        line = fit_line(subjects(40, seed), subjects(39, 1000 + seed), 1, 0.9)
        estimates = [(line.estimate(code), truth) for code, truth in zip(*subjects(50, 5000 + seed), strict=True)]
        covered += [estimate.low <= truth <= estimate.high for estimate, truth in estimates]
    assert 0.88 < np.mean(covered) < 0.93


def test_an_overfitted_line_widens_no_interval_by_training_residuals():
    line = fit_line(subjects(50, 0, noise=0), subjects(99, 1, noise=20), 1, 0.95)
    assert line.half_width > 30  # the residuals of training subjects are all zero


@pytest.mark.parametrize(("count", "reached"), [(19, 0.95), (18, 18 / 19), (3, 0.75), (0, None)])
def test_few_subjects_support_only_a_lower_level(count, reached):
    half, level = conformal_quantile(np.arange(count), 0.95)
    assert level == reached
    assert half == (count - 1 if count else None)


def test_the_quantile_counts_the_new_subject_too():
    assert conformal_quantile(np.arange(100), 0.95)[0] == 95  # the 96th of 100


def test_a_missing_attribute_is_left_out():
    training, validation = subjects(40, 0), subjects(25, 1)
    for _, values in (training, validation):
        values[::5] = np.nan
    line = fit_line(training, validation, 1, 0.95)
    assert np.isfinite(line.half_width)
    assert line.level == 0.95


def test_what_cannot_be_negative_is_cut_at_zero():
    estimate = fit_line(subjects(40, 0), subjects(25, 1), 1, 0.95).estimate(np.array([0.0, -20.0, 0.0]))
    assert estimate.high < 0
    assert estimate.from_zero() == (0, 0, 0)
    assert Estimate(1.0, np.nan, np.nan).from_zero()[0] == 1


def test_without_validation_there_is_a_value_and_no_interval():
    line = fit_line(subjects(40, 0), subjects(0, 1), 1, 0.95)
    value, low, high = line.estimate(np.zeros(3))
    assert value == pytest.approx(150, abs=5)
    assert np.isnan([low, high]).all()
    assert shortfalls({"LVEDV": line}, 0.95) == [
        "No interval for LVEDV: no validation subject has a value; 95 % need 19 of them."
    ]


def test_a_lower_level_is_told():
    line = fit_line(subjects(40, 0), subjects(9, 1), 1, 0.95)
    (message,) = shortfalls({"LVEDV": line, "RVEDV": line}, 0.95)
    assert message == "Intervals of LVEDV, RVEDV hold at 90 % only: 95 % need 19 validation subjects."


def test_constant_codes_give_the_mean():
    codes, values = np.zeros((10, 3)), np.arange(10.0)
    assert fit_line((codes, values), (codes, values), 1, 0.5).estimate(np.zeros(3)).value == 4.5


def test_r2_is_that_of_validation_subjects_against_the_mean_of_training_subjects():
    training, validation = subjects(40, 0), subjects(25, 1)
    line = fit_line(training, validation, 1, 0.95)
    predicted = line.intercept + line.slope * validation[0][:, 1]
    expected = 1 - np.sum((validation[1] - predicted) ** 2) / np.sum((validation[1] - training[1].mean()) ** 2)
    assert line.r2 == pytest.approx(expected)
    assert fit_line(training, subjects(0, 1), 1, 0.95).r2 is None
