import json
import math

import pytest

from scripts.evaluation.report import method_name, refuse_overlap, without_nan


def test_methods_have_the_names_of_the_paper():
    assert method_name("introspective", True) == "AR-SIVAE"
    assert method_name("vae", False) == "β-VAE"


def test_undefined_numbers_are_null_in_json():
    text = json.dumps(without_nan({"a": [math.nan, 1.5], "b": {0: math.inf}}), allow_nan=False)
    assert json.loads(text) == {"a": [None, 1.5], "b": {"0": None}}


def test_judging_training_subjects_is_refused():
    training, test = [{"subject": "a"}, {"subject": "b"}], [{"subject": "b"}, {"subject": "c"}]
    refuse_overlap(training, test[1:], "test")
    with pytest.raises(ValueError, match="1 of 2 subjects of section 'test' are training subjects, the first: b"):
        refuse_overlap(training, test, "test")
