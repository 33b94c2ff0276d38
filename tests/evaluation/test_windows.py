"""Sliding windows are segments; an instant's scores are the mean over the windows that cover it."""

import pytest
import torch
from torch import nn

from cdb_video.clips.dataset import ClipSampler, EvaluationViews, open_record
from cdb_video.clips.decoders import open_video
from cdb_video.clips.loader import EvaluationLoader
from cdb_video.clips.memory import ClipMemory
from cdb_video.clips.read_ahead import ReadAhead
from cdb_video.clips.transforms import EvaluationCrops
from cdb_video.datasets.annotations import VideoRecord
from cdb_video.errors import DecodeError, UserError
from cdb_video.evaluation import windows
from cdb_video.evaluation.evaluate import evaluate
from cdb_video.evaluation.predict import Scorer
from cdb_video.evaluation.timeline import Segment, Timeline
from cdb_video.evaluation.windows import predict_windows, window_bounds
from cdb_video.models.backbones import BACKBONES
from cdb_video.models.recognizer import Recognizer

NAMES = {"verb": ("close", "open"), "noun": ("bowl", "cup", "pot")}
CROPS = EvaluationCrops(crop_size=16, short_side=20, num_crops=3)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    backbone = BACKBONES["r3d_10"](num_frames=4, crop_size=16)
    model = Recognizer(backbone, num_classes={"verb": 2, "noun": 3})
    for head in model.heads.values():
        nn.init.normal_(head.weight, std=0.5)
    return model


def scorer(model, **options):
    sampler = ClipSampler(num_frames=4, stride=2, fps=options.pop("fps", None))
    return Scorer(model, sampler=sampler, crops=CROPS, num_clips=2, **options)


def test_windows_cover_the_video_and_the_last_one_ends_with_it():
    assert window_bounds(10, window_s=4, hop_s=2) == [(0, 4), (2, 6), (4, 8), (6, 10)]
    assert window_bounds(9.5, window_s=4, hop_s=2) == [(0, 4), (2, 6), (4, 8), (5.5, 9.5)]
    assert window_bounds(4, window_s=4, hop_s=2) == [(0, 4)]
    assert window_bounds(3, window_s=4, hop_s=2) == [(0, 3)]
    # 0.1 * 3 is 0.30000000000000004 in floating point, and 0.9 - 0.6 is a little over 0.3.
    assert window_bounds(0.9, window_s=0.6, hop_s=0.1) == [
        (0, 0.6),
        (0.1, 0.7),
        (0.2, 0.8),
        (0.3, 0.9),
    ]


@pytest.mark.parametrize(("fps", "pixels"), [(None, "rgb"), (10.0, "yuv")])
def test_a_windows_scores_are_evaluations_of_that_segment(
    model, coded_video, monkeypatch, fps, pixels
) -> None:
    path = coded_video(num_frames=58)  # 2.42 s at 24 fps
    # Two or three windows are decoded in one go, so that there are several goes.
    monkeypatch.setattr(windows, "READ_AHEAD_BYTES", 30 * 64 * 48 * 3)
    mine = scorer(model, fps=fps, pixels=pixels, micro_batch_size=12)

    timeline = predict_windows(mine, path, class_names=NAMES, window_s=1, hop_s=0.25)

    # Starts 0, 0.25, ..., 1.25, and the last at 58 / 24 - 1.
    assert timeline.starts_s.tolist() == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.416667]
    records = [
        VideoRecord(str(i), path, "", "", {}, start_s=start, stop_s=start + 1)
        for i, start in enumerate(timeline.starts_s.tolist())
    ]
    views = EvaluationViews(records, sampler=mine.sampler, crops=CROPS, num_clips=2, pixels=pixels)
    assert views.num_views == 6
    report = evaluate(model, EvaluationLoader(views, clips_per_batch=6), device="cpu")
    for head, part in report.predictions.heads.items():
        torch.testing.assert_close(timeline.scores[head], part.scores, atol=1e-6, rtol=0)


def test_clips_of_a_run_in_memory_are_opened_one_by_one(model, coded_video) -> None:
    path = coded_video(num_frames=36)
    memory = ClipMemory(sampler=scorer(model).sampler, short_side=20)
    mine = scorer(model, opener=memory.open)

    timeline = predict_windows(mine, path, class_names=NAMES, window_s=1, together=False)

    record = VideoRecord("", path, "", "", {}, start_s=0.5, stop_s=1.5)
    torch.testing.assert_close(timeline.scores["noun"][1:], mine([record])["noun"])


def test_a_window_in_which_no_frame_is_shown_is_left_out(model, coded_video) -> None:
    # Half a second of frames, a pause of three seconds, half a second of frames.
    times = [*(i / 10 for i in range(5)), *(3.5 + i / 10 for i in range(5))]

    timeline = predict_windows(
        scorer(model), coded_video(times=times), class_names=NAMES, window_s=1, hop_s=1
    )

    # Mean rate 9 / 3.9 fps: the last frame is shown until 3.9 + 3.9 / 9 s = 4.333 s.
    assert timeline.starts_s.tolist() == [0, 3, 3.333333]
    verbs = timeline.segments()["verb"]
    assert (verbs[0].start_s, verbs[-1].stop_s) == (0, 4.333333)


def test_progress_counts_windows(model, coded_video) -> None:
    seen = []

    predict_windows(
        scorer(model, micro_batch_size=12),
        coded_video(num_frames=48),
        class_names=NAMES,
        window_s=1,
        progress=lambda done, total: seen.append((done, total)),
    )

    assert seen == [(2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_s": 0.01}, r"window_s=0\.01: must be at least a frame, 0\.0417 s"),
        ({"window_s": float("nan")}, "window_s=nan"),
        ({"window_s": 1, "hop_s": 2}, r"hop_s=2: must be from a frame, 0\.0417 s, to the window's"),
        ({"window_s": 1, "hop_s": 0.001}, r"hop_s=0\.001"),
    ],
)
def test_windows_that_cannot_be_are_refused(model, coded_video, options, message) -> None:
    with pytest.raises(UserError, match=message):
        predict_windows(scorer(model), coded_video(), class_names=NAMES, **options)


def test_a_file_that_is_no_video_is_named(model, tmp_path) -> None:
    (tmp_path / "notes.mp4").write_text("no video")

    with pytest.raises(DecodeError, match=r"notes\.mp4"):
        predict_windows(scorer(model), tmp_path / "notes.mp4", class_names=NAMES, window_s=1)


def test_what_is_read_ahead_are_the_frames_and_planes_themselves(coded_video) -> None:
    path = coded_video(num_frames=30)
    indices = torch.tensor([14, 3, 14])
    with open_video(path) as video, open_video(path) as other:
        ahead = ReadAhead(path, other, torch.tensor([3, 4, 14, 20]))

        assert torch.equal(ahead.frames(indices), video.frames(indices))
        for mine, its in zip(ahead.planes(indices), video.planes(indices), strict=True):
            assert torch.equal(mine, its)
        with pytest.raises(DecodeError, match="not read ahead"):
            ahead.frames(torch.tensor([5]))


def timeline(starts, length, scores) -> Timeline:
    starts = torch.tensor(starts, dtype=torch.float64)
    return Timeline(starts, starts + length, {"noun": torch.tensor(scores)}, NAMES)


def test_instants_average_the_windows_that_cover_them() -> None:
    # Windows 0-4 and 2-6: the first alone until 2, both until 4, the second alone until 6.
    made = timeline([0, 2], 4, [[0.6, 0.4, 0.0], [0.0, 0.5, 0.5]])

    assert dict(made.at(1.0)["noun"]) == pytest.approx({"bowl": 0.6, "cup": 0.4, "pot": 0.0})
    assert made.at(1.999, top=1)["noun"][0][0] == "bowl"
    assert dict(made.at(2.0)["noun"]) == pytest.approx({"bowl": 0.3, "cup": 0.45, "pot": 0.25})
    assert dict(made.at(5.0)["noun"]) == pytest.approx({"bowl": 0.0, "cup": 0.5, "pot": 0.5})
    # Of the three stretches of 2 s: (0.6 + 0.3 + 0) / 3, (0.4 + 0.45 + 0.5) / 3, (0.25 + 0.5) / 3.
    assert dict(made.overall()["noun"]) == pytest.approx({"cup": 0.45, "bowl": 0.3, "pot": 0.25})


def test_neighbours_of_one_class_are_one_segment_with_the_mean_score() -> None:
    made = timeline([0, 2], 4, [[0.6, 0.4, 0.0], [0.0, 0.6, 0.4]])

    # 0-2: bowl 0.6. 2-4: cup (0.4 + 0.6) / 2 = 0.5, against bowl 0.3. 4-6: cup 0.6.
    bowl, cup = made.segments()["noun"]
    assert bowl == Segment(0, 2, "bowl", pytest.approx(0.6))
    assert cup == Segment(2, 6, "cup", pytest.approx((0.5 * 2 + 0.6 * 2) / 4))


def test_the_mean_score_of_a_segment_is_over_its_time() -> None:
    # One window of 4 s, another from 3 s on: stretches of 3, 1 and 3 s, of cup 0.6, 0.75 and 0.9.
    made = timeline([0, 3], 4, [[0.4, 0.6, 0.0], [0.1, 0.9, 0.0]])

    [cup] = made.segments()["noun"]

    assert cup == Segment(0, 7, "cup", pytest.approx((3 * 0.6 + 0.75 + 3 * 0.9) / 7))


def test_a_threshold_leaves_stretches_out_and_cuts_there() -> None:
    made = timeline([0, 4, 8], 4, [[0.1, 0.9, 0], [0.3, 0.4, 0.3], [0.1, 0.8, 0.1]])

    assert [s[:3] for s in made.segments(threshold=0.5)["noun"]] == [(0, 4, "cup"), (8, 12, "cup")]
    assert [s[:3] for s in made.segments(threshold=0)["noun"]] == [(0, 12, "cup")]
    assert made.segments(threshold=0.95)["noun"] == []


def test_a_gap_between_windows_cuts_as_well() -> None:
    made = timeline([0, 5], 4, [[0.0, 1, 0], [0, 1, 0]])

    assert made.segments()["noun"] == [Segment(0, 4, "cup", 1), Segment(5, 9, "cup", 1)]


def test_windows_are_listed_with_their_best_classes() -> None:
    made = timeline([0, 2], 4, [[0.5, 0.25, 0.25], [0.0, 0.5, 0.5]])

    assert made.windows(top=1) == [
        (0, 4, {"noun": [("bowl", 0.5)]}),
        (2, 6, {"noun": [("cup", 0.5)]}),
    ]


def test_frames_in_a_folder_have_windows(model, coded_video, tmp_path) -> None:
    from PIL import Image

    path, folder = coded_video(num_frames=20), tmp_path / "frames"
    folder.mkdir()
    with open_record(VideoRecord("", path, "", "", {})) as video:
        for i, frame in enumerate(video.frames(torch.arange(20)).permute(0, 2, 3, 1)):
            Image.fromarray(frame.numpy()).save(folder / f"{i}.png")

    mine = predict_windows(scorer(model), folder, class_names=NAMES, window_s=0.5, fps=24)

    its = predict_windows(scorer(model), path, class_names=NAMES, window_s=0.5)
    assert torch.equal(mine.starts_s, its.starts_s)
    assert torch.equal(mine.scores["noun"], its.scores["noun"])
