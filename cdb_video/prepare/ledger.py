"""What a folder of prepared videos was made from: its file `prepared.jsonl`."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cdb_video.errors import DataError
from cdb_video.prepare.reencode import Settings

LEDGER = "prepared.jsonl"
_VERSION = 1  # raised when the same settings make other files, so that folders are not mixed


@dataclass(frozen=True)
class Prepared:
    """A line of the ledger: a file that is done. Paths are relative to their folders."""

    source: str
    source_bytes: int
    source_mtime_ns: int
    target: str
    bytes: int
    num_frames: int
    duration_s: float
    height: int
    width: int


class Ledger:
    """The settings of a folder, and a line a file that is done; one process writes at a time.

    Args:
        folder: made if it is not there. One that holds files is taken only with its ledger.
        settings: of every file.

    Raises:
        DataError: the folder was made with other settings, is not ours, or is being written to.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.path = folder / LEDGER
        self.entries: dict[str, Prepared] = {}
        """By source."""
        with _errors_name(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if not self.path.exists() and any(p.name[0] != "." for p in folder.iterdir()):
                raise DataError(f"{folder}: holds files, and no {LEDGER} that says where from")
            self._file = self.path.open("a+", encoding="ascii", errors="replace")
            try:
                # Freed by the system, however the process ends.
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._read(settings)
            except BlockingIOError:
                self._file.close()
                raise DataError(f"{folder}: another process is preparing videos there") from None
            except BaseException:
                self._file.close()
                raise

    def add(self, entry: Prepared) -> None:
        """Write a line, for good."""
        self.entries[entry.source] = entry
        self._write(asdict(entry))

    def has(self, source: Path, *, name: str, target: Path) -> bool:
        """Whether the target was made from this very source, and is whole.

        Args:
            source: the file.
            name: its path in the ledger.
            target: where the prepared file ought to be.

        """
        entry = self.entries.get(name)
        if entry is None:
            return False
        try:
            now, made = source.stat(), target.stat()
        except OSError:
            return False
        same_source = (now.st_size, now.st_mtime_ns) == (entry.source_bytes, entry.source_mtime_ns)
        return same_source and made.st_size == entry.bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def _read(self, settings: Settings) -> None:
        self._file.seek(0)
        text = self._file.read()
        whole, _, cut_off = text.rpartition("\n")
        if cut_off:  # by a crash while it was written
            self._file.truncate(len(text) - len(cut_off))
        wanted = {"version": _VERSION, **asdict(settings)}
        if not whole:
            self._write(wanted)
            return
        first, *lines = whole.split("\n")
        _refuse_others(self.path, _parsed(self.path, 1, first), wanted)
        for number, line in enumerate(lines, start=2):
            values = _parsed(self.path, number, line)
            if values.keys() != {field.name for field in fields(Prepared)}:
                raise DataError(f"{self.path}:{number}: not a line of this tool's")
            self.entries[values["source"]] = Prepared(**values)

    def _write(self, values: Mapping[str, Any]) -> None:
        with _errors_name(self.path):
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())


def _parsed(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise DataError(f"{path}:{number}: not a line of this tool's")
    return values


def _refuse_others(path: Path, made_with: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for key, value in wanted.items():
        if made_with.get(key) != value:
            raise DataError(
                f"{path.parent}: made with {key}={made_with.get(key)}, not {value};"
                " keep the settings or name another folder"
            )


@contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
