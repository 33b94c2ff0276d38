"""The pages hold: links and paths exist, commands and snippets run, errors are the code's."""

from __future__ import annotations

import ast
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from cdb_video.config_file import load_config
from cdb_video.config_reference import config_reference
from cdb_video.experiments.runs import MAY_DIFFER_ON_RESUME
from cdb_video.models.backbones import BACKBONES

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
PATH = re.compile(r"(?<![\w/.-])(?:(?:configs|tools)/[\w/.-]+\.(?:yaml|py)|docs/\w+\.md)")


def test_relative_links_point_to_files() -> None:
    links = [(document, link) for document in DOCUMENTS for link in LINK.findall(read(document))]
    relative = [(d, link) for d, link in links if not re.match(r"[a-z]+:", link)]

    assert relative
    assert [(d.name, link) for d, link in relative if not (d.parent / link).exists()] == []


def test_links_into_a_page_point_to_headings() -> None:
    links = [
        (document.name, link, (document.parent / (page or document.name)).read_text(), anchor)
        for document in DOCUMENTS
        for link, page, anchor in re.findall(r"\]\((([\w/.]*)#([\w-]+))\)", read(document))
    ]

    assert links
    # As GitHub makes them: lower case, without punctuation, hyphens for spaces.
    assert [
        (name, link)
        for name, link, text, anchor in links
        if anchor
        not in {
            re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
            for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        }
    ] == []


def test_recipes_tools_and_documents_that_are_named_exist() -> None:
    named = {(d.name, path) for d in DOCUMENTS for path in PATH.findall(read(d))}

    assert "tools/train.py" in {path for _, path in named}
    assert sorted((d, path) for d, path in named if not (ROOT / path).exists()) == []


def test_every_page_is_linked_from_the_readme() -> None:
    readme = read(ROOT / "README.md")

    pages = [f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")]
    assert [page for page in pages if page not in readme] == []


def test_the_configuration_page_is_what_the_fields_say() -> None:
    page = read(ROOT / "docs/configuration.md")

    assert page == config_reference(), (
        "python -m cdb_video.config_reference > docs/configuration.md"
    )
    # By hand, a key of each kind.
    for row in (
        "| `data.num_workers` | whole number from 0 | `2` | Loader processes a rank; 0",
        "| `model.dropout` | number from 0, below 1 | `0.5` | On the features, before the heads. |",
        "| `loss.tau` | number from 0 or `dynamic`, `dynamic_release` | `dynamic` | cdb: how",
        "| `augment.scale` | [number above 0, number above 0] | `[1.0, 1.25]` | jitter: least",
        "| `model.heads` | list of text or `null` | `null` | Labels to learn,",
        "| `augment.flip` | `true`, `false` | `true` | Mirror left and right, every second clip. |",
    ):
        assert f"\n{row}" in page


def tool_commands() -> list[tuple[str, list[str]]]:
    """(page, words from the tool's path on) of every command in the pages."""
    found = []
    for document in DOCUMENTS:
        for block in re.findall(r"```bash\n(.*?)```", read(document), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                start = [i for i, word in enumerate(words) if re.match(r"tools/\w+\.py$", word)]
                if start:
                    found.append((document.name, words[start[0] :]))
    return found


def test_every_command_of_the_pages_is_one_that_the_tools_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = tool_commands()
    pages = {page for page, _ in commands}
    assert {"egtea.md", "epic100.md", "custom_data.md", "multi_node.md"} <= pages
    monkeypatch.syspath_prepend(ROOT / "tools")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    tools = {words[0]: runpy.run_path(str(ROOT / words[0])) for _, words in commands}

    for page, words in commands:
        monkeypatch.setattr(sys, "argv", words)
        try:
            arguments = tools[words[0]]["parse_arguments"]()
        except SystemExit:
            pytest.fail(f"{page}: {shlex.join(words)}")
        if words[0] == "tools/train.py":
            load_config(arguments.config, arguments.overrides)


@pytest.mark.slow
def test_the_notebook_of_own_parts_runs(
    tmp_path: Path,
    tiny_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for row in (tiny_data / "clips.csv").read_text().splitlines()[1:]:
        name, verb, _, split = row.split(",")
        (tmp_path / "my_videos" / split / verb).mkdir(parents=True, exist_ok=True)
        shutil.copy(tiny_data / name, tmp_path / "my_videos" / split / verb / name)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(BACKBONES, "small", None)  # type: ignore[arg-type]  # and taken back

    cells: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", read(ROOT / "docs/extending.md"), re.DOTALL):
        exec(code, cells)

    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "tensor([6, 6, 6])"
    assert "1.0" in printed


def test_pages_with_python_are_run_by_a_test() -> None:
    pages = {document.name for document in DOCUMENTS if "```python" in read(document)}

    # README: test_readme.py; export.md: test_export.py; predict.md: test_predict_tool.py.
    run = {"README.md", "data_format.md", "export.md", "extending.md", "predict.md"}
    # Ray is no dependency: what its snippet takes of ours is looked up below.
    assert pages == run | {"multi_node.md"}


def test_what_rays_snippet_imports_of_ours_is_there() -> None:
    text = read(ROOT / "docs" / "multi_node.md")
    snippet = text.split("```python\n")[1].split("```")[0]

    ours = [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(snippet))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("tools")
        for alias in node.names
    ]

    assert ours == [("tools.train", "main")]
    defined = ast.parse(read(ROOT / "tools" / "train.py")).body
    assert "main" in {node.name for node in defined if isinstance(node, ast.FunctionDef)}


def error_templates() -> list[re.Pattern[str]]:
    """Every formatted text of the package that has 20 letters of its own."""
    patterns = []
    for path in (ROOT / "cdb_video").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.JoinedStr):
                continue
            fixed = [part.value for part in node.values if isinstance(part, ast.Constant)]
            if sum(map(len, map(str, fixed))) >= 20:
                parts = [
                    re.escape(str(part.value)) if isinstance(part, ast.Constant) else "(.*)"
                    for part in node.values
                ]
                patterns.append(re.compile("".join(parts)))
    return patterns


def test_errors_of_the_troubleshooting_page_are_those_of_the_code() -> None:
    page = read(ROOT / "docs/troubleshooting.md")
    lines = [
        line
        for block in re.findall(r"```text\n(.*?)```", page, re.DOTALL)
        for line in block.splitlines()
    ]
    templates = error_templates()

    assert len(lines) >= 15
    assert [line for line in lines if not any(t.fullmatch(line) for t in templates)] == []
    assert not any(t.fullmatch("my_videos/b.mp4: this is no error of ours") for t in templates)


def test_the_keys_that_may_differ_on_resume_are_those_that_are_listed() -> None:
    page = read(ROOT / "docs/multi_node.md")
    [listed] = re.findall(r"These keys may differ:\n\n(.*?)\.\n\n", page, re.DOTALL)

    assert set(re.findall(r"`([\w.]+)`", listed)) == MAY_DIFFER_ON_RESUME - {"run.name"}


def read(document: Path) -> str:
    return document.read_text(encoding="utf-8")
