"""Folders of videos: `<split>/<class>/<video>`, or `<class>/<video>` with a seeded split."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cdb_video.datasets.annotations import Split, VideoRecord, Vocabulary
from cdb_video.datasets.folder_draw import draw_groups, draw_videos
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
    """Videos exactly `depth` folders below the root, sorted; hidden files and folders left out.

    Raises:
        DataError: a name that is not UTF-8, which no report could hold.

    """
    videos = sorted(
        path
        for path in root.glob("*/" * depth + "*")
        if path.suffix.lower() in VIDEO_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
    for video in videos:
        refuse_unprintable(video)
    return videos


def refuse_unprintable(path: Path) -> None:
    """Refuse a name that is not UTF-8.

    Raises:
        DataError: with the bytes escaped.

    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DataError(f"{str(path)!r}: the name is not UTF-8; rename it") from None


def read_folder(
    root: Path, splits: Sequence[str], *, seed: int = 0, group_pattern: str | None = None
) -> Split:
    """The union of the named splits; the one head is `label`, its classes the folders' names.

    Without split folders the splits are train, val and test, about 70/15/15 of every class, drawn
    by video (`draw_videos`) or, with a pattern, by group (`draw_groups`). The classes are those of
    every split, so that all splits agree on the indices.

    Args:
        seed: of that draw.
        group_pattern: a regular expression with one group, found in every file's name without its
            suffix; what it finds is the recording.
    """
    videos, is_drawn = _find_all(root)
    groups = None if group_pattern is None else _find_groups(videos, group_pattern)
    if is_drawn and groups is not None:
        by_split = draw_groups(groups, seed=seed)
    elif is_drawn:
        by_split = draw_videos(videos, seed=seed)
    else:
        if seed != 0:
            raise DataError(
                f"data.split_seed: {seed} given, but the splits are the folders of {root}"
            )
        names = sorted({path.parent.parent.name for path in videos})
        by_split = {name: [p for p in videos if p.parent.parent.name == name] for name in names}
    for name in splits:
        if name not in by_split:
            raise UnknownSplitError(f"{root}: no split {name!r}; there are: {', '.join(by_split)}")
    vocabulary = Vocabulary(sort_class_names(path.parent.name for path in videos))
    chosen = [path for name in splits for path in by_split[name]]
    records = [_record(path, root, vocabulary, groups) for path in chosen]
    _refuse_equal_ids(records)
    return Split("+".join(splits), records, {"label": vocabulary})


def _find_all(root: Path) -> tuple[list[Path], bool]:
    """The videos, sorted, and whether they lie in class folders without split folders."""
    unsorted, by_class, by_split = (find_videos(root, depth=depth) for depth in (0, 1, 2))
    nested = find_videos(root, depth=3)
    if unsorted or nested or bool(by_class) == bool(by_split):
        levels = [level[0] for level in (unsorted, by_class, by_split, nested) if level]
        found = f"found {' and '.join(map(str, levels))}" if levels else "found no video"
        raise DataError(
            f"{root}: expected videos at <split>/<class>/<video> or all at <class>/<video>, {found}"
        )
    _refuse_empty_classes(root, by_class or by_split, pattern="*" if by_class else "*/*")
    return by_class or by_split, bool(by_class)


def _find_groups(videos: Sequence[Path], pattern: str) -> dict[Path, str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DataError(f"data.group_pattern: {pattern!r} is no expression ({error})") from error
    if compiled.groups != 1:
        raise DataError(
            f"data.group_pattern: {pattern!r} has {compiled.groups} groups; expected one, in "
            "parentheses"
        )
    groups = {}
    for path in videos:
        match = compiled.search(path.stem)
        if match is None or not match[1]:
            raise DataError(f"data.group_pattern: {pattern!r} finds no group in the name of {path}")
        groups[path] = match[1]
    return groups


def _refuse_empty_classes(root: Path, videos: Sequence[Path], *, pattern: str) -> None:
    """A class without a video in any split is a wrong suffix or a folder that is no class."""
    filled = {path.parent.name for path in videos}
    for folder in sorted(root.glob(pattern)):
        hidden = any(part.startswith(".") for part in folder.relative_to(root).parts)
        if folder.is_dir() and not hidden and folder.name not in filled:
            suffixes = " ".join(VIDEO_SUFFIXES)
            raise DataError(f"{folder}: class folder without a video in any split ({suffixes})")


def _record(
    path: Path, root: Path, vocabulary: Vocabulary, groups: Mapping[Path, str] | None
) -> VideoRecord:
    name = path.relative_to(root).with_suffix("").as_posix()
    labels = {"label": vocabulary.index(path.parent.name)}
    recording = name if groups is None else groups[path]
    return VideoRecord(id=name, path=path, video_id=name, recording=recording, labels=labels)


def _refuse_equal_ids(records: Sequence[VideoRecord]) -> None:
    seen: dict[str, VideoRecord] = {}
    for record in records:
        first = seen.setdefault(record.id, record)
        if first is not record:
            raise DataError(f"{record.path}: same name as {first.path} but for the suffix")
