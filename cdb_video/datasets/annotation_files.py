"""Annotation files as text: CSV tables and Kinetics-style lists, as rows that know their line."""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cdb_video.datasets.columns import compose, fields, our_columns
from cdb_video.datasets.folder import VIDEO_SUFFIXES
from cdb_video.errors import DataError

MAX_BYTES = 2**28
"""Of an annotation file: those of 100 hours of video have a twentieth."""
PEEK = 2**16
"""Characters in which the first line of a table has to be."""

# Up to the last video suffix, so that paths with spaces work; other paths are folders of frames.
_VIDEO = "|".join(re.escape(suffix) for suffix in VIDEO_SUFFIXES)
_VIDEO_LINE = re.compile(rf'"?(?P<path>.+(?:{_VIDEO}))"?(?P<separator>[ ,\t])(?P<label>.+)', re.I)
_BARE_LINE = re.compile(rf'"?(?P<path>[^,;\t]+(?:{_VIDEO}))"?', re.I)
_FOLDER_LINE = re.compile(r'"?(?P<path>.+?)"?(?P<separator>[ ,\t])(?P<label>[^ ,\t]+)')


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table."""

    where: str
    """The file and the line, for errors."""
    cells: Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """The rows of a file, or of one split of it, under our column names."""

    file: Path
    header: Sequence[str]
    """Our names."""
    rows: Sequence[Row]
    file_header: Sequence[str]
    """The file's names."""

    @property
    def is_bare_list(self) -> bool:
        """Whether all it has is paths."""
        return tuple(self.header) == ("path",)

    def require(self, column: str, theirs: str | None = None) -> None:
        """DataError that names the columns there are, if this one (`theirs` by file) is not."""
        if column in self.header:
            return
        wanted = fields(theirs or column)
        name = next((field for field in wanted if field not in self.file_header), wanted[0])
        template = f" (data.columns.{column}: {theirs!r})" if theirs and theirs != name else ""
        close = difflib.get_close_matches(name, self.file_header, n=1)
        hint = f"; did you mean {close[0]!r}? (data.columns maps names)" if close else ""
        there = ", ".join(self.file_header)
        raise DataError(f"{self.file}: no column {name!r}{template}; there are: {there}{hint}")


def read_text(file: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Raises:
        DataError: the file is not there, too large, or not UTF-8.
    """
    try:
        size = file.stat().st_size
        if size > MAX_BYTES or (file.exists() and not file.is_file()):  # a pipe would be waited for
            raise DataError(f"{file}: not a file of at most {MAX_BYTES} bytes")
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text (byte {error.start})") from error


def find_tables(place: Path, root: Path, *, path_column: str = "path") -> list[Path]:
    """The file itself, or those files of a folder that have the path column or are lists.

    A path that is composed by a template needs the columns of that.

    Where none does, every .csv and .tsv, so that a misspelt column is told and not passed over.
    """
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise DataError(f"data.annotations: no file or folder {place}")
    files = [
        path
        for path in sorted(place.iterdir())
        if path.suffix.lower() in (".csv", ".tsv", ".txt") and path.is_file()
    ]
    fitting = [file for file in files if _is_table(file, root, path_column)]
    return fitting or [file for file in files if file.suffix.lower() != ".txt"]


def read_table_file(file: Path, root: Path, columns: Mapping[str, str]) -> Table:
    """The rows of a CSV (comma, semicolon or tab; cells are stripped) or of a list.

    Args:
        file: a list has no header: its lines are a path, a space, comma or tab, and a label, or
            all of them a path alone.
        root: a list's paths are relative to it.
        columns: our column name -> the file's, or a template of the file's.
    """
    text = read_text(file)
    if _is_list(_first_line(text.split("\n")), root):
        return _parse_list(file, text)
    return _parse_csv(file, text, columns)


def starts_bare(file: Path) -> bool:
    """Whether the first line is a path alone: an unlabelled list, or just a list of files."""
    return _BARE_LINE.fullmatch(_peek(file)) is not None


def _peek(file: Path) -> str:
    # Not `read_text`: a README in another encoding is no error.
    with file.open(encoding="utf-8-sig", errors="replace") as text:
        return _first_line(text.read(PEEK).split("\n"))


def _is_table(file: Path, root: Path, path_column: str) -> bool:
    first = _peek(file)
    names = [name.strip(' "') for name in first.split(_delimiter(first))]
    return all(name in names for name in fields(path_column)) or _is_list(first, root)


def _is_list(first: str, root: Path) -> bool:
    """Whether a file's first line is a path, with or without its label, and no header."""
    match = _FOLDER_LINE.fullmatch(first)
    is_folder = match is not None and (root / match["path"]).is_dir()
    return is_folder or any(line.fullmatch(first) for line in (_VIDEO_LINE, _BARE_LINE))


def _first_line(lines: Iterable[str]) -> str:
    return next((line.strip() for line in lines if line.strip()), "")


def _delimiter(header: str) -> str:
    return max(",;\t", key=header.count)


def _parse_list(file: Path, text: str) -> Table:
    lines = [(i, line.strip()) for i, line in enumerate(text.split("\n"), start=1) if line.strip()]
    bare = [_BARE_LINE.fullmatch(line) for _, line in lines]
    if all(bare):  # an unlabelled split; a label that is missing in some lines is refused
        paths = [match["path"].strip() for match in bare if match]
        rows = [Row(f"{file}:{i}", {"path": p}) for (i, _), p in zip(lines, paths, strict=True)]
        return Table(file, ("path",), rows, ("path",))
    rows = []
    for number, line in lines:
        match = _VIDEO_LINE.fullmatch(line) or _FOLDER_LINE.fullmatch(line)
        # The same separator again would be a second label or a third column; and a path of spaces
        # without a label is no folder with one.
        is_wrong = match is None or match["separator"] in match["label"].strip()
        if match is None or is_wrong or _BARE_LINE.fullmatch(line):
            raise DataError(f"{file}:{number}: expected 'path label', found {line!r}")
        cells = {"path": match["path"].strip(), "label": match["label"].strip()}
        rows.append(Row(f"{file}:{number}", cells))
    return Table(file, ("path", "label"), rows, ("path", "label"))


def _parse_csv(file: Path, text: str, columns: Mapping[str, str]) -> Table:
    delimiter = _delimiter(_first_line(text.split("\n")))
    lines = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    header: list[str] = []
    ours: dict[str, str] = {}
    rows = []
    try:
        for raw in lines:
            cells = [cell.strip() for cell in raw]
            where = f"{file}:{lines.line_num}"
            if not any(cells):  # a blank line, or what spreadsheets write for one: ",,,"
                continue
            if not header:
                header = _refuse_twice(file, cells)
                ours = our_columns(header, columns)
            elif len(cells) != len(header):
                raise DataError(f"{where}: {len(cells)} cells under {len(header)} columns")
            else:
                named = dict(zip(header, cells, strict=True))
                rows.append(Row(where, {name: compose(t, named) for name, t in ours.items()}))
    except csv.Error as error:
        raise DataError(f"{file}:{lines.line_num}: not CSV ({error})") from error
    table = Table(file, tuple(ours), rows, tuple(header))
    table.require("path", columns.get("path"))
    return table


def _refuse_twice(file: Path, header: list[str]) -> list[str]:
    twice = [name for name in header if name and header.count(name) > 1]
    if twice:
        raise DataError(f"{file}: column {twice[0]!r} is there twice")
    return header
