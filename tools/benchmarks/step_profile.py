"""What a step leaves besides its time: model FLOPs, memory, idle share, waits of the host."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.autograd.profiler_util import FunctionEvent
from torch.optim import Optimizer
from torch.profiler import DeviceType, ProfilerActivity, profile, schedule
from torch.utils.flop_counter import FlopCounterMode

from cdb_video.training.trainer import Trainer

PROFILED_STEPS = 5
WAITING_CALLS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy")
"""CUDA's calls in which the host waits for what a step gave it; `cudaDeviceSynchronize` is ours."""
WAITING_OPERATORS = tuple(
    f"aten::{name}" for name in ("_local_scalar_dense", "equal", "nonzero", "bincount", "_unique2")
)
"""On a CPU nothing waits; these are the operators that would, on a GPU."""

SYNC_WARNING = "called a synchronizing CUDA operation"
"""What `torch.cuda.set_sync_debug_mode("warn")` says."""


def model_flops(step: Callable[[], object]) -> int:
    """Floating-point operations of a step's convolutions and products, both passes."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def profile_step(
    step: Callable[[], object], device: torch.device, *, own: int
) -> dict[str, float | None]:
    """`memory_gb`, `idle_share`, `host_syncs` and `sync_warnings` of a step that has run before.

    Host syncs of a CPU are the reads that would be one on a GPU; the rest is a GPU's alone. None:
    not known.

    Args:
        step: is run several times.
        device: where it runs.
        own: bytes that it keeps on the device from one step to the next, see `own_bytes`.

    """
    if device.type != "cuda":
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            step()
        reads = sum(event.name in WAITING_OPERATORS for event in profiled.events() or [])
        return dict.fromkeys(("memory_gb", "idle_share", "sync_warnings")) | {"host_syncs": reads}
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    # What is there before belongs to all arms of the process.
    memory = torch.cuda.max_memory_allocated(device) - before + own
    warned = sync_warnings(step, set_mode=torch.cuda.set_sync_debug_mode)
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        for _ in range(PROFILED_STEPS):
            step()
        torch.cuda.synchronize(device)
    gaps = waits_and_idle(profiled.events() or [], num_steps=PROFILED_STEPS)
    return {"memory_gb": memory / 1e9, "sync_warnings": warned} | gaps


def own_bytes(model: nn.Module, optimizer: Optimizer) -> int:
    """Bytes of weights, buffers, gradients that are there, and the optimiser's state."""
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [p.grad for p in model.parameters() if p.grad is not None]
    tensors += [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]
    return sum(tensor.nbytes for tensor in tensors)


def sync_warnings(step: Callable[[], object], *, set_mode: Callable[[str], None]) -> int:
    """How often PyTorch itself says that an operation of a step waits for the device.

    Args:
        step: is run once.
        set_mode: `torch.cuda.set_sync_debug_mode`.

    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        set_mode("warn")
        try:
            step()
        finally:
            set_mode("default")
    return sum(SYNC_WARNING in str(warning.message) for warning in caught)


def profile_epoch(trainer: Trainer, *, wait: int, active: int) -> list[FunctionEvent]:
    """What ran in steps `wait` to `wait + active` of an epoch, which goes to its end."""
    # Of a GPU its kernels and the calls of CUDA alone: to note operators too would slow the host.
    is_gpu = trainer.device.type == "cuda"
    activities = [ProfilerActivity.CUDA if is_gpu else ProfilerActivity.CPU]
    # One step of warm-up: what the profiler sets up would be time of the first.
    plan = schedule(wait=wait - 1, warmup=1, active=active, repeat=1)
    trainer.state.position.steps = 0
    with profile(activities=activities, schedule=plan) as profiled:
        hook = trainer.optimizer.register_step_post_hook(lambda *_: profiled.step())
        try:
            trainer.train_one_epoch()
        finally:
            hook.remove()
    return list(profiled.events() or [])


def waits_and_idle(events: Iterable[FunctionEvent], *, num_steps: int) -> dict[str, float | None]:
    """`idle_share`, and `host_syncs` a step; None where the profiler saw no kernel, and so no
    call of CUDA either."""
    events = list(events)
    kernels = [
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
    waits = sum(event.name in WAITING_CALLS for event in events)
    return {
        "idle_share": idle_share(kernels),
        "host_syncs": waits / num_steps if kernels else None,
    }


def idle_share(intervals: Iterable[tuple[float, float]]) -> float | None:
    """The share of the time from the first start to the last end in which nothing runs."""
    ordered = sorted(intervals)
    if not ordered:
        return None
    busy, reached = 0.0, ordered[0][0]
    for start, end in ordered:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return 1 - busy / (reached - ordered[0][0])
