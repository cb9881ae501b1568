"""The plain factorisations that contests of `auto` try, beside `auto`.

`python -m benchmarks.quality.auto.plain FOLDER [SET ...]` measures NDCG@10 of the points of rule
`solve-plain` after one pass (`sets` describes FOLDER). It writes the table of docs/auto.md, and its
figures to benchmarks/results/auto.json. Those of `auto` and of tuned iALS come from there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.pages import write_between
from benchmarks.quality.auto.benchmark import PAGE, RESULTS, FewUsers
from benchmarks.quality.auto.sets import SETS
from benchmarks.quality.streamed import one_pass
from livefactor_server.challenging.rules import RULES

RULE = RULES["solve-plain"]


def key_of(name: str, point: str) -> str:
    """The key of a figure."""
    return f"plain_{name}_{point.removeprefix('solve-').replace('.', '_')}"


def measure(folder: Path, name: str) -> dict[str, float]:
    """The figures of one set."""
    division = SETS[name](folder)
    judge = FewUsers(division)
    return {
        key_of(name, point): judge.figures(one_pass(RULE.spec(values), division.learned).scores)["ndcg10"]
        for point, values in RULE.points.items()
    }


def table(figures: dict[str, float | str]) -> str:
    """The table of the page."""
    heads = " | ".join(f"`{point}`" for point in RULE.points)
    lines = [f"| data | {heads} | `auto` | tuned iALS |", "|---" * (len(RULE.points) + 3) + "|"]
    for name in SETS:
        keys = [*(key_of(name, point) for point in RULE.points), f"auto_{name}_auto", f"auto_{name}_ials"]
        if keys[0] in figures:
            lines.append(f"| {name} | " + " | ".join(f"{figures[key]:.3f}" for key in keys) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measures the named sets, or all, and writes the table and the figures."""
    for name in sys.argv[2:] or SETS:
        found = measure(Path(sys.argv[1]), name)
        print(name, found, flush=True)
        figures = json.loads(RESULTS.read_text(encoding="utf-8")) | found
        RESULTS.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        write_between(PAGE, "benchmarks.quality.auto.plain", table(figures))


if __name__ == "__main__":
    main()
