"""The parts of the benchmarks of steps, epochs and evaluation; slow: the commands themselves."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import DeviceType

from cdb_video.build import build_trainer
from cdb_video.clips.batch import Appearance, Batch
from cdb_video.models.backbones import BACKBONES
from cdb_video.models.recognizer import Recognizer
from tests.host_sync import WAITS
from tests.tiny import tiny_config
from tools.benchmarks.cards import peak_tflops
from tools.benchmarks.official_epoch import extract_frames
from tools.benchmarks.pyslowfast_step import PySlowFastStep
from tools.benchmarks.step_profile import (
    WAITING_OPERATORS,
    idle_share,
    model_flops,
    own_bytes,
    profile_epoch,
    profile_step,
    sync_warnings,
    waits_and_idle,
)
from tools.benchmarks.step_table import print_arms_report

BENCHMARK = Path(__file__).parent.parent.parent / "tools" / "benchmark.py"


def test_idle_time_is_what_no_kernel_covers() -> None:
    # Two that overlap and one inside another; of 0 to 10, nothing runs from 4 to 5 and 7 to 9.
    kernels = [(5.0, 7.0), (0.0, 3.0), (2.0, 4.0), (2.5, 3.0), (9.0, 10.0)]

    assert idle_share(kernels) == pytest.approx(0.3)
    assert idle_share([]) is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA L40S", 362),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", None),
        ("NVIDIA L40", None),
        ("GeForce GTX 1080", None),
    ],
)
def test_the_peak_of_a_card_by_its_name(name: str, peak: float | None) -> None:
    assert peak_tflops(name) == peak


def test_flops_of_both_passes_are_counted() -> None:
    layer = nn.Linear(4, 5)
    inputs = torch.zeros(3, 4, requires_grad=True)

    # 2 * 3 * 4 * 5 for the result, as many for each of the two gradients.
    assert model_flops(lambda: layer(inputs).sum().backward()) == 3 * 120


def test_reads_on_the_host_are_counted() -> None:
    values = torch.arange(3.0)

    found = profile_step(
        lambda: (values.sum().item(), values.nonzero()), torch.device("cpu"), own=0
    )

    assert found.pop("host_syncs") == 2
    assert found == dict.fromkeys(["memory_gb", "idle_share", "sync_warnings"])
    assert {name.removeprefix("aten::") for name in WAITING_OPERATORS} <= WAITS


def test_waits_of_a_profile_without_kernels_are_not_known() -> None:
    def event(name: str, start: float, end: float, kind: DeviceType) -> FunctionEvent:
        return FunctionEvent(0, name, 0, start, end, device_type=kind)

    wait = event("cudaStreamSynchronize", 1, 2, DeviceType.CPU)
    kernels = [event("conv", 0, 4, DeviceType.CUDA), event("add", 5, 10, DeviceType.CUDA)]

    assert waits_and_idle([wait], num_steps=2) == {"idle_share": None, "host_syncs": None}
    assert waits_and_idle([*kernels, wait], num_steps=2) == {
        "idle_share": pytest.approx(0.1),
        "host_syncs": 0.5,
    }


def test_pytorchs_warnings_of_waits_are_counted_and_its_mode_is_put_back() -> None:
    modes: list[str] = []

    def step() -> None:
        # One place twice, which Python's own filter would show once.
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation (Triggered ...)", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    assert sync_warnings(step, set_mode=modes.append) == 2
    assert modes == ["warn", "default"]


@pytest.mark.gpu
def test_a_step_that_reads_on_the_host_is_seen_in_both_ways() -> None:
    values = torch.ones(3, device="cuda")

    found = profile_step(lambda: (values.sum().item(), values.max().item()), values.device, own=12)

    assert found["sync_warnings"] == 2
    assert found["host_syncs"] is None or found["host_syncs"] >= 2
    assert found["memory_gb"] is not None
    assert found["memory_gb"] * 1e9 < 1e5


def test_memory_of_its_own_is_weights_buffers_gradients_and_momentum() -> None:
    model = nn.Sequential(nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5, affine=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    # 20 weights and 2 running statistics of 5 in fp32, and an int64.
    without = 4 * (20 + 10) + 8

    assert own_bytes(model, optimizer) == without
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    assert own_bytes(model, optimizer) == without + 2 * 4 * 20


def test_figures_stand_beside_their_targets(capsys: pytest.CaptureFixture[str]) -> None:
    report: dict[str, Any] = {
        "device": "a card",
        "threads": 1,
        "versions": {},
        "size": {},
        "clock": "wall time",
        "arms": {"ours": {"median_ms": 1.0, "peak_share": 0.24, "host_syncs": 0.0}},
        "ratios": {},
        "intervals": {},
        "costs": [],
        "targets": {"at_least": {}, "at_most": {}},
        "figure_targets": {
            "ours": {
                "at_least": {"peak_share": 0.25},
                "at_most": {"host_syncs": 0, "idle_share": 0.03},
            }
        },
    }

    print_arms_report(report)

    shown = capsys.readouterr().out
    assert ">= 0.25: not reached" in shown
    assert "<= 0: reached" in shown
    assert "<= 0.03: not measured" in shown


def test_the_recreated_step_computes_what_its_description_says() -> None:
    torch.manual_seed(0)
    net = BACKBONES["slowfast_tiny"](num_frames=8, crop_size=16)
    heads = {"verb": 6, "action": 7}
    model = Recognizer(net, num_classes=heads, dropout=0.0)
    batch = Batch(
        clips=torch.randint(256, (6, 1, 3, 8, 16, 16), dtype=torch.uint8),
        labels={head: torch.arange(6) for head in heads},
        indices=torch.arange(6),
        appearance=Appearance(flip=torch.zeros(6, dtype=torch.bool), jitter=torch.ones(6, 3)),
    )
    clips = (batch.clips.flatten(0, 1).float() / 255 - 0.45) / 0.225
    logits = model(clips)  # batch norm's statistics of a batch do not depend on what came before
    losses = [F.cross_entropy(logits[head], batch.labels[head]) for head in heads]
    loss = torch.stack(losses).sum()
    grads = torch.autograd.grad(loss, list(model.parameters()))
    step = PySlowFastStep(model, batch, amp=False)

    step()

    shown_loss, top1, top5, norm = step.read
    assert shown_loss == pytest.approx(loss.item(), rel=1e-5)
    assert norm == pytest.approx(math.sqrt(sum(float(g.square().sum()) for g in grads)), rel=1e-4)
    order = logits["action"].argsort(1, descending=True)
    rank = (order == batch.labels["action"][:, None]).int().argmax(1)
    assert top1 == pytest.approx(100 * float((rank > 0).float().mean()))
    assert top5 == pytest.approx(100 * float((rank > 4).float().mean()))


def test_the_profile_is_of_steps_in_the_middle_of_an_epoch(tiny_data: Path, tmp_path: Path) -> None:
    size = {"global_batch_size": 2, "micro_batch_size": 2}
    trainer = build_trainer(tiny_config(tiny_data, tmp_path, train=size), quiet=True)
    assert trainer.loader.steps_per_epoch == 6

    events = profile_epoch(trainer, wait=2, active=3)

    assert sum(event.name == "aten::_fused_adamw_" for event in events) == 3 * len(
        trainer.optimizer.param_groups
    )
    assert trainer.state.position.steps == 6


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """`benchmarks(name)`: a module of the tool's, as the tool imports it."""
    monkeypatch.syspath_prepend(BENCHMARK.parent)
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def test_every_arm_of_an_epoch_takes_all_of_its_steps_in_every_round(
    tiny_data: Path, tmp_path: Path, benchmarks: Callable[[str], ModuleType]
) -> None:
    epoch = benchmarks("epoch")
    trainer = build_trainer(tiny_config(tiny_data, tmp_path), quiet=True)
    arms = epoch.part_arms(trainer) | {"ours": lambda: epoch.whole_epoch(trainer)}
    arms.pop("load")

    # 12 clips in batches of 6; forwards and backwards, as the rounds go.
    for names in (list(arms), list(arms)[::-1]) * 2:
        assert [arms[name]() for name in names] == [2, 2, 2]


def test_a_long_pass_takes_every_file_alike_in_mixed_order(
    benchmarks: Callable[[str], ModuleType],
) -> None:
    files = [Path(f"{i}.mp4") for i in range(4)]

    split = benchmarks("some_videos").repeated(files, 10, seed=0)

    taken = [record.path for record in split.records]
    assert sorted(taken.count(file) for file in files) == [2, 2, 3, 3]
    assert taken[:4] != files
    assert len({record.id for record in split.records}) == 10


@pytest.mark.slow
def test_frames_are_extracted_once_a_video(
    coded_video: Callable[..., Path], tmp_path: Path
) -> None:
    # Two sets of clips number theirs alike.
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    videos = [coded_video(f"{name}/0.mp4", num_frames=n) for name, n in (("a", 5), ("b", 7))]

    places = extract_frames([videos[0], *videos], tmp_path / "jpeg")
    written = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.jpg")}
    again = extract_frames(videos, tmp_path / "jpeg")

    assert [len(list(places[video].glob("*.jpg"))) for video in videos] == [5, 7]
    assert again == places
    assert written == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.jpg")}


def run(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, str(BENCHMARK), *arguments, "--device", "cpu", "--json", "out.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads((tmp_path / "out.json").read_text())
    for name, ratio in report["ratios"].items():
        low, high = report["intervals"][name]
        assert 0 < low <= ratio <= high
        assert name in done.stdout
    return report


@pytest.mark.slow
@pytest.mark.timeout(900)  # two networks are compiled
def test_step_times_every_arm(tmp_path: Path) -> None:
    report = run(tmp_path, "step", "--repeats", "1", "--batch-size", "2")

    arms = report["arms"]
    assert {"ours", "compiled", "eager_fp32", "pyslowfast", "cross_entropy"} <= set(arms)
    assert set(report["not_measured"]) >= {"pyslowfast_amp"}
    assert {"ours/eager_fp32", "ours/pyslowfast", "cdb/cross_entropy"} <= set(report["ratios"])
    assert arms["ours"]["host_syncs"] == 0
    assert arms["no_counts"]["host_syncs"] == 0
    assert "ours/no_counts" in report["ratios"]
    # The loss is looked at for NaN, and four numbers are read.
    assert arms["pyslowfast"]["host_syncs"] == 5
    assert arms["ours"]["tflops"] > 0
    assert arms["ours"]["peak_share"] is None


@pytest.mark.slow
@pytest.mark.timeout(900)  # the demo is rendered
def test_epoch_and_evaluation_are_timed_by_part(tmp_path: Path) -> None:
    epoch = run(tmp_path, "epoch", "--repeats", "1", "--cache", "cache")
    evaluation = run(tmp_path, "evaluate", "--repeats", "1", "--cache", "cache")

    assert {"load", "step", "epoch", "validation", "ours", "official"} <= set(epoch["arms"])
    assert {"ours/official", "epoch/load+step"} <= set(epoch["ratios"])
    for views in ("1_view", "30_views"):
        parts = [
            evaluation["arms"][f"{name}_{views}"] for name in ("loader", "forward", "evaluate")
        ]
        assert all(part["median_ms"] > 0 for part in parts)
        assert f"evaluate/loader+forward {views}" in evaluation["ratios"]
