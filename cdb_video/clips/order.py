"""Which records a rank takes, batch by batch: arithmetic, of which nothing is remembered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from cdb_video.clips.batch import even_parts
from cdb_video.clips.dataset import sample_generator
from cdb_video.distributed import ONE_PROCESS, Ranks
from cdb_video.errors import ConfigError


class TrainingOrder(Sampler[list[tuple[int, ...]]]):
    """This rank's (epoch, index) keys, a list a step.

    The order of an epoch is a permutation drawn from (seed, epoch); step s takes the s-th
    `global_batch_size` of it, and every rank its part. So the clips of a step do not depend on the
    number of ranks. The incomplete last batch is dropped, unless it is the only one.

    With `draw_classes`, an epoch is as many draws of a class, and of one of its clips, in place of
    the permutation; these too follow from (seed, epoch) and the probabilities alone. The n-th
    repeat of a record has the key (epoch, index, n), and so frames and a crop of its own.
    """

    def __init__(
        self, num_records: int, *, global_batch_size: int, seed: int, ranks: Ranks = ONE_PROCESS
    ) -> None:
        world = ranks.world_size
        if global_batch_size % world:
            raise ConfigError(
                f"train.global_batch_size={global_batch_size} must divide by the {world} ranks"
            )
        if num_records < world:
            raise ConfigError(f"{num_records} training clips are too few for {world} ranks")
        self.num_records = num_records
        self.global_batch_size = global_batch_size
        self.batch_size = min(global_batch_size, num_records)
        self.seed = seed
        self.ranks = ranks
        self._epoch = self._first_step = 0
        self._classes: tuple[Tensor, Tensor] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Full global batches in the split."""
        return self.num_records // self.batch_size

    def forward_sizes(self, micro_batch_size: int) -> set[int]:
        """How many clips a forward has, on any rank, while no clip is left out."""
        world = self.ranks.world_size
        shares = {len(range(rank, self.batch_size, world)) for rank in range(world)}
        return {part for share in shares for part in even_parts(share, micro_batch_size)}

    def set_position(self, epoch: int, step: int = 0) -> None:
        """Where the next iteration starts."""
        self._epoch, self._first_step = epoch, step

    def draw_classes(self, labels: Tensor, probabilities: Tensor) -> None:
        """Draw classes from the next iteration on.

        Args:
            labels: (num_records,) class of each record; negative ones are never drawn.
            probabilities: (K,) with sum 1, and 0 for a class without a record.

        """
        counts = torch.bincount(labels[labels >= 0], minlength=len(probabilities))
        if bool(((counts == 0) & (probabilities > 0)).any()):
            index = int(((counts == 0) & (probabilities > 0)).nonzero()[0])
            raise ValueError(f"probabilities[{index}] is above 0, and the class has no record")
        self._classes = labels, probabilities

    def _drawn(self, generator: torch.Generator) -> list[int]:
        """The order of an epoch: records, with repeats where classes are drawn."""
        if self._classes is None:
            return torch.randperm(self.num_records, generator=generator).tolist()
        labels, probabilities = self._classes
        by_class = labels.argsort(stable=True)
        counts = torch.bincount(labels[labels >= 0], minlength=len(probabilities))
        first = (labels < 0).sum() + counts.cumsum(0) - counts
        draw, place = torch.rand(2, self.num_records, generator=generator, dtype=torch.float64)
        # Up to the last class that can be drawn: the sum of the shares may end below 1.
        last = int(probabilities.nonzero()[-1])
        chosen = torch.searchsorted(probabilities.cumsum(0), draw, right=True).clamp(max=last)
        chosen_place = (place * counts[chosen]).long()
        return by_class[first[chosen] + chosen_place].tolist()

    def __len__(self) -> int:
        return self.steps_per_epoch - self._first_step

    def _keys(self, epoch: int) -> Iterator[tuple[int, ...]]:
        drawn: Counter[int] = Counter()
        for index in self._drawn(sample_generator(self.seed, epoch)):
            yield (epoch, index, drawn[index]) if drawn[index] else (epoch, index)
            drawn[index] += 1

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        keys = list(self._keys(self._epoch))
        for step in range(self._first_step, self.steps_per_epoch):
            batch = keys[step * self.batch_size : (step + 1) * self.batch_size]
            yield batch[self.ranks.rank :: self.ranks.world_size]


class EvaluationOrder(Sampler[list[int]]):
    """This rank's records, each once over all ranks, unpadded: every world_size-th of the split."""

    def __init__(self, num_records: int, *, batch_size: int, ranks: Ranks = ONE_PROCESS) -> None:
        self.indices = range(ranks.rank, num_records, ranks.world_size)
        self.batch_size = batch_size
        most_records = -(-num_records // ranks.world_size)
        self.most_batches = -(-most_records // batch_size)
        """Of the rank that has most."""

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, len(self.indices), self.batch_size):
            yield list(self.indices[start : start + self.batch_size])
