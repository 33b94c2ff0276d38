"""A file is the old one or the new one, and nothing stays beside it."""

import zipfile
from pathlib import Path

import pytest

from cdb_video import files
from cdb_video.files import refuse_unpacking, replaced, write_text_atomically


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
