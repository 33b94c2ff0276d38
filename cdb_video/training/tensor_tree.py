"""Nested state as JSON beside its tensors: no pickle is read or written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def take_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The value as JSON; its tensors go to `tensors` and leave their name behind.

    Raises:
        TypeError: naming what is neither a tensor nor JSON.

    """
    if isinstance(value, Tensor):
        if name in tensors:  # {"a.b": ...} beside {"a": {"b": ...}}
            name = f"{name}#{len(tensors)}"
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        # A list of pairs: the optimiser's keys are integers, and JSON knows text alone.
        items = [[key, take_tensors(item, f"{name}.{key}", tensors)] for key, item in value.items()]
        return {"items": items}
    if isinstance(value, (list, tuple)):
        return [take_tensors(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}; a checkpoint holds tensors and JSON")


def put_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `take_tensors` was given; tuples have become lists."""
    if isinstance(value, list):
        return [put_tensors(item, tensors) for item in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: put_tensors(item, tensors) for key, item in value["items"]}
    return value
