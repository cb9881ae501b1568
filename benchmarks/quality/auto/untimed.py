"""`auto` on sets with times, of which the model gets the order alone.

`python -m benchmarks.quality.auto.untimed FOLDER [SET ...]` measures NDCG@10 after one pass (`sets`
describes FOLDER): with times, and without them with `mix.baskets` on and off. It writes the table
of docs/auto.md, and its figures to benchmarks/results/auto.json.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.pages import write_between
from benchmarks.quality.auto.benchmark import PAGE, RESULTS, FewUsers
from benchmarks.quality.auto.sets import SETS
from benchmarks.quality.streamed import one_pass
from livefactor_kernels.spec.presets import preset

TIMED_SETS = ("ml100k", "ml1m", "instruments", "retail")
WAYS = ("timed", "baskets", "plain")


def measure(folder: Path, name: str) -> dict[str, float]:
    """The figures of one set."""
    division = SETS[name](folder)
    judge, spec = FewUsers(division), preset("auto")
    without = replace(spec, mix=replace(spec.mix, baskets=False))
    untimed = division.learned.untimed()
    runs = ((spec, division.learned), (spec, untimed), (without, untimed))
    return {
        f"untimed_{name}_{way}": judge.figures(one_pass(*run).scores)["ndcg10"]
        for way, run in zip(WAYS, runs, strict=True)
    }


def table(figures: dict[str, float | str]) -> str:
    """The table of the page."""
    lines = [
        "| data | with times | order alone | order alone, without baskets | tuned iALS |",
        "|---" * 5 + "|",
    ]
    for name in TIMED_SETS:
        if f"untimed_{name}_timed" in figures:
            keys = [*(f"untimed_{name}_{way}" for way in WAYS), f"auto_{name}_ials"]
            lines.append(f"| {name} | " + " | ".join(f"{figures[key]:.3f}" for key in keys) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measures the named sets, or all that have times, and writes the table and the figures."""
    for name in sys.argv[2:] or TIMED_SETS:
        found = measure(Path(sys.argv[1]), name)
        print(name, found, flush=True)
        figures = json.loads(RESULTS.read_text(encoding="utf-8")) | found
        RESULTS.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        write_between(PAGE, "benchmarks.quality.auto.untimed", table(figures))


if __name__ == "__main__":
    main()
