"""Windows by hand and as properties; what the device does to pixels, against plain formulas."""

import math

import pytest
import torch
import torchvision.transforms.v2.functional as TF
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop

from cdb_video.clips.batch import Appearance
from cdb_video.clips.transforms import (
    Augmentation,
    EvaluationCrops,
    ToModelInput,
    Window,
    color_jitter,
    crop,
    jittered_window,
    random_resized_window,
    view_windows,
)

SIDES = st.integers(1, 400)
SEEDS = st.integers(0, 2**31)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def assert_inside(window, height, width):
    assert window.height >= 1
    assert window.width >= 1
    assert 0 <= window.top <= window.top + window.height <= height
    assert 0 <= window.left <= window.left + window.width <= width


# A frame of 240 x 320 whose shorter side becomes 256 pixels: a crop of 224 of them covers
# 240 * 224 / 256 = 210 source pixels, and leaves 30 of the shorter side, 110 of the longer.


def test_one_crop_is_the_centre():
    assert view_windows(240, 320, crop_size=224, short_side=256, num_crops=1) == [
        Window(top=15, left=55, height=210, width=210)
    ]


def test_three_crops_of_a_wide_frame_go_from_left_to_right():
    assert view_windows(240, 320, crop_size=224, short_side=256, num_crops=3) == [
        Window(15, 0, 210, 210),
        Window(15, 55, 210, 210),
        Window(15, 110, 210, 210),
    ]


def test_three_crops_of_a_tall_frame_go_from_top_to_bottom():
    assert view_windows(320, 240, crop_size=224, short_side=256, num_crops=3) == [
        Window(0, 15, 210, 210),
        Window(55, 15, 210, 210),
        Window(110, 15, 210, 210),
    ]


def test_crop_as_large_as_the_short_side_takes_all_of_it():
    [window] = view_windows(48, 64, crop_size=16, short_side=16, num_crops=1)

    assert window == Window(0, 8, 48, 48)


def test_evaluation_crops_are_the_view_windows():
    crops = EvaluationCrops(crop_size=224, short_side=256, num_crops=3)

    assert crops.windows(320, 240) == view_windows(
        320, 240, crop_size=224, short_side=256, num_crops=3
    )


def test_two_crops_are_refused():
    with pytest.raises(ValueError, match="num_crops must be 1 or 3, got 2"):
        view_windows(240, 320, crop_size=224, short_side=256, num_crops=2)


@given(SIDES, SIDES, st.integers(1, 300), st.integers(1, 300), st.sampled_from([1, 3]))
def test_view_windows_are_squares_inside_the_frame(height, width, crop_size, short_side, num_crops):
    windows = view_windows(
        height, width, crop_size=crop_size, short_side=short_side, num_crops=num_crops
    )

    assert len(windows) == num_crops
    for window in windows:
        assert_inside(window, height, width)
        assert window.height == window.width


@given(SIDES, SIDES, st.integers(1, 300), st.integers(1, 300), SEEDS)
def test_jittered_window_is_a_square_inside_the_frame(height, width, crop_size, short_side, seed):
    window = jittered_window(
        height,
        width,
        crop_size=crop_size,
        short_side=short_side,
        scale=(0.5, 2.0),
        generator=seeded(seed),
    )

    assert_inside(window, height, width)
    assert window.height == window.width


@given(SIDES, SIDES, SEEDS)
def test_random_resized_window_is_inside_the_frame(height, width, seed):
    window = random_resized_window(
        height, width, area=(0.05, 1.0), aspect=(0.3, 3.0), generator=seeded(seed)
    )

    assert_inside(window, height, width)


def test_jittered_window_has_the_drawn_scale_and_reaches_every_corner():
    # 224 of 256 to 320 pixels of a shorter side of 240: 210 down to 168 source pixels.
    generator = seeded(0)
    windows = [
        jittered_window(
            240, 320, crop_size=224, short_side=256, scale=(1.0, 1.25), generator=generator
        )
        for _ in range(2000)
    ]

    sides = [window.height for window in windows]
    assert (min(sides), max(sides)) == (168, 210)
    assert min(window.top for window in windows) == 0
    assert min(window.left for window in windows) == 0
    assert max(window.top for window in windows) > 65  # at most 240 - 168 = 72
    assert max(window.left + window.width for window in windows) == 320


def test_random_resized_share_is_uniform_and_ratio_log_uniform_in_their_bounds():
    # The largest side is sqrt(0.5 * 4 / 3) = 0.82 of the frame: nothing is ever drawn again.
    # Rounding moves a side of at least 433 pixels by half a pixel.
    generator = seeded(0)
    windows = [
        random_resized_window(
            1000, 1000, area=(0.25, 0.5), aspect=(3 / 4, 4 / 3), generator=generator
        )
        for _ in range(2000)
    ]

    shares = torch.tensor([w.height * w.width / 1e6 for w in windows], dtype=torch.float64)
    logs = torch.tensor([math.log(w.width / w.height) for w in windows], dtype=torch.float64)
    assert shares.min() > 0.25 * 0.997
    assert shares.max() < 0.5 * 1.003
    assert logs.abs().max() < math.log(4 / 3) + 0.003
    # Uniform on [a, b]: mean (a + b) / 2, deviation (b - a) / sqrt(12); five standard errors.
    assert abs(shares.mean() - 0.375) < 5 * 0.25 / math.sqrt(12 * 2000)
    assert abs(logs.mean()) < 5 * 2 * math.log(4 / 3) / math.sqrt(12 * 2000)
    assert logs.std() == pytest.approx(2 * math.log(4 / 3) / math.sqrt(12), rel=0.05)


def test_random_resized_windows_are_distributed_as_those_of_torchvision():
    # Shares up to 1 on a wide frame: most of the large ones stick out, and are drawn again.
    options = {"area": (0.08, 1.0), "aspect": (3 / 4, 4 / 3)}
    generator = seeded(0)
    ours = [random_resized_window(375, 500, **options, generator=generator) for _ in range(4000)]
    image = torch.zeros(1, 375, 500)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = [
            RandomResizedCrop.get_params(image, list(options["area"]), list(options["aspect"]))
            for _ in range(4000)
        ]

    mine = torch.tensor([[w.top, w.left, w.height, w.width] for w in ours]).double()
    for column, other in zip(mine.T, torch.tensor(theirs).double().T, strict=True):
        assert ks_2samp(column, other).pvalue > 1e-3
    assert (mine[:, 2] * mine[:, 3]).mean() / (375 * 500) == pytest.approx(0.43, abs=0.02)


@pytest.mark.parametrize(
    ("height", "width", "window"),
    [(100, 10, (43, 0, 13, 10)), (10, 100, (0, 43, 10, 13)), (30, 40, (0, 0, 30, 40))],
)
def test_a_random_resized_window_that_never_fits_is_the_largest_in_the_middle(
    height, width, window
):
    # All of the area; (30, 40) would fit at a ratio of 4 / 3 alone, which is never drawn.
    found = random_resized_window(
        height, width, area=(1.0, 1.0), aspect=(3 / 4, 4 / 3), generator=seeded(0)
    )

    assert (found.top, found.left, found.height, found.width) == window


@pytest.mark.parametrize("random_resized", [True, False])
def test_window_depends_on_the_generator_alone(random_resized):
    augmentation = Augmentation(
        crop_size=16, short_side=20, crop="random_resized" if random_resized else "jitter"
    )

    torch.manual_seed(0)
    first = augmentation.window(48, 64, generator=seeded(7))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    again = augmentation.window(48, 64, generator=seeded(7))
    others = {augmentation.window(48, 64, generator=seeded(seed)) for seed in range(8)}

    assert first == again
    assert len(others) > 1
    assert torch.equal(torch.get_rng_state(), state)


def test_crop_of_its_own_size_is_the_pixels_of_the_window():
    frames = torch.arange(2 * 3 * 8 * 10).reshape(2, 3, 8, 10).remainder(256).to(torch.uint8)

    cut = crop(frames, Window(top=1, left=3, height=4, width=4), crop_size=4)

    assert torch.equal(cut, frames[:, :, 1:5, 3:7])


def test_crop_scales_the_window_alone():
    # Left half 10, right half 200; the frame around the window must not bleed in.
    frames = torch.full((2, 3, 20, 20), 255, dtype=torch.uint8)
    frames[..., 2:18, 2:10] = 10
    frames[..., 2:18, 10:18] = 200

    cut = crop(frames, Window(2, 2, 16, 16), crop_size=4)

    assert cut.dtype == torch.uint8
    assert cut.shape == (2, 3, 4, 4)
    assert (cut[..., 0] == 10).all()
    assert (cut[..., -1] == 200).all()


def test_half_of_the_clips_are_mirrored():
    augmentation = Augmentation(crop_size=16, short_side=16)

    flips = [augmentation.appearance({}, generator=seeded(s)).flip.item() for s in range(1000)]

    assert abs(sum(flips) - 500) < 5 * 15.8  # binomial, deviation sqrt(250)


def test_no_flip_labels_are_never_mirrored():
    augmentation = Augmentation(crop_size=16, short_side=16, no_flip_labels={"verb": {1, 2}})

    flips = {
        verb: {
            augmentation.appearance({"verb": verb, "noun": 1}, generator=seeded(s)).flip.item()
            for s in range(50)
        }
        for verb in (-1, 0, 1, 2)
    }

    assert flips == {-1: {False, True}, 0: {False, True}, 1: {False}, 2: {False}}


def test_colour_factors_stay_in_their_range_and_do_not_depend_on_the_flip():
    options = {"crop_size": 16, "short_side": 16, "color_jitter": 0.4}
    with_flip, without = Augmentation(**options), Augmentation(**options, flip=False)

    drawn = [with_flip.appearance({}, generator=seeded(s)) for s in range(300)]
    plain = [without.appearance({}, generator=seeded(s)) for s in range(300)]

    factors = torch.stack([appearance.jitter for appearance in drawn])
    assert factors.shape == (300, 3)
    assert factors.min() >= 0.6
    assert factors.max() <= 1.4
    assert (factors.amax(0) > 1.35).all()
    assert (factors.amin(0) < 0.65).all()
    assert torch.equal(factors, torch.stack([appearance.jitter for appearance in plain]))
    assert not any(appearance.flip for appearance in plain)


def random_clips(n=3, frames=2, size=8):
    return torch.randint(256, (n, 3, frames, size, size), dtype=torch.uint8, generator=seeded(0))


def ones(n):
    return Appearance(flip=torch.zeros(n, dtype=torch.bool), jitter=torch.ones(n, 3))


@pytest.mark.parametrize(
    ("mean", "std", "value_range"),
    [
        ((0.45, 0.4, 0.5), (0.225, 0.2, 0.25), 1.0),
        ((114.75, 110.0, 100.0), (57.375, 50.0, 1.0), 255.0),
    ],
)
def test_model_input_is_the_plain_formula(mean, std, value_range):
    clips = random_clips()

    made = ToModelInput(mean, std, value_range)(clips)

    shape = (1, 3, 1, 1, 1)
    scaled = clips.double() / 255 * value_range
    expected = (scaled - torch.tensor(mean).reshape(shape)) / torch.tensor(std).reshape(shape)
    assert made.dtype == torch.float32
    # fp32: 255 has 24 bits of mantissa, and the difference to the mean may cancel some.
    torch.testing.assert_close(made.double(), expected.double(), rtol=1e-5, atol=1e-4)
    assert made.is_contiguous(memory_format=torch.channels_last_3d)


def test_appearance_of_ones_changes_no_bit_without_jitter():
    clips, to_input = random_clips(), ToModelInput((0.4,) * 3, (0.2,) * 3, jitter=False)

    assert torch.equal(to_input(clips, ones(3)), to_input(clips))


def test_appearance_of_ones_changes_nothing_with_jitter():
    clips, to_input = random_clips(), ToModelInput((0.4,) * 3, (0.2,) * 3, jitter=True)

    # mean + (pixel - mean), three times, in fp32
    torch.testing.assert_close(to_input(clips, ones(3)), to_input(clips), rtol=0, atol=1e-4)


def test_a_flip_mirrors_every_frame_of_its_clip_and_no_other_clip():
    clips, to_input = random_clips(), ToModelInput((0.4,) * 3, (0.2,) * 3, jitter=False)
    flip = torch.tensor([False, True, False])

    made = to_input(clips, Appearance(flip=flip, jitter=torch.ones(3, 3)))

    expected = to_input(clips)
    expected[1] = expected[1].flip(-1)
    assert torch.equal(made, expected)


# torchvision takes 0.2989 for the weight of red where BT.601 has 0.299: 255 * 1e-4 grey levels of
# grey, times a change of at most 1.5 here.
LEVELS = 0.05


@pytest.mark.parametrize("factor", [0.3, 0.9, 1.5, 2.5])
@pytest.mark.parametrize(
    ("position", "adjust"),
    [(0, TF.adjust_brightness), (1, TF.adjust_contrast), (2, TF.adjust_saturation)],
)
def test_colour_factor_of_one_frame_is_torchvisions(position, adjust, factor):
    pixels = random_clips(n=2, frames=1).float()
    factors = torch.ones(2, 3)
    factors[1, position] = factor

    changed = color_jitter(pixels, factors)

    expected = adjust(pixels[1, :, 0] / 255, factor) * 255
    torch.testing.assert_close(changed[1, :, 0], expected, rtol=0, atol=LEVELS)
    torch.testing.assert_close(changed[0], pixels[0], rtol=0, atol=1e-3)


def test_colours_change_in_the_order_brightness_contrast_saturation():
    pixels = random_clips(n=1, frames=1).float()

    changed = color_jitter(pixels, torch.tensor([[1.3, 0.7, 1.4]]))

    frame = TF.adjust_brightness(pixels[0, :, 0] / 255, 1.3)
    frame = TF.adjust_saturation(TF.adjust_contrast(frame, 0.7), 1.4)
    torch.testing.assert_close(changed[0, :, 0], frame * 255, rtol=0, atol=2 * LEVELS)


def test_contrast_is_towards_the_grey_of_the_whole_clip():
    # Two grey frames, 50 and 150: the clip's grey is 100, and half the contrast 75 and 125.
    # Frame by frame nothing would change.
    pixels = torch.tensor([50.0, 150.0]).reshape(1, 1, 2, 1, 1).expand(1, 3, 2, 4, 4)

    changed = color_jitter(pixels, torch.tensor([[1.0, 0.5, 1.0]]))

    torch.testing.assert_close(changed[0, :, 0], torch.full((3, 4, 4), 75.0), rtol=0, atol=1e-3)
    torch.testing.assert_close(changed[0, :, 1], torch.full((3, 4, 4), 125.0), rtol=0, atol=1e-3)
