"""tools/slurm/train.sbatch with stand-ins for srun and scontrol: whether a job is requeued."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

SRUN = """#!/bin/bash
printf '%s\\n' "$@" > "$STUBS/asked"
if [ -n "$MARK" ]; then mkdir -p "$MARK" && echo '{}' > "$MARK/stopped.json"; fi
exit "$STATUS"
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo node7; else echo "$@" >> "$STUBS/requeued"; fi
"""


def batch(
    folder: Path, *arguments: str, mark: Path | None = None, status: int = 1
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """The script as Slurm starts it; the folder of what the stand-ins were asked."""
    stubs = folder / "stubs"
    stubs.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (stubs / name).write_text(text)
        (stubs / name).chmod(0o755)
    environment = {
        "PATH": f"{stubs}:{Path(sys.executable).parent}:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "STUBS": str(stubs),
        "MARK": str(mark or ""),
        "STATUS": str(status),
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_NNODES": "2",
        "SLURM_JOB_ID": "42",
    }
    command = ["bash", "tools/slurm/train.sbatch", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done, stubs


def written(folder: Path) -> Path:
    """A configuration that names the run and its folder by itself."""
    path = folder / "mine.yaml"
    path.write_text(f"run: {{name: mine, output_dir: '{folder / 'runs'}'}}\n")
    return path


def test_a_run_that_stopped_and_saved_is_requeued_wherever_its_folder_is_written(
    tmp_path: Path,
) -> None:
    run = tmp_path / "runs" / "mine"

    done, stubs = batch(tmp_path, str(written(tmp_path)), "data.root=x", mark=run)

    assert (stubs / "requeued").read_text() == "requeue 42\n", done.stderr
    assert done.returncode == 1  # srun's
    asked = (stubs / "asked").read_text().splitlines()
    assert asked[0] == "torchrun"
    assert "--rdzv_endpoint=node7:29500" in asked
    assert asked[-4:] == ["tools/train.py", str(written(tmp_path)), "data.root=x", "--resume"]


def test_a_run_that_failed_is_not_requeued_by_an_earlier_jobs_mark(tmp_path: Path) -> None:
    run = tmp_path / "elsewhere" / "mine"
    run.mkdir(parents=True)
    (run / "stopped.json").write_text("{}")
    config = str(written(tmp_path))

    done, stubs = batch(tmp_path, config, f"run.output_dir={tmp_path / 'elsewhere'}", status=3)

    assert not (stubs / "requeued").exists()
    assert done.returncode == 3
    assert f"ended with status 3, and no {run}/stopped.json: not requeued" in done.stderr


def test_a_run_without_a_name_or_with_a_wrong_key_is_not_started(tmp_path: Path) -> None:
    done, stubs = batch(tmp_path, "configs/finetune.yaml")
    assert (done.returncode, done.stderr) == (2, "run.name=NAME is needed\n")
    assert not (stubs / "asked").exists()

    (tmp_path / "again").mkdir()
    done, stubs = batch(tmp_path / "again", "configs/finetune.yaml", "optim.lrr=1")
    assert done.returncode == 2
    assert "optim.lrr: no such key; did you mean 'lr'?" in done.stderr
    assert not (stubs / "asked").exists()
