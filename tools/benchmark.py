"""Measure what the documents claim about speed: arms in turn, in one process, and their ratios.

    python tools/benchmark.py loss                        a training step with CDB, cross entropy
    OMP_NUM_THREADS=1 python tools/benchmark.py loss --device cpu --json loss.json

On a machine that computes something else, one thread is steadier than several (docs/log.md).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks import loss
from benchmarks.report import print_report

from cdb_video.command_line import positive, run_tool


def main() -> None:
    """Parse, measure, print."""
    arguments = parse_arguments()
    report = arguments.measure(device=arguments.device, repeats=arguments.repeats)
    print_report(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    """The command line: a subcommand a benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    benchmarks = parser.add_subparsers(metavar="BENCHMARK", required=True)
    command = benchmarks.add_parser("loss", help=loss.__doc__)
    command.set_defaults(measure=loss.measure)
    add_common(command, repeats=200)
    return parser.parse_args()


def add_common(command: argparse.ArgumentParser, *, repeats: int) -> None:
    """The options that every benchmark takes."""
    command.add_argument("--json", type=new_file, metavar="FILE")
    command.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    command.add_argument(
        "--repeats", type=positive, default=repeats, help=f"rounds; default {repeats}"
    )


def new_file(text: str) -> Path:
    """A path in a folder that is there, for argparse: minutes of measuring are not lost."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path.parent}: no such folder")
    return path


if __name__ == "__main__":
    run_tool(main)
