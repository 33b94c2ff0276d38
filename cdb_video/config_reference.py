"""The reference of every configuration key, as Markdown, from the fields and their descriptions.

    python -m cdb_video.config_reference > docs/configuration.md

tests/test_pages.py compares the two.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cdb_video.config import Config, section_in

HEADER = """\
# Configuration

<!-- python -m cdb_video.config_reference > docs/configuration.md -->

A recipe is one YAML file: sections, and keys in them. Recipes do not inherit; what is left out has
its default. Every key can be given on the command line, as YAML, on top of the file:

```bash
python tools/train.py configs/finetune.yaml optim.lr=1e-3 'model.heads=[verb, noun]' --print-config
```

`--print-config` prints every key with its value and stops. A run keeps its own in `config.yaml`. An
unknown key, a value of another type or out of range, and keys that contradict one another end with
one line and exit status 2. `null` is nothing; a list is `[a, b]`, a mapping `{key: value}`.
"""
WORDS: dict[Any, str] = {
    str: "text",
    bool: "`true`, `false`",
    int: "whole number",
    float: "number",
    NoneType: "`null`",
    Any: "anything",
}
BOUNDS = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}


def config_reference() -> str:
    """`docs/configuration.md`: a table a section, with what each key takes and its default."""
    parts = [HEADER]
    for name, section in _sections(Config):
        rows = [
            _row(f"{name}.{key}", field)
            for key, field in section.model_fields.items()
            if section_in(field) is None
        ]
        parts.append(
            f"\n## {name}\n\n{inspect.cleandoc(section.__doc__ or '')}\n\n"
            "| key | value | default | |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
        )
    return "".join(parts)


def _sections(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Dotted name -> model of every section, a section's own sections after it."""
    for key, field in model.model_fields.items():
        inner = section_in(field)
        if inner is not None:
            yield f"{prefix}{key}", inner
            yield from _sections(inner, f"{prefix}{key}.")


def _row(key: str, field: FieldInfo) -> str:
    default = field.default if isinstance(field.default, str) else json.dumps(field.default)
    cells = (
        f"`{key}`",
        _values(field.annotation, field.metadata),
        f"`{default}`",
        " ".join((field.description or "").split()),
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _values(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What an annotation allows, in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _values(inner[0], (*metadata, *inner[1:]))
    if origin in (Union, UnionType):
        return " or ".join(_values(option) for option in inner)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    if origin is tuple and inner[-1] is Ellipsis:
        return f"list of {_values(inner[0])}"
    if origin is tuple:
        return f"[{', '.join(_values(item) for item in inner)}]"
    if origin is dict:
        return f"mapping to {_values(inner[1])}"
    bounds = dict(_bounds(metadata))
    said = [f"{word} {bounds[name]}" for name, word in BOUNDS.items() if name in bounds]
    return f"{WORDS[annotation]} {', '.join(said)}".strip()


def _bounds(metadata: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """A name of BOUNDS and its number, from the constraints of an annotation."""
    for part in metadata:
        if isinstance(part, FieldInfo):
            yield from _bounds(part.metadata)
            continue
        for name in BOUNDS:
            value = getattr(part, name, None)
            if value is not None:
                yield name, "2^63" if value == 2**63 else str(value)


if __name__ == "__main__":
    print(config_reference(), end="")
