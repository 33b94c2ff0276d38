"""The folder of a run: its name, its lock, and the files that are written once."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import subprocess
import sys
import weakref
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from cdb_video.distributed import launch_id
from cdb_video.errors import RunError, RunIsHeldError
from cdb_video.files import sweep, write_text_durably, writing

STOPPED = "stopped.json"
PACKAGES = (
    "torch",
    "torchvision",
    "pytorchvideo",
    "transformers",
    "huggingface_hub",
    "av",
    "numpy",
    "cdb-video",
)


def choose_run_folder(
    output_dir: Path,
    name: str | None,
    *,
    config_name: str,
    resume: bool,
    launch: str | None = None,
) -> Path:
    """Where a run is to be: `output_dir/name`, or the configuration's name and a free number.

    With `resume` and no name it is the newest numbered run of the configuration, if there is one.
    With `launch`, of torchrun's that has restarted its ranks, it is the run that the launch began.

    Raises:
        RunError: a run of that name exists and is not to be resumed.

    """
    if name is not None:
        folder = output_dir / name
        # What failed before it began has left nothing to overwrite.
        begun = (folder / "config.yaml").exists()
        of_launch = launch is not None and _launch_of(folder) == launch
        if begun and not resume and not of_launch:
            raise RunError(
                f"run.name={name}: {folder} exists; add --resume to continue it or choose "
                "another run.name"
            )
        return folder
    pattern = re.compile(re.escape(config_name) + r"-(\d+)")
    matches = [pattern.fullmatch(path.name) for path in output_dir.glob(f"{config_name}-*")]
    numbers = [int(match[1]) for match in matches if match]
    newest = max(numbers, default=0)
    if launch is not None and not resume:
        mine = [n for n in numbers if _launch_of(output_dir / f"{config_name}-{n}") == launch]
        resume, newest = len(mine) > 0, max(mine, default=newest)
    if resume and newest:
        return output_dir / f"{config_name}-{newest}"
    while True:  # another run may start at the same time
        newest += 1
        folder = output_dir / f"{config_name}-{newest}"
        with writing(folder):
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                continue
        return folder


class RunFolder:
    """A run's folder, held by one writer until `close`.

    `resume_from` is the checkpoint to continue from, None for a new run; `set_aside` has a line for
    each damaged one that was found on the way.

    Raises:
        RunIsHeldError: another process writes to it.
        RunError: it cannot be made.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.resume_from: str | None = None
        self.set_aside: tuple[str, ...] = ()
        self.checkpoints = path / "checkpoints"
        with writing(path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock: TextIO = (path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise RunIsHeldError(f"{path}: another process is writing to this run") from None
        # A loader's worker that outlives a killed writer for a moment must not hold the lock on.
        os.register_at_fork(after_in_child=partial(_close, weakref.ref(self._lock)))
        sweep(path)

    def write_config(self, config_yaml: str) -> None:
        """`config.yaml`, when the run starts and when it goes on."""
        write_text_durably(self.path / "config.yaml", config_yaml)

    def write_about(self, *, classes: dict[str, Any]) -> None:
        """`run.json`, when the run starts."""
        about = {
            "command": sys.argv,
            "launch": launch_id(),
            "versions": versions(),
            "git": git_state(),
            "classes": classes,
        }
        text = json.dumps(about, indent=1, ensure_ascii=False)
        write_text_durably(self.path / "run.json", text + "\n")

    @property
    def is_stopped(self) -> bool:
        """Whether the run was asked to stop, and nobody went on with it."""
        return (self.path / STOPPED).exists()

    def begin(self) -> None:
        """Training is about to start, or to go on; until then an earlier mark stays."""
        (self.path / STOPPED).unlink(missing_ok=True)

    def close(self) -> None:
        """Let others write."""
        self._lock.close()


def mark_stopped(folder: Path, reason: str) -> None:
    """A run's `stopped.json`: it was asked to stop, and can be resumed. Gone when it is."""
    write_text_durably(folder / STOPPED, json.dumps({"reason": reason}) + "\n")


def _launch_of(folder: Path) -> str | None:
    try:
        about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    launch: str | None = about.get("launch")
    return launch


def _close(file: weakref.ref[TextIO]) -> None:
    lock = file()
    if lock is not None:
        lock.close()


def versions() -> dict[str, str]:
    """Of Python and of the packages that figures depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_state() -> dict[str, Any] | None:
    """Commit of the working directory and whether it was changed; None outside a repository."""

    def git(*arguments: str) -> str:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            ["git", *arguments],  # noqa: S607 - whichever git the user has
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
