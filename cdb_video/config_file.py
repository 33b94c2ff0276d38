"""Configuration files: YAML and `section.key=value` to a `Config`, and back; errors in one line."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from cdb_video.config import Config, section_in
from cdb_video.errors import ConfigError

MAX_CONFIG_BYTES = 1_000_000
MAX_CONFIG_DEPTH = 20
OPENING = (
    yaml.FlowSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.BlockMappingStartToken,
)
CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)

FAR = 2.0
"""How many times a learning rate may be off before `recipe_note` says so."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a YAML file with `section.key=value` overrides on top.

    Raises:
        ConfigError: naming the key, the value and what is allowed.

    """
    values = _read_yaml(Path(path))
    for override in overrides:
        _apply(values, override)
    return parse_config(values, source=str(path))


def recipe_note(path: str | Path, config: Config) -> str | None:
    """A line, where learning rate and batch are far from those of the file; nothing is changed.

    Far is twice, or half, of what the usual rules make of the file's rate: in proportion to the
    batch for SGD (Goyal et al., arXiv 1706.02677), to its root for Adam (Malladi et al., arXiv
    2205.10287). Of another optimiser the file says nothing, and its rate is no rate to keep.
    """
    recipe = load_config(path)
    if recipe.optim.name != config.optim.name:
        if recipe.optim.lr != config.optim.lr:
            return None  # a rate of its own
        return (
            f"note: optim.name={config.optim.name}: optim.lr={recipe.optim.lr:g} is the rate that "
            f"{path} has for {recipe.optim.name}"
        )
    batch, own_batch = config.train.global_batch_size, recipe.train.global_batch_size
    power, rule = (1.0, "in proportion") if config.optim.name == "sgd" else (0.5, "by its root")
    usual = recipe.optim.lr * (batch / own_batch) ** power
    if 1 / FAR < config.optim.lr / usual < FAR:
        return None
    return (
        f"note: optim.lr={config.optim.lr:g} for train.global_batch_size={batch}; {path} has "
        f"{recipe.optim.lr:g} for {own_batch}, which {rule} is {usual:.2g}"
    )


def parse_config(values: Mapping[str, Any], *, source: str) -> Config:
    """The configuration of nested dicts; `source` names them in errors."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_first_line(error)}") from None


def dump_config(config: Config) -> str:
    """YAML that loads again to the same object."""
    values = config.model_dump(mode="json")
    # YAML takes U+0085 for the end of a line, and reads it as a space.
    readable = "\x85" not in json.dumps(values, ensure_ascii=False)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=readable)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes, not a configuration")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: cannot be read: no such file{_file_hint(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    try:
        _refuse_unfolding(path, text)
        _refuse_repeated_keys(path, yaml.compose(text, yaml.SafeLoader))
        values = yaml.safe_load(text)
    except ConfigError:
        raise
    # ValueError: a date such as 2024-13-01, a number of 5,000 digits.
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: must hold sections such as `train:`, got {type(values).__name__}"
        )
    return values


def _file_hint(path: Path) -> str:
    """What may be meant: a file beside it, or a recipe of configs/ by its name alone."""
    found = [*path.parent.glob("*.yaml"), *Path("configs").rglob("*.yaml")]
    names = {name: near for near in found for name in (near.stem, near.name, str(near))}
    close = difflib.get_close_matches(str(path), names, n=1, cutoff=0.8)
    return f"; did you mean {str(names[close[0]])!r}?" if close else ""


def _refuse_unfolding(path: Path, text: str) -> None:
    # A few lines of aliases can unfold to gigabytes, a few thousand brackets overflow the stack.
    depth = 0
    for token in yaml.scan(text):
        if isinstance(token, yaml.AliasToken):
            raise ConfigError(f"{path}: aliases (*name) are not allowed")
        depth += isinstance(token, OPENING)
        depth -= isinstance(token, CLOSING)
        if depth > MAX_CONFIG_DEPTH:
            raise ConfigError(f"{path}: nested deeper than {MAX_CONFIG_DEPTH}")


def _refuse_repeated_keys(path: Path, node: yaml.Node | None) -> None:
    # YAML takes the last of two equal keys: a section written twice would lose its first half.
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeated_keys(path, item)
    elif isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            name = str(key.value)
            if name in seen:
                line = key.start_mark.line + 1
                raise ConfigError(f"{path}:{line}: {name} is written twice")
            seen.add(name)
            _refuse_repeated_keys(path, value)


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or "." not in key:
        raise ConfigError(f"{override!r}: overrides are written section.key=value")
    *sections, last = key.split(".")
    value = _value(text, of_text=_takes_text(key))
    for section in sections:
        inner = values.setdefault(section, {})
        if inner is None:
            inner = values[section] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"{key}: {section} is {inner!r}, not a section")
        values = inner
    values[last] = value


def _value(text: str, *, of_text: bool) -> Any:
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text
    # A run may be named 2024, 0017 or yes.
    is_text = of_text and value is not None and not isinstance(value, str | list | dict)
    return text if is_text else value


def _takes_text(key: str) -> bool:
    annotation: Any = Config
    for part in key.split("."):
        field = getattr(annotation, "model_fields", {}).get(part)
        annotation = (section_in(field) or field.annotation) if field else None
    return annotation is str or str in get_args(annotation)


def _first_line(error: ValidationError) -> str:
    details = error.errors()
    if details[0]["type"] == "extra_forbidden":
        return f"{_key(details[0]['loc'])}: no such key{_hint(details[0]['loc'])}"
    # A union fails once a member: the one that got furthest into the value is meant.
    field = _key(details[0]["loc"])
    related = [d for d in details if f"{_key(d['loc'])}.".startswith(f"{field}.")]
    first = max(related, key=lambda detail: len(_key(detail["loc"]).split(".")))
    key = _key(first["loc"])
    messages = dict.fromkeys(
        detail["msg"]
        .removeprefix("Value error, ")
        .replace("Input should be", "must be")
        .replace("a valid tuple", "a list")
        for detail in details
        if _key(detail["loc"]) == key
    )
    message = " or ".join(messages)
    if isinstance(first["input"], dict | BaseModel) and first["type"] == "value_error":
        return f"{key}.{message}".removeprefix(".")
    return f"{key}: {message}, got {first['input']!r}"


def _key(location: Sequence[int | str]) -> str:
    return ".".join(str(part) for part in location if not _is_union_branch(part))


def _is_union_branch(part: object) -> bool:
    # pydantic names the member of a union that failed, such as "function-before[...]".
    return isinstance(part, str) and ("[" in part or part in {"float", "str", "tuple"})


def _hint(location: Sequence[int | str]) -> str:
    *sections, last = map(str, location)
    model: Any = Config
    for section in sections:
        model = section_in(model.model_fields[section])
    close = difflib.get_close_matches(last, model.model_fields, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    elsewhere = [path for path in _all_keys(Config) if path.rsplit(".", 1)[-1] == last]
    if elsewhere:
        return f"; did you mean {elsewhere[0]!r}?"
    return f"; there are {', '.join(model.model_fields)}"


def _all_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        inner = section_in(field)
        if inner is not None:
            yield from _all_keys(inner, f"{prefix}{name}.")
