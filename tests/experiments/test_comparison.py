import csv
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from cdb_video.experiments.comparison import (
    Cell,
    print_comparison,
    write_comparison,
)
from tests.experiments.made_cells import REFERENCE, cells, comparison, report

MARKUP = "[bold]focal[/] $x_1$"


def test_the_table_is_mean_and_standard_deviation_over_seeds() -> None:
    plain, cdb = comparison().table("verb")

    assert (plain.arm, plain.num_seeds, cdb.arm) == ("cross_entropy", 3, "cdb")
    # 0.6, 0.7, 0.8: deviation sqrt((0.01 + 0 + 0.01) / 2).
    for figure, mean in {"mean_class_accuracy": 0.7, "top1": 0.7, "worst_fifth": 0.4}.items():
        spread = plain.spreads[figure]
        assert spread is not None
        assert (spread.mean, spread.standard_deviation) == pytest.approx((mean, 0.1))
    # 0.9, 1, 1 and the means of (0.6, 0.3), (0.7, 0.4), (0.9, 0.5).
    many, medium = plain.spreads["many"], plain.spreads["medium"]
    assert many is not None
    assert many.mean == pytest.approx(2.9 / 3)
    assert medium is not None
    assert medium.mean == pytest.approx((0.45 + 0.55 + 0.7) / 3)
    seconds = plain.spreads["seconds_per_epoch"]
    assert seconds is not None
    assert (seconds.mean, seconds.standard_deviation) == pytest.approx((11, 1))


def test_a_figure_that_does_not_exist_is_none_in_the_table() -> None:
    for row in comparison().table("verb"):
        assert row.spreads["few"] is None

    # An arm trained on fewer clips at one of its seeds has few-shot classes there alone.
    mixed = (
        Cell("mixed", 0, report((5, 5, 5)), 1.0),
        Cell("mixed", 1, report((5, 5, 5), train_counts=(120, 60, 3)), 1.0),
    )
    row = comparison(*mixed).table("verb")[-1]
    assert row.spreads["few"] is None
    assert row.spreads["medium"] is not None


def test_contrasts_pair_the_seeds() -> None:
    [mean] = comparison().contrasts("verb", "mean_class_accuracy")
    [worst] = comparison().contrasts("verb", "worst_fifth")

    assert (mean.arm, mean.reference, mean.num_pairs) == ("cdb", "cross_entropy", 3)
    assert mean.mean_difference == pytest.approx(2 / 30)
    # sd 1/30, t(0.975, 2) = 4.303: the half width is 4.303 / 30 / sqrt(3).
    assert mean.smallest_detectable == pytest.approx(0.08281, abs=1e-4)
    assert worst.mean_difference == pytest.approx(0.2)
    assert worst.p_value == worst.p_holm == pytest.approx(2 / 8)


def test_two_references_meet_once_and_every_contrast_is_in_one_family() -> None:
    made = comparison(*cells("focal", *REFERENCE[::-1]), references=("cross_entropy", "cdb"))

    contrasts = made.contrasts("verb", "worst_fifth")

    assert [(one.arm, one.reference) for one in contrasts] == [
        ("cdb", "cross_entropy"),
        ("focal", "cross_entropy"),
        ("focal", "cdb"),
    ]
    # focal against cross entropy: +0.2, 0, -0.2; against cdb: +0.1, -0.2, -0.5. Ranks of the
    # minus signs 2 and 3: p = 2 * (subsets of {1, 2, 3} that sum to 1 or less: 2) / 8.
    assert [one.p_value for one in contrasts] == pytest.approx([0.25, 1, 0.5])
    assert [one.p_holm for one in contrasts] == pytest.approx([0.75, 1, 1])


def test_an_incomplete_comparison_works_and_says_what_is_missing() -> None:
    late = Cell("late", 9, report((5, 5, 5)), 1.0)
    made = comparison(*cells("focal", *REFERENCE[:2]), late)

    contrasts = made.contrasts("verb", "mean_class_accuracy")

    assert [row.num_seeds for row in made.table("verb")] == [3, 3, 2, 1]
    spread = made.table("verb")[-1].spreads["top1"]
    assert spread is not None
    assert spread.standard_deviation is None
    assert [(one.arm, one.num_pairs) for one in contrasts] == [("cdb", 3), ("focal", 2)]
    assert made.seeds == (0, 1, 2, 9)
    missing, apart = made.notes
    assert missing.endswith("Missing: cross_entropy 9; cdb 9; focal 2, 9; late 0, 1, 2.")
    assert apart == "late v cross_entropy: no seed in common yet."


def test_a_complete_comparison_has_nothing_to_note() -> None:
    assert comparison().notes == []


def test_other_training_data_are_noted() -> None:
    control = cells("with_val", *REFERENCE, train_counts=(145, 85, 55))

    [note] = comparison(*control).notes

    assert "verb: arms were trained on different numbers of clips" in note
    assert "(210: cross_entropy, cdb; 285: with_val)" in note


def test_a_split_that_was_used_for_more_is_noted() -> None:
    fed = cells("fed", *REFERENCE, split_fed=["selection"])

    assert comparison(*fed).notes == ["The split tested on also fed selection."]


def test_cells_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match="arm 'cdb' has two cells of seed 0"):
        comparison(*cells("cdb", (1, 1, 1)))
    with pytest.raises(ValueError, match=r"different splits: .*'test1'.*'test2'"):
        comparison(*cells("other", (1, 1, 1), annotation_split="test2"))


def test_the_files_hold_fractions(tmp_path: Path) -> None:
    about = {
        "config": "configs/demo.yaml",
        "overrides": {"cdb": ["loss.name=cdb"], "not yet": ["loss.name=focal"]},
    }

    write_comparison(tmp_path / "new", comparison(), about=about)

    content = json.loads((tmp_path / "new" / "compare.json").read_text())
    assert (content["name"], content["split"], content["seeds"]) == ("demo", "test", [0, 1, 2])
    assert content["about"] == {"config": "configs/demo.yaml"}
    assert content["arms"] == {
        "cross_entropy": {"seeds": [0, 1, 2]},
        "cdb": {"seeds": [0, 1, 2], "overrides": ["loss.name=cdb"]},
        "not yet": {"seeds": [], "overrides": ["loss.name=focal"]},
    }
    assert len(content["cells"]) == 6
    assert content["cells"][4]["heads"]["verb"]["worst_fifth"] == pytest.approx(0.6)
    assert content["cells"][4]["heads"]["verb"]["few"] is None
    verb = content["heads"]["verb"]
    assert verb["table"][0]["worst_fifth"] == pytest.approx(
        {"mean": 0.4, "standard_deviation": 0.1}
    )
    assert verb["table"][0]["few"] is None
    assert [(one["figure"], one["num_pairs"]) for one in verb["contrasts"]] == [
        ("mean_class_accuracy", 3),
        ("worst_fifth", 3),
    ]
    assert verb["contrasts"][0]["words"] == "cdb v cross_entropy: +6.7 ± 8.3: undecided"
    with (tmp_path / "new" / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["arm"], row["seed"], row["head"]) for row in rows[2:4]] == [
        ("cross_entropy", "2", "verb"),
        ("cdb", "0", "verb"),
    ]
    assert float(rows[2]["mean_class_accuracy"]) == pytest.approx(0.8)
    assert float(rows[2]["seconds_per_epoch"]) == 12
    assert (rows[2]["few"], rows[2]["top5"]) == ("", "")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "compare.csv",
        "compare.html",
        "compare.json",
    ]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_nothing_is_cut_off_in_the_terminal(width: int) -> None:
    out = io.StringIO()
    made = comparison(*cells(MARKUP, *REFERENCE), *cells("focal", *REFERENCE[:1]))

    print_comparison(made, console=Console(file=out, width=width))

    text = out.getvalue()
    assert "…" not in text
    assert "cdb v cross_entropy: +6.7 ± 8.3: undecided (3/3 seeds, p 0.25, Holm 0.25)" in text
    assert f"{MARKUP} v cross_entropy: +0.0 ± 0.0: no worse (0/3 seeds)" in text
    assert "76.7 ± 13.3" in text  # of 0.633, 0.767 and 0.9
    assert "Note: Not every arm has every seed" in text
