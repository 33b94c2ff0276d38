import json
import math
import runpy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cdb_video.errors import DataError
from cdb_video.evaluation.epic_submission import SupervisionLevels, write_epic_submission
from cdb_video.evaluation.predictions import (
    HeadClasses,
    HeadPredictions,
    Predictions,
    save_predictions,
)

ROOT = Path(__file__).parents[2]
NUM_CLASSES = {"verb": 97, "noun": 300, "action": 120}
IDS = ("P01_102_0", "P01_102_1")


def spread(num_classes: int, best: dict[int, float]) -> Tensor:
    """(K,) scores: those of `best`, and what is left evenly."""
    rest = (1 - sum(best.values())) / (num_classes - len(best))
    scores = torch.full((num_classes,), rest)
    for place, score in best.items():
        scores[place] = score
    return scores


def head(*rows: Tensor) -> HeadPredictions:
    scores = torch.stack(rows)
    labels = torch.full((len(rows),), -1)  # as the challenge's test split
    return HeadPredictions(scores, scores[:, None].half(), labels)


@pytest.fixture
def predictions() -> Predictions:
    """Of two segments: the first is verb 2 or 5 and noun 7, the second verb 0 and noun 299."""
    verbs = head(spread(97, {2: 0.5, 5: 0.25}), spread(97, {0: 0.9}))
    nouns = head(spread(300, {7: 0.8}), spread(300, {299: 1.0}))
    return Predictions(IDS, {"verb": verbs, "noun": nouns})


@pytest.fixture
def classes() -> dict[str, HeadClasses]:
    """Verbs v0, v1, ... and nouns n0, n1, ...; action i is verb i mod 97 with noun 299 - i."""
    names = {
        "verb": [f"v{i}" for i in range(97)],
        "noun": [f"n{i}" for i in range(300)],
        "action": [f"v{i % 97} n{299 - i}" for i in range(120)],
    }
    return {h: HeadClasses(tuple(n), torch.ones(len(n)).long()) for h, n in names.items()}


def test_the_file_has_the_form_of_the_challenge(
    predictions: Predictions, classes: dict[str, HeadClasses], tmp_path: Path
) -> None:
    write_epic_submission(predictions, classes, tmp_path / "test.json")

    content = json.loads((tmp_path / "test.json").read_text())
    assert list(content) == ["version", "challenge", "sls_pt", "sls_tl", "sls_td", "results"]
    assert (content["version"], content["challenge"]) == ("0.2", "action_recognition")
    assert [content[f"sls_{level}"] for level in ("pt", "tl", "td")] == [2, 3, 3]
    assert tuple(content["results"]) == IDS
    for scores in content["results"].values():
        assert list(scores) == ["verb", "noun", "action"]
        assert list(scores["verb"]) == [str(i) for i in range(97)]
        assert list(scores["noun"]) == [str(i) for i in range(300)]
        assert len(scores["action"]) == 100
    assert [path.name for path in tmp_path.iterdir()] == ["test.json"]


def test_a_softmax_of_the_scores_gives_ours_back(
    predictions: Predictions, classes: dict[str, HeadClasses], tmp_path: Path
) -> None:
    write_epic_submission(predictions, classes, tmp_path / "test.json")

    scores = json.loads((tmp_path / "test.json").read_text())["results"]["P01_102_0"]
    verbs = torch.tensor(list(scores["verb"].values())).softmax(0)
    torch.testing.assert_close(verbs, predictions.heads["verb"].scores[0], rtol=1e-5, atol=0)
    assert scores["noun"]["7"] == pytest.approx(math.log(0.8), abs=1e-6)


def test_without_an_action_head_actions_are_products(
    predictions: Predictions, classes: dict[str, HeadClasses], tmp_path: Path
) -> None:
    write_epic_submission(predictions, classes, tmp_path / "test.json")

    results = json.loads((tmp_path / "test.json").read_text())["results"]
    best = list(results["P01_102_0"]["action"].items())[:2]
    assert [name for name, _ in best] == ["2,7", "5,7"]
    assert [math.exp(score) for _, score in best] == pytest.approx([0.4, 0.2], rel=1e-5)
    # A score of 0 has a finite logarithm.
    assert next(iter(results["P01_102_1"]["action"])) == "0,299"
    assert results["P01_102_1"]["noun"]["0"] == pytest.approx(math.log(1e-30), abs=1e-5)


def test_the_action_head_has_the_say_where_there_is_one(
    predictions: Predictions, classes: dict[str, HeadClasses], tmp_path: Path
) -> None:
    actions = head(spread(120, {100: 0.5, 3: 0.25}), spread(120, {0: 0.5}))
    with_head = Predictions(IDS, {**predictions.heads, "action": actions})

    write_epic_submission(with_head, classes, tmp_path / "test.json")

    results = json.loads((tmp_path / "test.json").read_text())["results"]
    # Action 100 is verb 100 - 97 with noun 299 - 100.
    assert list(results["P01_102_0"]["action"])[:2] == ["3,199", "3,296"]
    assert results["P01_102_1"]["action"]["0,299"] == pytest.approx(math.log(0.5), abs=1e-6)


def test_other_supervision_levels_are_declared(
    predictions: Predictions, classes: dict[str, HeadClasses], tmp_path: Path
) -> None:
    levels = SupervisionLevels(pretraining=3, training_data=4)

    write_epic_submission(predictions, classes, tmp_path / "test.json", sls=levels)

    content = json.loads((tmp_path / "test.json").read_text())
    assert [content[f"sls_{level}"] for level in ("pt", "tl", "td")] == [3, 3, 4]


def test_predictions_that_are_no_submission_are_refused(
    predictions: Predictions, classes: dict[str, HeadClasses], tmp_path: Path
) -> None:
    verbs = Predictions(IDS, {"verb": predictions.heads["verb"]})
    few = {**classes, "verb": HeadClasses(("take", "put"), torch.ones(2).long())}
    odd = {**classes, "action": HeadClasses(("stir tea",) * 100, torch.ones(100).long())}
    actions = head(spread(100, {}), spread(100, {}))
    with_head = Predictions(IDS, {**predictions.heads, "action": actions})

    for given, known, expected in (
        (verbs, classes, "no head 'noun'; the heads are verb"),
        (predictions, few, "2 verb classes; the challenge has 97"),
        (with_head, odd, "action 'stir tea' is no verb and noun"),
    ):
        with pytest.raises(DataError, match=expected):
            write_epic_submission(given, known, tmp_path / "test.json")
    assert list(tmp_path.iterdir()) == []


def test_evaluate_writes_it_from_a_predictions_file(
    predictions: Predictions,
    classes: dict[str, HeadClasses],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_predictions(tmp_path / "predictions_test.npz", predictions, classes)
    words = ["--predictions", tmp_path / "predictions_test.npz"]
    words += ["--epic-submission", tmp_path / "test.json"]
    monkeypatch.setattr("sys.argv", ["evaluate.py", *map(str, words)])

    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "tools/evaluate.py"), run_name="__main__")

    assert ended.value.code is None
    assert tuple(json.loads((tmp_path / "test.json").read_text())["results"]) == IDS
    assert "no labels" in capsys.readouterr().out
