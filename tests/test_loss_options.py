"""`loss.options` and `loss.label_smoothing`: what reaches a loss, and what is refused by key."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from cdb_video.build_losses import build_criterion
from cdb_video.config_file import parse_config
from cdb_video.errors import ConfigError
from cdb_video.losses import PER_SAMPLE_BASES
from tests.built_losses import VERBS, batch, built, loss_of


def test_options_reach_the_loss_and_the_base_of_cdb() -> None:
    logits, labels = batch()
    expected = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")

    focal = built(name="focal", options={"gamma": 0})
    cdb = built(name="cdb", base="focal", options={"gamma": 0})
    sharp = built(name="focal", options={"gamma": 3})

    torch.testing.assert_close(loss_of(focal, logits, labels), expected)
    torch.testing.assert_close(loss_of(cdb, logits, labels), expected)
    assert float(loss_of(sharp, logits, labels)) < float(expected)


def test_a_number_may_be_what_yaml_reads_as_text() -> None:
    config = parse_config(
        {"loss": {"name": "equalization", "options": {"threshold": "1e-1"}}}, source="file.yaml"
    )

    loss: Any = build_criterion(config.loss, VERBS).losses["verb"]

    # Shares of 5313 clips: 0.94, 0.056, 0.002 and 0.0002.
    assert loss.rare.tolist() == [False, True, True, True]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"name": "focal", "options": {"gama": 1}},
            "loss.options.gama: focal has no such option; it has gamma",
        ),
        (
            {"name": "cross_entropy", "options": {"gamma": 1}},
            "loss.options.gamma: cross_entropy has no such option; it has none",
        ),
        (
            {"name": "cdb", "base": "seesaw", "options": {"tau": 1}},
            "loss.options.tau: seesaw has no such option; it has p, q",
        ),
        (
            {"name": "weighted", "options": {"class_counts": [1, 2]}},
            "loss.options.class_counts: weighted has no such option; it has scheme, beta",
        ),
        (
            {"name": "focal", "options": {"label_smoothing": 0.1}},
            "loss.options.label_smoothing: is written loss.label_smoothing",
        ),
        (
            {"name": "class_balanced", "options": {"defer": 0.5}},
            "loss.options.defer: is written loss.defer",
        ),
        (
            {"name": "focal", "options": {"gamma": "high"}},
            "loss.options.gamma: must be a number, got 'high'",
        ),
        (
            {"name": "focal", "options": {"gamma": True}},
            "loss.options.gamma: must be a number, got True",
        ),
        (
            {"name": "focal", "options": {"gamma": None}},
            "loss.options.gamma: must be a number, got None",
        ),
        (
            {"name": "focal", "options": {"gamma": -1}},
            "loss.name=focal: gamma must be in [0, inf), got -1.0",
        ),
        (
            {"name": "weighted", "options": {"scheme": "cubic"}},
            "loss.name=weighted: scheme must be one of inverse, sqrt, effective, got 'cubic'",
        ),
        (
            {"name": "cdb", "base": "focal", "options": {"gamma": -1}},
            "loss.base=focal: gamma must be in [0, inf), got -1.0",
        ),
    ],
)
def test_an_option_that_cannot_be_used_is_refused_by_key(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        built(**values)

    assert str(error.value) == message


# --- label smoothing -------------------------------------------------------------------------


TAKE_SMOOTHING = (
    "cross_entropy",
    "weighted",
    "class_balanced",
    "balanced_softmax",
    "logit_adjusted",
    "recall",
)


@pytest.mark.parametrize("name", TAKE_SMOOTHING)
def test_label_smoothing_reaches_the_losses_that_take_it(name: str) -> None:
    logits, labels = batch()
    criteria = {
        smoothing: [
            built(name=name, label_smoothing=smoothing).eval(),
            built(name="cdb", base=name, label_smoothing=smoothing).eval(),
        ]
        for smoothing in (0.0, 0.2)
    }

    for plain, smooth in zip(*criteria.values(), strict=True):
        assert not torch.allclose(loss_of(plain, logits, labels), loss_of(smooth, logits, labels))
    # The weights of cdb are 1 before a measurement.
    alone, weighed = (loss_of(criterion, logits, labels) for criterion in criteria[0.2])
    torch.testing.assert_close(alone, weighed)


def test_label_smoothing_of_cross_entropy_is_that_of_pytorch() -> None:
    logits, labels = batch()
    expected = F.cross_entropy(
        logits, labels, ignore_index=-1, reduction="sum", label_smoothing=0.2
    )

    for name in ("cross_entropy", "cdb"):
        criterion = built(name=name, label_smoothing=0.2)
        torch.testing.assert_close(loss_of(criterion, logits, labels), expected)


@pytest.mark.parametrize("name", [name for name in PER_SAMPLE_BASES if name not in TAKE_SMOOTHING])
def test_label_smoothing_is_refused_where_the_loss_takes_none(name: str) -> None:
    for form, key in (({"name": name}, "name"), ({"name": "cdb", "base": name}, "base")):
        with pytest.raises(ConfigError) as error:
            built(**form, label_smoothing=0.1)

        message = str(error.value)
        assert message.startswith(f"loss.{key}={name}: label_smoothing=0.1: ")
        assert "\n" not in message
