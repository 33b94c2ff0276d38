import csv
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cdb_video.build import build_trainer
from cdb_video.clips.batch import Appearance, Batch
from cdb_video.clips.loader import TrainingLoader
from cdb_video.config import Config
from cdb_video.distributed import Ranks
from cdb_video.errors import RunError
from cdb_video.evaluation.evaluate import to_the_end
from cdb_video.experiments import open_run
from cdb_video.losses import CDBLoss, CrossEntropyLoss, MultiHeadLoss
from cdb_video.models.base import Normalization
from cdb_video.models.recognizer import Recognizer
from cdb_video.training.optim import Schedule, build_optimizer
from cdb_video.training.options import TrainerOptions
from cdb_video.training.trainer import Trainer
from tests.states import lines_of
from tests.tiny import tiny_config


class MeanColour(nn.Module):
    """A backbone without batch norm: its features are a linear map of the clip's mean colour."""

    num_features = 4
    normalization = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, clips: Tensor) -> Tensor:
        features: Tensor = self.linear(clips.mean((2, 3, 4)))
        return features


def make_trainer(*, batch_size: int, micro: int, loss: str = "cross_entropy") -> Trainer:
    torch.manual_seed(0)
    model = Recognizer(MeanColour(), num_classes={"verb": 3, "noun": 2}, dropout=0.0)
    losses: dict[str, nn.Module] = {
        head: CrossEntropyLoss(k, reduction="sum", ignore_index=-1)
        if loss == "cross_entropy"
        else CDBLoss(k, reduction="sum", ignore_index=-1)
        for head, k in model.num_classes.items()
    }
    optimizer = build_optimizer(model, name="sgd", lr=0.5, momentum=0.0)
    schedule = Schedule(epochs=1, shape="constant")
    schedule.apply(optimizer, 0.0)
    return Trainer(
        model=model,
        criterion=MultiHeadLoss(losses),
        optimizer=optimizer,
        schedule=schedule,
        loader=FixedSize(batch_size),
        validate=None,
        classes={},
        options=TrainerOptions(epochs=1, micro_batch_size=micro),
    )


class FixedSize(TrainingLoader):
    """A loader that knows its batch size and has no clips: the tests hand batches over."""

    def __init__(self, batch_size: int) -> None:
        self.order = type(
            "Order",
            (),
            {"batch_size": batch_size, "global_batch_size": batch_size, "steps_per_epoch": 1},
        )()
        self.clips = type("Clips", (), {"records": ()})()


def random_batch(size: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    clips = torch.randint(256, (size, 1, 3, 2, 4, 4), generator=generator, dtype=torch.uint8)
    return Batch(
        clips=clips,
        labels={
            "verb": torch.randint(-1, 3, (size,), generator=generator),
            "noun": torch.randint(2, (size,), generator=generator),
        },
        indices=torch.arange(size),
        appearance=Appearance(flip=torch.zeros(size, dtype=torch.bool), jitter=torch.ones(size, 3)),
    )


def parameters(trainer: Trainer) -> Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.mark.parametrize("loss", ["cross_entropy", "cdb"])
def test_accumulation_over_parts_gives_the_same_step(loss: str) -> None:
    batch = random_batch(21)
    whole = make_trainer(batch_size=21, micro=21, loss=loss)
    start = parameters(whole).clone()
    whole.train_step(batch)

    for micro in (7, 3, 5):  # 3 parts, 7 parts, and 5 of unequal sizes
        parts = make_trainer(batch_size=21, micro=micro, loss=loss)
        parts.train_step(batch)

        assert not torch.equal(parameters(parts), start)
        torch.testing.assert_close(parameters(parts), parameters(whole), atol=1e-6, rtol=0)


def test_a_step_is_the_gradient_of_the_summed_loss_over_the_global_batch() -> None:
    trainer = make_trainer(batch_size=6, micro=4)
    batch = random_batch(6)
    reference = make_trainer(batch_size=6, micro=4)
    pixels = batch.clips.flatten(0, 1).float() / 255
    logits = reference.model((pixels - 0.5) / 0.25)
    # Unlabelled clips (-1) add nothing to the sum, and the divisor stays the batch of 6.
    expected = sum(
        nn.functional.cross_entropy(
            logits[head], batch.labels[head], ignore_index=-1, reduction="sum"
        )
        / 6
        for head in ("verb", "noun")
    )
    assert isinstance(expected, Tensor)
    expected.backward()

    trainer.train_step(batch)

    for mine, theirs in zip(trainer.model.parameters(), reference.model.parameters(), strict=True):
        assert theirs.grad is not None
        torch.testing.assert_close(mine, theirs - 0.5 * theirs.grad, atol=1e-6, rtol=1e-5)


def test_training_counts_are_those_of_the_batch() -> None:
    trainer = make_trainer(batch_size=21, micro=4)
    batch = random_batch(21)

    trainer.train_step(batch)

    labelled = batch.labels["verb"][batch.labels["verb"] >= 0]
    assert torch.equal(trainer.train_counts["verb"].total, torch.bincount(labelled, minlength=3))


def test_gradients_are_clipped_to_the_norm() -> None:
    trainer = make_trainer(batch_size=6, micro=6)
    object.__setattr__(trainer.options, "clip_grad_norm", 0.01)
    before = parameters(trainer).clone()

    trainer.train_step(random_batch(6))

    moved = (parameters(trainer) - before).norm()
    assert float(moved) == pytest.approx(0.5 * 0.01, rel=1e-3)  # lr times the norm


def test_a_tiny_model_memorises_eight_clips(tmp_path: Path, tiny_data: Path) -> None:
    lines = (tiny_data / "clips.csv").read_text().splitlines()
    eight = [line for line in lines[1:] if line.endswith(",train")][:8]
    rows = [line.replace("train_", f"{tiny_data}/train_", 1) for line in eight]
    (tmp_path / "eight.csv").write_text("\n".join([lines[0], *rows]) + "\n")
    config = tiny_config(
        tmp_path,
        tmp_path,
        data={"val_split": None, "annotations": "eight.csv"},
        loss={"name": "cross_entropy"},
        optim={"lr": 0.01, "schedule": "constant"},
        train={"epochs": 40, "global_batch_size": 8, "micro_batch_size": 8},
    )
    trainer = build_trainer(config)

    trainer.fit()

    assert [counts.top1 for counts in trainer.train_counts.values()] == [1.0, 1.0]


def fit(config: Config, *, resume: bool = False) -> Trainer:
    run, named = open_run(config, config_name="tiny", resume=resume)
    with closing(run):
        trainer = build_trainer(named, ranks=Ranks(), run=run)
        trainer.fit()
    return trainer


MakeConfig = Callable[..., Config]


@pytest.fixture
def config(tiny_data: Path, tmp_path: Path) -> MakeConfig:
    def make(output: str = "runs", **sections: dict[str, Any]) -> Config:
        return tiny_config(tiny_data, tmp_path / output, **sections)

    return make


def test_a_run_leaves_the_files_of_its_contract(config: MakeConfig, tmp_path: Path) -> None:
    trainer = fit(config())

    folder = tmp_path / "runs" / "tiny"
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = [event["event"] for event in events]
    assert [name for name in names if name != "save"] == ["train", "eval"] * 2
    # A thread writes them: when they are told of is not said.
    assert [e["checkpoint"] for e in events if e["event"] == "save"] == ["step-2", "step-4"]
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {
        "step-2",
        "step-4",
        "best.json",
    }
    assert (folder / "report_val.json").exists()
    assert (folder / "predictions_val.npz").exists()
    assert trainer.state.position.step == 4


def test_difficulty_is_that_of_the_validation_report_and_weighs_from_then_on(
    config: MakeConfig, tmp_path: Path
) -> None:
    trainer = fit(config())

    with (tmp_path / "runs" / "tiny" / "difficulty.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["head"] == "verb"]
    first, last = rows[:2], rows[-2:]
    assert [(row["epoch"], row["accuracy"], row["weight"]) for row in first] == [
        ("0", "", "1.0"),
        ("0", "", "1.0"),
    ]
    report = json.loads((tmp_path / "runs" / "tiny" / "report_val.json").read_text())
    accuracy = report["heads"]["verb"]["class_accuracy"]
    assert {row["class"]: float(row["accuracy"]) for row in last} == accuracy
    loss = trainer.criterion.losses["verb"]
    assert isinstance(loss, CDBLoss)
    assert [float(row["weight"]) for row in last] == loss.class_weights.tolist()
    assert loss.difficulty.tolist() == pytest.approx([1 - accuracy["close"], 1 - accuracy["open"]])


def test_without_validation_the_training_batches_measure_difficulty(config: MakeConfig) -> None:
    trainer = fit(
        config(
            data={"val_split": None},
            loss={"difficulty": {"source": "train"}},
            train={"epochs": 1},
        )
    )

    loss = trainer.criterion.losses["verb"]
    assert isinstance(loss, CDBLoss)
    torch.testing.assert_close(loss.difficulty, 1 - trainer.train_counts["verb"].class_accuracy)
    assert trainer.state.best is None


def test_resuming_after_an_epoch_gives_the_uninterrupted_run_bit_for_bit(
    config: MakeConfig, tmp_path: Path
) -> None:
    options = {"optim": {"schedule": "constant"}, "model": {"dropout": 0.5}}
    whole = fit(config("whole", **options, train={"epochs": 3}))
    fit(config("parts", **options, train={"epochs": 1}))

    resumed = fit(config("parts", **options, train={"epochs": 3}), resume=True)

    lines = (tmp_path / "parts" / "tiny" / "metrics.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    [taken_up] = [event for event in events if event["event"] == "resume"]
    assert (taken_up["checkpoint"], taken_up["step"], taken_up["ranks"]) == ("step-2", 2, 1)
    assert resumed.state.position == whole.state.position
    for (name, mine), theirs in zip(
        resumed.model.state_dict().items(), whole.model.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs), name
    mine_state, their_state = resumed.state.state_dict(), whole.state.state_dict()
    assert mine_state["progress"] == their_state["progress"]
    for (name, value), other in zip(
        mine_state["criterion"].items(), their_state["criterion"].values(), strict=True
    ):
        assert torch.equal(value, other), name
    whole_run, parts_run = (tmp_path / output / "tiny" for output in ("whole", "parts"))
    assert lines_of(whole_run) == lines_of(parts_run)


def test_resuming_with_another_learning_rate_is_refused_by_name(config: MakeConfig) -> None:
    fit(config(train={"epochs": 1}))

    with pytest.raises(RunError, match=r"optim\.lr=0\.5: the run was started with 0\.003"):
        fit(config(train={"epochs": 1}, optim={"lr": 0.5}), resume=True)


def test_resume_with_nothing_to_resume_starts_and_says_so(
    config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = fit(config(train={"epochs": 1}), resume=True)

    assert "nothing to resume" in capsys.readouterr().out
    assert trainer.state.position.epoch == 1


def test_a_loss_that_is_not_finite_stops_the_run(config: MakeConfig) -> None:
    with pytest.raises(RunError, match=r"no finite number in 2 steps in a row"):
        fit(config(optim={"name": "sgd", "lr": 1e18}, train={"epochs": 4, "log_every": 1}))


def test_a_frozen_backbone_does_not_move_and_the_heads_do(config: MakeConfig) -> None:
    trainer = build_trainer(config(model={"freeze_backbone": True}, train={"epochs": 1}))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}

    trainer.fit()

    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("backbone."), name


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_trains(config: MakeConfig, precision: str) -> None:
    trainer = build_trainer(config(train={"epochs": 1, "precision": precision}))
    before = parameters(trainer).clone()

    trainer.fit()

    assert parameters(trainer).isfinite().all()
    assert not torch.equal(parameters(trainer), before)
    assert trainer.model.heads["verb"].weight.dtype == torch.float32


def test_only_every_nth_epoch_and_the_last_are_validated(
    config: MakeConfig, tmp_path: Path
) -> None:
    fit(config(train={"epochs": 3, "eval_every": 2}))

    lines = (tmp_path / "runs" / "tiny" / "metrics.jsonl").read_text().splitlines()
    events = [(e["event"], e["epoch"]) for e in map(json.loads, lines)]
    events = [(name, epoch) for name, epoch in events if name in ("epoch", "eval")]
    assert events == [("epoch", 1), ("eval", 2), ("eval", 3)]


def test_between_validations_a_few_clips_of_each_class_measure_difficulty(
    config: MakeConfig, tmp_path: Path
) -> None:
    difficulty = {"max_clips_per_class": 2}
    trainer = fit(config(loss={"difficulty": difficulty}, train={"epochs": 2, "eval_every": 2}))

    assert trainer.difficulty_pass is not None
    counts = trainer.difficulty_pass(trainer.model, to_the_end)
    # Of 4 and 3 clips of the verbs, of 3, 2 and 2 of the nouns.
    assert counts["verb"].total.tolist() == [2, 2]
    assert counts["noun"].total.tolist() == [2, 2, 2]
    with (tmp_path / "runs" / "tiny" / "difficulty.csv").open(newline="") as file:
        measured = {row["epoch"] for row in csv.DictReader(file) if row["accuracy"]}
    assert measured == {"1", "2"}
    difficulties = trainer.epoch_log.difficulties.values()
    assert [int(one.epochs) for one in difficulties] == [2, 2]
