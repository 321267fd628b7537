"""What the processes of one training tell each other; without ``torchrun`` there is one process, and nothing to tell.

Gradients are averaged by one message per update and not by ``DistributedDataParallel``: that sends them after each
backward pass and wants a forward pass before it, whereas the introspective step shares forward passes between two
updates.
"""

from __future__ import annotations

from collections.abc import Iterable

import ignite.distributed as idist
import torch
from ignite.metrics import EpochMetric
from monai.utils import evenly_divisible_all_gather
from torch import nn


def own_rows(count: int) -> slice:
    """Which rows of the whole batch are this process's, where each process has ``count``."""
    first = idist.get_rank() * count
    return slice(first, first + count)


def gather_rows(values: torch.Tensor) -> torch.Tensor:
    """The rows (B, ...) of all processes, one after the other, as (processes * B, ...), without gradient.

    Args:
        values: as many rows in each process.
    """
    values = values.detach()
    if idist.get_world_size() == 1:
        return values
    return idist.all_gather(values.contiguous())


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """The sum of what the processes have, in each of them, without gradient."""
    values = values.detach()
    if idist.get_world_size() == 1:
        return values
    return idist.all_reduce(values.clone(memory_format=torch.contiguous_format))


def of_first_process(values: torch.Tensor) -> torch.Tensor:
    """The first process's values, in each of them, whatever shape these have there."""
    return idist.broadcast(values.contiguous(), safe_mode=True) if idist.get_world_size() > 1 else values


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes."""
    if idist.get_world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    mean = idist.all_reduce(torch.cat([gradient.flatten() for gradient in gradients])) / idist.get_world_size()
    for gradient, values in zip(gradients, mean.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(values.view(gradient.shape))  # keeps its memory layout, which the optimizer relies on


def share_weights(network: nn.Module) -> None:
    """Give every process the weights and statistics of the first one."""
    if idist.get_world_size() > 1:
        for value in network.state_dict().values():
            value.copy_(idist.broadcast(value))


def local_batch_size(batch_size: int) -> int:
    """How many images each process takes of a batch.

    Raises:
        ValueError: when they cannot share it evenly.
    """
    processes = idist.get_world_size()
    if batch_size % processes:
        raise ValueError(f"batch_size {batch_size} cannot be shared by {processes} processes: name a multiple of that.")
    return batch_size // processes


def gather_uneven(values: torch.Tensor) -> torch.Tensor:
    """The rows (B, ...) of all processes, which may have different numbers of them, without gradient."""
    if idist.get_world_size() == 1:
        return values.detach()
    return evenly_divisible_all_gather(values.detach().to(idist.device()))


class GatheredMetric(EpochMetric):
    """Ignite's ``EpochMetric``, for processes that may have different numbers of subjects."""

    def compute(self) -> float:
        """The metric of the subjects of all processes, in each of them."""
        return self.compute_fn(*(gather_uneven(torch.cat(values)) for values in (self._predictions, self._targets)))
