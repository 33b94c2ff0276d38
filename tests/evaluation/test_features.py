"""A video's features, by hand from the backbone and the views; the file they are kept in."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from cdb_video.clips.dataset import ClipSampler, EvaluationViews
from cdb_video.clips.loader import EvaluationLoader
from cdb_video.clips.transforms import EvaluationCrops
from cdb_video.datasets.annotations import VideoRecord
from cdb_video.distributed import ONE_PROCESS, Ranks
from cdb_video.errors import DataError
from cdb_video.evaluation import features as features_module
from cdb_video.evaluation.evaluate import evaluate
from cdb_video.evaluation.features import (
    Features,
    extract_features,
    load_features,
    save_features,
    score_features,
)
from cdb_video.evaluation.predictions import HeadClasses
from cdb_video.models.backbones import BACKBONES
from cdb_video.models.recognizer import Recognizer


@pytest.fixture
def model():
    torch.manual_seed(0)
    backbone = BACKBONES["r3d_10"](num_frames=4, crop_size=16)
    return Recognizer(backbone, num_classes={"verb": 2, "noun": 3}).eval()


@pytest.fixture
def records(coded_video):
    """Three videos whose views differ; none has a noun."""
    paths = [coded_video(f"{i}.mp4", num_frames=12 + 9 * i) for i in range(3)]
    return [
        VideoRecord(
            id=path.name, path=path, video_id=path.stem, recording=path.stem, labels={"verb": i % 2}
        )
        for i, path in enumerate(paths)
    ]


def make_loader(records, *, num_clips=2, num_crops=3, clips_per_batch=12, ranks=ONE_PROCESS):
    views = EvaluationViews(
        records,
        sampler=ClipSampler(num_frames=4, stride=1),
        crops=EvaluationCrops(crop_size=16, short_side=20, num_crops=num_crops),
        num_clips=num_clips,
    )
    return EvaluationLoader(views, clips_per_batch=clips_per_batch, ranks=ranks)


@torch.no_grad()
def test_a_videos_features_are_the_mean_over_its_views_of_the_backbones_output(model, records):
    loader = make_loader(records)

    found = extract_features(model, loader, device="cpu", micro_batch_size=5)

    assert found.ids == ("0.mp4", "1.mp4", "2.mp4")
    assert (found.features.dtype, found.features.shape) == (torch.float32, (3, 128))
    mean = torch.tensor(model.normalization.mean).reshape(3, 1, 1, 1)
    std = torch.tensor(model.normalization.std).reshape(3, 1, 1, 1)
    for i in range(3):
        values = loader.views[i].clips.float() / 255 * model.normalization.value_range
        by_view = torch.stack([model.backbone(((v - mean) / std)[None])[0] for v in values])
        torch.testing.assert_close(found.features[i], by_view.mean(0), rtol=0, atol=1e-5)
        assert float(by_view.std(0).max()) > 1e-3  # so that one view alone would be noticed


def test_labels_are_those_of_the_heads_and_the_model_stays_in_its_mode(model, records):
    found = extract_features(model.train(), make_loader(records), device="cpu")

    assert {head: labels.tolist() for head, labels in found.labels.items()} == {
        "verb": [0, 1, 0],
        "noun": [-1, -1, -1],
    }
    assert model.training
    assert not found.features.is_inference()


@pytest.mark.parametrize("head_type", ["linear", "cosine"])
def test_heads_on_the_features_of_every_view_say_what_evaluation_says(
    records, head_type, monkeypatch
):
    torch.manual_seed(0)
    model = Recognizer(
        BACKBONES["r3d_10"](num_frames=4, crop_size=16),
        num_classes={"verb": 2, "noun": 3},
        head_type=head_type,
    ).eval()
    for head in model.heads.values():
        nn.init.normal_(head.weight, std=0.5)
    loader = make_loader(records)
    monkeypatch.setattr(features_module, "VIDEOS_AT_ONCE", 2)  # of three

    found = extract_features(model, loader, device="cpu", by_view=True)
    mine = score_features(model, found)

    assert found.features.shape == (3, 6, 128)
    mean = extract_features(model, loader, device="cpu").features
    torch.testing.assert_close(found.features.mean(1), mean, rtol=0, atol=1e-6)
    theirs = evaluate(model, loader, device="cpu").predictions
    assert mine.ids == theirs.ids
    for head, part in theirs.heads.items():
        # Heads see other batches, which moves the last bits of fp32, and a last bit of fp16.
        torch.testing.assert_close(mine.heads[head].scores, part.scores, rtol=0, atol=1e-6)
        torch.testing.assert_close(
            mine.heads[head].view_scores, part.view_scores, rtol=0, atol=1e-3
        )
        assert mine.heads[head].view_scores.dtype == torch.float16
        assert torch.equal(mine.heads[head].labels, part.labels)
        # Scores differ by view, so that the softmax of a mean would be noticed.
        assert float(part.view_scores.float().std(1).max()) > 1e-3


def test_the_parts_of_ranks_add_up_to_the_whole(model, records):
    whole = extract_features(model, make_loader(records), device="cpu")

    # Without a process group nothing is summed: each rank has its rows, and zeros.
    parts = [
        extract_features(model, make_loader(records, ranks=Ranks(rank, rank, 2)), device="cpu")
        for rank in range(2)
    ]

    assert [part.features.any(1).tolist() for part in parts] == [
        [True, False, True],
        [False, True, False],
    ]
    torch.testing.assert_close(
        parts[0].features + parts[1].features, whole.features, rtol=0, atol=1e-6
    )


def make_features():
    generator = torch.Generator().manual_seed(0)
    features = Features(
        ids=("P01_1", "clip with spaces", "vidéo/三"),
        features=torch.randn(3, 5, generator=generator),
        labels={"verb": torch.tensor([0, 1, -1]), "noun": torch.tensor([2, 0, 0])},
        source="weights of May",
    )
    classes = {
        "verb": HeadClasses(("open", "切る"), torch.tensor([5, 0])),
        "noun": HeadClasses(("a", "b", "c"), torch.tensor([1, 2, 200])),
    }
    return features, classes


def test_a_file_gives_back_what_was_saved_bit_for_bit(tmp_path):
    features, classes = make_features()
    path = tmp_path / "features.npz"
    path.write_text("old")

    save_features(path, features, classes)
    loaded, loaded_classes = load_features(path)

    assert [file.name for file in tmp_path.iterdir()] == ["features.npz"]
    assert (loaded.ids, loaded.source, len(loaded)) == (features.ids, "weights of May", 3)
    assert torch.equal(loaded.features, features.features)
    assert list(loaded.labels) == ["verb", "noun"]
    for head, labels in features.labels.items():
        assert torch.equal(loaded.labels[head], labels)
        assert loaded_classes[head].names == classes[head].names
        assert torch.equal(loaded_classes[head].train_counts, classes[head].train_counts)


def test_arrays_have_their_names_and_no_pickle(tmp_path):
    save_features(tmp_path / "features.npz", *make_features())

    with np.load(tmp_path / "features.npz", allow_pickle=False) as file:
        found = {name: (file[name].dtype.kind, file[name].shape) for name in file.files}

    assert found == {
        "ids": ("U", (3,)),
        "features": ("f", (3, 5)),
        "source": ("U", ()),
        "skipped": ("U", ()),
        "labels_verb": ("i", (3,)),
        "class_names_verb": ("U", (2,)),
        "train_counts_verb": ("i", (2,)),
        "labels_noun": ("i", (3,)),
        "class_names_noun": ("U", (3,)),
        "train_counts_noun": ("i", (3,)),
    }


def write_half(path):
    save_features(path, *make_features())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_changed(path, *, without=(), **changes):
    save_features(path, *make_features())
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files if name not in without}
    np.savez(path, **arrays | changes)


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda path: None, id="missing"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_bytes(pickle.dumps({"ids": []})), id="pickle"),
        pytest.param(write_half, id="half"),
        pytest.param(lambda path: np.savez(path, ids=np.array(["a"])), id="no labels"),
        pytest.param(lambda path: write_changed(path, without=["features"]), id="no features"),
        pytest.param(lambda path: write_changed(path, without=["class_names_noun"]), id="no names"),
        pytest.param(lambda path: write_changed(path, ids=np.array(["a"])), id="too few ids"),
        pytest.param(lambda path: write_changed(path, features=np.zeros(3)), id="a flat table"),
        pytest.param(
            lambda path: write_changed(path, labels_noun=np.array(["a"] * 3)), id="text as labels"
        ),
    ],
)
def test_what_is_no_features_file_is_refused_in_one_line(tmp_path, write):
    path = tmp_path / "features.npz"
    write(path)

    with pytest.raises(DataError, match=r"features\.npz: not a features file") as caught:
        load_features(path)

    assert "\n" not in str(caught.value)


def test_lengths_that_differ_are_refused():
    features, _ = make_features()

    with pytest.raises(ValueError, match="differ in length"):
        dataclasses.replace(features, ids=("a",))


def test_a_file_of_views_keeps_its_shape(tmp_path):
    features, classes = make_features()
    by_view = dataclasses.replace(features, features=features.features[:, None].repeat(1, 2, 1))

    save_features(tmp_path / "features.npz", by_view, classes)

    loaded, _ = load_features(tmp_path / "features.npz")
    assert torch.equal(loaded.features, by_view.features)
