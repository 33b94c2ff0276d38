"""Records and splits as a reader would make them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cdb_video.datasets.annotations import Split, VideoRecord, Vocabulary


def make_record(path: Path | str, **values: Any) -> VideoRecord:
    path = Path(path)
    fields = {"id": path.stem, "video_id": path.stem, "recording": path.stem, "labels": {"verb": 0}}
    return VideoRecord(path=path, **(fields | values))


def make_split(*records: VideoRecord, names: Sequence[str] = ("cut",), head: str = "verb") -> Split:
    return Split("made", list(records), {head: Vocabulary(names)})
