"""Whether the heads verb, noun and action agree, and the ways to tell an action from them.

An action is a pair of a verb and a noun, as in EPIC-KITCHENS and EGTEA. Its own head sees which
pairs go together; verb and noun heads have more clips a class. Which does better is a matter of the
data, so a report has all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cdb_video.counts import ClassCounts
from cdb_video.evaluation.predictions import HeadClasses, HeadPredictions, Predictions

ROWS = 1024
"""Videos at once: scores of all of EPIC-KITCHENS-100's 3,806 actions take gigabytes."""


def known_pairs(
    labels: Mapping[str, Tensor], names: Mapping[str, Sequence[str]]
) -> dict[str, Tensor]:
    """Head -> (P, 2) int64, the (verb, noun) classes of actions; empty where there is no such data.

    Of head action a row a class: the pair of its training clips where all of them agree, of a
    class without clips the pair that its name tells, else -1. Of head noun, where there is no
    action head, the pairs that training clips have. `HeadClasses.pairs` keeps them.

    Args:
        labels: head -> (N,) of the training clips, negative where unlabelled; empty: names alone.
        names: head -> class names.

    """
    if not {"verb", "noun"} <= names.keys():
        return {}
    if "action" not in names:
        if not labels:
            return {}
        known = torch.stack([labels["verb"], labels["noun"]], dim=1)
        known = known[(known >= 0).all(1)].unique(dim=0)
        return {"noun": known} if len(known) else {}
    pairs = _named_pairs(names)
    if labels:
        pairs = _labelled_pairs(labels, pairs)
    return {"action": pairs} if bool((pairs >= 0).any()) else {}


def _named_pairs(names: Mapping[str, Sequence[str]]) -> Tensor:
    """(K, 2) by names such as "take plate", or EGTEA's "Put trash,trash_container"."""
    pair_of = {
        f"{verb} {noun}": (i, j)
        for i, verb in enumerate(names["verb"])
        for j, noun in enumerate(names["noun"])
    }
    found = [pair_of.get(name.split(",")[0], (-1, -1)) for name in names["action"]]
    return torch.tensor(found, dtype=torch.int64)


def _labelled_pairs(labels: Mapping[str, Tensor], unseen: Tensor) -> Tensor:
    """(K, 2) by the clips of each action, -1 where they differ; the rows of `unseen` without."""
    table = torch.stack([labels["action"], labels["verb"], labels["noun"]], dim=1)
    action, *pair = table[(table >= 0).all(1)].unbind(1)
    columns = []
    for column, classes in enumerate(pair):
        lowest = unseen[:, column].scatter_reduce(0, action, classes, "amin", include_self=False)
        highest = unseen[:, column].scatter_reduce(0, action, classes, "amax", include_self=False)
        columns.append(lowest.where(lowest == highest, -1))
    pairs = torch.stack(columns, dim=1)
    return pairs.where((pairs >= 0).all(1, keepdim=True), -1)


class _Actions(NamedTuple):
    """What the rules choose among."""

    pairs: Tensor
    """(K, 2), -1 where not known."""
    labels: Tensor
    """(M,), -1 where unlabelled."""
    own: HeadPredictions | None
    """Of the action head."""
    number: int
    """Of classes that are known, K or fewer."""


def consistency(
    predictions: Predictions, classes: Mapping[str, HeadClasses]
) -> dict[str, Any] | None:
    """Figures of the action by its own head, by verb times noun, and by both; invalid pairs.

    None where the heads are not verb and noun, or no action's pair is known. docs/evaluation.md
    says what each key is.
    """
    actions = _actions(predictions, classes)
    if actions is None:
        return None
    verb, noun = (predictions.heads[head].scores for head in ("verb", "noun"))
    likeliest = torch.stack([verb.argmax(1), noun.argmax(1)], dim=1)
    known = {tuple(pair) for pair in actions.pairs.tolist()}
    invalid = [tuple(pair) not in known for pair in likeliest.tolist()]
    agree = None
    if actions.own is not None:
        agree = (actions.pairs[actions.own.scores.argmax(1)] == likeliest).all(1).tolist()
    counts = _count_rules(verb, noun, actions)
    return {
        "num_actions": actions.number,
        "num_actions_without_pair": int((actions.pairs[: actions.number, 0] < 0).sum()),
        **{
            name: _figures(counts[name]) if name in counts else None
            for name in ("own_head", "product", "both")
        },
        "invalid_pairs": _share(invalid),
        "agreement": None if agree is None else _share(agree),
    }


def _actions(predictions: Predictions, classes: Mapping[str, HeadClasses]) -> _Actions | None:
    heads = predictions.heads
    if not {"verb", "noun"} <= heads.keys():
        return None
    head = "action" if "action" in heads else "noun"
    pairs = classes[head].pairs
    if pairs is None:  # a file of before they were kept
        pairs = known_pairs({}, {name: classes[name].names for name in heads}).get(head)
    if pairs is None:
        return None
    if head == "action":
        own = heads["action"]
        return _Actions(pairs, own.labels, own, len(pairs))
    return _paired(pairs, heads["verb"].labels, heads["noun"].labels)


def _paired(pairs: Tensor, verb: Tensor, noun: Tensor) -> _Actions:
    """Actions without a head: the known pairs, and behind them those that only this split has."""
    place = {tuple(pair): i for i, pair in enumerate(pairs.tolist())}
    labels = [
        place.setdefault(pair, len(place)) if min(pair) >= 0 else -1
        for pair in zip(verb.tolist(), noun.tolist(), strict=True)
    ]
    unknown = torch.full((len(place) - len(pairs), 2), -1)
    return _Actions(torch.cat([pairs, unknown]), torch.tensor(labels), None, len(pairs))


def _count_rules(verb: Tensor, noun: Tensor, actions: _Actions) -> dict[str, ClassCounts]:
    """Rule -> counts of the actions that it tells."""
    counts = {rule: ClassCounts(len(actions.pairs)) for rule in ("product", "both")}
    with_pair = actions.pairs[:, 0] >= 0
    verb_of, noun_of = actions.pairs.clamp(min=0).unbind(1)
    for rows in torch.arange(len(verb)).split(ROWS):
        # Logarithms in double, as everywhere: they keep every two scores apart.
        product = verb[rows].double().log()[:, verb_of] + noun[rows].double().log()[:, noun_of]
        product = product.where(with_pair, -torch.inf)
        # Last is not enough: among a few known actions it is still one of the first five.
        product[~with_pair[actions.labels[rows]]] = torch.nan
        counts["product"].update(product, actions.labels[rows])
        if actions.own is not None:
            own = actions.own.scores[rows].double().log()
            counts["both"].update(own + product, actions.labels[rows])
    if actions.own is None:
        return {"product": counts["product"]}
    return {"own_head": actions.own.counts, **counts}


def _figures(counts: ClassCounts) -> dict[str, float | None]:
    if not counts.num_classes_present:
        return dict.fromkeys(("top1", "top5", "mean_class_accuracy"))
    return {
        "top1": counts.top1,
        "top5": counts.top5 if counts.num_classes > 5 else None,
        "mean_class_accuracy": counts.mean_class_accuracy,
    }


def _share(found: Sequence[bool]) -> float | None:
    return sum(found) / len(found) if found else None
