"""Files written so that a reader finds the old content or the new; archives that would swell."""

from __future__ import annotations

import errno
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cdb_video.errors import RunError

UNPACKED_BYTES = 2**28
UNPACKED_RATIO = 100
"""An archive above both is a bomb: weights are stored as they are, scores shrink to a third."""


_TEMPORARY = re.compile(r"\..+\.tmp([0-9]+)(\.[^.]+)?")
"""A name that `replaced` gives: the process's id, and the ending."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What cannot be written to a file or folder, as on a full disk, is one line that names it.

    Raises:
        RunError: with the reason and the bytes that are free.

    """
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path}: could not be written ({error.strerror or error}), "
            f"{free_space(path.parent)} free"
        ) from error


def free_space(folder: Path) -> str:
    """Such as "3.1 MB are", of the folder's file system."""
    try:
        return f"{shutil.disk_usage(folder).free / 1e6:.1f} MB are"
    except OSError:
        return "none known to be"


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` in one move; an error leaves `path` as it was.

    It has the process's id, as two processes may write the same file, and the ending of `path`, by
    which some libraries choose the format.

    Raises:
        RunError: it could not be written.

    """
    beside = path.with_name(f".{path.stem}.tmp{os.getpid()}{path.suffix}")
    with writing(path):
        try:
            yield beside
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Delete what `replaced` left in a folder when its process was killed.

    A file of a process that runs on this machine stays: an evaluation may be writing its report.
    """
    for path in folder.glob(".*"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and not _is_another(int(match[1])):
            path.unlink(missing_ok=True)


def _is_another(pid: int) -> bool:
    """Whether another process has this id; ours may have had another owner, as in containers."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return pid != os.getpid()


def write_text_atomically(path: Path, text: str) -> None:
    """Write UTF-8; a file of that name is replaced in one move."""
    with replaced(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_text_durably(path: Path, text: str) -> None:
    """`write_text_atomically`, and on the disk when it returns: a power cut does not undo it."""
    with replaced(path) as beside:
        beside.write_text(text, encoding="utf-8")
        sync(beside)
    with writing(path):
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
