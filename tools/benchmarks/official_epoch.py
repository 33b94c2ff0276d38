"""Our re-creation of an epoch of the official CDB-EGTEA code, and none of its code.

From a description of it: clips as folders of JPEG files, T of them spread over the whole clip,
decoded, scaled and normalised to fp32 in the loader; one head; two numbers read on the host in a
training step; after the epoch a full validation pass whose batches are counted class by class in
Python, three reads a class; difficulty is 1 - accuracy, and the weighted loss is built anew.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision.transforms.v2.functional as TF
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cdb_video.clips.decoders import open_video
from cdb_video.models.recognizer import Recognizer
from cdb_video.progress import Progress

from .in_processes import on_all_cores
from .kernels import stock_kernels

HEAD = "verb"
FRAMES_AT_A_TIME = 250
"""Decoded frames in the memory of a process that writes JPEG files."""
MEAN, STD = [0.45] * 3, [0.225] * 3


class Shape(NamedTuple):
    """Of a clip: frames, the shorter side that a frame is scaled to, and the crop of it."""

    num_frames: int
    short_side: int
    crop_size: int


def extract_frames(videos: Iterable[Path], folder: Path) -> dict[Path, Path]:
    """Video -> its folder of JPEG files; written, on all cores, unless it is there."""
    places = {video: folder / video.parent.name / video.stem for video in videos}
    jobs = [_Extraction(*pair) for pair in places.items() if not pair[1].exists()]
    # The longest first, so that none is left to one process at the end.
    jobs.sort(key=lambda job: -job.video.stat().st_size)
    with Progress("extracting frames", total=len(jobs), unit="clips") as progress:
        on_all_cores(_extract, jobs, progress=progress.advance)
    return places


class _Extraction(NamedTuple):
    video: Path
    folder: Path


def _extract(job: _Extraction) -> Iterator[None]:
    half = job.folder.with_suffix(".part")
    half.mkdir(parents=True, exist_ok=True)
    with open_video(job.video) as video:
        for part in torch.arange(video.num_frames).split(FRAMES_AT_A_TIME):
            for i, frame in zip(part.tolist(), video.frames(part), strict=True):
                TF.to_pil_image(frame).save(half / f"{i:05d}.jpg", quality=95)
            yield
    half.rename(job.folder)


class JpegClips(Dataset[tuple[Tensor, int]]):
    """Clips (3, T, H, W) fp32 with the class of the head."""

    def __init__(
        self, folders: Sequence[Path], labels: Sequence[int], shape: Shape, *, train: bool
    ) -> None:
        self.frames = [sorted(folder.glob("*.jpg")) for folder in folders]
        self.labels = labels
        self.shape = shape
        self.train = train

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        files = self.frames[index]
        count, short_side, side = self.shape
        edges = [len(files) * i // count for i in range(count + 1)]
        chosen = [
            random.randrange(low, max(low + 1, high)) if self.train else low  # noqa: S311
            for low, high in pairwise(edges)
        ]
        images = [
            TF.resize(Image.open(files[i], formats=["JPEG"]).convert("RGB"), short_side)
            for i in chosen
        ]
        width, height = images[0].size
        top, left = (height - side) // 2, (width - side) // 2
        if self.train:
            top = random.randint(0, height - side)  # noqa: S311
            left = random.randint(0, width - side)  # noqa: S311
        frames = [TF.to_image(TF.crop(image, top, left, side, side)) for image in images]
        pixels = [
            TF.normalize(TF.to_dtype(f, torch.float32, scale=True), MEAN, STD) for f in frames
        ]
        return torch.stack(pixels, dim=1), self.labels[index]


class OfficialEpoch:
    """Training and validation, called once an epoch."""

    def __init__(
        self,
        model: Recognizer,
        train: DataLoader[Any],
        val: DataLoader[Any],
    ) -> None:
        self.model = model
        self.train, self.val = train, val
        self.device = next(model.parameters()).device
        self.num_classes = model.num_classes[HEAD]
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
        self.criterion = nn.CrossEntropyLoss()
        self.losses: list[float] = []

    def __call__(self) -> None:
        """One epoch."""
        stock_kernels(self.device)
        self.model.train()
        for clips, target in self.train:
            clips, target = clips.to(self.device), target.to(self.device)
            logits = self.model(clips)[HEAD]
            loss = self.criterion(logits, target)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            right = (logits.argmax(1) == target).sum().item()
            self.losses.append(loss.item() + 0 * right)
        self.criterion = nn.CrossEntropyLoss(weight=self._weights().to(self.device))

    @torch.no_grad()
    def _weights(self) -> Tensor:
        """Of the classes, from a full pass over the validation clips."""
        self.model.eval()
        correct, total = [0.0] * self.num_classes, [0.0] * self.num_classes
        for clips, target in self.val:
            clips, target = clips.to(self.device), target.to(self.device)
            predicted = self.model(clips)[HEAD].argmax(1)
            for c in range(self.num_classes):
                if (target == c).any().item():
                    correct[c] += ((predicted == c) & (target == c)).sum().item()
                    total[c] += (target == c).sum().item()
        accuracy = torch.tensor(correct) / torch.tensor(total).clamp(min=1)
        difficulty = 1 - accuracy
        tau = torch.sigmoid(accuracy.max() / (accuracy.min() + 0.01))
        weights = difficulty**tau
        return weights / weights.sum() * self.num_classes
