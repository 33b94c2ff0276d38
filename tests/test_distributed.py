"""Ranks agree: one torchrun job a rank count, judged by the files that its ranks wrote."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cdb_video.config_file import dump_config
from tests.tiny import tiny_config

ROOT = Path(__file__).parent.parent
State = dict[str, Any]


@pytest.fixture(scope="module")
def jobs(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[State]]:
    """Number of ranks -> what each rank wrote."""
    return {ranks: run_job(ranks, tiny_data, tmp_path_factory) for ranks in (1, 2, 3)}


def run_job(ranks: int, data: Path, factory: pytest.TempPathFactory) -> list[State]:
    out = factory.mktemp(f"ranks{ranks}")
    config = tiny_config(data, out, optim={"name": "sgd", "lr": 0.05}, train={"epochs": 2})
    (out / "config.yaml").write_text(dump_config(config))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={ranks}", "tests/ranks.py", str(out / "config.yaml"), str(out)]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    files = sorted(out.glob("rank*.pt"))
    # The exit status is not asked: gloo now and then aborts at exit, after all work is done.
    assert len(files) == ranks, done.stderr
    return [torch.load(file, weights_only=True) for file in files]


def assert_equal(mine: Any, theirs: Any, name: str = "") -> None:
    if isinstance(mine, dict):
        assert mine.keys() == theirs.keys()
        for key in mine:
            assert_equal(mine[key], theirs[key], f"{name}.{key}")
    else:
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize("ranks", [2, 3])
def test_every_rank_has_the_same_counts_difficulty_weights_and_model(
    jobs: dict[int, list[State]], ranks: int
) -> None:
    first, *others = jobs[ranks]

    weights = first["criterion"]["losses.noun.class_weights"]
    assert float(weights.mean()) == pytest.approx(1, abs=1e-6)
    for other in others:
        for part in ("counts_before", "counts_after", "train_counts", "criterion", "model"):
            assert_equal(first[part], other[part], part)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_with_the_cdb_sampler_every_rank_draws_and_weighs_the_same(
    jobs: dict[int, list[State]], ranks: int
) -> None:
    first, *others = (state["drawing"] for state in jobs[ranks])

    assert float(first["probabilities"].sum()) == pytest.approx(1)
    assert bool((first["sampling"]["cdb.class_difficulty.mass"] == 1).all())
    # Twelve draws an epoch over all ranks, whatever their classes. Row 3 is the total of each.
    assert int(first["train_counts"][3].sum()) == 12
    for other in others:
        assert_equal(first, other)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_without_the_trainer_losses_that_count_sum_over_the_ranks(
    jobs: dict[int, list[State]], ranks: int
) -> None:
    first, *others = (state["plain_loop"] for state in jobs[ranks])

    # Class 0: one of `ranks` clips is right; class 1: its only clip is; class 2 has none.
    difficulty = [1 - 1 / ranks, 0, math.nan]
    assert first["difficulty"].tolist() == pytest.approx(difficulty, nan_ok=True)
    # One plus the missed, over one plus the seen.
    assert first["recall_weights"].tolist() == pytest.approx([ranks / (1 + ranks), 1 / 2, 1])
    for other in others:
        for part in ("cdb", "recall"):
            assert_equal(other[part], first[part], part)


@pytest.mark.parametrize(("ranks", "variance"), [(1, 3.5), (2, 4.25), (3, 4.5 + 2 / 3)])
def test_batch_norm_is_measured_over_the_clips_of_every_rank(
    jobs: dict[int, list[State]], ranks: int, variance: float
) -> None:
    # Of 0 to 5: unbiased 3.5; of each rank's, 4 and 4.5, and on top the variance of their means.
    for state in jobs[ranks]:
        assert state["batch_norm"]["running_mean"].tolist() == [2.5]
        assert state["batch_norm"]["running_var"].tolist() == pytest.approx([variance])


def test_seven_videos_are_counted_once_on_any_number_of_ranks(
    jobs: dict[int, list[State]],
) -> None:
    for ranks, states in jobs.items():
        seen = sorted(index for state in states for index in state["indices"])
        assert seen == list(range(7)), ranks
        # The untrained model is the same on all: so are its counts, to the last one.
        assert_equal(states[0]["counts_before"], jobs[1][0]["counts_before"])
    assert int(jobs[1][0]["counts_before"]["verb"][3].sum()) == 7


def test_training_counts_cover_the_epoch_on_any_number_of_ranks(
    jobs: dict[int, list[State]],
) -> None:
    for states in jobs.values():
        # 12 clips, 6 a step: the last epoch saw each once. Row 3 is the total of each class.
        assert states[0]["train_counts"]["verb"][3].tolist() == [6, 6]
        assert states[0]["train_counts"]["noun"][3].tolist() == [4, 4, 4]
