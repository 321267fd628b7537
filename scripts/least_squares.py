"""Many small nonlinear least-squares problems at once, by damped Newton steps (Levenberg-Marquardt).

SciPy's ``least_squares`` solves one problem after the other. Here a network evaluates the problems of all subjects in
one batch, and each of them takes its own steps: none depends on the others. A Jacobian takes an evaluation per unknown,
so that it is kept and corrected by what each step has shown (Broyden, Mathematics of Computation 19, 1965), and taken
anew only where a step by it has failed.
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
    damping = x.new_full((len(x),), DAMPING)
    wrong, exact = (torch.full_like(everyone, value, dtype=torch.bool) for value in (True, False))
    for _ in range(iterations):
        rows = everyone[(missing.abs().amax(1) > tolerance) & (damping < MOST)]
        if not len(rows):
            break
        anew = rows[wrong[rows]]
        slopes[anew] = jacobian(function, x[anew], targets[anew] - missing[anew], anew)
        wrong[anew], exact[anew] = False, True
        trial = (x[rows] + step(slopes[rows], missing[rows], damping[rows])).clamp(-limit, limit)
        left = targets[rows] - function(trial, rows)
        error, before = left.norm(dim=1), missing[rows].norm(dim=1)
        better = error < before  # not of NaN
        slow = ~(error < WORTHWHILE * before)
        slopes[rows[better]] = corrected(slopes[rows], trial - x[rows], missing[rows] - left)[better]
        x[rows[better]], missing[rows[better]] = trial[better], left[better]
        # By an exact Jacobian, a step that fails is too long, and one that gains next to nothing is the last. By a
        # corrected one, it may be the Jacobian's fault.
        wrong[rows] = slow & ~exact[rows]
        damping[rows] *= torch.where(slow, torch.where(exact[rows], RAISED, 1.0), EASED)
        damping[rows[better & slow & exact[rows]]] = MOST
        exact[rows] &= ~better
        damping.clamp_(min=LEAST)
    return x


def corrected(slopes: torch.Tensor, moved: torch.Tensor, changed: torch.Tensor) -> torch.Tensor:
    """Slopes (b, m, n) that agree with what the last move (b, n) has changed (b, m), and are else as near as can be."""
    surprise = changed - (slopes @ moved[..., None])[..., 0]
    length = moved.square().sum(1).clamp(min=torch.finfo(moved.dtype).tiny)
    return slopes + surprise[..., None] * moved[:, None] / length[:, None, None]


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
