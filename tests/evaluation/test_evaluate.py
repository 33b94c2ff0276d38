"""A video's score, by hand from the model and the views; what batches and modes do not change."""

import dataclasses
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from cdb_video.clips.dataset import ClipSampler, EvaluationViews
from cdb_video.clips.loader import EvaluationLoader
from cdb_video.clips.transforms import EvaluationCrops
from cdb_video.clips.watchdog import DecodePolicy
from cdb_video.datasets.annotations import VideoRecord
from cdb_video.datasets.readers import read_split
from cdb_video.errors import DecodeError
from cdb_video.evaluation.evaluate import evaluate
from cdb_video.models.backbones import BACKBONES
from cdb_video.models.recognizer import Recognizer


def make_model(backbone="r3d_10", *, num_frames=4):
    torch.manual_seed(0)
    backbone = BACKBONES[backbone](num_frames=num_frames, crop_size=16)
    model = Recognizer(backbone, num_classes={"verb": 2, "noun": 3})
    for head in model.heads.values():
        # The small first weights of heads would score all classes alike.
        nn.init.normal_(head.weight, std=0.5)
    return model


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture
def records(tiny_data):
    """Seven videos of 8 frames, 32 x 24 pixels; the third has no verb."""
    records = list(read_split(tiny_data, format="table", split="val").records)
    records[2] = dataclasses.replace(records[2], labels={"verb": -1, "noun": 0})
    return records


def make_loader(records, *, clips_per_batch=8, num_clips=2, num_crops=3, num_frames=4):
    views = EvaluationViews(
        records,
        sampler=ClipSampler(num_frames=num_frames, stride=1),
        crops=EvaluationCrops(crop_size=16, short_side=20, num_crops=num_crops),
        num_clips=num_clips,
    )
    return EvaluationLoader(views, clips_per_batch=clips_per_batch)


@pytest.fixture
def varied_records(coded_video):
    """Videos whose views differ more than those of `tiny_data`, which are of one colour."""
    paths = [coded_video(f"{i}.mp4", num_frames=12 + 9 * i) for i in range(3)]
    return [
        VideoRecord(
            id=path.name, path=path, video_id=path.stem, recording=path.stem, labels={"verb": 0}
        )
        for path in paths
    ]


@torch.no_grad()
def view_scores_by_hand(model, clips):
    """Head -> (V, K), one view at a time."""
    mean = torch.tensor(model.normalization.mean).reshape(3, 1, 1, 1)
    std = torch.tensor(model.normalization.std).reshape(3, 1, 1, 1)
    scores = {head: [] for head in model.num_classes}
    for clip in clips:
        values = clip.float() / 255 * model.normalization.value_range
        for head, logits in model.eval()(((values - mean) / std)[None]).items():
            exponents = logits[0].double().exp()
            scores[head].append(exponents / exponents.sum())
    return {head: torch.stack(rows) for head, rows in scores.items()}


def test_a_videos_score_is_the_mean_over_its_views_of_the_softmax(model, varied_records):
    loader = make_loader(varied_records)

    report = evaluate(model, loader, device="cpu")

    assert report.predictions.ids == ("0.mp4", "1.mp4", "2.mp4")
    assert report.num_views == 6
    spread = 0.0
    for i in range(3):
        for head, views in view_scores_by_hand(model, loader.views[i].clips).items():
            part = report.predictions.heads[head]
            torch.testing.assert_close(part.scores[i].double(), views.mean(0), rtol=0, atol=1e-5)
            # fp16 has 11 bits: half a step below 1 is 2.4e-4
            torch.testing.assert_close(
                part.view_scores[i].double(), views, rtol=0, atol=2**-12 + 1e-5
            )
            of_mean_logits = views.log().mean(0).softmax(0)
            spread = max(spread, float((of_mean_logits - views.mean(0)).abs().max()))
    assert spread > 1e-4  # so that a softmax of mean logits would be noticed


def test_scores_have_the_types_and_shapes_of_the_predictions_file(model, records):
    report = evaluate(model, make_loader(records), device="cpu")

    for head, num_classes in {"verb": 2, "noun": 3}.items():
        part = report.predictions.heads[head]
        assert (part.scores.dtype, part.scores.shape) == (torch.float32, (7, num_classes))
        assert part.view_scores.dtype == torch.float16
        assert part.view_scores.shape == (7, 6, num_classes)
        torch.testing.assert_close(part.scores.sum(1), torch.ones(7), rtol=0, atol=1e-6)
        assert not part.scores.is_inference()


def test_each_labelled_video_is_counted_once_by_its_argmax(model, records):
    report = evaluate(model, make_loader(records), device="cpu")

    for head, num_classes in {"verb": 2, "noun": 3}.items():
        total, correct, predicted = ([0] * num_classes for _ in range(3))
        for record, scores in zip(
            records, report.predictions.heads[head].scores.tolist(), strict=True
        ):
            label, guess = record.labels[head], scores.index(max(scores))
            if label >= 0:
                total[label] += 1
                predicted[guess] += 1
                correct[label] += label == guess
        counts = report.counts[head]
        assert counts.total.tolist() == total
        assert counts.predicted.tolist() == predicted
        assert counts.correct.tolist() == correct
    # Verbs 1 0 - 0 1 0 1, nouns 1 2 0 1 2 0 1: classes are in alphabetical order.
    assert report.counts["verb"].total.tolist() == [3, 3]
    assert report.counts["noun"].total.tolist() == [2, 3, 2]


def test_loss_is_the_sum_over_heads_of_the_mean_negative_log_score(model, records):
    report = evaluate(model, make_loader(records), device="cpu")

    expected = 0.0
    for head, part in report.predictions.heads.items():
        labels = [record.labels[head] for record in records]
        logs = [
            math.log(row[y]) for row, y in zip(part.scores.tolist(), labels, strict=True) if y >= 0
        ]
        expected -= sum(logs) / len(logs)
    assert report.loss == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("clips_per_batch", "micro_batch_size"), [(1, 1), (12, 5), (100, 100)])
def test_batch_sizes_do_not_matter(model, records, clips_per_batch, micro_batch_size):
    one = evaluate(model, make_loader(records), device="cpu")

    loader = make_loader(records, clips_per_batch=clips_per_batch)
    other = evaluate(model, loader, device="cpu", micro_batch_size=micro_batch_size)

    for head, part in one.predictions.heads.items():
        theirs = other.predictions.heads[head]
        torch.testing.assert_close(theirs.scores, part.scores, rtol=0, atol=1e-6)
        assert torch.equal(theirs.labels, part.labels)


def test_micro_batches_have_at_most_their_size(records):
    model = make_model()
    sizes = []
    model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))

    # 6 views a video, two videos a batch: 42 clips, in full forwards across the batches.
    evaluate(model, make_loader(records, clips_per_batch=12), device="cpu", micro_batch_size=5)

    assert sizes == [5] * 8 + [2]


def test_records_without_a_head_are_unlabelled(model, records):
    without = [dataclasses.replace(record, labels={}) for record in records]

    report = evaluate(model, make_loader(without), device="cpu")

    assert report.counts["verb"].total.tolist() == [0, 0]
    assert report.predictions.heads["noun"].labels.tolist() == [-1] * 7
    torch.testing.assert_close(
        report.predictions.heads["noun"].scores.sum(1), torch.ones(7), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_uses_the_evaluation_mode_and_leaves_the_model_as_it_was(records, training):
    model = make_model().train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loader = make_loader(records, num_clips=1, num_crops=1)

    first = evaluate(model, loader, device="cpu")
    again = evaluate(model, loader, device="cpu")

    # Dropout of one half, and batch norm, would show.
    assert torch.equal(
        first.predictions.heads["noun"].scores, again.predictions.heads["noun"].scores
    )
    assert {module.training for module in model.modules()} == {training}
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_frozen_backbone_stays_in_evaluation_mode(records):
    model = make_model().train()
    model.freeze_backbone()

    evaluate(model, make_loader(records, num_clips=1, num_crops=1), device="cpu")

    assert model.dropout.training
    assert not any(module.training for module in model.backbone.modules())


def test_scores_are_fp32_whatever_the_precision(model, records):
    loader = make_loader(records, num_clips=1, num_crops=1)

    exact = evaluate(model, loader, device="cpu")
    rounded = evaluate(model, loader, device="cpu", precision="bf16")

    for head, part in rounded.predictions.heads.items():
        # bf16 scores would add up to 1 within 4e-3 at best.
        torch.testing.assert_close(part.scores.sum(1), torch.ones(7), rtol=0, atol=1e-6)
        theirs = exact.predictions.heads[head].scores
        assert not torch.equal(part.scores, theirs)
        # Logits of about 1 with 8 bits, through five layers.
        torch.testing.assert_close(part.scores, theirs, rtol=0, atol=0.05)


def test_slowfast_is_evaluated_by_the_same_call(varied_records):
    model = make_model("slowfast_tiny", num_frames=8)
    loader = make_loader(varied_records[:2], num_frames=8, num_crops=1)

    report = evaluate(model, loader, device="cpu")

    for i in range(2):
        for head, views in view_scores_by_hand(model, loader.views[i].clips).items():
            scores = report.predictions.heads[head].scores[i].double()
            torch.testing.assert_close(scores, views.mean(0), rtol=0, atol=1e-5)


def test_a_video_that_does_not_decode_ends_the_evaluation(model, records, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"\x07" * 4000)
    records[3] = dataclasses.replace(records[3], path=broken)

    with pytest.raises(DecodeError, match=r"broken\.mp4"):
        evaluate(model, make_loader(records), device="cpu")


def test_videos_have_scores_of_their_own(model, records):
    scores = evaluate(model, make_loader(records), device="cpu").predictions.heads["noun"].scores

    # Else the tests above could not tell one video from another.
    assert all(float((a - b).abs().max()) > 1e-4 for a, b in pairwise(scores))


def copied(records, folder, broken):
    """The records over copies of their files, of which some are cut in half."""
    made = []
    for i, record in enumerate(records):
        content = record.path.read_bytes()
        path = folder / record.path.name
        path.write_bytes(content[: len(content) // 2] if i in broken else content)
        made.append(dataclasses.replace(record, path=path))
    return made


def skipping_loader(records, *, max_skipped=10):
    views = EvaluationViews(
        records,
        sampler=ClipSampler(num_frames=4, stride=1),
        crops=EvaluationCrops(crop_size=16, short_side=20),
    )
    policy = DecodePolicy(on_error="skip", max_skipped=max_skipped)
    return EvaluationLoader(views, clips_per_batch=2, policy=policy)


def test_videos_that_are_skipped_are_in_no_figure_and_named(model, records, tmp_path):
    # 2 and 3 are a whole batch.
    records = copied(records, tmp_path, broken=(2, 3, 5))
    whole = [records[i] for i in (0, 1, 4, 6)]

    report = evaluate(model, skipping_loader(records), device="cpu")

    assert report.predictions.ids == tuple(record.id for record in whole)
    assert [name for name, _ in report.skipped] == [records[i].id for i in (2, 3, 5)]
    for (_, reason), i in zip(report.skipped, (2, 3, 5), strict=True):
        assert reason.startswith(f"{records[i].path}: ")
    assert int(report.counts["noun"].total.sum()) == 4
    expected = evaluate(model, skipping_loader(whole), device="cpu")
    for head, part in report.predictions.heads.items():
        torch.testing.assert_close(part.scores, expected.predictions.heads[head].scores)
        assert torch.equal(part.labels, expected.predictions.heads[head].labels)


def test_more_than_max_skipped_videos_are_an_error(model, records, tmp_path):
    records = copied(records, tmp_path, broken=(2, 3))

    with pytest.raises(
        DecodeError, match=r"^data\.max_skipped=1: 2 clips did not decode; the last"
    ):
        evaluate(model, skipping_loader(records, max_skipped=1), device="cpu")


def test_a_split_of_which_no_video_decodes_is_an_error(model, records, tmp_path):
    records = copied(records[:2], tmp_path, broken=(0, 1))

    with pytest.raises(DecodeError, match=r"^none of the split's 2 videos decodes; the first is"):
        evaluate(model, skipping_loader(records), device="cpu")
