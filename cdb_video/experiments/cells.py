"""Finished cells of a comparison: arms by paired seeds, their table and their contrasts."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cdb_video.experiments.statistics import Contrast, contrast, with_holm

FIGURES = {
    "mean_class_accuracy": "mean class",
    "mean_class_accuracy_logit_adjusted": "logit adjusted",
    "top1": "top-1",
    "many": "many",
    "medium": "medium",
    "few": "few",
    "worst_fifth": "worst fifth",
    "harmonic_mean": "harmonic mean",
    "macro_f1": "macro F1",
    "ece": "ECE",
    "seconds_per_epoch": "s an epoch",
}
"""The columns of the table, and what people read over them."""

CONTRASTED = {"mean_class_accuracy": "mean class accuracy", "worst_fifth": "worst fifth"}
"""The primary figures: the ones with a verdict."""

LOWER_IS_BETTER = {"ece", "seconds_per_epoch"}


@dataclass(frozen=True)
class Cell:
    """One arm at one seed, finished."""

    arm: str
    seed: int
    report: Mapping[str, Any]
    """The content of its `report_<split>.json`."""
    seconds_per_epoch: float | None
    """None where the training had ended before an interruption."""

    def figure(self, head: str, name: str) -> float | None:
        """A figure of the report by its name; a shot group's is its accuracy."""
        if name == "seconds_per_epoch":
            return self.seconds_per_epoch
        value: float | Mapping[str, float] | None = self.report["heads"].get(head, {}).get(name)
        return value["accuracy"] if isinstance(value, Mapping) else value


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds."""

    mean: float
    standard_deviation: float | None
    """None for one seed."""


@dataclass(frozen=True)
class Row:
    """One arm in the table of a head."""

    arm: str
    num_seeds: int
    spreads: Mapping[str, Spread | None]
    """By the names of `FIGURES`; None where a cell of the arm does not have the figure."""


@dataclass(frozen=True)
class Comparison:
    """The finished cells of a comparison; some arms may have fewer seeds than others.

    Raises:
        ValueError: two cells of one arm and seed, or cells that were tested on different splits.

    """

    name: str
    cells: tuple[Cell, ...]
    references: tuple[str, ...]
    """The arms that all others are contrasted with."""
    failures: tuple[str, ...] = ()
    """A line for each cell whose training failed."""

    def __post_init__(self) -> None:
        seen = set()
        for cell in self.cells:
            if (cell.arm, cell.seed) in seen:
                raise ValueError(f"arm {cell.arm!r} has two cells of seed {cell.seed}")
            seen.add((cell.arm, cell.seed))
        splits = {(c.report["split"], c.report["annotation_split"]) for c in self.cells}
        if len(splits) > 1:
            raise ValueError(f"cells were tested on different splits: {sorted(splits)}")

    @property
    def arms(self) -> tuple[str, ...]:
        """Those with a finished cell, in the order of the cells."""
        return tuple(dict.fromkeys(cell.arm for cell in self.cells))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Every seed that some arm has finished, rising."""
        return tuple(sorted({cell.seed for cell in self.cells}))

    @property
    def heads(self) -> tuple[str, ...]:
        """Every head that some cell has."""
        return tuple(dict.fromkeys(head for cell in self.cells for head in cell.report["heads"]))

    def seeds_of(self, arm: str) -> list[int]:
        """The seeds that the arm has finished, rising."""
        return sorted(cell.seed for cell in self.cells if cell.arm == arm)

    def values(self, arm: str, head: str, figure: str) -> dict[int, float]:
        """Seed -> figure, for the arm's cells that have it."""
        found = {c.seed: c.figure(head, figure) for c in self.cells if c.arm == arm}
        return {seed: value for seed, value in sorted(found.items()) if value is not None}

    def table(self, head: str) -> list[Row]:
        """A row an arm: mean and standard deviation over its seeds of each of `FIGURES`."""
        return [
            Row(
                arm,
                len(self.seeds_of(arm)),
                {figure: self._spread(arm, head, figure) for figure in FIGURES},
            )
            for arm in self.arms
        ]

    def _spread(self, arm: str, head: str, figure: str) -> Spread | None:
        values = list(self.values(arm, head, figure).values())
        if len(values) < len(self.seeds_of(arm)):
            return None
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return Spread(statistics.fmean(values), deviation)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(arm, reference); two references meet once, the later against the earlier."""
        present = [reference for reference in self.references if reference in self.arms]
        return [
            (arm, reference)
            for place, reference in enumerate(present)
            for arm in self.arms
            if arm not in present[: place + 1]
        ]

    def contrasts(self, head: str, figure: str) -> list[Contrast]:
        """Every arm against every reference, corrected as one family (Holm).

        A pair of arms without a common seed that has the figure is left out.
        """
        values = {arm: self.values(arm, head, figure) for arm in self.arms}
        return with_holm(
            [
                contrast(
                    values[arm],
                    values[reference],
                    arm=arm,
                    reference=reference,
                    head=head,
                    figure=figure,
                )
                for arm, reference in self.pairs
                if values[arm].keys() & values[reference].keys()
            ]
        )

    @property
    def notes(self) -> list[str]:
        """What a reader must know before trusting the table, a sentence each."""
        failures = [f"Failed: {line}." for line in self.failures]
        return [
            *failures,
            *self._notes_on_seeds(),
            *self._notes_on_data(),
        ]

    def _notes_on_seeds(self) -> list[str]:
        missing = {arm: set(self.seeds) - set(self.seeds_of(arm)) for arm in self.arms}
        notes = []
        if any(missing.values()):
            listed = "; ".join(
                f"{arm} {', '.join(map(str, sorted(seeds)))}"
                for arm, seeds in missing.items()
                if seeds
            )
            notes.append(
                "Not every arm has every seed: the means of the table are over different seeds, "
                f"the contrasts over common ones. Missing: {listed}."
            )
        for arm, reference in self.pairs:
            if not set(self.seeds_of(arm)) & set(self.seeds_of(reference)):
                notes.append(f"{arm} v {reference}: no seed in common yet.")
        return notes

    def _notes_on_data(self) -> list[str]:
        notes = []
        videos = {cell.report["num_videos"] for cell in self.cells}
        if len(videos) > 1:
            notes.append(f"Runs were tested on {min(videos)} to {max(videos)} videos.")
        if fed := sorted({use for cell in self.cells for use in cell.report["split_fed"]}):
            notes.append(f"The split tested on also fed {' and '.join(fed)}.")
        for head in self.heads:
            clips = self._train_clips(head)
            if len(clips) > 1:
                listed = "; ".join(f"{n}: {', '.join(arms)}" for n, arms in sorted(clips.items()))
                notes.append(
                    f"{head}: arms were trained on different numbers of clips ({listed}); "
                    "many, medium and few are grouped by each arm's own."
                )
        return notes

    @property
    def remarks(self) -> list[str]:
        """How to read the figures, a sentence or two each."""
        smallest = {n: 2 * 0.5**n for n in range(2, 6)}.get(len(self.seeds))
        remarks = [
            "Logit adjusted is mean class accuracy after a post-hoc correction of the prior; an "
            "arm that corrects it in training is corrected twice. Seconds an epoch include "
            "validation, which an arm that trains on those clips does not have."
        ]
        if smallest is not None:
            remarks.append(
                f"With {len(self.seeds)} seeds no p value can be under {smallest:g}, whatever the "
                "difference."
            )
        return remarks

    def _train_clips(self, head: str) -> dict[int, list[str]]:
        """Labelled training clips -> arms, at the seed that most arms have."""
        of_seed: dict[int, dict[str, int]] = {}
        for cell in self.cells:
            if head in cell.report["heads"]:
                clips = sum(cell.report["heads"][head]["train_count"].values())
                of_seed.setdefault(cell.seed, {})[cell.arm] = clips
        arms_of: dict[int, list[str]] = {}
        for arm, clips in max(of_seed.values(), key=len).items():
            arms_of.setdefault(clips, []).append(arm)
        return arms_of


def best_arms(rows: Sequence[Row], figure: str) -> set[str]:
    """The arms with the best mean of a figure; none where there is nothing to choose from."""
    means = {row.arm: spread.mean for row in rows if (spread := row.spreads[figure])}
    if len(means) < 2:
        return set()
    best = min(means.values()) if figure in LOWER_IS_BETTER else max(means.values())
    return {arm for arm, mean in means.items() if mean == best}


def shown(figure: str, value: float) -> str:
    """A figure as people read it: percent, or seconds."""
    if figure == "seconds_per_epoch":
        return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    return f"{100 * value:.1f}"


def mean_and_deviation(figure: str, spread: Spread | None) -> str:
    """Such as "49.0 ± 1.8"; the mean alone for one seed."""
    if spread is None:
        return "-"
    mean = shown(figure, spread.mean)
    return (
        mean
        if spread.standard_deviation is None
        else f"{mean} ± {shown(figure, spread.standard_deviation)}"
    )
