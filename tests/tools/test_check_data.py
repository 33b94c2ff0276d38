"""tools/check_data.py as a user types it."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.conftest import write_coded_video
from tests.tiny import tiny_config, tiny_values
from tools.check_data import read_splits

ROOT = Path(__file__).parent.parent.parent
TOOL = ROOT / "tools" / "check_data.py"
VERBS = ("open", "close")


def write_config(root: Path, output: Path) -> Path:
    path = output / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_values(root, output / "runs")))
    return path


def run_here(*arguments: object, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit status; in this process, whose imports are done."""
    monkeypatch.setattr(sys, "argv", ["check_data.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_path(str(TOOL), run_name="__main__")
    return int(exit_info.value.code or 0)


def write_data(root: Path) -> Path:
    """A table of 12 videos, each of another length: 6 train, 3 val and 3 test, two verbs."""
    root.mkdir()
    lines = ["path,video_id,start_s,stop_s,verb,participant,split"]
    for i, split in enumerate(["train"] * 6 + ["val"] * 3 + ["test"] * 3):
        write_coded_video(root / f"{i}.mp4", num_frames=8 + i)
        lines.append(f"{i}.mp4,{i},,,{VERBS[i % 2]},p{i},{split}")
    (root / "clips.csv").write_text("\n".join(lines) + "\n")
    return root


def plant_defects(root: Path) -> None:
    """One a kind; and a folder of frames, the last to be checked, whose reading never ends."""
    (root / "0.mp4").unlink()
    (root / "1.mp4").write_bytes(b"")
    (root / "2.mp4").write_text("not a video")
    shutil.copy(root / "3.mp4", root / "9.mp4")
    (root / "frames").mkdir()
    for i in range(2):
        Image.new("RGB", (16, 16)).save(root / "frames" / f"{i}.png")
    os.mkfifo(root / "frames" / "2.png")
    with (root / "clips.csv").open("a") as table:
        table.write("4.mp4,4,0.1,0.3,open,p4,train\n")
        table.write("4.mp4,4,7,8,close,p4,train\n")
        table.write("5.mp4,again,,,open,p4,val\n")
        table.write("frames,frames,,,open,p11,test\n")


@pytest.mark.slow
def test_every_planted_defect_is_found_and_nothing_else(tmp_path: Path) -> None:
    root, out = write_data(tmp_path / "data"), tmp_path / "doctor.json"
    plant_defects(root)
    options = ["--json", out, "--timeout", 4, "--workers", 1, "data.annotation_fps=24"]
    command = [sys.executable, TOOL, write_config(root, tmp_path), *map(str, options)]

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 1, done.stderr
    report = json.loads(out.read_text())
    assert [
        (f["level"], f["kind"], f["split"], f["where"].removeprefix(f"{root}/"))
        for f in report["findings"]
    ] == [
        ("error", "missing", "train", "0.mp4"),
        ("error", "empty", "train", "1.mp4"),
        ("error", "unreadable", "train", "2.mp4"),
        ("error", "hung", "test", "frames"),
        ("error", "segment", "train", "4.mp4@7-8"),
        ("error", "same content in two splits", "train, test", "9.mp4"),
        ("error", "same content in two splits", "train, val", "5.mp4"),
        ("note", "shared subject", "train, val", "p4"),
        ("note", "few train clips", "train", "verb 'close'"),
        ("note", "few train clips", "train", "verb 'open'"),
    ]
    assert (report["errors"], report["notes"]) == (7, 3)
    # Even numbers open, odd ones close; then the four more rows.
    assert report["splits"]["train"]["class_counts"] == {"verb": {"close": 4, "open": 4}}
    assert report["splits"]["val"]["class_counts"] == {"verb": {"close": 1, "open": 3}}
    assert report["tail"]["verb"]["largest"] == 4
    assert (report["speed"]["num_clips"], report["speed"]["num_timed"]) == (8, 3)
    for text in ("error: hung (1)", "no frame for 4 s", "clips/s a worker", "7 errors, 3 notes"):
        assert text in done.stdout


def test_good_data_is_passed_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, picture = write_config(write_data(tmp_path / "data"), tmp_path), tmp_path / "counts.png"

    status = run_here(config, "--full", "--workers", 1, "--plot", picture, monkeypatch=monkeypatch)

    assert status == 0
    # Both verbs have three training clips.
    assert capsys.readouterr().out.rstrip().endswith("0 errors, 2 notes")
    with Image.open(picture) as image:
        assert min(image.size) > 500


@pytest.mark.slow
def test_a_split_that_cannot_be_read_is_an_error_and_the_others_are_read(tmp_path: Path) -> None:
    rows = ["a,x,train", "b,x,val", "b,x,val", "c,x,test"]
    (tmp_path / "clips.csv").write_text("\n".join(["path,verb,split", *rows]) + "\n")

    splits, [finding] = read_splits(tiny_config(tmp_path, tmp_path))

    assert splits.keys() == {"train", "test"}
    assert (finding.kind, finding.level, finding.split) == ("annotations", "error", "val")
    assert f"{tmp_path / 'clips.csv'}:4: id 'b' is also at" in finding.message


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("data.root=nowhere", "data.root: no folder nowhere"),
        ("data.train_split=training", "no split 'training'"),
        ("data.rot=x", "data.rot: no such key; did you mean 'root'?"),
        ("--timeout=0", "must be at least 1, got 0"),
        ("--json=nowhere/out.json", "nowhere: no such folder"),
    ],
)
def test_what_cannot_be_checked_is_one_line_and_status_2(
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argument: str,
    message: str,
) -> None:
    status = run_here(write_config(tiny_data, tmp_path), argument, monkeypatch=monkeypatch)

    assert status == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_saved_features_are_not_for_the_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = ROOT / "configs" / "features_compare.yaml"

    assert run_here(recipe, f"data.root={tmp_path}", monkeypatch=monkeypatch) == 2

    assert "data.format=features: videos are checked here" in capsys.readouterr().err
