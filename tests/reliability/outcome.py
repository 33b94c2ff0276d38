"""What a row of the reliability table is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """What a measurement found."""

    tried: int
    """Cases that were tried."""
    failures: tuple[str, ...] = ()
    """A line for each case that broke the promise: what was done, what came of it."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Further figures, such as the longest time in seconds."""


@dataclass(frozen=True)
class Row:
    """A promise, and how it is measured.

    `measure(count, seed, folder)` tries about `count` cases, drawn from the seed, in an empty
    folder of its own. It may try more, to be balanced, and says how many.
    """

    name: str
    promise: str
    """A sentence, as it stands in the table."""
    measure: Callable[[int, int, Path], Outcome]
    quick: int
    """Cases in the quick lane, which CI runs."""
    full: int
    """Cases in the full lane."""
