"""Small images in memory as one tensor: no decoding, no worker processes, augmentation by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdb_video.clips.batch import Appearance, Batch, Skipped
from cdb_video.clips.dataset import RecordOpener, sample_generator
from cdb_video.clips.images import forget_packed
from cdb_video.clips.memory import most_bytes
from cdb_video.clips.transforms import Augmentation, EvaluationCrops, crop
from cdb_video.datasets.annotations import VideoRecord
from cdb_video.errors import ConfigError

DRAWS = 6
"""Numbers that are drawn for an image: mirror, three of colour, two of its shift."""
Plan = Sequence[Sequence[Any]]


class ImageMemory:
    """The evaluation crops of images, decoded once.

    Args:
        crops: how an image is cut out and scaled; one crop.
        opener: opens a record's file.

    """

    def __init__(self, crops: EvaluationCrops, *, opener: RecordOpener) -> None:
        self.crops = crops
        self.opener = opener
        side = crops.crop_size
        self._pixels = torch.empty(0, 3, side, side, dtype=torch.uint8)
        self._rows: dict[tuple[Path, float], int] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def load(
        self,
        records: Sequence[VideoRecord],
        *,
        num_workers: int = 0,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """Decode and keep what is not kept yet; `progress` is called after each.

        Raises:
            DecodeError: naming the file that cannot be decoded.
            ConfigError: more than the machine can hold.

        """
        by_path: dict[Path, list[VideoRecord]] = {}
        for record in records:
            if _key(record) not in self._rows:
                by_path.setdefault(record.path, []).append(record)
        if not by_path:
            return
        number = sum(map(len, by_path.values()))
        self._refuse_too_many(number)
        pixels = self._pixels.new_empty(len(self) + number, *self._pixels.shape[1:])
        pixels[: len(self)] = self._pixels
        rows: dict[tuple[Path, float], int] = {}
        place = len(self)
        # Threads: Pillow decodes beside Python.
        with ThreadPoolExecutor(max_workers=max(1, num_workers)) as pool:
            for of_path, decoded in zip(
                by_path.values(), pool.map(self._decode, by_path.values()), strict=True
            ):
                pixels[place : place + len(of_path)] = decoded
                for record in of_path:
                    rows[_key(record)] = place
                    place += 1
                    progress()
        # All or nothing: a file that does not decode leaves the memory as it was.
        self._pixels = pixels
        self._rows |= rows
        forget_packed()

    def rows(self, records: Sequence[VideoRecord]) -> Tensor:
        """(len(records),) where the images are; what is not kept yet is decoded now."""
        self.load(records)
        return torch.tensor([self._rows[_key(record)] for record in records])

    def pixels(self, rows: Tensor) -> Tensor:
        """(n,) rows -> (n, 3, S, S) uint8."""
        return self._pixels[rows]

    def _decode(self, records: Sequence[VideoRecord]) -> Tensor:
        """The crops (n, 3, S, S) of images in one file."""
        with self.opener(records[0]) as video:
            [window] = self.crops.windows(video.height, video.width)
            wanted = torch.tensor([video.index_at(record.start_s or 0.0) for record in records])
            return crop(video.frames(wanted), window, crop_size=self.crops.crop_size)

    def _refuse_too_many(self, number: int) -> None:
        limit = most_bytes()
        # What is kept already is copied.
        needed = (2 * len(self) + number) * self._pixels.shape[1:].numel()
        if needed > limit:
            raise ConfigError(
                f"data.in_memory=true: {len(self) + number} images take {needed / 1e9:.0f} GB, and "
                f"a rank has {limit / 1e9:.0f} GB; use data.in_memory=false or a smaller "
                "clip.crop_size"
            )


def _key(record: VideoRecord) -> tuple[Path, float]:
    return record.path, record.start_s or 0.0


class ImageClips:
    """The images of a split, batch by batch.

    Args:
        records: of the split.
        memory: has their pixels, or decodes them for the first batch.
        augmentation: in training, with `crop="pad"`; what is drawn for an image is a function of
            the seed and the key and of nothing else. None: evaluation, every image as it is.
        seed: in training.

    """

    num_views = 1

    def __init__(
        self,
        records: Sequence[VideoRecord],
        memory: ImageMemory,
        *,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.records = records
        self.memory = memory
        self.augmentation = augmentation
        self.seed = seed
        heads = list(records[0].labels)
        self._labels = {head: torch.tensor([r.labels[head] for r in records]) for head in heads}
        self._rows: Tensor | None = None
        self._may_flip = _may_flip(records, augmentation)
        self._draws = lru_cache(maxsize=2)(self._draw)

    def __len__(self) -> int:
        return len(self.records)

    def blank(self, size: int) -> Tensor:
        """(size, 3, 1, S, S) zeros, of the shape and type of the clips."""
        side = self.memory.crops.crop_size
        return torch.zeros(size, 3, 1, side, side, dtype=torch.uint8)

    def batches(self, plan: Plan) -> Iterator[tuple[Batch, tuple[Skipped, ...]]]:
        """A batch for each list of keys; nothing is ever skipped.

        A key is (epoch, index) or (epoch, index, repeat) in training, an index in evaluation.
        """
        if self._rows is None:
            self._rows = self.memory.rows(self.records)
        for keys in plan:
            yield self._batch(self._rows, list(keys)), ()

    def _batch(self, rows: Tensor, keys: list[Any]) -> Batch:
        training = self.augmentation is not None
        indices = torch.tensor([k[1] if training else k for k in keys], dtype=torch.int64)
        clips = self.memory.pixels(rows[indices])[:, None, :, None]  # (B, V, C, T, H, W)
        if training:
            clips = self._changed(clips, keys)
        return Batch(
            clips=clips,
            labels={head: labels[indices] for head, labels in self._labels.items()},
            indices=indices,
            appearance=self._appearance(keys, indices) if training else _plain(len(keys)),
        )

    def _changed(self, clips: Tensor, keys: list[tuple[int, ...]]) -> Tensor:
        """With the changes that torchvision makes of one image at a time, where there are any."""
        augmentation = self.augmentation
        if augmentation is None or (augmentation.rand_augment is None and not augmentation.erase):
            return clips
        changed = [
            augmentation.pixels(
                clip[0].transpose(0, 1), generator=sample_generator(self.seed, *key)
            ).transpose(0, 1)[None]
            for clip, key in zip(clips, keys, strict=True)
        ]
        return torch.stack(changed)

    def _appearance(self, keys: list[tuple[int, ...]], indices: Tensor) -> Appearance:
        augmentation = self.augmentation
        assert augmentation is not None  # noqa: S101 - of training
        # One epoch a batch. Where classes are drawn, the few repeats are drawn one by one.
        drawn = self._draws(keys[0][0])[indices]
        for place, key in enumerate(keys):
            if len(key) == 3:
                drawn[place] = torch.rand(DRAWS, generator=sample_generator(self.seed, *key))
        padding = augmentation.padding
        return Appearance(
            flip=(drawn[:, 0] < 0.5) & self._may_flip[indices],
            jitter=1 + augmentation.color_jitter * (2 * drawn[:, 1:4] - 1),
            shift=(drawn[:, 4:] * (2 * padding + 1)).long() - padding,
        )

    def _draw(self, epoch: int) -> Tensor:
        """(len(self), DRAWS) in [0, 1): an epoch's, for all images at once."""
        return torch.rand(len(self), DRAWS, generator=sample_generator(self.seed, epoch))


def _may_flip(records: Sequence[VideoRecord], augmentation: Augmentation | None) -> Tensor:
    """(len(records),) whether an image may be mirrored."""
    if augmentation is None or not augmentation.flip:
        return torch.zeros(len(records), dtype=torch.bool)
    kept: Mapping[str, Any] = augmentation.no_flip_labels
    return torch.tensor(
        [not any(r.labels[head] in classes for head, classes in kept.items()) for r in records]
    )


def _plain(size: int) -> Appearance:
    return Appearance(flip=torch.zeros(size, dtype=torch.bool), jitter=torch.ones(size, 3))
