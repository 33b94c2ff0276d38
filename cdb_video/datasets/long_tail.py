"""Long tails made of balanced image data sets, by the rules of the literature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from cdb_video.errors import DataError


@dataclass(frozen=True)
class LongTail:
    """Which training images are kept.

    Raises:
        ValueError: not one of `imbalance` and `majority_share` is given.
    """

    imbalance: float | None = None
    """Of the largest class over the smallest; 1 keeps every image."""
    majority_share: float | None = None
    """Of two classes: share of the first."""
    num_images: int = 5000
    """With `majority_share`: images in all."""
    classes: tuple[str, ...] | None = None
    """Those to keep, in all splits, the most frequent first; None: all, in the data's order."""

    def __post_init__(self) -> None:
        if (self.imbalance is None) == (self.majority_share is None):
            raise ValueError(
                f"imbalance={self.imbalance} with majority_share={self.majority_share}: give one "
                "of the two"
            )

    def counts(self, available: Sequence[int]) -> list[int]:
        """Images to keep of each class, of those that there are.

        Raises:
            DataError: there are too few.
        """
        if self.imbalance is not None:
            return exponential_counts(
                len(available), largest=min(available), imbalance=self.imbalance
            )
        share = cast(float, self.majority_share)
        counts = two_class_counts(self.num_images, majority_share=share)
        if len(available) != 2:
            raise DataError(
                f"data.long_tail.majority_share: is for two classes, and there are "
                f"{len(available)}; name them in data.long_tail.classes"
            )
        for number, there, key in zip(counts, available, ("first", "second"), strict=True):
            if number > there:
                raise DataError(
                    f"data.long_tail.num_images={self.num_images}: {number} images of the {key} "
                    f"class, of which there are {there}"
                )
        return counts


def exponential_counts(num_classes: int, *, largest: int, imbalance: float) -> list[int]:
    """`int(largest * (1 / imbalance) ** (c / (num_classes - 1)))` for each class c.

    The rule of CIFAR-LT (Cui et al., CVPR 2019, arXiv 1901.05555), there of all 500 or 5,000
    images a class; CDB's code takes 25 of each away first, for difficulty.
    """
    last = max(num_classes - 1, 1)
    return [max(1, int(largest * (1 / imbalance) ** (c / last))) for c in range(num_classes)]


def two_class_counts(num_images: int, *, majority_share: float) -> list[int]:
    """Images of the majority and of the minority, together `num_images`.

    As in the experiment of Ren et al. (ICML 2018, arXiv 1803.09050) on 5,000 images of MNIST.
    """
    minority = max(1, round(num_images * (1 - majority_share)))
    return [num_images - minority, minority]


def divide(
    by_class: Mapping[str, Sequence[int]],
    *,
    tail: LongTail | None,
    val_per_class: int,
    seed: int | None,
) -> dict[str, list[int]]:
    """Images of a balanced training set to train on, and for validation: "train" and "val".

    Of each class the last `val_per_class` are validation's; of the others the first are kept, so
    many as the tail says. With a seed its images are shuffled first, those of equally large classes
    by the same permutation; the order of classes is that of `by_class`, whose first is to be the
    most frequent.

    Args:
        by_class: class name -> its images, as numbers in the file's order.
        tail: None keeps all of the rest.
        val_per_class: images of each class.
        seed: None: in the file's order, as CDB's code has it.

    Raises:
        DataError: a class has too few.
    """
    rest, val = [], []
    for name, images in by_class.items():
        if not images:
            raise DataError(f"data.long_tail: class {name!r} has no training image")
        if len(images) <= val_per_class:
            raise DataError(
                f"data.val_per_class={val_per_class}: class {name!r} has {len(images)} training "
                "images, and one at least is to be trained on"
            )
        ordered = list(images)
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            ordered = [images[i] for i in torch.randperm(len(images), generator=generator)]
        cut = len(ordered) - val_per_class
        rest.append(ordered[:cut])
        val += ordered[cut:]
    counts = [len(images) for images in rest]
    kept = tail.counts(counts) if tail else counts
    train = [i for images, number in zip(rest, kept, strict=True) for i in images[:number]]
    return {"train": sorted(train), "val": sorted(val)}
