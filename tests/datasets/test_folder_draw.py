from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cdb_video.datasets.folder import read_folder
from cdb_video.datasets.folder_draw import draw_groups
from cdb_video.errors import DataError

SPLITS = ("train", "val", "test")
Videos = dict[Path, str]


def videos(**classes: dict[str, int]) -> Videos:
    """Of every class, how many videos each group has."""
    return {
        Path(name) / f"{group}_{i}.mp4": group
        for name, groups in classes.items()
        for group, count in groups.items()
        for i in range(count)
    }


def groups_of(drawn: dict[str, list[Path]], groups: Videos) -> dict[str, set[str]]:
    return {split: {groups[path] for path in paths} for split, paths in drawn.items()}


def drawn_order(names: list[str], seed: int) -> list[str]:
    return [names[i] for i in torch.randperm(len(names), generator=_generator(seed)).tolist()]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_three_groups_go_to_the_three_splits_in_drawn_order() -> None:
    # Every group is needed by a split that lacks the class; the most videos are due in train, then
    # (equal, so in this order) in val and test.
    groups = videos(cut={"a": 2, "b": 2, "c": 2})

    found = groups_of(draw_groups(groups, seed=5), groups)

    first, second, third = drawn_order(["a", "b", "c"], 5)
    assert found == {"train": {first}, "val": {second}, "test": {third}}


def test_ten_equal_groups_are_divided_by_what_is_due() -> None:
    # Due of 10: 7, 1.5 and 1.5. train takes six (1 left, against 1.5), then 1.5 > 1: val, test;
    # then train's 1 against .5 and .5, and the last, .5 for val and test, to val before test.
    groups = videos(cut={f"{i}": 1 for i in range(10)})

    found = groups_of(draw_groups(groups, seed=0), groups)

    order = drawn_order([f"{i}" for i in range(10)], 0)
    assert found["val"] == {order[6], order[9]}
    assert found["test"] == {order[7]}
    assert len(found["train"]) == 7


def test_rarest_class_is_placed_first_and_the_others_follow_it() -> None:
    # rare: p, q, r to one split each. common has p, q, r too, and its s goes where the most is due:
    # of 13 videos train is due 9.1; it has one, and val and test have one of the 1.95 due.
    groups = videos(rare={"p": 1, "q": 1, "r": 1}, common={"p": 1, "q": 1, "r": 1, "s": 10})

    found = groups_of(draw_groups(groups, seed=0), groups)

    p, q, r = (name for name in drawn_order(["p", "q", "r", "s"], 0) if name != "s")
    assert found == {"train": {p, "s"}, "val": {q}, "test": {r}}


def test_two_equal_groups_train() -> None:
    # Due of 2: 1.4, .3 and .3; after the first .4, .3 and .3.
    groups = videos(cut={"a": 1, "b": 1})

    assert groups_of(draw_groups(groups, seed=0), groups)["train"] == {"a", "b"}


@given(
    st.dictionaries(
        st.sampled_from("ABCDE"),
        st.dictionaries(st.sampled_from("pqrstuvw"), st.integers(1, 5), min_size=1),
        min_size=1,
    ),
    st.integers(0, 5),
)
@settings(max_examples=25, deadline=None)
def test_no_group_is_in_two_splits(classes: dict[str, dict[str, int]], seed: int) -> None:
    groups = videos(**classes)

    drawn = draw_groups(groups, seed=seed)

    found = groups_of(drawn, groups)
    assert sum(len(names) for names in found.values()) == len(set(groups.values()))
    assert sorted(path for paths in drawn.values() for path in paths) == sorted(groups)
    assert drawn == draw_groups(dict(reversed(groups.items())), seed=seed)


@given(
    st.lists(st.lists(st.integers(1, 9), min_size=3, max_size=7), min_size=1, max_size=4),
    st.integers(0, 5),
)
@settings(max_examples=25, deadline=None)
def test_a_class_of_three_groups_of_its_own_is_in_every_split(
    sizes: list[list[int]], seed: int
) -> None:
    groups = videos(
        **{f"c{c}": {f"{c}-{i}": n for i, n in enumerate(s)} for c, s in enumerate(sizes)}
    )

    drawn = draw_groups(groups, seed=seed)

    for c in range(len(sizes)):
        assert all(any(path.parent.name == f"c{c}" for path in drawn[split]) for split in SPLITS)


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_group_is_the_recording_and_the_seed_is_another_draw(tmp_path: Path) -> None:
    touch(tmp_path, *(f"cut/P{i:02d}_{j}.mp4" for i in range(12) for j in range(2)))

    def recordings(seed: int) -> list[frozenset[str]]:
        splits = [read_folder(tmp_path, [s], seed=seed, group_pattern=r"^(P\d+)_") for s in SPLITS]
        return [frozenset(record.recording for record in split.records) for split in splits]

    first = recordings(0)

    assert first == recordings(0)
    assert len({tuple(recordings(seed)) for seed in range(4)}) > 1
    assert frozenset.union(*first) == {f"P{i:02d}" for i in range(12)}


def test_seed_of_a_draw_by_video(tmp_path: Path) -> None:
    touch(tmp_path, *(f"cut/{i}.mp4" for i in range(9)))

    drawn = [
        [record.id for record in read_folder(tmp_path, ["train"], seed=seed).records]
        for seed in (0, 1)
    ]

    assert drawn[0] == [record.id for record in read_folder(tmp_path, ["train"]).records]
    assert drawn[0] != drawn[1]


def test_split_folders_keep_their_videos_and_get_their_recordings(tmp_path: Path) -> None:
    touch(tmp_path, "train/cut/P01_1.mp4", "train/cut/P02_1.mp4", "val/cut/P01_2.mp4")

    split = read_folder(tmp_path, ["train"], group_pattern=r"(P\d+)")

    assert [record.recording for record in split.records] == ["P01", "P02"]
    with pytest.raises(DataError, match=r"^data\.split_seed: 3 given, but the splits are the fol"):
        read_folder(tmp_path, ["train"], seed=3)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"^(P\d+)", r"'^(P\\d+)' finds no group in the name of {root}/cut/Q02_1.mp4"),
        (r"P\d+", r"'P\\d+' has 0 groups; expected one, in parentheses"),
        (r"(P)(\d+)", r"'(P)(\\d+)' has 2 groups"),
        (r"(P", "'(P' is no expression (missing ), unterminated subpattern at position 0)"),
    ],
)
def test_bad_patterns_are_refused(tmp_path: Path, pattern: str, expected: str) -> None:
    touch(tmp_path, "cut/P01_1.mp4", "cut/Q02_1.mp4")

    with pytest.raises(DataError) as caught:
        read_folder(tmp_path, ["train"], group_pattern=pattern)

    assert str(caught.value).startswith("data.group_pattern: ")
    assert expected.format(root=tmp_path) in str(caught.value)
