"""A disk that is full, or a file that may not grow: the last checkpoint is untouched."""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import torch

from cdb_video.config_file import dump_config
from cdb_video.errors import RunError
from cdb_video.training.checkpoint import (
    CheckpointFolder,
    load_best,
    load_model,
    load_training,
    newest_valid,
)
from tests.reliability.jobs import ForkedJob
from tests.reliability.outcome import Outcome, Row
from tests.tiny import tiny_config

ROOT = Path(__file__).parents[2]
RUN = 40 << 20
"""Bytes of the file system that a run of 11 MB is resumed on, which is filled too."""
FULL = 2 << 20
FILE_LIMIT = "tests.reliability.file_limit"
"""Bytes of the file system that is filled."""
SIZE = 60_000
"""Numbers in each of a checkpoint's two files: 0.5 MB in all."""
EXIT_WITHIN_S = 60.0
"""Of the tool that resumes, with its start and an epoch."""


def measure(count: int, seed: int, folder: Path) -> Outcome:
    """A part of the cases in the tool itself, of the others every second on a full file system."""
    draw = random.Random(seed)
    runs = max(2, count // 5)
    failures: list[str] = []
    mounted = 0
    # TensorBoard's files need time that the quick lane does not have.
    trackers = ([], ["tensorboard"]) if runs > 2 else ([],)
    configs = [trained(folder / f"tool-{len(names)}", names) for names in trackers]
    for case in range(runs):
        config, place = configs[case % len(configs)], folder / f"resumed-{case}"
        if case and (disk := small_disk(f"size={RUN}")) is not None:
            mounted += 1
            room = draw.choice((1, 2, 8, 64, 512)) * 4096
            with disk as path:
                found = list(resumed_without_room(config, Path(path), room, by_file=False))
        else:
            place.mkdir()
            found = list(resumed_without_room(config, place, 10**6, by_file=True))
        failures += [f"tools/train.py, case {case}: {line}" for line in found]
    for case in range(runs, max(count, 4)):
        if case % 2 and (disk := small_disk(few_names(draw))) is not None:
            mounted += 1
            with disk as path:
                failures += [f"case {case}, {line}" for line in fill(Path(path), draw)]
            continue
        place = folder / str(case)
        failures += [f"case {case}, {line}" for line in in_a_child(limited, place, draw)]
    return Outcome(max(count, 4), tuple(failures), {"on_a_full_file_system": mounted})


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


def few_names(draw: random.Random) -> str:
    """Options of a file system of 2 MiB, a quarter of them with a few names."""
    options = f"size={FULL}"
    if draw.random() < 0.25:
        # 15 with two checkpoints, 21 with a third one, 22 with best.json beside its place.
        options += f",nr_inodes={draw.randrange(16, 22)}"
    return options


def small_disk(options: str) -> tempfile.TemporaryDirectory[str] | None:
    """A file system; None where nothing may be mounted."""
    disk = _Disk()
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


def trained(folder: Path, trackers: list[str]) -> Path:
    """The configuration of a run of an epoch, with validation, which is there."""
    data = folder / "data"
    data.mkdir(parents=True)
    write_videos(data)
    path = folder / "config.yaml"
    config = tiny_config(data, folder / "runs", run={"trackers": trackers})
    path.write_text(dump_config(config))
    job = ForkedJob([str(path), "train.epochs=1"], num_ranks=1, folder=folder)
    if job.wait() != [0]:
        raise RuntimeError(job.output())
    return path


def resumed_without_room(config: Path, output: Path, room: int, *, by_file: bool) -> Iterator[str]:
    """Resume a copy of the run in `output`: what is not as promised.

    Args:
        config: see `trained`.
        output: an empty folder, of a small file system unless `by_file`.
        room: bytes that are left on it, or that a file may have.
        by_file: the latter.

    """
    shutil.copytree(config.parent / "runs" / "tiny", output / "tiny")
    before, _ = newest_valid(output / "tiny" / "checkpoints")
    assert before is not None
    weights = load_model(before)
    if not by_file:
        (output / "filler").write_bytes(bytes(max(0, os.statvfs(output).f_bavail * 4096 - room)))
    told = [str(config), "--resume", f"run.output_dir={output}"]
    limit = {"LARGEST_FILE": str(room)} if by_file else {}
    job = ForkedJob(told, num_ranks=1, folder=config.parent, prepare=FILE_LIMIT, environment=limit)
    statuses = job.wait(EXIT_WITHIN_S)
    said = job.output()
    if statuses != [2] or "could not be written (" not in said.splitlines()[-1]:
        yield f"exit status {statuses}: {said[-500:]}"
    if "Traceback" in said:
        yield f"more than a line: {said}"
    if newest_valid(before.parent) != (before, []):
        yield f"the newest is {newest_valid(before.parent)}"
    elif not all(torch.equal(weights[k], v) for k, v in load_model(before).items()):
        yield "the last checkpoint has changed"
    hidden = [path.name for path in output.rglob(".*") if path.name != ".lock"]
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
    "A full disk harms no checkpoint, leaves nothing half done, and is one line with the file and "
    "the bytes that are free, whatever a run was writing.",
    measure,
    quick=4,
    full=60,
)
