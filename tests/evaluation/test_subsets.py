"""Figures over some of the videos equal those of these videos alone."""

import pytest
import torch

from cdb_video.errors import ConfigError, DataError
from cdb_video.evaluation.metrics import head_figures
from cdb_video.evaluation.predictions import HeadClasses, HeadPredictions, Predictions
from cdb_video.evaluation.subsets import find_subsets, subset_figures

IDS = ("a", "b", "c", "d", "e")
METADATA = {"camera": ("1", "2", "1", "", "2"), "site": ("x",) * 5}


def find(*asked):
    found = find_subsets(asked, ids=IDS, metadata=METADATA)
    return {name: "".join(sorted(ids)) for name, ids in found.items()}


def test_a_column_has_a_subset_a_value():
    assert find("camera") == {"camera=": "d", "camera=1": "ac", "camera=2": "be"}


def test_one_value_of_a_column():
    assert find("camera=2", "site=x") == {"camera=2": "be", "site=x": "abcde"}


def test_a_file_lists_ids(tmp_path, monkeypatch):
    (tmp_path / "dark.txt").write_text("\ufeffb\n\n d \nb\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    assert find("dark.txt", "camera=1") == {"dark": "bd", "camera=1": "ac"}


def test_a_column_goes_before_a_file_of_its_name(tmp_path, monkeypatch):
    (tmp_path / "site").write_text("b\n")
    monkeypatch.chdir(tmp_path)

    assert find("site") == {"site=x": "abcde"}
    assert find("./site") == {"site": "b"}


def test_an_unknown_id_is_refused_with_its_line(tmp_path):
    path = tmp_path / "dark.txt"
    path.write_text("a\n\nzebra\n")

    with pytest.raises(DataError, match=r"dark\.txt:3: 'zebra' is no video of the split$"):
        find(str(path))


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe\x00"])
def test_a_file_without_ids_is_refused(tmp_path, content):
    path = tmp_path / "dark.txt"
    path.write_bytes(content)

    with pytest.raises(DataError, match=r"dark\.txt: no"):
        find(str(path))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("place", r"--subset place: neither a file nor a column; columns: camera, site"),
        ("camera=9", r"--subset camera=9: no video has it; there are: '', '1', '2'"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(asked, message):
    with pytest.raises(ConfigError, match=message):
        find(asked)


def test_data_without_metadata_says_so():
    with pytest.raises(ConfigError, match="columns: none"):
        find_subsets(["camera"], ids=IDS, metadata={})


def make_part(num_classes, *, num_videos=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(num_videos, num_classes, generator=generator).softmax(1)
    labels = torch.randint(-1, num_classes, (num_videos,), generator=generator)
    return HeadPredictions(scores, scores[:, None].half(), labels)


def make_predictions(**metadata):
    heads = {"verb": make_part(6), "noun": make_part(3, seed=1), "action": make_part(7, seed=2)}
    columns = {name: tuple(values) for name, values in metadata.items()}
    return Predictions(tuple(map(str, range(40))), heads, metadata=columns)


def classes_of(predictions):
    return {
        head: HeadClasses(
            tuple(map(str, range(part.scores.shape[1]))),
            torch.arange(part.scores.shape[1]) * 30,
        )
        for head, part in predictions.heads.items()
    }


def alone(predictions, head, rows):
    """The figures of some videos, as if they were the split."""
    part = predictions.heads[head]
    chosen = HeadPredictions(part.scores[rows], part.view_scores[rows], part.labels[rows])
    return head_figures(chosen, classes_of(predictions)[head], per_class=False)


def test_figures_are_those_of_the_videos_alone():
    predictions = make_predictions()

    found = subset_figures(predictions, classes_of(predictions), {"some": {"3", "7", "9", "21"}})

    assert found.keys() == {"some"}
    assert list(found["some"]) == ["verb", "noun", "action"]
    for head, figures in found["some"].items():
        assert figures == alone(predictions, head, [3, 7, 9, 21])
        assert "class_accuracy" not in figures


def test_unseen_and_tail_are_there_unasked_and_each_head_has_its_own_tail():
    def yes(*rows):
        return ["yes" if i in rows else "no" for i in range(40)]

    predictions = make_predictions(
        unseen=yes(*range(10)),
        tail_verb=yes(1, 2, 3, 11),
        tail_noun=yes(5, 6, 20, 21, 22),
        tail=yes(1, 2, 3, 5, 6, 11, 20, 21, 22),
    )

    found = subset_figures(predictions, classes_of(predictions), {})

    assert list(found) == ["unseen", "tail"]
    for head in predictions.heads:
        assert found["unseen"][head] == alone(predictions, head, list(range(10)))
    assert found["tail"] == {
        "verb": alone(predictions, "verb", [1, 2, 3, 11]),
        "noun": alone(predictions, "noun", [5, 6, 20, 21, 22]),
        "action": alone(predictions, "action", [1, 2, 3, 5, 6, 11, 20, 21, 22]),
    }


def test_a_split_without_an_unseen_video_has_no_such_subset():
    predictions = make_predictions(unseen=["no"] * 40)

    assert subset_figures(predictions, classes_of(predictions), {}) == {}


def test_ids_that_were_skipped_count_for_nothing():
    predictions = make_predictions()
    classes = classes_of(predictions)

    found = subset_figures(predictions, classes, {"x": {"1", "skipped"}, "none": {"skipped"}})

    assert found["x"]["verb"] == alone(predictions, "verb", [1])
    assert found["none"]["verb"]["num_videos"] == 0
    assert found["none"]["verb"]["top1"] is None


def test_two_subsets_of_one_name_are_refused(tmp_path):
    first, second = tmp_path / "1" / "dark.txt", tmp_path / "2" / "dark.txt"
    for path, ids in ((first, "a\n"), (second, "b\n")):
        path.parent.mkdir()
        path.write_text(ids)

    assert find(str(first), str(first)) == {"dark": "a"}
    with pytest.raises(ConfigError, match=r"2/dark\.txt: there is another subset 'dark'"):
        find(str(first), str(second))


def test_a_file_does_not_replace_a_subset_of_the_data_set(tmp_path):
    path = tmp_path / "tail.txt"
    path.write_text("a\n")

    assert find(str(path)) == {"tail": "a"}
    with pytest.raises(ConfigError, match="another subset 'tail'"):
        find_subsets([str(path)], ids=IDS, metadata={"tail_verb": ("yes",) * 5})


def test_a_file_may_list_skipped_videos(tmp_path):
    path = tmp_path / "dark.txt"
    path.write_text("a\nbroken\n")

    found = find_subsets([str(path)], ids=IDS, metadata={}, skipped=["broken"])

    assert found == {"dark": {"a", "broken"}}
