"""Pages that are one HTML file: templates of the package, names escaped, nothing fetched."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any


def render(template: str, **content: Any) -> str:
    """The HTML of a template, named by its path in the package; a missing value is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**content)


def write_text(path: Path, text: str) -> None:
    """Write a file; one of that name is replaced in one move."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def _source(name: str) -> str:
    return (resources.files("cdb_video") / name).read_text(encoding="utf-8")
