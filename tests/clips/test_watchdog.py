"""A decode that hangs or dies ends in time and by name, whatever it does; the rest goes on."""

import ctypes
import os
import re
import signal
import time
from pathlib import Path

import pytest
from torch.utils.data import Dataset

from cdb_video.clips.guarded_loader import GuardedLoader
from cdb_video.clips.watchdog import DecodePolicy, Guarded, TookTooLongError, time_limit
from cdb_video.datasets.annotations import VideoRecord
from cdb_video.errors import DecodeError, RunError

# On a machine with one core torch advises against two workers; they are what is tested.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

LIMIT_S = 0.5


def hang_with_the_lock():
    # PyDLL keeps the interpreter's lock: no Python code of the process runs any more.
    ctypes.PyDLL(None).sleep(1000)


def sleep():
    time.sleep(1000)


def segfault():
    os.kill(os.getpid(), signal.SIGSEGV)


def leave():
    os._exit(3)


def fail():
    raise DecodeError("7.mp4: garbage")


class Numbers(Dataset):
    """Item i is i; some items do something else."""

    def __init__(self, others):
        self.others = others

    def __getitem__(self, index):
        # Late enough for the items before it to be done.
        if index in self.others:
            time.sleep(0.05)
            self.others[index]()
        return index


def loader(others, *, num_workers=2, length=8, **policy):
    records = [
        VideoRecord(id=f"clip{i}", path=Path(f"{i}.mp4"), video_id="", recording="", labels={})
        for i in range(length)
    ]
    return GuardedLoader(
        Numbers(others),
        records,
        collate=list,
        policy=DecodePolicy(**{"timeout_s": LIMIT_S} | policy),
        num_workers=num_workers,
    )


def in_twos(length=8):
    return [[i, i + 1] for i in range(0, length, 2)]


def message_of(run, error=DecodeError):
    """The error's message, without the error, whose traceback would hold the workers."""
    try:
        run()
    except error as found:
        return str(found)
    pytest.fail(f"no {error.__name__}")


@pytest.mark.parametrize("hang", [hang_with_the_lock, pytest.param(sleep, marks=pytest.mark.slow)])
def test_a_worker_that_hangs_is_ended_and_its_clip_named_in_time(hang):
    hanging = loader({5: hang})
    start = time.monotonic()

    message = message_of(lambda: list(hanging.batches(in_twos())))

    # The limit, and far less than the 5 s after which torch would look.
    assert LIMIT_S <= time.monotonic() - start < LIMIT_S + 2
    assert message == "5.mp4: clip clip5 took longer than 0.5 s to decode (data.decode_timeout_s)"


@pytest.mark.parametrize(
    ("die", "how"),
    [(segfault, "SIGSEGV"), pytest.param(leave, "exit status 3", marks=pytest.mark.slow)],
)
def test_a_worker_that_dies_is_named_at_once(die, how):
    dying = loader({5: die})
    start = time.monotonic()

    message = message_of(lambda: list(dying.batches(in_twos())))

    assert time.monotonic() - start < 2
    assert message == f"5.mp4: the process that decoded clip clip5 died ({how})"


@pytest.mark.slow
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_worker_that_the_machine_ends_is_no_clips_fault(on_error):
    killed = loader({3: lambda: os.kill(os.getpid(), signal.SIGKILL)}, on_error=on_error)

    message = message_of(lambda: list(killed.batches(in_twos())), RunError)

    assert re.match(r"a loader's process was ended from outside \(SIGKILL\); is there mem", message)
    assert message.endswith(" It was decoding 3.mp4 (clip clip3)")


def test_a_pass_ends_where_another_begins():
    numbers = loader({}, num_workers=0)
    first = numbers.batches(in_twos())
    next(first)
    next(numbers.batches(in_twos()))

    with pytest.raises(RuntimeError, match="another pass"):
        next(first)


def test_what_is_skipped_is_left_out_and_the_rest_goes_on_where_it_stood():
    faulty = loader(
        {0: fail, 3: hang_with_the_lock, 4: segfault, 5: leave}, on_error="skip", max_skipped=4
    )

    first = list(faulty.batches(in_twos()))
    start = time.monotonic()
    second = list(faulty.batches(in_twos()))

    assert [batch for batch, _ in first] == [[1], [2], [], [6, 7]]
    assert [[one.index for one in skipped] for _, skipped in first] == [[0], [3], [4, 5], []]
    assert first[0][1][0].message == "7.mp4: garbage"
    # In the second pass what hung or died is not tried again.
    assert second == first
    assert time.monotonic() - start < LIMIT_S
    assert set(faulty.skipped) == {"clip0", "clip3", "clip4", "clip5"}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_one_more_than_may_be_skipped_is_an_error(num_workers):
    faulty = loader(
        {1: fail, 4: fail, 6: fail}, num_workers=num_workers, on_error="skip", max_skipped=2
    )
    seen = []

    message = message_of(lambda: seen.extend(batch for batch, _ in faulty.batches(in_twos())))

    assert seen == [[0], [2, 3], [5]]
    assert message == (
        "data.max_skipped=2: 3 clips did not decode; the last is clip6: 7.mp4: garbage"
    )


@pytest.mark.slow
def test_a_worker_that_ends_between_clips_is_no_clips_fault():
    waiting = loader({}, num_workers=1, length=20)
    batches = waiting.batches([[i] for i in range(20)])
    next(batches)
    [pid] = {pid for pid, _ in waiting._guarded.posts.items()}
    # It has done the two batches that it may be ahead, and waits.
    time.sleep(0.3)
    os.kill(pid, signal.SIGKILL)

    message = message_of(lambda: list(batches), RunError)

    assert message.startswith("a loader's process was ended from outside (SIGKILL)")


def test_a_dead_worker_interrupts_nothing_but_the_wait_for_a_batch():
    dying = loader({4: segfault}, num_workers=1)
    batches = dying.batches([[i] for i in range(8)])
    before = signal.getsignal(signal.SIGCHLD)
    for _ in range(3):
        next(batches)

    # The worker dies here, one batch ahead: torch's handler would raise in this loop.
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        pass

    assert signal.getsignal(signal.SIGCHLD) == before
    assert message_of(lambda: list(batches)).startswith("4.mp4: the process that decoded clip")


def test_in_the_training_process_a_decode_that_hangs_is_interrupted():
    hanging = loader({2: sleep}, num_workers=0, on_error="skip", max_skipped=1)
    start = time.monotonic()

    batches = list(hanging.batches(in_twos(4)))

    assert [batch for batch, _ in batches] == [[0, 1], [3]]
    assert batches[1][1][0].message.startswith("2.mp4: clip clip2 took longer than 0.5 s")
    assert LIMIT_S <= time.monotonic() - start < LIMIT_S + 1


def test_a_time_limit_gives_back_the_timer_and_handler_that_were_there():
    fired = []
    previous = signal.signal(signal.SIGALRM, lambda *_: fired.append(time.monotonic()))
    left = signal.setitimer(signal.ITIMER_REAL, 30)
    try:
        with pytest.raises(TookTooLongError, match=r"^late$"), time_limit(0.05, lambda: "late"):
            time.sleep(1)
        assert 29 < signal.getitimer(signal.ITIMER_REAL)[0] < 30
        # One that falls due inside fires after the block.
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        start = time.monotonic()
        with time_limit(10, lambda: "late"):
            while time.monotonic() < start + 0.1:
                pass
            assert fired == []
        time.sleep(0.05)
        assert len(fired) == 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, *left)
        signal.signal(signal.SIGALRM, previous)


def test_the_guard_costs_less_than_a_hundredth_of_a_decode():
    guarded = Guarded(Numbers({}), [], 60.0, num_workers=0)
    times = []
    for _ in range(200):
        start = time.perf_counter()
        guarded[0]
        times.append(time.perf_counter() - start)

    # A clip takes 20 ms and more; the least of many is free of whatever else runs.
    assert min(times) < 200e-6
