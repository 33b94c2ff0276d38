"""Training jobs of several ranks, to be killed, stopped and signalled.

`ForkedJob` starts each rank of tools/train.py by a fork of a process that has torch imported: a
tenth of a second in place of five, where torchrun itself is not what is tried. `torchrun` is the
real one.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from cdb_video.config_file import dump_config
from tests.conftest import NOUNS, VERBS, write_coloured_video
from tests.tiny import tiny_config

ROOT = Path(__file__).resolve().parents[2]
TRAIN = str(ROOT / "tools" / "train.py")
PATIENCE_S = 120.0
"""After which a job that does not end, or a state that does not come, is a failure of the test."""
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.reliability.warm"])


def make_data(folder: Path, *, train: int = 48, val: int = 5) -> Path:
    """Videos of one colour, with two verbs and three nouns."""
    folder.mkdir(parents=True)
    rows = ["path,verb,noun,split"]
    for split, count in {"train": train, "val": val}.items():
        for i in range(count):
            name, verb, noun = f"{split}_{i}.mp4", VERBS[i % 2], NOUNS[i % 3]
            level = 90 + 120 * (i % 2) + i % 20
            write_coloured_video(folder / name, channel=i % 3, level=level)
            rows.append(f"{name},{verb},{noun},{split}")
    (folder / "clips.csv").write_text("\n".join(rows) + "\n")
    return folder


def write_config(root: Path, output: Path, **sections: dict[str, Any]) -> Path:
    """A configuration file of a run `output/tiny`; `sections` are merged over the tiny one.

    Without validation, whose report takes longer than the training.
    """
    train = {
        "epochs": 2,
        "global_batch_size": 12,
        "micro_batch_size": 2,
        "log_every": 1,
        "save_every_steps": 1,
        "keep_last": 3,
        "rank_timeout_s": 30,
        **sections.get("train", {}),
    }
    no_val = {
        "data": {"val_split": None, **sections.get("data", {})},
        "loss": {"difficulty": {"source": "train"}, **sections.get("loss", {})},
    }
    config = tiny_config(root, output, **{**sections, **no_val, "train": train})
    path = output.parent / f"{output.name}.yaml"
    path.write_text(dump_config(config))
    return path


class ForkedJob:
    """Ranks of tools/train.py, each a process; their output goes to `folder/rank<r>.txt`.

    `prepare` is a module that each rank imports first, such as one with a backbone of its own.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        num_ranks: int,
        folder: Path,
        prepare: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        common = {
            **(environment or {}),
            "WORLD_SIZE": str(num_ranks),
            "LOCAL_WORLD_SIZE": str(num_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "OMP_NUM_THREADS": "1",
        }
        self.ranks: list[ForkServerProcess] = []
        for rank in range(num_ranks):
            own = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            output = folder / f"rank{rank}.txt"
            told = (list(arguments), own, str(output), prepare)
            process = _SERVER.Process(target=_run, args=told)
            process.start()
            self.ranks.append(process)

    def kill(self, rank: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a rank."""
        os.kill(self.ranks[rank].pid or 0, number)

    def wait(self, seconds: float = PATIENCE_S) -> list[int | None]:
        """The ranks' exit statuses; None for one that was still there, and is ended now."""
        end = time.monotonic() + seconds
        for process in self.ranks:
            process.join(max(0.0, end - time.monotonic()))
        statuses = [process.exitcode for process in self.ranks]
        for process in self.ranks:
            if process.is_alive():
                process.kill()
                process.join()
        return statuses

    def output(self) -> str:
        """What the ranks printed, for a message."""
        texts = [path.read_text()[-1500:] for path in sorted(self.folder.glob("rank*.txt"))]
        return "\n".join(texts)


def _run(
    arguments: list[str], environment: dict[str, str], output: str, prepare: str | None
) -> None:
    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(ROOT)
    # As in a process that nobody forked.
    multiprocessing.set_start_method("fork", force=True)
    sys.argv = [TRAIN, *arguments]
    if prepare is not None:
        importlib.import_module(prepare)
    runpy.run_path(TRAIN, run_name="__main__")


def torchrun(
    arguments: Sequence[str],
    *,
    num_ranks: int,
    output: Path,
    options: Sequence[str] = (),
    environment: dict[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """The agent of a job on this machine, in a session of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={num_ranks}"]
    command += [*(options or ["--standalone"]), TRAIN, *arguments]
    known = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("ab") as file:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**known, **(environment or {})},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def events(run: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's metrics.jsonl so far."""
    try:
        text = (run / "metrics.jsonl").read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def steps_done(run: Path) -> int:
    """The last step that the log tells of."""
    return max((event["step"] for event in events(run)), default=0)


def wait_until(condition: Callable[[], Any], seconds: float = PATIENCE_S) -> bool:
    """Whether a condition became true in time; it is asked every few milliseconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.003)
    return False


def descendants(pid: int) -> set[int]:
    """The processes below one, as Linux knows them now."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        for child in parents.get(waiting.pop(), []):
            found.add(child)
            waiting.append(child)
    return found


def alive(pids: set[int]) -> set[int]:
    """Those that still run; a zombie does not."""
    found = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            found.add(pid)
    return found


def environment(pid: int) -> list[bytes]:
    """Of a process that may be gone."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return []
