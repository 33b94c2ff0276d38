"""Samples and batches: the one place where shapes are checked.

Axes, here and everywhere: B videos, V views, N = B * V clips, C channels, T frames, H and W pixels,
K classes, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import default_collate


@dataclass(frozen=True, slots=True)
class Appearance:
    """How clips are to be changed on the device: drawn with the sample, applied to the batch.

    In a sample the tensors have no batch axis; in a batch they have one, (B, ...).
    """

    flip: Tensor
    """() bool: mirror left and right."""
    jitter: Tensor
    """(3,) factors of brightness, contrast and saturation; ones leave a clip as it is."""
    shift: Tensor | None = None
    """(2,) int64 pixels that a clip is moved up and to the left, black coming in; None: it is not
    moved."""

    @classmethod
    def plain(cls) -> Appearance:
        """No change."""
        return cls(flip=torch.tensor(False), jitter=torch.ones(3))


@dataclass(frozen=True, slots=True)
class Sample:
    """One video's clips with its labels."""

    clips: Tensor
    """(V, C, T, H, W) uint8: RGB, or the planes Y, U and V."""
    labels: Mapping[str, int]
    index: int
    """Position in the split."""
    appearance: Appearance
    to_rgb: Tensor | None = None
    """(3, 4) fp32 of YUV clips: RGB in [0, 255] is `to_rgb @ (Y, U, V, 1)`."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A sample that is left out, as its clip does not decode (`data.on_error=skip`)."""

    index: int
    """Position in the split."""
    message: str
    """Names the file."""


@dataclass(frozen=True, slots=True)
class Batch:
    """B samples."""

    clips: Tensor
    """(B, V, C, T, H, W) uint8; of saved features (B, V, D, L, 1, 1), floating point."""
    labels: dict[str, Tensor]
    """Head -> (B,) int64, -1 where unlabelled."""
    indices: Tensor
    """(B,) int64 positions in the split."""
    appearance: Appearance
    to_rgb: Tensor | None = None
    """(B, 3, 4) fp32 of YUV clips; None: RGB."""
    skipped: tuple[Skipped, ...] = ()
    """Samples that would be in the batch too; nothing takes their place."""

    def __post_init__(self) -> None:
        if self.clips.ndim != 6:
            raise ValueError(f"clips must be (B, V, C, T, H, W), got {tuple(self.clips.shape)}")
        are_features = self.clips.is_floating_point() and self.clips.shape[4:] == (1, 1)
        if self.clips.dtype != torch.uint8 and not are_features:
            raise ValueError(f"clips must be uint8, got {self.clips.dtype}")
        size = len(self.clips)
        shapes = {
            "indices": (self.indices, (size,)),
            "flip": (self.appearance.flip, (size,)),
            "jitter": (self.appearance.jitter, (size, 3)),
            **{f"labels[{head!r}]": (labels, (size,)) for head, labels in self.labels.items()},
        }
        if self.appearance.shift is not None:
            shapes["shift"] = (self.appearance.shift, (size, 2))
        if self.to_rgb is not None:
            shapes["to_rgb"] = (self.to_rgb, (size, 3, 4))
        for name, (tensor, expected) in shapes.items():
            if tuple(tensor.shape) != expected:
                raise ValueError(f"{name} must be {expected}, got {tuple(tensor.shape)}")

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def clips_to_rgb(self) -> Tensor | None:
        """(N, 3, 4): `to_rgb` for every clip of `clips.flatten(0, 1)`."""
        return (
            None if self.to_rgb is None else self.to_rgb.repeat_interleave(self.clips.shape[1], 0)
        )

    def views(self, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """All N clips in order, at most `size` at a time, with their `to_rgb`."""
        to_rgb = self.clips_to_rgb
        for first in range(0, self.clips.shape[:2].numel(), size):
            part = slice(first, first + size)
            yield self.clips.flatten(0, 1)[part], None if to_rgb is None else to_rgb[part]

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; from pinned memory the host does not wait for the copy."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory (DataLoader calls this)."""
        return self._map(Tensor.pin_memory)

    def split(self, size: int) -> list[Batch]:
        """Even parts of at most `size` videos, in order; they share the batch's memory."""
        sizes = even_parts(len(self), size)
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return [self._slice(slice(i, i + n)) for i, n in zip(starts, sizes, strict=True)]

    def _slice(self, part: slice) -> Batch:
        return self._map(lambda tensor: tensor[part])

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            clips=change(self.clips),
            labels={head: change(labels) for head, labels in self.labels.items()},
            indices=change(self.indices),
            appearance=Appearance(
                flip=change(self.appearance.flip),
                jitter=change(self.appearance.jitter),
                shift=None if self.appearance.shift is None else change(self.appearance.shift),
            ),
            to_rgb=None if self.to_rgb is None else change(self.to_rgb),
        )


def even_parts(number: int, most: int) -> list[int]:
    """The sizes of as few parts as can be, which differ by one at most: of 7 by 3, 3, 2 and 2.

    A rest of one would be a poor sample for batch norm, and may be none at all.
    """
    parts = -(-number // most)
    return [number // parts + (i < number % parts) for i in range(parts)]


def collate(samples: Sequence[Sample]) -> Batch:
    """A batch of samples, in their order; all of them RGB, or all of them YUV."""
    shifts = [s.appearance.shift for s in samples if s.appearance.shift is not None]
    matrices = [sample.to_rgb for sample in samples if sample.to_rgb is not None]
    return Batch(
        # In a worker torch's own stacks in the memory that it shares with the training process.
        clips=default_collate([sample.clips for sample in samples]),
        labels={
            head: torch.tensor([sample.labels[head] for sample in samples])
            for head in samples[0].labels
        },
        indices=torch.tensor([sample.index for sample in samples]),
        appearance=Appearance(
            flip=torch.stack([sample.appearance.flip for sample in samples]),
            jitter=torch.stack([sample.appearance.jitter for sample in samples]),
            shift=torch.stack(shifts) if shifts else None,
        ),
        to_rgb=torch.stack(matrices) if matrices else None,
    )
