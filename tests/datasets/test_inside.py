"""A stranger's data set that points out of its folder is refused before anything of it is used."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdb_video.datasets.given import find_given
from cdb_video.datasets.readers import read_split
from cdb_video.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """root/ with two videos by a table, and outside/ with one."""
    for name in ("root/a.mp4", "root/sub/b.mp4", "outside/c.mp4"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    write_table(tmp_path / "root", "a.mp4", "sub/b.mp4")
    return tmp_path / "root"


def write_table(root: Path, *paths: str) -> None:
    lines = [f"{path},cut,train,{i}" for i, path in enumerate(paths)]
    (root / "clips.csv").write_text("\n".join(["path,verb,split,video_id", *lines]) + "\n")


def refusal(root: Path, **options: object) -> str:
    """What is said of an untrusted data set that is fine when it is trusted."""
    read_split(root, split="train", **options)  # type: ignore[arg-type]
    with pytest.raises(DataError) as refused:
        read_split(root, split="train", untrusted=True, **options)  # type: ignore[arg-type]
    return str(refused.value)


def test_what_lies_inside_is_read(root: Path) -> None:
    (root / "linked").symlink_to(root / "sub")
    write_table(root, "a.mp4", "linked/b.mp4")

    assert len(read_split(root, split="train", untrusted=True)) == 2


@pytest.mark.parametrize("path", ["../outside/c.mp4", "sub/../a.mp4", "sub/../../outside/c.mp4"])
def test_a_path_with_dots_is_refused(root: Path, path: str) -> None:
    write_table(root, path)

    assert refusal(root) == f"{root / path}: data.untrusted: leads out of {root}"


def test_an_absolute_path_is_refused(root: Path) -> None:
    outside = root.parent / "outside" / "c.mp4"
    write_table(root, str(outside))

    assert refusal(root) == f"{outside}: data.untrusted: leads out of {root}"


def test_a_linked_video_folder_or_annotation_file_outside_is_refused(root: Path) -> None:
    link = root / "link"
    for target in ("outside", "outside/c.mp4"):
        link.symlink_to(root.parent / target)
        assert refusal(root).startswith(f"{link}: data.untrusted: a link out of {root}, to ")
        link.unlink()

    (root / "clips.csv").rename(root.parent / "clips.csv")
    (root / "clips.csv").symlink_to(root.parent / "clips.csv")
    assert refusal(root).startswith(f"{root / 'clips.csv'}: data.untrusted: a link out of")


def test_annotations_elsewhere_are_refused(root: Path) -> None:
    elsewhere = root.parent / "clips.csv"
    (root / "clips.csv").rename(elsewhere)

    assert refusal(root, annotations="../clips.csv").endswith(f"leads out of {root}")
    assert refusal(root, annotations=elsewhere).endswith(f"leads out of {root}")


def test_a_root_that_is_itself_a_link_is_where_it_leads(root: Path) -> None:
    linked = root.parent / "linked"
    linked.symlink_to(root)

    assert len(read_split(linked, split="train", untrusted=True)) == 2


def test_given_videos_may_lie_anywhere_and_what_a_given_folder_holds_may_not(root: Path) -> None:
    outside = root.parent / "outside" / "c.mp4"
    (root / "d.mp4").symlink_to(outside)

    assert find_given([str(outside)], untrusted=True) == [outside]
    assert len(find_given([str(root)])) == 3
    with pytest.raises(DataError, match=r"d\.mp4: data\.untrusted: a link out of"):
        find_given([str(root)], untrusted=True)
