"""What a step leaves besides its time: model FLOPs, memory, idle share, waits of the host."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch.profiler import DeviceType, ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

PROFILED_STEPS = 5
WAITING_CALLS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy")
"""CUDA's calls in which the host waits for what a step gave it; `cudaDeviceSynchronize` is ours."""
WAITING_OPERATORS = tuple(
    f"aten::{name}" for name in ("_local_scalar_dense", "equal", "nonzero", "bincount", "_unique2")
)
"""On a CPU nothing waits; these are the operators that would, on a GPU."""


def model_flops(step: Callable[[], object]) -> int:
    """Floating-point operations of a step's convolutions and products, both passes."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def profile_step(step: Callable[[], object], device: torch.device) -> dict[str, float | None]:
    """`memory_gb`, `idle_share` and `host_syncs` of a step that has run before.

    Host syncs of a CPU are those that a GPU would have; memory and idle time are a GPU's alone.
    """
    if device.type != "cuda":
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            step()
        reads = sum(event.name in WAITING_OPERATORS for event in profiled.events() or [])
        return {"memory_gb": None, "idle_share": None, "host_syncs": reads}
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    memory = torch.cuda.max_memory_allocated(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        for _ in range(PROFILED_STEPS):
            step()
        torch.cuda.synchronize(device)
    events = profiled.events() or []
    waits = sum(event.name in WAITING_CALLS for event in events)
    kernels = [
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
    return {
        "memory_gb": memory / 1e9,
        "idle_share": idle_share(kernels),
        "host_syncs": waits / PROFILED_STEPS,
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
