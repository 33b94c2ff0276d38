"""Processes that hang, die and are interrupted: real ones."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cdb_video.prepare.pool import run_watched
from tests.prepare import pool_tasks

# Each starts processes that import PyTorch. tests/tools/test_check_data.py has the quick one.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_every_job_has_an_outcome_with_its_results_in_order(tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.txt" for i in range(5)]
    for file in files:
        file.write_text(file.name)

    outcomes = list(run_watched(pool_tasks.read, files, num_workers=2, timeout_s=30))

    assert sorted(outcome.job for outcome in outcomes) == files
    assert all(list(o.results) == ["opening", o.job.name] for o in outcomes)
    assert not any(outcome.hung or outcome.died for outcome in outcomes)


def test_no_jobs_need_no_process() -> None:
    assert list(run_watched(pool_tasks.read, [], num_workers=2, timeout_s=30)) == []


def test_a_job_that_hangs_is_given_up_and_the_others_are_done(tmp_path: Path) -> None:
    fifo, file = tmp_path / "x.mp4", tmp_path / "y.mp4"
    os.mkfifo(fifo)
    file.write_text("content")
    started = time.monotonic()

    hung, done = run_watched(pool_tasks.read, [fifo, file], num_workers=1, timeout_s=0.5)

    assert (hung.job, hung.hung, list(hung.results)) == (fifo, True, ["opening"])
    assert (done.job, done.hung, list(done.results)) == (file, False, ["opening", "content"])
    assert time.monotonic() - started < 30


def test_signs_of_life_put_the_limit_off() -> None:
    # 8 x 0.3 s is more than the limit, 0.3 s is not.
    [outcome] = run_watched(pool_tasks.tick, [8], num_workers=1, timeout_s=1.5)

    assert list(outcome.results) == list(range(8))
    assert not outcome.hung


@pytest.mark.parametrize(
    "job", [signal.SIGKILL, signal.SIGSEGV], ids=["out of memory", "crash in C"]
)
def test_a_process_that_dies_is_told_with_its_signal_and_replaced(job: signal.Signals) -> None:
    died, done = run_watched(pool_tasks.end_by, [job, 0], num_workers=1, timeout_s=30)

    assert (died.job, died.died, list(died.results)) == (job, job.name, ["alive"])
    assert (done.job, done.died, list(done.results)) == (0, None, ["alive"])


INTERRUPTED = """
from pathlib import Path
from cdb_video.prepare.pool import run_watched
from tests.prepare import pool_tasks
if __name__ == "__main__":
    list(run_watched(pool_tasks.wait_for_ever, [Path("a"), Path("b")], num_workers=2, timeout_s=60))
"""


def test_ctrl_c_ends_every_process(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED)
    parent = subprocess.Popen(
        [sys.executable, script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    pids = [tmp_path / "a", tmp_path / "b"]
    while not all(file.exists() and file.read_text() for file in pids):
        assert parent.poll() is None, parent.communicate()[1]
        time.sleep(0.05)

    # As a terminal does: to every process of the group.
    os.killpg(parent.pid, signal.SIGINT)
    _, errors = parent.communicate(timeout=30)

    assert parent.returncode == -signal.SIGINT
    assert errors.count("KeyboardInterrupt") == 1  # the children say nothing
    assert not any(is_running(int(file.read_text())) for file in pids)


def test_leaving_early_ends_every_process(tmp_path: Path) -> None:
    fifo, file = tmp_path / "x.mp4", tmp_path / "y.mp4"
    os.mkfifo(fifo)
    file.write_text("content")
    before = multiprocessing.active_children()

    outcomes = run_watched(pool_tasks.read, [fifo, file], num_workers=2, timeout_s=600)
    assert next(outcomes).job == file
    started = [child for child in multiprocessing.active_children() if child not in before]
    outcomes.close()

    assert started
    assert not any(is_running(child.pid) for child in started if child.pid)
