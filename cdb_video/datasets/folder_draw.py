"""Class folders divided into train, val and test: a seeded draw, by video or by group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

_SHARES = {"train": 70, "val": 15, "test": 15}
"""Split -> percent of the videos."""


def draw_videos(videos: Sequence[Path], *, seed: int) -> dict[str, list[Path]]:
    """Split -> videos: of every class, 15 % (rounded, half up) are val, as many test.

    A permutation of the class's sorted file names by a generator with the seed: the same
    everywhere, and a new video in one class does not move the others.

    Args:
        videos: `<class>/<video>`, sorted.
    """
    splits: dict[str, list[Path]] = {name: [] for name in _SHARES}
    for folder in sorted({path.parent for path in videos}):
        clips = [path for path in videos if path.parent == folder]
        order = _permutation(len(clips), seed)
        # val, and again test: at most 2 of 4, so train has one
        held = (15 * len(clips) + 50) // 100
        splits["val"] += [clips[i] for i in sorted(order[:held])]
        splits["test"] += [clips[i] for i in sorted(order[held : 2 * held])]
        splits["train"] += [clips[i] for i in sorted(order[2 * held :])]
    return splits


def draw_groups(groups: Mapping[Path, str], *, seed: int) -> dict[str, list[Path]]:
    """Split -> videos, every group in one split, about 70/15/15 of the videos of every class.

    Classes take turns, the one with the fewest groups first (ties by name), since the rare ones
    have the least choice: iterative stratification (Sechidis et al., ECML 2011), over groups. Each
    of its groups that has no split yet, in drawn order, goes where most videos of the class are
    due, but if a class of three groups or more has just enough groups left for the splits that
    lack it, to one of those.

    Args:
        groups: `<class>/<video>` -> its group.
    """
    names = sorted(set(groups.values()))
    drawn = [names[i] for i in _permutation(len(names), seed)]
    videos = Counter((path.parent.name, group) for path, group in groups.items())
    of_class = {c: [g for g in drawn if videos[c, g]] for c in {p.parent.name for p in groups}}
    split_of: dict[str, str] = {}
    for name in sorted(of_class, key=lambda name: (len(of_class[name]), name)):
        counts = {group: videos[name, group] for group in of_class[name]}
        _place_groups_of_class(counts, split_of)
    splits: dict[str, list[Path]] = {split: [] for split in _SHARES}
    for path in sorted(groups):
        splits[split_of[groups[path]]].append(path)
    return splits


def _place_groups_of_class(counts: Mapping[str, int], split_of: dict[str, str]) -> None:
    """Give the groups of a class (with their videos of it) that have no split one, in order."""
    total, has = sum(counts.values()), dict.fromkeys(_SHARES, 0)
    for group in counts.keys() & split_of.keys():
        has[split_of[group]] += counts[group]
    left = [group for group in counts if group not in split_of]
    for i, group in enumerate(left):
        lacking = [split for split in _SHARES if not has[split]]
        must_fill = len(counts) >= 3 and len(left) - i <= len(lacking)
        allowed = lacking if must_fill else list(_SHARES)
        split = max(allowed, key=lambda split: _SHARES[split] * total - 100 * has[split])
        has[split] += counts[group]
        split_of[group] = split


def _permutation(length: int, seed: int) -> list[int]:
    order: list[int] = torch.randperm(
        length, generator=torch.Generator().manual_seed(seed)
    ).tolist()
    return order
