"""Averaged weights (`train.ema`): what is evaluated in place of the last step's."""

from __future__ import annotations

import copy
from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor

from cdb_video.models.recognizer import Recognizer


class AveragedWeights:
    """An exponential moving average of a model's weights and running statistics.

    After the n-th update a weight is `decay_n` of its average and the rest of the new value, where
    `decay_n = min(decay, (1 + n) / (10 + n))`, so that the random weights of the start are soon
    forgotten (the schedule of TensorFlow's ExponentialMovingAverage).

    What is not trained, such as a frozen backbone, is its own average: both models have it in one
    memory.

    Args:
        model: what is trained; its weights are where the average starts.
        decay: in [0, 1).

    """

    def __init__(self, model: Recognizer, *, decay: float) -> None:
        self.decay = decay
        frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
        # What the memo of a deep copy has is not copied.
        self.model = copy.deepcopy(model, dict(frozen)).requires_grad_(False)
        """The averaged model: to be evaluated, and never trained."""
        self.updates = torch.zeros((), device=next(model.parameters()).device)
        self._floats, self._others = _tensors(self.model, without=frozen)
        self._source_floats, self._source_others = _tensors(model, without=frozen)

    @torch.no_grad()
    def update(self, sound: Tensor) -> None:
        """Take in the model's weights as they are, unless `sound`, () bool, is false.

        Without a wait for the device.
        """
        self.updates += sound
        decay = ((1 + self.updates) / (10 + self.updates)).clamp(max=self.decay)
        share = torch.where(sound, 1 - decay, 0.0)
        steps = torch._foreach_sub(self._source_floats, self._floats)
        torch._foreach_mul_(steps, share)
        torch._foreach_add_(self._floats, steps)
        for mine, theirs in zip(self._others, self._source_others, strict=True):
            mine.copy_(theirs)

    def state_dict(self) -> dict[str, Any]:
        """The averaged model's state, and the number of updates."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.updates.copy_(state["updates"])


class NoAverage:
    """The last step's weights are the ones that are evaluated."""

    model = None

    def update(self, sound: Tensor) -> None:
        """Nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing."""


def _tensors(model: Recognizer, *, without: Container[int]) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters, but for some ids, and buffers: of a floating-point type, and the others."""
    tensors = [*(p for p in model.parameters() if id(p) not in without), *model.buffers()]
    floats = [tensor for tensor in tensors if tensor.is_floating_point()]
    return floats, [tensor for tensor in tensors if not tensor.is_floating_point()]
