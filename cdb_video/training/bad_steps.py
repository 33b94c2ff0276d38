"""Steps with numbers that are none: they change nothing, are recorded, and end a run that has
nothing but them.

A NaN or an infinity in a clip, a loss or a gradient would stay: in the weights for ever, in batch
norm's running statistics even where the weights were left alone, and every evaluation from then on
would give NaN. Whether a step is sound is a number on the device, and so is everything that follows
from it: the host reads it when it writes to the log.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from cdb_video import distributed


class BadStep(NamedTuple):
    """A step that was not applied."""

    step: int
    """Counted from 1."""
    reason: str
    """ "loss", where a forward pass gave such numbers, or "gradient", where only a backward did."""
    clips: tuple[int, ...]
    """Positions in the split of the clips of the parts that gave them; of all clips of the step
    where no forward did."""


@dataclass
class _Part:
    indices: tuple[int, ...]
    sound: Tensor


@dataclass
class _Step:
    number: int
    parts: list[_Part]
    applied: Tensor
    """() bool: its gradient is finite, the same on every rank."""
    scale: Tensor
    """() of the loss scaler; 1 but for fp16."""


class StepGate:
    """Lets a step with bad numbers change nothing.

    Args:
        tensors: what forward passes change in place: running statistics, counts, sums.
        statistics: those of them that a bad forward spoils even if its loss is finite.
        device: of the model.

    """

    def __init__(
        self, tensors: Sequence[Tensor], statistics: Sequence[Tensor], device: torch.device
    ) -> None:
        kinds = dict.fromkeys(tensor.dtype for tensor in tensors)
        self._tensors = [[t for t in tensors if t.dtype == kind] for kind in kinds]
        self._before = [[torch.empty_like(t) for t in group] for group in self._tensors]
        self._statistics = list(statistics)
        self._sound = torch.ones((), dtype=torch.bool, device=device)
        self._parts: list[_Part] = []
        self._steps: list[_Step] = []

    @torch.no_grad()
    def open(self) -> None:
        """A step begins: remember what it may change."""
        self._parts = []
        self._sound = torch.ones_like(self._sound)
        for before, group in zip(self._before, self._tensors, strict=True):
            torch._foreach_copy_(before, group)

    @torch.no_grad()
    def factor(self, losses: Tensor, indices: Sequence[int]) -> Tensor:
        """What a part's loss is to be multiplied by: 1, or NaN from a part with bad numbers on.

        So its gradient is NaN in every weight, and, summed over the ranks, on every rank: all of
        them leave the step out without a message of its own.

        Args:
            losses: of the part, one a head.
            indices: positions in the split of the part's clips.

        """
        numbers = [losses.detach().float(), *self._statistics]
        sound = torch.cat([n.flatten() for n in numbers]).isfinite().all()
        self._parts.append(_Part(tuple(indices), sound))
        self._sound = self._sound & sound
        return torch.where(self._sound, 1.0, torch.nan)

    @torch.no_grad()
    def close(self, gradient_norm: Tensor, scale: Tensor, *, step: int) -> Tensor:
        """A step ends: take back what forwards changed if it was not applied.

        Args:
            gradient_norm: () over all weights, summed over the ranks.
            scale: () of the loss scaler, when the loss was scaled.
            step: its number, counted from 1.

        Returns:
            () bool, whether the step was applied.

        """
        applied = gradient_norm.isfinite()
        for before, group in zip(self._before, self._tensors, strict=True):
            # One launch for all of a kind: there are hundreds of running statistics.
            now = torch.cat([t.flatten() for t in group])
            then = torch.cat([t.flatten() for t in before])
            kept = torch.where(applied, now, then).split([t.numel() for t in group])
            torch._foreach_copy_(group, [k.view_as(t) for k, t in zip(kept, group, strict=True)])
        self._steps.append(_Step(step, self._parts, applied, scale))
        return applied

    def read(self) -> Iterator[BadStep | None]:
        """The steps since the last reading, in order: None for one that counts as sound.

        Waits for the device. Every rank has to call it, and gets the same. An overflow of fp16 is
        the scaler's to mend, by a lower scale, and is no bad step until the scale is below 1.
        """
        steps, self._steps = self._steps, []
        flags = [f for s in steps for f in (s.applied, s.scale > 1, *(p.sound for p in s.parts))]
        read = iter(torch.stack(flags).tolist() if flags else [])
        for step in steps:
            applied, can_fall = next(read), next(read)
            spoilt = [part for part in step.parts if not next(read)]
            yield None if applied else self._told(step, spoilt, can_fall=can_fall)

    def _told(self, step: _Step, spoilt: Sequence[_Part], *, can_fall: bool) -> BadStep | None:
        found = _of_all_ranks(spoilt)
        if found:
            return BadStep(step.number, "loss", found)
        return None if can_fall else BadStep(step.number, "gradient", _of_all_ranks(step.parts))


def _of_all_ranks(parts: Sequence[_Part]) -> tuple[int, ...]:
    own = [index for part in parts for index in part.indices]
    everywhere = [i for of_rank in distributed.gather_objects(own) for i in of_rank]
    # Not the clip of `blank_batch`.
    return tuple(sorted(i for i in everywhere if i >= 0))


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Means and variances that batch norms keep."""
    norms = [module for module in model.modules() if isinstance(module, _NormBase)]
    kept = [norm.running_mean for norm in norms] + [norm.running_var for norm in norms]
    return [statistic for statistic in kept if statistic is not None]
