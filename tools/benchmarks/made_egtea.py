"""Made-up clips in place of EGTEA Gaze+'s own: its lists, names and layout, and cheap pictures.

    python tools/benchmarks/made_egtea.py action_annotation EGTEA-made --clips-per-verb 2

A few clips of each verb are taken from the official lists of split 1, as many of the subjects that
the paper holds out (and one of each of these at least), of the others, and of the test list. They
are written where the official cut has them, 640x480 at 24 frames a second and as long as their
names say, and the lists beside them keep their lines. What trains on the folder trains on the real
one: only `data.root` differs.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from cdb_video.command_line import positive, run_tool
from cdb_video.datasets.annotations import VideoRecord
from cdb_video.datasets.egtea import FPS, HEADS
from cdb_video.datasets.readers import read_split
from cdb_video.errors import DataError

WIDTH, HEIGHT = 640, 480
SIDE = 160
"""Of the square that moves, in pixels."""
HELD_OUT = tuple(f"P{number}" for number in range(20, 27))
"""The subjects of the paper's validation clips, `data.hold_out_subjects` of the recipes."""


def main() -> None:
    """Parse, make, print."""
    arguments = parse_arguments()
    made = make_egtea(
        arguments.annotations, arguments.root, clips_per_verb=arguments.clips_per_verb
    )
    print(f"{arguments.root}: {len(made)} clips, {sum(map(frames_of, made))} frames")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "annotations", type=Path, metavar="ANNOTATIONS", help="folder of the official lists"
    )
    parser.add_argument("root", type=Path, metavar="ROOT", help="a new folder: the data.root")
    parser.add_argument(
        "--clips-per-verb",
        type=positive,
        default=1,
        metavar="N",
        help="at most, for each of training, validation and test; default 1",
    )
    return parser.parse_args()


def make_egtea(annotations: Path, root: Path, *, clips_per_verb: int) -> list[Path]:
    """Write clips and their lists below `root`; the clips' files.

    Args:
        annotations: folder with the official `{action,verb,noun}_idx.txt` and
            `{train,test}_split1.txt`; other splits are copied too, where they are.
        root: a folder that is not there yet.
        clips_per_verb: the first so many of each verb in the list, for training, validation (the
            subjects of `HELD_OUT`) and test each, fewer where the lists have fewer; and the first
            of each subject in `HELD_OUT`, none of whom a recipe may miss.

    Raises:
        DataError: `root` is there; lists that cannot be read.

    """
    if root.exists():
        raise DataError(f"{root}: is there already; the made clips go into a new folder")
    records = choose_clips(annotations, clips_per_verb)
    paths = [root / "cropped_clips" / r.recording / f"{r.id}.mp4" for r in records]
    for record, path in zip(records, paths, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_clip(path, film(record.labels["verb"], frames_of(path)))
    copy_lists(annotations, root / "action_annotation", {record.id for record in records})
    return paths


def choose_clips(annotations: Path, clips_per_verb: int) -> list[VideoRecord]:
    """The first of each verb among the held-out subjects, the others, and the test list.

    The first clip of every held-out subject comes on top, where it is not among them.
    """
    chosen: dict[tuple[str, bool, int], list[VideoRecord]] = defaultdict(list)
    missing = set(HELD_OUT)
    for split in ("train_split1", "test_split1"):
        listed = read_split(annotations, format="egtea", split=split, check_files=False)
        for record in listed.records:
            subject = record.metadata["subject"]
            held_out = split == "train_split1" and subject in HELD_OUT
            group = chosen[split, held_out, record.labels["verb"]]
            if len(group) < clips_per_verb or (held_out and subject in missing):
                group.append(record)
                missing.discard(subject)
    return [record for group in chosen.values() for record in group]


def frames_of(clip: Path) -> int:
    """From `-F006979-F007088` at the end of its name: start inclusive, stop exclusive."""
    [(start, stop)] = re.findall(r"-F(\d+)-F(\d+)$", clip.stem)
    return int(stop) - int(start)


def film(verb: int, num_frames: int) -> Iterator[NDArray[np.uint8]]:
    """Frames (H, W, 3): a square that goes round; grey, direction and pace are the verb's."""
    pace = (0.05 + 0.02 * (verb // 2)) * (-1) ** verb
    for number in range(num_frames):
        image = np.full((HEIGHT, WIDTH, 3), 60 + 7 * (verb % 20), dtype=np.uint8)
        angle = pace * number
        top = round((HEIGHT - SIDE) * (0.5 + 0.5 * np.sin(angle)))
        left = round((WIDTH - SIDE) * (0.5 + 0.5 * np.cos(angle)))
        image[top : top + SIDE, left : left + SIDE] = (220, 160, 40)
        yield image


def write_clip(path: Path, frames: Iterator[NDArray[np.uint8]]) -> None:
    """Frames (H, W, 3) as H.264 at EGTEA's rate."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"preset": "veryfast"}
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def copy_lists(source: Path, target: Path, names: Collection[str]) -> None:
    """The class lists as they are, and of every split the lines of the named clips."""
    target.mkdir(parents=True)
    for head in HEADS:
        shutil.copy(source / f"{head}_idx.txt", target)
    for file in source.glob("*_split*.txt"):
        if re.fullmatch(r"(train|test)_split\d+", file.stem):
            lines = file.read_text(encoding="utf-8-sig").splitlines(keepends=True)
            kept = [line for line in lines if line.strip() and line.split()[0] in names]
            (target / file.name).write_text("".join(kept), encoding="utf-8")


if __name__ == "__main__":
    run_tool(main)
