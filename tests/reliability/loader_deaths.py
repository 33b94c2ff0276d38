"""Row 11: a decode that hangs or dies ends in an error that names the clip, in time."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import torch

from cdb_video.clips.base import VideoDecoder
from cdb_video.clips.child import ChildDecoder
from cdb_video.clips.dataset import ClipSampler, EvaluationViews, TrainingClips, open_record
from cdb_video.clips.loader import EvaluationLoader, TrainingLoader, TrainingOrder
from cdb_video.clips.memory import ClipMemory
from cdb_video.clips.transforms import Augmentation, EvaluationCrops
from cdb_video.clips.watchdog import DecodePolicy
from cdb_video.datasets.annotations import VideoRecord
from cdb_video.errors import UserError
from tests.conftest import write_coded_video
from tests.reliability.outcome import Outcome, Row

LIMIT_S = 2.0
POLICY = DecodePolicy(timeout_s=LIMIT_S)
SAMPLER = ClipSampler(num_frames=4, stride=1)
NUM_CLIPS = 8


def hang_with_the_lock() -> None:
    """No Python code of the process runs any more: PyDLL keeps the interpreter's lock."""
    ctypes.PyDLL(None).sleep(1000)


def sleep() -> None:
    """In Python."""
    time.sleep(1000)


def spin() -> None:
    """For ever."""
    while True:
        pass


def kill() -> None:
    """As the kernel does that is out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def abort() -> None:
    """As a failed assertion in C."""
    signal.signal(signal.SIGABRT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGABRT)


def crash() -> None:
    """As a wild pointer."""
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGSEGV)


DEEDS = (kill, hang_with_the_lock, abort, sleep, crash, spin)


class Opener:
    """Opens records, and does a deed in place of one of them."""

    def __init__(self, bad: str, deed: Callable[[], None]) -> None:
        self.bad = bad
        self.deed = deed

    def __call__(self, record: VideoRecord) -> VideoDecoder:
        if record.id == self.bad:
            self.deed()
        return open_record(record)


def training(records: list[VideoRecord], opener: Opener, num_workers: int) -> None:
    """An epoch."""
    augmentation = Augmentation(crop_size=16, short_side=16)
    clips = TrainingClips(
        records, sampler=SAMPLER, augmentation=augmentation, seed=0, opener=opener
    )
    order = TrainingOrder(len(records), global_batch_size=2, seed=0)
    loader = TrainingLoader(clips, order, num_workers=num_workers, pin_memory=False, policy=POLICY)
    for _ in loader.epoch(0):
        pass


def evaluation(records: list[VideoRecord], opener: Opener, num_workers: int) -> None:
    """A split."""
    crops = EvaluationCrops(crop_size=16, short_side=16)
    views = EvaluationViews(records, sampler=SAMPLER, crops=crops, opener=opener)
    loader = EvaluationLoader(views, clips_per_batch=2, num_workers=num_workers, policy=POLICY)
    for _ in loader:
        pass


def into_memory(records: list[VideoRecord], opener: Opener, num_workers: int) -> None:
    """With data.in_memory."""
    memory = ClipMemory(sampler=SAMPLER, short_side=16, opener=opener, policy=POLICY)
    memory.load(records, num_workers=num_workers)


def prediction(records: list[VideoRecord], opener: Opener, num_workers: int) -> None:
    """One video after another, in processes of their own, as in tools/predict.py."""
    for record in records:
        with ChildDecoder(
            record.path, lambda one=record: opener(one), deadline_s=LIMIT_S, limited=True
        ) as video:
            video.frames(torch.tensor([0]))


PLACES = (training, evaluation, into_memory, prediction)


def measure(count: int, seed: int, folder: Path) -> Outcome:
    """Every deed, in every place, with one worker and with two, as far as the count goes."""
    records = [
        VideoRecord(
            id=f"clip{i}",
            path=write_coded_video(folder / f"{i}.mp4", num_frames=8),
            video_id=f"clip{i}",
            recording=f"clip{i}",
            labels={"verb": 0},
        )
        for i in range(NUM_CLIPS)
    ]
    draw = random.Random(seed)
    failures: list[str] = []
    slowest = 0.0
    for (deed, place, num_workers), bad in zip(
        cases(count), draw.choices(records, k=count), strict=True
    ):
        case = f"{deed.__name__}, {place.__name__}, {num_workers} workers, {bad.path.name}"
        start = time.monotonic()
        try:
            place(records, Opener(bad.id, deed), num_workers)
            message = "it went on without a word"
        except UserError as error:
            message = str(error)
        took_s = time.monotonic() - start
        slowest = max(slowest, took_s)
        if str(bad.path) not in message or "\n" in message:
            failures.append(f"{case}: the error does not name the clip: {message}")
        if took_s > 2 * LIMIT_S:
            failures.append(f"{case}: after {took_s:.1f} s; the limit is {LIMIT_S:g} s")
    return Outcome(count, tuple(failures), {"limit_s": LIMIT_S, "slowest_s": slowest})


Case = tuple[Callable[[], None], Callable[[list[VideoRecord], Opener, int], None], int]


def cases(count: int) -> Iterator[Case]:
    """So many: first each deed once, each place at least once; then the others, again and again."""
    every = [
        (DEEDS[i], PLACES[(i + shift) % len(PLACES)], num_workers)
        for num_workers, shift, i in product((2, 1), range(len(PLACES)), range(len(DEEDS)))
    ]
    for i in range(count):
        yield every[i % len(every)]


ROW = Row(
    name="decodes that hang or die",
    promise="a loader's process that is killed, hangs, spins or aborts ends in an error that names "
    "the clip within twice data.decode_timeout_s, in training, evaluation, memory and prediction",
    measure=measure,
    quick=6,
    full=60,
)
