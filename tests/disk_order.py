"""What code asks of the disk, in order: what it flushes and what it renames."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def disk_order(root: Path, patch: pytest.MonkeyPatch) -> list[str]:
    """Lines that grow: "sync NAME" and "rename NAME to NAME", with names relative to `root`."""
    lines: list[str] = []
    fsync = os.fsync

    def name(path: str | os.PathLike[str]) -> str:
        return os.path.relpath(path, root)

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        lines.append(f"sync {name(os.readlink(f'/proc/self/fd/{descriptor}'))}")

    def renamed(rename: Callable[..., None]) -> Callable[..., None]:
        def recorded(source: Any, target: Any, **options: Any) -> None:
            rename(source, target, **options)
            lines.append(f"rename {name(source)} to {name(target)}")

        return recorded

    patch.setattr(os, "fsync", synced)
    for function in ("rename", "replace"):
        patch.setattr(os, function, renamed(getattr(os, function)))
    return lines
