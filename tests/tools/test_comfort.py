"""What every tool does for the one who types: help with examples, a hint, an end by Ctrl-C."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.conftest import write_coloured_video
from tests.tiny import tiny_values

ROOT = Path(__file__).parent.parent.parent
TOOLS = sorted((ROOT / "tools").glob("*.py"))
# docs/custom_data.md has the same.
SMALL = [
    "train.epochs=1",
    "clip.num_frames=8",
    "clip.crop_size=64",
    "clip.short_side=72",
    "train.global_batch_size=4",
    "train.device=cpu",
    "data.num_workers=0",
]


def test_all_nine_tools_are_found() -> None:
    assert len(TOOLS) == 9


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_help_has_an_example_and_fits_a_terminal(
    tool: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(tool.parent)  # as Python does for a script
    monkeypatch.setattr(sys, "argv", [tool.name, "--help"])

    with pytest.raises(SystemExit) as exit_info:
        runpy.run_path(str(tool), run_name="__main__")

    text = capsys.readouterr().out
    assert exit_info.value.code == 0
    assert f" tools/{tool.name} " in text.partition("options:")[0]
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("configs/finetun.yaml", "configs/finetune.yaml"),
        ("finetune", "configs/finetune.yaml"),
        ("small_cpu.yaml", "configs/small_cpu.yaml"),
        (
            "configs/egtea/vjepa2_probe_verb_noun_action.yaml",
            "vjepa2_probe_verb_noun_action_cdb.yaml",
        ),
        ("nowhere.yaml", None),
    ],
)
def test_a_mistyped_recipe_is_answered_with_the_one_that_is_meant(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    word: str,
    meant: str | None,
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["train.py", word])

    with pytest.raises(SystemExit) as exit_info:
        runpy.run_path(str(ROOT / "tools/train.py"), run_name="__main__")

    [line] = capsys.readouterr().err.splitlines()
    assert exit_info.value.code == 2
    assert line.startswith(f"error: {word}: cannot be read: no such file")
    assert line.endswith(f"{meant}'?") if meant else "did you mean" not in line


@pytest.mark.slow
def test_ctrl_c_ends_training_with_one_line_and_a_run_that_goes_on(
    tiny_data: Path, tmp_path: Path
) -> None:
    values = tiny_values(tiny_data, tmp_path, data={"num_workers": 2})
    values["train"]["epochs"] = 10_000
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(values))
    command = [sys.executable, str(ROOT / "tools/train.py"), str(config)]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not list(tmp_path.glob("tiny/checkpoints/step-*/manifest.json")):
        assert running.poll() is None, running.communicate()[1]
        time.sleep(0.05)

    # As a terminal does: to every process of the group.
    os.killpg(running.pid, signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    again = subprocess.run(
        [*command, "--resume", "train.epochs=1"], capture_output=True, text=True, check=False
    )

    assert running.returncode == 130, errors
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == "interrupted"
    assert again.returncode == 0, again.stderr
    assert "resuming from step-" in again.stdout


@pytest.mark.slow
def test_the_fine_tuning_recipe_trains_on_twenty_videos_on_a_cpu(tmp_path: Path) -> None:
    for i in range(20):
        name = ("cut", "pour", "stir")[i % 3]
        video = tmp_path / "my_videos" / name / f"{i}.mp4"
        video.parent.mkdir(parents=True, exist_ok=True)
        write_coloured_video(video, channel=i % 3, level=100 + i, num_frames=24)
    recipe, cache = ROOT / "configs/finetune.yaml", tmp_path / "cache"
    start = ["data.root=my_videos", f"data.cache_dir={cache}", "run.name=mine", *SMALL]

    for words in (
        ["tools/train.py", recipe, *start],
        ["tools/evaluate.py", "runs/mine", "--split", "val"],
    ):
        command = [sys.executable, str(ROOT / words[0]), *map(str, words[1:])]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr

    report = json.loads((tmp_path / "runs/mine/report_test.json").read_text())
    # 7, 7 and 6 videos: each class gives round(0.15 * 7) = round(0.15 * 6) = 1 to val and to test.
    assert report["num_videos"] == 3
    assert sorted(report["heads"]["label"]["train_count"].values()) == [4, 5, 5]
    assert (tmp_path / "runs/mine/report_val.html").exists()
