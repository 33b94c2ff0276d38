"""The loss side of `build`: a configuration becomes a loss a head, and classes to draw."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from cdb_video.config import Config, LossConfig
from cdb_video.datasets.annotations import UNLABELLED
from cdb_video.errors import ConfigError
from cdb_video.evaluation.predictions import HeadClasses
from cdb_video.losses import (
    LOSSES,
    CDBLoss,
    CDBSampling,
    ClassDifficulty,
    DeferredReweighting,
    MultiHeadLoss,
)
from cdb_video.models.heads import COSINE_SCALE
from cdb_video.training.class_sampling import ClassSampling

COMMON_OPTIONS = {"num_classes", "class_counts", "reduction", "ignore_index", "scale"}
"""Known from the data and the model."""
OTHER_KEYS = {"label_smoothing": "loss.label_smoothing", "defer": "loss.defer"}


def build_criterion(
    config: LossConfig, classes: Mapping[str, HeadClasses], *, eval_every: int = 1
) -> MultiHeadLoss:
    """One loss a head, each a sum over clips: the trainer divides by the global batch.

    Args:
        config: the `loss` section.
        classes: head -> names and training counts.
        eval_every: epochs between validations.

    Raises:
        ConfigError: an option that the loss does not have, or cannot take.

    """
    return MultiHeadLoss(
        {head: _build_loss(config, known, eval_every) for head, known in classes.items()},
        head_weights=config.head_weights,
    )


def build_class_sampling(
    config: Config, classes: Mapping[str, HeadClasses]
) -> ClassSampling | None:
    """The classes that training draws; None: every clip once an epoch.

    Raises:
        ConfigError: no such head, or several and none named.

    """
    kind, head = config.data.sampler, config.data.sampler_head
    if kind == "instance":
        return None
    if head is None:
        head = "action" if "action" in classes or len(classes) > 1 else next(iter(classes))
    if head not in classes:
        raise ConfigError(
            f"data.sampler_head={config.data.sampler_head or 'null'}: data.sampler={kind} needs "
            f"one of the heads {', '.join(classes)}"
        )
    counts = classes[head].train_counts
    cdb = None
    if kind == "cdb":
        difficulty = build_difficulty(config.loss, len(counts), config.train.eval_every)
        cdb = CDBSampling(counts, tau=config.loss.tau, difficulty=difficulty)
    return ClassSampling(kind, head=head, class_counts=counts, cdb=cdb)


def build_difficulty(config: LossConfig, num_classes: int, eval_every: int) -> ClassDifficulty:
    """How the difficulty of a head's classes is measured."""
    options = config.difficulty
    # What is measured by validation is measured in epochs that validate. The trainer itself leaves
    # out the epochs whose crossfit would not count.
    by_validation = options.source == "val" and options.max_clips_per_class is None
    every = eval_every if by_validation else 1
    skips = options.source != "crossfit"
    return ClassDifficulty(
        num_classes,
        statistic=options.statistic,
        ema=options.ema,
        prior_strength=options.prior_strength,
        floor=options.floor,
        warmup_epochs=-(-options.warmup_epochs // every) if skips else 0,
        update_every=options.update_every if skips else 1,
    )


def _build_loss(config: LossConfig, classes: HeadClasses, eval_every: int) -> nn.Module:
    num_classes = len(classes.names)
    if config.name != "cdb":
        return _build_base(config, config.name, classes, reduction="sum")
    plain = config.base == "cross_entropy" and config.defer is None and not config.options
    return CDBLoss(
        num_classes,
        tau=config.tau,
        base=None if plain else _build_base(config, config.base, classes, reduction="none"),
        reduction="sum",
        label_smoothing=config.label_smoothing if plain else 0.0,
        ignore_index=UNLABELLED,
        difficulty=build_difficulty(config, num_classes, eval_every),
    )


def _build_base(
    config: LossConfig, name: str, classes: HeadClasses, *, reduction: Literal["sum", "none"]
) -> nn.Module:
    takes = inspect.signature(LOSSES[name]).parameters
    known: dict[str, Any] = {
        "class_counts": classes.train_counts,
        "ignore_index": UNLABELLED,
    }
    options = {
        **known,
        "label_smoothing": config.label_smoothing,
        **_own_options(config.options, name, takes),
    }
    if "scale" in takes:
        options["scale"] = COSINE_SCALE
    defers_itself = "defer" in takes
    if config.defer is not None and defers_itself:
        options["defer"] = config.defer
    wrapped = config.defer is not None and not defers_itself
    try:
        loss = LOSSES[name](
            len(classes.names), reduction="none" if wrapped else reduction, **options
        )
    except (TypeError, ValueError) as error:
        key = "base" if config.name == "cdb" else "name"
        raise ConfigError(f"loss.{key}={name}: {error}") from None
    if not wrapped:
        return loss
    return DeferredReweighting(
        len(classes.names), base=loss, defer=config.defer or 0.0, reduction=reduction, **known
    )


def _own_options(
    given: Mapping[str, Any], name: str, takes: Mapping[str, inspect.Parameter]
) -> dict[str, Any]:
    """`loss.options` of the named loss, numbers as numbers."""
    options = dict(given)
    for option, value in given.items():
        if option in OTHER_KEYS:
            raise ConfigError(f"loss.options.{option}: is written {OTHER_KEYS[option]}")
        if option not in takes or option in COMMON_OPTIONS:
            allowed = [key for key in takes if key not in COMMON_OPTIONS | set(OTHER_KEYS)]
            raise ConfigError(
                f"loss.options.{option}: {name} has no such option; it has "
                f"{', '.join(allowed) or 'none'}"
            )
        if isinstance(takes[option].default, float):
            options[option] = _number(option, value)
    return options


def _number(option: str, value: Any) -> float:
    # From text as well: YAML 1.1 reads 1e-4 (no dot) as such.
    try:
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            return float(value)
    except ValueError:
        pass
    raise ConfigError(f"loss.options.{option}: must be a number, got {value!r}")
