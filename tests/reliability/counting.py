"""Class counts on any number of ranks, for any batch size, are those of one process."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cdb_video.clips.batch import Appearance, Sample
from cdb_video.clips.dataset import ClipSampler, EvaluationViews
from cdb_video.clips.loader import EvaluationLoader
from cdb_video.clips.transforms import EvaluationCrops
from cdb_video.datasets.annotations import UNLABELLED, VideoRecord
from cdb_video.distributed import ONE_PROCESS, Ranks
from cdb_video.evaluation.evaluate import EvalReport, evaluate
from cdb_video.evaluation.predictions import HeadPredictions
from cdb_video.models.base import Normalization, VideoBackbone
from cdb_video.models.recognizer import Recognizer
from tests.reliability.outcome import Outcome, Row

ROOT = Path(__file__).parents[2]
VIDEOS, RANKS, BATCHES = range(1, 41), range(1, 5), range(1, 7)
CLASSES = {"verb": 4, "noun": 7}
NUM_VIEWS = 2
REAL_VIDEOS, REAL_BATCHES = range(1, 9), (1, 3)
"""Of the jobs with real ranks, of which the last have no video at first."""


def measure(count: int, seed: int, folder: Path) -> Outcome:
    """All sizes with ranks made by hand; past those, jobs of two and of three real ranks."""
    failures: list[str] = []
    torch.set_num_threads(1)
    for num_videos in VIDEOS:
        whole = tables(num_videos, seed, 1, ONE_PROCESS)
        for world, batch in itertools.product(RANKS, BATCHES):
            case = f"{num_videos} videos, {world} ranks, batches of {batch}"
            parts = [tables(num_videos, seed, batch, Ranks(r, r, world)) for r in range(world)]
            failures += [f"{case}: {line}" for line in differences(whole, parts)]
    tried = len(VIDEOS) * len(RANKS) * len(BATCHES)
    if count > tried:
        for world in (2, 3):
            failures += real_ranks(world, seed, folder / f"ranks{world}")
            tried += len(REAL_VIDEOS) * len(REAL_BATCHES)
    return Outcome(tried, tuple(failures))


def tables(num_videos: int, seed: int, batch: int, ranks: Ranks) -> dict[str, HeadPredictions]:
    """What a rank has after `evaluate`, in a job that does not sum."""
    return dict(evaluated(num_videos, seed, batch, ranks).predictions.heads)


def evaluated(num_videos: int, seed: int, batch: int, ranks: Ranks) -> EvalReport:
    views = NoiseViews(
        records(num_videos, seed),
        sampler=ClipSampler(num_frames=2, stride=1),
        crops=EvaluationCrops(short_side=4, crop_size=4),
        num_clips=NUM_VIEWS,
    )
    loader = EvaluationLoader(views, clips_per_batch=batch * NUM_VIEWS, ranks=ranks)
    return evaluate(made_model(), loader, device="cpu", micro_batch_size=3)


def differences(
    whole: dict[str, HeadPredictions], parts: list[dict[str, HeadPredictions]]
) -> Iterator[str]:
    """A line for each head whose counts, summed over the ranks, are not those of one process."""
    for head, expected in whole.items():
        scores = torch.stack([part[head].scores for part in parts])
        scored_by = (scores.sum(2) > 0.5).sum(0)
        if not (scored_by == 1).all():
            yield f"{head}: ranks that scored each video: {scored_by.tolist()}"
        views = torch.stack([part[head].view_scores for part in parts]).sum(0)
        found = HeadPredictions(scores.sum(0), views, parts[0][head].labels).counts
        if not torch.equal(found.to_dict()["table"], expected.counts.to_dict()["table"]):
            yield f"{head}: {found} in place of {expected.counts}"


def records(num_videos: int, seed: int) -> list[VideoRecord]:
    """Videos with labels drawn from the seed, some of them without."""
    draw = np.random.default_rng([seed, num_videos])
    made = []
    for i in range(num_videos):
        labels = {head: int(draw.integers(UNLABELLED, k)) for head, k in CLASSES.items()}
        name = f"{i}"
        made.append(VideoRecord(name, Path(f"{name}.mp4"), name, name, labels))
    return made


class NoiseViews(EvaluationViews):
    """Every view of a video is a noise of its own."""

    def __getitem__(self, index: int) -> Sample:
        draw = torch.Generator().manual_seed(index)
        clips = torch.randint(256, (NUM_VIEWS, 3, 2, 4, 4), dtype=torch.uint8, generator=draw)
        return Sample(clips, self.records[index].labels, index, Appearance.plain())


class OneByOne(Recognizer):
    """A clip at a time: the last bit of a matrix product depends on how many rows there are."""

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        parts = [super(OneByOne, self).forward(clip[None]) for clip in clips]
        return {head: torch.cat([part[head] for part in parts]) for head in self.num_classes}


def made_model() -> Recognizer:
    """Of random weights that tell the classes apart."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 2 * 4 * 4, 8))
    normalization = Normalization((0.5,) * 3, (0.25,) * 3)
    backbone = VideoBackbone(net, num_features=8, normalization=normalization)
    model = OneByOne(backbone, num_classes=CLASSES, dropout=0.0)
    for head in model.heads.values():
        nn.init.normal_(head.weight)
    return model


def real_ranks(world: int, seed: int, folder: Path) -> Iterator[str]:
    """A job over gloo; every rank wrote the counts it had."""
    folder.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={world}", "-m", "tests.reliability.counting_ranks"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(folder), str(seed)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    files = sorted(folder.glob("rank*.pt"))
    if len(files) != world:  # gloo may abort at exit, after all work is done
        yield f"a job of {world} ranks wrote {len(files)} files: {done.stderr[-500:]}"
        return
    by_rank = [torch.load(file, weights_only=True) for file in files]
    for num_videos, batch in itertools.product(REAL_VIDEOS, REAL_BATCHES):
        whole = tables(num_videos, seed, 1, ONE_PROCESS)
        for rank, found in enumerate(by_rank):
            for head, part in whole.items():
                if not torch.equal(
                    found[f"{num_videos}/{batch}/{head}"], part.counts.to_dict()["table"]
                ):
                    yield f"rank {rank} of {world}, {num_videos} videos, batches of {batch}: {head}"


ROW = Row(
    "counting",
    "Class counts on any number of ranks are those of one process, each video counted once.",
    measure,
    quick=960,
    full=992,
)
