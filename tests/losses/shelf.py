"""What the tests of the shelf share: counts, batches, and the losses in all their forms."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cdb_video.losses import (
    LOSSES,
    ClassBalancedLoss,
    CrossEntropyLoss,
    DeferredReweighting,
    WeightedLoss,
)

K = 4
COUNTS = torch.tensor([900, 95, 4, 1])
"""The shares of the last two are below 0.005: rare for `equalization`."""


def deferred(
    num_classes: int, *, ignore_index: int = -100, label_smoothing: float = 0.0, **options: Any
) -> nn.Module:
    base = CrossEntropyLoss(
        num_classes,
        reduction="none",
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
    )
    return DeferredReweighting(
        num_classes, base=base, defer=0.0, ignore_index=ignore_index, **options
    )


FORMS: dict[str, Callable[..., nn.Module]] = {
    **LOSSES,
    "weighted effective": partial(WeightedLoss, scheme="effective"),
    "class_balanced focal": partial(ClassBalancedLoss, base="focal"),
    "deferred": deferred,
}
"""Every loss of the shelf, and what one name of it can also be."""


def made(name: str, *, class_counts: Tensor = COUNTS, **options: Any) -> nn.Module:
    return FORMS[name](len(class_counts), class_counts=class_counts, **options)


def batch(
    n: int = 12, k: int = K, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, k, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(k, (n,), generator=generator)


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance, check_dtype=False)


def gradients_agree(criterion: nn.Module) -> None:
    """Gradients in fp64 against finite differences, one label ignored."""
    logits, target = batch(5, dtype=torch.float64)
    target[1] = -100
    torch.autograd.gradcheck(lambda z: criterion(z, target), logits.requires_grad_())


def seeded(criterion: nn.Module, logits: Tensor, target: Tensor) -> Tensor:
    """The loss with the same coins each time (equalization tosses them)."""
    torch.manual_seed(0)
    loss: Tensor = criterion(logits, target)
    return loss
