"""A finished run, corrected for the long tail without training it again, before and after."""

from __future__ import annotations

import copy
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cdb_video.build import split_fed
from cdb_video.build_data import read_role
from cdb_video.config_file import dump_config, load_config
from cdb_video.datasets.annotations import Split
from cdb_video.errors import ConfigError
from cdb_video.evaluation import posthoc
from cdb_video.evaluation.predictions import Predictions, save_predictions
from cdb_video.evaluation.report import make_report, save_report
from cdb_video.experiments.features import plain_features
from cdb_video.experiments.runs import LoadedRun, score
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

    Both scores are made here, by the run's configuration, and not taken from files of the run.
    `report_<role>_<method>.json` and `predictions_<role>_<method>.npz` go into the run's folder;
    of the methods that make new heads `posthoc-<method>/` as well, a run that evaluate and predict
    take.

    Args:
        run: on its device.
        method: see `cdb_video.evaluation.posthoc`.
        role: the split to score: train, val or test.
        tau: of logit-adjust, None: 1; of tau-norm, None: the best on the validation split, by head.
        seed: of crt and lws.

    Raises:
        ConfigError: heads that are not linear, or a split that the run does not have.

    """
    split = read_role(run.config, role, vocabularies=run.vocabularies)
    settings: dict[str, Any] = {"method": method}
    folder = None
    if method in NEW_HEADS:
        corrected, chosen = _with_new_heads(run, method, tau=tau, seed=seed)
        settings |= chosen
        folder = _save(corrected, run, method, settings)
        before = score(run, split, description="before").predictions
        after = score(corrected, split, description="after").predictions
    else:
        settings["tau"] = 1.0 if tau is None else tau
        before = score(run, split, description=f"evaluating {role}").predictions
        after = posthoc.adjust_predictions(before, run.classes, tau=settings["tau"])
    report = _report(run, after, split, role, method) | {"posthoc": settings}
    if settings.get("chosen_on") == role:
        report["split_fed"] = [*report["split_fed"], "tau"]
    save_predictions(run.folder / f"predictions_{role}_{method}.npz", after, run.classes)
    save_report(run.folder / f"report_{role}_{method}.json", report)
    return Correction(_report(run, before, split, role), report, folder)


def _with_new_heads(
    run: LoadedRun, method: Method, *, tau: float | None, seed: int
) -> tuple[LoadedRun, dict[str, Any]]:
    """The run with other heads, and the settings that made them."""
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
                copy.deepcopy(head).cpu(), features.features, features.labels[name], seed=seed
            )
            for name, head in heads.items()
        }
    model = copy.deepcopy(run.model)
    for name, head in new.items():
        model.heads[name].load_state_dict(head.state_dict())
    return dataclasses.replace(run, model=model), settings


def _choose_taus(run: LoadedRun) -> dict[str, Any]:
    if run.config.data.val_split is None:
        raise ConfigError(
            "data.val_split is null: tau is chosen on the validation split and never on another; "
            "give --tau"
        )
    features = plain_features(run, "val")
    taus = {
        name: posthoc.choose_tau(
            copy.deepcopy(head).cpu(), features.features, features.labels[name]
        )
        for name, head in posthoc.linear_heads(run.model).items()
    }
    return {"tau": taus, "chosen_on": "val"}


def _name(run: LoadedRun, method: Method | None = None) -> str:
    name = run.config.run.name or run.folder.name
    return f"{name}-{method}" if method else name


def _report(
    run: LoadedRun, predictions: Predictions, split: Split, role: str, method: Method | None = None
) -> dict[str, Any]:
    views = run.config.views
    return make_report(
        predictions,
        run.classes,
        run=_name(run, method),
        split=role,
        annotation_split=split.name,
        views=f"{views.num_clips}x{views.num_crops}",
        split_fed=split_fed(run.config, role),
    )


def _save(corrected: LoadedRun, run: LoadedRun, method: Method, settings: dict[str, Any]) -> Path:
    """A run's folder with one checkpoint, the corrected one."""
    folder = run.folder / f"posthoc-{method}"
    about = {"checkpoint": run.checkpoint.name, **settings}
    # As it was trained: what was given anew for this call is no part of the run.
    config = load_config(run.checkpoint / "config.yaml")
    named = config.run.model_copy(update={"name": _name(run, method)})
    save_checkpoint(
        folder / "checkpoints",
        0,
        model=corrected.model.state_dict(),
        training={},
        texts={
            "config.yaml": dump_config(config.model_copy(update={"run": named})),
            "model.json": (run.checkpoint / "model.json").read_text(encoding="utf-8"),
            "posthoc.json": json.dumps(about, indent=1) + "\n",
        },
    )
    return folder
