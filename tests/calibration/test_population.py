import json

import numpy as np
import pytest

from scripts.calibration.population import Population, fit_population

NAMES = ("LVEDV", "LVESV")
MIXING = np.array([[20.0, 5.0], [8.0, 12.0]])


def cohort(count=4000, seed=0):
    """Codes (subjects, 3) of coupled dimensions, and attributes that the first two of them tell exactly."""
    generator = np.random.default_rng(seed)
    codes = generator.standard_normal((count, 3)) @ np.array([[1, 0.6, 0.5], [0, 0.8, 0.2], [0, 0, 0.4]]) + 0.3
    return codes, codes[:, :2] @ MIXING.T + [150, 70]


def test_attributes_are_told_by_their_dimensions_together():
    codes, attributes = cohort()
    population = fit_population(codes, attributes, NAMES)
    assert np.allclose(population.matrix, MIXING)
    assert np.allclose(population.intercept, [150, 70])


def test_slopes_are_those_of_the_conditional_mean():
    codes, attributes = cohort()
    slopes = np.array(fit_population(codes, attributes, NAMES).slopes)
    covariance = np.cov(codes.T) @ np.vstack([MIXING.T, [0, 0]])  # of codes and attributes
    assert np.allclose(slopes, covariance / attributes.var(0, ddof=1))
    assert np.allclose(np.einsum("ak,ka->a", MIXING, slopes[:2]), 1)  # one mL more is one mL more


def test_the_range_is_in_whole_units_around_the_extremes():
    population = fit_population(np.eye(3), np.array([[120.4, 60], [200.2, 45.5], [150, 71]]), NAMES)
    assert (population.low, population.high) == ([120, 45], [201, 71])


def test_missing_values_are_left_out():
    codes, attributes = cohort(200)
    holes = attributes.copy()
    holes[:20, 0] = np.nan
    whole, some = fit_population(codes, attributes, NAMES), fit_population(codes, holes, NAMES)
    rest = fit_population(codes[20:], attributes[20:], NAMES)
    assert np.allclose(np.array(some.slopes)[:, 0], np.array(rest.slopes)[:, 0])
    assert np.allclose(np.array(some.slopes)[:, 1], np.array(whole.slopes)[:, 1])
    assert some.attribute_mean[0] == pytest.approx(rest.attribute_mean[0])
    holes[:, 0] = np.nan
    with pytest.raises(ValueError, match="no training subject has a value of LVEDV"):
        fit_population(codes, holes, NAMES)


def test_an_attribute_that_is_the_same_in_all_moves_no_dimension():
    codes, attributes = cohort(50)
    attributes[:, 1] = 70
    assert not np.array(fit_population(codes, attributes, NAMES).slopes)[:, 1].any()


def test_it_survives_json():
    population = fit_population(*cohort(20), NAMES)
    assert Population.from_state(json.loads(json.dumps(population.state()))) == population


def test_parts_that_do_not_fit_are_refused():
    state = fit_population(*cohort(20), NAMES).state()
    with pytest.raises(ValueError, match=r"population's matrix has shape \(1, 2\); expected \(2, 2\)"):
        Population.from_state(state | {"matrix": state["matrix"][:1]})
