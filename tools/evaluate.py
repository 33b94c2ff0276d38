"""Evaluate finished runs on a split: the table, report_<split>.json and predictions_<split>.npz.

    python tools/evaluate.py runs/demo-1                        the test split, the best checkpoint
    python tools/evaluate.py runs/demo-1 --split val --views 10x3
    python tools/evaluate.py runs/split1 runs/split2 runs/split3      mean and deviation over runs
    torchrun --standalone --nproc_per_node=4 tools/evaluate.py runs/demo-1 data.root=ELSEWHERE
    python tools/evaluate.py --predictions runs/demo-1/predictions_test.npz --logit-adjust 1
    python tools/evaluate.py runs/demo-1 --features features/   what the backbone sees, to train on
    python tools/evaluate.py configs/RECIPE.yaml --features features/ --views 3x1      untrained
    python tools/evaluate.py --predictions runs/e/predictions_test.npz --epic-submission test.json
    python tools/evaluate.py runs/demo-1 --subset subject --subset ids.txt      or --predictions

A RUN is a run's folder or one checkpoint in it; with --features a recipe too, whose backbone then
has the weights it starts from. Any key of the run's configuration can be given anew as
section.key=value.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from cdb_video import experiments
from cdb_video.build_clips import choose_device
from cdb_video.build_evaluation import write_report
from cdb_video.command_line import run_tool
from cdb_video.config import Config
from cdb_video.config_file import load_config
from cdb_video.datasets.annotations import Split
from cdb_video.distributed import Ranks, leave_cores_to_workers, process_group
from cdb_video.errors import ConfigError, UnknownSplitError
from cdb_video.evaluation.epic_submission import write_epic_submission
from cdb_video.evaluation.posthoc import adjust_predictions
from cdb_video.evaluation.predictions import load_predictions, metadata_of
from cdb_video.evaluation.report import make_report, print_report, save_report
from cdb_video.evaluation.report_mean import mean_report, print_mean, refuse_other_classes
from cdb_video.evaluation.subsets import find_subsets
from cdb_video.experiments.features import write_features
from cdb_video.experiments.untrained import untrained_run
from cdb_video.models.recognizer import require_tokens

ROLES = ("train", "val", "test")


def main() -> None:
    """Parse, load, score, print."""
    arguments = parse_arguments()
    if arguments.predictions is not None:
        score_file(arguments)
        return
    ranks = Ranks.from_environment()
    overrides = [*arguments.overrides, *view_overrides(arguments.views)]
    if arguments.device is not None:
        overrides.append(f"train.device={arguments.device}")
    if arguments.precision is not None:
        overrides.append(f"train.precision={arguments.precision}")
    if arguments.runs[0].suffix == ".yaml":
        save_recipe_features(arguments, overrides, ranks)
        return
    loaded = [experiments.load_run(run, overrides=overrides) for run in arguments.runs]
    refuse_other_classes(
        {str(path): run.classes for path, run in zip(arguments.runs, loaded, strict=True)}
    )
    splits = [run.read_split(arguments.split, check_files=ranks.is_main) for run in loaded]
    if arguments.tokens:
        require_tokens(loaded[0].model.backbone)
    subsets = [subsets_of(split, arguments.subset) for split in splits]  # before hours of scoring
    device = choose_device(loaded[0].config, ranks)
    leave_cores_to_workers(loaded[0].config.data.num_workers)
    timeout = timedelta(seconds=loaded[0].config.train.rank_timeout_s)
    with process_group(ranks, device, timeout=timeout):
        experiments.refuse_different_checkpoints(loaded)
        reports = []
        for run, split, chosen in zip(loaded, splits, subsets, strict=True):
            run.model.to(device)
            reports.append(
                evaluate_run(run, split, role=arguments.split, ranks=ranks, subsets=chosen)
            )
            if arguments.features is not None:
                save_all_features(run, splits_of(run, arguments), arguments, ranks)
    if ranks.is_main:
        summarize(reports, arguments.json)


def save_recipe_features(
    arguments: argparse.Namespace, overrides: Sequence[str], ranks: Ranks
) -> None:
    """Features of a recipe's splits by the weights that it starts from; nothing is scored."""
    config = load_config(arguments.runs[0], overrides)
    device = choose_device(config, ranks)
    leave_cores_to_workers(config.data.num_workers)
    with process_group(ranks, device):
        run, data = untrained_run(
            arguments.runs[0], overrides=overrides, device=device, quiet=not ranks.is_main
        )
        roles = roles_of(arguments, config)
        if is_folder(arguments.features):
            roles = [role for role in roles if getattr(data, role) is not None]
        save_all_features(run, {role: data.split(role) for role in roles}, arguments, ranks)


def splits_of(run: experiments.LoadedRun, arguments: argparse.Namespace) -> dict[str, Split]:
    """Role -> split, of a run's splits whose features are asked for."""
    found = {}
    for role in roles_of(arguments, run.config):
        # data.test_split=auto: where the data has one.
        with suppress(UnknownSplitError):
            found[role] = run.read_split(role)
    return found


def roles_of(arguments: argparse.Namespace, config: Config) -> list[str]:
    """The splits whose features are asked for."""
    if not is_folder(arguments.features):
        return [arguments.split]
    return [role for role in ROLES if getattr(config.data, f"{role}_split") is not None]


def is_folder(path: Path) -> bool:
    """Whether --features names a folder, for a file a split."""
    return path.suffix != ".npz"


def save_all_features(
    run: experiments.LoadedRun,
    roles: Mapping[str, Split],
    arguments: argparse.Namespace,
    ranks: Ranks,
) -> None:
    """Write and name a features file a split."""
    target = arguments.features
    if is_folder(target):
        target.mkdir(exist_ok=True)
    for role, split in roles.items():
        path = target / f"{role}.npz" if is_folder(target) else target
        write_features(run, split, path, tokens=arguments.tokens, ranks=ranks)
        if ranks.is_main:
            print(f"features: {path}")


def summarize(reports: Sequence[Mapping[str, Any]], path: Path | None) -> None:
    """Print the mean over several runs; write it, or the report of one, to a file."""
    summary = reports[0]
    if len(reports) > 1:
        summary = mean_report(reports)
        print_mean(summary)
    if path is not None:
        save_report(path, summary)


def subsets_of(split: Split, asked: Sequence[str]) -> dict[str, frozenset[str]]:
    """Name -> ids of the subsets of a split that --subset names."""
    ids = [record.id for record in split.records]
    return find_subsets(asked, ids=ids, metadata=metadata_of(split.records))


def evaluate_run(
    run: experiments.LoadedRun,
    split: Split,
    *,
    role: str,
    ranks: Ranks,
    subsets: Mapping[str, frozenset[str]],
) -> dict[str, Any]:
    """Score a split; rank 0 writes, prints and returns its report."""
    report = experiments.score(run, split, description=f"evaluating {role}", ranks=ranks)
    if not ranks.is_main:
        return {}
    content = write_report(
        run.folder,
        report,
        config=run.config,
        classes=run.classes,
        split=split,
        role=role,
        subsets=subsets,
    )
    print_report(content)
    return content


def parse_arguments() -> argparse.Namespace:
    """The command line; words with an equals sign are overrides."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", metavar="RUN")
    parser.add_argument("--split", choices=ROLES, default="test")
    parser.add_argument("--views", metavar="CLIPSxCROPS", help="such as 10x3; default: the run's")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"])
    parser.add_argument(
        "--features",
        type=Path,
        metavar="OUT",
        help="write what the backbone of one RUN sees of every view: OUT.npz of the split, OUT/ of "
        "all splits, as train.npz and so on; one more pass",
    )
    parser.add_argument(
        "--tokens", action="store_true", help="with --features: tokens, in place of pooled features"
    )
    parser.add_argument("--predictions", type=Path, metavar="FILE", help="score a file again")
    parser.add_argument("--logit-adjust", type=float, default=0.0, metavar="TAU")
    parser.add_argument(
        "--subset",
        action="append",
        default=[],
        metavar="NAME|FILE",
        help="figures of some videos apart: a metadata column, column=value, or a file of ids",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the report; of several runs, their mean"
    )
    parser.add_argument(
        "--epic-submission",
        type=Path,
        metavar="FILE",
        help="with --predictions: write the EPIC-KITCHENS-100 challenge's JSON, sls 2, 3, 3",
    )
    arguments = parser.parse_intermixed_args()
    arguments.overrides = [word for word in arguments.runs if "=" in word]
    arguments.runs = [Path(word) for word in arguments.runs if "=" not in word]
    if bool(arguments.runs) == (arguments.predictions is not None):
        parser.error("give one or more RUN folders, or --predictions FILE")
    if arguments.logit_adjust and arguments.predictions is None:
        parser.error("--logit-adjust needs --predictions")
    if arguments.epic_submission is not None and arguments.predictions is None:
        parser.error("--epic-submission needs --predictions")
    recipes = [path for path in arguments.runs if path.suffix == ".yaml"]
    if arguments.features is not None and len(arguments.runs) != 1:
        parser.error("--features: one file is for one RUN")
    if recipes and arguments.features is None:
        parser.error(f"{recipes[0]}: is a recipe, and not a RUN: a recipe goes with --features")
    if arguments.tokens and arguments.features is None:
        parser.error("--tokens needs --features")
    for option in ("features", "epic_submission", "json"):
        path = getattr(arguments, option)
        if path is not None and not path.absolute().parent.is_dir():
            parser.error(f"--{option.replace('_', '-')} {path}: there is no such folder")
    return arguments


def view_overrides(views: str | None) -> list[str]:
    """`10x3` as overrides of the views section."""
    if views is None:
        return []
    match = re.fullmatch(r"(\d+)x(\d+)", views)
    if match is None:
        raise ConfigError(f"--views {views}: must be CLIPSxCROPS, such as 1x1 or 10x3")
    return [f"views.num_clips={match[1]}", f"views.num_crops={match[2]}"]


def score_file(arguments: argparse.Namespace) -> None:
    """Print the tables of a predictions file, as the arguments want it."""
    path, tau = arguments.predictions, arguments.logit_adjust
    predictions, classes = load_predictions(path)
    views = next(iter(predictions.heads.values())).view_scores.shape[1]
    about = {
        # Of a file of an earlier version; else it says itself.
        "run": path.parent.name,
        "split": path.stem.removeprefix("predictions_"),
        "annotation_split": path.name,
        "views": str(views),
        **predictions.about,
    }
    about["subsets"] = about.get("subsets", {}) | find_subsets(
        arguments.subset,
        ids=predictions.ids,
        metadata=predictions.metadata,
        skipped=[id_ for id_, _ in predictions.skipped],
    )
    if tau:
        about["logit_adjust"] = about.get("logit_adjust", 0.0) + tau
        predictions = adjust_predictions(predictions, classes, tau=tau)
    if arguments.epic_submission is not None:
        write_epic_submission(predictions, classes, arguments.epic_submission)
    report = make_report(predictions, classes, **about)
    print_report(report)
    summarize([report], arguments.json)


if __name__ == "__main__":
    run_tool(main)
