"""Which classes a training epoch draws: by count, evenly, or by difficulty."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from cdb_video.counts import ClassCounts
from cdb_video.losses.cdb import CDBSampling

ClassSamplingKind = Literal["sqrt", "class_balanced", "progressive", "cdb"]


class ClassSampling(nn.Module):
    """The share of an epoch's draws that each class of one head gets.

    With n_c clips of class c: "sqrt" draws by sqrt(n_c), "class_balanced" evenly, "progressive"
    goes from n_c to evenly in equal steps over the epochs (Kang et al., "Decoupling Representation
    and Classifier for Long-Tailed Recognition", ICLR 2020, arXiv 1910.09217), and "cdb" draws by
    difficulty^tau. A class without a clip is never drawn.

    Args:
        kind: one of these.
        head: whose classes are drawn.
        class_counts: (K,) its training clips.
        cdb: the difficulties, for "cdb".

    """

    def __init__(
        self,
        kind: ClassSamplingKind,
        *,
        head: str,
        class_counts: Tensor,
        cdb: CDBSampling | None = None,
    ) -> None:
        super().__init__()
        if kind not in get_args(ClassSamplingKind):
            allowed = ", ".join(get_args(ClassSamplingKind))
            raise ValueError(f"kind must be one of {allowed}, got {kind!r}")
        if (kind == "cdb") != (cdb is not None):
            raise ValueError(f"kind={kind!r}: cdb is given for 'cdb' alone")
        self.kind: ClassSamplingKind = kind
        self.head = head
        self.class_counts = class_counts.double()
        self.cdb = cdb

    def update(self, measured: ClassCounts) -> None:
        """Draw by a new measurement of the head's classes, where difficulty matters."""
        if self.cdb is not None and measured.num_classes_present:
            self.cdb.update(measured)

    def probabilities(self, epoch: int, num_epochs: int) -> Tensor:
        """(K,) float64 on the CPU, with sum 1; epochs count from 0."""
        if self.cdb is not None:
            return self.cdb.probabilities.cpu()
        evenly = (self.class_counts > 0).double()
        if self.kind == "class_balanced":
            return evenly / evenly.sum()
        if self.kind == "sqrt":
            return self.class_counts.sqrt() / self.class_counts.sqrt().sum()
        progress = epoch / max(num_epochs - 1, 1)
        return torch.lerp(
            self.class_counts / self.class_counts.sum(), evenly / evenly.sum(), progress
        )
