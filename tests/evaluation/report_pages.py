"""A run with all that a report page can show, and the page read as a browser would."""

import json
from html.parser import HTMLParser
from pathlib import Path

import torch

from cdb_video.evaluation.predictions import HeadClasses, HeadPredictions, Predictions
from cdb_video.evaluation.report import make_report
from cdb_video.evaluation.report_page import write_report_page
from cdb_video.training.run_log import FileLog

HOSTILE = "<img src=x onerror=\"alert(1)\"> & 'co' $x_1$"
VERBS = ("open", HOSTILE, "切る", "never")
TRAIN_COUNTS = torch.tensor([101, 20, 3, 0])


class Page(HTMLParser):
    """What a browser would make of it: `tables` are the texts of cells, `script` is the program."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[dict[str, str | None]] = []
        self.tables: list[list[list[str]]] = []
        self.headings: list[str] = []
        self.script = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == [], "tags that are left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.append(dict(attrs))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag in ("h1", "h2", "h3"):
            self.headings.append("")
        if tag not in ("img", "meta", "br", "polyline"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" in self._open:
            self.script += data
        elif "td" in self._open or "th" in self._open:
            self.tables[-1][-1][-1] += data
        elif self._open and self._open[-1] in ("h1", "h2", "h3"):
            self.headings[-1] += data

    @property
    def images(self) -> list[str]:
        """The sources of all pictures."""
        return [str(a["src"]) for a in self.attributes if "src" in a]

    @property
    def clips(self) -> int:
        """How many of the hardest clips are shown."""
        return sum(a.get("class") == "id" for a in self.attributes)

    def table(self, title: str) -> dict[str, list[str]]:
        """First cell -> the others, of the first table whose first column has this title."""
        rows = next(table for table in self.tables if table[0][0].strip() == title)
        return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def make_head(labels: list[int], num_classes: int, seed: int = 0) -> HeadPredictions:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(len(labels), num_classes, generator=generator)
    scores = logits.softmax(1)
    return HeadPredictions(scores, scores[:, None].half(), torch.tensor(labels))


def write_run(folder: Path) -> None:
    """What training leaves: two epochs, of which the second had weights other than 1."""
    log = FileLog(folder)
    unknown = torch.full((4,), torch.nan)
    accuracy = torch.tensor([0.75, 0.25, 0.0, torch.nan])
    rows = [(0, unknown, torch.ones(4)), (1, accuracy, torch.tensor([0.2, 0.9, 1.5, 1.0]))]
    for epoch, known, weights in rows:
        log.write_difficulty(
            epoch,
            "verb",
            names=VERBS,
            train_counts=TRAIN_COUNTS,
            accuracy=known,
            difficulty=1 - known,
            weights=weights,
        )
    log.write("train", epoch=1.0, step=4, lr=0.1, clips_per_s=10.0, loss=2.0)
    log.write("eval", epoch=1, step=4, loss=1.5, mean_class_accuracy={"verb": 0.5, "verb_train": 1})
    log.close()
    (folder / "config.yaml").write_text(f"run:\n  name: {HOSTILE}\n")
    about = {"command": [HOSTILE], "versions": {"torch": HOSTILE}, "git": None, "classes": {}}
    (folder / "run.json").write_text(json.dumps(about))


def write_page(
    folder: Path, predictions: Predictions, classes: dict[str, HeadClasses], **options: object
) -> str:
    report = make_report(
        predictions, classes, run=HOSTILE, split="val", annotation_split=HOSTILE, views="1x1",
        split_fed=["selection", "difficulty"],
    )  # fmt: skip
    path = write_report_page(folder, report, predictions, classes, **options)
    assert path == folder / "report_val.html"
    assert [file.name for file in folder.glob("*.tmp")] == []
    return path.read_text(encoding="utf-8")
