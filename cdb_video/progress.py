"""A progress bar on a terminal, a line now and then elsewhere, nothing where nobody reads."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

LINE_EVERY_S = 10.0


def plain_console(**options: Any) -> Console:
    """A console that prints names as they are: `tap [on/off]` is no markup, `:cat:` no emoji.

    Args:
        options: rich's own.

    """
    return Console(markup=False, emoji=False, **options)


class Progress:
    """Shows how far some work is: `advance` after each unit, with figures worth showing.

    Args:
        description: such as "epoch 3/30".
        total: units of work.
        unit: what the speed counts, such as "clips".
        done: units that were done before; the speed leaves them out.
        quiet: show nothing (ranks other than 0).

    """

    def __init__(
        self, description: str, *, total: int, unit: str, done: int = 0, quiet: bool = False
    ) -> None:
        self.description = description
        self.total = total
        self.unit = unit
        self.done = float(done)
        self._before = done
        self._started = self._last_line = time.monotonic()
        self._console = plain_console(stderr=True, quiet=quiet)
        self._bar: RichProgress | None = None
        if self._console.is_terminal and not quiet:
            self._bar = RichProgress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}", markup=False),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task(description, total=total, completed=done, figures="")

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    @property
    def speed(self) -> float:
        """Units a second since the start."""
        return (self.done - self._before) / max(time.monotonic() - self._started, 1e-9)

    def reach(self, done: float, total: float) -> None:
        """Say how far the work is, where the total is only known now."""
        self.total = int(total)
        if self._bar:
            self._bar.update(self._task, total=total)
        self.advance(done - self.done)

    def advance(self, units: float = 1, **figures: float) -> None:
        """Say that `units` more are done; figures such as loss=0.52 are shown beside the speed."""
        self.done += units
        text = f"{self.speed:.1f} {self.unit}/s"
        text = "  ".join([text, *(f"{name} {value:.4g}" for name, value in figures.items())])
        if self._bar:
            self._bar.update(self._task, advance=units, figures=text)
        elif time.monotonic() - self._last_line > LINE_EVERY_S:
            self._last_line = time.monotonic()
            left = (self.total - self.done) / max(self.speed, 1e-9)
            self._console.print(
                f"{self.description}: {self.done:g}/{self.total} {text}, {left:.0f} s left",
                highlight=False,
            )
