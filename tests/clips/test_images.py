"""Images as videos, and small ones in memory: pixels, draws by the key, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cdb_video.clips.dataset import ClipSampler, EvaluationViews, open_record
from cdb_video.clips.decoders import open_video
from cdb_video.clips.image_memory import ImageClips, ImageMemory
from cdb_video.clips.loader import EvaluationLoader, TrainingLoader, TrainingOrder
from cdb_video.clips.transforms import Augmentation, EvaluationCrops, ToModelInput, move
from cdb_video.datasets.annotations import Split
from cdb_video.datasets.image_files import read_pixels
from cdb_video.datasets.readers import read_split
from cdb_video.errors import DecodeError
from cdb_video.prepare.files import FileCheck, VideoFile
from cdb_video.prepare.findings import Finding
from tests.image_files import write_image, write_mnist

SIDE = 16
PAD = Augmentation(crop_size=SIDE, short_side=SIDE, crop="pad", padding=2)


@pytest.fixture
def mnist(tmp_path: Path) -> Split:
    return read_split(write_mnist(tmp_path, per_class=6), format="images", split="train")


def memory(side: int = SIDE) -> ImageMemory:
    return ImageMemory(EvaluationCrops(crop_size=side, short_side=side), opener=open_record)


def plain(images: Tensor) -> Tensor:
    return ToModelInput((0.0,) * 3, (1.0,) * 3, 255.0)(images)


def test_an_image_is_a_video_of_one_frame(tmp_path: Path) -> None:
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    path = write_image(tmp_path / "a.png", pixels)

    with open_video(path) as video:
        assert (video.num_frames, video.height, video.width) == (1, 4, 6)
        assert video.times.tolist() == [0.0]
        assert np.array_equal(video.frames(torch.tensor([0, 0]))[1].permute(1, 2, 0), pixels)


def test_a_file_of_many_images_is_a_video_with_a_frame_an_image(mnist: Split) -> None:
    path = mnist.records[0].path

    with open_video(path) as video:
        assert (video.num_frames, video.fps) == (24, 1.0)
        assert video.index_at(5.0) == 5
        frames = video.frames(torch.tensor([7, 2]))
    expected = read_pixels(path)
    assert np.array_equal(frames.permute(0, 2, 3, 1), expected[[7, 2]])


@pytest.mark.parametrize("name", ["a.png", "train-images-idx3-ubyte", "test_batch"])
def test_a_file_that_is_none_is_named_once(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"nothing of the kind")

    with pytest.raises(DecodeError) as caught:
        open_video(path)

    assert str(caught.value).count(str(path)) == 1


@pytest.mark.parametrize("side", [16, 8])
def test_images_in_memory_are_the_evaluation_views_of_the_decoders(mnist: Split, side: int) -> None:
    crops = EvaluationCrops(crop_size=side, short_side=side)
    sampler = ClipSampler(num_frames=1, stride=1)
    decoded = EvaluationViews(mnist.records, sampler=sampler, crops=crops)
    kept = ImageClips(mnist.records, memory(side))

    batches = list(EvaluationLoader(kept, clips_per_batch=10))

    assert [len(batch) for batch in batches] == [10, 10, 4]
    assert torch.equal(
        torch.cat([batch.clips for batch in batches]),
        torch.stack([decoded[i].clips for i in range(24)]),
    )
    assert torch.equal(torch.cat([b.labels["label"] for b in batches]), mnist.labels("label"))
    assert batches[0].appearance.shift is None


def test_folders_of_images_are_decoded_once_and_what_two_splits_share_is_kept(
    tmp_path: Path,
) -> None:
    made = np.random.default_rng(0).integers(256, size=(6, SIDE, SIDE, 3), dtype=np.uint8)
    for i, pixels in enumerate(made):
        write_image(tmp_path / f"train/{'ab'[i % 2]}/{i}.png", pixels)
    split = read_split(tmp_path, format="images", split="train")
    kept, seen = memory(), 0

    def count() -> None:
        nonlocal seen
        seen += 1

    kept.load(split.records[:4], num_workers=2, progress=count)
    rows = kept.rows(split.records)

    assert (seen, len(kept)) == (4, 6)
    order = [int(record.path.stem) for record in split.records]
    assert np.array_equal(kept.pixels(rows).permute(0, 2, 3, 1), made[order])
    (split.records[0].path).unlink()
    assert torch.equal(kept.rows(split.records), rows)
    before = kept._pixels.data_ptr()
    kept.rows(split.records)
    assert kept._pixels.data_ptr() == before  # nothing was copied for nothing


def training_clips(split: Split, augmentation: Augmentation = PAD, seed: int = 3) -> ImageClips:
    return ImageClips(split.records, memory(), augmentation=augmentation, seed=seed)


def test_what_is_drawn_depends_on_the_seed_and_the_key_alone(mnist: Split) -> None:
    clips = training_clips(mnist)
    [(first, _)] = clips.batches([[(0, 3), (0, 9), (1, 3), (0, 3, 1)]])
    [(again, _)] = training_clips(mnist).batches([[(0, 9), (0, 3)]])
    [(other, _)] = training_clips(mnist, seed=4).batches([[(0, i) for i in range(24)]])
    [(whole, _)] = clips.batches([[(0, i) for i in range(24)]])

    assert first.appearance.shift is not None
    assert again.appearance.shift is not None
    assert torch.equal(again.appearance.shift, first.appearance.shift[[1, 0]])
    assert torch.equal(again.appearance.flip, first.appearance.flip[[1, 0]])
    assert other.appearance.shift is not None
    assert whole.appearance.shift is not None
    assert not torch.equal(other.appearance.shift, whole.appearance.shift)
    draws = {tuple(shift) for shift in first.appearance.shift[[0, 2, 3]].tolist()}
    assert len(draws) > 1  # another epoch or repeat is another draw
    # 5 x 5 places; of 24 images each side and both directions are seen.
    assert whole.appearance.shift.min() == -2
    assert whole.appearance.shift.max() == 2
    assert 0 < whole.appearance.flip.sum() < 24


def test_classes_that_must_not_be_mirrored_are_not(mnist: Split) -> None:
    clips = training_clips(mnist, replace(PAD, no_flip_labels={"label": {1, 2}}))
    [(batch, _)] = clips.batches([[(epoch, i) for epoch in range(4) for i in range(24)]])

    kept = (batch.labels["label"] == 1) | (batch.labels["label"] == 2)
    assert not batch.appearance.flip[kept].any()
    assert batch.appearance.flip[~kept].any()


def test_colour_factors_are_within_their_range(mnist: Split) -> None:
    clips = training_clips(mnist, replace(PAD, color_jitter=0.4))
    [(batch, _)] = clips.batches([[(0, i) for i in range(24)]])

    assert batch.appearance.jitter.min() >= 0.6
    assert batch.appearance.jitter.max() <= 1.4
    assert batch.appearance.jitter.std() > 0.1


def test_stronger_changes_are_torchvisions_by_image(mnist: Split) -> None:
    keys = [(0, i) for i in range(24)]
    [(erased, _)] = training_clips(mnist, replace(PAD, erase=1.0)).batches([keys])
    [(whole, _)] = training_clips(mnist).batches([keys])

    changed = (erased.clips != whole.clips).flatten(1).any(1)
    assert changed.all()
    assert (erased.clips[erased.clips != whole.clips] == 127).all()


def test_ranks_share_a_step_and_see_what_one_process_sees(mnist: Split) -> None:
    from cdb_video.distributed import Ranks

    def batches(rank: int, world_size: int) -> list[tuple[Tensor, Tensor]]:
        order = TrainingOrder(
            24, global_batch_size=8, seed=0, ranks=Ranks(rank, world_size=world_size)
        )
        loader = TrainingLoader(training_clips(mnist), order, num_workers=0, pin_memory=False)
        found = list(loader.epoch(2, first_step=1))
        assert all(batch.appearance.shift is not None for batch in found)
        return [
            (b.indices, b.appearance.shift if b.appearance.shift is not None else b.indices)
            for b in found
        ]

    alone, first, second = batches(0, 1), batches(0, 2), batches(1, 2)

    assert len(alone) == 2
    for whole, *parts in zip(alone, first, second, strict=True):
        for of_all, of_first, of_second in zip(whole, *parts, strict=True):
            assert torch.equal(of_all[0::2], of_first)
            assert torch.equal(of_all[1::2], of_second)


def test_a_shift_is_the_crop_of_the_padded_image() -> None:
    pixels = torch.randint(1, 256, (5, 3, 2, 6, 7), dtype=torch.uint8)
    shift = torch.tensor([[0, 0], [2, -2], [-1, 1], [-2, -2], [1, 0]])

    moved = move(pixels, shift, most=2)

    padded = F.pad(pixels, (2, 2, 2, 2))
    for image, (down, right), found in zip(padded, (shift + 2).tolist(), moved, strict=True):
        assert torch.equal(found, image[..., down : down + 6, right : right + 7])
    # By hand: up by two and to the right by two.
    assert torch.equal(moved[1][..., :4, 2:], pixels[1][..., 2:, :5])
    assert not moved[1][..., 4:, :].any()
    assert not moved[1][..., :2].any()


def test_the_model_sees_the_flip_and_then_the_shift(mnist: Split) -> None:
    [(batch, _)] = training_clips(mnist).batches([[(0, i) for i in range(24)]])
    to_input = ToModelInput((0.0,) * 3, (1.0,) * 3, 255.0, padding=2, jitter=False)

    seen = to_input(batch.clips.flatten(0, 1), batch.appearance)

    assert batch.appearance.shift is not None
    images = batch.clips.flatten(0, 1)
    flipped = torch.where(batch.appearance.flip[:, None, None, None, None], images.flip(-1), images)
    assert torch.equal(seen, plain(move(flipped, batch.appearance.shift, most=2)))
    assert seen.is_contiguous(memory_format=torch.channels_last_3d)


def test_a_padded_crop_of_a_decoded_clip_is_the_centre_and_a_shift() -> None:
    augmentation = Augmentation(crop_size=8, short_side=16, crop="pad", padding=3)
    generator = torch.Generator().manual_seed(0)

    window = augmentation.window(16, 24, generator=generator)
    shifts = [augmentation.appearance({}, generator=generator).shift for _ in range(200)]

    assert window == (4, 8, 8, 8)
    stacked = torch.stack([shift for shift in shifts if shift is not None])
    assert stacked.shape == (200, 2)
    # 200 draws of 7 numbers: each is left out with a chance of (6/7)^200 = 4e-14.
    assert sorted(set(stacked[:, 0].tolist())) == list(range(-3, 4))


@pytest.mark.parametrize("name", ["a.png", "packed"])
def test_the_doctor_finds_nothing_in_sound_images_and_names_damaged_ones(
    tmp_path: Path, mnist: Split, name: str
) -> None:
    check = FileCheck(ClipSampler(num_frames=1, stride=1))
    if name == "packed":
        file = VideoFile(mnist.records[0].path, tuple(("train", r) for r in mnist.records))
    else:
        path = write_image(tmp_path / name, np.zeros((99, 99), np.uint8))
        file = VideoFile(path, (("train", replace(mnist.records[0], path=path, start_s=None)),))

    assert not [probe for probe in check(file) if isinstance(probe, Finding)]

    content = file.path.read_bytes()
    file.path.write_bytes(content[: len(content) // 2])
    [finding] = [probe for probe in check(file) if isinstance(probe, Finding)]
    assert finding.kind in {"unreadable", "damaged"}
    assert finding.where.startswith(str(file.path))
