"""Measure the reliability table and write it to a file.

    python tests/reliability/run.py                     the quick lane
    python tests/reliability/run.py --full              the full lane
    python tests/reliability/run.py --only corruption   one row

Rows run one after another. The exit status is 1 when a row fails.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
# What the rows start has to find the package and `tests` as well.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
# Processes with two threads each wait for one another on two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import av  # noqa: E402
from rich.table import Table  # noqa: E402

from cdb_video.progress import Progress, plain_console  # noqa: E402
from cdb_video.training.run_folder import git_state, versions  # noqa: E402
from tests.reliability.lane import adopt_orphans, measure  # noqa: E402
from tests.reliability.outcome import Row  # noqa: E402
from tests.reliability.rows import ROWS  # noqa: E402

SHOWN = 5
"""Failures that the terminal shows of a row; the file has all of them."""


def main() -> int:
    """Measure, write, print."""
    arguments = parse_arguments()
    rows = [row for row in ROWS if not arguments.only or row.name in arguments.only]
    adopt_orphans()
    start = datetime.now(UTC)
    measured: list[dict[str, Any]] = []
    table = {
        "lane": "full" if arguments.full else "quick",
        "started": start.isoformat(timespec="seconds"),
        "seed": arguments.seed,
        "versions": all_versions(),
        "git": git_state(),
        "rows": measured,
    }
    with Progress("reliability", total=len(rows), unit="rows") as progress:
        for row in rows:
            print(f"{row.name}: {row.promise}", file=sys.stderr)
            measured.append(measure_row(row, full=arguments.full, seed=arguments.seed))
            # After every row, so that an interruption loses one at most.
            table["seconds"] = round(sum(one["seconds"] for one in measured), 1)
            arguments.json.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")
            progress.advance(1)
    show(measured)
    print(f"{arguments.json}: {len(rows)} rows in {table['seconds']} s")
    return int(any(one["num_failures"] for one in measured))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [row.name for row in ROWS]
    parser.add_argument("--full", action="store_true", help="the full lane's counts")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--seed", type=int, default=0, help="the cases are drawn from it")
    parser.add_argument("--json", type=Path, default=Path("reliability.json"), metavar="FILE")
    return parser.parse_args()


def measure_row(row: Row, *, full: bool, seed: int) -> dict[str, Any]:
    """The row as it stands in the file."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"{row.name}-") as folder:
        outcome = measure(row, row.full if full else row.quick, seed, Path(folder))
    return {
        "name": row.name,
        "promise": row.promise,
        "tried": outcome.tried,
        "num_failures": len(outcome.failures),
        "failures": list(outcome.failures),
        "figures": dict(outcome.figures),
        "seconds": round(time.monotonic() - start, 1),
        "seed": seed,
    }


def all_versions() -> dict[str, str]:
    """Of Python, of the packages, and of the libraries within PyAV."""
    libraries = {name: ".".join(map(str, number)) for name, number in av.library_versions.items()}
    ffmpeg = getattr(av, "ffmpeg_version_info", "unknown")
    return {**versions(), "ffmpeg": ffmpeg, **libraries}


def show(measured: list[dict[str, Any]]) -> None:
    """The table on the terminal."""
    table = Table("row", "tried", "failed", "seconds", "figures", title="reliability")
    for one in measured:
        figures = ", ".join(f"{name} {value:g}" for name, value in one["figures"].items())
        failed = str(one["num_failures"])
        table.add_row(one["name"], str(one["tried"]), failed, str(one["seconds"]), figures)
    console = plain_console()
    console.print(table)
    for one in measured:
        for line in one["failures"][:SHOWN]:
            console.print(f"{one['name']}: {line}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
