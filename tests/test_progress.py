"""What people see of a long piece of work: on a terminal, in a log file, on other ranks."""

import re

import pytest

from cdb_video import progress
from cdb_video.progress import Progress


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    """No variable that tells rich about a terminal."""
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def _every_line(monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY_S", -1.0)


@pytest.mark.usefixtures("_every_line")
def test_a_log_gets_lines_with_speed_figures_and_time_left(capsys):
    with Progress("epoch 3/30", total=40, unit="clips") as bar:
        bar.advance(10)
        bar.advance(10, loss=0.51234567, lr=0.01)

    captured = capsys.readouterr()
    first, second = captured.err.splitlines()
    assert captured.out == ""  # which belongs to results
    assert re.fullmatch(r"epoch 3/30: 10/40 [\d.]+ clips/s, \d+ s left", first)
    assert re.fullmatch(
        r"epoch 3/30: 20/40 [\d.]+ clips/s  loss 0\.5123  lr 0\.01, \d+ s left", second
    )


def test_a_log_gets_no_line_before_its_time(capsys):
    with Progress("evaluating", total=3, unit="videos") as bar:
        for _ in range(3):
            bar.advance()

    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("_every_line")
@pytest.mark.parametrize("terminal", [False, True])
def test_other_ranks_are_quiet(capsys, monkeypatch, terminal):
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    with Progress("evaluating", total=3, unit="videos", quiet=True) as bar:
        bar.advance(2, loss=1.0)

    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_that_goes_away(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")

    with Progress("epoch 1/2", total=4, unit="clips") as bar:
        bar.advance(3, loss=0.25)

    captured = capsys.readouterr()
    assert captured.out == ""
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", captured.err)
    assert "epoch 1/2" in text
    assert "3/4" in text
    assert "clips/s  loss 0.25" in text
    assert captured.err.rstrip().endswith("\x1b[2K")  # the line is erased


@pytest.mark.usefixtures("_every_line")
def test_work_of_which_the_size_is_known_later_says_how_far_it_is(capsys):
    with Progress("rendering", total=0, unit="videos") as bar:
        bar.reach(2, 8)
        bar.reach(5, 8)

    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("rendering: 2/8 ")
    assert second.startswith("rendering: 5/8 ")
    assert bar.done == 5


def test_speed_is_units_over_seconds(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    bar = Progress("epoch", total=100, unit="clips", quiet=True)
    now[0] += 4
    bar.advance(10)

    assert bar.speed == 2.5


@pytest.mark.usefixtures("_every_line")
def test_a_name_that_looks_like_markup_is_printed_as_it_is(capsys):
    with Progress("[/x] :cat:.mp4", total=2, unit="windows") as bar:
        bar.advance(1)

    assert "[/x] :cat:.mp4: 1/2" in capsys.readouterr().err
