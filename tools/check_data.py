"""Look a data set over before training on it: files, segments, splits, the tail, decoding speed.

    python tools/check_data.py configs/finetune.yaml data.root=my_videos
    python tools/check_data.py my.yaml --full --workers 8        decodes every frame
    python tools/check_data.py my.yaml --json doctor.json --plot counts.png

Exit status: 0 with nothing or only notes, 1 with errors, 2 if it could not run. An error is wrong
or unreadable; a note may be meant so. Any key of the configuration can be given anew as
section.key=value.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cdb_video.build_clips import clip_sampler, file_opener
from cdb_video.build_data import data_root, read_role
from cdb_video.command_line import new_file, positive, run_tool
from cdb_video.config import Config
from cdb_video.config_file import load_config
from cdb_video.datasets.annotations import Split, Vocabulary
from cdb_video.errors import ConfigError, DataError, UnknownSplitError
from cdb_video.prepare.check import check_data
from cdb_video.prepare.count_plot import plot_counts
from cdb_video.prepare.doctor_report import make_report, print_report, save_report
from cdb_video.prepare.files import FileCheck
from cdb_video.prepare.findings import Finding, in_order
from cdb_video.prepare.splits import SUBJECT_COLUMNS


def main() -> int:
    """Parse, read, check, print; the exit status."""
    arguments = parse_arguments()
    config = load_config(arguments.config, arguments.overrides)
    if config.data.format == "features":
        raise ConfigError("data.format=features: videos are checked here, and there are none")
    splits, refused = read_splits(config)
    column = config.data.hold_out_column
    diagnosis = check_data(
        splits,
        FileCheck(
            clip_sampler(config),
            opener=file_opener(config),
            untrusted=config.data.untrusted,
            full=arguments.full,
        ),
        subject_columns=(column,) if column else SUBJECT_COLUMNS,
        num_workers=arguments.workers,
        timeout_s=arguments.timeout,
    )
    diagnosis = replace(diagnosis, findings=in_order([*refused, *diagnosis.findings]))
    report = make_report(
        diagnosis, num_workers=config.data.num_workers, in_memory=config.data.in_memory
    )
    print_report(report, root=data_root(config))
    if arguments.json:
        save_report(arguments.json, report)
    if arguments.plot and "train" in splits:
        plot_counts(arguments.plot, splits)
    return 1 if report["errors"] else 0


def read_splits(config: Config) -> tuple[dict[str, Split], list[Finding]]:
    """Role -> split, and what the readers refuse; DataError if that is every split."""
    splits: dict[str, Split] = {}
    findings: list[Finding] = []
    vocabularies: Mapping[str, Vocabulary] | None = None
    for role in ("train", "val", "test"):
        name = getattr(config.data, f"{role}_split")
        if name is None:
            continue
        try:
            splits[role] = read_role(
                config,
                role,
                vocabularies=vocabularies,  # None: the data's own
                check_files=False,
            )
        except UnknownSplitError:
            if name != "auto":
                raise
        except DataError as error:
            findings.append(Finding("annotations", role, f"data.{role}_split={name}", str(error)))
        else:
            vocabularies = vocabularies or splits[role].vocabularies
    if not splits:
        raise DataError(findings[0].message)
    return splits, findings


def parse_arguments() -> argparse.Namespace:
    """The command line; words with an equals sign are overrides."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--full", action="store_true", help="decode every frame of each segment")
    parser.add_argument("--json", type=new_file, metavar="FILE")
    parser.add_argument("--plot", type=new_file, metavar="FILE.png", help="class counts")
    parser.add_argument(
        "--workers", type=positive, default=2, help="processes that decode; default 2"
    )
    parser.add_argument(
        "--timeout",
        type=positive,
        default=60,
        metavar="S",
        help="seconds without a frame after which a file is given up; default 60",
    )
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    run_tool(main)
