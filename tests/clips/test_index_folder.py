"""Indices on disk: found again, for as long as they hold, and never in the way."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cdb_video.clips.decoders import open_video
from cdb_video.clips.index import FrameIndex, decoded_index, open_container, packet_index
from cdb_video.clips.index_folder import IndexFolder


def read_index(path: Path) -> FrameIndex:
    container, stream = open_container(path)
    with container:
        index = packet_index(container, stream)
    if index is not None:
        return index
    container, stream = open_container(path)
    with container:
        return decoded_index(container, stream)


def assert_same(found: FrameIndex | None, expected: FrameIndex) -> None:
    assert found is not None
    for field in fields(FrameIndex):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(other, torch.Tensor):
            assert one.dtype == other.dtype, field.name
            assert torch.equal(one, other), field.name
        else:
            assert type(one) is type(other), field.name
            assert one == other, field.name


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "data" / "videos").mkdir(parents=True)
    return tmp_path / "data"


@pytest.fixture
def kept(tmp_path, root) -> IndexFolder:
    return IndexFolder(tmp_path / "cache" / "packet_index", root)


def place_of(kept: IndexFolder) -> Path:
    """The file of the only index."""
    [place] = [path for path in kept.folder.rglob("*") if path.is_file()]
    return place


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {"num_frames": 30}),
        ("a.mkv", {"num_frames": 30, "fps": 30000 / 1001}),
        ("a.ts", {"num_frames": 40, "open_gop": True}),
        ("a.mp4", {"times": [0.0, 0.05, 0.4, 1.3], "rotation": 90}),
        ("a.avi", {"num_frames": 12, "b_frames": 2}),  # known by order only
    ],
)
def test_index_is_found_again_in_every_field(name, options, root, kept, coded_video):
    path = coded_video(f"data/videos/{name}", **options)
    assert kept.find(path) is None

    with open_video(path, index_folder=kept):
        pass

    index = read_index(path)
    assert index.by_order == (name == "a.avi")
    assert index.open_gop == options.get("open_gop", False)
    assert_same(kept.find(path), index)


def test_video_opens_by_the_kept_index(root, kept, coded_video, read_code):
    path = coded_video("data/videos/a.mp4", num_frames=30)
    # What no reading of the file could give tells where the index came from.
    kept.keep(path, replace(read_index(path), fps=12.5), path.stat())

    with open_video(path, index_folder=kept) as video:
        assert video.fps == 12.5
        assert read_code(video.frames(torch.tensor([17, 3, 17]))) == [17, 3, 17]


def test_changed_file_is_read_anew(root, kept, coded_video):
    path = coded_video("data/videos/a.mp4", num_frames=12)
    index = read_index(path)
    status = path.stat()

    kept.keep(path, index, path.stat())
    assert kept.find(path) is not None
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert kept.find(path) is None  # as large as before, written later

    kept.keep(path, index, path.stat())
    assert kept.find(path) is not None
    status = path.stat()
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert kept.find(path) is None  # as old as before, of another size


def test_file_that_was_written_anew_opens_with_its_own_frames(root, kept, coded_video, read_code):
    path = coded_video("data/videos/a.mp4", num_frames=12)
    with open_video(path, index_folder=kept):
        pass
    path = coded_video("data/videos/a.mp4", num_frames=20, gop=5)

    with open_video(path, index_folder=kept) as video:
        assert video.num_frames == 20
        assert read_code(video.frames(torch.tensor([19]))) == [19]
    assert_same(kept.find(path), read_index(path))


def test_index_moves_with_the_data(root, kept, coded_video, tmp_path):
    path = coded_video("data/videos/a.mp4")
    index = read_index(path)
    kept.keep(path, index, path.stat())

    (tmp_path / "mounted").mkdir()
    moved = root.rename(tmp_path / "mounted" / "data")

    assert_same(IndexFolder(kept.folder, moved).find(moved / "videos" / "a.mp4"), index)


def test_relative_paths_find_the_same_index(root, kept, coded_video, tmp_path, monkeypatch):
    path = coded_video("data/videos/a.mp4")
    kept.keep(path, read_index(path), path.stat())

    monkeypatch.chdir(tmp_path)

    assert IndexFolder(kept.folder, Path("data")).find(Path("data/videos/a.mp4")) is not None


def test_files_of_one_name_in_two_folders_are_told_apart(root, kept, coded_video):
    (root / "others").mkdir()
    long = coded_video("data/videos/a.mp4", num_frames=20)
    short = coded_video("data/others/a.mp4", num_frames=4)

    kept.keep(long, read_index(long), long.stat())
    kept.keep(short, read_index(short), short.stat())

    assert len(kept.find(long).times) == 20
    assert len(kept.find(short).times) == 4


def test_file_outside_of_the_root_is_kept_too(root, kept, coded_video):
    path = coded_video("beside.mp4")
    index = read_index(path)

    kept.keep(path, index, path.stat())

    assert_same(kept.find(path), index)
    assert place_of(kept).is_relative_to(kept.folder)


def damage(place: Path, how: str) -> None:
    data = place.read_bytes()
    if how == "empty":
        place.write_bytes(b"")
    elif how == "text":
        place.write_bytes(b"no index\n" * 50)
    elif how == "cut off":
        place.write_bytes(data[: len(data) // 2])
    elif how == "header":
        place.write_bytes(b"\xff" * 8 + data[8:])
    elif how == "a flipped bit":  # of the first time
        start = 8 + int.from_bytes(data[:8], "little")
        place.write_bytes(data[:start] + bytes([data[start] ^ 0x20]) + data[start + 1 :])
    elif how == "a page of zeros":  # after a power cut: the name is there, the content not
        start = 8 + int.from_bytes(data[:8], "little")
        place.write_bytes(data[:start] + bytes(len(data) - start))
    elif how == "no metadata":
        save_file({"times": torch.zeros(3)}, place)
    else:  # of the same file, but of another class
        save_file({"times": torch.zeros(3)}, place, metadata=how_it_was(data))


def how_it_was(data: bytes) -> dict[str, str]:
    import json

    size = int.from_bytes(data[:8], "little")
    return {"file": json.loads(data[8 : 8 + size])["__metadata__"]["file"]}


DAMAGE = (
    "empty",
    "text",
    "cut off",
    "header",
    "a flipped bit",
    "a page of zeros",
    "no metadata",
    "fields missing",
)


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_index_is_made_anew(how, root, kept, coded_video):
    path = coded_video("data/videos/a.mp4", num_frames=12)
    index = read_index(path)
    kept.keep(path, index, path.stat())
    damage(place_of(kept), how)

    assert kept.find(path) is None
    with open_video(path, index_folder=kept) as video:
        assert video.num_frames == 12
    assert_same(kept.find(path), index)


def test_no_flipped_bit_gives_another_index(root, kept, coded_video):
    path = coded_video("data/videos/a.mp4", num_frames=6)
    index = read_index(path)
    kept.keep(path, index, path.stat())
    place = place_of(kept)
    whole = place.read_bytes()
    is_found = []

    for bit in range(0, 8 * len(whole), 31):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        place.write_bytes(data)
        found = kept.find(path)
        is_found.append(found is not None)
        if found is not None:  # as where spaces pad the header
            assert_same(found, index)

    assert sum(is_found) < 0.1 * len(is_found)


def test_folder_that_cannot_be_written_does_no_harm(root, coded_video, tmp_path, read_code):
    path = coded_video("data/videos/a.mp4", num_frames=12)
    (tmp_path / "file").write_text("not a folder")
    kept = IndexFolder(tmp_path / "file" / "packet_index", root)

    with open_video(path, index_folder=kept) as video:
        assert read_code(video.frames(torch.tensor([7]))) == [7]

    assert kept.find(path) is None
    assert (tmp_path / "file").read_text() == "not a folder"


def keep_often(kept: IndexFolder, path: Path, index: FrameIndex) -> None:
    for _ in range(40):
        kept.keep(path, index, path.stat())


def test_processes_that_write_at_once_leave_a_whole_index(root, kept, coded_video):
    path = coded_video("data/videos/a.mp4", num_frames=60)
    index = read_index(path)
    kept.keep(path, index, path.stat())
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=keep_often, args=(kept, path, index)) for _ in range(2)]

    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert_same(kept.find(path), index)

    assert [writer.exitcode for writer in writers] == [0, 0]
    assert_same(kept.find(path), index)
    place_of(kept)  # nothing is left beside it


def test_a_root_with_dots_stays_in_the_folder(tmp_path):
    folder = IndexFolder(tmp_path / "cache", root=tmp_path / "data" / "..")

    place = folder._place(tmp_path / "data" / ".." / ".." / "a.mp4")

    assert place.resolve().is_relative_to(tmp_path / "cache")


def test_a_file_that_grew_while_it_was_read_is_read_again(coded_video, tmp_path):
    path = coded_video("video.mkv", num_frames=20)
    folder = IndexFolder(tmp_path / "cache", root=tmp_path)
    before, index = path.stat(), read_index(path)
    with path.open("ab") as file:
        file.write(bytes(100))

    folder.keep(path, index, before)

    assert folder.find(path) is None
