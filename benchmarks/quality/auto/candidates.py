"""What challengers of `auto` could gain that differ in one setting.

`python -m benchmarks.quality.auto.candidates FOLDER` measures them (`sets` describes FOLDER). It
writes the table of docs/auto.md, and its figures to benchmarks/results/auto.json.

They learn like the presets (`benchmark`). `counts` is the model of `auto` with the weights of all
experts but counts and repeats set to 0, and that of popularity to its minimum.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.pages import write_between
from benchmarks.quality.auto.benchmark import PAGE, RESULTS, FewUsers
from benchmarks.quality.auto.sets import SETS
from benchmarks.quality.data import Division
from benchmarks.quality.streamed import Learner, one_pass
from livefactor_kernels.reading import (
    COUNTS,
    GROUPS,
    MIX,
    NEIGHBOR_WEIGHTS,
    NEIGHBORS,
    POPULARITY,
    POPULARITY_MIN,
    REPEATS,
)
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.spec.presets import preset

UNOBSERVED = (0.03, 0.1, 0.3, 1.0)


def with_unobserved(weight: float) -> ModelSpec:
    """Preset `auto` with a fixed weight of pairs without an event."""
    spec = preset("auto")
    return replace(spec, solve=replace(spec.solve, unobserved_density=0.0, unobserved=weight))


def keep_counts(learner: Learner) -> None:
    """Leaves counts and repeats alone in the mix of a learned model."""
    sections = {name: section.copy() for name, section in learner.model.state().items()}
    section = sections[MIX]
    section[NEIGHBOR_WEIGHTS:] = 0.0
    weights = section[: GROUPS * NEIGHBORS].reshape(GROUPS, NEIGHBORS)
    weights[:, :COUNTS] = 0.0
    # A group that learned nothing for them has the counts alone.
    weights[~weights[:, COUNTS : REPEATS + 1].any(axis=1), COUNTS:REPEATS] = 1.0
    weights[:, POPULARITY] = POPULARITY_MIN
    learner.model.load_state(sections | {"events": np.zeros(1, np.uint64)})


def measure(division: Division) -> dict[str, float]:
    """NDCG@10 of each candidate on one set."""
    judge, learned = FewUsers(division), division.learned
    learner = one_pass(preset("auto"), learned)
    figures = {"auto": judge.figures(learner.scores)["ndcg10"]}
    keep_counts(learner)
    figures["counts"] = judge.figures(learner.scores)["ndcg10"]
    for weight in UNOBSERVED:
        made = one_pass(with_unobserved(weight), learned)
        figures[f"unobserved_{weight:g}"] = judge.figures(made.scores)["ndcg10"]
    return figures


def main() -> None:
    """Measures all sets, and writes the table and the figures."""
    folder = Path(sys.argv[1])
    figures = json.loads(RESULTS.read_text(encoding="utf-8"))
    heads = " | ".join(f"{weight:g}" for weight in UNOBSERVED)
    lines = [f"| data | `auto` | counts and repeats alone | {heads} |", "|---" * (3 + len(UNOBSERVED)) + "|"]
    for name, read in SETS.items():
        found = measure(read(folder))
        figures |= {f"candidates_{name}_{key}": value for key, value in found.items()}
        lines.append(f"| {name} | " + " | ".join(f"{value:.3f}" for value in found.values()) + " |")
        print(lines[-1], flush=True)
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    write_between(PAGE, "benchmarks.quality.auto.candidates", "\n".join(lines))


if __name__ == "__main__":
    main()
