"""Measure what the documents claim about speed: arms in turn, in one process, and their ratios.

    python tools/benchmark.py loss                        a training step with CDB, cross entropy
    OMP_NUM_THREADS=1 python tools/benchmark.py loss --device cpu --json loss.json
    python tools/benchmark.py loader                      clips from files, beside other loaders
    python tools/benchmark.py step                        a step beside plain ones and compiled
    python tools/benchmark.py epoch --prepare             the files of the next two, for a GPU
    python tools/benchmark.py epoch                       an epoch by part; the official code's
    python tools/benchmark.py evaluate                    evaluation beside loading and forward

On a machine that computes something else, one thread is steadier than several (docs/log.md).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks import epoch, evaluate, loader, loss, step
from benchmarks.loader_table import print_loader_report
from benchmarks.report import print_report
from benchmarks.some_videos import prepare
from benchmarks.step_table import print_arms_report

from cdb_video.command_line import new_file, positive, run_tool
from cdb_video.config import DataConfig


def main() -> None:
    """Parse, measure, print."""
    options = vars(parse_arguments())
    if options.pop("prepare", False):
        prepare(options["cache"])
        return
    measure, show, file = (options.pop(name) for name in ("measure", "show", "json"))
    report = measure(**options)
    show(report)
    if file:
        file.write_text(json.dumps(report, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    """The command line: a subcommand a benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    benchmarks = parser.add_subparsers(metavar="BENCHMARK", required=True)
    command = benchmarks.add_parser("loss", help=loss.__doc__)
    command.set_defaults(measure=loss.measure, show=print_report)
    command.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add_common(command, repeats=200)
    command = benchmarks.add_parser("step", help=step.__doc__)
    command.set_defaults(measure=step.measure, show=print_arms_report)
    command.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    command.add_argument(
        "--batch-size", type=positive, metavar="N", help="clips; default 8 on a CPU, 32 on a GPU"
    )
    add_common(command, repeats=30)
    for name, module, repeats in (("epoch", epoch, 8), ("evaluate", evaluate, 8)):
        command = benchmarks.add_parser(name, help=module.__doc__)
        command.set_defaults(measure=module.measure, show=print_arms_report)
        command.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
        command.add_argument(
            "--cache",
            type=lambda text: Path(text).expanduser(),
            default=Path(DataConfig.model_fields["cache_dir"].default).expanduser(),
            metavar="DIR",
            help="where rendered clips are kept; default: data.cache_dir's",
        )
        command.add_argument(
            "--prepare",
            action="store_true",
            help="only make the files that both benchmarks read on a GPU; needs none",
        )
        add_common(command, repeats=repeats)
    command = benchmarks.add_parser("loader", help=loader.__doc__)
    command.set_defaults(measure=loader.measure, show=print_loader_report)
    add_clip_options(command)
    add_common(command, repeats=10)
    return parser.parse_args()


def add_clip_options(command: argparse.ArgumentParser) -> None:
    """What is loaded, and by how many processes."""
    add = command.add_argument
    folder = Path(DataConfig.model_fields["cache_dir"].default) / "benchmark_clips"
    add(
        "--clips",
        type=lambda text: Path(text).expanduser(),
        default=folder.expanduser(),
        metavar="DIR",
        help=f"where the made-up clips are kept, rendered by the first run; default {folder}",
    )
    add(
        "--annotations",
        type=Path,
        metavar="DIR",
        help="folder of EGTEA's lists, for the lengths of clips; default: stored quantiles of them",
    )
    add("--num-clips", type=positive, default=48, metavar="N", help="files; default 48")
    add("--frame-size", type=frame_size, default=(640, 480), metavar="WxH", help="default 640x480")
    add("--crop-size", type=positive, default=224, metavar="PIXELS", help="default 224")
    add(
        "--gop",
        type=positive,
        default=250,
        metavar="FRAMES",
        help="from one key frame to the next at most; default 250, as x264's",
    )
    add("--workers", type=positive, default=2, metavar="N", help="of every loader; default 2")


def frame_size(text: str) -> tuple[int, int]:
    """(width, height) of WxH, both even, for argparse."""
    width, _, height = text.partition("x")
    size = int(width), int(height)
    if min(size) < 2 or size[0] % 2 or size[1] % 2:
        raise argparse.ArgumentTypeError(f"both must be even and above 0, got {text}")
    return size


def add_common(command: argparse.ArgumentParser, *, repeats: int) -> None:
    """The options that every benchmark takes."""
    command.add_argument("--json", type=new_file, metavar="FILE")
    command.add_argument(
        "--repeats", type=positive, default=repeats, help=f"rounds; default {repeats}"
    )


if __name__ == "__main__":
    run_tool(main)
