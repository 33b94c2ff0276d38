"""A finished run, corrected for the long tail without training it again, before and after."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from cdb_video.build_evaluation import write_report
from cdb_video.config_file import dump_config, load_config
from cdb_video.errors import ConfigError
from cdb_video.evaluation import posthoc
from cdb_video.evaluation.evaluate import EvalReport
from cdb_video.evaluation.features import Features
from cdb_video.evaluation.predictions import save_predictions, with_metadata
from cdb_video.evaluation.report import make_report, save_report
from cdb_video.experiments.features import (
    asked_subsets,
    plain_features,
    run_predictions,
    scores_of,
    source_of,
    view_features,
)
from cdb_video.experiments.runs import LoadedRun
from cdb_video.models.recognizer import Recognizer
from cdb_video.training.checkpoint import save_checkpoint

Method = Literal["logit-adjust", "tau-norm", "crt", "lws"]
NEW_HEADS = ("tau-norm", "crt", "lws")
"""The methods that make a model; logit adjustment changes scores."""


@dataclass(frozen=True)
class Correction:
    """A run's reports on one split, as `report_<split>.json` has them."""

    before: dict[str, Any]
    after: dict[str, Any]
    """With "posthoc": the method and its settings."""
    model_folder: Path | None
    """A run with the corrected heads; None of logit adjustment."""


def correct(
    run: LoadedRun,
    method: Method,
    *,
    role: str = "test",
    tau: float | None = None,
    seed: int = 0,
) -> Correction:
    """Correct a run, score a split with it before and after, and write what was found.

    Logit adjustment takes the predictions that evaluation left in the run's folder, when they are
    of this checkpoint and these views. New heads are put on the features of the split's every
    view, and the old ones too, so that before and after differ by the heads alone; the features
    are made in one pass and kept, so that a second method is done in seconds. Of a run on saved
    features nothing is kept or taken: its files may be others by now.

    `report_<role>.json` and `predictions_<role>.npz` are written as evaluation writes them, the
    corrected ones beside them as `..._<role>_<method>`; of the methods that make new heads
    `posthoc-<method>/` as well, a run that evaluate and predict take.

    Args:
        run: on its device.
        method: see `cdb_video.evaluation.posthoc`.
        role: the split to score: train, val or test.
        tau: of logit-adjust, None: 1; of tau-norm, None: the best on the validation split, by head.
        seed: of crt and lws.

    Raises:
        ConfigError: a tau that is no number of at least 0, heads that are not linear, a split that
            the run does not have, or one without labels that a method learns from.
        DataError: annotations, or a kept file, that cannot be used.

    """
    if tau is not None:
        posthoc.check_strength(tau)
    split = run.read_split(role)
    corrected = None
    if method in NEW_HEADS:
        corrected, settings = _with_new_heads(run, method, tau=tau, seed=seed)
        features = view_features(run, split, role)
        old = dataclasses.replace(scores_of(run, run.model, features), source=source_of(run))
        new = scores_of(run, corrected, features)
    else:
        settings = {"tau": 1.0 if tau is None else tau}
        old = run_predictions(run, split, role)
        new = posthoc.adjust_predictions(old, run.classes, tau=settings["tau"])
    old, new = (with_metadata(scored, split.records) for scored in (old, new))
    subsets = asked_subsets(run, split, role)
    before = write_report(
        run.folder,
        EvalReport(old, run.config.views.num_views, skipped=old.skipped),
        config=run.config,
        classes=run.classes,
        split=split,
        role=role,
        subsets=subsets,
    )
    about = _about(before, {"method": method, **settings})
    about |= {"subsets": subsets, "skipped": old.skipped}
    after = make_report(new, run.classes, **about) | {"posthoc": {"method": method, **settings}}
    new = dataclasses.replace(new, about=about)
    save_predictions(run.folder / f"predictions_{role}_{method}.npz", new, run.classes)
    save_report(run.folder / f"report_{role}_{method}.json", after)
    folder = None if corrected is None else _save(corrected, run, after)
    return Correction(before, after, folder)


def _about(before: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the report of corrected predictions says of them, by the report before."""
    about = {key: before[key] for key in ("split", "annotation_split", "views", "split_fed")}
    if settings.get("chosen_on") == before["split"]:
        about["split_fed"] = [*about["split_fed"], "tau"]
    if settings["method"] == "logit-adjust":
        about["logit_adjust"] = settings["tau"]
    return about | {"run": f"{before['run']}-{settings['method']}"}


def _with_new_heads(
    run: LoadedRun, method: Method, *, tau: float | None, seed: int
) -> tuple[Recognizer, dict[str, Any]]:
    """The run's model with other heads, and the settings that made them."""
    heads = posthoc.linear_heads(run.model)
    settings: dict[str, Any]
    if method == "tau-norm":
        settings = {"tau": dict.fromkeys(heads, tau)} if tau is not None else _choose_taus(run)
        new = {
            name: posthoc.tau_normalized(head, tau=settings["tau"][name])
            for name, head in heads.items()
        }
    else:
        settings = {"seed": seed}
        features = plain_features(run, "train")
        train = posthoc.retrained if method == "crt" else posthoc.rescaled
        new = {
            # On the CPU whatever the device: the same seed then gives the same heads.
            name: train(
                copy.deepcopy(head).cpu(),
                features.features,
                _labels(features, name, "train"),
                seed=seed,
            )
            for name, head in heads.items()
        }
    model = copy.deepcopy(run.model)
    for name, head in new.items():
        model.heads[name].load_state_dict(head.state_dict())
    return model, settings


def _choose_taus(run: LoadedRun) -> dict[str, Any]:
    if run.config.data.val_split is None:
        raise ConfigError(
            "data.val_split is null: tau is chosen on the validation split and never on another; "
            "give --tau"
        )
    features = plain_features(run, "val")
    taus = {
        name: posthoc.choose_tau(
            copy.deepcopy(head).cpu(), features.features, _labels(features, name, "val")
        )
        for name, head in posthoc.linear_heads(run.model).items()
    }
    return {"tau": taus, "chosen_on": "val"}


def _labels(features: Features, head: str, role: str) -> Tensor:
    """The labels (M,) of a head, at least one of which there must be."""
    labels = features.labels[head]
    if not bool((labels >= 0).any()):
        advice = "; give --tau" if role == "val" else ""
        raise ConfigError(
            f"data.{role}_split: none of its {len(features)} clips is labelled for head {head!r}, "
            f"whose correction is learned from them{advice}"
        )
    return labels


def _save(model: Recognizer, run: LoadedRun, report: dict[str, Any]) -> Path:
    """A run's folder with one checkpoint, the corrected one."""
    settings = report["posthoc"]
    folder = run.folder / f"posthoc-{settings['method']}"
    about = {"checkpoint": run.checkpoint.name, **settings}
    # As it was trained: what was given anew for this call is no part of the run.
    config = load_config(run.checkpoint / "config.yaml")
    named = config.run.model_copy(update={"name": report["run"]})
    save_checkpoint(
        folder / "checkpoints",
        0,
        model=model.state_dict(),
        training={},
        texts={
            "config.yaml": dump_config(config.model_copy(update={"run": named})),
            "model.json": (run.checkpoint / "model.json").read_text(encoding="utf-8"),
            "posthoc.json": json.dumps(about, indent=1) + "\n",
        },
    )
    return folder
