"""The predictions file: what goes in comes out, and nothing else is read."""

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from cdb_video.datasets.annotations import VideoRecord
from cdb_video.errors import DataError
from cdb_video.evaluation.predictions import (
    HeadClasses,
    HeadPredictions,
    Predictions,
    load_predictions,
    metadata_of,
    save_predictions,
    with_metadata,
)


def make_head(num_classes, *, num_videos=5, num_views=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    views = torch.randn(num_videos, num_views, num_classes, generator=generator).softmax(2)
    labels = torch.randint(-1, num_classes, (num_videos,), generator=generator)
    return HeadPredictions(scores=views.mean(1), view_scores=views.half(), labels=labels)


def make_predictions():
    ids = ("P01_1", "clip with spaces", "vidéo/三", "x@1.5-2", "e")
    heads = {"verb": make_head(3), "noun": make_head(7, seed=1)}
    metadata = {"participant": ("P01", "P01", "P02", "", "P02"), "cam/side": tuple("ab切de")}
    predictions = Predictions(ids, heads, "weights of May", metadata)
    classes = {
        "verb": HeadClasses(
            ("open", "close", "切る"),
            torch.tensor([5, 0, 200]),
            annotated_counts=torch.tensor([7, 1, 260]),
        ),
        "noun": HeadClasses(
            tuple(f"noun {i}" for i in range(7)),
            torch.arange(7),
            pairs=torch.tensor([[0, 3], [2, 6]]),
        ),
    }
    return predictions, classes


def test_a_file_gives_back_what_was_saved_bit_for_bit(tmp_path):
    predictions, classes = make_predictions()
    path = tmp_path / "predictions_test.npz"

    save_predictions(path, predictions, classes)
    loaded, loaded_classes = load_predictions(path)

    assert (loaded.ids, loaded.source, len(loaded)) == (predictions.ids, "weights of May", 5)
    assert list(loaded.heads) == ["verb", "noun"]
    for head, part in predictions.heads.items():
        mine = loaded.heads[head]
        for name in ("scores", "view_scores", "labels"):
            saved, read = getattr(part, name), getattr(mine, name)
            assert read.dtype == saved.dtype
            assert torch.equal(read, saved)
        assert loaded_classes[head].names == classes[head].names
        assert torch.equal(loaded_classes[head].train_counts, classes[head].train_counts)
        assert torch.equal(mine.counts.to_dict()["table"], part.counts.to_dict()["table"])
    assert loaded.metadata == predictions.metadata
    assert loaded_classes["verb"].annotated_counts.tolist() == [7, 1, 260]
    assert loaded_classes["noun"].pairs.tolist() == [[0, 3], [2, 6]]
    assert loaded_classes["verb"].pairs is loaded_classes["noun"].annotated_counts is None


def test_arrays_have_their_names_and_types_and_no_pickle(tmp_path):
    predictions, classes = make_predictions()
    path = tmp_path / "predictions_test.npz"

    save_predictions(path, predictions, classes)

    with np.load(path, allow_pickle=False) as file:
        found = {name: (file[name].dtype.kind, file[name].shape) for name in file.files}
        assert file["scores_verb"].dtype == np.float32
        assert file["view_scores_verb"].dtype == np.float16
    assert found == {
        "ids": ("U", (5,)),
        "source": ("U", ()),
        "about": ("U", ()),
        "metadata_participant": ("U", (5,)),
        "metadata_cam/side": ("U", (5,)),
        "scores_verb": ("f", (5, 3)),
        "view_scores_verb": ("f", (5, 2, 3)),
        "labels_verb": ("i", (5,)),
        "class_names_verb": ("U", (3,)),
        "train_counts_verb": ("i", (3,)),
        "annotated_counts_verb": ("i", (3,)),
        "scores_noun": ("f", (5, 7)),
        "view_scores_noun": ("f", (5, 2, 7)),
        "labels_noun": ("i", (5,)),
        "class_names_noun": ("U", (7,)),
        "train_counts_noun": ("i", (7,)),
        "pairs_noun": ("i", (2, 2)),
    }


def test_saving_replaces_the_file_and_leaves_nothing_beside_it(tmp_path):
    predictions, classes = make_predictions()
    path = tmp_path / "predictions_val.npz"
    path.write_text("old")

    save_predictions(path, predictions, classes)

    assert [file.name for file in tmp_path.iterdir()] == ["predictions_val.npz"]
    assert load_predictions(path)[0].ids == predictions.ids


def write_damaged(path, *, start, stop):
    """A good file with some compressed bytes overwritten."""
    save_predictions(path, *make_predictions())
    with zipfile.ZipFile(path) as file:
        offset = file.getinfo("scores_verb.npy").header_offset
    content = bytearray(path.read_bytes())
    content[offset + start : offset + stop] = b"\xff" * (stop - start)
    path.write_bytes(content)


def write_half(path):
    save_predictions(path, *make_predictions())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_without(path, *names):
    save_predictions(path, *make_predictions())
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files if key not in names}
    np.savez(path, **arrays)


def write_changed(path, **changes):
    save_predictions(path, *make_predictions())
    with np.load(path) as file:
        np.savez(path, **{key: file[key] for key in file.files} | changes)


def test_a_file_of_before_there_was_a_source_or_metadata_has_none(tmp_path):
    path = tmp_path / "predictions_test.npz"
    new = ("metadata_participant", "metadata_cam/side", "annotated_counts_verb", "pairs_noun")

    write_without(path, "source", *new)

    predictions, classes = load_predictions(path)
    assert (predictions.source, predictions.metadata) == ("", {})
    assert (classes["verb"].annotated_counts, classes["noun"].pairs) == (None, None)


def test_classes_are_json_and_back():
    _, classes = make_predictions()

    for part in classes.values():
        again = HeadClasses.from_dict(json.loads(json.dumps(part.to_dict())))
        assert again.to_dict() == part.to_dict()
        assert again.train_counts.dtype == torch.int64
    # As checkpoints had it before there were pairs.
    old = HeadClasses.from_dict({"names": ["a", "b"], "train_counts": [3, 4]})
    assert (old.names, old.train_counts.tolist(), old.pairs) == (("a", "b"), [3, 4], None)


def record(name, **metadata):
    return VideoRecord(name, Path("a.mp4"), name, name, {}, metadata=metadata)


def test_metadata_is_of_every_column_that_a_record_has():
    records = [record("a", camera="1"), record("b"), record("c", camera="2", site="x")]

    assert metadata_of(records) == {"camera": ("1", "", "2"), "site": ("", "", "x")}
    assert metadata_of(records[1:2]) == {}


def test_metadata_is_found_by_id():
    part = make_head(3, num_videos=2)
    records = [record("a", camera="1"), record("b", camera="2"), record("c", camera="3")]

    found = with_metadata(Predictions(("c", "a"), {"verb": part}), records)

    assert found.metadata == {"camera": ("3", "1")}


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda path: None, id="missing"),
        pytest.param(lambda path: path.mkdir(), id="folder"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_text("id,score\na,1\n"), id="text"),
        pytest.param(lambda path: path.write_bytes(pickle.dumps({"ids": []})), id="pickle"),
        pytest.param(write_half, id="half"),
        pytest.param(lambda path: write_damaged(path, start=100, stop=112), id="damaged"),
        pytest.param(lambda path: np.savez(path, ids=np.array([{}], dtype=object)), id="objects"),
        pytest.param(lambda path: np.savez(path, x=np.zeros(3)), id="another npz"),
        pytest.param(lambda path: np.savez(path, ids=np.array(["a"])), id="no scores"),
        pytest.param(lambda path: np.savez(path, ids=np.array("a")), id="ids that are no list"),
        pytest.param(lambda path: write_without(path, "labels_noun"), id="no labels"),
        pytest.param(lambda path: write_changed(path, ids=np.array(["a"])), id="too few ids"),
        pytest.param(
            lambda path: write_changed(path, metadata_participant=np.array(["P01"])),
            id="too little metadata",
        ),
        pytest.param(
            lambda path: write_changed(path, scores_verb=np.array(["a"] * 5)), id="text as scores"
        ),
    ],
)
def test_what_is_no_predictions_file_is_refused_in_one_line(tmp_path, write):
    path = tmp_path / "predictions_test.npz"
    write(path)

    with pytest.raises(DataError, match=r"predictions_test\.npz: not a predictions file") as caught:
        load_predictions(path)

    assert "\n" not in str(caught.value)


def test_a_numpy_array_is_no_predictions_file(tmp_path):
    np.save(tmp_path / "scores.npy", np.zeros((3, 2)))

    with pytest.raises(DataError, match="not a predictions file"):
        load_predictions(tmp_path / "scores.npy")


def test_lengths_that_differ_are_refused():
    with pytest.raises(ValueError, match="head 'verb': ids, scores and labels differ in length"):
        Predictions(("a", "b"), {"verb": make_head(3)})


def test_loss_is_the_mean_negative_log_score_of_labelled_videos():
    scores = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.9, 0.1]])
    part = HeadPredictions(scores, scores[:, None].half(), torch.tensor([0, 0, -1]))

    assert part.loss == pytest.approx((torch.log(torch.tensor(2.0)) * 1.5).item())  # ln 2, ln 4


def test_a_score_of_zero_has_a_finite_loss():
    scores = torch.tensor([[1.0, 0.0]])
    part = HeadPredictions(scores, scores[:, None].half(), torch.tensor([1]))

    assert part.loss == pytest.approx(69.08, abs=0.01)  # -ln 1e-30


def test_counts_leave_unlabelled_videos_out():
    scores = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.9, 0.1]])
    counts = HeadPredictions(scores, scores[:, None].half(), torch.tensor([0, 0, -1])).counts

    assert counts.total.tolist() == [2, 0]
    assert counts.correct.tolist() == [1, 0]  # of the tie the lower index
    assert counts.predicted.tolist() == [1, 1]
