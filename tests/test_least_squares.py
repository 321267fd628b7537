import torch

from scripts.least_squares import solve

MATRIX = torch.tensor([[2.0, 1.0], [1.0, 3.0]])


def bent(x, rows):
    """A coupled function without a simple inverse; problem r is stretched by r + 1."""
    return (rows + 1)[:, None] * (x @ MATRIX.T + 0.3 * (x @ MATRIX.T).sin())


def solved(function, targets, limit=10.0):
    values = function(torch.zeros(len(targets), 2), torch.arange(len(targets)))
    return solve(function, values, targets, 2, tolerance=1e-3, limit=limit)


def test_a_coupled_function_is_solved():
    targets = torch.tensor([[3.0, -1.0], [20.0, 5.0], [0.0, 0.0]])
    x = solved(bent, targets)
    assert torch.allclose(bent(x, torch.arange(3)), targets, atol=1e-3)
    assert not x[2].any()  # nothing is asked, nothing moves


def test_problems_do_not_depend_on_each_other():
    targets = 5 * torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    together = solved(bent, targets)
    for row in range(6):
        alone = solved(lambda x, rows, row=row: bent(x, rows + row), targets[row : row + 1])
        assert torch.allclose(together[row], alone[0], atol=1e-5)


def test_what_cannot_be_reached_is_approached_within_the_limit():
    targets = torch.tensor([[100.0, 100.0]])
    x = solved(bent, targets, limit=2.0)
    assert x.abs().max() <= 2
    assert (targets - bent(x, torch.arange(1))).norm() < 0.95 * targets.norm()


def test_the_end_is_never_worse_than_the_start():
    targets = torch.tensor([[1.0, -1.0], [0.5, 2.0]])
    for function in (lambda x, rows: x.abs() * 50, lambda x, rows: x * torch.nan, lambda x, rows: x * 0):
        x = solved(function, targets)
        left = (targets - function(x, torch.arange(2)).nan_to_num()).norm(dim=1)
        assert (left <= targets.norm(dim=1)).all()


def test_a_single_axis_does_not_make_the_unknowns_run_away():
    def size(x, rows):
        return (x[:, :1] + 1.001 * x[:, 1:]) * torch.tensor([[20.0, 10.0]])

    targets = torch.tensor([[20.0, 0.0]])  # the second value cannot stay
    x = solved(size, targets)
    assert x.abs().max() < 1.5
    assert torch.allclose(size(x, torch.arange(1)), torch.tensor([[16.0, 8.0]]), atol=0.5)  # the best compromise
