"""YUV clips: the standards' numbers, the windows of both kinds of planes, and the whole path."""

from __future__ import annotations

import av
import pytest
import torch

from cdb_video.clips.base import Planes, Window
from cdb_video.clips.batch import Appearance, Batch, Sample, collate
from cdb_video.clips.convert import ToPlanes, halved, rgb_matrix, widened
from cdb_video.clips.dataset import ClipSampler, EvaluationViews, TrainingClips
from cdb_video.clips.decoders import open_video
from cdb_video.clips.transforms import (
    Augmentation,
    EvaluationCrops,
    ToModelInput,
    bounding_window,
    convert_to_rgb,
    crop_planes,
)
from cdb_video.datasets.annotations import VideoRecord
from cdb_video.errors import DecodeError
from tests.clips.files import pictures, write_pictures

# AVColorSpace and AVColorRange (ITU-T H.273: MatrixCoefficients, VideoFullRangeFlag).
BT709, UNTAGGED, BT601, BT2020 = 1, 2, 6, 9
LIMITED, FULL = 1, 2
BLACK, WHITE, RED = (0, 0, 0), (255, 255, 255), (255, 0, 0)

# Red of a matrix with weights Kr and Kb: Y = Kr, Pb = -Kr / (2 (1 - Kb)), Pr = 1 / 2. In limited
# range Y is stored as 16 + 219 Y, P as 128 + 224 P; in full range as 255 Y and 128 + 255 P.
COLOURS = [
    (BT601, LIMITED, (16, 128, 128), BLACK),
    (BT601, LIMITED, (235, 128, 128), WHITE),
    (BT601, LIMITED, (81.481, 90.203, 240), RED),  # Kr 0.299, Kb 0.114: Pb -0.168736
    (UNTAGGED, 0, (81.481, 90.203, 240), RED),
    (BT601, FULL, (0, 128, 128), BLACK),
    (BT601, FULL, (255, 128, 128), WHITE),
    (BT601, FULL, (76.245, 84.972, 255.5), RED),
    (BT709, LIMITED, (16, 128, 128), BLACK),
    (BT709, LIMITED, (235, 128, 128), WHITE),
    (BT709, LIMITED, (62.559, 102.336, 240), RED),  # Kr 0.2126, Kb 0.0722: Pb -0.114572
    (BT709, FULL, (54.213, 98.784, 255.5), RED),
    (BT2020, LIMITED, (73.531, 96.721, 240), RED),  # Kr 0.2627, Kb 0.0593: Pb -0.139630
]


@pytest.mark.parametrize(("colorspace", "color_range", "yuv", "rgb"), COLOURS)
def test_matrix_gives_the_colours_of_the_standard(colorspace, color_range, yuv, rgb):
    frame = av.VideoFrame(16, 16, "yuv420p")
    frame.colorspace, frame.color_range = colorspace, color_range

    found = rgb_matrix(frame) @ torch.tensor([*yuv, 1.0])

    torch.testing.assert_close(found, torch.tensor(rgb).float(), atol=0.01, rtol=0)


def test_pixel_format_of_full_range_needs_no_tag():
    found = rgb_matrix(av.VideoFrame(16, 16, "yuvj420p")) @ torch.tensor([255.0, 128, 128, 1])

    torch.testing.assert_close(found, torch.full((3,), 255.0), atol=0.01, rtol=0)


def to_rgb_plainly(planes: Planes) -> torch.Tensor:
    """(T, 3, H, W) fp32: each pixel by the chroma sample that lies over it."""
    height, width = planes.luma.shape[-2:]
    chroma = planes.chroma.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., :height, :width]
    yuv = torch.cat([planes.luma, chroma, torch.ones_like(planes.luma)], 1).float()
    return torch.einsum("ij,tjhw->tihw", planes.to_rgb, yuv).clamp(0, 255)


@pytest.mark.parametrize(
    "tags",
    [{}, {"colorspace": BT709}, {"color_range": FULL}, {"colorspace": BT709, "color_range": FULL}],
)
def test_planes_become_the_frames_that_ffmpeg_converts(tags, tmp_path):
    path = write_pictures(tmp_path / "video.mp4", pictures(4, (64, 48)), **tags)

    with open_video(path) as video:
        indices = torch.tensor([3, 0, 0])
        frames, planes = video.frames(indices).float(), video.planes(indices)

    assert planes.luma.shape == (3, 1, 48, 64)
    assert planes.chroma.shape == (3, 2, 24, 32)
    difference = (to_rgb_plainly(planes) - frames).abs()
    # FFmpeg's tables round down, thrice for green: it is up to 3 levels darker, about 1 on average.
    assert difference.max() < 3
    assert difference.mean() < 1.5


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_planes_of_a_window_are_upright_and_widened_to_whole_chroma_samples(degrees, coded_video):
    with open_video(coded_video(num_frames=4, rotation=degrees)) as video:
        indices = torch.tensor([2, 1])
        whole = video.planes(indices)
        part = video.planes(indices, window=Window(5, 7, 10, 12))
        frames = video.frames(indices).float()

    # Rows 5 to 14 lie under chroma rows 2 to 7, columns 7 to 18 under chroma columns 3 to 9.
    assert torch.equal(part.luma, whole.luma[..., 5:15, 7:19])
    assert torch.equal(part.chroma, whole.chroma[..., 2:8, 3:10])
    assert (to_rgb_plainly(whole) - frames).abs().max() < 3


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("video.webm", (45, 33), {"codec": "libvpx-vp9"}),
        ("video.mp4", (64, 48), {"pixel_format": "yuv420p10le"}),
        ("video.mp4", (64, 48), {"pixel_format": "yuv444p"}),
    ],
)
def test_planes_of_other_files_are_eight_bit_and_halved(name, size, options, tmp_path):
    path = write_pictures(tmp_path / name, pictures(2, size), **options)
    width, height = size

    with open_video(path) as video:
        indices = torch.tensor([1])
        frames, planes = video.frames(indices).float(), video.planes(indices)

    assert planes.luma.dtype == planes.chroma.dtype == torch.uint8
    assert planes.luma.shape == (1, 1, height, width)
    assert planes.chroma.shape == (1, 2, -(-height // 2), -(-width // 2))
    # FFmpeg blends chroma between samples here: the documented difference.
    assert (to_rgb_plainly(planes) - frames).abs().mean() < 5


def test_planes_are_for_pyav_and_files(coded_video):
    pytest.importorskip("decord")
    with (
        open_video(coded_video(), decoder="decord") as video,
        pytest.raises(DecodeError, match=r"video\.mp4: data\.pixels=yuv is for video files"),
    ):
        video.planes(torch.tensor([0]))


def test_planes_outside_the_video_are_refused(coded_video):
    with open_video(coded_video(num_frames=4)) as video:
        with pytest.raises(IndexError, match="frame 4 of a video of 4 frames"):
            video.planes(torch.tensor([4]))
        with pytest.raises(ValueError, match="not inside a frame of 48 x 64"):
            video.planes(torch.tensor([0]), window=Window(40, 0, 9, 8))


def test_edges_move_outwards_to_even_numbers():
    assert widened(Window(5, 7, 10, 12)) == Window(4, 6, 12, 14)
    assert widened(Window(4, 6, 12, 14)) == Window(4, 6, 12, 14)
    assert halved(Window(4, 6, 12, 14)) == Window(2, 3, 6, 7)


def test_window_around_windows_starts_at_even_edges():
    assert bounding_window([Window(3, 5, 10, 12)]) == Window(2, 4, 11, 13)
    # Rows 3 to 12 and 1 to 4, columns 5 to 16 and 8 to 16.
    assert bounding_window([Window(3, 5, 10, 12), Window(1, 8, 4, 9)]) == Window(0, 4, 13, 13)


def test_crop_of_planes_cuts_each_at_its_own_scale():
    luma = torch.arange(24, dtype=torch.uint8).reshape(1, 1, 4, 6)
    chroma = torch.arange(100, 112, dtype=torch.uint8).reshape(1, 2, 2, 3)
    planes = Planes(luma, chroma, torch.zeros(3, 4))

    clip = crop_planes(planes, Window(1, 3, 2, 2), crop_size=2)

    # Rows 1 and 2, columns 3 and 4 of the luma; all of the chroma rows, columns 1 and 2.
    assert clip.tolist() == [
        [[[9, 10], [15, 16]], [[101, 102], [104, 105]], [[107, 108], [110, 111]]]
    ]


def test_crop_of_planes_widens_chroma_to_the_crop():
    planes = Planes(
        torch.full((2, 1, 8, 8), 50, dtype=torch.uint8),
        torch.tensor([60, 70], dtype=torch.uint8).reshape(1, 2, 1, 1).expand(2, 2, 4, 4),
        torch.zeros(3, 4),
    )

    clip = crop_planes(planes, Window(0, 0, 8, 8), crop_size=6)

    assert clip.shape == (2, 3, 6, 6)
    assert [channel.unique().tolist() for channel in clip.unbind(1)] == [[50], [60], [70]]


def test_each_clip_is_converted_by_its_own_matrix():
    swap = torch.tensor([[0.0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]])
    shift = torch.tensor([[2.0, 0, 0, -10], [0, 1, 0, 5], [0, 1, 1, 0]])
    pixels = torch.tensor([4.0, 100, 200]).reshape(1, 3, 1, 1, 1).expand(2, 3, 2, 2, 2)

    rgb = convert_to_rgb(pixels, torch.stack([swap, shift]))

    assert rgb.shape == (2, 3, 2, 2, 2)
    assert rgb[0, :, 1, 0, 1].tolist() == [200, 100, 4]
    assert rgb[1, :, 0, 1, 1].tolist() == [0, 105, 255]  # -2 and 300 are no colours


def test_input_of_yuv_clips_is_normalised_rgb():
    matrix = torch.tensor([[1.0, 0, 1, 0], [1, 1, 0, 0], [1, -1, 0, 0]])
    clips = torch.tensor([100, 20, 30], dtype=torch.uint8).reshape(1, 3, 1, 1, 1)
    clips = clips.expand(1, 3, 2, 4, 4)

    found = ToModelInput([0.0] * 3, [1.0] * 3, 255.0)(clips, None, matrix[None])

    assert found.shape == (1, 3, 2, 4, 4)
    assert found[0, :, 0, 0, 0].tolist() == [130, 120, 80]


def a_sample(index: int, views: int, matrix: torch.Tensor | None) -> Sample:
    clips = torch.zeros(views, 3, 2, 4, 4, dtype=torch.uint8)
    return Sample(clips, {"verb": 0}, index, Appearance.plain(), matrix)


def test_every_view_has_the_matrix_of_its_video():
    batch = collate([a_sample(i, 3, torch.full((3, 4), float(i))) for i in range(2)])

    assert batch.to_rgb.shape == (2, 3, 4)
    assert batch.clips_to_rgb[:, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.split(1)[1].clips_to_rgb[:, 0, 0].tolist() == [1, 1, 1]
    assert collate([a_sample(0, 3, None)]).clips_to_rgb is None


def test_batch_of_matrices_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"to_rgb must be \(2, 3, 4\), got \(2, 3, 3\)"):
        collate([a_sample(i, 1, torch.zeros(3, 3)) for i in range(2)])
    with pytest.raises(ValueError, match=r"to_rgb must be \(2, 3, 4\), got \(1, 3, 4\)"):
        Batch(
            clips=torch.zeros(2, 1, 3, 2, 4, 4, dtype=torch.uint8),
            labels={},
            indices=torch.zeros(2),
            appearance=Appearance(flip=torch.zeros(2), jitter=torch.ones(2, 3)),
            to_rgb=torch.zeros(1, 3, 4),
        )


def model_input(batch: Batch) -> torch.Tensor:
    """(N, C, T, H, W) in grey levels."""
    appearance = Appearance(
        flip=batch.appearance.flip.repeat_interleave(batch.clips.shape[1]),
        jitter=batch.appearance.jitter.repeat_interleave(batch.clips.shape[1], 0),
    )
    to_input = ToModelInput([0.0] * 3, [1.0] * 3, 255.0)
    return to_input(batch.clips.flatten(0, 1), appearance, batch.clips_to_rgb)


def training_batch(records, pixels: str) -> Batch:
    clips = TrainingClips(
        records,
        sampler=ClipSampler(num_frames=4, stride=2),
        augmentation=Augmentation(crop_size=56, short_side=64, color_jitter=0.4),
        seed=3,
        pixels=pixels,
    )
    return collate([clips[1, i] for i in range(len(records))])


def evaluation_batch(records, pixels: str) -> Batch:
    views = EvaluationViews(
        records,
        sampler=ClipSampler(num_frames=4, stride=2),
        crops=EvaluationCrops(crop_size=56, short_side=64, num_crops=3),
        num_clips=2,
        pixels=pixels,
    )
    return collate([views[i] for i in range(len(records))])


def record_of(path) -> VideoRecord:
    return VideoRecord(
        id=path.name, video_id=path.stem, recording=path.stem, path=path, labels={"verb": 0}
    )


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> list[VideoRecord]:
    """An untagged file, a BT.709 file of full range: each has its own matrix. 120 x 90 pixels."""
    folder = tmp_path_factory.mktemp("planes")
    plain = write_pictures(folder / "plain.mp4", pictures(12, (120, 90)))
    other = write_pictures(
        folder / "other.mp4", pictures(12, (120, 90), seed=1), colorspace=BT709, color_range=FULL
    )
    return [record_of(plain), record_of(other)]


@pytest.mark.parametrize("make", [training_batch, evaluation_batch])
def test_yuv_clips_reach_the_model_as_rgb_clips_do(make, records):
    rgb, yuv = make(records, "rgb"), make(records, "yuv")

    assert yuv.clips.shape == rgb.clips.shape
    assert torch.equal(yuv.appearance.flip, rgb.appearance.flip)
    assert not torch.equal(yuv.to_rgb[0], yuv.to_rgb[1])
    wanted, found = model_input(rgb), model_input(yuv)
    difference = (found - wanted).abs().mean()
    # FFmpeg's rounding, and chroma up to a pixel off at the edges: 1.2 to 1.6 levels as measured.
    # A clip of another place, or of planes that nobody converted, is 40 levels away and more.
    assert difference < 2
    assert (found - wanted).abs().max() < 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("nasa_13013.mp4", 1.5),  # 1.0 as measured
        ("nasa_13013_rotated.mp4", 1.5),
        ("bt709_full_range.mp4", 1.5),
        # Test cards: sharp edges between pure colours. 1.4 to 3.8.
        ("h265_video.mp4", 2.5),
        ("testsrc2_odd_width_vp9.mp4", 3),
        ("bt601_full_range.mp4", 5),
        ("bt2020_10bit.mp4", 5),
    ],
)
@pytest.mark.parametrize("make", [training_batch, evaluation_batch])
def test_yuv_clips_of_real_videos_reach_the_model_as_rgb_clips_do(make, name, levels, shared_data):
    records = [record_of(shared_data / "odd-videos" / "torchcodec" / name)]

    rgb, yuv = make(records, "rgb"), make(records, "yuv")

    assert (model_input(yuv) - model_input(rgb)).abs().mean() < levels


def test_colours_that_change_within_a_clip_are_refused():
    to_planes = ToPlanes(Window(0, 0, 16, 16), 16, 16)
    first, second = av.VideoFrame(16, 16, "yuv420p"), av.VideoFrame(16, 16, "yuv420p")
    second.colorspace = BT709
    to_planes(first)

    with pytest.raises(ValueError, match=r"colours changes; use data\.pixels=rgb"):
        to_planes(second)
