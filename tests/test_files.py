"""A file is the old one or the new one, and nothing stays beside it."""

import os
import zipfile
from pathlib import Path

import pytest

from cdb_video import files
from cdb_video.errors import RunError
from cdb_video.files import (
    refuse_unpacking,
    replaced,
    sweep,
    write_text_atomically,
    write_text_durably,
    writing,
)
from tests.disk_order import disk_order


def test_a_text_replaces_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")

    write_text_atomically(path, "caf\u00e9\n")

    assert path.read_bytes() == b"caf\xc3\xa9\n"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")

    def write_half() -> None:
        with replaced(path) as beside:
            beside.write_text("ha")
            raise KeyError

    with pytest.raises(KeyError):
        write_half()

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_durable_text_is_on_the_disk_before_and_after_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = disk_order(tmp_path, monkeypatch)

    write_text_durably(tmp_path / "run.json", "{}")

    beside = f".run.tmp{os.getpid()}.json"
    assert lines == [f"sync {beside}", f"rename {beside} to run.json", "sync ."]


def test_a_full_disk_is_a_line_with_the_file_the_reason_and_the_bytes(tmp_path: Path) -> None:
    def fill() -> None:
        with writing(tmp_path / "report.json"), Path("/dev/full").open("w") as file:
            file.write("content")

    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    line = r"report\.json: could not be written \(No space left on device\), [0-9.]+ MB are free$"
    with pytest.raises(RunError, match=line):
        fill()


def test_a_folder_that_is_none_is_the_same_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")

    with pytest.raises(RunError, match=r"a\.json: could not be written \(Not a directory\)"):
        write_text_atomically(tmp_path / "file" / "a.json", "content")


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    gone = 2**22 + 1  # above the largest process id of Linux
    left = [f".metrics.tmp{gone}.jsonl", f".id.tmp{gone}", f".config.tmp{os.getpid()}.yaml"]
    stays = [".lock", f".report_val.tmp{os.getppid()}.html", ".tmp", f"a.tmp{gone}.json", ".a.tmp"]
    for name in (*left, *stays):
        (tmp_path / name).touch()

    sweep(tmp_path)

    assert {path.name for path in tmp_path.iterdir()} == set(stays)


def test_an_archive_that_would_swell_is_refused(tmp_path: Path) -> None:
    swelling, stored = tmp_path / "a.npz", tmp_path / "b.npz"
    with zipfile.ZipFile(swelling, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(200))
    with zipfile.ZipFile(stored, "w") as archive:
        archive.writestr("a", bytes(200))
    text = tmp_path / "text"
    text.write_text("no archive")

    for path in (swelling, stored, text):
        refuse_unpacking(path)
    with pytest.MonkeyPatch.context() as small:
        small.setattr(files, "UNPACKED_BYTES", 100)
        small.setattr(files, "UNPACKED_RATIO", 1)
        refuse_unpacking(stored)
        with pytest.raises(ValueError, match=r"^\d+ bytes that would unpack to 200$"):
            refuse_unpacking(swelling)
