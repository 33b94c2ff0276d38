"""A checkpoint's manifest: the SHA-256 of each of its files, written last.

A flipped bit goes unnoticed by torch and by safetensors alike; this finds it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path

from cdb_video.errors import RunError
from cdb_video.files import sync

MANIFEST = "manifest.json"
MAX_BYTES = 1 << 20
"""Of a manifest: one of ours has under a thousand."""


def write_manifest(folder: Path) -> None:
    """Write the manifest of a folder's files, and wait until it and their names are on the disk."""
    names = sorted(path.name for path in folder.iterdir())
    text = json.dumps({name: sha256(folder / name) for name in names}, indent=1)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    sync(folder / MANIFEST)
    sync(folder)


def verify(folder: Path, *, only: Collection[str] = (), without: Collection[str] = ()) -> None:
    """Compare a checkpoint's files with its manifest, which must name all of them and no others.

    Hidden files are passed over: network file systems and file managers leave them anywhere.

    Args:
        folder: the checkpoint.
        only: the names whose content is to be compared; by default every file's.
        without: names whose content is not to be compared.

    Raises:
        RunError: the manifest is missing or malformed, or a file is missing, unknown or differs;
            the message names it.

    """
    manifest = read_manifest(folder)
    for name in manifest.keys() | set(only):
        if not (folder / name).is_file() or name not in manifest:
            raise RunError(f"{folder / name}: missing; {folder} is not a whole checkpoint")
    found = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    for name in sorted(found - manifest.keys() - {MANIFEST}):
        raise RunError(f"{folder / name}: not in {MANIFEST}; {folder} is not a checkpoint as saved")
    for name in sorted(set(only) or manifest.keys() - set(without)):
        try:
            digest = sha256(folder / name)
        except OSError as error:
            raise RunError(f"{folder / name}: cannot be read ({error.strerror})") from None
        if digest != manifest[name]:
            raise RunError(f"{folder / name}: damaged, its SHA-256 is not the manifest's")


def read_manifest(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 in hexadecimal; every name is that of a file in the folder itself.

    Raises:
        RunError: it is missing or malformed.

    """
    path = folder / MANIFEST
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        manifest = json.loads(content) if len(content) <= MAX_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{folder}: not a whole checkpoint: {MANIFEST}: {error}") from None
    if not isinstance(manifest, dict) or not all(
        _is_file_name(name) and isinstance(digest, str) for name, digest in manifest.items()
    ):
        raise RunError(f"{path}: not a manifest: file names of this folder with their SHA-256")
    return manifest


def _is_file_name(name: str) -> bool:
    return name not in ("", ".", "..", MANIFEST) and not set(name) & set("/\\\0")


def sha256(path: Path) -> str:
    """Of a file, read at the disk's speed, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
