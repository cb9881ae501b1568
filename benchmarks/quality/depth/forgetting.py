"""What a model forgets that learns for a year: `python -m benchmarks.quality.depth.forgetting`.

The set has the first purchase of each item by each customer of Online Retail, which are a year. The
old tasks: the last fifth of each customer's items of the first quarter of the events is taken out,
for customers with at least 5 of them. No model learns these. A model learns the other events of the
year in their order, and ranks the items that were taken out after the first quarter and after the
year. A retrain learns the same events of the year in a random order, without times, and iALS is
fitted to all of them. NDCG@10 is that of `benchmarks/quality/metrics.py`. It writes the table of
docs/quality.md, and `old_task_ratio_after_a_year`: the streamed model of the preset `auto`, the
default, divided by its retrain.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.pages import ROOT, six_digits, write_between
from benchmarks.progressive.data import read_purchases
from benchmarks.quality import als
from benchmarks.quality.data import Division, Events, numbered, places, reordered
from benchmarks.quality.methods import EPOCHS
from benchmarks.quality.metrics import Judge
from benchmarks.quality.ranking import Figures
from benchmarks.quality.streamed import one_pass
from livefactor_kernels.spec.model import ModelSpec, Replay
from livefactor_kernels.spec.presets import preset

QUARTER, TAKEN, ITEMS_MIN = 0.25, 0.2, 5
IALS = {"k": 64, "unobserved": 0.1, "l2": 0.003}


def specs() -> Iterator[tuple[str, str, ModelSpec]]:
    """A key, a name and a spec of each model."""
    clicks, sgd = preset("clicks"), preset("purchases_sgd")
    yield "clicks", "`clicks`", clicks
    yield (
        "plain",
        "`clicks`, `history.half_life` 0",
        replace(clicks, history=replace(clicks.history, half_life=0.0)),
    )
    yield "auto", "`auto`", preset("auto")
    yield "sgd", "`purchases_sgd`", sgd
    yield "replay", "`purchases_sgd`, `replay` of 65,536", replace(sgd, replay=Replay(65_536, 1.0))


def old_tasks(events: Events) -> tuple[np.ndarray, int]:
    """Which events are taken out, bool[n], and the number of events of the first quarter."""
    quarter = round(len(events) * QUARTER)
    early = events.take(slice(0, quarter))
    place, count = places(early, True)
    taken = np.zeros(len(events), bool)
    taken[:quarter] = (place >= np.ceil(count * (1 - TAKEN))) & (count >= ITEMS_MIN)
    return taken, quarter


def figures(events: Events) -> Figures:
    """All figures by name."""
    taken, quarter = old_tasks(events)
    year, early = events.take(~taken), events.take(np.flatnonzero(~taken[:quarter]))
    after = {
        name: Judge(Division(part, events.take(taken))) for name, part in (("quarter", early), ("year", year))
    }
    found: Figures = {"users": int(after["year"].users.size)}
    found["ials"] = after["year"].figures(als.ials(year, EPOCHS, 0, **IALS))["ndcg10"]
    for key, _, spec in specs():
        found[f"{key}_quarter"] = after["quarter"].figures(one_pass(spec, early).scores)["ndcg10"]
        found[f"{key}_streamed"] = after["year"].figures(one_pass(spec, year).scores)["ndcg10"]
        again = one_pass(spec, reordered(year, 1).untimed())
        found[f"{key}_retrained"] = after["year"].figures(again.scores)["ndcg10"]
        found[f"{key}_ratio"] = float(found[f"{key}_streamed"] or 0) / float(found[f"{key}_retrained"] or 1)
        print(key, {name: value for name, value in found.items() if name.startswith(key)}, flush=True)
    return found | {"old_task_ratio_after_a_year": found["auto_ratio"]}


def table(found: Figures) -> str:
    """The table of docs/quality.md."""
    lines = [
        f"| NDCG@10 of {found['users']:,} customers on items of the first quarter | after the quarter | after the year "
        "| retrained on the year | streamed ÷ retrained |",
        "|---|---|---|---|---|",
    ]
    for key, name, _ in specs():
        cells = [float(found[f"{key}_{part}"] or 0) for part in ("quarter", "streamed", "retrained", "ratio")]
        lines.append(f"| {name} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")
    lines.append(f"| iALS | | | {float(found['ials'] or 0):.3f} | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/forgetting.json")
    parser.add_argument("--pages", action="store_true", help="only write --output to docs/quality.md")
    chosen = parser.parse_args()
    if not chosen.pages:
        found = six_digits(figures(numbered(read_purchases(), once=True)))
        chosen.output.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    found = json.loads(chosen.output.read_text())
    write_between(ROOT / "docs/quality.md", "benchmarks.quality.depth.forgetting", table(found))


if __name__ == "__main__":
    main()
