from pathlib import Path

import pytest

from cdb_video.config_file import load_config, recipe_note


@pytest.mark.parametrize(
    ("optimizer", "overrides", "usual"),
    [
        ("sgd", ["train.global_batch_size=8"], "0.025"),  # a quarter of 0.1
        ("sgd", ["optim.lr=1"], "0.1"),
        ("adamw", ["train.global_batch_size=8"], "0.05"),  # half of 0.1
    ],
)
def test_a_rate_far_from_the_recipe_is_noted_with_the_usual_one(
    tmp_path: Path, optimizer: str, overrides: list[str], usual: str
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"optim: {{name: {optimizer}, lr: 0.1}}\ntrain: {{global_batch_size: 32}}\n")

    note = recipe_note(recipe, load_config(recipe, overrides))

    assert note is not None
    assert note.startswith("note: optim.lr=")
    assert note.endswith(f" is {usual}")


def test_the_rate_of_another_optimiser_is_noted(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("optim: {name: sgd, lr: 0.1}\n")

    note = recipe_note(recipe, load_config(recipe, ["optim.name=adamw"]))

    assert note == (f"note: optim.name=adamw: optim.lr=0.1 is the rate that {recipe} has for sgd")


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["train.global_batch_size=8", "optim.lr=0.025"],  # in proportion
        ["train.global_batch_size=24"],  # not far
        ["optim.name=adamw", "optim.lr=1e-4"],  # a rate of the other optimiser's own
    ],
)
def test_what_is_near_or_cannot_be_compared_is_not_noted(
    tmp_path: Path, overrides: list[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("optim: {name: sgd, lr: 0.1}\ntrain: {global_batch_size: 32}\n")

    assert recipe_note(recipe, load_config(recipe, overrides)) is None
