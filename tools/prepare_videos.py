"""Re-encode a data set's videos for training: smaller, seen sooner, the same frames and times.

    python tools/prepare_videos.py EGTEA EGTEA-256
    python tools/prepare_videos.py my_videos /scratch/my_videos --short-side 320 --workers 16
    python tools/prepare_videos.py my_videos /scratch/my_videos --json prepared.json

Every video below IN_DIR is written to the same place below OUT_DIR, as H.264 without sound, and
verified. IN_DIR is only read. Interrupted, or with new files in IN_DIR, the same command goes on:
what is done stays. Names ending in .mp4, .mov or .m4v are kept, others then end in .mp4.

Exit status: 0 with every file made, 1 if some could not be (each is named), 2 if it could not run.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from cdb_video.command_line import new_file, positive, run_tool
from cdb_video.config import DataConfig
from cdb_video.prepare.ingest import prepare_videos
from cdb_video.prepare.ingest_report import (
    make_ingest_report,
    print_ingest_report,
    save_ingest_report,
)
from cdb_video.prepare.reencode import Settings

PRESETS = ("superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")


def main() -> int:
    """Parse, prepare, print; the exit status."""
    arguments = parse_arguments()
    settings = Settings(
        short_side=arguments.short_side,
        gop=arguments.gop,
        crf=arguments.crf,
        preset=arguments.preset,
    )
    ingest = prepare_videos(
        arguments.in_dir,
        arguments.out_dir,
        settings,
        num_workers=arguments.workers,
        timeout_s=arguments.timeout,
        untrusted=arguments.untrusted,
        index_dir=None if arguments.no_index else arguments.cache_dir.expanduser() / "packet_index",
    )
    report = make_ingest_report(
        ingest, settings, in_dir=arguments.in_dir, out_dir=arguments.out_dir
    )
    print_ingest_report(report)
    if arguments.json:
        save_ingest_report(arguments.json, report)
    return 1 if ingest.failures else 0


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("in_dir", type=Path, metavar="IN_DIR")
    add("out_dir", type=Path, metavar="OUT_DIR", help="new, or made by this tool")
    add(
        "--short-side",
        type=even,
        default=256,
        metavar="PIXELS",
        help="of larger videos; smaller ones keep their size; default 256",
    )
    add(
        "--gop",
        type=positive,
        default=32,
        metavar="FRAMES",
        help="from one key frame to the next; 24 to 48 suit dense clips; default 32",
    )
    add("--crf", type=int, choices=range(1, 52), default=23, metavar="1..51", help="default 23")
    add("--preset", choices=PRESETS, default="medium", help="of x264; default medium")
    add(
        "--workers",
        type=positive,
        default=os.cpu_count() or 1,
        metavar="N",
        help="files at a time, one thread each; default: all cores",
    )
    add(
        "--timeout",
        type=positive,
        default=300,
        metavar="S",
        help="seconds without a frame after which a file is given up; default 300",
    )
    add("--json", type=new_file, metavar="FILE")
    cache_dir = DataConfig.model_fields["cache_dir"].default
    add(
        "--cache-dir",
        type=Path,
        default=Path(cache_dir),
        metavar="DIR",
        help=f"data.cache_dir, for the packet indices of the new files; default {cache_dir}",
    )
    add("--no-index", action="store_true", help="leave the packet indices to the first training")
    add(
        "--untrusted",
        action="store_true",
        help="the videos are a stranger's: links out of IN_DIR, rare codecs and enormous frames "
        "are refused, and memory and time are limited (SECURITY.md)",
    )
    return parser.parse_args()


def even(text: str) -> int:
    """An even number of at least 16, for argparse."""
    number = int(text)
    if number < 16 or number % 2:
        raise argparse.ArgumentTypeError(f"must be even and at least 16, got {number}")
    return number


if __name__ == "__main__":
    run_tool(main)
