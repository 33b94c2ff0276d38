"""A disk that is full, or a file that may not grow: the last checkpoint is untouched."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import torch

from cdb_video.build import build_trainer
from cdb_video.config_file import dump_config
from cdb_video.distributed import Ranks
from cdb_video.errors import RunError
from cdb_video.experiments import open_run
from cdb_video.training.checkpoint import (
    CheckpointFolder,
    load_best,
    load_model,
    load_training,
    newest_valid,
)
from tests.reliability.outcome import Outcome, Row
from tests.tiny import tiny_config

ROOT = Path(__file__).parents[2]
FULL = 2 << 20
"""Bytes of the file system that is filled."""
SIZE = 60_000
"""Numbers in each of a checkpoint's two files: 0.5 MB in all."""
EXIT_WITHIN_S = 60.0
"""Of the tool that resumes, with its start and an epoch; the save itself takes milliseconds."""


def measure(count: int, seed: int, folder: Path) -> Outcome:
    """One case in the tool itself, of the others every second on a full file system."""
    draw = random.Random(seed)
    failures = [f"tools/train.py: {line}" for line in training_that_runs_out(folder / "tool")]
    mounted = 0
    for case in range(1, max(count, 3)):
        if case % 2 and (disk := small_disk(draw)) is not None:
            mounted += 1
            with disk as path:
                failures += [f"case {case}, {line}" for line in fill(Path(path), draw)]
            continue
        place = folder / str(case)
        failures += [f"case {case}, {line}" for line in in_a_child(limited, place, draw)]
    return Outcome(max(count, 3), tuple(failures), {"on_a_full_file_system": mounted})


def fill(disk: Path, draw: random.Random) -> Iterator[str]:
    """Save, fill the disk up to a random rest, save until it is full."""
    store = new_store(disk)
    save(store, 1)
    rest = draw.randrange(4 * SIZE * 2)
    (disk / "filler").write_bytes(bytes(max(0, os.statvfs(disk).f_bavail * 4096 - rest)))
    yield from failed_save(disk, store, f"with {rest} bytes left")


def limited(folder: Path, draw: random.Random) -> list[str]:
    """Save, and again while no file may be larger than a random size. Never gets room again."""
    store = new_store(folder)
    save(store, 1)
    largest = draw.randrange(4 * SIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    return list(failed_save(folder, store, f"with files of at most {largest} bytes"))


def new_store(folder: Path) -> CheckpointFolder:
    return CheckpointFolder(folder, texts={"config.yaml": "run: {}\n"}, keep_last=2)


def save(store: CheckpointFolder, step: int) -> None:
    numbers = torch.full((SIZE,), float(step))
    store.save(
        step,
        model={"weight": numbers},
        training={"step": step, "momentum": -numbers},
        best={"checkpoint": f"step-{step}"},
    )


def failed_save(folder: Path, store: CheckpointFolder, how: str) -> Iterator[str]:
    """Save until it fails; a line for what is not as promised then."""
    last = 1
    message = ""
    while not message and last < 10:
        try:
            save(store, last + 1)
            last += 1
        except RunError as error:
            message = str(error)
    if not message:
        yield f"{how}: every save went well"
    needed = [str(folder), "could not be written", "MB are free", "untouched"]
    reasons = ("No space left on device", "File too large")
    if not all(part in message for part in needed) or not any(r in message for r in reasons):
        yield f"{how}: the message is {message!r}"
    hidden = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    if hidden:
        yield f"{how}: {hidden} was left"
    found, lines = newest_valid(folder)
    # Where best.json alone did not fit, the new checkpoint is there as well.
    steps = (last, last + 1) if "best.json" in message else (last,)
    if lines or found is None or found.name not in [f"step-{step}" for step in steps]:
        yield f"{how}: the newest is {found}; {lines}"
        return
    step = load_training(found)["step"]
    if f"step-{step}" != found.name or not (load_model(found)["weight"] == step).all():
        yield f"{how}: {found.name} holds another state"
    if load_best(folder) != {"checkpoint": f"step-{last}"}:
        yield f"{how}: best.json is {load_best(folder)}"


def small_disk(draw: random.Random) -> tempfile.TemporaryDirectory[str] | None:
    """A file system of 2 MiB, or of a few names; None where nothing may be mounted."""
    disk = _Disk()
    options = f"size={FULL}"
    if draw.random() < 0.25:
        # 15 with two checkpoints, 21 with a third one, 22 with best.json beside its place.
        options += f",nr_inodes={draw.randrange(16, 22)}"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk.name]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        tempfile.TemporaryDirectory.cleanup(disk)
        return None
    return disk


class _Disk(tempfile.TemporaryDirectory[str]):
    def cleanup(self) -> None:
        subprocess.run(["umount", self.name], check=True)
        super().cleanup()


def in_a_child(
    work: Callable[[Path, random.Random], list[str]], folder: Path, draw: random.Random
) -> list[str]:
    """What `work` says in a process of its own, whose limits end with it."""
    folder.mkdir()
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            lines = work(folder, draw)
        except BaseException as error:
            lines = [repr(error)]
        os.write(write, "\n".join(lines).encode())
        os._exit(0)
    os.close(write)
    draw.random()  # the child drew from a copy
    with os.fdopen(read) as said:
        lines = said.read().splitlines()
    os.waitpid(pid, 0)
    return lines


def training_that_runs_out(folder: Path) -> Iterator[str]:
    """Train an epoch, resume where no file may be larger than 1 MB: the tool's own words."""
    data = folder / "data"
    data.mkdir(parents=True)
    write_videos(data)
    config = tiny_config(data, folder, train={"epochs": 1})
    run, named = open_run(config, config_name="tiny", resume=False)
    build_trainer(named, ranks=Ranks(), run=run, quiet=True).fit()
    run.close()
    before, _ = newest_valid(run.checkpoints)
    assert before is not None
    weights = load_model(before)
    (folder / "config.yaml").write_text(dump_config(named))
    command = [sys.executable, "tools/train.py", str(folder / "config.yaml"), "--resume"]
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 1000; exec "$@"', "-", *command, "train.epochs=2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=EXIT_WITHIN_S,
    )
    if done.returncode != 2 or "could not be written (" not in done.stderr.splitlines()[-1]:
        yield f"exit status {done.returncode}: {done.stderr[-500:]}"
    if newest_valid(run.checkpoints) != (before, []):
        yield f"the newest is {newest_valid(run.checkpoints)}"
    elif not all(torch.equal(weights[k], v) for k, v in load_model(before).items()):
        yield "the last checkpoint has changed"
    hidden = [path.name for path in run.checkpoints.iterdir() if path.name.startswith(".")]
    if hidden:
        yield f"{hidden} was left"


def write_videos(folder: Path) -> None:
    """Six grey videos of two classes, and their table."""
    lines = ["path,verb,split"]
    for i in range(8):
        name = f"{i}.mp4"
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream("libx264", rate=24)
            stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
            for _ in range(6):
                grey = np.full((24, 32, 3), 60 + 15 * i, dtype=np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
            container.mux(stream.encode(None))
        lines.append(f"{name},{'open' if i % 2 else 'close'},{'train' if i < 6 else 'val'}")
    (folder / "clips.csv").write_text("\n".join(lines) + "\n")


ROW = Row(
    "disk_full",
    "A full disk harms no checkpoint, leaves nothing half done, and is named with the bytes.",
    measure,
    quick=3,
    full=50,
)
