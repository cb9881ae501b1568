"""`auto` with several seeds: how much of its ranking is chance.

`python -m benchmarks.quality.auto.seeds FOLDER [SET ...]` measures it (`sets` describes FOLDER). It
writes the table of docs/auto.md, and its figures to benchmarks/results/auto.json.

A seed draws the first factors and which events are predicted to learn the weights of the mix. The
stream and the judged users are the same for all seeds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from benchmarks.pages import write_between
from benchmarks.quality.auto.benchmark import PAGE, RESULTS, FewUsers
from benchmarks.quality.auto.sets import SETS
from benchmarks.quality.data import Division
from benchmarks.quality.streamed import one_pass
from livefactor_kernels.spec.presets import preset

SEEDS = 10


def measure(division: Division) -> np.ndarray:
    """NDCG@10 of `auto` after one pass with each seed, float64[SEEDS]."""
    judge = FewUsers(division)
    return np.array(
        [
            judge.figures(one_pass(preset("auto", seed=seed), division.learned).scores)["ndcg10"]
            for seed in range(SEEDS)
        ]
    )


def table(figures: dict[str, float | str]) -> str:
    """The table of the page."""
    lines = ["| data | mean | standard deviation | worst | best | mean, of tuned iALS |", "|---" * 6 + "|"]
    for name in SETS:
        if f"seeds_{name}_mean" in figures:
            cells = [float(figures[f"seeds_{name}_{key}"]) for key in ("mean", "deviation", "worst", "best")]
            cells.append(cells[0] / float(figures[f"auto_{name}_ials"]))
            lines.append(f"| {name} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measures the sets, and writes the table and the figures."""
    folder, names = Path(sys.argv[1]), sys.argv[2:] or list(SETS)
    for name in names:
        found = measure(SETS[name](folder))
        figures = json.loads(RESULTS.read_text(encoding="utf-8"))
        own = {
            "mean": found.mean(),
            "deviation": found.std(ddof=1),
            "worst": found.min(),
            "best": found.max(),
        }
        figures |= {f"seeds_{name}_{key}": float(value) for key, value in own.items()}
        print(name, found.round(4), flush=True)
        RESULTS.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        write_between(PAGE, "benchmarks.quality.auto.seeds", table(figures))


if __name__ == "__main__":
    main()
