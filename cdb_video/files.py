"""Files written so that a reader finds the old content or the new; archives that would swell."""

from __future__ import annotations

import errno
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNPACKED_BYTES = 2**28
UNPACKED_RATIO = 100
"""An archive above both is a bomb: weights are stored as they are, scores shrink to a third."""


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` in one move; an error leaves `path` as it was.

    It has the process's id, as two processes may write the same file, and the ending of `path`, by
    which some libraries choose the format.
    """
    beside = path.with_name(f".{path.stem}.tmp{os.getpid()}{path.suffix}")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Write UTF-8; a file of that name is replaced in one move."""
    with replaced(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_text_durably(path: Path, text: str) -> None:
    """`write_text_atomically`, and on the disk when it returns: a power cut does not undo it."""
    with replaced(path) as beside:
        beside.write_text(text, encoding="utf-8")
        sync(beside)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder, and need not.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.EBADF)):
            raise
    finally:
        os.close(descriptor)


def refuse_unpacking(path: Path) -> None:
    """Refuse a zip archive (.npz, .pth) that a few bytes of would fill the memory.

    Raises:
        ValueError: with the size.

    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    size = path.stat().st_size
    if unpacked > max(UNPACKED_BYTES, UNPACKED_RATIO * size):
        raise ValueError(f"{size} bytes that would unpack to {unpacked}")
