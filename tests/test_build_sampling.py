"""The configuration becomes a difficulty, and the classes that training draws."""

from __future__ import annotations

from typing import Any

import pytest

from cdb_video.build_losses import build_class_sampling, build_difficulty
from cdb_video.config import Config, LossConfig
from cdb_video.config_file import parse_config
from cdb_video.errors import ConfigError
from tests.built_losses import CLASSES, VERBS, built, measured


def test_the_difficulty_has_the_options_of_the_configuration() -> None:
    options = {
        "statistic": "f1",
        "ema": 0.5,
        "prior_strength": 3.0,
        "floor": 0.1,
        "warmup_epochs": 4,
        "update_every": 2,
    }
    config = LossConfig(difficulty=options)  # type: ignore[arg-type]

    difficulty = build_difficulty(config, 4, 1)

    assert difficulty.num_classes == 4
    assert {name: getattr(difficulty, name) for name in options} == options
    assert built(difficulty=options).losses["verb"].class_difficulty.extra_repr() == (
        difficulty.extra_repr()
    )


@pytest.mark.parametrize(
    ("source", "measurements"), [("val", 2), ("train", 3)], ids=["val", "train"]
)
def test_a_warmup_is_told_in_epochs_and_counted_in_measurements(
    source: str, measurements: int
) -> None:
    config = LossConfig(difficulty={"source": source, "warmup_epochs": 3})  # type: ignore[arg-type]

    # Every second epoch validates: the second measurement is the first after three epochs.
    assert build_difficulty(config, 4, 2).warmup_epochs == measurements


def config_of(**data: Any) -> Config:
    return parse_config({"data": data, "loss": {"name": "focal", "tau": 1}}, source="file.yaml")


def test_without_a_sampler_every_clip_is_drawn_once() -> None:
    assert build_class_sampling(config_of(), CLASSES) is None


@pytest.mark.parametrize("kind", ["sqrt", "class_balanced", "progressive", "cdb"])
def test_a_sampler_draws_the_classes_of_its_head(kind: str) -> None:
    sampling = build_class_sampling(config_of(sampler=kind, sampler_head="noun"), CLASSES)

    assert sampling is not None
    assert (sampling.kind, sampling.head) == (kind, "noun")
    expected = {"sqrt": 40**0.5 / (40**0.5 + 60**0.5), "progressive": 0.4}.get(kind, 0.5)
    assert sampling.probabilities(0, 5).tolist() == pytest.approx([expected, 1 - expected])


def test_the_only_head_or_action_need_not_be_named() -> None:
    action = {**CLASSES, "action": CLASSES["noun"]}

    for classes, head in ((VERBS, "verb"), (action, "action")):
        sampling = build_class_sampling(config_of(sampler="sqrt"), classes)
        assert sampling is not None
        assert sampling.head == head


@pytest.mark.parametrize(("head", "shown"), [({}, "null"), ({"sampler_head": "action"}, "action")])
def test_a_head_that_is_not_there_is_refused_by_key(head: dict[str, str], shown: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_class_sampling(config_of(sampler="sqrt", **head), CLASSES)

    assert str(error.value) == (
        f"data.sampler_head={shown}: data.sampler=sqrt needs one of the heads verb, noun"
    )


def test_the_cdb_sampler_follows_the_difficulty_of_the_loss_section() -> None:
    config = parse_config(
        {
            "data": {"sampler": "cdb", "sampler_head": "verb"},
            "loss": {"name": "cross_entropy", "tau": 2, "difficulty": {"floor": 0.5}},
        },
        source="file.yaml",
    )
    sampling = build_class_sampling(config, CLASSES)
    assert sampling is not None

    sampling.update(measured()["verb"])

    # Difficulties 1/4, 2/4, 3/4, 1, at least 1/2; squared 4, 4, 9, 16.
    assert sampling.probabilities(1, 5).tolist() == pytest.approx([4 / 33, 4 / 33, 9 / 33, 16 / 33])
