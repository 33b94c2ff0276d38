"""Samples and batches: the one place where shapes are checked.

Axes, here and everywhere: B videos, V views, N = B * V clips, C channels, T frames, H and W pixels,
K classes, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Appearance:
    """How clips are to be changed on the device: drawn with the sample, applied to the batch.

    In a sample the tensors have no batch axis; in a batch they have one, (B, ...).
    """

    flip: Tensor
    """() bool: mirror left and right."""
    jitter: Tensor
    """(3,) factors of brightness, contrast and saturation; ones leave a clip as it is."""

    @classmethod
    def plain(cls) -> Appearance:
        """No change."""
        return cls(flip=torch.tensor(False), jitter=torch.ones(3))


@dataclass(frozen=True, slots=True)
class Sample:
    """One video's clips with its labels."""

    clips: Tensor
    """(V, C, T, H, W) uint8 RGB."""
    labels: Mapping[str, int]
    index: int
    """Position in the split."""
    appearance: Appearance


@dataclass(frozen=True, slots=True)
class Batch:
    """B samples."""

    clips: Tensor
    """(B, V, C, T, H, W) uint8."""
    labels: dict[str, Tensor]
    """Head -> (B,) int64, -1 where unlabelled."""
    indices: Tensor
    """(B,) int64 positions in the split."""
    appearance: Appearance

    def __post_init__(self) -> None:
        if self.clips.ndim != 6:
            raise ValueError(f"clips must be (B, V, C, T, H, W), got {tuple(self.clips.shape)}")
        if self.clips.dtype != torch.uint8:
            raise ValueError(f"clips must be uint8, got {self.clips.dtype}")
        size = len(self.clips)
        shapes = {
            "indices": (self.indices, (size,)),
            "flip": (self.appearance.flip, (size,)),
            "jitter": (self.appearance.jitter, (size, 3)),
            **{f"labels[{head!r}]": (labels, (size,)) for head, labels in self.labels.items()},
        }
        for name, (tensor, expected) in shapes.items():
            if tuple(tensor.shape) != expected:
                raise ValueError(f"{name} must be {expected}, got {tuple(tensor.shape)}")

    def __len__(self) -> int:
        return len(self.clips)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; from pinned memory the copy runs beside the computation."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory (DataLoader calls this)."""
        return self._map(Tensor.pin_memory)

    def split(self, size: int) -> list[Batch]:
        """Parts of at most `size` videos, in order; they share the batch's memory."""
        return [self._slice(slice(i, i + size)) for i in range(0, len(self), size)]

    def _slice(self, part: slice) -> Batch:
        return self._map(lambda tensor: tensor[part])

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            clips=change(self.clips),
            labels={head: change(labels) for head, labels in self.labels.items()},
            indices=change(self.indices),
            appearance=Appearance(
                flip=change(self.appearance.flip), jitter=change(self.appearance.jitter)
            ),
        )


def collate(samples: Sequence[Sample]) -> Batch:
    """A batch of samples, in their order."""
    return Batch(
        clips=torch.stack([sample.clips for sample in samples]),
        labels={
            head: torch.tensor([sample.labels[head] for sample in samples])
            for head in samples[0].labels
        },
        indices=torch.tensor([sample.index for sample in samples]),
        appearance=Appearance(
            flip=torch.stack([sample.appearance.flip for sample in samples]),
            jitter=torch.stack([sample.appearance.jitter for sample in samples]),
        ),
    )
