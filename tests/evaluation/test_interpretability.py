from types import SimpleNamespace

import numpy as np
import pytest

from scripts.evaluation.interpretability import CEILING, MODEL, SAMPLED, both_protocols, code_rows, matched_dimensions

NAMES = ["LVEDV", "RVEDV", "LVESV"]


def records(count, seed, dims=6, follows=(0, 1, 2)):
    """Subjects whose codes on given dimensions are the attributes."""
    rng = np.random.default_rng(seed)
    attributes = rng.normal(100, 20, (count, 3))
    codes = rng.standard_normal((count, dims))
    codes[:, list(follows)] = (attributes - 100) / 20
    drawn = codes + 0.5 * rng.standard_normal(codes.shape)
    return SimpleNamespace(
        pseudonyms=[100 * seed + k for k in range(count)],
        codes=codes,
        attributes=attributes,
        sampled_codes=lambda seed: drawn + seed,
    )


def test_attributes_find_the_dimensions_that_follow_them_and_their_signs():
    training = records(40, 0, follows=(4, 0, 2))
    training.codes[:, 0] *= -1
    training.attributes[3, 1] = np.nan
    dimensions, signs = matched_dimensions(training.codes, training.attributes)
    assert dimensions.tolist() == [4, 0, 2]
    assert signs.tolist() == [1, -1, 1]


def test_no_dimension_serves_two_attributes():
    codes = np.random.default_rng(0).standard_normal((30, 4))
    attributes = np.column_stack([codes[:, 1]] * 2)
    assert len(set(matched_dimensions(codes, attributes)[0])) == 2


def test_constant_codes_are_matched_to_nothing_but_do_not_fail():
    assert len(matched_dimensions(np.zeros((20, 5)), np.random.default_rng(0).random((20, 3)))[0]) == 3


def test_rows_hold_the_model_the_references_and_the_ceiling():
    training, test = records(30, 0), records(20, 1)
    rows = code_rows(training, test, True, predictions=(training.attributes, test.attributes))
    assert list(rows) == [MODEL, SAMPLED, "noise", "heart size", "oracle", CEILING]
    assert all(len(row.training) == 30 and len(row.test) == 20 for row in rows.values())
    assert rows[MODEL].dimensions.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(rows[SAMPLED].training, training.sampled_codes(0))
    np.testing.assert_array_equal(rows[SAMPLED].test, test.sampled_codes(1))  # of other noise
    assert len({row.test.shape for row in rows.values()}) == 1  # metrics fall with the number of dimensions
    np.testing.assert_array_equal(rows[CEILING].test[:, :3], test.attributes)


def test_codes_without_attribute_loss_are_judged_on_what_training_subjects_choose():
    training, test = records(40, 0, follows=(5, 3, 1)), records(30, 1, follows=(5, 3, 1))
    for part in (training, test):
        part.codes[:, 5] *= -1
    rows = code_rows(training, test, False)
    assert rows[MODEL].dimensions.tolist() == [5, 3, 1]
    assert rows[MODEL].signs.tolist() == [-1, 1, 1]
    found = both_protocols({MODEL: rows[MODEL]}, training.attributes, test.attributes, NAMES)
    assert found["sound"][MODEL]["scc"]["value"] == pytest.approx(1)  # turned, so that it rises with the attribute


def test_dimensions_are_chosen_by_training_subjects_alone():
    training, test = records(40, 0, follows=(5, 3, 1)), records(30, 1, follows=(0, 2, 4))
    assert code_rows(training, test, False)[MODEL].dimensions.tolist() == [5, 3, 1]


def test_the_size_axis_has_the_error_that_was_asked_for():
    training, test = records(400, 0), records(300, 1)
    exact, blurred = (code_rows(training, test, True, error)["heart size"].test[:, 0] for error in (0, 0.5))
    assert np.std(blurred - exact) == pytest.approx(0.5, rel=0.1)


def test_protocols_report_groups_of_phases():
    training, test = records(40, 0), records(30, 1)
    rows = code_rows(training, test, True)
    found = both_protocols({MODEL: rows[MODEL]}, training.attributes, test.attributes, NAMES)
    assert {"all", "EDV", "ESV", "each"} == set(found["paper"][MODEL]["interpretability"])
    only_ed = both_protocols(
        {MODEL: rows[MODEL]._replace(dimensions=np.arange(2))},
        training.attributes[:, :2],
        test.attributes[:, :2],
        NAMES[:2],
    )
    assert "ESV" not in only_ed["paper"][MODEL]["interpretability"]


def test_too_few_subjects_give_a_reason_and_no_error():
    training, test = records(40, 0), records(6, 1)
    rows = code_rows(training, test, True)
    found = both_protocols(rows, training.attributes, test.attributes, NAMES)
    assert "6 test subjects" in found["sound"][MODEL]["undefined"]
    assert "10" in found["paper"][MODEL]["undefined"]
