from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from scipy import stats
from torch.utils.tensorboard import SummaryWriter

from scripts.charts import (
    change_figure,
    correlation_figure,
    curves_figure,
    pareto_figure,
    pareto_front,
    read_scalars,
    regression,
    scatter_figure,
)
from scripts.metrics import held_out_r2, spearman

NAMES = ["LVEDV", "RVESV"]


@pytest.fixture
def hearts():
    """Codes and attributes of training subjects, then of test subjects."""
    rng = np.random.default_rng(0)
    codes = rng.standard_normal((60, 4))
    attributes = 150 + 30 * codes[:, :2] + 5 * rng.standard_normal((60, 2))
    return [codes[:40], attributes[:40], codes[40:], attributes[40:]]


def lines(axis) -> dict:
    return {line.get_label(): line for line in axis.lines}


def write(folder, tag, values, start=1):
    with SummaryWriter(str(folder)) as writer:
        for step, value in enumerate(values, start):
            writer.add_scalar(tag, value, step)


# Scatter


def test_the_line_is_that_of_the_training_subjects(hearts):
    axis = scatter_figure(*hearts, NAMES).axes[1]
    x, y = lines(axis)["line fitted on training subjects"].get_data()
    assert np.allclose(y, np.polyval(np.polyfit(hearts[0][:, 1], hearts[1][:, 1], 1), x))
    assert np.array_equal(lines(axis)["training subjects"].get_xydata(), np.column_stack([h[:, 1] for h in hearts[:2]]))
    assert np.array_equal(lines(axis)["test subjects"].get_xydata(), np.column_stack([h[:, 1] for h in hearts[2:]]))


def test_the_titles_hold_the_test_metrics_and_the_axes_their_units(hearts):
    figure = scatter_figure(*hearts, NAMES, labels=["z7", "−z9"])
    r2, scc = held_out_r2(*hearts), spearman(*hearts[2:])
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[1] == f"RVESV (ES):  R² {r2[1]:.2f},  SCC {scc[1]:.2f}"
    assert (figure.axes[1].get_xlabel(), figure.axes[1].get_ylabel()) == ("code −z9 (SD of the prior)", "RVESV (mL)")
    assert "20 test subjects" in figure.legends[0].get_title().get_text()


def test_the_interval_holds_95_percent_of_new_subjects():
    rng, inside = np.random.default_rng(1), []
    for _ in range(200):  # 8 subjects: normal quantiles instead of Student's, or an interval of the mean, would fail
        x, y, new = rng.standard_normal(8), rng.standard_normal(8), rng.standard_normal((2, 100))
        line, half = regression(x, y, new[0])
        inside.append(np.mean(np.abs(new[1] - line) < half))
    assert np.mean(inside) == pytest.approx(0.95, abs=0.012)


def test_the_interval_is_drawn_around_the_line(hearts):
    axis = scatter_figure(*hearts, NAMES).axes[0]
    corners = axis.collections[0].get_paths()[0].vertices
    x = lines(axis)["line fitted on training subjects"].get_xdata()
    line, half = regression(hearts[0][:, 0], hearts[1][:, 0], x)
    assert corners[:, 1].max() == pytest.approx((line + half).max())
    assert corners[:, 1].min() == pytest.approx((line - half).min())


def test_missing_values_leave_their_subject_out(hearts):
    hearts[1][3, 0] = hearts[3][5, 0] = np.nan
    axis = scatter_figure(*hearts, NAMES).axes[0]
    assert len(lines(axis)["training subjects"].get_xdata()) == 39
    known = [np.delete(values[:, :1], row, axis=0) for values, row in zip(hearts, (3, 3, 5, 5), strict=True)]
    assert f"R² {held_out_r2(*known)[0]:.2f}" in axis.get_title()


def test_a_constant_code_has_no_line(hearts):
    hearts[0][:, 0] = hearts[2][:, 0] = 1
    axis = scatter_figure(*hearts, NAMES).axes[0]
    assert axis.get_title() == "LVEDV (ED):  R² –,  SCC –"
    assert lines(axis).keys() == {"training subjects", "test subjects"}


# Partial correlations


def test_each_cell_holds_its_number_and_lightness_its_strength():
    matrix = np.array([[0.9, -0.6, 0.05], [-0.02, np.nan, 0.3]])
    axis = correlation_figure(matrix, NAMES, ["z0", "z1", "z7"]).axes[0]
    assert [text.get_text() for text in axis.texts] == ["0.90", "−0.60", "0.05", "−0.02", "undefined", "0.30"]
    assert to_rgb(axis.texts[0].get_color()) == (1, 1, 1)
    assert np.array_equal(axis.images[0].get_array()[0], [0.9, 0.6, 0.05])
    assert [label.get_text() for label in axis.get_xticklabels()] == ["z0\nLVEDV", "z1\nRVESV", "z7"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["LVEDV (ED)", "RVESV (ES)"]


def test_negative_cells_are_hatched_and_pairs_framed():
    axis = correlation_figure(np.array([[0.9, -0.6], [-0.02, -0.8]]), NAMES, ["z0", "z1"]).axes[0]
    cells = [(patch.get_xy(), bool(patch.get_hatch())) for patch in axis.patches if isinstance(patch, Rectangle)]
    assert {xy for xy, hatched in cells if hatched} == {(0.5, -0.5), (0.5, 0.5)}
    assert {xy for xy, hatched in cells if not hatched} == {(-0.5, -0.5), (0.5, 0.5)}


# Training curves


@pytest.fixture
def scalars():
    return {
        "encoder_loss": (np.arange(1, 9), np.array([8.0, 6, 4, 2, 1, 1, 1, 3])),
        "log_exp_elbo_generated": (np.array([7, 8]), np.array([-1.0, -2])),
        "val_scc": (np.arange(1, 5), np.array([0.1, 0.2, 0.3, 0.4])),
    }


def test_iterations_are_averaged_within_their_epoch(scalars):
    figure = curves_figure(scalars)
    assert [axis.get_title() for axis in figure.axes] == ["losses", "interpretability", "adversarial term"]
    curves = [axis.lines[0].get_xydata().tolist() for axis in figure.axes]
    assert curves == [[[1, 7], [2, 3], [3, 1], [4, 2]], [[1, 0.1], [2, 0.2], [3, 0.3], [4, 0.4]], [[4, -1.5]]]
    assert {axis.get_xlabel() for axis in figure.axes} == {"epoch"}


def test_the_length_of_an_epoch_can_be_given(scalars):
    assert curves_figure(scalars, iterations_per_epoch=4).axes[0].lines[0].get_ydata().tolist() == [5, 1.5]


def test_the_end_of_the_warm_up_is_marked(scalars):
    for axis in curves_figure(scalars, warmup_epochs=3).axes:
        assert list(lines(axis)["end of warm-up"].get_xdata()) == [3, 3]
    assert "end of warm-up" not in lines(curves_figure(scalars).axes[0])


def test_after_a_resume_the_last_value_of_a_step_counts(tmp_path):
    write(tmp_path, "encoder_loss", [1, 2, 3, 4])
    (killed,) = tmp_path.iterdir()
    killed.write_bytes(killed.read_bytes()[:-5])  # a kill amid a write loses step 4
    write(tmp_path, "val_scc", [0.5])
    write(tmp_path, "encoder_loss", [30, 40, 50], start=3)
    scalars = read_scalars(tmp_path)
    assert {tag: (list(steps), list(values)) for tag, (steps, values) in scalars.items()} == {
        "encoder_loss": ([1, 2, 3, 4, 5], [1, 2, 30, 40, 50]),
        "val_scc": ([1], [0.5]),
    }


def test_no_value_of_a_long_training_is_dropped(tmp_path):
    write(tmp_path, "encoder_loss", range(12000))  # TensorBoard's reader samples 10,000 unless told otherwise
    assert len(read_scalars(tmp_path)["encoder_loss"][0]) == 12000


def test_a_folder_without_scalars_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=tmp_path.name):
        read_scalars(tmp_path)


# Counterfactuals


@pytest.fixture
def answers():
    """Requests to 12 subjects, some not made, and two instruments: one finds half of them, one all."""
    requested = np.tile([-20.0, -10, 10, 20], (2, 12, 1))
    requested[0, :3, 3] = np.nan
    spread = np.linspace(-1, 1, 12)[:, None]
    return requested, {"segmentation": 0.5 * requested + spread, "regressor": requested + spread}


def test_changes_are_described_by_the_first_instrument(answers):
    axis = change_figure(*answers, NAMES).axes[1]
    assert axis.get_title() == "RVESV (ES):  slope 0.50,  R² 0.99"
    assert len(axis.lines[1].get_xdata()) == 48
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("requested change (mL)", "measured change (mL)")


def test_means_of_changes_have_the_interval_of_a_mean(answers):
    requested, measured = answers
    figure = change_figure(requested, measured, NAMES)
    containers = {each.get_label(): each for each in figure.axes[0].containers}
    assert list(containers) == ["segmentation", "regressor"]
    means = containers["regressor"].lines[0].get_ydata()
    known = measured["regressor"][0, 3:, 3]
    assert means[3] == pytest.approx(known.mean())
    low, high = containers["regressor"].lines[2][0].get_segments()[3][:, 1]
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 8, known.mean(), stats.sem(known)))


def test_without_any_request_there_is_an_empty_figure(answers):
    requested = np.full((2, 12, 4), np.nan)
    assert "slope –" in change_figure(requested, {"segmentation": requested}, NAMES).axes[0].get_title()


# Pareto


def point(method, gamma, x, y):
    return {
        "method": method,
        "gamma": gamma,
        **{"x": x, "x_low": x - 0.01, "x_high": x + 0.02},
        **{"y": y, "y_low": y - 0.1, "y_high": y + 0.05},
    }


def test_the_front_has_no_dominated_point():
    points = [(0.5, 0.5), (0.4, 0.4), (0.7, 0.2), (0.5, 0.1), (0.3, 0.9), (0.7, 0.1), (np.nan, 1)]
    assert pareto_front(points) == [(0.3, 0.9), (0.5, 0.5), (0.7, 0.2)]
    assert pareto_front([]) == []


def test_methods_differ_in_marker_and_name_their_weight():
    points = [point("AR-SIVAE", 0.5, 0.7, 0.5), point("AR-SIVAE", 5, 0.6, 0.6), point("SIVAE", None, 0.65, 0.1)]
    axis = pareto_figure(points, "SSIM", "SCC").axes[0]
    first, second = (container.lines[0] for container in axis.containers)
    assert first.get_xydata().tolist() == [[0.7, 0.5], [0.6, 0.6]]
    assert first.get_marker() != second.get_marker()
    assert [container.get_label() for container in axis.containers] == ["AR-SIVAE", "SIVAE"]
    assert [text.get_text() for text in axis.texts] == ["γ = 0.5", "γ = 5"]
    assert lines(axis)["Pareto front"].get_xydata().tolist() == [[0.6, 0.6], [0.7, 0.5]]


def test_error_bars_reach_to_the_ends_of_the_intervals():
    axis = pareto_figure([point("AR-SIVAE", 1, 0.7, 0.5)]).axes[0]
    horizontal, vertical = (bars.get_segments()[0] for bars in axis.containers[0].lines[2])
    assert np.allclose(horizontal, [[0.69, 0.5], [0.72, 0.5]])
    assert np.allclose(vertical, [[0.7, 0.4], [0.7, 0.55]])
