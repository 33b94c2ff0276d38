"""The configuration: every mistake is one line that names the key; a dump loads to the same."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from cdb_video import config as config_module
from cdb_video.config import Config
from cdb_video.config_file import MAX_CONFIG_BYTES, dump_config, load_config, parse_config
from cdb_video.errors import ConfigError

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))


def fields(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key -> field, of every field that is not a section itself."""
    for name, field in model.model_fields.items():
        inner = config_module.section_in(field)
        if inner is not None:
            yield from fields(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


FIELDS = dict(fields())


def written(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as error:
        parse_config(values, source="file.yaml")
    message = str(error.value)
    assert message.startswith("file.yaml: ")
    assert "\n" not in message
    return message.removeprefix("file.yaml: ")


def nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


# --- the fields ------------------------------------------------------------------------------


@pytest.mark.parametrize("key", FIELDS)
def test_every_field_is_described(key: str) -> None:
    assert FIELDS[key].description


def test_every_section_is_described_frozen_and_closed() -> None:
    models = {
        value
        for value in vars(config_module).values()
        if inspect.isclass(value) and issubclass(value, config_module.Section)
    }

    assert len(models) >= 11
    for model in models:
        assert model.__doc__
        assert model.model_config["frozen"] is True
        assert model.model_config["extra"] == "forbid"


def test_a_configuration_cannot_be_changed() -> None:
    config = Config()

    with pytest.raises(ValidationError, match="frozen"):
        config.train.epochs = 5  # type: ignore[misc]


def wrong_values(annotation: Any) -> list[Any]:
    """Values of a type that a field does not take, one a YAML type."""
    kinds = set(leaves(annotation))
    wrong: list[Any] = [] if str in kinds else ["@#"]
    wrong += [] if bool in kinds else [True]
    wrong += [] if {int, float, bool} & kinds else [7]
    wrong += [] if {tuple, list} & kinds else [["@#"]]
    wrong += [] if dict in kinds else [{"@#": "@#"}]
    return wrong if type(None) in kinds else [*wrong, None]


def leaves(annotation: Any) -> Iterator[Any]:
    """The types that an annotation allows on its first level; a literal's is a `Literal`."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from leaves(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for argument in get_args(annotation):
            yield from leaves(argument)
    else:
        yield origin or annotation


CASES = [(key, value) for key, field in FIELDS.items() for value in wrong_values(field.annotation)]


@pytest.mark.parametrize(("key", "value"), CASES)
def test_a_value_of_a_wrong_type_is_refused_by_key_with_what_is_allowed(
    key: str, value: Any
) -> None:
    message = refused(nested(key, value))

    assert message.startswith(f"{key}: must be ")
    assert message.endswith(f", got {value!r}")


def test_the_wrong_types_reach_every_field() -> None:
    assert {key for key, _ in CASES} == set(FIELDS)
    assert len(CASES) > 3 * len(FIELDS)


@pytest.mark.parametrize(
    "key", [key for key, f in FIELDS.items() if Literal in leaves(f.annotation)]
)
def test_a_choice_names_all_there_are(key: str) -> None:
    message = refused(nested(key, "@#"))

    for annotation in get_args(FIELDS[key].annotation):
        for choice in get_args(annotation) or [annotation]:
            assert repr(choice) in message or not isinstance(choice, str)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.epochs", 0, "train.epochs: must be greater than or equal to 1, got 0"),
        ("train.epochs", 2.5, "train.epochs: must be a valid integer, got 2.5"),
        ("train.epochs", "3", "train.epochs: must be a valid integer, got '3'"),
        ("run.seed", -1, "run.seed: must be greater than or equal to 0, got -1"),
        ("run.seed", 2**63, f"run.seed: must be less than {2**63}, got {2**63}"),
        ("optim.lr", 0, "optim.lr: must be greater than 0, got 0"),
        ("optim.lr", float("nan"), "optim.lr: must be a finite number, got nan"),
        ("optim.lr", ".inf", "optim.lr: must be a valid number"),
        ("optim.momentum", 1, "optim.momentum: must be less than 1, got 1"),
        ("loss.tau", -1, "loss.tau: must be greater than or equal to 0 or "),
        ("loss.tau", "fast", "or must be 'dynamic' or 'dynamic_release', got 'fast'"),
        ("loss.head_weights.verb", -2, "loss.head_weights.verb: must be greater than or equal"),
        ("views.num_crops", 2, "views.num_crops: must be 1 or 3, got 2"),
        ("data.train_split", ["a", 3], "data.train_split.1: must be a valid string, got 3"),
        ("model.heads", "verb", "model.heads: must be a list, got 'verb'"),
        ("augment.no_flip_classes.verb", "x", "augment.no_flip_classes.verb: must be a list"),
        ("augment.area", [0.5, 0.2], "augment.area must be [low, high] with 0 < low <= high"),
        ("augment.area", [0, 0.2], "augment.area must be [low, high] with 0 < low <= high"),
        ("augment.area", [0.5], "augment.area.1: "),
        ("clip.crop_size", 300, "clip.crop_size=300 must be at most short_side=256"),
        ("run.name", "a/b", "run.name: "),
        ("run.name", "..", "run.name: "),
        ("run.name", "", "run.name: "),
        ("train", 5, "train: must be "),
    ],
)
def test_a_value_out_of_range_is_refused_by_key(key: str, value: Any, message: str) -> None:
    assert message in refused(nested(key, value))


# --- unknown keys ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("optim.lrr", "optim.lrr: no such key; did you mean 'lr'?"),
        ("loss.difficulty.emma", "loss.difficulty.emma: no such key; did you mean 'ema'?"),
        ("optimizer.lr", "optimizer: no such key; did you mean 'optim'?"),
        ("train.lr", "train.lr: no such key; did you mean 'optim.lr'?"),
        ("epochs", "epochs: no such key; did you mean 'train.epochs'?"),
        ("loss.floor", "loss.floor: no such key; did you mean 'loss.difficulty.floor'?"),
        ("views.gamma", "views.gamma: no such key; there are num_clips, num_crops"),
    ],
)
def test_an_unknown_key_is_refused_with_what_was_meant(key: str, message: str) -> None:
    assert refused(nested(key, 1)) == message


@pytest.mark.parametrize("key", ["train.epochs", "foo.bar", "train.epochs.x", "1.2"])
def test_a_key_with_a_dot_in_the_file_is_no_section(key: str) -> None:
    assert refused({key: 1}).startswith(f"{key}: no such key; there are run, data, ")


@pytest.mark.parametrize("key", [True, 1, None])
def test_a_key_that_is_no_text_is_refused(tmp_path: Path, key: Any) -> None:
    with pytest.raises(ConfigError, match="Keys should be strings"):
        load_config(written(tmp_path, f"{'null' if key is None else str(key).lower()}: 3"))


# --- sections together -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"data": {"val_split": "a", "test_split": "a"}},
            "data.val_split=a is also data.test_split=a: no clip may have two roles",
        ),
        ({"data": {"val_split": ["a", "b"], "test_split": ["c", "b"]}}, "is also data.test_split="),
        # `auto` takes the split named test.
        ({"data": {"val_split": "test"}}, "data.val_split=test is also data.test_split=auto"),
        (
            {"data": {"val_split": "held_out"}},
            "data.hold_out_subjects is empty: data.val_split=held_out needs it",
        ),
        (
            {"data": {"hold_out_subjects": ["P1"]}},
            "data.hold_out_subjects=['P1'] is only used with data.val_split=held_out",
        ),
        (
            {"data": {"val_split": None}},
            "loss.difficulty.source=val needs data.val_split; without one, use "
            "loss.difficulty.source=crossfit or train",
        ),
        (
            {"data": {"val_split": "test_split1", "test_split": None}},
            "data.val_split=test_split1: difficulty never comes from a test split",
        ),
        (
            {
                "loss": {"difficulty": {"statistic": "f1", "max_clips_per_class": 5}},
                "train": {"eval_every": 2},
            },
            "loss.difficulty.statistic=f1 with loss.difficulty.max_clips_per_class=5: F1 over",
        ),
        (
            {"model": {"grad_checkpointing": True}, "train": {"compile": True}},
            "train.compile=true with model.grad_checkpointing=true: a compiled graph",
        ),
        (
            {"data": {"on_error": "skip"}, "train": {"compile": True}},
            "train.compile=true with data.on_error=skip: every number of clips",
        ),
        ({"data": {"sampler": "cdb"}}, "data.sampler=cdb with loss.name=cdb: difficulty would"),
        (
            {
                "data": {"sampler": "cdb"},
                "loss": {"name": "focal", "difficulty": {"source": "train"}},
            },
            "loss.difficulty.floor=0: a solved class would never be drawn again",
        ),
        (
            {"loss": {"name": "logit_adjusted", "tau": 0.5}},
            "loss.tau=0.5 is of cdb; the strength of logit_adjusted is loss.options=",
        ),
        ({"loss": {"name": "ldam"}}, "model.head_type=linear: the ldam loss needs cosine"),
    ],
)
def test_sections_that_contradict_each_other_are_refused(
    values: dict[str, Any], message: str
) -> None:
    assert refused(values).startswith(message) or message in refused(values)


@pytest.mark.parametrize(
    "values",
    [
        {"data": {"val_split": "held_out", "hold_out_subjects": ["P1"]}},
        {"data": {"val_split": None}, "loss": {"difficulty": {"source": "train"}}},
        {"data": {"val_split": None}, "loss": {"name": "cross_entropy"}},
        {"data": {"val_split": "a", "test_split": None}},
        {"data": {"val_split": "a", "test_split": "b"}},
    ],
)
def test_sections_that_agree_are_taken(values: dict[str, Any]) -> None:
    parse_config(values, source="file.yaml")


# --- files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "train:", "train:\n  # epochs: 3\nloss: {difficulty: }"])
def test_nothing_written_is_the_default(tmp_path: Path, text: str) -> None:
    assert load_config(written(tmp_path, text)) == Config()


def test_numbers_without_a_dot_are_numbers(tmp_path: Path) -> None:
    # YAML 1.1 has 1e-4 as text.
    config = load_config(
        written(tmp_path, "optim: {lr: 1e-4, weight_decay: 5e-2}\nloss: {tau: 1e0}")
    )

    assert config.optim.lr == 1e-4
    assert config.optim.weight_decay == 0.05
    assert config.loss.tau == 1.0
    assert isinstance(config.loss.tau, float)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_dumped_recipe_loads_to_the_same_object(tmp_path: Path, path: Path) -> None:
    config = load_config(path)

    assert load_config(written(tmp_path, dump_config(config))) == config


def test_recipes_are_found() -> None:
    assert len(RECIPES) >= 1


def test_the_dumped_defaults_hold_every_field_and_load_again(tmp_path: Path) -> None:
    text = dump_config(Config())

    assert load_config(written(tmp_path, text)) == Config()
    assert "long_tail: null" in text  # the one section that a data set may be without
    for key in FIELDS:
        assert f"{key.split('.')[-1]}:" in text or key.startswith("data.long_tail.")
    sections = [line[:-1] for line in text.splitlines() if line[0] != " "]
    assert sections == list(Config.model_fields)


def test_a_long_list_is_not_a_deep_one(tmp_path: Path) -> None:
    lines = "".join(f"    class {i}: [a, b]\n" for i in range(100))
    text = f"augment:\n  no_flip_classes:\n{lines}"

    assert len(load_config(written(tmp_path, text)).augment.no_flip_classes) == 100


@given(
    text=st.text(min_size=1),
    lr=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    seed=st.integers(0, 2**63 - 1),
)
@settings(deadline=None, database=None, max_examples=30)
@example(text="a\x85b", lr=1.0, seed=0)  # the end of a line, to YAML
def test_any_text_and_number_survives_a_dump(
    tmp_path_factory: pytest.TempPathFactory, text: str, lr: float, seed: int
) -> None:
    values = {
        "run": {"seed": seed},
        "data": {"root": text, "columns": {text: text}, "train_split": [text, "null", "1e-4"]},
        "optim": {"lr": lr},
    }
    config = parse_config(values, source="file.yaml")

    path = written(tmp_path_factory.getbasetemp(), dump_config(config))

    assert load_config(path) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x 1\nb: *x", r"aliases \(\*name\) are not allowed"),
        ("train: [1", "not YAML: "),
        ("train: \x00", "not YAML: "),
        ("train: !!python/object:os.system {}", "not YAML: "),
        ("run: {name: 2024-13-01}", "not YAML: month must be in 1..12"),
        (f"run: {{seed: {'9' * 5000}}}", "not YAML: Exceeds the limit"),
        ("[" * 100, "nested deeper than 20"),
        ("".join(f"{' ' * i}a:\n" for i in range(100)), "nested deeper than 20"),
        ("- train", r"must hold sections such as `train:`, got list"),
        ("train", r"must hold sections such as `train:`, got str"),
        ("optim: {lr: 1}\ntrain: {epochs: 1}\noptim: {name: sgd}", ":3: optim is written twice"),
        ("optim:\n  lr: 1\n  name: sgd\n  lr: 2", ":4: lr is written twice"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_name(
    tmp_path: Path, text: str, message: str
) -> None:
    path = written(tmp_path, text)

    with pytest.raises(ConfigError, match=message) as error:
        load_config(path)

    assert str(error.value).startswith(f"{path}:")
    assert "\n" not in str(error.value)


def test_a_file_too_large_missing_or_no_text_is_refused_by_name(tmp_path: Path) -> None:
    large = written(tmp_path, "#" * (MAX_CONFIG_BYTES + 1))
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\xff")

    with pytest.raises(ConfigError, match=f"{large}: larger than {MAX_CONFIG_BYTES} bytes"):
        load_config(large)
    for path in (tmp_path / "missing.yaml", tmp_path, binary):
        with pytest.raises(ConfigError, match=f"{path}: cannot be read"):
            load_config(path)


# --- overrides -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochs=7", 7),
        ("optim.lr=1e-4", 1e-4),
        ("augment.flip=false", False),
        ("data.val_split=null", None),
        ("data.train_split=[a, b]", ("a", "b")),
        ("data.root=a=b", "a=b"),
        ("data.root=@home", "@home"),
        ("data.root=~/videos", "~/videos"),
        ("data.columns={verb: act}", {"verb": "act"}),
        ("augment.no_flip_classes={verb: [Turn left]}", {"verb": ("Turn left",)}),
        ("loss.difficulty.ema=0.5", 0.5),
        ("loss.tau=1", 1.0),
        ("loss.tau=dynamic", "dynamic"),
        # Text, though YAML alone has a number, a truth, a date and a time here.
        ("run.name=2024", "2024"),
        ("run.name=007", "007"),
        ("run.name=yes", "yes"),
        ("run.name=2024-01-31", "2024-01-31"),
        ("run.name=2024-13-01", "2024-13-01"),
        ("run.name='12:30:00'", "12:30:00"),
        ("data.train_split=1", "1"),
        ("run.name=null", None),
    ],
)
def test_an_override_is_read_as_yaml_of_its_fields_type(
    tmp_path: Path, override: str, expected: Any
) -> None:
    path = written(tmp_path, "loss: {difficulty: {source: train}}\nrun:")
    key = override.partition("=")[0]

    config: Any = load_config(path, [override])

    for part in key.split("."):
        config = getattr(config, part)
    assert config == expected
    assert type(config) is type(expected)


def test_overrides_go_on_top_of_the_file_and_the_last_one_wins(tmp_path: Path) -> None:
    path = written(tmp_path, "train: {epochs: 3, log_every: 5}")

    config = load_config(path, ["train.epochs=4", "train.epochs=5", "clip.stride=1"])

    assert (config.train.epochs, config.train.log_every, config.clip.stride) == (5, 5, 1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs", "'train.epochs': overrides are written section.key=value"),
        ("epochs=3", "'epochs=3': overrides are written section.key=value"),
        ("optim.lrr=1", "optim.lrr: no such key; did you mean 'lr'?"),
        ("train.epochs.x=1", "train.epochs.x: epochs is 3, not a section"),
        ("train.epochs=[", "train.epochs: must be a valid integer, got '['"),
        ("train.epochs=3.5", "train.epochs: must be a valid integer, got 3.5"),
        ("data.root=a: b.mp4", "data.root: must be a valid string, got {'a': 'b.mp4'}"),
        ("data.hold_out_subjects=[[1]]", "data.hold_out_subjects.0: must be a valid string"),
    ],
)
def test_a_bad_override_is_refused_by_key(tmp_path: Path, override: str, message: str) -> None:
    path = written(tmp_path, "train: {epochs: 3}")

    with pytest.raises(ConfigError) as error:
        load_config(path, [override])

    assert message in str(error.value)
