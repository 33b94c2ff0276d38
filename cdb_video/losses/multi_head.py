"""One loss a head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from cdb_video.counts import ClassCounts
from cdb_video.losses.cdb import CDBLoss
from cdb_video.losses.difficulty import ClassDifficulty


class MultiHeadLoss(nn.Module):
    """{head: (N, K)} logits and {head: (N,)} labels -> {head: ()} losses.

    Args:
        losses: head -> loss.
        head_weights: head -> its factor in `total`; 1 where not given.

    """

    def __init__(
        self, losses: Mapping[str, nn.Module], *, head_weights: Mapping[str, float] | None = None
    ) -> None:
        super().__init__()
        unknown = sorted(set(head_weights or {}) - set(losses))
        if unknown:
            raise ValueError(f"head_weights names {unknown[0]!r}; the heads are {list(losses)}")
        self.losses = nn.ModuleDict(losses)
        self.head_weights = dict.fromkeys(losses, 1.0) | dict(head_weights or {})

    def forward(
        self, logits: Mapping[str, Tensor], labels: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Each head's loss, not yet weighed against the others."""
        return {head: loss(logits[head], labels[head]) for head, loss in self.losses.items()}

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum over heads, ()."""
        return torch.stack([self.head_weights[head] * loss for head, loss in losses.items()]).sum()

    def update(self, counts: Mapping[str, ClassCounts]) -> None:
        """Hand class counts to the losses of their heads; a loss without state ignores them.

        A head without a single labelled clip was not measured: its loss stays as it is.

        Raises:
            ValueError: a head that is none of these.

        """
        for head, measured in counts.items():
            if head not in self.losses:
                raise ValueError(f"counts names {head!r}; the heads are {list(self.losses)}")
            loss = self.losses[head]
            if isinstance(loss, CDBLoss) and measured.num_classes_present > 0:
                loss.update(measured)

    @property
    def difficulties(self) -> dict[str, ClassDifficulty]:
        """Head -> the difficulty that its loss follows, for the heads with CDB."""
        return {
            head: loss.class_difficulty
            for head, loss in self.losses.items()
            if isinstance(loss, CDBLoss)
        }

    def start_epoch(self, epoch: int, num_epochs: int) -> None:
        """Tell the losses that want to know which epoch begins, counted from 0."""
        for loss in self.losses.values():
            start = getattr(loss, "start_epoch", None)
            if start is not None:
                start(epoch, num_epochs)

    def class_weights(self, head: str) -> Tensor:
        """(K,) weights of a head's loss; ones for a loss that weighs no class."""
        loss = self.losses[head]
        if hasattr(loss, "class_weights"):
            return cast(Tensor, loss.class_weights)
        return torch.ones(cast(int, loss.num_classes))
