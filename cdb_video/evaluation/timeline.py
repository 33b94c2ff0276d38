"""Scores of sliding windows -> what happens when: an instant's ranking, segments of one class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from cdb_video.clips.sampling import TIME_TOLERANCE_S
from cdb_video.evaluation.predict import Ranking, rank_classes


class Segment(NamedTuple):
    """A part of a video in which one class is the best."""

    start_s: float
    stop_s: float
    name: str
    """Of the class."""
    score: float
    """Its mean score over the segment's time."""


class _Stretch(NamedTuple):
    """From one end of a window to the next: the same windows cover all of it."""

    start_s: float
    stop_s: float
    windows: slice
    """Which ones, never none."""


@dataclass(frozen=True)
class Timeline:
    """The scores of a video's windows; an instant's are the mean over the windows that cover it."""

    starts_s: Tensor
    """(W,) float64 seconds, increasing."""
    stops_s: Tensor
    """(W,) float64 seconds, increasing as well, exclusive."""
    scores: Mapping[str, Tensor]
    """Head -> (W, K)."""
    class_names: Mapping[str, Sequence[str]]
    """Head -> K names."""

    @cached_property
    def _stretches(self) -> list[_Stretch]:
        edges = torch.cat([self.starts_s, self.stops_s]).unique()
        # Starts and stops both increase, so the windows over a stretch are neighbours.
        first = torch.searchsorted(self.stops_s, edges[:-1], right=True)
        last = torch.searchsorted(self.starts_s, edges[:-1], right=True)
        rows = zip(
            edges[:-1].tolist(), edges[1:].tolist(), first.tolist(), last.tolist(), strict=True
        )
        return [_Stretch(start, stop, slice(i, j)) for start, stop, i, j in rows if i < j]

    @cached_property
    def _stretch_starts(self) -> Tensor:
        return torch.tensor([stretch.start_s for stretch in self._stretches], dtype=torch.float64)

    def windows(self, *, top: int = 5) -> list[tuple[float, float, dict[str, Ranking]]]:
        """(start, stop, head -> its `top` classes) of every window, in seconds."""
        bounds = zip(self.starts_s.tolist(), self.stops_s.tolist(), strict=True)
        return [
            (start, stop, self._ranked({h: part[i] for h, part in self.scores.items()}, top))
            for i, (start, stop) in enumerate(bounds)
        ]

    def at(self, seconds: float, *, top: int = 5) -> dict[str, Ranking]:
        """The `top` classes of each head at an instant of the video."""
        after = torch.searchsorted(self._stretch_starts, seconds + TIME_TOLERANCE_S, right=True)
        windows = self._stretches[max(int(after) - 1, 0)].windows
        return self._ranked({h: part[windows].mean(0) for h, part in self.scores.items()}, top)

    def overall(self, *, top: int = 5) -> dict[str, Ranking]:
        """The `top` classes of each head by their mean score over the video's time."""
        seconds = torch.zeros(len(self.starts_s), dtype=torch.float64)
        for start, stop, windows in self._stretches:
            seconds[windows] += (stop - start) / (windows.stop - windows.start)
        share = (seconds / seconds.sum()).float()
        return self._ranked({head: share @ part for head, part in self.scores.items()}, top)

    def segments(self, *, threshold: float = 0.0) -> dict[str, list[Segment]]:
        """Head -> parts with the same best class, in order; those below the threshold left out."""
        return {head: list(self._merged(head, threshold)) for head in self.scores}

    def _merged(self, head: str, threshold: float) -> Iterator[Segment]:
        names, merged = self.class_names[head], None
        for start, stop, windows in self._stretches:
            scores = self.scores[head][windows].mean(0)
            best = int(scores.argmax())
            score = float(scores[best])
            if score < threshold:
                continue
            new = Segment(start, stop, names[best], score)
            if merged and (merged.stop_s, merged.name) == (start, new.name):
                merged = _joined(merged, new)
                continue
            if merged:
                yield merged
            merged = new
        if merged:
            yield merged

    def _ranked(self, scores: Mapping[str, Tensor], top: int) -> dict[str, Ranking]:
        return {h: rank_classes(part, self.class_names[h], top=top) for h, part in scores.items()}


def _joined(one: Segment, other: Segment) -> Segment:
    """Two neighbours of one class, with the mean score over the time of both."""
    durations = one.stop_s - one.start_s, other.stop_s - other.start_s
    score = (one.score * durations[0] + other.score * durations[1]) / sum(durations)
    return Segment(one.start_s, other.stop_s, one.name, score)
