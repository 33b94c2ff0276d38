"""Libraries that need not be installed: which are there, and why another is not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version


def why_missing(library: str | None) -> str | None:
    """Why a library does not import; None where it does. In a process of its own, as some die."""
    if library is None:
        return None
    command = [sys.executable, "-W", "ignore", "-c", f"import {library}"]
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if "Error" in line.split(":")[0]]
    return lines[-1] if lines else f"exit status {done.returncode}"


def installed_versions(libraries: Sequence[str]) -> dict[str, str]:
    """Library -> version, of those that are there."""
    found = {}
    for library in libraries:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
