"""Loading clips: ours beside decord, PyTorchVideo, torchcodec, and what decoding alone costs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks import other_loaders
from benchmarks.clip_jobs import SAMPLER, make_jobs
from benchmarks.clip_lengths import spread_lengths
from benchmarks.libraries import installed_versions, why_missing
from benchmarks.loader_arms import Arm, all_arms
from benchmarks.made_clips import FPS, ClipSet, make_clips
from benchmarks.report import make_report
from benchmarks.timing import cost_ratio, interleave, speed_ratios
from benchmarks.worker_time import Workers, worker_clock
from cdb_video.clips.index_folder import IndexFolder
from cdb_video.clips.transforms import Augmentation, crop
from cdb_video.prepare.ingest import prepare_videos
from cdb_video.prepare.reencode import Settings
from cdb_video.progress import Progress

LIBRARIES = ("av", "decord", "torchcodec")
TARGETS = {
    "ours_full/decord": 1.2,
    "ours_crop/decord_crop": 1.6,
    "ours_planes/decord_crop": 2.0,
    "ours_prepared/decord_crop": 2.5,
    "ours_loader/pytorchvideo": 10.0,
    "ours_planes/floor": 0.7,
    "ours_crop/floor": 0.5,
}
"""Ratio of speeds -> what it should be at least."""
OTHER_RATIOS = (
    "ours_crop/torchcodec",
    "ours_loader/decord_scaled",
    "ours_loader_yuv/decord_scaled",
    "ours_loader_yuv/pytorchvideo",
)


def measure(
    *,
    clips: Path,
    annotations: Path | None,
    num_clips: int,
    frame_size: tuple[int, int],
    crop_size: int,
    gop: int,
    workers: int,
    repeats: int,
) -> dict[str, Any]:
    """The report.

    Args:
        clips: folder under which made-up clips are kept.
        annotations: folder of EGTEA's lists; None: stored quantiles of their lengths.
        num_clips: files, and so clips a round.
        frame_size: (width, height).
        crop_size: pixels a side.
        gop: frames from one key frame to the next.
        workers: processes of every loader.
        repeats: rounds.

    Raises:
        DataError: the annotations cannot be read.

    """
    lengths = spread_lengths(num_clips, annotations=annotations)
    clip_set = ClipSet(lengths, *frame_size, gop=gop)
    with Progress("rendering clips", total=num_clips, unit="clips") as progress:
        files = make_clips(clips, clip_set, progress=progress.advance)
    short_side = round(crop_size * other_loaders.SHORT_SIDE)
    prepared = prepare(files, clips / f"{clip_set.name}-prepared-{short_side}", short_side)
    augmentation = Augmentation(crop_size=crop_size, short_side=short_side)
    arms = all_arms(
        make_jobs(files, augmentation),
        make_jobs(prepared, augmentation),
        augmentation=augmentation,
        index_folder=IndexFolder(clips / "packet_index", clips),
    )
    missing = {arm.name: reason for arm in arms if (reason := why_missing(arm.library))}
    arms = [arm for arm in arms if arm.name not in missing]
    check_pixels(arms, crop_size=crop_size)
    seconds, figures = time_arms(arms, num_workers=workers, repeats=repeats)
    ratios = speed_ratios(seconds, [*TARGETS, *OTHER_RATIOS])
    report = make_report(
        "loader",
        seconds,
        ratios=[],
        device=torch.device("cpu"),
        clock=worker_clock([]),
        workers=workers,
        cores=len(os.sched_getaffinity(0)),
        clips={
            "files": num_clips,
            "frames": sum(lengths),
            "size": list(frame_size),
            "gop": gop,
            "mbit_s": bit_rate(files, lengths),
            "prepared_mbit_s": bit_rate(prepared, lengths),
            "clip": f"{SAMPLER.num_frames}x{SAMPLER.stride}",
            "crop_size": crop_size,
        },
        targets={name: TARGETS[name] for name in ratios if name in TARGETS},
        not_measured=missing,
    )
    report["versions"] |= installed_versions(LIBRARIES)
    for name, more in figures.items():
        report["arms"][name] |= more
    report["ratios"] = {name: ratio.median for name, ratio in ratios.items()}
    report["intervals"] = {name: list(ratio.interval) for name, ratio in ratios.items()}
    return report


def prepare(files: Sequence[Path], folder: Path, short_side: int) -> list[Path]:
    """The files as tools/prepare_videos.py makes them, in another folder."""
    ingest = prepare_videos(files[0].parent, folder, Settings(short_side=short_side))
    if ingest.failures:
        raise RuntimeError(f"{ingest.failures[0].source}: {ingest.failures[0].reason}")
    return [folder / file.name for file in files]


def time_arms(
    arms: Sequence[Arm], *, num_workers: int, repeats: int
) -> tuple[dict[str, list[float]], dict[str, dict[str, Any]]]:
    """Arm -> CPU seconds a clip in each round; and arm -> its other figures."""
    workers = {arm.name: Workers(arm, num_workers=num_workers) for arm in arms}
    rounds = repeats + 1
    with Progress("timing", total=rounds * len(arms), unit="arms") as progress:

        def run(name: str) -> None:
            workers[name].run()
            progress.advance()

        seconds = interleave(
            {name: partial(run, name) for name in workers},
            repeats=repeats,
            clock=worker_clock(list(workers.values())),
            warm_up=1,
        )
    jobs = {arm.name: len(arm.jobs) for arm in arms}
    a_clip = {name: [s / jobs[name] for s in spent] for name, spent in seconds.items()}
    makes = {arm.name: arm.makes for arm in arms}
    floor = a_clip["floor"]
    figures = {
        name: {
            "makes": makes[name],
            "clips_per_s": jobs[name] / median(workers[name].wall_s[1:]),
            "floor_share": cost_ratio(floor, spent).median,
            "peak_rss_mb": workers[name].peak_rss / 1e6,
        }
        for name, spent in a_clip.items()
    }
    return a_clip, figures


def bit_rate(files: Sequence[Path], lengths: Sequence[int]) -> float:
    """Mbit/s over all files."""
    return 8e-6 * FPS * sum(file.stat().st_size for file in files) / sum(lengths)


def check_pixels(arms: Sequence[Arm], *, crop_size: int) -> None:
    """Before any timing: ours are decord's pixels bit for bit, on every job.

    Raises:
        RuntimeError: naming the arm and the file.

    """
    by_name = {arm.name: arm for arm in arms}
    if "decord" not in by_name:
        return
    # In a worker: a library with threads of its own must not be loaded before a fork.
    checks = DataLoader(PixelChecks(by_name, crop_size), batch_size=None, num_workers=1)
    with Progress("comparing pixels", total=len(checks), unit="clips") as progress:
        for _ in checks:
            progress.advance()


class PixelChecks(Dataset[int]):
    """Item i compares job i, and raises where pixels differ."""

    def __init__(self, arms: Mapping[str, Arm], crop_size: int) -> None:
        self.arms = arms
        self.crop_size = crop_size

    def __len__(self) -> int:
        return len(self.arms["decord"].jobs)

    def __getitem__(self, index: int) -> int:
        job = self.arms["decord"].jobs[index]
        frames = self.arms["decord"].load(job)[0]
        upright = frames.permute(0, 3, 1, 2)
        scaled = crop(upright, job.window, crop_size=self.crop_size).transpose(0, 1)[None]
        expected = {
            "ours_full": frames,
            "ours_crop": other_loaders.cut_out(frames, job.cut),
            "ours_loader": scaled,
        }
        for name, pixels in expected.items():
            if not torch.equal(self.arms[name].load(job)[0], pixels):
                raise RuntimeError(f"{name}: other pixels than decord's in {job.path}")
        return index
