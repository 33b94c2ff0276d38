"""Clips in memory against the files they came from."""

import os
import sys
from collections import Counter

import pytest
import torch

from cdb_video.clips import memory as memory_module
from cdb_video.clips.dataset import ClipSampler, EvaluationViews, TrainingClips, open_record
from cdb_video.clips.decoders import open_video
from cdb_video.clips.loader import TrainingLoader, TrainingOrder
from cdb_video.clips.memory import ClipMemory
from cdb_video.clips.transforms import Augmentation, EvaluationCrops
from cdb_video.datasets.annotations import VideoRecord
from cdb_video.errors import ConfigError, DecodeError

# On a machine with one core torch advises against workers; they are what is tested.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

WIDTH, HEIGHT = 64, 48
EVERY_FRAME = ClipSampler(num_frames=4, stride=2)


def record(path, **fields):
    values = {"id": path.stem, "video_id": path.stem, "recording": path.stem, "labels": {"verb": 1}}
    return VideoRecord(path=path, **values | fields)


@pytest.fixture
def records(coded_video):
    return [record(coded_video(f"{i}.mp4", num_frames=10 + i)) for i in range(5)]


def made(sampler=EVERY_FRAME, *, short_side=HEIGHT):
    return ClipMemory(sampler=sampler, short_side=short_side)


def test_kept_frames_are_those_of_the_file(coded_video, read_code):
    part = record(coded_video(num_frames=30))
    memory = made()

    memory.load([part])

    with memory.open(part) as kept, open_video(part.path) as video:
        assert kept.num_frames == 30
        assert kept.fps == video.fps
        assert torch.equal(kept.times, video.times)
        assert read_code(kept.frames(torch.arange(30))) == list(range(30))
        # Any order, with repeats.
        indices = torch.tensor([29, 0, 7, 7])
        assert torch.equal(kept.frames(indices), video.frames(indices))


def test_a_closed_clip_can_be_opened_again(coded_video, read_code):
    part = record(coded_video(num_frames=4))
    memory = made()
    memory.load([part])

    for _ in range(2):
        with memory.open(part) as kept:
            assert read_code(kept.frames(torch.arange(4))) == [0, 1, 2, 3]


def test_of_an_untrimmed_file_the_segment_alone_is_kept(coded_video, read_code):
    # 24 frames a second: 0.5 s is frame 12, and 1.0 s, exclusive, is frame 24.
    part = record(coded_video("long.mp4", num_frames=48), start_s=0.5, stop_s=1.0)
    memory = made()

    memory.load([part])

    kept = memory.open(part)
    assert kept.kept.tolist() == list(range(12, 24))
    assert kept.pixels.shape == (12, HEIGHT, WIDTH, 3)
    assert memory.num_bytes == 12 * 3 * HEIGHT * WIDTH
    assert read_code(kept.frames(torch.arange(12, 24))) == list(range(12, 24))
    for outside in (11, 24):
        with pytest.raises(DecodeError, match=r"long\.mp4: a frame outside the segment"):
            kept.frames(torch.tensor([12, outside]))


def test_two_segments_of_a_file_are_two_clips(coded_video, read_code):
    path = coded_video(num_frames=48)
    parts = [record(path, id=str(s), start_s=s, stop_s=s + 0.25) for s in (0.0, 1.0)]
    memory = made()

    memory.load(parts)

    assert len(memory) == 2
    assert read_code(memory.open(parts[0]).frames(torch.arange(6))) == list(range(6))
    assert read_code(memory.open(parts[1]).frames(torch.arange(24, 30))) == list(range(24, 30))


def test_on_a_grid_the_frames_of_the_grid_are_kept(coded_video, read_code):
    part = record(coded_video(num_frames=24))
    memory = made(ClipSampler(num_frames=4, stride=1, fps=12))

    memory.load([part])

    # Every second frame of 24 a second.
    kept = memory.open(part)
    assert kept.kept.tolist() == list(range(0, 24, 2))
    assert read_code(kept.frames(torch.tensor([0, 2, 22]))) == [0, 2, 22]


SAMPLERS = {
    "dense": EVERY_FRAME,
    "segments": ClipSampler(num_frames=4, stride=1, sampling="segments"),
    "grid": ClipSampler(num_frames=4, stride=1, fps=10),
}


@pytest.mark.parametrize("is_loaded", [True, False])
@pytest.mark.parametrize("sampling", SAMPLERS)
def test_clips_of_unscaled_frames_are_those_of_the_file_bit_for_bit(
    coded_video, sampling, is_loaded
):
    path = coded_video(num_frames=40)
    parts = [record(path), record(path, id="part", start_s=0.5, stop_s=1.2)]
    sampler = SAMPLERS[sampling]
    memory = made(sampler)
    if is_loaded:
        memory.load(parts)

    def drawn(opener):
        training = TrainingClips(
            parts,
            sampler=sampler,
            augmentation=Augmentation(crop_size=20, short_side=HEIGHT),
            seed=0,
            opener=opener,
        )
        views = EvaluationViews(
            parts,
            sampler=sampler,
            crops=EvaluationCrops(crop_size=40, short_side=HEIGHT, num_crops=3),
            num_clips=2,
            opener=opener,
        )
        random = [training[epoch, index].clips for epoch in range(4) for index in range(2)]
        return random, [views[index].clips for index in range(2)]

    for of_memory, of_file in zip(drawn(memory.open), drawn(open_record), strict=True):
        assert len(of_memory) == len(of_file)
        for mine, theirs in zip(of_memory, of_file, strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("size", [(64, 48), (48, 64)])
def test_larger_frames_are_scaled_to_the_short_side_whether_loaded_or_not(
    coded_video, read_code, size
):
    part = record(coded_video(num_frames=70, size=size))
    loaded, unloaded = made(short_side=24), made(short_side=24)

    loaded.load([part])

    kept, opened = loaded.open(part), unloaded.open(part)
    assert kept.pixels.shape == (70, size[1] // 2, size[0] // 2, 3)
    assert read_code(kept.pixels.permute(0, 3, 1, 2)) == list(range(70))
    assert torch.equal(kept.pixels, opened.pixels)
    assert (len(loaded), len(unloaded)) == (1, 0)


def test_smaller_frames_stay_as_they_are(coded_video):
    part = record(coded_video(num_frames=4))

    assert made(short_side=100).open(part).pixels.shape == (4, HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_second_load_decodes_nothing(records, read_code, num_workers):
    memory, calls = made(), Counter()
    first, last = records[:3], records[3:]

    def load(name, parts):
        memory.load(parts, num_workers=num_workers, progress=lambda: calls.update([name]))

    load("first", first)
    for part in first:
        part.path.unlink()  # what is decoded once more would not be found
    load("again", first)
    load("all", [*first, *last])

    assert calls == {"first": 3, "all": 2}
    assert len(memory) == 5
    for i, part in enumerate(records):
        frames = memory.open(part).frames(torch.arange(10 + i))
        assert read_code(frames) == list(range(10 + i))


def message_of(call):
    with pytest.raises(DecodeError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_file_is_named_in_one_line(records, num_workers):
    records[2].path.write_bytes(b"\x07garbage" * 500)
    memory = made()

    message = message_of(lambda: memory.load(records, num_workers=num_workers))

    assert message.startswith(f"{records[2].path}: ")
    assert "\n" not in message
    assert message == message_of(lambda: memory.open(records[2]))
    assert len(memory) == 2


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_segment_without_a_frame_is_named(records, num_workers):
    late = record(records[0].path, id="late", start_s=9.0)

    message = message_of(lambda: made().load([late], num_workers=num_workers))

    assert message.startswith(f"{late.path}: segment late from 9 s to the end has no frame")


def storages(memory, parts):
    return {memory.open(part).pixels.untyped_storage().data_ptr() for part in parts}


def test_clips_share_blocks_of_memory(records, read_code, monkeypatch):
    memory = made()
    memory.load(records)
    # 10 to 14 frames; a block has room for 25: [10, 11], [12, 13], [14].
    monkeypatch.setattr(memory_module, "BLOCK_BYTES", 25 * 3 * HEIGHT * WIDTH)
    in_blocks = made()

    in_blocks.load(records)

    assert len(storages(memory, records)) == 1
    assert len(storages(in_blocks, records)) == 3
    assert memory.num_bytes == in_blocks.num_bytes == 60 * 3 * HEIGHT * WIDTH
    for i, part in enumerate(records):
        assert read_code(in_blocks.open(part).pixels.permute(0, 3, 1, 2)) == list(range(10 + i))


def test_a_clip_larger_than_a_block_has_its_own(records, read_code, monkeypatch):
    monkeypatch.setattr(memory_module, "BLOCK_BYTES", 1000)
    memory = made()

    memory.load(records)

    assert len(storages(memory, records)) == 5
    assert read_code(memory.open(records[4]).pixels.permute(0, 3, 1, 2)) == list(range(14))


@pytest.mark.skipif(sys.platform != "linux", reason="counts open files in /proc")
def test_what_workers_decoded_holds_no_file_open(records):
    # A tensor that a worker sent is a file: thousands of clips would be too many open ones.
    memory = made()
    before = len(os.listdir("/proc/self/fd"))

    memory.load(records, num_workers=1)

    assert len(memory) == 5
    assert len(os.listdir("/proc/self/fd")) < before + 5


def test_more_than_the_machine_holds_is_refused_by_key(records, monkeypatch):
    monkeypatch.setattr(memory_module, "LARGEST_SHARE", 0.0)

    with pytest.raises(ConfigError, match=r"data\.in_memory=true: the first 1 clips take more"):
        made().load(records)


def test_workers_of_a_training_loader_read_the_memory(records):
    memory = made()
    memory.load(records)
    for part in records:
        part.path.unlink()

    def batches(num_workers):
        clips = TrainingClips(
            records,
            sampler=EVERY_FRAME,
            augmentation=Augmentation(crop_size=16, short_side=HEIGHT),
            seed=0,
            opener=memory.open,
        )
        order = TrainingOrder(5, global_batch_size=5, seed=0)
        return TrainingLoader(clips, order, num_workers=num_workers, pin_memory=False).epoch(0)

    [alone], [of_worker] = batches(0), batches(1)

    assert torch.equal(alone.clips, of_worker.clips)
    assert torch.equal(alone.indices, of_worker.indices)
