"""The curve of docs/results.md: balanced error of two classes against the majority's share.

python docs/results/two_class_curve.py
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# So that the same numbers make the same file.
plt.rcParams["svg.hashsalt"] = "two-class-curve"
HERE = Path(__file__).parent
SHOWN = 100


def main() -> None:
    """Read the comparisons beside this file and draw."""
    files = sorted(HERE.glob("compare-fashion-9v7-*.json"))
    shares = [float(file.stem.rpartition("-")[2]) for file in files]
    tables = [
        {row["arm"]: row["mean_class_accuracy"] for row in read(file)["heads"]["label"]["table"]}
        for file in files
    ]
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for arm in tables[0]:
        means = [SHOWN * (1 - table[arm]["mean"]) for table in tables]
        spread = [SHOWN * table[arm]["standard_deviation"] for table in tables]
        axes.errorbar(range(len(shares)), means, spread, label=arm, capsize=3, marker="o")
    axes.set_xticks(range(len(shares)), [f"{SHOWN * share:g}" for share in shares])
    axes.set_xlabel("share of the majority in training, %")
    axes.set_ylabel("balanced test error, %")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "two-class-curve.svg", metadata={"Date": None})


def read(file: Path) -> dict:
    """A comparison."""
    return json.loads(file.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
