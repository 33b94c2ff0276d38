"""Ranks under torchrun. In one process every function here does nothing, so no caller asks."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """Which process this is, by torchrun's environment variables."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    @classmethod
    def from_environment(cls) -> Ranks:
        """RANK, LOCAL_RANK and WORLD_SIZE; one process where they are not set."""
        return cls(
            rank=int(os.environ.get("RANK", "0")),
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
            world_size=int(os.environ.get("WORLD_SIZE", "1")),
        )

    @property
    def is_main(self) -> bool:
        """True on rank 0, the one that writes and prints."""
        return self.rank == 0


ONE_PROCESS = Ranks()


def leave_cores_to_workers(num_workers: int) -> None:
    """Give PyTorch the cores that the loader's workers leave, unless OMP_NUM_THREADS says.

    Threads that wait for one another spin: more of them than free cores are slower than one
    (docs/log.md). torchrun sets the variable where it starts several ranks.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - num_workers))


@contextmanager
def process_group(
    ranks: Ranks, device: torch.device, *, timeout: timedelta = timedelta(minutes=30)
) -> Iterator[None]:
    """Join the other ranks for the length of the block.

    CPU tensors go over gloo, also beside NCCL: control messages and counts then never wait
    for the GPU's queue.
    """
    if ranks.world_size == 1:
        yield
        return
    _end_with_agent()
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, timeout=timeout)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _end_with_agent() -> None:
    """Ask Linux to end this rank when torchrun's agent dies: each rank has a session of its own."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def local_world_size() -> int:
    """Number of ranks on this machine, by torchrun's variable; 1 without it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def world_size() -> int:
    """Number of ranks of the running process group, 1 without one."""
    return dist.get_world_size() if dist.is_initialized() else 1


def all_reduce(tensor: Tensor) -> Tensor:
    """Sum over the ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def broadcast(tensor: Tensor) -> Tensor:
    """Rank 0's values on every rank, in place."""
    if dist.is_initialized():
        dist.broadcast(tensor, src=0)
    return tensor


def broadcast_object(value: T) -> T:
    """Rank 0's value on every rank: a path, a few numbers."""
    if not dist.is_initialized():
        return value
    holder = [value]
    dist.broadcast_object_list(holder, src=0, device=torch.device("cpu"))
    return holder[0]


def gather_objects(value: T) -> list[T]:
    """Every rank's value on every rank, in their order: a few lines of text."""
    if not dist.is_initialized():
        return [value]
    # With a backend for the CPU torch takes that one.
    found: list[T | None] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found  # type: ignore[return-value]


def barrier() -> None:
    """Wait for every rank."""
    if dist.is_initialized():
        # An all-reduce on the CPU and not `dist.barrier`, which would pick a GPU by itself.
        dist.all_reduce(torch.zeros(1))


def average_buffers(module: nn.Module) -> None:
    """Average floating-point buffers (batch norm's statistics) over the ranks.

    DDP lets every rank keep its own: without this, evaluation would depend on the rank.
    """
    if world_size() == 1:
        return
    for buffer in module.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= world_size()


def wrap(module: nn.Module, device: torch.device, *, compress_gradients: bool = False) -> nn.Module:
    """DistributedDataParallel around the module; the module itself in one process.

    With `compress_gradients` the sum over the ranks is computed in bf16, of gradients that stay as
    they are on each.
    """
    if world_size() == 1:
        return module
    # Buffers are averaged before evaluation instead of copied from rank 0 at every step.
    network = DistributedDataParallel(
        module,
        device_ids=[device.index] if device.type == "cuda" else None,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
    )
    if compress_gradients:
        network.register_comm_hook(None, bf16_compress_hook)
    return network
