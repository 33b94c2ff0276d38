"""What the tools share: one line for an error a user can cause, and the exit status."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from cdb_video.errors import StoppedError, UserError

USER_ERROR = 2
STOPPED = 75
"""sysexits.h's EX_TEMPFAIL: nothing is wrong, try again later."""
INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""


def run_tool(main: Callable[[], int | None]) -> None:
    """Run a tool's `main` and exit.

    0 is success, 2 an error a user can cause (one line, no traceback), 75 a run that was asked to
    stop and saved its state, 130 is Ctrl-C. Anything else is our mistake and keeps its traceback.
    """
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except StoppedError as stop:
        print(stop, file=sys.stderr)
        sys.exit(STOPPED)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def new_file(text: str) -> Path:
    """A path in a folder that is there, for argparse: minutes of work are not lost at the end."""
    path = Path(text)
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path.parent}: no such folder")
    return path
