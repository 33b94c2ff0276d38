"""The submission file of the EPIC-KITCHENS-100 action recognition challenge."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from cdb_video.errors import DataError
from cdb_video.evaluation.predictions import HeadClasses, Predictions
from cdb_video.files import replaced

NUM_VERBS, NUM_NOUNS, NUM_ACTIONS = 97, 300, 100
"""Verbs and nouns that must be scored, and the actions that are given of each segment."""


class SupervisionLevels(NamedTuple):
    """What a submission declares, each 0 to 5 (https://github.com/epic-kitchens/sls)."""

    pretraining: int = 2
    """2: on public images and videos."""
    training_labels: int = 3
    """3: verb and noun classes with start and stop."""
    training_data: int = 3
    """3: the training split; 4: and the validation split."""


def write_epic_submission(
    predictions: Predictions,
    classes: Mapping[str, HeadClasses],
    path: Path,
    *,
    sls: SupervisionLevels | None = None,
) -> None:
    """Write the challenge's JSON, version 0.2; a file of that name is replaced in one move.

    Scores are logarithms: where the challenge's server takes a softmax of them, it gets ours back.
    The 100 actions of a segment come from the action head; without one, they are those with the
    highest product of verb and noun score, as the server would choose them. To submit, name the
    file test.json and zip it alone: `zip -j submission.zip test.json`.

    Args:
        predictions: of the test split; ids are narration ids.
        classes: verbs and nouns in the order of their official ids.
        path: the file.
        sls: None: the defaults of `SupervisionLevels`.

    Raises:
        DataError: a head that the challenge needs is missing or has other classes.

    """
    _check_heads(predictions, classes)
    action_keys = _action_keys(predictions, classes)
    sls = sls or SupervisionLevels()
    head = {
        "version": "0.2",
        "challenge": "action_recognition",
        "sls_pt": sls.pretraining,
        "sls_tl": sls.training_labels,
        "sls_td": sls.training_data,
    }
    # Segment by segment: the scores of 13,092 as Python numbers would take half a gigabyte.
    with replaced(path) as beside, beside.open("w", encoding="utf-8") as file:
        file.write(json.dumps(head)[:-1] + ', "results": {\n')
        for i, (narration_id, scores) in enumerate(_results(predictions, action_keys)):
            comma = ",\n" if i else ""
            file.write(f"{comma}{json.dumps(narration_id)}: {json.dumps(scores)}")
        file.write("\n}}\n")


def _check_heads(predictions: Predictions, classes: Mapping[str, HeadClasses]) -> None:
    for head, number in (("verb", NUM_VERBS), ("noun", NUM_NOUNS)):
        if head not in predictions.heads:
            there = ", ".join(predictions.heads)
            raise DataError(f"EPIC submission: no head {head!r}; the heads are {there}")
        found = len(classes[head].names)
        if found != number:
            raise DataError(f"EPIC submission: {found} {head} classes; the challenge has {number}")
    if "action" in predictions.heads and len(classes["action"].names) < NUM_ACTIONS:
        raise DataError(
            f"EPIC submission: {len(classes['action'].names)} action classes; the challenge wants "
            f"{NUM_ACTIONS} scores"
        )


def _action_keys(predictions: Predictions, classes: Mapping[str, HeadClasses]) -> list[str]:
    """ "verb,noun" of every action class, found by its name; without a head for it, all pairs."""
    if "action" not in predictions.heads:
        return [f"{verb},{noun}" for verb in range(NUM_VERBS) for noun in range(NUM_NOUNS)]
    pair_of = {
        f"{verb} {noun}": f"{i},{j}"
        for i, verb in enumerate(classes["verb"].names)
        for j, noun in enumerate(classes["noun"].names)
    }
    for name in classes["action"].names:
        if name not in pair_of:
            raise DataError(f"EPIC submission: action {name!r} is no verb and noun of the classes")
    return [pair_of[name] for name in classes["action"].names]


def _results(
    predictions: Predictions, action_keys: Sequence[str]
) -> Iterator[tuple[str, dict[str, dict[str, float]]]]:
    """Narration id, {"verb": {id: score}, "noun": {id: score}, "action": {"verb,noun": score}}."""
    logs = {head: _log(part.scores) for head, part in predictions.heads.items()}
    for i, narration_id in enumerate(predictions.ids):
        verb, noun = logs["verb"][i], logs["noun"][i]
        actions = logs["action"][i] if "action" in logs else (verb[:, None] + noun).flatten()
        best, order = actions.topk(NUM_ACTIONS)
        yield (
            narration_id,
            {
                "verb": {str(place): score for place, score in enumerate(_rounded(verb))},
                "noun": {str(place): score for place, score in enumerate(_rounded(noun))},
                "action": {
                    action_keys[place]: score
                    for place, score in zip(order.tolist(), _rounded(best), strict=True)
                },
            },
        )


def _log(scores: Tensor) -> Tensor:
    return scores.double().clamp(min=1e-30).log()


def _rounded(scores: Tensor) -> list[float]:
    """To the precision that fp32 scores have, which shortens the file by half."""
    return scores.round(decimals=6).tolist()
