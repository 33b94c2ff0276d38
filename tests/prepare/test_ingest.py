"""A folder of videos prepared into another: names, what is refused, what a second run leaves."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdb_video.clips.decoders import open_video
from cdb_video.clips.index_folder import IndexFolder
from cdb_video.errors import DataError
from cdb_video.prepare.ingest import (
    Failure,
    Ingest,
    find_sources,
    plan_jobs,
    prepare_file,
    prepare_videos,
    target_name,
)
from cdb_video.prepare.ledger import LEDGER, Ledger, Prepared
from cdb_video.prepare.reencode import Settings
from tests.conftest import write_coded_video

SETTINGS = Settings(preset="superfast")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """(IN_DIR, OUT_DIR): a video, one of another container deeper, and a file that is none."""
    in_dir = tmp_path / "in"
    (in_dir / "cut").mkdir(parents=True)
    write_coded_video(in_dir / "a.MP4", num_frames=12)
    write_coded_video(in_dir / "cut" / "b.mkv", num_frames=8)
    (in_dir / "clips.csv").write_text("path,label\n")
    return in_dir, tmp_path / "out"


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def prepare_here(in_dir: Path, out_dir: Path) -> list[Prepared | Failure]:
    """What the processes do, in this one."""

    def results() -> Iterator[Prepared | Failure]:
        with Ledger(out_dir, SETTINGS) as ledger:
            for job in plan_jobs(in_dir, out_dir):
                if not ledger.has(job.source, name=job.source_name, target=job.target):
                    *_, last = prepare_file(job, settings=SETTINGS, index_folder=None)
                    assert not isinstance(last, int)
                    if isinstance(last, Prepared):
                        ledger.add(last)
                    yield last

    return list(results())


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("a.mp4", "a.mp4"),
        ("P01/videos/P01_01.MP4", "P01/videos/P01_01.MP4"),
        ("a.mov", "a.mov"),
        ("x/a.v2.webm", "x/a.v2.mp4"),
        ("a.AVI", "a.mp4"),
    ],
)
def test_names_of_the_mp4_family_are_kept(source: str, target: str) -> None:
    assert target_name(source) == target


def test_videos_are_found_at_any_depth_but_hidden_ones(tmp_path: Path) -> None:
    for name in ("a.mp4", "x/y/z/b.MOV", ".c.mp4", ".d/e.mp4", "x/notes.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "f.mp4").touch()
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "x" / "up").symlink_to(tmp_path / "in")

    assert sorted(find_sources(tmp_path / "in")) == ["a.mp4", "linked/f.mp4", "x/y/z/b.MOV"]


def test_two_sources_of_one_name_are_refused_before_anything_is_written(
    folders: tuple[Path, Path],
) -> None:
    in_dir, out_dir = folders
    (in_dir / "cut" / "b.mp4").touch()

    with pytest.raises(DataError, match=r"cut/b\.mkv and cut/b\.mp4 would both become cut/b\.mp4"):
        prepare_videos(in_dir, out_dir, SETTINGS)

    assert not out_dir.exists()


@pytest.mark.parametrize(
    ("in_name", "out_name", "message"),
    [
        ("in", "in", "must lie outside"),
        ("in", "in/small", "must lie outside"),
        ("in/cut", "in", "must lie outside"),
        ("in", "link", "must lie outside"),
        ("nowhere", "out", "no such folder"),
        ("empty", "out", "no video in it"),
        ("in", "in/a.MP4", "not a folder"),
        ("in", "full", "holds files, and no prepared.jsonl"),
        ("in", "leads_back", "a link out of"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(
    in_name: str, out_name: str, message: str, folders: tuple[Path, Path]
) -> None:
    in_dir, _ = folders
    root = in_dir.parent
    for name in ("empty", "full/x", "leads_back"):
        (root / name).mkdir(parents=True)
    (root / "link").symlink_to(in_dir)
    (root / "leads_back" / "cut").symlink_to(in_dir / "cut")
    before = contents(root)

    with pytest.raises(DataError, match=message):
        prepare_videos(root / in_name, root / out_name, SETTINGS)

    assert contents(root) == before


def test_a_second_run_leaves_what_is_done_and_makes_the_rest(folders: tuple[Path, Path]) -> None:
    in_dir, out_dir = folders
    before = contents(in_dir)
    assert len(prepare_here(in_dir, out_dir)) == 2
    made = contents(out_dir)
    assert made.keys() == {"a.MP4", "cut/b.mp4", LEDGER}
    assert prepare_here(in_dir, out_dir) == []
    assert contents(out_dir) == made
    assert contents(in_dir) == before

    # A newer source, and a target that is not whole.
    write_coded_video(in_dir / "a.MP4", num_frames=5)
    [again] = prepare_here(in_dir, out_dir)
    (out_dir / "cut" / "b.mp4").write_bytes(b"")
    [other] = prepare_here(in_dir, out_dir)

    assert isinstance(again, Prepared)
    assert isinstance(other, Prepared)
    assert (again.source, again.num_frames) == ("a.MP4", 5)
    assert (other.source, other.target) == ("cut/b.mkv", "cut/b.mp4")


def test_other_settings_and_a_second_writer_are_refused(tmp_path: Path) -> None:
    with (
        Ledger(tmp_path / "out", Settings(gop=32)),
        pytest.raises(DataError, match="another process"),
    ):
        Ledger(tmp_path / "out", Settings(gop=32))
    with pytest.raises(DataError, match=r"out: made with gop=32, not 24; keep the settings"):
        Ledger(tmp_path / "out", Settings(gop=24))


def test_a_line_that_a_crash_cut_off_is_written_anew(folders: tuple[Path, Path]) -> None:
    in_dir, out_dir = folders
    prepare_here(in_dir, out_dir)
    whole = (out_dir / LEDGER).read_text()
    (out_dir / LEDGER).write_text(whole[:-20])

    [again] = prepare_here(in_dir, out_dir)

    assert isinstance(again, Prepared)
    lines = (out_dir / LEDGER).read_text().splitlines()
    assert [json.loads(line).get("source") for line in lines] == [None, "a.MP4", "cut/b.mkv"]


def test_a_ledger_that_is_none_is_named_with_its_line(folders: tuple[Path, Path]) -> None:
    in_dir, out_dir = folders
    prepare_here(in_dir, out_dir)
    with (out_dir / LEDGER).open("a") as file:
        file.write("{}\n")

    with pytest.raises(DataError, match=r"prepared\.jsonl:4: not a line of this tool's"):
        Ledger(out_dir, SETTINGS)


def test_a_failure_leaves_no_file_and_keeps_the_old_one(folders: tuple[Path, Path]) -> None:
    in_dir, out_dir = folders
    prepare_here(in_dir, out_dir)
    old = (out_dir / "a.MP4").read_bytes()
    (in_dir / "a.MP4").write_bytes(b"no video\n" * 100)

    [failure] = prepare_here(in_dir, out_dir)

    assert isinstance(failure, Failure)
    assert failure.source == "a.MP4"
    assert "\n" not in failure.reason
    assert (out_dir / "a.MP4").read_bytes() == old
    assert contents(out_dir).keys() == {"a.MP4", "cut/b.mp4", LEDGER}


@pytest.mark.slow
def test_files_that_hang_or_crash_are_named_and_the_others_are_made(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    in_dir, out_dir = folders
    (in_dir / "c.mp4").write_text("no video")
    os.mkfifo(in_dir / "d.mp4")
    (in_dir / "e.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (out_dir / "cut").mkdir(parents=True)
    (out_dir / LEDGER).touch()
    left_over = out_dir / "cut" / ".prepare-12345-0.mp4"
    left_over.touch()

    ingest = prepare_videos(
        in_dir, out_dir, SETTINGS, num_workers=2, index_dir=tmp_path / "index", quiet=True
    )

    assert isinstance(ingest, Ingest)
    assert sorted(entry.source for entry in ingest.made) == ["a.MP4", "cut/b.mkv"]
    assert [failure.source for failure in ingest.failures] == ["c.mp4", "d.mp4", "e.mp4"]
    assert ingest.failures[1].reason == "not a regular file"
    assert ingest.renamed == 1
    assert not left_over.exists()
    index = IndexFolder(tmp_path / "index", out_dir).find(out_dir / "a.MP4")
    assert index is not None
    with open_video(out_dir / "a.MP4") as video:
        assert index.times.equal(video.times)
