"""`report_<split>.html`, read as a browser would; in a real one where there is one."""

import base64
import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from cdb_video.datasets.annotations import VideoRecord
from cdb_video.evaluation.predictions import HeadClasses, HeadPredictions, Predictions
from cdb_video.evaluation.report import make_report
from cdb_video.evaluation.report_page import write_report_page
from tests.evaluation.report_pages import (
    HOSTILE,
    TRAIN_COUNTS,
    VERBS,
    Page,
    make_head,
    write_page,
    write_run,
)


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

    # Four curves; of the one head that has labels accuracy, confusion, calibration, and history.
    assert len(pictures) == 4 + 3 + 2
    for svg in pictures:
        links = [v for node in svg.iter() for k, v in node.attrib.items() if k.endswith("href")]
        assert all(link.startswith(("#", "data:image/png")) for link in links)
    words = {node.text for svg in pictures for node in svg.iter() if node.tag.endswith("text")}
    assert "切る" in words
    assert "mean class accuracy" in words


def test_the_figures_stand_in_one_table(text: str, predictions: Predictions) -> None:
    figures = Page(text).table("figure")
    counts = predictions.heads["verb"].counts

    assert figures["labelled videos"][:2] == ["8", "0"]
    assert figures["classes in the split"][:2] == ["3 of 4", "0 of 2"]
    assert figures["top-1"][0].startswith(f"{100 * counts.top1:.1f}")
    assert figures["top-1"][1] == "-"
    low, high = make_report(
        predictions,
        {"verb": HeadClasses(VERBS, TRAIN_COUNTS), "adverb": HeadClasses("fs", TRAIN_COUNTS[2:])},
        run="",
        split="",
        annotation_split="",
        views="",
    )["heads"]["verb"]["mean_class_accuracy_interval"]
    interval = f"{100 * low:.1f} to {100 * high:.1f}"
    assert figures["mean class accuracy"][0] == f"{100 * counts.mean_class_accuracy:.1f}{interval}"
    many = 100 * float(counts.class_accuracy[0])
    assert figures["many-shot"][0].startswith(f"{many:.1f} (1)")
    assert figures["many-shot"][1] == "- (0)"
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
    assert points[::2] == ["89,14.5", "89,5.5", "89,1.0", ""]
    # Weights, of the largest, 1.5: first 1, then 0.2, 0.9, 1.5 and 1.
    assert points[1::2] == ["1,7.0 89,16.6", "1,7.0 89,8.2", "1,7.0 89,1.0", "1,7.0 89,7.0"]


def test_a_head_without_labels_says_so_and_has_no_picture(text: str) -> None:
    headings = Page(text).headings

    assert "No video of this split has a label of this head." in text
    assert headings[headings.index("adverb") :] == ["adverb", "Classes", "Config and versions"]


def test_what_the_split_fed_is_said(text: str) -> None:
    assert "This split also fed: selection, difficulty." in text


def test_a_folder_without_a_run_has_a_page_without_its_parts(
    tmp_path: Path, predictions: Predictions, classes: dict[str, HeadClasses]
) -> None:
    page = Page(write_page(tmp_path, predictions, classes))

    assert "Training" not in page.headings
    assert "Difficulty and weight through training" not in page.headings
    assert "polyline" not in page.tags
    assert "details" not in page.tags
    assert page.table("class")["never"] == ["0", "0", "-"]
    assert page.clips == 8


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


def test_subsets_skipped_clips_and_agreement_of_heads_are_shown(
    tmp_path: Path, predictions: Predictions, classes: dict[str, HeadClasses]
) -> None:
    # Every verb goes with noun 0; the action heads' names are theirs.
    verb = predictions.heads["verb"]
    noun = make_head([0] * 8 + [-1] * (len(verb.labels) - 8), 1)
    heads = {"verb": verb, "noun": noun, "action": verb}
    names = {"verb": VERBS, "noun": ("cup",), "action": tuple(f"{name} cup" for name in VERBS)}
    known = {
        head: HeadClasses(part, TRAIN_COUNTS if head != "noun" else torch.tensor([124]))
        for head, part in names.items()
    }
    together = Predictions(predictions.ids, heads)
    report = make_report(
        together, known, run="r", split="val", annotation_split="v", views="1x1",
        subsets={HOSTILE: predictions.ids[:3]}, skipped=[("lost clip", HOSTILE)],
    )  # fmt: skip

    path = write_report_page(tmp_path, report, together, known, live=True)
    text = path.read_text(encoding="utf-8")
    page = Page(text)

    assert list(page.table("subset")) == ["subset", "the whole split", HOSTILE]
    assert page.table("subset")["the whole split"][0] == "8"
    assert page.table("subset")[HOSTILE][0] == "3"
    assert list(page.table("action by"))[1:] == [
        "its own head",
        "verb x noun",
        "action x verb x noun",
    ]
    assert page.table("action by")["its own head"][0] == f"{100 * verb.counts.top1:.1f}"
    assert "1 video could not be read and is in no figure." in text
    assert "<li>lost clip <small>&lt;img src=x" in text
    assert any(a.get("http-equiv") == "refresh" for a in page.attributes)


def test_a_split_without_labels_says_so(tmp_path: Path) -> None:
    text = write_page(
        tmp_path,
        Predictions(("a", "b"), {"verb": make_head([-1, -1], 2)}),
        {"verb": HeadClasses(("x", "y"), torch.tensor([2, 1]))},
    )

    assert "No video of this split has a label: there are predictions, and no figures." in text
    assert "refresh" not in text  # training is done


def test_pictures_are_given_to_whoever_asks(
    tmp_path: Path, predictions: Predictions, classes: dict[str, HeadClasses]
) -> None:
    write_run(tmp_path)
    given: list[str] = []

    write_page(tmp_path, predictions, classes, on_figures=given.extend)

    names = ("accuracy", "confusion", "reliability", "difficulty", "weight")
    assert given == [f"verb/{name}" for name in names]


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
         "--lang=en-US", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
         page.as_uri()],
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
        "20 0 101 3 ascending",  # "<img", "never", "open", "切る"
    ]
    assert "CONSOLE" not in done.stderr
