"""How the views of many videos are cut into forward passes, and put together again."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from cdb_video.clips.batch import Appearance, Batch
from cdb_video.evaluation.full_forwards import Scores, full_parts, one_late, score_batches

CPU = torch.device("cpu")


def batches_of(sizes: Sequence[int], *, views: int, yuv: bool = False) -> list[Batch]:
    """Clips of one pixel that count up from 0 over all batches; `to_rgb` counts too."""
    made, first = [], 0
    for size in sizes:
        numbers = torch.arange(first, first + size * views)
        first += size * views
        made.append(
            Batch(
                clips=numbers.to(torch.uint8).reshape(size, views, 1, 1, 1, 1),
                labels={},
                indices=torch.arange(size),
                appearance=Appearance(
                    flip=torch.zeros(size, dtype=torch.bool), jitter=torch.ones(size, 3)
                ),
                to_rgb=torch.arange(size).float().reshape(-1, 1, 1).expand(-1, 3, 4)
                if yuv
                else None,
            )
        )
    return made


def numbers(clips: Tensor) -> list[int]:
    found: list[int] = clips.flatten().tolist()
    return found


@pytest.mark.parametrize(
    ("sizes", "views", "size", "expected"),
    [
        ([2, 1], 3, 4, [4, 4, 1]),  # 9 clips: the second part ends the second video
        ([1, 1], 30, 32, [32, 28]),
        ([5, 0, 1], 1, 2, [2, 2, 2]),
        ([1], 7, 3, [3, 3, 1]),
        ([0], 2, 4, []),
    ],
)
def test_parts_are_full_across_videos_and_in_order(
    sizes: list[int], views: int, size: int, expected: list[int]
) -> None:
    parts = [
        numbers(clips) for clips, _ in full_parts(batches_of(sizes, views=views), size, device=CPU)
    ]

    assert [len(part) for part in parts] == expected
    assert [number for part in parts for number in part] == list(range(sum(sizes) * views))


def test_every_batch_gets_the_scores_of_its_own_clips() -> None:
    batches = batches_of([2, 0, 1, 3], views=3)
    sizes = []

    def forward(clips: Tensor, to_rgb: Tensor | None) -> Scores:
        sizes.append(len(clips))
        return {"verb": clips.flatten()[:, None].float(), "noun": -clips.flatten(1).float()}

    scored = list(score_batches(batches, forward, size=5, device=CPU))

    assert sizes == [5, 5, 5, 3]
    assert [batch for batch, _ in scored] == batches
    assert scored[1][1] == {}
    for batch, scores in [scored[0], *scored[2:]]:
        assert torch.equal(scores["verb"][..., 0], batch.clips[:, :, 0, 0, 0, 0].float())
        assert torch.equal(scores["noun"], -scores["verb"])


def test_planes_travel_with_the_matrix_of_their_own_video() -> None:
    batches = batches_of([2, 2], views=2, yuv=True)

    parts = list(full_parts(batches, 3, device=CPU))

    found = [matrix[:, 0, 0].tolist() for _, matrix in parts if matrix is not None]
    assert found == [[0, 0, 1], [1, 0, 0], [1, 1]]


def test_a_forward_is_read_when_the_next_one_has_been_given() -> None:
    given: list[int] = []

    def forwards():  # type: ignore[no-untyped-def]
        for i in range(3):
            given.append(i)
            yield {"verb": torch.tensor([i])}

    seen = [(int(scores["verb"]), len(given)) for scores in one_late(forwards())]

    assert seen == [(0, 2), (1, 3), (2, 3)]
