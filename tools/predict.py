"""Predict what happens in videos: the top classes of each head, as evaluation scores them.

    python tools/predict.py runs/demo-1 video.mp4
    python tools/predict.py runs/demo-1 videos/ 'more/**/*.mp4' --top 3 --json all.json
    python tools/predict.py runs/demo-1 long.mp4 --window 4 --threshold 0.5 --save drawn.mp4
    python tools/predict.py runs/demo-1 frames/ --fps 24

RUN is a run's folder or one checkpoint in it; class names come from the checkpoint. A VIDEO is a
file, a folder whose videos are all taken, or a quoted pattern; with --fps it is a folder of frames.
docs/predict.md describes the files.
"""

from __future__ import annotations

import argparse
import math
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from rich.table import Table

from cdb_video import experiments
from cdb_video.build_clips import choose_device, file_opener
from cdb_video.command_line import positive, run_tool
from cdb_video.datasets.given import find_given
from cdb_video.distributed import ONE_PROCESS
from cdb_video.errors import UserError
from cdb_video.evaluation.predict import segment_record
from cdb_video.evaluation.prediction_files import VideoPrediction, write_csv, write_json
from cdb_video.evaluation.video_writer import save_video
from cdb_video.experiments import LoadedRun
from cdb_video.files import replaced, writing
from cdb_video.progress import Progress, plain_console


def main() -> None:
    """Parse, load, predict, write, print."""
    arguments = parse_arguments()
    overrides = [f"train.device={arguments.device}"] if arguments.device else []
    if arguments.untrusted:
        overrides += ["data.untrusted=true", "data.decoder=pyav"]
    run = experiments.load_run(arguments.run, overrides=overrides)
    run.model.to(choose_device(run.config, ONE_PROCESS))
    videos = find_given(
        arguments.videos,
        frames=arguments.fps is not None,
        images=run.config.data.format == "images",
        untrusted=run.config.data.untrusted,
    )
    check_targets(arguments, videos)
    predictions: list[VideoPrediction] = []
    try:
        predict_all(run, videos, arguments, predictions)
    finally:
        # A video that does not decode, or Ctrl-C, does not lose the others.
        if predictions:
            write_files(predictions, arguments)
            print_tables(predictions)
    if arguments.save:
        draw(run, videos[0], predictions[0], arguments)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("videos", nargs="+", metavar="VIDEO")
    parser.add_argument("--top", type=positive, default=5, help="classes a head; default 5")
    parser.add_argument("--window", type=seconds, metavar="S", help="slide a window of S seconds")
    parser.add_argument(
        "--hop", type=seconds, metavar="S", help="by S seconds; default: half of it"
    )
    parser.add_argument(
        "--threshold",
        type=share,
        default=0.0,
        metavar="P",
        help="no segment scores less; default 0",
    )
    parser.add_argument("--fps", type=seconds, help="of folders of frames, a second")
    parser.add_argument("--json", type=in_a_folder, metavar="FILE")
    parser.add_argument("--csv", type=in_a_folder, metavar="FILE")
    parser.add_argument(
        "--save",
        type=in_a_folder,
        metavar="FILE.mp4",
        help="the video with what is predicted on it",
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"])
    parser.add_argument(
        "--untrusted", action="store_true", help="videos of strangers, as data.untrusted=true"
    )
    arguments = parser.parse_args()
    if arguments.hop and not arguments.window:
        parser.error("--hop needs --window")
    if arguments.threshold and not (arguments.window or arguments.save):
        parser.error("--threshold needs --window or --save")
    if arguments.hop and arguments.hop > arguments.window:
        parser.error(f"--hop {arguments.hop:g}: must be at most --window {arguments.window:g}")
    return arguments


def seconds(text: str) -> float:
    """A number above 0, for argparse."""
    number = float(text)
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return number


def share(text: str) -> float:
    """A number from 0 to 1, for argparse."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, got {text}")
    return number


def in_a_folder(text: str) -> Path:
    """A file to write, for argparse: said before the work, not after it."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path.parent}: no such folder")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path}: a folder")
    return path


def check_targets(arguments: argparse.Namespace, videos: list[Path]) -> None:
    """What is written is no video that is read, nor the same file twice."""
    sources = {video.resolve() for video in videos}
    taken: dict[Path, str] = {}
    for option in ("json", "csv", "save"):
        target = getattr(arguments, option)
        if target is None:
            continue
        place = target.resolve()
        # A video may be a folder of frames.
        if sources & {place, place.parent}:
            raise UserError(f"--{option} {target}: is the video itself, which stays as it is")
        if place in taken:
            raise UserError(f"--{option} {target}: is the file of --{taken[place]} too")
        taken[place] = option
    if arguments.save:
        check_save(arguments.save, videos)


def check_save(target: Path, videos: list[Path]) -> None:
    """The drawn video is one video's, and an mp4."""
    if target.suffix.lower() != ".mp4":
        raise UserError(f"--save {target}: must be an mp4 file")
    if len(videos) > 1:
        raise UserError(f"--save {target}: is for one video, and {len(videos)} are given")


def predict_all(
    run: LoadedRun,
    videos: list[Path],
    arguments: argparse.Namespace,
    predictions: list[VideoPrediction],
) -> None:
    """Fill `predictions`; on a long video the bar counts windows, else videos."""
    if not arguments.window:
        with Progress("predicting", total=len(videos), unit="videos") as bar:
            for video in videos:
                rankings = run.predict(video, top=arguments.top, fps=arguments.fps)
                predictions.append(VideoPrediction(str(video), rankings))
                bar.advance()
        return
    for video in videos:
        with Progress(video.name, total=0, unit="windows") as bar:
            timeline = run.predict_windows(
                video,
                window_s=arguments.window,
                hop_s=arguments.hop,
                fps=arguments.fps,
                progress=bar.reach,
            )
        rankings = timeline.overall(top=arguments.top)
        predictions.append(VideoPrediction(str(video), rankings, timeline, arguments.threshold))


def write_files(predictions: list[VideoPrediction], arguments: argparse.Namespace) -> None:
    """JSON and CSV, where asked for; a file of that name is replaced in one move."""
    for path, write in ((arguments.json, write_json), (arguments.csv, write_csv)):
        if path:
            is_pipe = path.exists() and not path.is_file()
            target = nullcontext(path) if is_pipe else replaced(path.resolve())
            with writing(path), target as place:
                write(place, predictions)


def draw(
    run: LoadedRun, video: Path, predicted: VideoPrediction, arguments: argparse.Namespace
) -> None:
    """Write the video with what was predicted for it."""
    timeline = predicted.timeline
    rankings_at = (
        partial(timeline.at, top=arguments.top) if timeline else lambda _: predicted.rankings
    )
    with (
        file_opener(run.config, in_child=True)(segment_record(video, fps=arguments.fps)) as source,
        Progress(f"drawing {arguments.save.name}", total=0, unit="frames") as bar,
    ):
        try:
            save_video(
                arguments.save,
                source,
                rankings_at,
                threshold=arguments.threshold,
                progress=bar.reach,
            )
        except OSError as error:
            raise UserError(f"{arguments.save}: cannot be written: {error.strerror}") from error
    plain_console().print(f"drawn: {arguments.save}")


def print_tables(predictions: list[VideoPrediction]) -> None:
    """A row a class, grouped by video; of long videos a row a segment, grouped by head."""
    whole = [one for one in predictions if one.timeline is None]
    if whole:
        plain_console().print(table_of_classes(whole))
    for one in predictions:
        if one.timeline is not None:
            plain_console().print(table_of_segments(one))


def table_of_classes(predictions: list[VideoPrediction]) -> Table:
    """The best classes of each video."""
    table = Table()
    heads = list(predictions[0].rankings)
    table.add_column("video", overflow="fold")
    for head in heads:
        table.add_column(head)
        table.add_column("score", justify="right")
    for one in predictions:
        rows = max(len(ranking) for ranking in one.rankings.values())
        for i in range(rows):
            cells = [Path(one.video).name if i == 0 else ""]
            for head in heads:
                ranking = one.rankings[head]
                cells += [ranking[i][0], f"{ranking[i][1]:.3f}"] if i < len(ranking) else ["", ""]
            table.add_row(*cells, end_section=i + 1 == rows)
    return table


def table_of_segments(one: VideoPrediction) -> Table:
    """What happens when in a long video."""
    table = Table(title=Path(one.video).name)
    for column in ("head", "class"):
        table.add_column(column)
    for column in ("from (s)", "to (s)", "score"):
        table.add_column(column, justify="right")
    for head, segments in one.segments.items():
        for i, (start, stop, name, score) in enumerate(segments):
            cells = [head if i == 0 else "", name, f"{start:.2f}", f"{stop:.2f}", f"{score:.3f}"]
            table.add_row(*cells, end_section=i + 1 == len(segments))
    if not table.row_count:
        table.caption = f"nothing scores {one.threshold:g} or more"
    return table


if __name__ == "__main__":
    run_tool(main)
