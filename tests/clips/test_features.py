"""Saved features as clips: rows by id, views by key, shards from disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cdb_video.clips.dataset import sample_generator
from cdb_video.clips.feature_files import feature_shape, feature_source, source_difference
from cdb_video.clips.features import FeatureClips
from cdb_video.clips.loader import EvaluationLoader, TrainingLoader, TrainingOrder
from cdb_video.datasets.readers import read_split
from cdb_video.distributed import Ranks
from cdb_video.errors import DataError, UnknownSplitError
from tests.feature_files import NAMES, made_with, make_features, save_data_set


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_data_set(tmp_path_factory.mktemp("features"), views=3)


def test_a_split_has_the_ids_labels_recordings_and_metadata_of_its_file(folder: Path) -> None:
    split = read_split(folder, format="features", split="val")

    made = make_features(9, views=3, seed=1)
    assert [record.id for record in split.records] == list(made.ids)
    assert {head: names.names for head, names in split.vocabularies.items()} == NAMES
    assert torch.equal(split.labels("noun"), made.labels["noun"])
    assert split.records[4].recording == "s1-r1"
    assert split.records[3].metadata == {"participant": "P1"}
    held_out = read_split(
        folder, format="features", split="val", hold_out_subjects=["P1"], part="held_out"
    )
    assert [record.id for record in held_out.records] == ["s1-1", "s1-3", "s1-5", "s1-7"]


def test_several_files_are_one_split_and_a_missing_one_is_named(folder: Path) -> None:
    both = read_split(folder, format="features", split=["train", "val"])

    assert (len(both), both.name) == (33, "train + val")
    clips = FeatureClips(both.records)
    [(batch, _)] = clips.batches([[23, 24]])
    expected = [
        make_features(24, views=3).features[23],
        make_features(9, views=3, seed=1).features[0],
    ]
    torch.testing.assert_close(
        batch.clips[..., 0, 0, 0].float(), torch.stack(expected), rtol=0, atol=2e-3
    )
    with pytest.raises(UnknownSplitError, match="no features of split 'dev'; there are: test, tr"):
        read_split(folder, format="features", split="dev")


def test_training_draws_a_view_by_the_key_and_evaluation_gives_all(folder: Path) -> None:
    records = read_split(folder, format="features", split="train").records
    clips = FeatureClips(records, seed=5)
    order = TrainingOrder(24, global_batch_size=12, seed=5)
    loader = TrainingLoader(clips, order, num_workers=0, pin_memory=False)
    made = make_features(24, views=3).features

    first = list(loader.epoch(2))
    [again] = loader.epoch(2, first_step=1)

    assert torch.equal(again.clips, first[1].clips)
    batch = first[1]
    assert (batch.clips.shape, batch.clips.dtype) == ((12, 1, 6, 1, 1, 1), torch.float16)
    for row, index in enumerate(batch.indices.tolist()):
        view = int(torch.randint(3, (), generator=sample_generator(5, 2, index)))
        assert torch.equal(batch.clips[row, 0, :, 0, 0, 0], made[index, view].half())
    labels = torch.tensor([records[i].labels["noun"] for i in batch.indices.tolist()])
    assert torch.equal(batch.labels["noun"], labels)

    views = FeatureClips(records)
    whole = list(EvaluationLoader(views, clips_per_batch=12))
    assert [tuple(part.clips.shape) for part in whole] == [(4, 3, 6, 1, 1, 1)] * 6
    halves = [
        list(EvaluationLoader(views, clips_per_batch=12, ranks=Ranks(rank, rank, 2)))
        for rank in range(2)
    ]
    seen = [index for half in halves for part in half for index in part.indices.tolist()]
    assert sorted(seen) == list(range(24))


def test_tokens_in_shards_are_read_from_disk(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).normal(size=(5, 2, 7, 4)).astype(np.float16)
    np.save(tmp_path / "train.tokens-0-00000.npy", tokens[[0, 2, 4]])
    np.save(tmp_path / "train.tokens-1-00000.npy", tokens[[1, 3]])
    np.savez(
        tmp_path / "train.npz",
        ids=np.array(list("abcde")),
        labels_verb=np.array([0, 1, 0, 1, -1]),
        class_names_verb=np.array(["close", "open"]),
        shards=np.array(["train.tokens-0-00000.npy", "train.tokens-1-00000.npy"]),
        shard_of=np.array([0, 1, 0, 1, 0]),
        place_of=np.array([0, 0, 1, 1, 2]),
    )
    records = read_split(tmp_path, format="features", split="train").records

    [(batch, _)] = FeatureClips(records).batches([[3, 4, 0]])

    assert feature_shape(records) == (2, 7, 4)
    expected = torch.from_numpy(tokens[[3, 4, 0]]).mT[..., None, None]
    assert torch.equal(batch.clips, expected)
    (tmp_path / "train.tokens-1-00000.npy").unlink()
    shutil.copy(tmp_path / "train.npz", tmp_path / "other.npz")
    other = read_split(tmp_path, format="features", split="other").records
    with pytest.raises(DataError, match=r"other\.npz: not a features file: .*tokens-1-00000"):
        FeatureClips(other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels_verb": np.array([0, 2])}, "a label of verb is none of its 2 classes"),
        ({"labels_verb": np.array([0])}, "1 labels of verb for 2 clips"),
        ({"class_names_verb": np.array(["a", "a"])}, "is in the class list twice"),
        ({"ids": np.array(["a", "a"])}, "clip a is in the split twice"),
        ({"features": np.zeros((2, 3), dtype=np.int64)}, r"features int64 \(2, 3\) for 2 clips"),
        ({"features": np.zeros((1, 3))}, r"features float64 \(1, 3\) for 2 clips"),
        ({"features": np.zeros((2, 0, 3))}, r"features float64 \(2, 0, 3\) for 2 clips"),
        ({"features": np.zeros((2, 3), dtype=">f4")}, r"features >f4 \(2, 3\) for 2 clips"),
        ({"features": np.array([[0, 1], [np.nan, 2]])}, "clip b is no finite number"),
        ({"features": np.array([[-np.inf, 1], [0, 2]])}, "clip a is no finite number"),
        ({"labels_verb": np.array([0.0, 1.0])}, r"labels of verb are float64 \(2,\), not class"),
        ({"labels_verb": np.array([[0, 1]])}, r"labels of verb are int64 \(1, 2\), not class"),
        ({"ids": np.array([1, 2])}, r"ids int64 \(2,\) is no list of texts"),
        ({"ids": np.array([], dtype=np.str_)}, "it has no clips"),
        ({"recordings": np.array(["r", "r", "s"])}, "3 recordings for 2 clips"),
        ({"metadata_camera": np.array(["c"])}, "1 metadata_camera for 2 clips"),
        ({"metadata_camera": np.array([1, 2])}, "metadata_camera int64"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(
    tmp_path: Path, change: dict[str, np.ndarray], message: str
) -> None:
    arrays = {
        "ids": np.array(["a", "b"]),
        "features": np.zeros((2, 3), dtype=np.float16),
        "labels_verb": np.array([0, 1]),
        "class_names_verb": np.array(["close", "open"]),
    }
    np.savez(tmp_path / "train.npz", **(arrays | change))  # type: ignore[arg-type]

    with pytest.raises(DataError, match=message):
        FeatureClips(read_split(tmp_path, format="features", split="train").records)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shard_of": np.array([0, 1])}, r"shard_of int64 \(2,\) for 3 clips"),
        ({"place_of": np.array([0.0, 1.0, 0.0])}, r"place_of float64 \(3,\) for 3 clips"),
        ({"shard_of": np.array([0, 0, 2])}, "clip c is in row 0 of shard 2, which is not there"),
        ({"shard_of": np.array([0, 0, -1])}, "clip c is in row 0 of shard -1"),
        ({"place_of": np.array([0, 2, 0])}, "clip b is in row 2 of shard 0, which is not there"),
        ({"place_of": np.array([0, -1, 0])}, "clip b is in row -1 of shard 0"),
        ({"shards": np.array(["a.npy", "../b.npy"])}, "are no files beside it"),
        ({"shards": np.array(["a.npy", "wide.npy"])}, "its shards are not of one shape"),
        ({"shards": np.array(["a.npy", "whole.npy"])}, "its shards are not of one shape"),
        ({"shards": np.array(["a.npy", "train.npz"])}, "not a features file"),
    ],
)
def test_an_index_of_tokens_that_contradicts_its_shards_is_refused(
    tmp_path: Path, change: dict[str, np.ndarray], message: str
) -> None:
    save_tokens(tmp_path, np.zeros((3, 1, 5, 4), dtype=np.float16), **change)
    np.save(tmp_path / "wide.npy", np.zeros((1, 1, 5, 6), dtype=np.float16))
    np.save(tmp_path / "whole.npy", np.zeros((1, 1, 5, 4), dtype=np.int64))

    with pytest.raises(DataError, match=message):
        FeatureClips(read_split(tmp_path, format="features", split="train").records)


def test_tokens_that_are_no_numbers_are_found_as_they_are_read(tmp_path: Path) -> None:
    tokens = np.zeros((3, 1, 5, 4), dtype=np.float16)
    tokens[1, 0, 4, 2] = np.nan
    save_tokens(tmp_path, tokens)
    clips = FeatureClips(read_split(tmp_path, format="features", split="train").records)

    assert len(list(clips.batches([[0, 2]]))) == 1
    with pytest.raises(DataError, match=r"train\.npz: a feature of clip b is no finite number"):
        list(clips.batches([[2, 1]]))


def save_tokens(folder: Path, tokens: np.ndarray, **change: np.ndarray) -> None:
    """train.npz of clips a and b in a.npy, c in b.npy."""
    np.save(folder / "a.npy", tokens[:2])
    np.save(folder / "b.npy", tokens[2:])
    arrays = {
        "ids": np.array(["a", "b", "c"]),
        "labels_verb": np.array([0, 1, 0]),
        "class_names_verb": np.array(["close", "open"]),
        "shards": np.array(["a.npy", "b.npy"]),
        "shard_of": np.array([0, 0, 1]),
        "place_of": np.array([0, 1, 0]),
    }
    np.savez(folder / "train.npz", **(arrays | change))  # type: ignore[arg-type]


def test_the_source_of_a_split_is_what_its_files_agree_on(tmp_path: Path) -> None:
    save_data_set(tmp_path, source=made_with("hf:a None"))
    records = read_split(tmp_path, format="features", split=["train", "val"]).records

    source = feature_source(records)

    assert source == {"weights": "hf:a None", "clip": {"num_frames": 16, "stride": 2}}
    commits = {"commit": "abc"}, {"commit": "def"}
    assert source_difference(*commits) == "commit=def, against abc"
    assert source_difference({"commit": "abc"}, {}) is None
    assert source_difference(source, {"weights": "hf:b None"}) == "weights=hf:b None, against " + (
        "hf:a None"
    )
    assert source_difference(source, {"clip": {"stride": 4}}) == "clip.stride=4, against 2"
    assert source_difference(source, {"clip": {"fps": 4}}) is None  # the other does not say
    (save_data_set(tmp_path / "b", source=made_with("hf:b None")) / "val.npz").replace(
        tmp_path / "val.npz"
    )
    with pytest.raises(
        DataError, match=r"val\.npz: made with weights=hf:b None, against hf:a None"
    ):
        feature_source(records)
    for said in ("", "weights of May", "[1]", '{"weights": 3}'):  # of another's file: nothing
        save_data_set(tmp_path / "other", source=said)
        other = read_split(tmp_path / "other", format="features", split="train").records
        assert feature_source(other) == {}


def test_files_of_other_widths_or_classes_are_not_one_split(tmp_path: Path) -> None:
    save_data_set(tmp_path)
    save_data_set(tmp_path / "wide", width=8)
    shutil.copy(tmp_path / "wide" / "val.npz", tmp_path / "val.npz")

    with pytest.raises(DataError, match="must be alike"):
        FeatureClips(read_split(tmp_path, format="features", split=["train", "val"]).records)
