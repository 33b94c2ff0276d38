"""Correct a finished run for the long tail without training it again.

    python tools/posthoc.py runs/demo-1 logit-adjust             scores divided by the prior^tau
    python tools/posthoc.py runs/demo-1 tau-norm                 w / ||w||^tau, tau by validation
    python tools/posthoc.py runs/demo-1 crt                      new heads, class-balanced
    python tools/posthoc.py runs/demo-1 lws                      one new scale a class
    python tools/posthoc.py runs/demo-1 tau-norm --tau 1 --split val data.root=ELSEWHERE

A RUN is a run's folder or one checkpoint in it. Prints a split's figures before and after, and
writes both into the run's folder: report_<split>.json and predictions_<split>.npz, as evaluate
does, and report_<split>_<method>.json and predictions_<split>_<method>.npz; but for logit-adjust
the corrected model too, as RUN/posthoc-<method>, a run that evaluate and predict take.

logit-adjust starts from predictions_<split>.npz where it is of this checkpoint and these views.
The others need the features of every view of the split: one pass, as long as evaluating it. They
are kept in the run's folder, and the next method takes seconds; of a run on saved features they
are its files, read each time. crt and lws learn from features of
plain centre clips, where the paper (Kang et al., ICLR 2020) has augmented clips; tau is chosen on
such features too. Any key of the run's configuration can be given anew as section.key=value.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.table import Table

from cdb_video import experiments
from cdb_video.build_clips import choose_device
from cdb_video.command_line import run_tool
from cdb_video.distributed import ONE_PROCESS, leave_cores_to_workers
from cdb_video.experiments.posthoc import Correction, correct
from cdb_video.progress import plain_console

FIGURES = {
    "mean_class_accuracy": "mean class accuracy",
    "top1": "top-1",
    "many": "many-shot",
    "medium": "medium-shot",
    "few": "few-shot",
    "worst_fifth": "worst fifth",
}


def main() -> None:
    """Parse, load, correct, print."""
    arguments = parse_arguments()
    overrides = list(arguments.overrides)
    if arguments.device is not None:
        overrides.append(f"train.device={arguments.device}")
    run = experiments.load_run(arguments.run, overrides=overrides)
    run.model.to(choose_device(run.config, ONE_PROCESS))
    leave_cores_to_workers(run.config.data.num_workers)
    found = correct(
        run, arguments.method, role=arguments.split, tau=arguments.tau, seed=arguments.seed
    )
    print_correction(found)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("method", choices=["logit-adjust", "tau-norm", "crt", "lws"])
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--tau", type=float, help="default: logit-adjust 1, tau-norm by val")
    parser.add_argument("--split", choices=["train", "val", "test"], default="test")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--seed", type=int, default=0, help="of crt and lws")
    arguments = parser.parse_intermixed_args()
    if arguments.tau is not None and arguments.method in ("crt", "lws"):
        parser.error(f"--tau: {arguments.method} has none")
    return arguments


def print_correction(found: Correction) -> None:
    """A row a figure, two columns a head; then what was written."""
    settings = found.after["posthoc"]
    before, after = found.before, found.after
    table = Table(
        title=f"{before['run']} before and after {settings['method']}, {before['split']} split "
        f"({before['annotation_split']}): {before['num_videos']} videos, {before['views']} views",
        caption="percent; mean figures are over the classes that the split has",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("")
    for head in before["heads"]:
        table.add_column(head, justify="right")
        table.add_column("after", justify="right")
    for name, shown in FIGURES.items():
        cells = [
            percent(report["heads"][head][name])
            for head in before["heads"]
            for report in (before, after)
        ]
        table.add_row(shown, *cells)
    plain_console().print(table)
    print(", ".join(f"{key}: {value}" for key, value in settings.items()))
    if found.model_folder is not None:
        print(f"corrected run: {found.model_folder}")


def percent(value: Any) -> str:
    """A fraction, or a shot group with its accuracy."""
    fraction = value["accuracy"] if isinstance(value, dict) else value
    return "-" if fraction is None else f"{100 * fraction:.1f}"


if __name__ == "__main__":
    run_tool(main)
