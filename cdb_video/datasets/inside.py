"""A stranger's data (`data.untrusted`) stays inside its folder: no path and no link leads out."""

from __future__ import annotations

import os
from pathlib import Path

from cdb_video.datasets.annotations import Split
from cdb_video.errors import DataError


def refuse_links_out(root: Path) -> None:
    """Look at every link below a folder.

    Raises:
        DataError: one that leads out, or to nothing.

    """
    for folder, subfolders, files in os.walk(root):
        for name in (*subfolders, *files):
            path = os.path.join(folder, name)
            if os.path.islink(path):
                refuse_outside(Path(path), root)


def refuse_paths_out(split: Split, root: Path) -> None:
    """Look at the path of every record.

    Raises:
        DataError: an absolute one, one with "..", or a link that leads out.

    """
    for path in {record.path for record in split.records}:
        refuse_outside(path, root)


def refuse_outside(path: Path, root: Path) -> None:
    """Refuse a path that is not below the root, as it is written and when links are followed.

    Raises:
        DataError: with the path.

    """
    if not path.is_relative_to(root) or ".." in path.relative_to(root).parts:
        raise DataError(f"{path}: data.untrusted: leads out of {root}")
    try:
        target = path.resolve()
        home = root.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links; a NUL character
        raise DataError(f"{str(path)!r}: data.untrusted: leads nowhere ({error})") from None
    if not target.is_relative_to(home):
        raise DataError(f"{path}: data.untrusted: a link out of {root}, to {target}")
