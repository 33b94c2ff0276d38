"""What is drawn on a video: labels that fit, bars as long as scores, frames at their times."""

import av
import numpy as np
import pytest
import torch
from PIL import ImageFont

from cdb_video.clips.decoders import open_video
from cdb_video.evaluation import video_writer
from cdb_video.evaluation.draw import ACCENTS, PLAIN, cut, draw_band
from cdb_video.evaluation.video_writer import save_video

RANKINGS = {"verb": [("open", 0.75), ("close", 0.25)], "noun": [("cup", 0.5), ("bowl", 0.3)]}


def bar_pixels(band, color) -> int:
    """The longest run of a colour in a line."""
    return int((np.asarray(band) == color).all(-1).sum(1).max())


def test_bars_are_as_long_as_scores() -> None:
    band = draw_band((640, 480), {"verb": [("", 1.0)]})
    half = draw_band((640, 480), {"verb": [("", 0.5)]})

    # The figure, "100%" and "50%", covers some of the bar's lines, but not its first.
    whole = bar_pixels(band, ACCENTS[0])
    assert 600 < whole < 640
    assert bar_pixels(half, ACCENTS[0]) == pytest.approx(whole / 2, abs=1)


def test_a_best_class_below_the_threshold_is_not_highlighted() -> None:
    band = draw_band((640, 480), RANKINGS, threshold=0.6)

    assert bar_pixels(band, ACCENTS[0]) > 0
    assert bar_pixels(band, ACCENTS[1]) == 0
    assert bar_pixels(band, PLAIN) > 0


@pytest.mark.parametrize("size", [(320, 240), (1920, 1080), (1080, 1920), (640, 480)])
def test_the_band_grows_with_the_frame_and_leaves_most_of_it_free(size) -> None:
    many = {head: [(f"class {i}", 0.1) for i in range(20)] for head in ("verb", "noun", "action")}

    band = draw_band(size, many)

    assert band.width == size[0]
    assert 0.1 * min(size) < band.height <= 0.36 * size[1]


def test_a_frame_of_any_size_has_room() -> None:
    assert draw_band((16, 12), RANKINGS).size == (16, 12)


def test_long_names_are_cut_with_an_ellipsis() -> None:
    font = ImageFont.load_default(12)

    assert cut("cup", font, 100) == "cup"
    short = cut("bread container", font, 60)
    assert short.endswith("…")
    assert "bread container".startswith(short[:-1])
    assert font.getlength(short) <= 60


@pytest.mark.parametrize(("one", "other"), [("взять", "класть"), ("γάλα", "νερό"), ("œuf", "ärm")])
def test_letters_that_are_not_ascii_are_drawn(one, other) -> None:
    # Boxes in place of letters would be alike for words of one length.
    def drawn(text):
        return np.asarray(draw_band((320, 240), {"label": [(text[:3], 0.0)]}))

    assert not np.array_equal(drawn(one), drawn(other))


def test_frames_are_shown_at_the_times_of_the_source(coded_video, tmp_path, monkeypatch) -> None:
    times = [0.0, 0.04, 0.08, 0.5, 0.54, 1.7, 1.75]
    source, target = coded_video(times=times, size=(160, 96)), tmp_path / "drawn.mp4"
    monkeypatch.setattr(video_writer, "CHUNK_BYTES", 3 * 160 * 96 * 3)  # three frames at a time
    seen = []

    with open_video(source) as video:
        save_video(
            target, video, lambda _: RANKINGS, progress=lambda done, total: seen.append(done)
        )

    with open_video(target) as drawn:
        assert drawn.times.tolist() == pytest.approx(times, abs=1e-5)
    assert seen == [1, 2, 3, 4, 5, 6, 7]
    assert list(tmp_path.glob(".*")) == []


def test_the_picture_above_the_band_is_the_sources(coded_video, tmp_path) -> None:
    source, target = coded_video(num_frames=3, size=(320, 240)), tmp_path / "drawn.mp4"

    with open_video(source) as video:
        save_video(target, video, lambda _: RANKINGS)
        before = video.frames(torch.arange(3)).double()

    with open_video(target) as drawn:
        after = drawn.frames(torch.arange(3)).double()
    # The middle of the red mark and of the grey beside it: coding moves them by a few levels.
    for y, x in ((40, 50), (40, 250)):
        assert (before[:, :, y, x] - after[:, :, y, x]).abs().max() <= 6


def test_labels_change_with_time(coded_video, tmp_path) -> None:
    source, target = coded_video(num_frames=4, fps=2, size=(320, 240)), tmp_path / "drawn.mp4"
    score = {0.0: 0.1, 0.5: 0.1, 1.0: 0.9, 1.5: 0.9}

    with open_video(source) as video:
        save_video(target, video, lambda t: {"label": [("cup", score[t])]})

    with open_video(target) as drawn:
        blue = drawn.frames(torch.arange(4))[:, 2].double() - drawn.frames(torch.arange(4))[:, 0]
    # The bar is blue.
    assert (blue[:, -20:-6, 200:260].mean((1, 2)) > 60).tolist() == [False, False, True, True]


def test_odd_sizes_become_even_and_the_file_plays_anywhere(tmp_path) -> None:
    from PIL import Image

    for i in range(3):
        Image.new("RGB", (33, 25), (200, 30, 30)).save(tmp_path / f"{i}.png")

    with open_video(tmp_path, decoder="frames", fps=10) as video:
        save_video(tmp_path / "drawn.mp4", video, lambda _: RANKINGS)

    with av.open(str(tmp_path / "drawn.mp4")) as container:
        [stream] = container.streams
        context = stream.codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.width, context.height) == (34, 26)
        assert context.colorspace == 1  # BT.709, which players assume


def test_a_broken_video_leaves_no_file(coded_video, tmp_path) -> None:
    target = tmp_path / "drawn.mp4"
    target.write_text("before")

    def fails(seconds):
        raise KeyboardInterrupt

    with open_video(coded_video()) as video, pytest.raises(KeyboardInterrupt):
        save_video(target, video, fails)

    assert target.read_text() == "before"
    assert list(tmp_path.glob(".*")) == []
