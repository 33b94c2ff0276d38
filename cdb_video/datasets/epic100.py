"""EPIC-KITCHENS-100 (Damen et al., IJCV 2022): the official annotation files, as shipped."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cdb_video.datasets.annotations import UNLABELLED, Split, VideoRecord, Vocabulary
from cdb_video.datasets.epic100_files import (
    Pair,
    Segment,
    find_annotations,
    read_classes,
    read_number,
    read_pairs,
    read_rows,
    read_segments,
    splits_in,
)
from cdb_video.datasets.folder import VIDEO_SUFFIXES
from cdb_video.errors import DataError

HEADS = ("verb", "noun", "action")
EXPECTED_FILES = (
    "<participant>/videos/<video_id>.MP4 (also in videos/ or the root), "
    "or <participant>/rgb_frames/<video_id>/ of extracted frames"
)

_VIDEO_FOLDERS = ("{participant}/videos", "videos", ".")
_SUFFIXES = (".MP4", *VIDEO_SUFFIXES)
_VIDEO_ID = re.compile(r"P\d\d_(1?)\d\d")


def read_epic100(root: Path, splits: Sequence[str], *, annotations: Path | None = None) -> Split:
    """The union of train, validation or test, with the heads verb, noun and action.

    A record's id is the narration_id, its video_id and recording are the video_id. From a video a
    segment is cut by its timestamps, from a folder of frames by its frame numbers. These count from
    0 at 60 frames a second in videos of EPIC-KITCHENS-55 (P01_01) and at 50 in later ones
    (P01_101), whatever the video's rate: so the official folders were extracted.

    Verbs and nouns are those of the class files, or else the numbers that train and validation
    use. Actions are the (verb, noun) pairs of train and validation (3,806 officially, as papers
    count), or those of `actions.csv`. Other pairs, and all of the test split, are `UNLABELLED`.
    """
    folder = find_annotations(root, annotations) or root / (annotations or ".")
    segments = {name: read_segments(folder, name) for name in dict.fromkeys(["train", *splits])}
    chosen = [segment for name in splits for segment in segments[name]]
    _refuse_equal_ids(chosen)
    if "validation" in splits_in(folder):
        segments.setdefault("validation", read_segments(folder, "validation"))
    labelled = [s for name in ("train", "validation") for s in segments.get(name, ())]
    verbs, nouns = (_read_vocabulary(folder, head, labelled) for head in ("verb", "noun"))
    pairs = sorted({segment.pair for segment in labelled if segment.pair})
    if (folder / "actions.csv").is_file():
        pairs = read_pairs(folder / "actions.csv", num_verbs=len(verbs), num_nouns=len(nouns))
    actions = Vocabulary(f"{verbs.names[verb]} {nouns.names[noun]}" for verb, noun in pairs)
    action_of = {pair: i for i, pair in enumerate(pairs)}
    groups = _read_groups(folder, segments["train"], chosen)
    videos = _find_videos(root, chosen)
    records = [_record(s, videos[s.video_id], action_of, groups) for s in chosen]
    return Split("+".join(splits), records, {"verb": verbs, "noun": nouns, "action": actions})


def _refuse_equal_ids(segments: Sequence[Segment]) -> None:
    seen: dict[str, Segment] = {}
    for segment in segments:
        first = seen.setdefault(segment.narration_id, segment)
        if first is not segment:
            raise DataError(
                f"{segment.where}: narration_id {segment.narration_id!r} is also at {first.where}"
            )


def _read_vocabulary(folder: Path, head: str, labelled: Sequence[Segment]) -> Vocabulary:
    """The class file's names; without one, the numbers up to the highest that is used."""
    place = ("verb", "noun").index(head)
    user = {s.pair[place]: s for s in labelled if s.pair}
    highest = max(user, default=-1)
    for name in (f"EPIC_100_{head}_classes.csv", f"EPIC_100_{head}_classes_v2.csv"):
        if (folder / name).is_file():
            names = read_classes(folder / name)
            if highest >= len(names):
                raise DataError(
                    f"{user[highest].where}: {head}_class {highest} is not an id of {name}, "
                    f"which has 0 to {len(names) - 1}"
                )
            return Vocabulary(names)
    return Vocabulary(str(i) for i in range(highest + 1))


@dataclass(frozen=True, slots=True)
class _Groups:
    """The clips that the challenge's scorer also counts apart."""

    unseen: Mapping[str, frozenset[str]]
    """Split -> its participants that train does not have."""
    tail: Mapping[str, frozenset[int]]
    """Of "verb" and "noun" those that have a list -> the rare classes."""

    def metadata(self, segment: Segment) -> dict[str, str]:
        found = {"unseen": segment.participant in self.unseen[segment.split]}
        if segment.pair is not None:
            classes = dict(zip(("verb", "noun"), segment.pair, strict=True))
            rare = {head: classes[head] in tail for head, tail in self.tail.items()}
            found |= {f"tail_{head}": value for head, value in rare.items()}
            if len(rare) == 2:
                found["tail"] = any(rare.values())
        return {name: "yes" if value else "no" for name, value in found.items()}


def _read_groups(folder: Path, train: Sequence[Segment], chosen: Sequence[Segment]) -> _Groups:
    in_train = {segment.participant for segment in train}
    unseen = {}
    for split in {segment.split for segment in chosen}:
        file = folder / f"EPIC_100_unseen_participant_ids_{split}.csv"
        if file.is_file():
            rows = read_rows(file, ["participant_id"])
            unseen[split] = frozenset(row.cells["participant_id"] for row in rows)
        else:
            unseen[split] = frozenset(s.participant for s in chosen if s.split == split) - in_train
    files = {head: folder / f"EPIC_100_tail_{head}s.csv" for head in ("verb", "noun")}
    tail = {
        head: frozenset(read_number(row, head) for row in read_rows(file, [head]))
        for head, file in files.items()
        if file.is_file()
    }
    return _Groups(unseen, tail)


@dataclass(frozen=True, slots=True)
class _Video:
    path: Path
    is_folder: bool
    """Of frames."""


def _find_videos(root: Path, segments: Sequence[Segment]) -> dict[str, _Video]:
    """video_id -> where: all in the first layout that has a video; the official one without any."""
    participants = {segment.video_id: segment.participant for segment in segments}
    layouts: list[dict[str, _Video]] = []
    for pattern in _VIDEO_FOLDERS:
        folders = {v: root / pattern.format(participant=p) for v, p in participants.items()}
        layouts.append({v: _Video(_video_file(f, v), False) for v, f in folders.items()})
    frames = {v: root / p / "rgb_frames" / v for v, p in participants.items()}
    layouts.append({v: _Video(path, True) for v, path in frames.items()})
    with_video = (found for found in layouts if any(v.path.exists() for v in found.values()))
    return next(with_video, layouts[0])


def _video_file(folder: Path, video_id: str) -> Path:
    files = [folder / (video_id + suffix) for suffix in _SUFFIXES]
    return next((file for file in files if file.is_file()), files[0])


def _record(
    segment: Segment, video: _Video, action_of: Mapping[Pair, int], groups: _Groups
) -> VideoRecord:
    labels = dict.fromkeys(HEADS, UNLABELLED)
    if segment.pair is not None:
        action = action_of.get(segment.pair, UNLABELLED)
        labels = dict(zip(HEADS, (*segment.pair, action), strict=True))
    fps = _frames_fps(segment) if video.is_folder else None
    start_s, stop_s = segment.seconds if fps is None else (f / fps for f in segment.frames)
    return VideoRecord(
        id=segment.narration_id,
        path=video.path,
        video_id=segment.video_id,
        recording=segment.video_id,
        labels=labels,
        start_s=start_s,
        stop_s=stop_s,
        fps=fps,
        metadata={"participant": segment.participant, **groups.metadata(segment)},
    )


def _frames_fps(segment: Segment) -> float:
    """The rate of the video's official folder, at which its frame numbers must be its seconds."""
    match = _VIDEO_ID.fullmatch(segment.video_id)
    if match is None:
        raise DataError(
            f"{segment.where}: video_id {segment.video_id!r} is not Pnn_nn or Pnn_1nn, by which "
            "the rate of a folder of frames is known"
        )
    fps = 50.0 if match[1] else 60.0
    for frame, seconds in zip(segment.frames, segment.seconds, strict=True):
        # Official numbers are rounded down, some by one more, and some zeros are written as 1.
        if abs(frame - seconds * fps) >= 2:
            raise DataError(
                f"{segment.where}: frame {frame} is not second {seconds:g} at {fps:g} frames a "
                f"second, the rate of {segment.video_id}'s official folder"
            )
    return fps
