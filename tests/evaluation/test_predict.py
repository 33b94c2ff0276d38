"""Prediction is evaluation of one file."""

import pytest
import torch
from torch import nn

from cdb_video.clips.dataset import ClipSampler, EvaluationViews
from cdb_video.clips.loader import EvaluationLoader
from cdb_video.clips.transforms import EvaluationCrops
from cdb_video.datasets.readers import read_split
from cdb_video.errors import DecodeError
from cdb_video.evaluation.evaluate import evaluate
from cdb_video.evaluation.predict import predict, rank_classes
from cdb_video.models.backbones import BACKBONES
from cdb_video.models.recognizer import Recognizer

NAMES = {"verb": ("close", "open"), "noun": ("bowl", "cup", "pot")}
SAMPLER = ClipSampler(num_frames=4, stride=1)
CROPS = EvaluationCrops(crop_size=16, short_side=20, num_crops=3)


@pytest.fixture
def model():
    torch.manual_seed(0)
    backbone = BACKBONES["r3d_10"](num_frames=4, crop_size=16)
    model = Recognizer(backbone, num_classes={"verb": 2, "noun": 3})
    for head in model.heads.values():
        nn.init.normal_(head.weight, std=0.5)
    return model


def run(model, path, **options):
    return predict(
        model, path, class_names=NAMES, sampler=SAMPLER, crops=CROPS, num_clips=2, **options
    )


def test_scores_are_those_of_evaluation(model, tiny_data):
    records = read_split(tiny_data, format="table", split="test").records
    views = EvaluationViews(records, sampler=SAMPLER, crops=CROPS, num_clips=2)
    report = evaluate(model, EvaluationLoader(views, clips_per_batch=8), device="cpu")

    for i, record in enumerate(records):
        for head, ranking in run(model, record.path).items():
            scores = report.predictions.heads[head].scores[i].tolist()
            expected = dict(zip(NAMES[head], scores, strict=True))
            assert dict(ranking) == pytest.approx(expected, abs=1e-6)
            assert [name for name, _ in ranking] == sorted(expected, key=lambda n: -expected[n])


def test_there_are_never_more_classes_than_there_are(model, tiny_data):
    path = str(tiny_data / "test_0.mp4")

    assert {head: len(r) for head, r in run(model, path, top=5).items()} == {"verb": 2, "noun": 3}
    assert {head: len(r) for head, r in run(model, path, top=2).items()} == {"verb": 2, "noun": 2}
    assert run(model, path, top=1)["noun"] == run(model, path)["noun"][:1]


def test_ties_go_to_the_lower_index(model, tiny_data):
    noun = model.heads["noun"]
    nn.init.zeros_(noun.weight)
    noun.bias.data = torch.tensor([0.0, 1.0, 1.0])

    ranking = run(model, tiny_data / "test_0.mp4")["noun"]

    assert [name for name, _ in ranking] == ["cup", "pot", "bowl"]
    assert ranking[0][1] == ranking[1][1]


def test_many_equal_scores_stay_in_the_order_of_the_classes():
    names = [str(i) for i in range(500)]

    ranking = rank_classes(torch.full((500,), 0.002), names, top=20)

    assert [name for name, _ in ranking] == names[:20]


def test_a_file_that_is_no_video_is_named(model, tmp_path):
    path = tmp_path / "notes.mp4"
    path.write_text("no video")

    with pytest.raises(DecodeError, match=r"notes\.mp4") as caught:
        run(model, path)

    assert "\n" not in str(caught.value)
