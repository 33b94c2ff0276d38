"""What paired seeds can tell of two arms: difference, interval, test and a verdict in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

MATTERS = 0.01
"""The smallest difference that a verdict calls one: a percentage point."""


@dataclass(frozen=True)
class Contrast:
    """One arm against a reference on one figure of one head, over pairs of equal seed."""

    arm: str
    reference: str
    head: str
    figure: str
    num_pairs: int
    mean_difference: float
    """Arm minus reference; positive is better for the arm."""
    interval: tuple[float, float] | None
    """95 % paired t interval of the mean difference; None for one pair."""
    wins: int
    """Pairs in which the arm is above."""
    ties: int
    p_value: float | None
    """Wilcoxon's signed-rank test, two-sided; None where it does not exist: one pair, all ties."""
    p_holm: float | None
    """The same, corrected for the contrasts of its family; None before `with_holm`."""
    smallest_detectable: float | None
    """Half the interval's width, t * sd / sqrt(n): a mean closer to 0 cannot be told from it."""

    @property
    def verdict(self) -> str:
        """ "helps", "no worse", "hurts" or "undecided".

        "helps" and "hurts" ask for an interval without 0 and a mean of at least `MATTERS`; "no
        worse" for an interval wholly above -`MATTERS`. One pair decides nothing.
        """
        if self.interval is None:
            return "undecided"
        low, high = self.interval
        if low > 0 and self.mean_difference >= MATTERS:
            return "helps"
        if low > -MATTERS:
            return "no worse"
        if high < 0 and self.mean_difference <= -MATTERS:
            return "hurts"
        return "undecided"

    def in_words(self) -> str:
        """Such as "cdb v balanced_softmax: +0.4 ± 1.9: undecided", in percentage points."""
        difference = signed_points(self.mean_difference)
        if self.smallest_detectable is None:
            spread = " (one pair)"
        else:
            spread = f" ± {100 * self.smallest_detectable:.1f}"
        return f"{self.arm} v {self.reference}: {difference}{spread}: {self.verdict}"


def signed_points(fraction: float) -> str:
    """Percentage points with a sign and one digit; never "-0.0"."""
    return f"{round(100 * fraction, 1) + 0.0:+.1f}"


def contrast(
    arm_values: Mapping[int, float],
    reference_values: Mapping[int, float],
    *,
    arm: str,
    reference: str,
    head: str,
    figure: str,
) -> Contrast:
    """The contrast of two arms, paired by seed; seeds that only one of them has are left out.

    Args:
        arm_values: seed -> figure, as a fraction; higher is better.
        reference_values: the same of the reference.
        arm: names of the two arms, and of what was measured.
        reference: see `arm`.
        head: see `arm`.
        figure: see `arm`.

    Raises:
        ValueError: no seed in common.

    """
    seeds = sorted(arm_values.keys() & reference_values.keys())
    if not seeds:
        raise ValueError(f"{arm!r} and {reference!r} have no seed in common")
    # Rounded, so that ties are ties: 0.3 - 0.2 is not 0.2 - 0.1 in binary.
    differences = np.array([arm_values[s] - reference_values[s] for s in seeds]).round(12)
    mean = float(differences.mean())
    half = _half_width(differences)
    return Contrast(
        arm=arm,
        reference=reference,
        head=head,
        figure=figure,
        num_pairs=len(seeds),
        mean_difference=mean,
        interval=None if half is None else (mean - half, mean + half),
        wins=int((differences > 0).sum()),
        ties=int((differences == 0).sum()),
        p_value=_wilcoxon(differences),
        p_holm=None,
        smallest_detectable=half,
    )


def with_holm(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """The contrasts of one family with `p_holm`; those without a p value are not counted.

    Holm, "A simple sequentially rejective multiple test procedure", 1979: of m tests the i-th
    smallest p is multiplied by m - i + 1, and is never below the one before it.
    """
    corrected = [replace(one, p_holm=None) for one in contrasts]
    tested = sorted(
        (one.p_value, place) for place, one in enumerate(contrasts) if one.p_value is not None
    )
    at_least = 0.0
    for rank, (p_value, place) in enumerate(tested):
        at_least = max(at_least, min(1.0, (len(tested) - rank) * p_value))
        corrected[place] = replace(corrected[place], p_holm=at_least)
    return corrected


def _half_width(differences: np.ndarray) -> float | None:
    """Of the 95 % t interval of the mean of differences (n,)."""
    # Over a second to import, and only comparisons need it.
    from scipy import stats

    n = len(differences)
    if n < 2:
        return None
    return float(stats.t.ppf(0.975, n - 1) * differences.std(ddof=1) / math.sqrt(n))


def _wilcoxon(differences: np.ndarray) -> float | None:
    """Two-sided p; ties are left out, as Wilcoxon did. Exact up to 50 pairs, by scipy's choice."""
    from scipy import stats

    moved = differences[differences != 0]
    if len(differences) < 2 or len(moved) == 0:
        return None
    return float(stats.wilcoxon(moved).pvalue)
