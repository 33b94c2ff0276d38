"""`tools/predict.py`, as a user types it, in this process."""

import csv
import json
import os
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from cdb_video.build import build_trainer
from cdb_video.clips.decoders import open_video
from cdb_video.config_file import parse_config
from cdb_video.datasets.annotations import VideoRecord
from cdb_video.distributed import Ranks
from cdb_video.experiments import LoadedRun, load_run, open_run
from tests.conftest import write_coded_video
from tests.tiny import tiny_values

# Most of it is one second of training and a decode a command, in a fresh import of the tool.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
TOOL = ROOT / "tools/predict.py"
DOCUMENT = (ROOT / "docs/predict.md").read_text(encoding="utf-8")
HEADS = {"verb": 2, "noun": 3}


@pytest.fixture(scope="module")
def run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = tiny_values(tiny_data, tmp_path_factory.mktemp("runs"), train={"epochs": 1})
    values["views"] = {"num_clips": 2, "num_crops": 3}
    config = parse_config(values, source="tiny")
    run, named = open_run(config, config_name="tiny", resume=False)
    build_trainer(named, ranks=Ranks(), run=run).fit()
    run.close()
    return run.path


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds."""
    return write_coded_video(tmp_path_factory.mktemp("long") / "long.mp4", num_frames=72)


def predict(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit status."""
    monkeypatch.setattr(sys, "argv", [str(TOOL), *(str(argument) for argument in arguments)])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(TOOL), run_name="__main__")
    return int(caught.value.code or 0)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_windows_give_segments_in_json_and_csv(
    run: Path, long_video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, table = tmp_path / "out.json", tmp_path / "out.csv"

    status = predict(
        monkeypatch, run, long_video, "--window", 1, "--top", 2, "--json", out, "--csv", table
    )

    assert status == 0
    [one] = json.loads(out.read_text())
    assert {head: len(one[head]) for head in HEADS} == {"verb": 2, "noun": 2}
    # Hop 0.5 s: windows start at 0, 0.5, ..., 2.
    assert [(w["start_s"], w["stop_s"]) for w in one["windows"]] == [
        (i / 2, i / 2 + 1) for i in range(5)
    ]
    record = VideoRecord("", long_video, "", "", {}, start_s=0.5, stop_s=1.5)
    loaded: LoadedRun = load_run(run)
    for head, scores in loaded.scorer([record]).items():
        second = {entry["class"]: entry["score"] for entry in one["windows"][1][head]}
        expected = dict(zip(loaded.class_names[head], scores[0].tolist(), strict=True))
        assert second == pytest.approx({name: expected[name] for name in second}, abs=1e-6)
        segments = one["segments"][head]
        assert (segments[0]["start_s"], segments[-1]["stop_s"]) == (0, 3)
        rows = [row for row in read_csv(table) if row["head"] == head]
        assert [row["start_s"] for row in rows[:2]] == ["", ""]
        assert [
            (float(r["start_s"]), float(r["stop_s"]), r["class"], float(r["score"]))
            for r in rows[2:]
        ] == [tuple(segment.values()) for segment in segments]


def test_a_threshold_of_one_leaves_nothing_and_says_so(
    run: Path, long_video: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(monkeypatch, run, long_video, "--window", 1, "--threshold", 1) == 0

    assert "nothing scores 1 or more" in capsys.readouterr().out


def test_a_drawn_video_has_the_frames_of_its_source(
    run: Path, long_video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "drawn.mp4"

    assert predict(monkeypatch, run, long_video, "--window", 1, "--save", target) == 0

    with open_video(target) as drawn, open_video(long_video) as source:
        assert torch.allclose(drawn.times, source.times, atol=1e-5)
        assert (drawn.height, drawn.width) == (source.height, source.width)


def test_folders_and_patterns_are_taken_once_each_and_sorted(
    run: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b/two.mp4", "b/deep/three.MP4", "one.mp4", "b/.hidden.mp4", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tiny_data / "test_0.mp4", tmp_path / name)
    monkeypatch.chdir(tmp_path)

    # A file, a folder, a pattern that finds both again.
    status = predict(monkeypatch, run, "one.mp4", "b", "**/*.mp4", "--json", "all.json", "--top", 1)

    assert status == 0
    found = [one["video"] for one in json.loads(Path("all.json").read_text())]
    assert found == ["one.mp4", "b/deep/three.MP4", "b/two.mp4"]


def test_what_is_done_is_written_when_a_video_does_not_decode(
    run: Path,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "broken.mp4").write_text("no video")
    videos = [tiny_data / "test_0.mp4", tmp_path / "broken.mp4", tiny_data / "test_1.mp4"]

    assert predict(monkeypatch, run, *videos, "--json", tmp_path / "out.json") == 2

    [one] = json.loads((tmp_path / "out.json").read_text())
    assert one["video"] == str(videos[0])
    [line] = capsys.readouterr().err.splitlines()
    assert "broken.mp4" in line


@pytest.fixture
def documented(run: Path, long_video: Path, tiny_data: Path, tmp_path: Path) -> Path:
    """A folder with what docs/predict.md speaks of."""
    for folder in ("runs", "videos", "more/deep", "frames"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "runs/mine").symlink_to(run)
    shutil.copy(long_video, tmp_path / "long.mp4")
    for name in ("video.mp4", "videos/one.mp4", "more/deep/two.mp4"):
        shutil.copy(tiny_data / "test_0.mp4", tmp_path / name)
    with open_video(tiny_data / "test_0.mp4") as video:
        for i, frame in enumerate(video.frames(torch.arange(4)).permute(0, 2, 3, 1)):
            Image.fromarray(frame.numpy()).save(tmp_path / f"frames/{i}.png")
    return tmp_path


def test_the_documented_commands_and_calls_run(
    documented: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(documented)
    [commands] = re.findall(r"```bash\n(.*?)```", DOCUMENT, re.DOTALL)
    snippets = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    assert (len(commands.splitlines()), len(snippets)) == (4, 3)

    for command in commands.splitlines():
        assert predict(monkeypatch, *shlex.split(command)[2:]) == 0, command
    for snippet in snippets:
        exec(snippet, {})

    assert len(json.loads(Path("all.json").read_text())) == 2


def test_the_documented_json_has_the_form_of_the_file(
    documented: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(documented)
    [example] = re.findall(r"```json\n(.*?)```", DOCUMENT, re.DOTALL)

    assert predict(monkeypatch, "runs/mine", "long.mp4", "--window", 1, "--json", "o.json") == 0

    def form(value: object) -> object:
        if isinstance(value, list):
            return [form(value[0])]
        if isinstance(value, dict):
            return {key: form(inner) for key, inner in value.items() if key != "noun"}
        return type(value)

    assert form(json.loads(example)) == form(json.loads(Path("o.json").read_text()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.mp4"], "error: nothing.mp4: no such file or folder"),
        (["no/*.mp4"], "error: no/*.mp4: no video matches this pattern (.mp4"),
        (["empty"], "error: empty: no video in this folder"),
        (["no/*", "--fps", "24"], "error: no/*: no folder matches this pattern"),
        (["a.mp4", "--save", "a.mkv"], "error: --save a.mkv: must be an mp4 file"),
        (["a.mp4", "b.mp4", "--save", "c.mp4"], "--save c.mp4: is for one video, and 2 are given"),
        (["a.mp4", "--save", "./a.mp4"], "error: --save a.mp4: is the video itself"),
        (["a.mp4", "--json", "a.mp4"], "error: --json a.mp4: is the video itself"),
        (["b.mp4", "a.mp4", "--csv", "./a.mp4"], "error: --csv a.mp4: is the video itself"),
        (["empty", "--fps", "4", "--csv", "empty/0.png"], "empty/0.png: is the video itself"),
        (["a.mp4", "--json", "o", "--csv", "./o"], "error: --csv o: is the file of --json too"),
        (["a.mp4", "--threshold", "0.5"], "--threshold needs --window or --save"),
        (["a.mp4", "--top", "0"], "argument --top: must be at least 1"),
        (["a.mp4", "--window", "0"], "argument --window: must be above 0"),
        (["a.mp4", "--hop", "1"], "--hop needs --window"),
        (["a.mp4", "--window", "1", "--hop", "2"], "--hop 2: must be at most --window 1"),
        (["a.mp4", "--window", "0.001"], "window_s=0.001: must be at least a frame"),
        (["a.mp4", "--threshold", "1.5"], "argument --threshold: must be from 0 to 1"),
        (["a.mp4", "--json", "no/out.json"], "argument --json: no: no such folder"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    run: Path,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    for i, name in enumerate("ab"):
        os.link(tiny_data / f"test_{i}.mp4", f"{name}.mp4")

    assert predict(monkeypatch, run, *arguments) == 2

    assert message in capsys.readouterr().err.splitlines()[-1]
