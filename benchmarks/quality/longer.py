"""What a longer stream does to lists: `python -m benchmarks.quality.longer RATINGS`.

RATINGS is the file of MovieLens-1M with the ratings (`benchmarks.progressive.data.read_ratings`).
The timed half is one stream in time. A model learns one half of it and is judged by the tenth that
follows, then learns on to nine tenths and is judged by the last tenth. Judged users have events
before, and lists leave out what they had. Opponents are fitted anew to all events before. It writes
the table of docs/quality.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.pages import ROOT, write_between
from benchmarks.progressive.data import read_ratings
from benchmarks.quality import als, closed_form
from benchmarks.quality.data import Events, cut, numbered
from benchmarks.quality.methods import EPOCHS
from benchmarks.quality.metrics import Judge
from benchmarks.quality.streamed import RECORD_EVENTS, Learner
from livefactor_kernels.spec.model import ModelSpec
from livefactor_kernels.spec.presets import preset

PAGE = ROOT / "docs" / "quality.md"
STARTS = (0.5, 0.9)
PART = 0.1
IALS = {"k": 64, "unobserved": 0.1, "l2": 0.003}


def specs() -> Iterator[tuple[str, ModelSpec]]:
    """`clicks`, what changes it, and `auto`, with their names."""
    clicks = preset("clicks")
    plain = replace(clicks.history, half_life=0.0)
    yield "`clicks`", clicks
    yield (
        "`clicks`, `history` of 4,096",
        replace(clicks, history=replace(clicks.history, users=4096, items=4096)),
    )
    yield "`clicks`, `history.half_life` 0", replace(clicks, history=plain)
    yield "`clicks`, both", replace(clicks, history=replace(plain, users=4096, items=4096))
    yield "`auto`", preset("auto")


def main(events: Events) -> None:
    """Measures all methods, and writes the table."""
    divisions = [cut(events, False, start, start + PART) for start in STARTS]
    judges = [Judge(division) for division in divisions]
    counts = " and ".join(f"{judge.users.size:,}" for judge in judges)
    lines = [f"| NDCG@10 of {counts} users | after one half | after nine tenths |", "|---|---|---|"]

    def add(name: str, found: list[float]) -> None:
        lines.append(f"| {name} | {found[0]:.3f} | {found[1]:.3f} |")
        print(lines[-1], flush=True)

    pairs = list(zip(divisions, judges, strict=True))
    add("most-popular", [j.figures(closed_form.popular(d.learned))["ndcg10"] for d, j in pairs])
    add("iALS, fitted anew", [j.figures(als.ials(d.learned, EPOCHS, 0, **IALS))["ndcg10"] for d, j in pairs])
    for name, spec in specs():
        learner, found = Learner(spec, events), []
        for learned in learner.learn():
            division, judge = pairs[len(found)]
            if learned + RECORD_EVENTS > len(division.learned):
                found.append(judge.figures(learner.scores)["ndcg10"])
                if len(found) == len(pairs):
                    break
        add(name, found)
    write_between(PAGE, "benchmarks.quality.longer", "\n".join(lines))


if __name__ == "__main__":
    main(numbered(read_ratings(Path(sys.argv[1])), once=True))
