"""Folders of videos: `<split>/<class>/<video>`, or `<class>/<video>` with a seeded split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from cdb_video.datasets.annotations import Split, VideoRecord, Vocabulary
from cdb_video.errors import DataError, UnknownSplitError

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg")
"""What counts as a video by its name, in either case; mp4, the usual one, first."""


def sort_class_names(names: Iterable[str]) -> list[str]:
    """Distinct names in order: by value where all are integers ("2" before "10"), else by text."""
    distinct = set(names)
    if all(name.isascii() and name.isdigit() for name in distinct):
        return sorted(distinct, key=lambda name: (int(name), name))
    return sorted(distinct)


def find_videos(root: Path, *, depth: int) -> list[Path]:
    """Videos exactly `depth` folders below the root, sorted; hidden files and folders left out."""
    return sorted(
        path
        for path in root.glob("*/" * depth + "*")
        if path.suffix.lower() in VIDEO_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )


def read_folder(root: Path, splits: Sequence[str]) -> Split:
    """The union of the named splits; the one head is `label`, its classes the folders' names.

    Without split folders the splits are train, val and test: of every class, 15 % of the clips
    (rounded, half up) are val, as many test, the rest train. The draw is a permutation of the
    class's sorted file names by a generator seeded 0, so it is the same everywhere, and a new clip
    in one class does not move the others. It is by clip: where several clips come from one
    recording, split folders or a table are the honest way.

    The classes are those of every split, so that all splits agree on the indices.
    """
    videos = _videos_by_split(root)
    for name in splits:
        if name not in videos:
            raise UnknownSplitError(f"{root}: no split {name!r}; there are: {', '.join(videos)}")
    vocabulary = Vocabulary(sort_class_names(p.parent.name for v in videos.values() for p in v))
    chosen = [path for name in splits for path in videos[name]]
    records = [_record(path, root=root, vocabulary=vocabulary) for path in chosen]
    _refuse_equal_ids(records)
    return Split("+".join(splits), records, {"label": vocabulary})


def _videos_by_split(root: Path) -> dict[str, list[Path]]:
    unsorted, by_class, by_split = (find_videos(root, depth=depth) for depth in (0, 1, 2))
    nested = find_videos(root, depth=3)
    if unsorted or nested or bool(by_class) == bool(by_split):
        levels = [level[0] for level in (unsorted, by_class, by_split, nested) if level]
        found = f"found {' and '.join(map(str, levels))}" if levels else "found no video"
        raise DataError(
            f"{root}: expected videos at <split>/<class>/<video> or all at <class>/<video>, {found}"
        )
    _refuse_empty_classes(root, by_class or by_split, pattern="*" if by_class else "*/*")
    if by_class:
        return _draw_splits(by_class)
    names = sorted({path.parent.parent.name for path in by_split})
    return {name: [p for p in by_split if p.parent.parent.name == name] for name in names}


def _refuse_empty_classes(root: Path, videos: Sequence[Path], *, pattern: str) -> None:
    """A class without a video in any split is a wrong suffix or a folder that is no class."""
    filled = {path.parent.name for path in videos}
    for folder in sorted(root.glob(pattern)):
        hidden = any(part.startswith(".") for part in folder.relative_to(root).parts)
        if folder.is_dir() and not hidden and folder.name not in filled:
            suffixes = " ".join(VIDEO_SUFFIXES)
            raise DataError(f"{folder}: class folder without a video in any split ({suffixes})")


def _draw_splits(videos: Sequence[Path]) -> dict[str, list[Path]]:
    splits: dict[str, list[Path]] = {"train": [], "val": [], "test": []}
    for folder in sorted({path.parent for path in videos}):
        clips = [path for path in videos if path.parent == folder]
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(len(clips), generator=generator).tolist()
        held = (
            15 * len(clips) + 50
        ) // 100  # val, and again test: at most 2 of 4, so train has one
        splits["val"] += [clips[i] for i in sorted(order[:held])]
        splits["test"] += [clips[i] for i in sorted(order[held : 2 * held])]
        splits["train"] += [clips[i] for i in sorted(order[2 * held :])]
    return splits


def _record(path: Path, *, root: Path, vocabulary: Vocabulary) -> VideoRecord:
    name = path.relative_to(root).with_suffix("").as_posix()
    labels = {"label": vocabulary.index(path.parent.name)}
    return VideoRecord(id=name, path=path, video_id=name, recording=name, labels=labels)


def _refuse_equal_ids(records: Sequence[VideoRecord]) -> None:
    seen: dict[str, VideoRecord] = {}
    for record in records:
        first = seen.setdefault(record.id, record)
        if first is not record:
            raise DataError(f"{record.path}: same name as {first.path} but for the suffix")
