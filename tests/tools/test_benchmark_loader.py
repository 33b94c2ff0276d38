"""The clips that `benchmark.py loader` renders, its arithmetic, and the command on two of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cdb_video.clips.decoders import open_video
from cdb_video.clips.index import open_container, packet_index
from cdb_video.errors import DataError
from tools.benchmarks.clip_lengths import LENGTHS, LEVELS, spread_lengths
from tools.benchmarks.libraries import why_missing
from tools.benchmarks.loader_table import verdict
from tools.benchmarks.made_clips import ClipSet, Room, make_clips, write_h264
from tools.benchmarks.timing import speed_ratios

ROOT = Path(__file__).parent.parent.parent
EGTEA = Path(os.environ.get("CDB_VIDEO_TEST_DATA", ROOT.parent / "shared" / "data")) / "egtea"


def test_lengths_are_evenly_spread_over_the_stored_quantiles() -> None:
    # At 0.25 and 0.75; at 0.985, half-way between the quantiles 0.98 and 0.99, of 100 clips.
    assert spread_lengths(2) == [37, 103]
    assert spread_lengths(100)[98] == round((551 + 690) / 2)


def test_lengths_are_read_from_the_names_in_a_list(tmp_path: Path) -> None:
    names = [
        f"OP01-R01-Salad-1-2-F{start:06d}-F{start + 10 * k:06d} 1 1 1"
        for k, start in enumerate([7, 100, 3000, 4000, 5000], start=1)
    ]
    (tmp_path / "train_split1.txt").write_text("\n".join(names) + "\n")

    # 10, 20, 30, 40 and 50 frames; the quantiles 0.25 and 0.75 are the second and the fourth.
    assert spread_lengths(2, annotations=tmp_path) == [20, 40]


def test_a_line_without_frame_numbers_is_named(tmp_path: Path) -> None:
    (tmp_path / "train_split1.txt").write_text("a-F000001-F000009 1\nP21-R04 1 1 1\n")

    with pytest.raises(DataError, match=r"train_split1\.txt:2: no frame numbers"):
        spread_lengths(1, annotations=tmp_path)


@pytest.mark.skipif(not EGTEA.is_dir(), reason="EGTEA's lists are not beside the repository")
def test_the_stored_quantiles_are_those_of_the_official_list() -> None:
    lengths = spread_lengths(10_000, annotations=EGTEA)

    assert np.quantile(lengths, LEVELS[1:-1]) == pytest.approx(LENGTHS[1:-1], abs=1)
    assert np.mean(spread_lengths(10_000)) == pytest.approx(np.mean(lengths), rel=0.1)


@pytest.fixture(scope="module")
def clip_set() -> ClipSet:
    return ClipSet([20, 9], width=64, height=48, gop=5)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory, clip_set: ClipSet) -> list[Path]:
    return make_clips(tmp_path_factory.mktemp("made"), clip_set)


def test_clips_have_the_wanted_lengths_and_size(rendered: list[Path]) -> None:
    shown = []
    for path in rendered:
        with open_video(path) as video:
            shown.append((video.num_frames, video.fps, video.height, video.width))

    assert shown == [(20, 24.0, 48, 64), (9, 24.0, 48, 64)]


def test_key_frames_are_at_most_a_gop_apart(rendered: list[Path]) -> None:
    container, stream = open_container(rendered[0])
    with container:
        index = packet_index(container, stream)

    assert index is not None
    assert max(np.bincount(index.key.numpy())) <= 5


def test_clips_are_rendered_once_and_the_same_everywhere(
    rendered: list[Path], clip_set: ClipSet, tmp_path: Path
) -> None:
    times = [path.stat().st_mtime_ns for path in rendered]
    calls: list[None] = []

    again = make_clips(rendered[0].parent.parent, clip_set, progress=lambda: calls.append(None))
    # In this process, where the others were rendered by one each.
    elsewhere = [tmp_path / path.name for path in rendered]
    for seed, (path, length) in enumerate(zip(elsewhere, clip_set.lengths, strict=True)):
        write_h264(path, Room(48, 64).film(length, seed=seed), clip_set)

    assert [path.stat().st_mtime_ns for path in again] == times
    assert len(calls) == 2
    assert [p.read_bytes() for p in elsewhere] == [p.read_bytes() for p in rendered]


def test_a_rendering_that_is_interrupted_leaves_no_clips(tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_clips(tmp_path, ClipSet([3, 3], width=64, height=48), progress=interrupt)

    assert list(tmp_path.iterdir()) == []


def test_the_picture_moves_and_noise_never_wraps_round() -> None:
    room = Room(48, 64)
    film = list(room.film(12, seed=3))
    still = Room(48, 64)
    still.grain = np.zeros_like(still.grain)
    clean = list(still.film(12, seed=3))

    assert np.abs(clean[0].astype(int) - clean[11]).mean() > 1
    # A byte that wraps would differ by about 250.
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(film, clean, strict=True)) <= 10


def test_a_ratio_of_speeds_is_the_other_arms_time_over_the_first_ones() -> None:
    seconds = {"ours": [1.0, 2.0, 4.0], "decord": [2.0, 6.0, 8.0]}

    ratios = speed_ratios(seconds, ["ours/decord", "decord/ours", "ours/torchcodec"])

    # Within rounds: 2, 3 and 2. An arm that was not measured has no ratio.
    assert {name: ratio.median for name, ratio in ratios.items()} == {
        "ours/decord": 2.0,
        "decord/ours": 0.5,
    }


def test_a_target_is_reached_or_not_and_may_be_missing() -> None:
    assert verdict(1.6, 1.6) == "1.6: reached"
    assert verdict(1.99, 2.0) == "2: not reached"
    assert verdict(1.0, None) == ""


def test_why_a_library_is_missing_is_its_own_error() -> None:
    assert why_missing("no_such_library") == (
        "ModuleNotFoundError: No module named 'no_such_library'"
    )
    assert why_missing("json") is None
    assert why_missing(None) is None


@pytest.mark.slow
def test_loader_compares_and_times_every_arm(tmp_path: Path) -> None:
    arguments = ["loader", "--clips", "made", "--num-clips", "2", "--frame-size", "64x48"]
    arguments += ["--crop-size", "32", "--repeats", "1", "--json", "out.json"]
    command = [sys.executable, str(ROOT / "tools" / "benchmark.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["benchmark"] == "loader"
    assert (report["clips"]["files"], report["clips"]["frames"]) == (2, 37 + 103)
    assert {"av", "torch"} <= set(report["versions"])
    required = {"ours_full", "ours_crop", "ours_planes", "ours_loader", "ours_prepared", "floor"}
    assert required <= set(report["arms"])
    for figures in report["arms"].values():
        assert figures["rounds"] == 1
        assert min(figures[name] for name in ("median_ms", "clips_per_s", "peak_rss_mb")) > 0
    assert report["arms"]["floor"]["floor_share"] == 1.0
    assert set(report["ratios"]) >= set(report["targets"]) >= {"ours_planes/floor"}
    for name, ratio in report["ratios"].items():
        low, high = report["intervals"][name]
        assert 0 < low <= ratio <= high
    assert "reached" in done.stdout
