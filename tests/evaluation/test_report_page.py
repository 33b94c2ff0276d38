"""`report_<split>.html`, read as a browser would; in a real one where there is one."""

import base64
import csv
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from cdb_video.datasets.annotations import VideoRecord
from cdb_video.evaluation.predictions import (
    HeadClasses,
    HeadPredictions,
    Predictions,
    save_predictions,
)
from cdb_video.evaluation.report import make_report, save_report
from cdb_video.evaluation.report_data import (
    ClassHistory,
    confusion_matrix,
    hardest_clips,
    most_confused,
    read_class_histories,
    read_events,
    reliability,
)
from cdb_video.evaluation.report_figures import draw_history
from cdb_video.evaluation.report_page import (
    is_due,
    refresh_report_page,
    shown,
    write_report_page,
)
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

    def table(self, title: str) -> dict[str, list[str]]:
        """First cell -> the others, of the first table whose first column has this title."""
        rows = next(table for table in self.tables if table[0][0].strip() == title)
        return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def make_head(labels: list[int], num_classes: int, seed: int = 0) -> HeadPredictions:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(len(labels), num_classes, generator=generator)
    scores = logits.softmax(1)
    return HeadPredictions(scores, scores[:, None].half(), torch.tensor(labels))


@pytest.fixture(scope="module")
def predictions() -> Predictions:
    """Ten videos: class "never" of the verbs is absent, and no video has an adverb."""
    heads = {
        "verb": make_head([0, 0, 0, 0, 1, 1, 2, 2, -1, -1], 4),
        "adverb": make_head([-1] * 10, 2),
    }
    return Predictions(tuple(f"clip <{i}>" for i in range(10)), heads)


@pytest.fixture(scope="module")
def classes() -> dict[str, HeadClasses]:
    return {
        "verb": HeadClasses(VERBS, TRAIN_COUNTS),
        "adverb": HeadClasses(("fast", "slow"), torch.tensor([0, 0])),
    }


def write_run(folder: Path) -> None:
    """What training leaves: two epochs, of which the second had weights other than 1."""
    log = FileLog(folder, tensorboard=False)
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


@pytest.fixture(scope="module")
def text(
    tmp_path_factory: pytest.TempPathFactory,
    predictions: Predictions,
    classes: dict[str, HeadClasses],
) -> str:
    """The page of a run that has everything but thumbnails."""
    folder = tmp_path_factory.mktemp("run")
    write_run(folder)
    return write_page(folder, predictions, classes)


def test_names_are_text_and_nothing_is_fetched(text: str) -> None:
    page = Page(text)

    assert page.headings[0] == f"{HOSTILE}: val"
    assert page.table("class")[HOSTILE][0] == "20"
    assert not any("onerror" in attributes for attributes in page.attributes)
    assert "http:" not in text
    assert "https:" not in text
    assert not {"link", "iframe", "object", "base", "form"} & set(page.tags)
    assert all(source.startswith("data:image/") for source in page.images)
    links = [str(attributes["href"]) for attributes in page.attributes if "href" in attributes]
    assert links == ["#figures", "#training", "#head-1", "#head-2", "#about"]
    assert all(link[1:] in {a.get("id") for a in page.attributes} for link in links)


def test_the_page_forbids_itself_the_network(text: str) -> None:
    [policy] = [a["content"] for a in Page(text).attributes if "http-equiv" in a]

    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_the_program_of_the_page_refers_to_nothing_outside(text: str) -> None:
    page = Page(text)

    assert page.tags.count("script") == 1
    assert "sortable" in page.script
    assert not re.search(r"import|fetch|XMLHttpRequest|innerHTML|eval|//\w", page.script)


def test_pictures_have_real_text_and_no_links(text: str) -> None:
    pictures = [
        ElementTree.fromstring(base64.b64decode(source.partition("base64,")[2]))
        for source in Page(text).images
    ]

    # Curves; accuracy, history, confusion and calibration of the one head that has labels.
    assert len(pictures) == 5
    for svg in pictures:
        links = [v for node in svg.iter() for k, v in node.attrib.items() if k.endswith("href")]
        assert all(link.startswith(("#", "data:image/png")) for link in links)
    words = {node.text for svg in pictures for node in svg.iter() if node.tag.endswith("text")}
    assert "切る" in words
    assert "mean class accuracy" in words


def test_the_figures_stand_in_one_table(text: str, predictions: Predictions) -> None:
    figures = Page(text).table("figure")
    counts = predictions.heads["verb"].counts

    assert figures["labelled clips"][:2] == ["8", "0"]
    assert figures["classes in the split"][:2] == ["3 of 4", "0 of 2"]
    assert figures["top-1"][:2] == [f"{100 * counts.top1:.1f}", "-"]
    assert figures["mean class accuracy"][0] == f"{100 * counts.mean_class_accuracy:.1f}"
    many = 100 * float(counts.class_accuracy[0])
    assert figures["many-shot"][:2] == [f"{many:.1f} (1)", "- (0)"]
    assert figures["top-5"][:2] == ["-", "-"]  # of five classes or fewer


def test_the_class_table_starts_with_the_most_trained_and_has_a_line_a_class(text: str) -> None:
    page = Page(text)

    rows = page.table("class")
    assert list(rows) == ["class", *VERBS]
    assert rows["open"][:2] == ["101", "4"]
    assert rows["open"][3:5] == ["0.25", "0.20"]
    assert rows["never"][:5] == ["0", "0", "-", "-", "1.00"]
    # In the last epoch 0.25, 0.75 and 1 of 18 pixels up from the one above the bottom.
    points = [str(a["points"]) for a in page.attributes if "points" in a]
    assert points == ["89,14.5", "89,5.5", "89,1.0", ""]


def test_a_head_without_labels_says_so_and_has_no_picture(text: str) -> None:
    headings = Page(text).headings

    assert "No clip of this split has a label of this head." in text
    assert headings[headings.index("adverb") :] == ["adverb", "Classes", "Config and versions"]


def test_what_the_split_fed_is_said(text: str) -> None:
    assert "also used for selection and difficulty" in text


def test_a_folder_without_a_run_has_a_page_without_its_parts(
    tmp_path: Path, predictions: Predictions, classes: dict[str, HeadClasses]
) -> None:
    page = Page(write_page(tmp_path, predictions, classes))

    assert "Training" not in page.headings
    assert "Difficulty and weight through training" not in page.headings
    assert "polyline" not in page.tags
    assert "details" not in page.tags
    assert page.table("class")["never"] == ["0", "0", "-"]
    assert len(page.table("clip")) == 1 + 8


def test_a_constant_weight_and_an_unknown_difficulty_are_not_drawn() -> None:
    unknown, ones = np.full((2, 3), np.nan), np.ones((2, 3))
    epochs = np.arange(2)

    assert draw_history("abc", ClassHistory(epochs, unknown, ones)) is None
    drawn = draw_history("abc", ClassHistory(epochs, ones / 2, ones))
    assert drawn is not None
    assert [panel.get_title() for panel in drawn.axes] == ["difficulty"]


def test_thumbnails_are_of_the_hardest_clips_and_an_unreadable_one_is_left_out(
    tmp_path: Path,
    coded_video,
    predictions: Predictions,
    classes: dict[str, HeadClasses],
) -> None:
    good, bad = coded_video("good.mp4"), tmp_path / "bad.mp4"
    bad.write_text("no video")
    records = [
        VideoRecord(name, bad if i == 1 else good, name, name, labels={})
        for i, name in enumerate(predictions.ids)
    ]

    page = Page(write_page(tmp_path, predictions, classes, records=records))

    frames = [source for source in page.images if source.startswith("data:image/jpeg")]
    assert len(frames) == 7  # eight labelled clips, of which one does not open
    assert max(map(len, frames)) < 10_000


def test_the_reliability_bins_give_the_ece_of_the_report(
    predictions: Predictions, classes: dict[str, HeadClasses]
) -> None:
    part = make_head([i % 7 for i in range(500)], 7)
    report = make_report(
        Predictions(tuple(map(str, range(500))), {"verb": part}),
        {"verb": HeadClasses(tuple("abcdefg"), torch.ones(7).long())},
        run="", split="val", annotation_split="", views="",
    )  # fmt: skip

    bins = reliability(part)

    gap = np.nansum(np.abs(bins.confidence - bins.accuracy) * bins.count) / 500
    assert bins.count.sum() == 500
    assert gap == pytest.approx(report["heads"]["verb"]["ece"], abs=1e-6)  # fp32 there


def test_confusion_counts_and_names_the_pairs() -> None:
    # Class 0: right once, taken for 1 twice. Class 1: taken for 0 twice, of two clips.
    guesses, labels = [0, 1, 1, 0, 0, 2, 2], [0, 0, 0, 1, 1, 2, -1]
    scores = torch.eye(3)[guesses]
    part = HeadPredictions(scores, scores[:, None].half(), torch.tensor(labels))

    confusion = confusion_matrix(part)
    pairs = most_confused(confusion, "abc")

    assert confusion.tolist() == [[1, 2, 0], [2, 0, 0], [0, 0, 1]]
    told = [(pair.truth, pair.predicted, pair.count, pair.total) for pair in pairs]
    assert told == [("b", "a", 2, 2), ("a", "b", 2, 3)]


def test_the_hardest_clips_are_those_with_the_lowest_own_score() -> None:
    scores = torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.1, 0.3, 0.6], [1.0, 0.0, 0.0]])
    part = HeadPredictions(scores, scores[:, None].half(), torch.tensor([0, 0, 1, -1]))

    clips = hardest_clips(Predictions(tuple("wxyz"), {"verb": part}), "verb", "abc", number=2)

    assert [(clip.id, clip.truth) for clip in clips] == [("x", "a"), ("y", "b")]
    assert clips[0].score == pytest.approx(0.2)
    assert [name for name, _ in clips[0].guesses] == ["b", "c", "a"]


def test_a_history_has_a_column_a_class_and_unknown_rows_are_left_out(
    tmp_path: Path, classes: dict[str, HeadClasses]
) -> None:
    write_run(tmp_path)
    with (tmp_path / "difficulty.csv").open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow([1, "verb", "a class of another run", 1, 0.5, 0.5, 1.0])

    histories = read_class_histories(tmp_path / "difficulty.csv", classes)

    assert list(histories) == ["verb"]
    verb = histories["verb"]
    assert verb.epochs.tolist() == [0, 1]
    np.testing.assert_allclose(verb.difficulty[1], [0.25, 0.75, 1.0, np.nan])
    np.testing.assert_allclose(verb.weight, [[1, 1, 1, 1], [0.2, 0.9, 1.5, 1.0]], rtol=1e-6)
    assert verb.hardest(5).tolist() == [2, 1, 0]


def test_a_line_that_was_cut_short_is_no_event(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"event": "train", "epoch": 1}\n{"event": "tra')

    assert read_events(path) == [{"event": "train", "epoch": 1}]
    assert read_events(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    ("figure", "expected"),
    [
        (None, "-"),
        (0.1234, "12.3"),
        ([0.1, 0.25], "10.0 to 25.0"),
        ({"accuracy": None, "num_classes": 0}, "- (0)"),
        ({"accuracy": 0.5, "num_classes": 3}, "50.0 (3)"),
    ],
)
def test_a_figure_is_shown_in_percent(figure: object, expected: str) -> None:
    assert shown(figure) == expected


def test_a_page_is_due_once_a_minute(tmp_path: Path) -> None:
    page = tmp_path / "report_val.html"
    assert is_due(page)

    page.write_text("")
    assert not is_due(page)

    a_minute_ago = page.stat().st_mtime - 60
    os.utime(page, (a_minute_ago, a_minute_ago))
    assert is_due(page)


def test_a_page_is_written_again_when_training_went_on(
    tmp_path: Path, text: str, predictions: Predictions, classes: dict[str, HeadClasses]
) -> None:
    refresh_report_page(tmp_path, "val")
    assert list(tmp_path.iterdir()) == []  # no run, no page

    report = make_report(
        predictions, classes, run=HOSTILE, split="val", annotation_split=HOSTILE, views="1x1",
        split_fed=["selection", "difficulty"],
    )  # fmt: skip
    save_report(tmp_path / "report_val.json", report)
    save_predictions(tmp_path / "predictions_val.npz", predictions, classes)
    write_run(tmp_path)
    page = tmp_path / "report_val.html"
    page.write_text("older than the run")
    os.utime(page, (0, 0))
    refresh_report_page(tmp_path, "val")
    assert page.read_text(encoding="utf-8") == text  # the same run is the same page

    later = (tmp_path / "metrics.jsonl").stat().st_mtime + 1
    page.write_text("newer than the run")
    os.utime(page, (later, later))
    refresh_report_page(tmp_path, "val")
    assert page.read_text() == "newer than the run"


def test_106_classes_and_2022_clips_fit_in_five_megabytes(tmp_path: Path) -> None:
    labels = (torch.arange(2022) % 106).tolist()
    ids = tuple(f"clip {i}" for i in range(2022))
    predictions = Predictions(ids, {"a": make_head(labels, 106)})
    names = tuple(f"Divide/Pull Apart something {i}" for i in range(106))
    classes = {"a": HeadClasses(names, torch.arange(106))}
    log = FileLog(tmp_path, tensorboard=False)
    generator = torch.Generator().manual_seed(0)
    for epoch in range(40):
        accuracy, weights = torch.rand(2, 106, generator=generator)
        log.write_difficulty(
            epoch, "a", names=names, train_counts=classes["a"].train_counts, accuracy=accuracy,
            difficulty=1 - accuracy, weights=weights,
        )  # fmt: skip
    log.close()

    text = write_page(tmp_path, predictions, classes)

    assert len(text) < 5_000_000 / 3  # three such heads
    page = Page(text)
    assert [len(page.table(title)) for title in ("class", "clip")] == [1 + 106, 1 + 12]


SORTS = """
<script>
const table = document.querySelector("table.sortable");
const order = () => [...table.tBodies[0].rows].map(row => row.cells[1].textContent.trim());
const told = [order().join(" ")];
for (const column of [1, 1, 3, 3, 0]) {
  const button = table.tHead.rows[0].cells[column].querySelector("button");
  button.focus();
  document.activeElement.click();
  told.push(order().join(" ") + " " + table.tHead.rows[0].cells[column].getAttribute("aria-sort"));
}
document.title = told.join("; ");
</script>
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the command chromium")
def test_a_browser_sorts_the_table_without_a_word_on_its_console(
    tmp_path: Path, predictions: Predictions, classes: dict[str, HeadClasses]
) -> None:
    # Accuracies: "open" 1, hostile 0.5, "切る" 0, "never" none. Training clips: 101, 20, 3, 0.
    scores = torch.eye(4)[[0, 0, 0, 0, 1, 0, 0, 0, 0, 0]]
    verb = HeadPredictions(scores, scores[:, None].half(), predictions.heads["verb"].labels)
    text = write_page(tmp_path, Predictions(predictions.ids, {"verb": verb}), classes)
    page = tmp_path / "sorted.html"
    page.write_text(text.replace("</body>", SORTS + "</body>"), encoding="utf-8")

    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip

    title = re.search("<title>(.*)</title>", done.stdout)
    assert title is not None
    assert title[1].split("; ") == [
        "101 20 3 0",
        "0 3 20 101 ascending",
        "101 20 3 0 descending",
        "3 20 101 0 ascending",  # without an accuracy comes last
        "101 20 3 0 descending",
        title[1].split("; ")[5],  # by name: as the browser's language has it
    ]
    assert title[1].endswith("ascending")
    assert "CONSOLE" not in done.stderr
