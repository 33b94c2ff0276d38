"""Each fast path of a step against plain fp32: the same gradients, runs, names and ranks."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cdb_video.build import build_trainer
from cdb_video.config import Config
from cdb_video.config_file import dump_config
from cdb_video.distributed import Ranks
from cdb_video.experiments import open_run
from cdb_video.models import compiling
from cdb_video.training.trainer import Trainer
from tests.tiny import tiny_config

ROOT = Path(__file__).parent.parent.parent
INDUCTOR, BF16 = 2e-3, 0.1
"""Of a gradient's length. Sums in another order, and the 8 bits of bf16, are amplified by batch
norm over six small clips: 6e-4 and 0.05 were seen."""


@pytest.fixture(autouse=True)
def _graphs_are_run_as_they_were_traced(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    if "inductor" not in request.node.name:
        monkeypatch.setattr(compiling, "BACKEND", "aot_eager")


def config_of(root: Path, output: Path, **sections: dict[str, Any]) -> Config:
    sections["model"] = {"backbone": "slowfast_tiny"} | sections.get("model", {})
    return tiny_config(
        root, output, clip={"num_frames": 8, "crop_size": 32, "short_side": 32}, **sections
    )


def gradient(trainer: Trainer) -> Tensor:
    """Of the first batch, every parameter in one row."""
    trainer.model.train()
    batch = next(iter(trainer.loader.epoch(0)))
    trainer.backward(batch, reduce=True)
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


@pytest.mark.parametrize(
    ("model", "train", "tolerance"),
    [
        pytest.param({}, {}, 1e-5, id="channels last"),
        pytest.param({"grad_checkpointing": True}, {}, 1e-5, id="recomputed"),
        pytest.param({}, {"compile": True}, 1e-5, id="aot_eager", marks=pytest.mark.slow),
        pytest.param({}, {"compile": True}, INDUCTOR, id="inductor", marks=pytest.mark.slow),
        pytest.param({}, {"precision": "bf16"}, BF16, id="bf16"),
        pytest.param(
            {},
            {"precision": "bf16", "compile": True},
            BF16,
            id="bf16 inductor",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_gradients_are_plain_fp32s(
    tiny_data: Path,
    tmp_path: Path,
    model: dict[str, Any],
    train: dict[str, Any],
    tolerance: float,
) -> None:
    plain = build_trainer(config_of(tiny_data, tmp_path), quiet=True)
    plain.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    expected = gradient(plain)
    config = config_of(tiny_data, tmp_path, model=model, train=train)
    fast = build_trainer(config, quiet=True)

    found = gradient(fast)

    assert float((found - expected).norm() / expected.norm()) < tolerance
    assert fast.model.state_dict().keys() == plain.model.state_dict().keys()


def fit(config: Config, *, resume: bool = False) -> Trainer:
    run, named = open_run(config, config_name="tiny", resume=resume)
    with closing(run):
        trainer = build_trainer(named, ranks=Ranks(), run=run, quiet=True)
        trainer.fit()
    return trainer


@pytest.mark.slow
def test_a_compiled_run_evaluates_and_resumes_as_an_uninterrupted_one(
    tiny_data: Path, tmp_path: Path
) -> None:
    def config(output: str, epochs: int) -> Config:
        model = {"backbone": "r3d_10", "dropout": 0.5}
        sections = {"optim": {"schedule": "constant"}, "model": model}
        train = {"compile": True, "epochs": epochs, "micro_batch_size": 3}
        return config_of(tiny_data, tmp_path / output, **sections, train=train)

    whole = fit(config("whole", 2))
    fit(config("parts", 1))
    resumed = fit(config("parts", 2), resume=True)

    assert resumed.state.position == whole.state.position
    assert whole.state.position.step == 4
    assert resumed.state.best == whole.state.best
    for (name, mine), theirs in zip(
        resumed.model.state_dict().items(), whole.model.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs), name


@pytest.mark.slow
def test_ranks_that_compile_and_compress_stay_together(tiny_data: Path, tmp_path: Path) -> None:
    config = config_of(tiny_data, tmp_path, train={"compile": True, "epochs": 1})
    (tmp_path / "config.yaml").write_text(dump_config(config))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["tests/training/fast_ranks.py", str(tmp_path / "config.yaml"), str(tmp_path)]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}

    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    files = sorted(tmp_path.glob("rank*.pt"))
    assert len(files) == 2, done.stderr
    first, second = (torch.load(file, weights_only=True) for file in files)
    for arm in ("plain", "compiled", "compressed"):
        assert torch.equal(first[arm], second[arm]), arm
    error = {arm: float((first[arm] - first["plain"]).norm()) for arm in first}
    length = float(first["plain"].norm())
    assert error["compiled"] < 1e-5 * length
    assert 0 < error["compressed"] < 0.01 * length  # bf16 rounds, by 2^-9 at most
