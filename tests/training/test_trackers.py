"""TensorBoard's and wandb's own files, read back."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cdb_video.errors import ConfigError, RunError
from cdb_video.training.trackers import TensorBoard, WeightsAndBiases, check_trackers

ROOT = Path(__file__).parent.parent.parent
IMAGE = np.full((4, 6, 3), 200, dtype=np.uint8)


def test_tensorboard_gets_numbers_and_pictures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tmp_path)

    board.add_scalars({"eval/loss": 0.5}, step=7)
    board.add_images({"val/verb/confusion": IMAGE}, step=7)
    board.close()

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    [loss] = events.Scalars("eval/loss")
    [picture] = events.Images("val/verb/confusion")
    assert (loss.step, loss.value) == (7, 0.5)
    assert (picture.step, picture.height, picture.width) == (7, 4, 6)


def test_a_full_disk_is_one_line_of_tensorboard_too(tmp_path: Path, capfd) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    board = TensorBoard(tmp_path)
    [events] = (tmp_path / "tensorboard").iterdir()
    events.unlink()
    events.symlink_to("/dev/full")

    def write() -> None:
        while True:  # its thread writes when it is about to wait
            board.add_images({"val/verb/confusion": IMAGE}, step=7)

    with pytest.raises(RunError, match=r"tensorboard: could not be written \(No space left"):
        write()
    with pytest.raises(RunError, match=r"tensorboard: could not be written \(No space left"):
        board.close()
    assert capfd.readouterr().err == ""


def test_a_resumed_tensorboard_hides_the_steps_that_are_repeated(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = TensorBoard(tmp_path)
    for step in (1, 2, 3):
        first.add_scalars({"eval/loss": 1.0}, step=step)
    first.close()
    resumed = TensorBoard(tmp_path, from_step=2)
    resumed.add_scalars({"eval/loss": 0.5}, step=3)
    resumed.close()

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("eval/loss")] == [(1, 1), (2, 1), (3, 0.5)]


def test_wandb_that_is_not_installed_is_one_line_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)

    check_trackers(["tensorboard"])
    with pytest.raises(ConfigError, match=r"pip install 'cdb-video\[wandb\]'"):
        check_trackers(["tensorboard", "wandb"])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs the package wandb")
def test_wandb_offline_keeps_its_id_over_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")

    for step in (1, 2):
        tracker = WeightsAndBiases(tmp_path, name="mine", config={"optim": {"lr": 0.1}})
        tracker.add_scalars({"val/verb/top1": 0.5}, step=step)
        tracker.add_images({"val/verb/confusion": IMAGE}, step=step)
        tracker.close()

    [id_] = (tmp_path / "wandb" / "id").read_text().split()
    runs = sorted((tmp_path / "wandb").glob(f"offline-run-*-{id_}/run-{id_}.wandb"))
    assert len(runs) == 2
    for run in runs:
        logged = run.read_bytes()
        assert b"val/verb/top1" in logged
        assert b"cdb-video" in logged
        assert len(list(run.parent.glob("files/media/images/val/verb/confusion_*.png"))) == 1


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs the package wandb")
def test_wandb_without_a_key_is_one_line(tmp_path: Path) -> None:
    # In a process of its own: wandb remembers the mode of the test before.
    code = """
import sys
from pathlib import Path
from cdb_video.errors import ConfigError
from cdb_video.training.trackers import WeightsAndBiases
try:
    WeightsAndBiases(Path(sys.argv[1]), name="mine", config={})
except ConfigError as error:
    print(error)
"""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    # A server that is not there, should a key be found after all.
    there = {"WANDB_BASE_URL": "http://127.0.0.1:9", "HOME": str(tmp_path), "WANDB_SILENT": "true"}

    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        env=clean | there | {"NETRC": str(tmp_path / "none")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )

    [line] = done.stdout.splitlines()
    assert line.startswith("run.trackers: wandb: No API key")
    assert "WANDB_MODE=offline" in line
