"""A file is the old one or the new one, and nothing stays beside it."""

from pathlib import Path

import pytest

from cdb_video.files import replaced, write_text_atomically


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
