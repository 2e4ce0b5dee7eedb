"""The processes of a run: one, or as many as torchrun started (torch.distributed)."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, distributed

PATIENCE = datetime.timedelta(hours=12)  # that processes wait for one that makes what all need


def rank() -> int:
    """Number of this process, 0 where it is the only one."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def count() -> int:
    """Number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def gather(value: int) -> list[int]:
    """The values of all processes, by rank."""
    if not distributed.is_initialized():
        return [value]
    values = [None] * count()
    distributed.all_gather_object(values, value)
    return values


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Give every process the mean of all processes' gradients, for a step without DistributedDataParallel."""
    if count() == 1:
        return
    gradients = [parameter.grad for parameter in parameters]
    mean = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(mean)
    mean /= count()
    for gradient, part in zip(gradients, mean.split([gradient.numel() for gradient in gradients])):
        gradient.copy_(part.view_as(gradient))


@contextlib.contextmanager
def process_group(device: str) -> Iterator[str]:
    """Join the processes that torchrun started, if it did; yields the device of this one ("cuda" gets its number)."""
    if "WORLD_SIZE" not in os.environ:
        yield device
        return
    cuda = device == "cuda"
    if cuda:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield device
    finally:
        distributed.destroy_process_group()
