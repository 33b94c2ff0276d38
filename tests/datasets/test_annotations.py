from pathlib import Path

import pytest

from cdb_video.datasets.annotations import UNLABELLED, Split, VideoRecord, Vocabulary
from cdb_video.errors import DataError


def record(name: str, **labels: int) -> VideoRecord:
    path = Path(f"{name}.mp4")
    return VideoRecord(id=name, path=path, video_id=name, recording=name, labels=labels)


def test_vocabulary_maps_names_to_their_places() -> None:
    verbs = Vocabulary(["take", "Inspect/Read", "put"])

    assert len(verbs) == 3
    assert list(verbs) == ["take", "Inspect/Read", "put"]
    assert verbs.index("Inspect/Read") == 1
    assert "put" in verbs
    assert "cut" not in verbs
    assert repr(verbs).startswith("Vocabulary(3 classes: take, Inspect/Read, put")


def test_vocabularies_are_equal_when_names_and_order_are() -> None:
    assert Vocabulary(["take", "put"]) == Vocabulary(["take", "put"])
    assert Vocabulary(["take", "put"]) != Vocabulary(["put", "take"])
    assert len({Vocabulary(["take", "put"]), Vocabulary(["take", "put"])}) == 1


def test_vocabulary_refuses_a_name_that_is_there_twice() -> None:
    with pytest.raises(DataError, match="'take' is in the class list twice"):
        Vocabulary(["take", "put", "take"])


def test_vocabulary_raises_key_error_for_an_unknown_name() -> None:
    with pytest.raises(KeyError, match="cut"):
        Vocabulary(["take"]).index("cut")


def test_empty_split_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="split 'val' is empty"):
        Split("val", [], {"verb": Vocabulary(["take"])})


def test_class_counts_leave_unlabelled_records_out_and_keep_absent_classes() -> None:
    verbs, nouns = Vocabulary(["take", "put", "cut"]), Vocabulary(["cup", "pan"])
    records = [
        record("a", verb=2, noun=0),
        record("b", verb=0, noun=UNLABELLED),
        record("c", verb=2, noun=0),
    ]

    split = Split("train", records, {"verb": verbs, "noun": nouns})

    assert len(split) == 3
    assert split.heads == ("verb", "noun")
    assert split.num_classes == {"verb": 3, "noun": 2}
    assert split.labels("noun").tolist() == [0, UNLABELLED, 0]
    assert split.class_counts("verb").tolist() == [1, 0, 2]
    assert split.class_counts("noun").tolist() == [2, 0]
