"""tools/prepare_videos.py as a user types it."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cdb_video.datasets.readers import read_split
from tests.conftest import write_coded_video

ROOT = Path(__file__).parent.parent.parent
TOOL = ROOT / "tools" / "prepare_videos.py"


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(TOOL), *map(str, arguments)]


@pytest.mark.slow
def test_a_data_set_is_prepared_and_what_failed_is_named(tmp_path: Path) -> None:
    in_dir, out_dir = tmp_path / "in", tmp_path / "out"
    for split in ("train", "val"):
        (in_dir / split / "cut").mkdir(parents=True)
        write_coded_video(in_dir / split / "cut" / f"{split}.mp4", num_frames=10)
    broken = in_dir / "val" / "cut" / "broken.mp4"
    broken.write_text("no video")
    options = ("--cache-dir", tmp_path / "cache", "--workers", 2, "--short-side", 32)
    report = tmp_path / "report.json"

    done = subprocess.run(
        command(in_dir, out_dir, *options, "--json", report), capture_output=True, text=True
    )
    broken.unlink()
    again = subprocess.run(command(in_dir, out_dir, *options), capture_output=True, text=True)

    assert done.returncode == 1, done.stderr
    assert "failed val/cut/broken.mp4: " in done.stdout
    figures = json.loads(report.read_text())
    assert (figures["made"]["files"], figures["made"]["frames"], figures["failed"]) == (2, 20, 1)
    assert figures["settings"]["short_side"] == 32
    assert again.returncode == 0, again.stderr
    assert "made before       2" in again.stdout
    assert list((tmp_path / "cache").rglob("train.mp4.index"))
    assert [record.id for record in read_split(out_dir, split="train").records] == [
        "train/cut/train"
    ]


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_half_made_and_the_next_run_goes_on(tmp_path: Path) -> None:
    in_dir, out_dir = tmp_path / "in", tmp_path / "out"
    in_dir.mkdir()
    write_coded_video(in_dir / "a.mp4", num_frames=4)
    write_coded_video(in_dir / "b.mp4", num_frames=1500, size=(640, 480))
    words = command(in_dir, out_dir, "--no-index", "--workers", 1, "--preset", "veryslow")
    running = subprocess.Popen(
        words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    while not ((out_dir / "a.mp4").exists() and list(out_dir.glob(".prepare-*"))):
        assert running.poll() is None, running.communicate()[1]
        time.sleep(0.02)

    # As a terminal does: to every process of the group.
    os.killpg(running.pid, signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    left = sorted(path.name for path in out_dir.iterdir())
    (in_dir / "b.mp4").unlink()
    again = subprocess.run(words, capture_output=True, text=True)

    assert running.returncode == 130
    assert errors.splitlines()[-1] == "interrupted"
    assert left == ["a.mp4", "prepared.jsonl"]
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "out"], "nowhere: no such folder"),
        (["in", "in"], "in: must lie outside in"),
        (["in", "out", "--short-side", "255"], "must be even and at least 16, got 255"),
        (["in", "out", "--gop", "0"], "must be at least 1, got 0"),
        (["in", "out", "--crf", "0"], "argument --crf"),
        (["in", "out", "--json", "nowhere/a.json"], "nowhere: no such folder"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["prepare_videos.py", *arguments])

    with pytest.raises(SystemExit) as exit_info:
        runpy.run_path(str(TOOL), run_name="__main__")

    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
