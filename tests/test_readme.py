"""Every command of the README runs: with a tiny model on tiny data, through the tools' own code.

What torchrun adds is tested by test_distributed.py and by .ci/run; installing, by .ci/run.
"""

import os
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from cdb_video.datasets.demo import DEMO_HOLD_OUT_SUBJECTS, make_demo
from tests.image_files import write_mnist

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()

SHORT = ["train.epochs=1", "train.device=cpu", "run.trackers=[]"]
TINY = [
    *SHORT,
    "data.num_workers=0",
    "clip.num_frames=4",
    "clip.crop_size=16",
    "clip.short_side=16",
    "model.backbone=r3d_10",
    "model.weights=null",
    "train.global_batch_size=4",
    "train.micro_batch_size=4",
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[list[str]]:
    return [shlex.split(line) for block in blocks("bash") for line in block.splitlines()]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """A folder with what the README speaks of: EGTEA, FASHION-MNIST, my_videos, video.mp4."""
    folder = tmp_path_factory.mktemp("readme")
    make_demo(folder / "EGTEA", num_clips=40)
    write_mnist(folder / "FASHION-MNIST", per_class=125, num_classes=10, side=28)
    rows = (tiny_data / "clips.csv").read_text().splitlines()[1:]
    for row in rows:
        name, verb, _, split = row.split(",")
        target = folder / "my_videos" / split / verb / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tiny_data / name, target)
    shutil.copy(tiny_data / "test_0.mp4", folder / "video.mp4")
    return folder


def run(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool's command in this process: `torchrun ...` and `python` stand before its path."""
    start = next(i for i, word in enumerate(command) if word.startswith("tools/"))
    tool, arguments = command[start], command[start + 1 :]
    if tool == "tools/compare.py":
        arguments = [*arguments, *TINY, "--seeds", "1"]
    if tool == "tools/train.py" and "--print-config" not in arguments:
        # The images are small, and so is their network.
        arguments = [*arguments, *(SHORT if "data.root=FASHION-MNIST" in arguments else TINY)]
        if "data.root=EGTEA" in arguments:
            arguments.append(f"data.hold_out_subjects=[{','.join(DEMO_HOLD_OUT_SUBJECTS)}]")
    monkeypatch.setattr(sys, "argv", [tool, *arguments])
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_path(str(ROOT / tool), run_name="__main__")
    assert not exit_info.value.code, command


@pytest.mark.slow
def test_every_tool_command_runs_in_the_order_of_the_readme(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    os.symlink(ROOT / "configs", workplace / "configs")
    own = [command for command in commands() if "pip" not in command]
    assert len(own) == 17

    for command in own:
        run(command, monkeypatch)

    monkeypatch.setattr("builtins.print", lambda *words: None)
    for code in blocks("python"):
        exec(code, {})


def test_the_first_two_commands_are_those_of_continuous_integration() -> None:
    install_and_train, install_and_test = (c for c in commands() if "pip" in c)

    script = (ROOT / ".ci/run").read_text()
    assert shlex.join(install_and_train) == "pip install -e . '&&' torchrun tools/train.py"
    assert "torchrun tools/train.py" in script
    assert shlex.join(install_and_test) == "pip install -e '.[test]' '&&' pytest"
    assert "pip install --quiet -e '.[test]'" in script
    assert "\npytest" in script


def test_every_backbone_is_in_the_table() -> None:
    from cdb_video.models.backbones import BACKBONES

    rows = re.findall(r"^\| `(\w+)` \|", README, flags=re.MULTILINE)
    assert sorted(rows) == sorted(BACKBONES)
