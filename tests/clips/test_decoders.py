"""Frame numbers on real files: every decoder shows the frame that was asked for, or refuses."""

import multiprocessing
import os
from pathlib import Path

import av
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cdb_video.clips import index
from cdb_video.clips.decoders import open_video
from cdb_video.clips.pyav import PyavDecoder
from cdb_video.errors import DecodeError
from tests.clips.files import decode_all

DECODERS = ["pyav", "decord", "torchcodec"]
VARIABLE = [0.0, 0.05, 0.1, 0.4, 0.45, 0.5, 1.3, 1.35, 1.4, 1.45]

# name, options: each container numbers and seeks in its own way.
CODED = {
    "mp4": ("video.mp4", {"num_frames": 60}),
    "mkv": ("video.mkv", {"num_frames": 60, "fps": 30000 / 1001}),
    "mov": ("video.mov", {"num_frames": 60, "gop": 5}),
    "intra_only": ("video.mp4", {"num_frames": 30, "gop": 1, "b_frames": 0}),
    "tiny_groups": ("video.mp4", {"num_frames": 30, "gop": 3, "b_frames": 2}),
    "open_gop": ("video.mp4", {"num_frames": 60, "open_gop": True}),
    "open_gop_ts": ("video.ts", {"num_frames": 60, "open_gop": True}),
    "one_group": ("video.mp4", {"num_frames": 60, "gop": 250}),
    "variable_rate": ("video.mp4", {"times": VARIABLE, "gop": 4}),
    "variable_rate_mkv": ("video.mkv", {"times": VARIABLE, "gop": 4}),
    "late_start": ("video.mp4", {"num_frames": 40, "start_s": 2.5}),
    "late_start_mkv": ("video.mkv", {"num_frames": 40, "start_s": 2.5}),
    "ts": ("video.ts", {"num_frames": 60}),
    "avi": ("video.avi", {"num_frames": 40, "b_frames": 0}),
    "avi_b_frames": ("video.avi", {"num_frames": 40, "b_frames": 2}),
    "mpeg4_avi": ("video.avi", {"num_frames": 40, "codec": "mpeg4", "options": {"qscale": "2"}}),
    "mpeg2_ts": ("video.ts", {"num_frames": 40, "codec": "mpeg2video", "options": {"qscale": "2"}}),
    "vp8_hidden": (
        "video.webm",
        {
            "num_frames": 60,
            "codec": "libvpx",
            "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "crf": "4", "b": "2M"},
        },
    ),
    "vp9": (
        "video.webm",
        {
            "num_frames": 40,
            "codec": "libvpx-vp9",
            "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "crf": "4", "cpu-used": "8"},
        },
    ),
    "one_frame": ("video.mp4", {"num_frames": 1}),
}
PLAIN = ["mp4", "mkv", "mov", "intra_only", "tiny_groups", "one_group", "variable_rate", "vp9"]
PLAIN += ["variable_rate_mkv", "late_start", "late_start_mkv", "one_frame"]
AGREE = [("decord", case) for case in PLAIN]
AGREE += [("torchcodec", case) for case in [*PLAIN, "open_gop", "vp8_hidden", "mpeg4_avi"]]


@pytest.mark.parametrize("case", CODED)
def test_pyav_shows_the_frame_asked_for(case, coded_video, read_code):
    name, options = CODED[case]
    path = coded_video(name, **options)

    with open_video(path) as video:
        everything = torch.arange(video.num_frames)
        assert read_code(video.frames(everything)) == everything.tolist()
        assert video.num_frames == len(options.get("times", range(options.get("num_frames", 0))))
    for i in range(0, len(everything), 7):
        with open_video(path) as video:  # afresh: what one call learns of a file helps the next
            for j in (i + 6, i, i + 1):
                j = min(j, video.num_frames - 1)
                assert read_code(video.frames(torch.tensor([j]))) == [j]


@pytest.mark.parametrize(("decoder", "case"), AGREE)
def test_decoders_agree_bit_for_bit(decoder, case, coded_video):
    pytest.importorskip(decoder)
    name, options = CODED[case]
    path = coded_video(name, **options)

    with open_video(path) as reference, open_video(path, decoder=decoder) as video:
        indices = torch.arange(reference.num_frames).flip(0)[::3].repeat(2)
        assert torch.equal(video.frames(indices), reference.frames(indices))
        assert torch.equal(video.times, reference.times)
        assert video.fps == reference.fps


@pytest.mark.parametrize(
    "case", ["mp4", "open_gop", "tiny_groups", "variable_rate_mkv", "open_gop_ts", "avi_b_frames"]
)
def test_any_set_of_indices_equals_a_sequential_decode(case, coded_video):
    name, options = CODED[case]
    path = coded_video(name, **options)
    sequential = decode_all(path)

    with open_video(path) as video:

        @settings(max_examples=10, deadline=None)
        @given(st.lists(st.integers(0, video.num_frames - 1), min_size=1, max_size=12))
        def check(indices):
            wanted = torch.tensor(indices)
            assert torch.equal(video.frames(wanted), sequential[wanted])

        check()


def test_times_are_those_of_a_variable_rate(coded_video):
    path = coded_video(times=VARIABLE, start_s=3.0)

    with open_video(path) as video:
        torch.testing.assert_close(video.times, torch.tensor(VARIABLE, dtype=torch.float64))
        assert video.index_at(0.4) == 3
        assert video.index_at(0.41) == 4
        assert video.index_at(-1) == 0
        assert video.index_at(1.45 + 1e-9) == 9  # within rounding
        assert video.index_at(1.5) == 10  # past the last
        assert video.fps == pytest.approx(9 / 1.45)


def test_timestamps_that_packets_lack_come_from_a_decode(coded_video):
    # H.264 with B-frames in AVI, which stores no presentation times: FFmpeg makes up wrong ones.
    path = coded_video("video.avi", num_frames=20, fps=25, b_frames=2)
    container, stream = index.open_container(path)
    with container:
        assert index.packet_index(container, stream) is None

    with open_video(path) as video:
        assert video.num_frames == 20
        assert video.fps == 25
        torch.testing.assert_close(video.times, torch.arange(20, dtype=torch.float64) / 25)


def test_frame_lost_by_a_seek_is_found_from_the_start(coded_video, read_code):
    path = coded_video(num_frames=40, gop=10)

    with open_video(path) as video:
        assert isinstance(video, PyavDecoder)
        video._index.key_pts[:] += 1  # no packet starts there: every seek misses
        assert read_code(video.frames(torch.tensor([33, 7, 39]))) == [33, 7, 39]


def test_times_that_no_frame_has_fall_back_to_order(coded_video, read_code):
    path = coded_video(num_frames=30, gop=10)

    with open_video(path) as video:
        assert isinstance(video, PyavDecoder)
        video._index.pts[:] += 1
        assert read_code(video.frames(torch.tensor([5, 29]))) == [5, 29]


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotated_video_is_shown_upright(decoder, degrees, coded_video):
    pytest.importorskip({"pyav": "av"}.get(decoder, decoder))
    path = coded_video(num_frames=3, size=(128, 96), rotation=degrees)

    with open_video(path, decoder=decoder) as video:
        frame = video.frames(torch.tensor([1]))[0].float()

    # The red mark is stored top left; clockwise quarter turns take it around.
    corner = {90: (0, -1), 180: (-1, -1), 270: (-1, 0)}[degrees]
    assert frame.shape == ((3, 96, 128) if degrees == 180 else (3, 128, 96))
    row, column = (4 * i if i == 0 else -5 for i in corner)
    red, green, blue = frame[:, row, column].tolist()
    assert red > 200
    assert green < 60
    assert blue < 60


@pytest.mark.parametrize("decoder", DECODERS)
def test_index_outside_the_video_is_named(decoder, coded_video):
    pytest.importorskip({"pyav": "av"}.get(decoder, decoder))
    with open_video(coded_video(num_frames=4), decoder=decoder) as video:
        with pytest.raises(IndexError, match=r"video\.mp4: frame 4 of a video of 4 frames"):
            video.frames(torch.tensor([0, 4]))
        with pytest.raises(IndexError, match="frame -1 of"):
            video.frames(torch.tensor([-1]))
        with pytest.raises(ValueError, match="integers"):
            video.frames(torch.tensor([0.5]))


def broken_files(folder: Path, whole: bytes) -> dict[str, Path]:
    playlist = "ffconcat version 1.0\nfile whole.mp4\n"
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nwhole.mp4\n#EXT-X-ENDLIST\n"
    contents = {
        "empty.mp4": b"",
        "text.mp4": b"this is no video\n" * 100,
        "cut_header.mp4": whole[: len(whole) // 2],
        "playlist.mp4": playlist.encode(),
        "hls.mp4": hls.encode(),
    }
    (folder / "whole.mp4").write_bytes(whole)
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    names = [*contents, "folder.mp4", "pipe.mp4", "missing.mp4"]
    return {name: folder / name for name in names}


@pytest.mark.parametrize("decoder", DECODERS)
def test_unreadable_file_is_refused_in_one_line_that_names_it(decoder, coded_video, tmp_path):
    pytest.importorskip({"pyav": "av"}.get(decoder, decoder))
    for name, path in broken_files(tmp_path, coded_video().read_bytes()).items():
        with pytest.raises(DecodeError) as caught:
            open_video(path, decoder=decoder)

        message = str(caught.value)
        assert message.startswith(f"{path}: "), name
        assert "\n" not in message


def test_file_cut_off_behind_its_header_is_refused(coded_video, tmp_path):
    # Fast start: the table of frames comes first, so the file still opens and claims every frame.
    whole = coded_video(num_frames=60).read_bytes()
    remuxed = tmp_path / "fast.mp4"
    with (
        av.open(str(tmp_path / "video.mp4")) as source,
        av.open(str(remuxed), "w", options={"movflags": "faststart"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    whole = remuxed.read_bytes()
    remuxed.write_bytes(whole[: len(whole) * 2 // 3])

    with pytest.raises(DecodeError, match=r"fast\.mp4: "):
        open_video(remuxed)


def test_damaged_frame_is_an_error_not_another_frame(coded_video):
    path = coded_video(num_frames=30, gop=10)
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    position, size = packets[10]  # the second key frame
    data[position + 4 : position + size] = bytes(size - 4)
    path.write_bytes(data)

    with open_video(path) as video:
        video.frames(torch.tensor([0, 5]))
        with pytest.raises(DecodeError, match=r"video\.mp4: "):
            video.frames(torch.tensor([12]))


def test_file_that_claims_gigabytes_is_refused(coded_video):
    # FFmpeg says that memory ran out, which would end a training run, were it true.
    path = coded_video()
    data = bytearray(path.read_bytes())
    count = data.index(b"stts") + 8  # ISO/IEC 14496-12, 8.6.1.2: type, version and flags, count
    data[count : count + 4] = b"\x1f\xff\xff\xff"
    path.write_bytes(data)

    with pytest.raises(DecodeError, match=r"video\.mp4: Cannot allocate memory"):
        open_video(path)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/a.mp4", "file:///a.mp4", "concat://a|b"])
def test_url_is_refused(url):
    with pytest.raises(DecodeError, match="only local files"):
        open_video(url)


@pytest.mark.parametrize("name", ["-video.mp4", "a:b.mp4", "concat:a.mp4", "a b %d é.mp4"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_odd_file_name_opens(name, decoder, coded_video, monkeypatch):
    pytest.importorskip({"pyav": "av"}.get(decoder, decoder))
    path = coded_video().rename(coded_video().parent / name)
    monkeypatch.chdir(path.parent)

    with open_video(name, decoder=decoder) as video:
        assert video.num_frames == 10


def test_decord_refuses_containers_that_it_misreads(coded_video):
    pytest.importorskip("decord")
    for name in ("video.ts", "video.avi"):
        path = coded_video(name, b_frames=0)
        path = path.rename(path.with_name("other.mp4"))  # told by content, not by name

        with pytest.raises(DecodeError, match="use decoder='pyav'"):
            open_video(path, decoder="decord")


def test_decord_refuses_open_groups_of_pictures(coded_video):
    pytest.importorskip("decord")

    with pytest.raises(DecodeError, match="open groups of pictures"):
        open_video(coded_video(num_frames=60, open_gop=True), decoder="decord")


def test_unknown_decoder_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r"decoder='opencv'.*pyav, decord, torchcodec, frames"):
        open_video("a.mp4", decoder="opencv")


def test_fifty_opens_leave_no_descriptor_behind(coded_video, tmp_path):
    path = coded_video(num_frames=4)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video" * 100)
    before = len(os.listdir("/proc/self/fd"))

    for _ in range(50):
        with open_video(path) as video:
            video.frames(torch.tensor([3]))
        with pytest.raises(DecodeError):
            open_video(broken)

    assert len(os.listdir("/proc/self/fd")) == before


def shown_in_worker(path, decoder, answers):
    with open_video(path, decoder=decoder) as video:
        answers.put(int(video.frames(torch.tensor([5])).sum()))


@pytest.mark.parametrize("decoder", DECODERS)
def test_forked_workers_read_what_their_parent_reads(decoder, coded_video):
    pytest.importorskip({"pyav": "av"}.get(decoder, decoder))
    path = coded_video()
    with open_video(path, decoder=decoder) as video:
        expected = int(video.frames(torch.tensor([5])).sum())
    fork = multiprocessing.get_context("fork")
    answers = fork.SimpleQueue()
    workers = [
        fork.Process(target=shown_in_worker, args=(path, decoder, answers)) for _ in range(2)
    ]

    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)

    assert [worker.exitcode for worker in workers] == [0, 0]
    assert [answers.get(), answers.get()] == [expected, expected]


def write_images(folder, numbers, size=(8, 8)):
    folder.mkdir(exist_ok=True)
    for number in numbers:
        Image.new("RGB", size, (number, 0, 0)).save(folder / f"f_{number}.png")
    return folder


def test_folder_of_frames_is_in_the_order_of_its_numbers(tmp_path):
    folder = write_images(tmp_path / "frames", range(8, 13))  # f_10 sorts before f_8 as text
    (folder / "notes.txt").write_text("not a frame")

    with open_video(folder, decoder="frames", fps=50) as video:
        assert video.num_frames == 5
        assert video.index_at(0.021) == 2
        frames = video.frames(torch.tensor([4, 0, 0]))

    assert frames.shape == (3, 3, 8, 8)
    assert frames[:, 0, 0, 0].tolist() == [12, 8, 8]


def test_folder_of_frames_that_cannot_be_a_video_is_refused(tmp_path):
    with pytest.raises(DecodeError, match="needs its frames a second"):
        open_video(write_images(tmp_path / "a", [1]), decoder="frames")
    with pytest.raises(DecodeError, match="no frames"):
        open_video(write_images(tmp_path / "b", []), decoder="frames", fps=24)
    with pytest.raises(DecodeError, match="missing after number 2"):
        open_video(write_images(tmp_path / "c", [1, 2, 4]), decoder="frames", fps=24)
    with pytest.raises(DecodeError, match="not a folder"):
        open_video(tmp_path / "d", decoder="frames", fps=24)
    with pytest.raises(DecodeError, match="for a folder of frames"):
        open_video(tmp_path / "e.mp4", fps=24)


def test_broken_image_is_named(tmp_path):
    folder = write_images(tmp_path / "frames", [1, 2])
    (folder / "f_2.png").write_bytes(b"no image")

    with (
        open_video(folder, decoder="frames", fps=24) as video,
        pytest.raises(DecodeError, match=r"f_2\.png: "),
    ):
        video.frames(torch.tensor([1]))


@pytest.mark.parametrize("name", ["mp4", "ts", "open_gop_ts", "mkv"])
def test_a_frame_late_in_the_file_needs_no_reading_from_the_start(name, coded_video, monkeypatch):
    file, options = CODED[name]
    path = coded_video(file, **options)
    with open_video(path) as video:
        expected = decode_all(path)[-2:]
        monkeypatch.setattr(PyavDecoder, "_frames_from_start", None)

        found = video.frames(torch.tensor([video.num_frames - 2, video.num_frames - 1]))

    assert torch.equal(found, expected)
