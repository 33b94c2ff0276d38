"""The page of a comparison, read as a browser would."""

import base64
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from cdb_video.experiments.comparison import Comparison, to_json, write_comparison
from cdb_video.experiments.comparison_page import draw
from tests.experiments.made_cells import REFERENCE, cells, comparison

HOSTILE = "<img src=x onerror=\"alert(1)\"> & 'co' [bold]$x_1$"


class Page(HTMLParser):
    """What a browser would make of it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.bold: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self._open: list[str] = []
        self._best = False
        self.feed(text)
        assert self._open == [], "tags that are left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        attributes = dict(attrs)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "action")]
        self._best = attributes.get("class") == "best"
        if tag == "img":
            self.images.append(attributes)
        if tag not in ("img", "meta"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text.append(data)
        if self._best:
            self.bold.append(data)


def page_of(folder: Path, made: Comparison, **about: Any) -> Page:
    write_comparison(folder, made, about=about)
    text = (folder / "compare.html").read_text(encoding="utf-8")
    assert "http:" not in text
    assert "https:" not in text
    return Page(text)


def test_the_page_escapes_names_and_fetches_nothing(tmp_path: Path) -> None:
    made = comparison(*cells(HOSTILE, *REFERENCE), references=(HOSTILE, "cross_entropy"))

    page = page_of(tmp_path, made, command=HOSTILE, versions={HOSTILE: 1})

    assert any(text.startswith(f"cdb v {HOSTILE}: +6.7") for text in page.text)
    assert HOSTILE in page.text
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert page.links == [image["src"] for image in page.images]
    [image] = page.images
    assert "onerror" not in image


def test_the_picture_in_the_page_is_an_svg_without_links(tmp_path: Path) -> None:
    [image] = page_of(tmp_path, comparison()).images

    kind, _, data = (image["src"] or "").partition("base64,")
    svg = ElementTree.fromstring(base64.b64decode(data))

    assert kind == "data:image/svg+xml;"
    links = [v for node in svg.iter() for k, v in node.attrib.items() if k.endswith("href")]
    assert all(link.startswith("#") for link in links)


def test_the_page_shows_the_best_mean_in_bold(tmp_path: Path) -> None:
    # cdb has 0.633, 0.767, 0.9: mean 0.767; its worst classes 0.4, 0.6, 0.8: mean 0.6.
    page = page_of(tmp_path, comparison())

    assert "76.7" in page.bold
    assert "60.0" in page.bold
    assert "70.0" not in page.bold  # the mean of cross entropy
    assert "70.0" in page.text


def test_a_comparison_without_a_finished_cell_has_a_page(tmp_path: Path) -> None:
    empty = Comparison("demo", (), ("cross_entropy",))

    page = page_of(tmp_path, empty, overrides={"cdb": ["loss.name=cdb"]})

    assert "No run is finished yet." in " ".join(page.text)
    assert "loss.name=cdb" in page.text
    assert to_json(empty)["heads"] == {}


def test_the_same_comparison_is_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_comparison(tmp_path / name, comparison(), about={})

    for name in ("compare.json", "compare.csv", "compare.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_picture_has_a_dot_for_each_pair_and_panels_for_each_reference() -> None:
    made = comparison(*cells("focal", *REFERENCE[:2]), references=("cross_entropy", "cdb"))

    panels = draw(made, "verb").axes

    dots = [
        [np.sort(line.get_xdata()).tolist() for line in panel.lines if line.get_marker() == "o"]
        for panel in panels
    ]
    assert len(panels) == 4  # two references, two figures
    # Worst class in points: cdb and focal against cross entropy, focal against cdb.
    assert dots[1] == [pytest.approx([10, 20, 30]), pytest.approx([0, 0])]
    assert dots[3] == [pytest.approx([-20, -10])]
