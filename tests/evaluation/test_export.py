"""An exported file gives the model's scores, and says what it is."""

from __future__ import annotations

import ast
import copy
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cdb_video.errors import ConfigError, RunError
from cdb_video.evaluation.export import ExportedRecognizer, check_target, export_model
from cdb_video.experiments import load_run
from cdb_video.experiments.export import export_run
from cdb_video.models.backbones import BACKBONES
from cdb_video.models.recognizer import Recognizer
from tests.conftest import MakeVideo
from tests.saved_run import CLASSES, save_run, use_odd_statistics

ONNX = ("onnx", "onnxscript", "onnxruntime")
needs_onnx = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ONNX),
    reason="exporting to ONNX needs onnx, onnxscript and onnxruntime",
)

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = (ROOT / "docs/export.md").read_text(encoding="utf-8")
CONSUMER, WITH_FPS, WITH_SEGMENTS, PT2_CONSUMER = re.findall(
    r"```python\n(.*?)```", DOCUMENT, re.DOTALL
)

Scores = dict[str, np.ndarray]


class Shades(nn.Module):
    """A backbone that exports in a second: the mean of each colour."""

    num_features = 3
    normalization = BACKBONES["r3d_10"](num_frames=4, crop_size=16).normalization

    def forward(self, clips: Tensor) -> Tensor:
        return clips.mean((2, 3, 4))


def make_model(
    backbone: str | nn.Module, *, num_frames: int = 4, crop_size: int = 16
) -> Recognizer:
    """Random weights whose scores are far from even, in training mode as after training."""
    torch.manual_seed(0)
    if isinstance(backbone, str):
        backbone = BACKBONES[backbone](num_frames=num_frames, crop_size=crop_size)
    sizes = {head: len(names) for head, names in CLASSES.items()}
    model = Recognizer(backbone, num_classes=sizes)
    use_odd_statistics(model)
    clips = torch.randn(1, 3, num_frames, crop_size, crop_size)
    with torch.no_grad():
        length = model.eval().features(clips).norm()
    for head in model.heads.values():
        nn.init.normal_(head.weight, std=2 / length)  # logits of N(0, 2)
    return model.train()


def run_onnx(path: Path) -> Callable[[np.ndarray], Scores]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    [clips] = session.get_inputs()
    assert (clips.name, clips.type, clips.shape[0]) == ("clips", "tensor(uint8)", "batch")
    heads = [output.name for output in session.get_outputs()]
    return lambda clips: dict(zip(heads, session.run(None, {"clips": clips}), strict=True))


def run_pt2(path: Path) -> Callable[[np.ndarray], Scores]:
    module = torch.export.load(path).module()
    return lambda clips: {h: s.numpy() for h, s in module(torch.from_numpy(clips)).items()}


RUNNERS = {".onnx": run_onnx, ".pt2": run_pt2}


def assert_scores_are_the_models(
    path: Path, model: Recognizer, *, num_frames: int, crop_size: int
) -> None:
    run, eager = RUNNERS[path.suffix](path), ExportedRecognizer(copy.deepcopy(model)).eval()
    for batch in (1, 2, 5):
        shape = (batch, 3, num_frames, crop_size, crop_size)
        clips = torch.randint(256, shape, dtype=torch.uint8)
        # Of one shade each: random pixels alone look alike to a network.
        clips[1:] //= torch.arange(2, batch + 1, dtype=torch.uint8).reshape(-1, 1, 1, 1, 1)
        with torch.no_grad():
            expected = eager(clips)

        found = run(clips.numpy())

        assert any(scores.amax() - scores.amin() > 0.3 for scores in expected.values())
        assert list(found) == ["verb", "noun"]
        for head, scores in found.items():
            assert scores.dtype == np.float32
            assert scores.shape == (batch, len(CLASSES[head]))
            np.testing.assert_allclose(scores, expected[head].numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "suffix", [pytest.param(".onnx", marks=[pytest.mark.slow, needs_onnx]), ".pt2"]
)
def test_a_file_says_what_it_is_and_takes_any_batch(tmp_path: Path, suffix: str) -> None:
    path, model = tmp_path / f"model{suffix}", make_model(Shades())
    about = {"classes": CLASSES, "run": "Küche"}

    difference = export_model(model, path, num_frames=2, crop_size=4, about=about)

    assert difference < 1e-6
    assert read_metadata(path) == about
    assert_scores_are_the_models(path, model, num_frames=2, crop_size=4)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert os.listdir(tmp_path) == [path.name]


def read_metadata(path: Path) -> object:
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        return json.loads(session.get_modelmeta().custom_metadata_map["cdb_video"])
    extra = {"cdb_video.json": ""}
    torch.export.load(path, extra_files=extra)
    return json.loads(extra["cdb_video.json"])


# MViT's tokens and SlowFast's lists of pathways are what exporters stumble over.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "suffix", "num_frames", "crop_size"),
    [
        pytest.param("slowfast_r50", ".onnx", 8, 32, marks=needs_onnx),
        ("slowfast_r50", ".pt2", 8, 32),
        pytest.param("x3d_xs", ".onnx", 4, 32, marks=needs_onnx),
        pytest.param("r2plus1d_18", ".onnx", 4, 16, marks=needs_onnx),
        pytest.param("mvit_b", ".onnx", 4, 32, marks=needs_onnx),
        ("mvit_b", ".pt2", 4, 32),
        pytest.param("resnet32", ".onnx", 1, 32, marks=needs_onnx),
        ("resnet32", ".pt2", 1, 32),
        ("lenet", ".pt2", 2, 28),
    ],
)
def test_scores_are_the_models(
    tmp_path: Path, backbone: str, suffix: str, num_frames: int, crop_size: int
) -> None:
    size = {"num_frames": num_frames, "crop_size": crop_size}
    path, model = tmp_path / f"model{suffix}", make_model(backbone, **size)

    export_model(model, path, about={}, **size)

    assert_scores_are_the_models(path, model, **size)


class Unsteady(Shades):
    """Gives other features when it is traced than when it runs."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, clips: Tensor) -> Tensor:
        return super().forward(clips) * (self.factor if torch.compiler.is_exporting() else 1.0)


@pytest.mark.parametrize("factor", [1.1, pytest.param(float("nan"), marks=pytest.mark.slow)])
def test_a_file_that_differs_from_the_model_is_refused(tmp_path: Path, factor: float) -> None:
    path, model = tmp_path / "model.pt2", make_model(Unsteady(factor))
    path.write_text("the one before")

    with pytest.raises(RunError, match=r"model\.pt2: not written, .*; 1e-04 is allowed") as caught:
        export_model(model, path, num_frames=2, crop_size=4, about={})

    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_text() == "the one before"


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name
    )

    with pytest.raises(ConfigError, match="needs onnxscript: pip install 'cdb-video\\[export\\]'"):
        check_target(tmp_path / "model.onnx")
    check_target(tmp_path / "model.pt2")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, its model.onnx and model.pt2."""
    folder = tmp_path_factory.mktemp("exported")
    run = save_run(
        folder, model={"backbone": "slowfast_tiny"}, clip={"stride": 2, "short_side": 20}
    )
    for suffix in (".onnx", ".pt2") if all(map(importlib.util.find_spec, ONNX)) else (".pt2",):
        export_run(run, folder / f"model{suffix}")
    return folder


def consume(code: str, folder: Path) -> str:
    """What a script prints in a folder from which this package cannot be imported."""
    blocked = "import sys; sys.modules['cdb_video'] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", blocked + code], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def patched(code: str, *, lines: slice, by: str) -> str:
    """The consumer with some of its ten lines replaced."""
    head, body = code.split("\n\n", 1)
    rows = body.split("\n")
    rows[lines] = by.splitlines()
    return "\n".join([head, *rows])


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("change", ["", "clip.fps=7", "clip.sampling=segments"])
def test_the_documented_consumer_scores_what_the_run_predicts(
    exported: Path, tmp_path: Path, coded_video: MakeVideo, change: str
) -> None:
    coded_video("video.mp4", num_frames=29, size=(64, 48))
    assert len(CONSUMER.split("\n\n")[1].splitlines()) == 10
    code, run = CONSUMER, load_run(exported / "tiny", overrides=[change] if change else [])
    if "fps" in change:
        code = patched(code, lines=slice(3, 3), by=WITH_FPS)
    if "segments" in change:
        code = patched(code, lines=slice(3, 5), by=WITH_SEGMENTS)
    shutil.copy(exported / "model.onnx", tmp_path)
    if change:
        set_metadata(tmp_path / "model.onnx", run.config.clip.model_dump(mode="json"))

    printed = ast.literal_eval(consume(code, tmp_path))

    expected = run.predict(tmp_path / "video.mp4")
    assert list(printed) == list(expected)
    for head, ranking in expected.items():
        # Two libraries resize: a pixel may be rounded otherwise, by one of 255.
        assert printed[head] == pytest.approx(dict(ranking), abs=1e-3)


def set_metadata(path: Path, clip: dict[str, object]) -> None:
    import onnx

    model = onnx.load(path)
    [entry] = model.metadata_props
    entry.value = json.dumps(json.loads(entry.value) | {"clip": clip})
    onnx.save(model, path)


@pytest.mark.slow
def test_the_documented_consumer_of_a_pt2_runs(exported: Path, tmp_path: Path) -> None:
    shutil.copy(exported / "model.pt2", tmp_path)

    assert consume(PT2_CONSUMER, tmp_path) == (
        "{'verb': torch.Size([2, 2]), 'noun': torch.Size([2, 3])}\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [pytest.param(".onnx", marks=needs_onnx), ".pt2"])
def test_a_run_says_which_clips_and_classes_are_its_own(exported: Path, suffix: str) -> None:
    about = read_metadata(exported / f"model{suffix}")

    assert isinstance(about, dict)
    assert about["classes"] == CLASSES
    assert (about["run"], about["checkpoint"]) == ("tiny", "step-1")
    assert about["backbone"] == "slowfast_tiny"
    assert about["clip"] == {
        "num_frames": 4,
        "stride": 2,
        "fps": None,
        "sampling": "dense",
        "crop_size": 16,
        "short_side": 20,
    }
    assert about["views"] == {"num_clips": 1, "num_crops": 1}
    assert about["normalization"]["mean"] == [0.45, 0.45, 0.45]
    assert about["versions"]["torch"] == importlib.metadata.version("torch")
