"""Many small nonlinear least-squares problems at once, by damped Newton steps (Levenberg-Marquardt).

SciPy's ``least_squares`` solves one problem after the other. Here a network evaluates the problems of all subjects in
one batch, and each of them takes its own steps: none depends on the others.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

ITERATIONS = 30
DIFFERENCE = 0.02  # of the unknowns' unit, for slopes: networks are rough below, and float32 is not exact enough
RADIUS = 1.0  # largest step along an unknown, in its unit
DAMPING, LEAST, MOST = 1e-3, 1e-6, 1e6  # at the start, and its limits, in parts of the mean squared slope
EASED, RAISED = 0.2, 8.0  # what the damping is multiplied with after a step that was better, or was not
WORTHWHILE = 0.99  # of the error before: a step that leaves more of it needs better slopes, or is the last

Function = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def solve(
    function: Function,
    values: torch.Tensor,
    targets: torch.Tensor,
    unknowns: int,
    tolerance: float,
    limit: float,
    iterations: int = ITERATIONS,
) -> torch.Tensor:
    """The unknowns x with ``function(x) = targets``, or as near as the steps from x = 0 get: never farther than that.

    The function needs no gradient: its slopes are taken from differences, and between these from what the steps tell
    (Broyden, Mathematics of Computation 19, 1965), since each evaluation may be that of a network.

    Args:
        function: of unknowns (b, n), and of the problems (b,) that they are of, to values (b, m).
        values: at x = 0, (B, m).
        targets: (B, m).
        unknowns: n. Their unit should be such that 1 is a large step for each.
        tolerance: in the unit of the values; a problem whose values are all within it is solved.
        limit: of every unknown, either way.
        iterations: after which the unsolved are left as they are.

    Returns:
        (B, n).
    """
    x, missing = targets.new_zeros(len(targets), unknowns), targets - values
    slopes, damping = x.new_zeros(*targets.shape, unknowns), x.new_full((len(x),), DAMPING)
    wanted = torch.ones(len(x), dtype=torch.bool, device=x.device)  # slopes from differences
    exact = ~wanted  # slopes that are from differences at x
    for _ in range(iterations):
        rows = torch.nonzero((missing.abs().amax(1) > tolerance) & (damping < MOST))[:, 0]
        if not len(rows):
            break
        stale = rows[wanted[rows]]
        slopes[stale] = jacobian(function, x[stale], targets[stale] - missing[stale], stale)
        exact[stale] = True
        trial = (x[rows] + step(slopes[rows], missing[rows], damping[rows])).clamp(-limit, limit)
        left = targets[rows] - function(trial, rows)
        share = left.norm(dim=1) / missing[rows].norm(dim=1)
        better, worthwhile, known = share < 1, share < WORTHWHILE, exact[rows]  # not of NaN
        damping[rows] *= torch.where(better, EASED, torch.where(known, RAISED, 1.0))
        damping[rows[better & ~worthwhile & known]] = MOST
        damping.clamp_(min=LEAST)
        wanted[rows] = ~worthwhile & ~known
        good, moved = rows[better], trial[better] - x[rows[better]]
        slopes[good] = secant(slopes[good], moved, missing[good] - left[better])
        x[good], missing[good], exact[good] = trial[better], left[better], False
    return x


def jacobian(function: Function, x: torch.Tensor, values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Slopes (b, m, n) of a function at x (b, n), where it has these values (b, m), from differences."""
    count, unknowns = x.shape
    if not count:
        return x.new_zeros(0, values.shape[1], unknowns)
    beside = x[:, None] + DIFFERENCE * torch.eye(unknowns).to(x)
    moved = function(beside.flatten(0, 1), rows.repeat_interleave(unknowns)).unflatten(0, (count, unknowns))
    return ((moved - values[:, None]) / DIFFERENCE).mT


def secant(slopes: torch.Tensor, moved: torch.Tensor, gained: torch.Tensor) -> torch.Tensor:
    """The slopes (b, m, n) nearest to given ones by which steps (b, n) gain in values what they did (b, m)."""
    wrong = gained - (slopes @ moved[..., None])[..., 0]
    return slopes + wrong[..., None] * (moved / moved.square().sum(1, keepdim=True))[:, None]


def step(slopes: torch.Tensor, missing: torch.Tensor, damping: torch.Tensor) -> torch.Tensor:
    """Damped Newton steps (b, n) towards what is missing (b, m), none of them longer than ``RADIUS``."""
    square = slopes.mT @ slopes
    size = square.diagonal(dim1=1, dim2=2).mean(1)
    ridge = (damping * size).clamp(min=torch.finfo(size.dtype).tiny)
    ridge = ridge[:, None, None] * torch.eye(square.shape[-1]).to(square)
    steps = torch.linalg.solve(square + ridge, (slopes.mT @ missing[..., None]))[..., 0]
    return steps / (steps.abs().amax(1, keepdim=True) / RADIUS).clamp(min=1)
