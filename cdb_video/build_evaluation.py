"""The evaluation side of `build`: what measures a model in training, and the files of a report."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cdb_video import distributed
from cdb_video.build_clips import build_evaluation_loader, file_opener
from cdb_video.build_data import Data
from cdb_video.config import Config
from cdb_video.counts import ClassCounts
from cdb_video.datasets.annotations import UNLABELLED, Split
from cdb_video.distributed import Ranks
from cdb_video.evaluation.evaluate import EvalReport, evaluate, to_the_end
from cdb_video.evaluation.features import extract_features
from cdb_video.evaluation.predictions import HeadClasses, save_predictions
from cdb_video.evaluation.report import make_report, save_report
from cdb_video.evaluation.report_page import is_due, write_report_page
from cdb_video.models.recognizer import Recognizer
from cdb_video.precision import Precision
from cdb_video.training.crossfit import crossfit_counts, take_clips
from cdb_video.training.run_folder import RunFolder
from cdb_video.training.run_log import RunLog
from cdb_video.training.trainer import DifficultyPass, Validate


def build_validation(
    config: Config,
    data: Data,
    device: torch.device,
    precision: Precision,
    ranks: Ranks,
    run: RunFolder | None,
    log: RunLog,
    *,
    quiet: bool,
) -> Validate | None:
    """What measures a model in training, and writes the report; None without the split."""
    if data.val is None:
        return None
    split = data.val
    loader = build_evaluation_loader(config, split, ranks=ranks, memory=data.memory)

    def validate(
        model: Recognizer, last: bool = False, keep_going: Callable[[int], bool] = to_the_end
    ) -> EvalReport:
        report = evaluate(
            model,
            loader,
            device=device,
            precision=precision,
            micro_batch_size=config.train.micro_batch_size,
            description="validation",
            quiet=quiet or not ranks.is_main,
            keep_going=keep_going,
        )
        if run:
            write_report(
                run.path,
                report,
                config=config,
                classes=data.classes,
                split=split,
                role="val",
                log=log,
                last=last,
                # Nobody watches the cells of a comparison: their pages are written at the end.
                live=not quiet,
            )
        return report

    return validate


def build_crossfit(
    config: Config, data: Data, device: torch.device, precision: Precision, ranks: Ranks
) -> Callable[[Recognizer], dict[str, ClassCounts]] | None:
    """Model -> counts of training clips; None where difficulty does not come from `crossfit`.

    Of saved features and of a frozen backbone they are measured once.
    """
    if not config.uses_difficulty or config.loss.difficulty.source != "crossfit":
        return None
    seed = config.run.seed
    taken = set().union(*_some_of_each_class(config, data.train).values())
    chosen = replace(data.train, records=tuple(data.train.records[i] for i in sorted(taken)))
    loader = build_evaluation_loader(config, chosen, ranks=ranks, memory=data.memory)
    recordings = {record.id: record.recording for record in chosen.records}
    # Features that never change have one answer, which a resumed run finds again.
    sees_the_same = config.model.freeze_backbone or config.data.format == "features"
    kept: dict[str, ClassCounts] = {}

    def measure(model: Recognizer) -> dict[str, ClassCounts]:
        if kept:
            return kept
        seen = extract_features(
            model,
            loader,
            device=device,
            precision=precision,
            micro_batch_size=config.train.micro_batch_size,
        )
        fitted = None
        if ranks.is_main:  # and not on every rank, whose last bits might differ
            fitted = {
                head: crossfit_counts(
                    seen.features,
                    seen.labels[head],
                    num_classes=num_classes,
                    groups=[recordings[name] for name in seen.ids],
                    seed=seed,
                    natural_counts=data.train.class_counts(head),
                )
                for head, num_classes in data.train.num_classes.items()
            }
        result: dict[str, ClassCounts] | None = distributed.broadcast_object(fitted)
        assert result is not None  # noqa: S101 - rank 0 has it
        if sees_the_same:
            kept.update(result)
        return result

    return measure


def build_difficulty_pass(
    config: Config, data: Data, device: torch.device, precision: Precision, ranks: Ranks
) -> DifficultyPass | None:
    """Counts of at most `max_clips_per_class` validation clips of each class.

    For the epochs between two validations: a class's accuracy over a random part of its clips is
    that over all of them, with more noise. None where difficulty is not measured so.
    """
    if not config.measures_between_validations or data.val is None:
        return None
    taken = _some_of_each_class(config, data.val)
    # A clip is labelled for the heads that drew it: the clips of rare nouns, which that head all
    # draws, would else be too large a part of their verbs' clips.
    chosen = [
        replace(
            record,
            labels={
                head: record.labels[head] if i in drawn else UNLABELLED
                for head, drawn in taken.items()
            },
        )
        for i, record in enumerate(data.val.records)
        if any(i in drawn for drawn in taken.values())
    ]
    split = replace(data.val, records=tuple(chosen))
    loader = build_evaluation_loader(config, split, ranks=ranks, memory=data.memory)

    def measure(model: Recognizer, keep_going: Callable[[int], bool]) -> dict[str, ClassCounts]:
        return evaluate(
            model,
            loader,
            device=device,
            precision=precision,
            micro_batch_size=config.train.micro_batch_size,
            keep_going=keep_going,
        ).counts

    return measure


def _some_of_each_class(config: Config, split: Split) -> dict[str, set[int]]:
    """Head -> indices of at most `max_clips_per_class` random clips of each of its classes."""
    most = config.loss.difficulty.max_clips_per_class
    return {
        head: set(take_clips(split.labels(head), most, seed=config.run.seed).tolist())
        for head in split.heads
    }


def write_report(
    folder: Path,
    report: EvalReport,
    *,
    config: Config,
    classes: Mapping[str, HeadClasses],
    split: Split,
    role: str,
    log: RunLog | None = None,
    last: bool = False,
    live: bool = True,
    subsets: Mapping[str, Collection[str]] | None = None,
) -> dict[str, Any]:
    """Write `report_<role>.json`, its page and `predictions_<role>.npz` into a run's folder.

    Args:
        folder: the run's.
        report: what an evaluation found.
        config: of the run.
        classes: head -> names and training counts.
        split: what was evaluated.
        role: its role: train, val or test.
        log: of the training that goes on: it is shown the figures, and the pictures of the page,
            which has no thumbnails and waits for its turn; None: training is done.
        last: of its validations: the page waits no longer.
        live: write pages while training goes on.
        subsets: name -> ids of the videos to give figures of apart.

    """
    folder.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {
        "run": config.run.name or folder.name,
        "split": role,
        "annotation_split": split.name,
        "views": _views(config, report),
        "split_fed": split_fed(config, role),
        "subsets": {name: sorted(ids) for name, ids in (subsets or {}).items()},
        "skipped": report.skipped,
    }
    content = make_report(report.predictions, classes, **about)
    predictions = replace(report.predictions, about=about)
    save_predictions(folder / f"predictions_{role}.npz", predictions, classes)
    save_report(folder / f"report_{role}.json", content)
    if log:
        log.show_report(content)
    if log is None or (live and (last or is_due(folder / f"report_{role}.html"))):
        write_report_page(
            folder,
            content,
            report.predictions,
            classes,
            records=() if log else split.records,
            opener=file_opener(config, in_child=True),
            on_figures=partial(log.show_figures, role) if log else None,
            live=log is not None,
        )
    return content


def _views(config: Config, report: EvalReport) -> str:
    """Clips x crops; of saved features the number of views in their file."""
    if config.data.format == "features":
        return str(report.num_views)
    return f"{config.views.num_clips}x{config.views.num_crops}"


def split_fed(config: Config, role: str) -> list[str]:
    """What else a split was used for in the run."""
    fed = {"train": ["training"], "val": ["selection"], "test": []}[role]
    if config.uses_difficulty and config.loss.difficulty.source == role:
        fed = [*fed, "difficulty"]
    return fed
