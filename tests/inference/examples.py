"""Stand-ins for what an inference is made of."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from scripts.calibration.calibration import PERCENTILES

NAMES = ("LVEDV", "RVEDV", "MyoEDV", "LVESV", "RVESV", "MyoESV")


class FixedCalibration:
    """Estimates 100 mL more than the code, and finds a first code above 1 out of range."""

    attributes, level = NAMES, 0.95

    def estimate(self, codes):
        values = {name: 100 + float(codes[k]) for k, name in enumerate(NAMES)}
        return {name: SimpleNamespace(value=value, low=value - 20, high=value + 20) for name, value in values.items()}

    def novelty(self, codes, log_variances, image, reconstruction):
        outside = bool(codes[0] > 1)
        percentiles = {"error_ED": 99.7 if outside else 60.0, "kl": 40.0}
        percentile = 99.6 if outside else 55.0
        return SimpleNamespace(percentiles=percentiles, score=1.0, percentile=percentile, out_of_range=outside)

    def cautions(self):
        return ["Something is wrong with this model."]

    def quantiles(self, name):
        return np.linspace(50, 200, len(PERCENTILES))


def encoded(first_code=0.5, size=8):
    """What the evaluator gives of one subject."""
    image = torch.linspace(0, 1, size * size).reshape(1, size, size).repeat(2, 1, 1)
    codes = torch.tensor([first_code, *[0.25] * 7])
    return {"image": image, "pred": image * 0.9, "codes": codes, "log_variances": torch.zeros(8)}


def measured(**values):
    """An item with the values of its masks."""
    return {"subject": "a", "state": "1", "mask": "manual", **dict.fromkeys(NAMES, 120.0), "LVEF": 58.0} | values
