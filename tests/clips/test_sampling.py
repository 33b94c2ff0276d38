"""Which frames make a clip, by hand on short videos and as properties on any."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdb_video.clips.sampling import grid_indices, random_clip, segment_clip, uniform_clips

LENGTHS = st.integers(1, 400)
SIZES = st.integers(1, 40)
STRIDES = st.integers(1, 9)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_clip_that_just_fits_starts_at_zero():
    clip = random_clip(10, num_frames=4, stride=3)  # span 10

    assert clip.tolist() == [0, 3, 6, 9]


def test_clip_longer_than_the_video_repeats_its_last_frame():
    clip = random_clip(5, num_frames=4, stride=2)

    assert clip.tolist() == [0, 2, 4, 4]


def test_every_start_that_fits_is_drawn_equally_often():
    # 10 frames, span 7: starts 0 to 3. 4000 draws: 1000 each, standard deviation 27.4.
    generator = seeded(0)
    starts = [
        int(random_clip(10, num_frames=4, stride=2, generator=generator)[0]) for _ in range(4000)
    ]

    counts = torch.bincount(torch.tensor(starts), minlength=4)

    assert len(counts) == 4
    assert (counts - 1000).abs().max() < 5 * 27.4


def test_same_generator_state_draws_the_same_clip():
    first = random_clip(1000, num_frames=4, stride=2, generator=seeded(7))
    again = random_clip(1000, num_frames=4, stride=2, generator=seeded(7))

    assert torch.equal(first, again)


def test_uniform_clips_run_from_the_first_frame_to_the_last():
    # span 4, starts 0..6: round(linspace(0, 6, 3)) = 0, 3, 6
    clips = uniform_clips(10, num_clips=3, num_frames=2, stride=3)

    assert clips.tolist() == [[0, 3], [3, 6], [6, 9]]


def test_one_uniform_clip_is_the_middle():
    clips = uniform_clips(10, num_clips=1, num_frames=2, stride=3)

    assert clips.tolist() == [[3, 6]]


def test_uniform_clips_of_a_short_video_are_all_alike():
    clips = uniform_clips(3, num_clips=2, num_frames=4, stride=1)

    assert clips.tolist() == [[0, 1, 2, 2], [0, 1, 2, 2]]


def test_segment_middles_of_ten_frames():
    # segments [0,2) [2,5) [5,7) [7,10): middles 1, 3, 6, 8
    clip = segment_clip(10, num_frames=4)

    assert clip.tolist() == [1, 3, 6, 8]


def test_segments_of_a_short_video_repeat_neighbours():
    assert segment_clip(3, num_frames=6).tolist() == [0, 0, 1, 1, 2, 2]


def test_a_random_segment_frame_reaches_the_whole_segment():
    # segments [0,3) [3,6): 200 draws miss one of three with chance 2e-35
    generator = seeded(0)
    draws = torch.stack([segment_clip(6, num_frames=2, generator=generator) for _ in range(200)])

    assert draws[:, 0].unique().tolist() == [0, 1, 2]
    assert draws[:, 1].unique().tolist() == [3, 4, 5]


@given(LENGTHS, SIZES, STRIDES, st.integers(0, 2**31))
def test_random_clip_is_stride_apart_and_in_range(length, num_frames, stride, seed):
    clip = random_clip(length, num_frames=num_frames, stride=stride, generator=seeded(seed))

    span = (num_frames - 1) * stride + 1
    steps = clip.diff()
    assert clip.shape == (num_frames,)
    assert clip.dtype == torch.int64
    assert clip[0] >= 0
    assert clip[-1] <= length - 1
    if span <= length:
        assert (steps == stride).all()
    else:
        expected = [min(i * stride, length - 1) for i in range(num_frames)]
        assert clip.tolist() == expected


@given(LENGTHS, st.integers(2, 12), SIZES, STRIDES)
def test_uniform_clips_reach_both_ends_in_order(length, num_clips, num_frames, stride):
    clips = uniform_clips(length, num_clips=num_clips, num_frames=num_frames, stride=stride)

    assert clips.shape == (num_clips, num_frames)
    assert clips[0, 0] == 0
    assert clips[-1, -1] == length - 1 or num_frames == 1  # also where the last frame repeats
    assert (clips[:, 0].diff() >= 0).all()


@given(LENGTHS, SIZES, st.none() | st.integers(0, 2**31))
def test_segment_clip_takes_one_frame_of_each_segment(length, num_frames, seed):
    generator = None if seed is None else seeded(seed)
    clip = segment_clip(length, num_frames=num_frames, generator=generator)

    for i, index in enumerate(clip.tolist()):
        first, stop = i * length // num_frames, (i + 1) * length // num_frames
        assert first <= index < max(stop, first + 1) <= length


@pytest.mark.parametrize("source_fps", [24, 25, 30, 60])
def test_grid_takes_the_same_seconds_from_every_frame_rate(source_fps):
    times = torch.arange(10 * source_fps, dtype=torch.float64) / source_fps

    indices = grid_indices(times, start_s=2.0, stop_s=4.0, fps=8)

    assert len(indices) == 16
    grid = 2.0 + torch.arange(16) / 8
    late = grid - times[indices]
    assert (late > -1e-6).all()
    assert (late < 1 / source_fps).all()


def test_grid_at_the_source_rate_is_every_frame():
    times = torch.arange(48, dtype=torch.float64) / 24

    assert grid_indices(times, start_s=0.5, stop_s=1.0, fps=24).tolist() == list(range(12, 24))


def test_grid_of_a_variable_rate_repeats_the_frame_that_stays():
    times = torch.tensor([0.0, 0.1, 0.6, 0.7], dtype=torch.float64)

    # at 0, .2, .4, .6, .8
    assert grid_indices(times, start_s=0, stop_s=1, fps=5).tolist() == [0, 1, 1, 2, 3]


def test_grid_shorter_than_a_step_has_one_frame():
    times = torch.arange(10, dtype=torch.float64) / 10

    assert grid_indices(times, start_s=0.55, stop_s=0.55, fps=5).tolist() == [5]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: random_clip(0, num_frames=4, stride=1), "video_length=0"),
        (lambda: random_clip(9, num_frames=0, stride=1), "num_frames=0"),
        (lambda: uniform_clips(9, num_clips=1, num_frames=4, stride=0), "stride=0"),
        (lambda: uniform_clips(9, num_clips=-1, num_frames=4, stride=1), "num_clips=-1"),
        (lambda: segment_clip(-3, num_frames=4), "video_length=-3"),
        (lambda: grid_indices(torch.zeros(1), start_s=0, stop_s=1, fps=0), "fps=0"),
        (lambda: grid_indices(torch.zeros(0), start_s=0, stop_s=1, fps=8), "times"),
        (lambda: grid_indices(torch.zeros(1), start_s=0, stop_s=float("nan"), fps=8), "stop_s=nan"),
    ],
)
def test_impossible_argument_is_named_with_its_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()
