"""Packet indices on disk: a long file is read through once, and not once a run."""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass, fields
from pathlib import Path

import av
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cdb_video.clips.index import FrameIndex

FORMAT = f"3, av {av.__version__}"
"""What makes an index of the same file another one: this class, and the library that read it."""
ELSEWHERE = "outside of the root"
_TENSORS = ("times", "pts", "key", "key_pts", "droppable")


@dataclass(frozen=True)
class IndexFolder:
    """A folder of indices, by paths relative to the data's root, which may be mounted elsewhere.

    An index holds as long as its file has the size and the time of change that it was made from,
    and its own SHA-256 is right: safetensors notices neither a flipped bit nor a page of zeros.
    That is also why it is not flushed to the disk: one that a power cut tore is made again.
    Two roots of one name share places: they are right still, and made again where paths are equal.
    """

    folder: Path
    """Such as `<data.cache_dir>/packet_index`."""
    root: Path
    """The data's; the indices of other files go by their absolute paths."""

    def find(self, path: Path) -> FrameIndex | None:
        """The kept index of a file; None where there is none that holds."""
        try:
            with safe_open(self._place(path), framework="pt") as kept:
                about = kept.metadata() or {}
                if about["file"] != _identity(path.stat()):
                    return None
                index = FrameIndex(
                    **{name: kept.get_tensor(name) for name in _TENSORS},
                    fps=float(about["fps"]),
                    height=int(about["height"]),
                    width=int(about["width"]),
                    open_gop=about["open_gop"] == "True",
                )
                return index if about["sha256"] == _sha256(index) else None
        except (OSError, SafetensorError, KeyError, ValueError, TypeError):
            return None

    def keep(self, path: Path, index: FrameIndex, status: os.stat_result) -> None:
        """Keep an index; where nothing can be written, the next run makes it again.

        Args:
            path: of the file.
            index: of the file.
            status: the file's, of before it was read: it may have grown since.

        """
        place = self._place(path)
        about = {
            "file": _identity(status),
            "fps": repr(index.fps),
            "height": str(index.height),
            "width": str(index.width),
            "open_gop": str(index.open_gop),
            "sha256": _sha256(index),
        }
        beside = place.with_name(f"{place.name}.tmp{os.getpid()}")
        with contextlib.suppress(OSError, SafetensorError):
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                save_file({name: getattr(index, name) for name in _TENSORS}, beside, metadata=about)
                beside.replace(place)
            finally:
                beside.unlink(missing_ok=True)

    def _place(self, path: Path) -> Path:
        # Without "..", which would lead out of the folder.
        file, root = os.path.abspath(path), Path(os.path.abspath(self.root))
        inside = os.path.relpath(file, root)
        if inside.startswith(os.pardir):
            return self.folder / ELSEWHERE / f"{file}.index".lstrip(os.sep)
        return self.folder / root.name / f"{inside}.index"


def _identity(status: os.stat_result) -> str:
    return f"{status.st_size} bytes, changed {status.st_mtime_ns}, {FORMAT}"


def _sha256(index: FrameIndex) -> str:
    """Of every field, with the types and shapes of tensors."""
    digest = hashlib.sha256()
    for field in fields(index):
        value = getattr(index, field.name)
        if isinstance(value, Tensor):
            digest.update(f"{field.name} {value.dtype} {tuple(value.shape)}:".encode())
            digest.update(value.numpy().tobytes())
        else:
            digest.update(f"{field.name} {value!r}:".encode())
    return digest.hexdigest()
