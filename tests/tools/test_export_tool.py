"""tools/export.py, as a user types it, in this process."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cdb_video.experiments import load_run
from tests.saved_run import CLASSES, save_run

ROOT = Path(__file__).parent.parent.parent
Tool = Callable[..., str]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tool:
    """`tool(status, *arguments) -> str`: what it printed before it exited so."""

    def run(status: int | None, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["export.py", *(str(part) for part in arguments)])
        with pytest.raises(SystemExit) as exit_info:
            runpy.run_path(str(ROOT / "tools/export.py"), run_name="__main__")
        captured = capsys.readouterr()
        assert exit_info.value.code == status, captured.err
        return captured.err if status else captured.out

    return run


@pytest.mark.slow
def test_a_pt2_replaces_the_one_before(run_folder: Path, tmp_path: Path, tool: Tool) -> None:
    path = tmp_path / "model.pt2"
    path.write_text("the one before")

    printed = tool(None, run_folder, path)

    assert printed.startswith(f"{path}: {run_folder / 'checkpoints/step-1'}, ")
    assert "largest difference of a score from the run's: " in printed
    extra = {"cdb_video.json": ""}
    model = torch.export.load(path, extra_files=extra).module()
    assert json.loads(extra["cdb_video.json"])["classes"] == CLASSES
    run, frames = load_run(run_folder), torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
    expected = run.model(run.transform(frames))["noun"].softmax(1)
    torch.testing.assert_close(model(frames.transpose(0, 1)[None])["noun"], expected)


@pytest.mark.slow
def test_a_checkpoint_becomes_onnx(run_folder: Path, tmp_path: Path, tool: Tool) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime checks ONNX files")
    path = tmp_path / "model.onnx"

    tool(None, run_folder / "checkpoints/step-1", path)

    session = onnxruntime.InferenceSession(path)
    assert {part.name: part.shape for part in session.get_outputs()} == {
        "verb": ["batch", 2],
        "noun": ["batch", 3],
    }
    about = json.loads(session.get_modelmeta().custom_metadata_map["cdb_video"])
    assert (about["run"], about["checkpoint"]) == ("tiny", "step-1")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.txt", "model.txt: the file's suffix must be .onnx or .pt2"),
        ("model", "model: the file's suffix must be .onnx or .pt2"),
        ("missing/model.pt2", "missing: no such folder"),
    ],
)
def test_a_file_that_cannot_be_written_is_told_at_once(
    tmp_path: Path, tool: Tool, name: str, message: str
) -> None:
    error = tool(2, "no-run", tmp_path / name)

    assert error.startswith("error: ")
    assert error.endswith(f"{message}\n")
    assert error.count("\n") == 1


def test_a_run_that_is_not_there_is_told(tmp_path: Path, tool: Tool) -> None:
    error = tool(2, tmp_path / "no-run", tmp_path / "model.pt2")

    assert error == f"error: {tmp_path / 'no-run'}: neither a run's folder nor a checkpoint\n"
