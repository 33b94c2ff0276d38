"""Averaged weights: the arithmetic by hand, and that everything after training uses them."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cdb_video.build import build_trainer
from cdb_video.distributed import Ranks
from cdb_video.experiments import load_run, open_run
from cdb_video.models.base import Normalization
from cdb_video.models.recognizer import Recognizer
from cdb_video.training.averaging import AveragedWeights
from cdb_video.training.checkpoint import load_model, load_training
from tests.tiny import tiny_config


class OneNumber(nn.Module):
    """A backbone with a weight, a running statistic and a count."""

    num_features = 1
    normalization = Normalization((0.5,) * 3, (0.5,) * 3)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, clips: Tensor) -> Tensor:
        return self.weight * clips.mean((1, 2, 3, 4))[:, None]


def set_to(model: Recognizer, value: float) -> None:
    with torch.no_grad():
        for tensor in (model.backbone.weight, model.backbone.mean, model.backbone.count):  # type: ignore[attr-defined]
            tensor.fill_(value)


def numbers(model: Recognizer) -> list[float]:
    backbone: Any = model.backbone
    return [float(backbone.weight), float(backbone.mean), float(backbone.count)]


def test_the_average_starts_quickly_and_skips_a_step_that_was_not_applied() -> None:
    model = Recognizer(OneNumber(), num_classes={"verb": 2})
    averaged = AveragedWeights(model, decay=0.25)

    set_to(model, 11)
    averaged.update(torch.tensor(True))
    # The first of them: decay (1 + 1) / (10 + 1), of 0, and the rest, of 11.
    assert numbers(averaged.model) == pytest.approx([9, 9, 11])

    averaged.update(torch.tensor(False))
    assert numbers(averaged.model) == pytest.approx([9, 9, 11])

    set_to(model, 1)
    averaged.update(torch.tensor(True))
    # The second: 3 / 12 is the decay that was asked for.
    assert numbers(averaged.model) == pytest.approx([0.25 * 9 + 0.75, 0.25 * 9 + 0.75, 1])
    assert not any(p.requires_grad for p in averaged.model.parameters())


def test_a_frozen_backbone_is_held_once_and_its_heads_are_averaged() -> None:
    model = Recognizer(OneNumber(), num_classes={"verb": 2})
    model.freeze_backbone()
    averaged = AveragedWeights(model, decay=0.25)
    head, mine = (m.heads["verb"].weight for m in (model, averaged.model))

    with torch.no_grad():
        mine.fill_(0)
        head.fill_(11)
    averaged.update(torch.tensor(True))

    assert averaged.model.backbone.weight is model.backbone.weight  # type: ignore[attr-defined]
    assert torch.allclose(mine, torch.tensor(9.0))
    assert not torch.equal(head, mine)
    assert [p.requires_grad for p in model.parameters()] == [False, True, True]

    again = AveragedWeights(model, decay=0.25)
    again.load_state_dict(averaged.state_dict())
    assert torch.equal(again.model.heads["verb"].weight, mine)  # type: ignore[arg-type]
    assert again.model.backbone.weight is model.backbone.weight  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_resumed_average_over_a_frozen_backbone_is_that_of_a_run_without_a_break(
    tiny_data: Path, tmp_path: Path
) -> None:
    def train(name: str, epochs: int, *, resume: bool = False) -> Path:
        config = tiny_config(
            tiny_data,
            tmp_path,
            run={"name": name},
            model={"freeze_backbone": True},
            optim={"schedule": "constant"},
            train={"epochs": epochs, "ema": 0.5},
        )
        run, named = open_run(config, config_name=name, resume=resume)
        with closing(run):
            build_trainer(named, ranks=Ranks(), run=run, quiet=True).fit()
        return tmp_path / name / "checkpoints" / "step-4"

    whole = load_model(train("whole", 2))
    train("parts", 1)
    parts = load_model(train("parts", 2, resume=True))

    assert all(torch.equal(parts[name], value) for name, value in whole.items())


def test_validation_the_checkpoint_and_a_loaded_run_have_the_averaged_weights(
    tiny_data: Path, tmp_path: Path
) -> None:
    config = tiny_config(tiny_data, tmp_path, train={"epochs": 1, "ema": 0.5})
    run, named = open_run(config, config_name="tiny", resume=False)
    with closing(run):
        trainer = build_trainer(named, ranks=Ranks(), run=run, quiet=True)
        trainer.fit()

    averaged = trainer.averaged.model
    assert averaged is not None
    assert trainer.evaluated is averaged
    path = tmp_path / "tiny" / "checkpoints" / "step-2"
    saved, trained = load_model(path), load_training(path)["model"]
    loaded = load_run(tmp_path / "tiny").model.state_dict()
    for name, value in averaged.state_dict().items():
        assert torch.equal(value, saved[name]), name
        assert torch.equal(value, loaded[name]), name
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, trained[name]), name
    assert not torch.equal(trained["heads.verb.weight"], saved["heads.verb.weight"])
