"""Count the operators of a step that read clips or maps in one memory layout and write another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LayoutConversions(TorchDispatchMode):
    """Within it, `found` collects every operator on 5-D or 4-D tensors whose layouts differ.

    Layouts are compared as orders of axes by stride; axes of size 1 and broadcast ones say nothing.
    A convolution of channels-first maps counts as well: it converts inside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        call: Callable[..., Any] = func
        out = call(*args, **(kwargs or {}))
        seen = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
        ndim = max((t.ndim for t in seen), default=0)
        maps = [t for t in seen if t.ndim == ndim and ndim in (4, 5)]
        if maps and not func.is_view:
            largest = max(maps, key=Tensor.numel)
            mixed = any(not _same_order(largest, other) for other in maps)
            is_conv = "convolution" in func.name()
            if mixed or (is_conv and not _channels_last(maps[0])):
                self.found.append(f"{func} {[(tuple(t.shape), t.stride()) for t in maps]}")
        return out


def _same_order(one: Tensor, other: Tensor) -> bool:
    axes = [i for i in range(one.ndim) if all(t.shape[i] > 1 and t.stride(i) for t in (one, other))]
    return sorted(axes, key=one.stride) == sorted(axes, key=other.stride)


def _channels_last(maps: Tensor) -> bool:
    layout = torch.channels_last_3d if maps.ndim == 5 else torch.channels_last
    return maps.is_contiguous(memory_format=layout) or maps.stride(1) == 1
