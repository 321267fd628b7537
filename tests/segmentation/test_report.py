from __future__ import annotations

import numpy as np
import pytest

from scripts.segmentation.report import compared, contour_figure, contour_sections, examples, markdown, summary

VOXEL = (2.0, 2.0, 10.0)  # 0.04 mL


def test_a_perfect_mask_has_dice_one_and_no_error(heart_mask):
    row = compared(heart_mask, heart_mask, VOXEL)
    assert row["Dice"] == row["LV_Dice"] == row["RV_Dice"] == 1
    assert row["LV_mL"] == row["LV_predicted_mL"] == pytest.approx(0.04 * np.count_nonzero(heart_mask == 1))


def test_dice_is_of_each_structure(heart_mask):
    predicted = heart_mask.copy()
    voxels = np.argwhere(heart_mask == 3)
    half = voxels[: len(voxels) // 2]
    predicted[tuple(half.T)] = 0
    row = compared(heart_mask, predicted, VOXEL)
    kept = len(voxels) - len(half)
    assert row["RV_Dice"] == pytest.approx(2 * kept / (kept + len(voxels)), abs=1e-5)
    assert row["LV_Dice"] == 1


def test_volume_errors_are_absolute_and_signed():
    rows = [
        {"phase": phase, **{f"{name}_Dice": 0.9 for name in ("LV", "Myo", "RV")}, **volumes(error)}
        for phase, error in (("ED", 4.0), ("ES", -2.0))
    ]
    table = {(row["structure"], row["phase"]): row for row in summary(rows)}
    pooled = table["LV", "ED+ES"]
    assert (pooled["volume_MAE_mL"], pooled["volume_bias_mL"]) == (3, 1)
    assert table["LV", "ES"]["volume_bias_mL"] == -2
    assert "| LV, ES | 0.900 ± nan | 2.0 | -2.0 |" in markdown(summary(rows), 1)


def volumes(error):
    return {f"{name}_mL": 100.0 for name in ("LV", "Myo", "RV")} | {
        f"{name}_predicted_mL": 100.0 + error for name in ("LV", "Myo", "RV")
    }


def test_contours_are_drawn_where_the_heart_is(heart_mask):
    views = contour_sections(heart_mask.astype(float), heart_mask, heart_mask, VOXEL)
    assert len(views) == 3
    for gray, mask, predicted, aspect in views:
        assert gray.shape == mask.shape == predicted.shape
        assert mask.any()
        assert aspect == 1


def test_contours_are_named_and_drawn_for_both_masks(heart_mask):
    views = contour_sections(heart_mask.astype(float), heart_mask, heart_mask, VOXEL)
    figure = contour_figure([("best", views), ("worst", views)])
    assert [axis.get_title() for axis in figure.axes[:3]] == ["basal", "mid-cavity", "apical"]
    assert [len(axis.collections) for axis in figure.axes] == [6] * 6


def test_examples_are_the_best_the_middle_and_the_worst():
    rows = examples([(0.9, "ED", ["b"]), (0.5, "ES", ["w"]), (0.8, "ES", ["m"])])
    assert [views for _, views in rows] == [["b"], ["m"], ["w"]]
    assert rows[2][0] == "worst (ES)\nmean Dice 0.50"
