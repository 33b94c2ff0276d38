"""Predict what happens in videos: the top classes of each head, as evaluation scores them.

    python tools/predict.py runs/demo-1 video.mp4
    python tools/predict.py runs/demo-1 videos/ --top 3 --json out.json --csv out.csv
    python tools/predict.py runs/demo-1 frames/ --fps 24

RUN is a run's folder or one checkpoint in it; class names come from the checkpoint. A VIDEO is a
file, or a folder whose videos are all taken; with --fps it is a folder of frames.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cdb_video import experiments
from cdb_video.build_data import choose_device
from cdb_video.command_line import positive, run_tool
from cdb_video.datasets.folder import VIDEO_SUFFIXES
from cdb_video.distributed import ONE_PROCESS
from cdb_video.errors import DataError
from cdb_video.evaluation.predict import Ranking
from cdb_video.progress import Progress

Predicted = dict[str, dict[str, Ranking]]
"""Video -> head -> ranking."""


def main() -> None:
    """Parse, load, predict, print."""
    arguments = parse_arguments()
    overrides = [f"train.device={arguments.device}"] if arguments.device else []
    run = experiments.load_run(arguments.run, overrides=overrides)
    run.model.to(choose_device(run.config, ONE_PROCESS))
    videos = find_videos(arguments.videos) if arguments.fps is None else arguments.videos
    predicted: Predicted = {}
    with Progress("predicting", total=len(videos), unit="videos") as progress:
        for video in videos:
            predicted[str(video)] = run.predict(video, top=arguments.top, fps=arguments.fps)
            progress.advance()
    print_table(predicted)
    if arguments.json:
        arguments.json.write_text(json.dumps(as_json(predicted), indent=1, ensure_ascii=False))
    if arguments.csv:
        write_csv(arguments.csv, predicted)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("videos", nargs="+", type=Path, metavar="VIDEO")
    parser.add_argument("--top", type=positive, default=5, help="classes a head; default 5")
    parser.add_argument("--fps", type=float, help="of folders of frames")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--csv", type=Path, metavar="FILE")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"])
    return parser.parse_args()


def find_videos(paths: list[Path]) -> list[Path]:
    """The files, and the videos in the folders, in the order given."""
    videos: list[Path] = []
    for path in paths:
        if not path.is_dir():
            videos.append(path)
            continue
        inside = [file for file in path.rglob("*") if file.suffix.lower() in VIDEO_SUFFIXES]
        if not inside:
            raise DataError(
                f"{path}: no video in this folder ({', '.join(sorted(VIDEO_SUFFIXES))})"
            )
        videos += sorted(inside)
    return videos


def print_table(predicted: Predicted) -> None:
    """A row a class, grouped by video."""
    table = Table()
    heads = list(next(iter(predicted.values())))
    table.add_column("video", overflow="fold")
    for head in heads:
        table.add_column(head)
        table.add_column("score", justify="right")
    for video, rankings in predicted.items():
        rows = max(len(ranking) for ranking in rankings.values())
        for i in range(rows):
            cells = [Path(video).name if i == 0 else ""]
            for head in heads:
                name, score = rankings[head][i] if i < len(rankings[head]) else ("", None)
                cells += [name, "" if score is None else f"{score:.3f}"]
            table.add_row(*cells, end_section=i + 1 == rows)
    Console().print(table)


def as_json(predicted: Predicted) -> list[dict[str, object]]:
    """[{"video": ..., "verb": [{"class": ..., "score": ...}, ...], ...}, ...]."""
    return [
        {
            "video": video,
            **{
                head: [{"class": name, "score": score} for name, score in ranking]
                for head, ranking in rankings.items()
            },
        }
        for video, rankings in predicted.items()
    ]


def write_csv(path: Path, predicted: Predicted) -> None:
    """video, head, rank, class, score: a row a class."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "head", "rank", "class", "score"])
        for video, rankings in predicted.items():
            for head, ranking in rankings.items():
                for rank, (name, score) in enumerate(ranking, start=1):
                    writer.writerow([video, head, rank, name, score])


if __name__ == "__main__":
    run_tool(main)
