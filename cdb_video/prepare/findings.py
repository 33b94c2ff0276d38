"""What the doctor can find, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Level = Literal["error", "note"]
"""An error is wrong or unreadable; a note may be meant so: official splits share recordings."""


class Kind(NamedTuple):
    """What findings of one kind have in common."""

    level: Level
    mend: str


_FETCH = "get the file anew, or take its rows out of the annotations"
_SEGMENT = "mend its times in the annotations, or get the whole video"

KINDS: dict[str, Kind] = {
    "annotations": Kind("error", "mend the line that is named, and run this again"),
    "no labels": Kind("error", "label clips of the head, or leave it out of model.heads"),
    "missing": Kind("error", "put the file there, or take its rows out of the annotations"),
    "empty": Kind("error", _FETCH),
    "unreadable": Kind("error", _FETCH),
    "cut off": Kind("error", _FETCH),
    "damaged": Kind("error", _FETCH),
    "hung": Kind("error", f"{_FETCH}; --timeout sets the limit"),
    "crashed": Kind("error", _FETCH),
    "segment": Kind("error", _SEGMENT),
    "repeated id": Kind("error", "give each row its own video_id, or take one of them out"),
    "same content in two splits": Kind("error", "keep it in one split"),
    "same content": Kind("note", "keep one of them, unless it is meant to weigh twice"),
    "segment end": Kind("note", _SEGMENT),
    "header": Kind("note", "nothing: frames are counted, not believed; a remux mends the header"),
    "shared recording": Kind("note", "official splits may do so; else split by recording"),
    "shared subject": Kind("note", "official splits may do so; else data.hold_out_subjects"),
    "no train clips": Kind("note", "the class cannot be learnt: add clips, or merge it"),
    "few train clips": Kind("note", "its accuracy will hang on a few clips: add some, or merge it"),
    "no val clips": Kind("note", "its difficulty is never measured: its weight stays 1"),
    "no test clips": Kind("note", "it does not count in the test's mean class accuracy"),
}
"""In the order of the report."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing."""

    kind: str
    """A name of `KINDS`."""
    split: str
    """Roles that it concerns, such as "train" or "train, test"."""
    where: str
    """A file, file@start-stop in seconds, a recording, a class, or a key of the configuration."""
    message: str
    """One line."""

    @property
    def level(self) -> Level:
        """Error or note."""
        return KINDS[self.kind].level

    @property
    def mend(self) -> str:
        """What to do about it."""
        return KINDS[self.kind].mend


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """By kind, errors first; within a kind by split and place."""
    rank = {kind: i for i, kind in enumerate(KINDS)}
    return sorted(findings, key=lambda f: (rank[f.kind], f.split, f.where, f.message))


def count_levels(findings: Sequence[Finding]) -> tuple[int, int]:
    """(errors, notes)."""
    errors = sum(finding.level == "error" for finding in findings)
    return errors, len(findings) - errors
