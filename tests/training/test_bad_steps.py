"""The gate by itself; whole steps with bad numbers are in tests/reliability/bad_numbers.py."""

import json
import math
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cdb_video.build import build_trainer
from cdb_video.distributed import Ranks
from cdb_video.errors import RunError
from cdb_video.experiments import open_run
from cdb_video.training.bad_steps import BadStep, StepGate, running_statistics
from cdb_video.training.trainer import Trainer
from tests.host_sync import NoHostSync
from tests.tiny import tiny_config

ONE = torch.ones(())


def run_step(gate: StepGate, losses: list[float], *, norm: float, scale: Tensor = ONE) -> bool:
    """A step of parts with these losses, of the clips 0, 1, ..."""
    gate.open()
    for index, loss in enumerate(losses):
        gate.factor(torch.tensor([loss]), [index])
    return bool(gate.close(torch.tensor(norm), scale, step=7))


def test_what_a_step_changed_stays_where_it_was_applied_and_is_taken_back_where_not() -> None:
    mean, counts = torch.zeros(3), torch.zeros(2, dtype=torch.int64)
    gate = StepGate([mean, counts], [], torch.device("cpu"))

    for norm, kept in ((1.0, True), (math.nan, False), (math.inf, False)):
        mean.zero_()
        counts.zero_()
        gate.open()
        mean += torch.tensor([1.0, math.nan, math.inf])
        counts += 5
        gate.factor(torch.tensor([0.5]), [0])
        gate.close(torch.tensor(norm), ONE, step=1)

        assert counts.tolist() == ([5, 5] if kept else [0, 0])
        assert mean.isfinite().all() == (not kept)


def test_from_a_bad_part_on_the_loss_is_multiplied_by_nan() -> None:
    gate = StepGate([], [], torch.device("cpu"))
    gate.open()

    factors = [float(gate.factor(torch.tensor([v]), [0])) for v in (0.5, math.inf, 0.5)]

    assert factors[0] == 1
    assert all(math.isnan(factor) for factor in factors[1:])


def test_statistics_that_are_spoilt_make_a_part_bad_though_its_loss_is_finite() -> None:
    norm = nn.BatchNorm3d(2)
    gate = StepGate(list(norm.buffers()), running_statistics(norm), torch.device("cpu"))
    gate.open()
    norm(torch.full((2, 2, 1, 1, 1), math.nan))

    assert math.isnan(float(gate.factor(torch.tensor([0.5]), [0])))
    gate.close(torch.tensor(math.nan), ONE, step=1)
    assert norm.running_mean is not None
    assert norm.running_mean.tolist() == [0, 0]
    assert int(norm.num_batches_tracked) == 0  # type: ignore[arg-type]


def test_steps_are_told_in_order_with_the_clips_of_the_bad_parts() -> None:
    gate = StepGate([], [], torch.device("cpu"))
    large, small = torch.tensor(2.0**16), torch.tensor(0.5)

    run_step(gate, [1.0, 2.0], norm=1.0)
    run_step(gate, [1.0, math.nan, 1.0], norm=math.nan)
    run_step(gate, [1.0, 2.0], norm=math.inf)
    run_step(gate, [1.0, 2.0], norm=math.inf, scale=large)
    run_step(gate, [1.0, 2.0], norm=math.inf, scale=small)

    overflow = BadStep(7, "gradient", (0, 1))
    # With a scale above 1 an overflow is the scaler's to mend; below it is a bad step.
    assert list(gate.read()) == [None, BadStep(7, "loss", (1,)), overflow, None, overflow]
    assert list(gate.read()) == []


def test_the_gate_reads_nothing_on_the_host() -> None:
    norm = nn.BatchNorm3d(2)
    gate = StepGate(list(norm.buffers()), running_statistics(norm), torch.device("cpu"))

    with NoHostSync():
        gate.open()
        norm(torch.randn(2, 2, 1, 2, 2))
        factor = gate.factor(torch.ones(2), [0, 1])
        gate.close(factor, ONE, step=1)


def start(data: Path, runs: Path, **train: Any) -> Trainer:
    config = tiny_config(data, runs, train={"epochs": 3, "global_batch_size": 2, **train})
    run, named = open_run(config, config_name="tiny", resume=False)
    with closing(run):
        return build_trainer(named, ranks=Ranks(), run=run, quiet=True)


def spoil(trainer: Trainer, steps: set[int]) -> None:
    def hook(module: nn.Module, inputs: Any, clips: Tensor) -> Tensor:
        is_bad = module.training and trainer.state.position.step + 1 in steps
        return clips * math.nan if is_bad else clips

    trainer.to_input.register_forward_hook(hook)


def test_bad_steps_are_recorded_with_their_clips_and_a_sound_one_ends_the_row(
    tiny_data: Path, tmp_path: Path
) -> None:
    trainer = start(tiny_data, tmp_path, epochs=1, max_bad_steps=3, log_every=4)
    spoil(trainer, {2, 3, 5, 6})

    trainer.fit()

    lines = [json.loads(t) for t in (tmp_path / "tiny" / "metrics.jsonl").read_text().splitlines()]
    bad = [line for line in lines if line["event"] == "bad_step"]
    assert [(line["step"], line["reason"]) for line in bad] == [
        (2, "loss"),
        (3, "loss"),
        (5, "loss"),
        (6, "loss"),
    ]
    order = list(trainer.loader.order)
    records = trainer.loader.clips.records
    expected = {records[index].id for _, index, *_ in order[1]}
    assert set(bad[0]["clips"]) == expected
    assert all(p.isfinite().all() for p in trainer.model.state_dict().values())
    assert trainer.state.bad_streak == 2
    # Two of six steps counted: the four clips of the others.
    assert int(trainer.train_counts["verb"].total.sum()) == 4


def test_too_many_in_a_row_end_the_run_with_the_clips_named(
    tiny_data: Path, tmp_path: Path
) -> None:
    trainer = start(tiny_data, tmp_path, max_bad_steps=3, log_every=1)
    spoil(trainer, {2, 3, 4})

    with pytest.raises(RunError, match=r"max_bad_steps=3: the loss is no finite number in 3 steps"):
        trainer.fit()
    assert trainer.state.position.step == 4
