"""EGTEA Gaze+ (Li, Liu and Rehg, ECCV 2018): the official annotation files, as shipped."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cdb_video.datasets.annotation_files import read_text
from cdb_video.datasets.annotations import Split, VideoRecord, Vocabulary
from cdb_video.datasets.folder import VIDEO_SUFFIXES
from cdb_video.errors import DataError, UnknownSplitError

FPS = 24
"""Of the videos and of the frame numbers in the clips' names."""
HEADS = ("verb", "noun", "action")
EXPECTED_FILES = (
    "cropped_clips/<session>/<clip>.mp4, the untrimmed <session>.mp4 (also in videos/), "
    "or frames/<clip>/ or frames/<session>/ of extracted frames"
)

# Subject, recipe number, recipe, start and stop in milliseconds, start and stop in frames.
_CLIP_NAME = re.compile(r"([A-Z]+\d+)-(R\d+)-(\w+)-\d+-\d+-F(\d+)-F(\d+)")


class _Layout(NamedTuple):
    """Where the videos lie under the root."""

    path: str
    trimmed: bool = False
    """The video is the clip; otherwise the clip is a frame range of its session."""
    fps: float | None = None
    """Set for a folder of frames."""


_LAYOUTS = (
    _Layout("cropped_clips/{session}/{clip}.mp4", trimmed=True),
    _Layout("{session}/{clip}.mp4", trimmed=True),
    *(_Layout("{session}" + suffix) for suffix in VIDEO_SUFFIXES),
    *(_Layout("videos/{session}" + suffix) for suffix in VIDEO_SUFFIXES),
    _Layout("frames/{clip}", trimmed=True, fps=FPS),
    _Layout("{clip}", trimmed=True, fps=FPS),
    _Layout("frames/{session}", fps=FPS),
    _Layout("{session}", fps=FPS),
)


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of a split file."""

    where: str
    clip: str
    session: str
    subject: str
    recipe: str
    start_frame: int
    stop_frame: int
    ids: Mapping[str, int]
    """Head -> id, from 1."""


def find_annotations(root: Path, annotations: Path | None = None) -> Path:
    """The folder of the txt files: the named one, `action_annotation` in the root, or the root."""
    if annotations is not None:
        return root / annotations
    folder = root / "action_annotation"
    return folder if folder.is_dir() else root


def read_egtea(root: Path, splits: Sequence[str], *, annotations: Path | None = None) -> Split:
    """The union of the named splits (`train_split1`, ...) with the heads verb, noun and action.

    A record's id and video_id are the clip's name, its recording is the session. In an untrimmed
    video the clip runs from F-start (inclusive) to F-stop (exclusive) at 24 frames a second.
    The first of one to three nouns is the label; all 53 are classes, though two are never first.
    """
    folder = find_annotations(root, annotations)
    vocabularies = {head: _read_classes(folder / f"{head}_idx.txt") for head in HEADS}
    lines = [line for name in splits for line in _read_lines(folder, name, vocabularies)]
    _refuse_contradictions(lines)
    layout = _find_layout(root, lines)
    return Split("+".join(splits), [_record(line, root, layout) for line in lines], vocabularies)


def _numbered_lines(file: Path) -> Iterator[tuple[str, str]]:
    """("file:line", text) of every line that is not blank; a split ends its lines with a space."""
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        if line.strip():
            yield f"{file}:{number}", line.strip()


def _read_classes(file: Path) -> Vocabulary:
    """Names in the order of their ids; a line is "NAME ID", and names have spaces and slashes."""
    names: dict[int, str] = {}
    seen: dict[str | int, str] = {}
    for where, line in _numbered_lines(file):
        name, _, number = line.rpartition(" ")
        if not name or not _is_number(number):
            raise DataError(f"{where}: {line!r} is not 'NAME ID'")
        for key in (int(number), name.strip()):
            if key in seen:
                raise DataError(f"{where}: {key!r} is also at {seen[key]}")
            seen[key] = where
        names[int(number)] = name.strip()
    if sorted(names) != list(range(1, len(names) + 1)):
        wrong = min(set(range(1, len(names) + 1)) - names.keys())
        raise DataError(f"{file}: ids must be 1 to {len(names)}; {wrong} is missing")
    return Vocabulary(names[i] for i in sorted(names))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _read_lines(
    folder: Path, split: str, vocabularies: Mapping[str, Vocabulary]
) -> Iterator[_Line]:
    file = folder / f"{split}.txt"
    if not file.is_file():
        there = ", ".join(sorted(path.stem for path in folder.glob("*split*.txt"))) or "none"
        raise UnknownSplitError(f"{file}: no such split; there are: {there}")
    for where, text in _numbered_lines(file):
        yield _parse_line(where, text.split(), vocabularies)


def _parse_line(where: str, fields: Sequence[str], vocabularies: Mapping[str, Vocabulary]) -> _Line:
    if not 4 <= len(fields) <= 6:
        raise DataError(
            f"{where}: {len(fields)} fields; expected: clip action verb noun [noun [noun]]"
        )
    clip, *ids = fields
    heads = ("action", "verb", "noun", "noun", "noun")
    for head, text in zip(heads, ids, strict=False):
        num_classes = len(vocabularies[head])
        if not _is_number(text) or not 1 <= int(text) <= num_classes:
            raise DataError(f"{where}: {head} {text!r} is not an id from 1 to {num_classes}")
    match = _CLIP_NAME.fullmatch(clip)
    if match is None:
        expected = "SUBJECT-Rnn-Recipe-startMs-stopMs-Fstart-Fstop"
        raise DataError(f"{where}: clip name {clip!r} is not {expected}")
    subject, recipe_id, recipe, start, stop = match.groups()
    if int(stop) <= int(start):
        raise DataError(f"{where}: clip {clip!r} stops at frame {stop}, not after frame {start}")
    action, verb, noun = map(int, ids[:3])
    return _Line(
        where=where,
        clip=clip,
        session=f"{subject}-{recipe_id}-{recipe}",
        subject=subject,
        recipe=recipe,
        start_frame=int(start),
        stop_frame=int(stop),
        ids={"verb": verb, "noun": noun, "action": action},
    )


def _refuse_contradictions(lines: Sequence[_Line]) -> None:
    """Two equal clips, or an action with another verb than where it was first seen."""
    clips: dict[str, _Line] = {}
    actions: dict[int, _Line] = {}
    for line in lines:
        first = clips.setdefault(line.clip, line)
        if first is not line:
            raise DataError(f"{line.where}: clip {line.clip!r} is also at {first.where}")
        action, verb = line.ids["action"], line.ids["verb"]
        first = actions.setdefault(action, line)
        if verb != first.ids["verb"]:
            raise DataError(
                f"{line.where}: action {action} has verb {verb}, "
                f"but verb {first.ids['verb']} at {first.where}"
            )


def _find_layout(root: Path, lines: Sequence[_Line]) -> _Layout:
    """The first layout that has a video; the official one where there is none at all."""
    sessions = {line.session: line for line in lines}.values()
    for layout in _LAYOUTS:
        if not (root / layout.path.partition("{")[0]).is_dir():
            continue  # thousands of clips need not be looked for
        exists = Path.is_file if layout.fps is None else Path.is_dir
        candidates = lines if "{clip}" in layout.path else sessions
        if any(exists(_video_path(root, layout, line)) for line in candidates):
            return layout
    return _LAYOUTS[0]


def _video_path(root: Path, layout: _Layout, line: _Line) -> Path:
    return root / layout.path.format(session=line.session, clip=line.clip)


def _record(line: _Line, root: Path, layout: _Layout) -> VideoRecord:
    return VideoRecord(
        id=line.clip,
        path=_video_path(root, layout, line),
        video_id=line.clip,
        recording=line.session,
        labels={head: number - 1 for head, number in line.ids.items()},
        start_s=None if layout.trimmed else line.start_frame / FPS,
        stop_s=None if layout.trimmed else line.stop_frame / FPS,
        fps=layout.fps,
        metadata={"subject": line.subject, "recipe": line.recipe},
    )
