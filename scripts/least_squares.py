"""Many small nonlinear least-squares problems at once, by damped Newton steps (Levenberg-Marquardt).

SciPy's ``least_squares`` solves one problem after the other. Here a network evaluates the problems of all subjects in
one batch, and each of them takes its own steps: none depends on the others.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

ITERATIONS = 20
DIFFERENCE = 0.02  # of the unknowns' unit, for the Jacobian: networks are rough below, and float32 is not exact enough
RADIUS = 1.0  # largest step along an unknown, in its unit
DAMPING, LEAST, MOST = 1e-3, 1e-6, 1e6  # at the start, and its limits, in parts of the mean squared slope
EASED, RAISED = 0.2, 8.0  # what the damping is multiplied with after a step that was better, or was not
WORTHWHILE = 0.99  # of the error before: a step that leaves more of it is the last

Function = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def solve(
    function: Function,
    targets: torch.Tensor,
    unknowns: int,
    tolerance: float,
    limit: float,
    iterations: int = ITERATIONS,
) -> torch.Tensor:
    """The unknowns x with ``function(x) = targets``, or as near as the steps from x = 0 get: never farther than that.

    Args:
        function: of unknowns (b, n), and of the problems (b,) that they are of, to values (b, m). It needs no gradient:
            the Jacobian is taken from differences.
        targets: (B, m).
        unknowns: n. Their unit should be such that 1 is a large step for each.
        tolerance: in the unit of the values; a problem whose values are all within it is solved.
        limit: of every unknown, either way.
        iterations: after which the unsolved are left as they are.

    Returns:
        (B, n).
    """
    x = targets.new_zeros(len(targets), unknowns)
    everyone = torch.arange(len(targets), device=targets.device)
    missing = targets - function(x, everyone)
    slopes = x.new_zeros(*targets.shape, unknowns)
    damping, fresh = x.new_full((len(x),), DAMPING), torch.zeros_like(everyone, dtype=torch.bool)
    for _ in range(iterations):
        rows = everyone[(missing.abs().amax(1) > tolerance) & (damping < MOST)]
        if not len(rows):
            break
        stale = rows[~fresh[rows]]
        slopes[stale] = jacobian(function, x[stale], targets[stale] - missing[stale], stale)
        trial = (x[rows] + step(slopes[rows], missing[rows], damping[rows])).clamp(-limit, limit)
        left = targets[rows] - function(trial, rows)
        error, before = left.norm(dim=1), missing[rows].norm(dim=1)
        better = error < before  # not of NaN
        x[rows[better]], missing[rows[better]] = trial[better], left[better]
        fresh[rows] = ~better
        damping[rows] *= torch.where(better, EASED, RAISED)
        damping[rows[better & (error > WORTHWHILE * before)]] = MOST
        damping.clamp_(min=LEAST)
    return x


def jacobian(function: Function, x: torch.Tensor, values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Slopes (b, m, n) of a function at x (b, n), where it has these values (b, m), from differences."""
    count, unknowns = x.shape
    if not count:
        return x.new_zeros(0, values.shape[1], unknowns)
    beside = x[:, None] + DIFFERENCE * torch.eye(unknowns).to(x)
    moved = function(beside.flatten(0, 1), rows.repeat_interleave(unknowns)).unflatten(0, (count, unknowns))
    return ((moved - values[:, None]) / DIFFERENCE).mT


def step(slopes: torch.Tensor, missing: torch.Tensor, damping: torch.Tensor) -> torch.Tensor:
    """Damped Newton steps (b, n) towards what is missing (b, m), none of them longer than ``RADIUS``."""
    square = slopes.mT @ slopes
    size = square.diagonal(dim1=1, dim2=2).mean(1)
    ridge = (damping * size).clamp(min=torch.finfo(size.dtype).tiny)
    ridge = ridge[:, None, None] * torch.eye(square.shape[-1]).to(square)
    steps = torch.linalg.solve(square + ridge, (slopes.mT @ missing[..., None]))[..., 0]
    return steps / (steps.abs().amax(1, keepdim=True) / RADIUS).clamp(min=1)
