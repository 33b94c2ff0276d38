"""A run of each family of transformers: two ranks, resume, evaluate, predict, export, without it.

The folder of the model is gone after training: a run's own must do.
"""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cdb_video.build import build_trainer
from cdb_video.config_file import dump_config, load_config
from cdb_video.distributed import Ranks
from cdb_video.errors import RunError, WeightsError
from cdb_video.evaluation.features import load_features
from cdb_video.experiments import load_run, open_run, score
from cdb_video.training.manifest import write_manifest
from tests.feature_files import made_with, save_data_set
from tests.hub_models import KINDS, by_names_of_5_0, save_hub_model
from tests.tiny import tiny_config

ROOT = Path(__file__).parent.parent.parent
Tool = Callable[..., str]
HEADS = {"videomae": "linear", "vjepa2": "attentive", "timesformer": "cosine", "vivit": "attentive"}

AVERAGED = ("timesformer", "vivit")
"""Trained with train.ema, and so evaluated, predicted with and exported by averaged weights."""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    for kind in KINDS:
        save_hub_model(folder / kind, kind)
    return folder


@pytest.fixture(scope="module")
def runs(hub: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run a family, by one torchrun job of two ranks; the models are then gone."""
    out = tmp_path_factory.mktemp("runs")
    paths = []
    for kind in KINDS:
        config = tiny_config(
            tiny_data,
            out,
            run={"name": kind},
            model={
                "backbone": f"hf:{hub / kind}",
                "head_type": HEADS[kind],
                "drop_path": 0.2,
            },
            optim={"layer_decay": 0.75, "lr": 1e-3},
            train={
                "precision": "bf16" if kind == "videomae" else "fp32",
                "ema": 0.9 if kind in AVERAGED else None,
            },
        )
        paths.append(out / f"{kind}.yaml")
        paths[-1].write_text(dump_config(config))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["tests/hub_ranks.py", str(out), *map(str, paths)]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    for kind in KINDS:
        assert (out / f"{kind}-rank1.pt").exists(), done.stderr
    return out


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tool:
    """`tool(name, *arguments) -> str`: what it printed; it must not fail."""

    def run(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *(str(part) for part in arguments)])
        with pytest.raises(SystemExit) as exit_info:
            runpy.run_path(str(ROOT / "tools" / name), run_name="__main__")
        captured = capsys.readouterr()
        assert exit_info.value.code in (0, None), captured.err
        return captured.out

    return run


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_agree_and_what_they_leave_is_evaluated_predicted_and_exported(
    runs: Path, hub: Path, tiny_data: Path, tmp_path: Path, tool: Tool, kind: str
) -> None:
    first, second = (
        torch.load(runs / f"{kind}-rank{rank}.pt", weights_only=True) for rank in range(2)
    )
    assert first["step"] == 4
    assert all(torch.equal(value, second["model"][name]) for name, value in first["model"].items())
    folder = hub / kind
    elsewhere = tmp_path / "elsewhere"
    shutil.move(folder, elsewhere)
    try:
        run = load_run(runs / kind)
        assert run.checkpoint.name in ("step-2", "step-4")
        tool("evaluate.py", runs / kind)
        report = json.loads((runs / kind / "report_test.json").read_text())
        assert report["num_videos"] == 5
        told = tool("predict.py", runs / kind, tiny_data / "test_0.mp4", "--top", 1)
        assert "test_0.mp4" in told
        out = tmp_path / "model.pt2"
        assert "largest difference" in tool("export.py", runs / kind, out)
        onnx = tmp_path / "model.onnx"
        assert "largest difference" in tool("export.py", runs / kind, onnx)
    finally:
        shutil.move(elsewhere, folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_resumes_to_the_same_weights(
    runs: Path, tmp_path: Path, tool: Tool, kind: str
) -> None:
    base = [runs / f"{kind}.yaml", f"run.output_dir={tmp_path}", "train.device=cpu"]
    tool("train.py", *base, "run.name=whole", "train.epochs=2", "optim.schedule=constant")
    tool("train.py", *base, "run.name=parts", "train.epochs=1", "optim.schedule=constant")

    tool("train.py", *base, "run.name=parts", "optim.schedule=constant", "--resume")

    whole, parts = (
        load_run(tmp_path / name / "checkpoints" / "step-4").model.state_dict()
        for name in ("whole", "parts")
    )
    for name, value in whole.items():
        assert torch.equal(parts[name], value), name


@pytest.mark.slow
def test_a_run_of_an_older_transformers_is_loaded_and_not_resumed(
    runs: Path, tmp_path: Path
) -> None:
    kept = load_run(runs / "videomae" / "checkpoints" / "step-4").model.state_dict()
    path = tmp_path / "videomae" / "checkpoints" / "step-4"
    shutil.copytree(runs / "videomae" / "checkpoints" / "step-4", path)
    save_file(by_names_of_5_0(kept, "videomae"), path / "model.safetensors")
    (path / "manifest.json").unlink()
    write_manifest(path)

    found = load_run(path).model.state_dict()

    assert all(torch.equal(found[name], value) for name, value in kept.items())
    config = load_config(path / "config.yaml", [f"run.output_dir={tmp_path}", "train.epochs=3"])
    run, named = open_run(config, config_name="hub", resume=True)
    with closing(run), pytest.raises(RunError, match="step-4: saved with transformers") as error:
        build_trainer(named, ranks=Ranks(), run=run, quiet=True)
    assert "\n" not in str(error.value)


def test_features_of_a_recipe_and_their_tokens(
    hub: Path, tiny_data: Path, tmp_path: Path, tool: Tool
) -> None:
    config = tiny_config(
        tiny_data, tmp_path, model={"backbone": f"hf:{hub / 'vjepa2'}", "freeze_backbone": True}
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_config(config))
    pooled, tokens = tmp_path / "pooled", tmp_path / "tokens"
    tokens.mkdir()
    (tokens / "train.tokens-1-00000.npy").write_bytes(b"another rank's, once")
    (tokens / "train.tokens-1.npy").write_bytes(b"not one of ours")

    tool("evaluate.py", recipe, "--features", pooled, "--views", "2x1")
    tool("evaluate.py", recipe, "--features", tokens, "--tokens")

    found, classes = load_features(pooled / "train.npz")
    assert sorted(path.name for path in pooled.iterdir()) == ["test.npz", "train.npz", "val.npz"]
    assert found.features.shape == (12, 2, 24)
    assert classes["noun"].names == ("bowl", "cup", "pot")
    for root, head_type in ((pooled, "linear"), (tokens, "attentive")):
        tool(
            "train.py",
            ROOT / "configs" / "features_compare.yaml",
            f"data.root={root}",
            f"run.output_dir={tmp_path}",
            f"run.name={head_type}",
            f"model.head_type={head_type}",
            "train.epochs=2",
            "train.global_batch_size=6",
            "run.trackers=[]",
            "loss.name=cdb",
        )
        report = json.loads((tmp_path / head_type / "report_test.json").read_text())
        assert report["num_videos"] == 5
    # Pooled features in the place of tokens.
    tool("evaluate.py", recipe, "--features", tokens / "test.npz")
    names = {path.name for path in tokens.iterdir()}
    assert names == {"train.npz", "val.npz", "test.npz", "train.tokens-1.npy"} | {
        f"{split}.tokens-0-00000.npy" for split in ("train", "val")
    }


@pytest.mark.slow
def test_heads_of_a_probe_go_back_onto_the_backbone(
    hub: Path, tiny_data: Path, tmp_path: Path, tool: Tool
) -> None:
    """As docs/foundation.md has it: a run that says on video what the probe says on features."""
    recipe, root, probe, whole = (tmp_path / n for n in ("recipe.yaml", "pooled", "probe", "whole"))
    model = {"backbone": f"hf:{hub / 'vjepa2'}", "freeze_backbone": True}
    recipe.write_text(dump_config(tiny_config(tiny_data, tmp_path, model=model)))
    tool("evaluate.py", recipe, "--features", root)
    on_features = ["data.format=features", f"data.root={root}", "model.backbone=features"]
    tool("train.py", recipe, *on_features, "model.freeze_backbone=false", "run.name=probe")
    options = ["train.epochs=1", "optim.lr=1e-9", "run.name=whole"]

    told = tool("train.py", recipe, f"model.weights={probe}", *options)

    assert "heads verb, noun loaded" in told
    first, second = (
        score(run, run.read_split("test")).predictions for run in map(load_run, (probe, whole))
    )
    for head, part in first.heads.items():  # of fp16 features
        torch.testing.assert_close(second.heads[head].scores, part.scores, rtol=0, atol=1e-3)
    assert set(load_run(whole).predict(tiny_data / "test_0.mp4")) == {"verb", "noun"}
    tool("export.py", whole, tmp_path / "whole.pt2")


def probe_on(root: Path, output: Path, *, source: str) -> Path:
    """A run on features as wide as the tiny models'."""
    save_data_set(root, width=24, source=source)
    data = {"format": "features", "root": str(root)}
    config = tiny_config(root, output, data=data, model={"backbone": "features"})
    run, config = open_run(config, config_name="probe", resume=False)
    build_trainer(config, run=run, quiet=True).fit()
    run.close()
    return run.path


def test_an_hf_model_takes_its_own_weights_and_the_heads_of_a_probe(
    hub: Path, tiny_data: Path, tmp_path: Path
) -> None:
    own = f"hf:{hub / 'vjepa2'}"
    probe = probe_on(tmp_path / "features", tmp_path, source=made_with(f"{own} None"))

    found, plain = (
        build_trainer(
            tiny_config(tiny_data, tmp_path, model={"backbone": own, "weights": weights}),
            quiet=True,
        ).model
        for weights in (str(probe), None)
    )

    expected = plain.state_dict() | load_run(probe).model.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in found.state_dict().items())
    assert found.normalization == plain.normalization


def test_heads_do_not_go_onto_another_backbone(hub: Path, tiny_data: Path, tmp_path: Path) -> None:
    probe = probe_on(tmp_path / "features", tmp_path, source=made_with("hf:another None"))
    for backbone, message in (
        (f"hf:{hub / 'vjepa2'}", "its heads learned from features of 'hf:another None', those of"),
        ("r3d_10", "has heads alone, of a run on saved features; they go back onto an hf: model"),
    ):
        model = {"backbone": backbone, "weights": str(probe)}
        with pytest.raises(WeightsError, match=message):
            build_trainer(tiny_config(tiny_data, tmp_path, model=model), quiet=True)
    model = {"backbone": f"hf:{hub / 'vjepa2'}", "weights": str(probe)}
    wider = tiny_config(
        tiny_data, tmp_path, model=model | {"allow_partial_weights": True, "head_type": "attentive"}
    )
    with pytest.raises(WeightsError, match=r"its head 'verb' has \{'heads\.verb\.bias"):
        build_trainer(wider, quiet=True)
