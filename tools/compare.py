"""Compare losses, or anything else, on one configuration: paired seeds, intervals, a verdict.

    python tools/compare.py configs/demo.yaml --losses cross_entropy,balanced_softmax,cdb --seeds 5
    python tools/compare.py CONFIG.yaml --losses cross_entropy \\
        --arm cdb_bs='loss.name=cdb loss.base=balanced_softmax' data.root=my_videos

Every arm of a seed starts from the same weights and sees the same clips in the same order. Where an
arm is fed by held-out clips, cross entropy that trains on those clips too is added as a control. A
finished cell is not run again: start the command again to go on, or on another GPU to share the
work. The figures are in output_dir/compare-CONFIG: compare.html to look at, .json and .csv.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from cdb_video.build_clips import choose_device
from cdb_video.command_line import positive, run_tool
from cdb_video.distributed import Ranks, leave_cores_to_workers, process_group
from cdb_video.experiments.compare import Plan, finished, make_plan, run_cells
from cdb_video.experiments.comparison import print_comparison, write_comparison


def main() -> None:
    """Parse, run the cells, write, print."""
    arguments = parse_arguments()
    ranks = Ranks.from_environment()
    plan = make_plan(
        arguments.config,
        arguments.overrides,
        losses=arguments.losses,
        arms=arguments.arm,
        num_seeds=arguments.seeds,
        name=arguments.name,
    )
    config = next(iter(plan.configs.values()))
    leave_cores_to_workers(config.data.num_workers)
    try:
        with process_group(ranks, choose_device(config, ranks)):
            for line in run_cells(plan, ranks=ranks):
                if ranks.is_main:
                    print(line, flush=True)
    finally:  # also of what was done until Ctrl-C
        if ranks.is_main:
            show(plan)


def parse_arguments() -> argparse.Namespace:
    """The command line; words with an equals sign are overrides for every arm."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--losses", type=comma_separated, default=[], metavar="NAME,NAME")
    parser.add_argument("--arm", action="append", default=[], metavar="NAME='section.key=value'")
    parser.add_argument("--seeds", type=positive, default=5, help="how many; default 5")
    parser.add_argument("--name", help="of the comparison; default: compare- and the config's")
    return parser.parse_intermixed_args()


def comma_separated(text: str) -> list[str]:
    """`a,b` as a list, for argparse."""
    return [word.strip() for word in text.split(",") if word.strip()]


def show(plan: Plan) -> None:
    """Write the files of what is finished, and print its tables."""
    comparison = finished(plan)
    missing = len(plan.configs) - len(comparison.cells) - len(comparison.failures)
    if comparison.cells:
        about = {**plan.about, "threads": torch.get_num_threads()}
        write_comparison(plan.folder, comparison, about=about)
        print_comparison(comparison)
        print(f"{plan.folder / 'compare.html'}")
    if missing:
        print(f"{missing} of {len(plan.configs)} cells are not finished; start again to go on")


if __name__ == "__main__":
    run_tool(main)
