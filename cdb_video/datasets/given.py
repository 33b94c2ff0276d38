"""Videos as a user names them on a command line: files, folders, patterns."""

from __future__ import annotations

import glob
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from cdb_video.datasets.folder import VIDEO_SUFFIXES, refuse_unprintable
from cdb_video.datasets.image_files import is_packed
from cdb_video.datasets.images import IMAGE_SUFFIXES
from cdb_video.datasets.inside import refuse_outside
from cdb_video.errors import DataError


def find_given(
    names: Sequence[str], *, frames: bool = False, images: bool = False, untrusted: bool = False
) -> list[Path]:
    """The videos, each once, in the order given; those of a folder or pattern sorted.

    Args:
        names: files; folders, whose videos are taken at any depth, hidden ones left out; patterns
            as a shell's, with `**` for folders at any depth, of which videos are taken.
        frames: a video is a folder of frames.
        images: images in place of videos.
        untrusted: what is named may lie anywhere, but nothing in a folder leads out of it.

    Raises:
        DataError: a path that is not there; a folder or pattern without a video; a name that is not
            UTF-8; a link out of an untrusted folder.

    """
    found: dict[Path, Path] = {}
    suffixes = IMAGE_SUFFIXES if images else VIDEO_SUFFIXES
    for name in names:
        for path in _folders(name) if frames else _files(name, suffixes):
            refuse_unprintable(path)
            if untrusted and Path(name).is_dir():
                refuse_outside(path, Path(name))
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _files(name: str, suffixes: Collection[str]) -> Iterator[Path]:
    path, listed = Path(name), " ".join(suffixes)
    if path.is_dir():
        inside = (p for p in path.rglob("*") if not _is_hidden(p.relative_to(path)))
        yield from _some(name, _videos(inside, suffixes), f"no video in this folder ({listed})")
    elif path.exists():
        if is_packed(path):
            raise DataError(f"{name}: holds many images; give single ones, or evaluate the file")
        yield path
    elif glob.has_magic(name):
        matches = map(Path, glob.glob(name, recursive=True))
        yield from _some(
            name, _videos(matches, suffixes), f"no video matches this pattern ({listed})"
        )
    else:
        raise DataError(f"{name}: no such file or folder")


def _folders(name: str) -> Iterator[Path]:
    path = Path(name)
    if path.exists():
        yield path
    elif glob.has_magic(name):
        matches = [p for p in map(Path, glob.glob(name, recursive=True)) if p.is_dir()]
        yield from _some(name, matches, "no folder matches this pattern")
    else:
        raise DataError(f"{name}: no such folder")


def _videos(paths: Iterable[Path], suffixes: Collection[str]) -> list[Path]:
    return [path for path in paths if path.suffix.lower() in suffixes and path.is_file()]


def _some(name: str, paths: list[Path], otherwise: str) -> list[Path]:
    if not paths:
        raise DataError(f"{name}: {otherwise}")
    return sorted(paths)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
