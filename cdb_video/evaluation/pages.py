"""Pages that are one HTML file: templates of the package, names escaped, nothing fetched."""

from __future__ import annotations

from importlib import resources
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


def _source(name: str) -> str:
    return (resources.files("cdb_video") / name).read_text(encoding="utf-8")
