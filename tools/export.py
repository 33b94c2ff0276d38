"""Write a run's model as one file that needs neither this package nor its configuration.

    python tools/export.py runs/demo-1 demo.onnx      for onnxruntime; needs 'cdb-video[export]'
    python tools/export.py runs/demo-1 demo.pt2       for torch.export.load

RUN is a run's folder or one checkpoint in it. The file takes uint8 RGB clips, any number at a time,
and gives the scores of each head; class names and the clip's shape and sampling are in its
metadata. docs/export.md has a consumer in ten lines. A file whose scores are not the model's is not
written.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cdb_video.command_line import run_tool
from cdb_video.evaluation.export import CHECKED_BATCHES
from cdb_video.experiments.export import export_run


def main() -> None:
    """Parse, export, print."""
    arguments = parse_arguments()
    run, difference = export_run(arguments.run, arguments.out)
    size = arguments.out.stat().st_size / 1e6
    batches = " and ".join(str(batch) for batch in CHECKED_BATCHES)
    print(f"{arguments.out}: {run.checkpoint}, {size:.1f} MB")
    print(
        f"largest difference of a score from the run's: {difference:.1e}, in batches of {batches}"
    )


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("out", type=Path, metavar="OUT", help="OUT.onnx or OUT.pt2")
    return parser.parse_args()


if __name__ == "__main__":
    run_tool(main)
