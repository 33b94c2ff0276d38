"""200 damaged files: each is decoded or refused by name, in time, and never takes its process."""

from __future__ import annotations

import random
from collections import Counter
from itertools import cycle, islice
from pathlib import Path

import pytest

from cdb_video.prepare.pool import run_watched
from tests.clips.damage_tasks import Job, Refused, Shown, decode
from tests.clips.files import pictures, write_pictures
from tests.conftest import write_coded_video

# Processes that import PyTorch, and 200 files.
pytestmark = pytest.mark.slow

NUM_DAMAGED = 200
ASKED = 8
TIME_LIMIT_S = 30.0
"""Of a file: seconds on a busy machine, where the slowest takes less than one."""


def truncated(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(1, len(data))]


def bytes_flipped(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice([1, 10, 100])):
        changed[draw.randrange(len(data))] ^= draw.randrange(1, 256)
    return bytes(changed)


def header_zeroed(data: bytes, draw: random.Random) -> bytes:
    size = draw.choice([8, 64, 512, 4096])
    return bytes(size) + data[size:]


def hole(data: bytes, draw: random.Random) -> bytes:
    """Zeros in the middle, as a broken download leaves."""
    start = draw.randrange(len(data))
    size = min(draw.choice([64, 1024, 16384]), len(data) - start)
    return data[:start] + bytes(size) + data[start + size :]


DAMAGE = {
    "truncated": truncated,
    "bytes flipped": bytes_flipped,
    "header zeroed": header_zeroed,
    "hole": hole,
}


def real_files(folder: Path) -> list[Path]:
    """H.264 and HEVC in mp4, AV1 in mkv, VP9 in webm, and a long recording."""
    names = ["h265_video.mp4", "av1_video.mkv", "testsrc2_vp9.webm", "nasa_13013.mp4"]
    paths = [folder / "odd-videos" / "torchcodec" / name for name in names]
    return [*paths, folder / "fir-action/video/20200628_183032_mlx90640_01_light_natural.mp4"]


def made_files(folder: Path) -> list[Path]:
    vp9 = write_pictures(folder / "vp9.webm", pictures(20, (64, 48)), codec="libvpx-vp9")
    return [
        write_coded_video(folder / "plain.mp4", num_frames=60),
        write_coded_video(folder / "open.mkv", num_frames=60, open_gop=True),
        write_coded_video(folder / "stream.ts", num_frames=60),
        write_coded_video(folder / "by_order.avi", num_frames=60),
        vp9,
    ]


@pytest.mark.parametrize("kind", ["real", "made"])
def test_damaged_file_is_decoded_or_refused(kind, tmp_path, request):
    if kind == "real":
        sources = real_files(request.getfixturevalue("shared_data"))
    else:
        sources = made_files(tmp_path)
    draw = random.Random(0)
    jobs: dict[Path, tuple[Path, str]] = {}
    for source, (i, how) in zip(
        cycle(sources), enumerate(islice(cycle(interleaved()), NUM_DAMAGED)), strict=False
    ):
        path = tmp_path / f"{i}{source.suffix}"
        path.write_bytes(DAMAGE[how](source.read_bytes(), draw))
        jobs[path] = source, how
    undamaged = [Job(source, 0) for source in sources]
    damaged = [Job(path, seed, ASKED) for seed, path in enumerate(jobs)]

    outcomes = {
        outcome.job.path: outcome
        for outcome in run_watched(
            decode, [*undamaged, *damaged], num_workers=2, timeout_s=TIME_LIMIT_S
        )
    }

    tally: Counter[tuple[str, str]] = Counter()
    for path, (source, how) in jobs.items():
        outcome = outcomes[path]
        assert not outcome.hung, (source.name, how)
        assert outcome.died is None, (source.name, how)
        [result] = outcome.results
        tally[how, type(result).__name__.lower()] += 1
        if isinstance(result, Refused):
            assert result.message.startswith(f"{path}: "), (source.name, how)
            assert "\n" not in result.message
        else:
            # Of H.264 in AVI the times are made up.
            is_whole = how == "truncated" and source.suffix != ".avi"
            assert_right(result, outcomes[source].results[0], is_whole=is_whole)
    print(f"{kind}: {dict(sorted(tally.items()))}")
    assert sum(tally.values()) == NUM_DAMAGED
    # Neither answer may be the only one: then the damage shows nothing.
    assert 20 <= sum(count for (_, answer), count in tally.items() if answer == "refused") <= 180


def interleaved() -> list[str]:
    """The kinds of damage, so that each source of five meets each kind as often."""
    return [how for how in DAMAGE for _ in range(5)]


def assert_right(found: Shown, whole: Shown, *, is_whole: bool) -> None:
    assert len(found.asked) == len(found.checksums) == ASKED
    assert set(found.sizes) == {found.size}
    if is_whole:
        # What is there is undamaged, and so are its frames. By their times: where a file ends
        # before B-frames that the last of its frames is stored before, that one takes their number.
        shown = dict(zip(whole.times, whole.checksums, strict=True))
        assert found.checksums == tuple(shown[t] for t in found.times)
