"""A stand-in for a GPU's host sync, on a CPU: an operator that would wait for the device fails.

`.tolist()`, `.numpy()` and `.cpu()` call no operator on a CPU and are not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = {
    "_local_scalar_dense",  # .item(), float(), int(), bool(), `if tensor`
    "_unique2",
    "bincount",
    "equal",
    "is_nonzero",
    "item",
    "masked_select",
    "nonzero",
    "unique_consecutive",
}
"""ATen operators whose result, or its shape, has to be read on the host."""
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


class HostSyncError(AssertionError):
    """Something waited for the device."""


class NoHostSync(TorchDispatchMode):
    """Within it, an operator that reads the device on the host raises `HostSyncError`."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITS or (name in INDEXING and any(map(_is_mask, args[1]))):
            raise HostSyncError(str(func))
        call: Callable[..., Any] = func
        return call(*args, **(kwargs or {}))


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)
