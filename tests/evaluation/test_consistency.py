"""Actions by their own head and by verb and noun, worked by hand."""

import pytest
import torch

from cdb_video.datasets.egtea import read_egtea
from cdb_video.evaluation import consistency as module
from cdb_video.evaluation.consistency import consistency, known_pairs
from cdb_video.evaluation.predictions import HeadClasses, HeadPredictions, Predictions

NAMES = {
    "verb": ("take", "put", "turn on"),
    "noun": ("cup", "knife"),
    "action": ("take cup", "put cup", "put knife,cup", "stir"),
}


def labels(**heads):
    return {head: torch.tensor(values) for head, values in heads.items()}


def test_pairs_are_those_of_the_training_clips_of_an_action():
    # Action 0 is always turn on + knife, whatever its name says; action 1 has two different verbs
    # and action 3 one clip without a noun. Action 2 has no clip: its name tells.
    training = labels(
        action=[0, 0, 1, 1, 3, -1],
        verb=[2, 2, 0, 1, 1, 0],
        noun=[1, 1, 0, 0, -1, 0],
    )

    found = known_pairs(training, NAMES)

    assert found.keys() == {"action"}
    assert found["action"].tolist() == [[2, 1], [-1, -1], [1, 1], [-1, -1]]


def test_pairs_by_names_alone_take_the_first_noun():
    assert known_pairs({}, NAMES)["action"].tolist() == [[0, 0], [1, 0], [1, 1], [-1, -1]]


def test_without_an_action_head_pairs_are_those_that_training_has():
    names = {head: NAMES[head] for head in ("verb", "noun")}
    training = labels(verb=[1, 0, 1, 2, -1], noun=[1, 0, 1, -1, 0])

    assert {h: p.tolist() for h, p in known_pairs(training, names).items()} == {
        "noun": [[0, 0], [1, 1]]
    }
    assert known_pairs({}, names) == {}


@pytest.mark.parametrize(
    "names",
    [
        {"verb": ("take",), "action": ("take cup",)},
        {"label": ("cat",)},
        {"verb": ("take",), "noun": ("cup",), "action": ("left", "right")},
    ],
)
def test_data_of_another_kind_has_no_pairs(names):
    assert known_pairs({}, names) == {}


@pytest.mark.parametrize(
    "number", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
def test_each_egtea_action_is_one_pair_and_its_name_tells_the_same(shared_data, number):
    train = read_egtea(shared_data / "egtea", [f"train_split{number}"])
    names = {head: known.names for head, known in train.vocabularies.items()}

    pairs = known_pairs({head: train.labels(head) for head in names}, names)["action"]

    assert len(pairs.unique(dim=0)) == len(pairs) == 106
    assert (pairs >= 0).all()
    assert torch.equal(pairs, known_pairs({}, names)["action"])


def part(scores, labels):
    scores = torch.tensor(scores)
    return HeadPredictions(scores, scores[:, None].half(), torch.tensor(labels))


ACTION = ("take cup", "put cup", "put knife")
PAIRS = torch.tensor([[0, 0], [1, 0], [1, 1]])


def make_classes(*, pairs=PAIRS, heads=("verb", "noun", "action")):
    names = {"verb": ("take", "put"), "noun": ("cup", "knife"), "action": ACTION}
    return {
        head: HeadClasses(
            names[head],
            torch.ones(len(names[head])).long(),
            pairs=pairs if head == heads[-1] else None,
        )
        for head in heads
    }


def make_predictions(heads=("verb", "noun", "action")):
    """Four videos, of which the last has no action label.

        verb           noun          product: take cup, put cup, put knife   own        label
    a   take .8 .2     cup  .7 .3    .56 .14 .06                             .2 .3 .5   0
    b   take .6 .4     knife .1 .9   .06 .04 .36                             .1 .6 .3   1
    c   put .1 .9      knife .4 .6   .04 .36 .54                             .0 .3 .7   2
    d   put .3 .7      cup .9 .1     .27 .63 .07                             .1 .8 .1   -1
    """
    found = {
        "verb": part([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9], [0.3, 0.7]], [0, 1, 1, 1]),
        "noun": part([[0.7, 0.3], [0.1, 0.9], [0.4, 0.6], [0.9, 0.1]], [0, 0, 1, -1]),
        "action": part(
            [[0.2, 0.3, 0.5], [0.1, 0.6, 0.3], [0.0, 0.3, 0.7], [0.1, 0.8, 0.1]], [0, 1, 2, -1]
        ),
    }
    return Predictions(("a", "b", "c", "d"), {head: found[head] for head in heads})


def test_each_rule_by_hand(monkeypatch):
    monkeypatch.setattr(module, "ROWS", 3)  # the last part has one video

    found = consistency(make_predictions(), make_classes())

    # Own: put knife, put cup, put knife. Product: take cup, put knife, put knife. All three:
    # a .112 .042 .03, b .006 .024 .108, c 0 .108 .378: take cup, put knife, put knife.
    two_of_three = {"top1": pytest.approx(2 / 3), "top5": None}
    assert found["own_head"] == two_of_three | {"mean_class_accuracy": pytest.approx(2 / 3)}
    assert found["product"] == two_of_three | {"mean_class_accuracy": pytest.approx(2 / 3)}
    assert found["both"] == two_of_three | {"mean_class_accuracy": pytest.approx(2 / 3)}
    # b is take + knife. The action head's pair is that of verb and noun for c and d.
    assert (found["invalid_pairs"], found["agreement"]) == (0.25, 0.5)
    assert (found["num_actions"], found["num_actions_without_pair"]) == (3, 0)


def test_all_three_can_be_right_where_each_is_wrong():
    verb, noun = part([[4 / 9, 5 / 9]], [0]), part([[0.8, 0.2]], [0])
    predictions = Predictions(
        ("a",), {"verb": verb, "noun": noun, "action": part([[0.4, 0.5, 0.1]], [0])}
    )

    found = consistency(predictions, make_classes(pairs=torch.tensor([[0, 0], [0, 1], [1, 0]])))

    # Products 16/45, 4/45, 20/45: the third. Own: the second. Together 6.4, 2, 2: the first.
    rules = {rule: found[rule]["top1"] for rule in ("own_head", "product", "both")}
    assert rules == {"own_head": 0, "product": 0, "both": 1}


def test_own_head_has_the_figures_of_the_head():
    predictions = make_predictions()

    found = consistency(predictions, make_classes())

    counts = predictions.heads["action"].counts
    assert found["own_head"]["top1"] == counts.top1
    assert found["own_head"]["mean_class_accuracy"] == counts.mean_class_accuracy


def test_without_an_action_head_the_product_tells_the_action():
    heads = ("verb", "noun")
    known = torch.tensor([[0, 0], [1, 1]])  # put cup, b's label, is no training clip's

    found = consistency(make_predictions(heads), make_classes(pairs=known, heads=heads))

    # a: .56 > .06 is right; b: put knife is wrong; c: put knife is right. d has no noun.
    assert found["product"] == {
        "top1": pytest.approx(2 / 3),
        "top5": None,
        "mean_class_accuracy": pytest.approx(2 / 3),
    }
    assert (found["own_head"], found["both"], found["agreement"]) == (None, None, None)
    assert found["num_actions"] == 2
    assert found["invalid_pairs"] == 0.5  # b and d: put cup


def test_an_action_without_a_pair_is_not_told_by_verb_and_noun():
    pairs = torch.tensor([[-1, -1], [1, 0], [1, 1]])

    found = consistency(make_predictions(), make_classes(pairs=pairs))

    assert found["num_actions_without_pair"] == 1
    # a is put cup now, and wrong, by the product; b and c put knife.
    assert found["product"]["top1"] == pytest.approx(1 / 3)
    assert found["both"]["top1"] == pytest.approx(1 / 3)


def test_old_files_without_pairs_are_read_by_the_actions_names():
    by_name = consistency(make_predictions(), make_classes(pairs=None))

    assert by_name == consistency(make_predictions(), make_classes())


def test_a_split_without_labels_has_shares_and_no_figures():
    predictions = make_predictions()
    for head in predictions.heads.values():
        head.labels.fill_(-1)

    found = consistency(predictions, make_classes())

    nothing = {"top1": None, "top5": None, "mean_class_accuracy": None}
    assert found["own_head"] == found["product"] == found["both"] == nothing
    assert (found["invalid_pairs"], found["agreement"]) == (0.25, 0.5)


@pytest.mark.parametrize("heads", [("verb",), ("verb", "noun"), ("noun", "action")])
def test_other_heads_have_no_consistency(heads):
    classes = make_classes(pairs=None)

    assert consistency(make_predictions(heads), {head: classes[head] for head in heads}) is None


def test_an_action_without_a_pair_is_never_right_by_verb_and_noun():
    # Of six actions two have a pair; the label's own has none, and would be fourth of six.
    pairs = torch.tensor([[0, 0], [1, 1], [-1, -1], [-1, -1], [-1, -1], [-1, -1]])
    names = tuple(f"action {i}" for i in range(6))
    heads = {
        "verb": part([[0.9, 0.1]] * 2, [0, 0]),
        "noun": part([[0.9, 0.1]] * 2, [0, 0]),
        "action": part([[0.1, 0.1, 0.1, 0.5, 0.1, 0.1]] * 2, [3, 0]),
    }
    known = make_classes() | {"action": HeadClasses(names, torch.ones(6).long(), pairs=pairs)}

    found = consistency(Predictions(("a", "b"), heads), known)

    assert found["product"] == {"top1": 0.5, "top5": 0.5, "mean_class_accuracy": 0.5}
    assert found["both"]["top5"] == 0.5
    assert found["own_head"]["top5"] == 1
