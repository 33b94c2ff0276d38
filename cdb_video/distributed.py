"""Ranks under torchrun. In one process every function here does nothing, so no caller asks."""

from __future__ import annotations

import ctypes
import inspect
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from cdb_video.errors import RunError

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


def check_restarts() -> None:
    """Refuse restarts that would fail: torchrun hands a restarted rank a dead one's address.

    It does where its ranks use the agent's store (pytorch issue 135712). With torch 2.13 such
    restarts worked 6 times of 16, and with 2.14 they failed too (docs/log.md).

    Raises:
        RunError: with the variable that mends it.

    """
    most = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
    if most != "0" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise RunError(
            f"torchrun --max-restarts={most}: restarted ranks do not find one another unless "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 is set for torchrun"
        )


def restarted_launch() -> str | None:
    """The launch of torchrun whose ranks were started again; None at its first start.

    Raises:
        RunError: it has no number of its own, so its run could be taken for another's.

    """
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) == 0:
        return None
    launch = launch_id()
    if launch is None:
        raise RunError("torchrun --max-restarts needs --standalone or an --rdzv_id of its own")
    return launch


def launch_id() -> str | None:
    """What torchrun's launches are told apart by; None without it, or where they share one."""
    launch = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return None if launch == "none" else launch


def leave_cores_to_workers(num_workers: int) -> None:
    """Give PyTorch the cores that the loader's workers leave, unless OMP_NUM_THREADS says.

    Threads that wait for one another spin: more of them than free cores are slower than one
    (docs/log.md). torchrun sets the variable where it starts several ranks.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - num_workers))


@contextmanager
def process_group(
    ranks: Ranks, device: torch.device, *, timeout: timedelta = timedelta(minutes=10)
) -> Iterator[None]:
    """Join the other ranks for the length of the block.

    CPU tensors go over gloo, also beside NCCL: control messages and counts then never wait
    for the GPU's queue.
    """
    if dist.is_initialized():  # Ray makes the group itself
        yield
        return
    if ranks.world_size > 1 or "TORCHELASTIC_RUN_ID" in os.environ:
        # torchrun gives each rank a session of its own: its agent's death would go unnoticed.
        end_with_parent(signal.SIGTERM)
    if ranks.world_size == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, timeout=timeout)
    try:
        yield
    finally:
        dist.destroy_process_group()


def end_with_parent(number: signal.Signals) -> None:
    """Ask Linux to send this process a signal when its parent dies."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, number)


def local_world_size() -> int:
    """Number of ranks on this machine, by torchrun's variable; 1 without it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def world_size() -> int:
    """Number of ranks of the running process group, 1 without one."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number in the running process group, 0 without one."""
    return dist.get_rank() if dist.is_initialized() else 0


def any_rank(wants: bool) -> bool:
    """Whether any rank says so; every rank has to ask."""
    return bool(all_reduce(torch.tensor([int(wants)])))


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

    DDP lets every rank keep its own: without this, evaluation would depend on the rank. In float64,
    where the mean of equal fp32 numbers is that number: averaged twice is averaged once.
    """
    buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    if world_size() == 1 or not buffers:
        return
    flat = torch.cat([buffer.flatten().double() for buffer in buffers])
    dist.all_reduce(flat)
    means = (flat / world_size()).split([buffer.numel() for buffer in buffers])
    for buffer, mean in zip(buffers, means, strict=True):
        buffer.copy_(mean.view_as(buffer))


class Agreement:
    """What any rank wants, known to all at the same step, one step later: nobody waits for it.

    The exchange of a step goes over the CPU's backend while the next step runs. In one process it
    is known at once.
    """

    def __init__(self) -> None:
        self._asked = torch.zeros(0)
        self._work: dist.Work | None = None

    def exchange(self, *wants: bool) -> list[bool]:
        """Say what this rank wants; which of it any rank wanted at the last exchange."""
        if world_size() == 1:
            return list(wants)
        agreed = self.settle() or [False] * len(wants)
        self._asked = torch.tensor(wants, dtype=torch.int64)
        self._work = dist.all_reduce(self._asked, async_op=True)
        return agreed

    def settle(self) -> list[bool]:
        """What any rank wanted at the last exchange; empty before there was one."""
        if self._work is None:
            return []
        self._work.wait()
        self._work = None
        return [bool(number) for number in self._asked.tolist()]


def wrap(module: nn.Module, device: torch.device, *, compress_gradients: bool = False) -> nn.Module:
    """DistributedDataParallel around the module; the module itself in one process.

    With `compress_gradients` the sum over the ranks is computed in bf16, of gradients that stay as
    they are on each.
    """
    if world_size() == 1:
        return module
    # Buffers are averaged before evaluation instead of copied from rank 0 at every step. PyTorch
    # 2.14 has another name for it, and warns of the old one.
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {name: False}
    network = DistributedDataParallel(
        module,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        **options,
    )
    if compress_gradients:
        network.register_comm_hook(None, bf16_compress_hook)
    return network


def settle_buckets(
    network: nn.Module, clips: Tensor, context: AbstractContextManager[None]
) -> None:
    """Let DDP lay out its buckets before the first step, by a pass that leaves nothing behind.

    DDP packs gradients into buckets in the order of the parameters, and after its first backward
    again, in the order in which they were ready. The sum over three or more ranks depends in its
    last bits on where in a bucket a number lies: a resumed run would differ from one that was not
    interrupted. Nothing in one process.

    Args:
        network: of `wrap`, in training mode.
        clips: (N, C, T, H, W), as many as in a step's forward.
        context: of the forward.

    """
    if not isinstance(network, DistributedDataParallel):
        return
    before = [buffer.clone() for buffer in network.module.buffers()]
    with context:
        logits = network(clips)
    sum(values.float().sum() for values in logits.values()).backward()
    network.zero_grad()
    for buffer, value in zip(network.module.buffers(), before, strict=True):
        buffer.copy_(value)
