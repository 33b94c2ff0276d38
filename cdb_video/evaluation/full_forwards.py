"""Views of many videos in forward passes of one size, read back one pass late.

A forward pass takes what is left of one video and the first views of the next: kernels are chosen
for one size, and a small rest costs a GPU nearly what a full batch does. What it gave is copied to
the host right after it and read when the next one is on its way, so that the device never waits for
the host.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from cdb_video.clips.batch import Batch

T = TypeVar("T")
Scores = dict[str, Tensor]
"""Head -> a row a clip."""
Forward = Callable[[Tensor, Tensor | None], Scores]
"""Clips (n, C, T, H, W) uint8 with their `to_rgb` (n, 3, 4), or None, to {head: (n, K)}."""


def score_batches(
    batches: Iterable[Batch], forward: Forward, *, size: int, device: torch.device
) -> Iterator[tuple[Batch, Scores]]:
    """Each batch, in order, with {head: (B, V, K)} on the CPU; nothing for a batch without a video.

    Args:
        batches: all of one number of views.
        forward: gets `size` clips on the device, the last time fewer.
        size: clips a forward pass.
        device: where they go.

    """
    owed: deque[Batch] = deque()
    rows = _Rows()
    parts = full_parts(_noting(batches, owed), size, device=device)
    for scores in one_late(_OnItsWay(forward(*part), device) for part in parts):
        rows.add(scores.arrived())
        while owed and rows.count >= owed[0].clips.shape[:2].numel():
            batch = owed.popleft()
            yield batch, rows.take(*batch.clips.shape[:2])
    for batch in owed:  # without a video, or rows would have come
        yield batch, {}


def full_parts(
    batches: Iterable[Batch], size: int, *, device: torch.device
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """`size` clips at a time, in order, across batches; the last part is what is left."""
    held: list[tuple[Tensor, Tensor | None]] = []
    for batch in batches:
        here = batch.to(device)
        for part in here.views(size):
            held.append(part)
            if sum(len(clips) for clips, _ in held) >= size:
                clips, to_rgb = _joined(held)
                yield clips[:size], None if to_rgb is None else to_rgb[:size]
                rest = clips[size:], None if to_rgb is None else to_rgb[size:]
                held = [rest] if len(rest[0]) else []
    if held:
        yield _joined(held)


def _joined(parts: list[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    if len(parts) == 1:
        return parts[0]
    matrices = [to_rgb for _, to_rgb in parts if to_rgb is not None]
    return torch.cat([clips for clips, _ in parts]), torch.cat(matrices) if matrices else None


def _noting(batches: Iterable[Batch], owed: deque[Batch]) -> Iterator[Batch]:
    for batch in batches:
        owed.append(batch)
        yield batch


class _OnItsWay:
    """Scores whose copy to the host is queued behind the pass that gives them.

    Queued later, it would stand behind the next pass, and whoever reads it would wait for that one.
    """

    def __init__(self, scores: Scores, device: torch.device) -> None:
        self._scores = {head: rows.to("cpu", non_blocking=True) for head, rows in scores.items()}
        self._copied = torch.cuda.Event() if device.type == "cuda" else None
        if self._copied is not None:
            self._copied.record()

    def arrived(self) -> Scores:
        """They, on the host; waits for them, and for nothing after them."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._scores


def one_late(items: Iterator[T]) -> Iterator[T]:
    """The same items, each when the next one has been made."""
    previous = next(items, None)
    for item in items:
        assert previous is not None  # noqa: S101 - there was one before
        yield previous
        previous = item
    if previous is not None:
        yield previous


@dataclass
class _Rows:
    """Scores that no batch has taken yet."""

    parts: list[Scores] = field(default_factory=list)
    count: int = 0

    def add(self, scores: Scores) -> None:
        self.parts.append(scores)
        self.count += len(next(iter(scores.values())))

    def take(self, num_videos: int, num_views: int) -> Scores:
        """{head: (B, V, K)} of the first B V rows."""
        number = num_videos * num_views
        if not number:
            return {}
        joined = {head: torch.cat([part[head] for part in self.parts]) for head in self.parts[0]}
        self.parts = [{head: rows[number:] for head, rows in joined.items()}]
        self.count -= number
        return {
            head: rows[:number].unflatten(0, (num_videos, num_views))
            for head, rows in joined.items()
        }
