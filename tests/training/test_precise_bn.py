"""Batch norm measured again: arithmetic by hand, and what a run evaluates and keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cdb_video.build import build_trainer
from cdb_video.clips.batch import Batch
from cdb_video.config import Config
from cdb_video.errors import ConfigError
from cdb_video.evaluation.evaluate import EvaluationStoppedError
from cdb_video.models.recognizer import Recognizer
from cdb_video.training.precise_bn import measure_batch_norms, moving_batch_norms
from cdb_video.training.trainer import Trainer
from tests.tiny import tiny_config


def clips_of(*values: float) -> Tensor:
    """Clips of one channel, one frame and one pixel."""
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1, 1)


def measure(model: nn.Module, *batches: Tensor) -> None:
    measure_batch_norms(model, batches, autocast=nullcontext())


def means_and_variances(norm: nn.BatchNorm3d) -> tuple[list[float], list[float]]:
    buffers = norm.state_dict()
    return buffers["running_mean"].tolist(), buffers["running_var"].tolist()


def test_mean_and_variance_are_those_of_all_clips_each_counting_once() -> None:
    norm = nn.BatchNorm3d(1)

    measure(norm, clips_of(0, 2), clips_of(4, 6, 8, 10))

    # Unbiased variances 2 and 20 / 3, squares of the means 1 and 49; clips 2 and 4.
    means, variances = means_and_variances(norm)
    assert means == [5]
    assert variances == pytest.approx([(2 * 3 + 4 * (20 / 3 + 49)) / 6 - 25])


def test_momentum_mode_and_count_are_as_they_were_and_the_rest_runs_as_in_evaluation() -> None:
    norm = nn.BatchNorm3d(1, momentum=0.3)
    model = nn.Sequential(nn.Dropout(0.99), norm)

    measure(model, clips_of(3, 5))

    assert means_and_variances(norm)[0] == [4]  # nothing was dropped
    assert norm.momentum == 0.3
    assert norm.num_batches_tracked == torch.tensor(0)
    assert not norm.training


def test_figures_that_are_not_finite_leave_a_channel_as_it_was() -> None:
    norm = nn.BatchNorm3d(2)
    clips = torch.cat([clips_of(1, torch.inf), clips_of(1, 3)], dim=1)

    measure(norm, clips)

    assert means_and_variances(norm) == ([0, 2], [1, 2])


def test_no_clip_at_all_leaves_everything_as_it_was() -> None:
    norm = nn.BatchNorm3d(1)

    measure(norm)

    assert means_and_variances(norm) == ([0], [1])


def test_an_error_on_the_way_leaves_everything_as_it_was() -> None:
    def batches() -> Iterator[Tensor]:
        yield clips_of(3, 5)
        raise EvaluationStoppedError

    norm = nn.BatchNorm3d(1)

    with pytest.raises(EvaluationStoppedError):
        measure_batch_norms(norm, batches(), autocast=nullcontext())

    assert means_and_variances(norm) == ([0], [1])
    assert norm.momentum == 0.1


MakeConfig = Callable[..., Config]


@pytest.fixture
def config(tiny_data: Path, tmp_path: Path) -> MakeConfig:
    def make(**sections: dict[str, Any]) -> Config:
        return tiny_config(tiny_data, tmp_path, **sections)

    return make


def statistics(model: Recognizer) -> list[Tensor]:
    kept = [norm.running_mean for norm in moving_batch_norms(model)]
    kept += [norm.running_var for norm in moving_batch_norms(model)]
    return [statistic.clone() for statistic in kept if statistic is not None]


def inputs(trainer: Trainer, batch: Batch) -> Tensor:
    return trainer.to_input(batch.clips.flatten(0, 1), batch.appearance, batch.clips_to_rgb)


@pytest.mark.parametrize("ema", [None, 0.5])
def test_what_a_run_evaluates_has_the_statistics_of_its_first_clips(
    config: MakeConfig, ema: float | None
) -> None:
    train = {"epochs": 1, "precise_bn": 1, "ema": ema, "micro_batch_size": 4}
    trainer = build_trainer(config(train=train), quiet=True)
    trainer.fit()
    measured = statistics(trainer.evaluated)

    # Six clips a step, in two parts of three.
    batch = next(iter(trainer.loader.epoch(0)))
    assert len(batch) == 6
    measure(trainer.evaluated, *(inputs(trainer, part) for part in batch.split(4)))

    assert len(measured) > 0
    for mine, expected in zip(measured, statistics(trainer.evaluated), strict=True):
        assert torch.equal(mine, expected)


def test_an_epoch_has_no_more_steps_than_it_has(config: MakeConfig) -> None:
    some, all_of_them = (
        build_trainer(config(train={"epochs": 1, "precise_bn": steps}), quiet=True)
        for steps in (1000, 2)
    )
    for trainer in (some, all_of_them):
        trainer.fit()

    for mine, theirs in zip(statistics(some.model), statistics(all_of_them.model), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    "model", [{"freeze_backbone": True}, {"backbone": "mvit_v2_s"}], ids=["frozen", "none"]
)
def test_a_network_without_batch_norm_to_measure_is_refused(
    config: MakeConfig, model: dict[str, Any]
) -> None:
    made = config(
        model=model,
        train={"precise_bn": 5},
        clip={"num_frames": 16, "crop_size": 64, "short_side": 64},
    )

    with pytest.raises(ConfigError, match=r"train\.precise_bn=5: .* has no batch norm"):
        build_trainer(made, quiet=True)
