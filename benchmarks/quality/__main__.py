"""Measures quality: `make quality`, or `python -m benchmarks.quality [--quick] [--output FILE]`.

A full run takes over an hour in one thread. It writes benchmarks/results/quality.json (flat). The
figures and the pictures of docs/quality.md are written from that file alone. Topics such as content
have files of their own, from which it takes the figures that have a goal (`topics.py`). A quick run
(one user in eight, two settings per grid, one seed) only shows that everything runs.

The environment variable ML1M_RATINGS is the path of MovieLens-1M's ratings.csv.gz, which may not be
redistributed. Without it its figures are missing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from threadpoolctl import threadpool_limits

from benchmarks import machine, topics
from benchmarks.pages import ROOT
from benchmarks.progressive.suite import ratings_path
from benchmarks.quality import methods, pictures, report, suite
from benchmarks.quality.ranking import QUICK, WHOLE, Extent, Figures

RESULTS = ROOT / "benchmarks" / "results" / "quality.json"


def print_grids(console: Console, extent: Extent) -> None:
    """Prints the number of settings in the grid of each method, and the settings."""
    grids = {method.label: method.grid for method in methods.METHODS.values()}
    grids |= {
        f"{method.label}, shuffled": method.shuffled for method in methods.METHODS.values() if method.shuffled
    }
    for name, each in suite.NEXT_GRIDS.items():
        grids |= {f"{name}, test-then-learn, {key}": settings for key, settings in each.items()}
    grids |= {"multi-pass SGD": suite.MULTI_PASS_GRID, **suite.STREAMED_GRIDS}
    for label, settings in grids.items():
        axes = {axis: sorted({each[axis] for each in extent.of(settings)}) for axis in settings[0]}
        words = "; ".join(f"{axis} {', '.join(map(str, values))}" for axis, values in axes.items())
        console.print(f"{label}: {len(extent.of(settings))} settings {words}")


def measure(
    ratings: Path | None, extent: Extent, console: Console, only: str = "", stored: bool = False
) -> Figures:
    """Measures all parts, or those that match `only`.

    Returns the figures by name, and the date of each part. With `stored` the figures of topics go
    to the files of their topics instead (`topics.py`).
    """
    figures: Figures = {}
    parts = [part for part in suite.all_parts(ratings, extent) if re.search(only, part.name)]
    columns = TextColumn("{task.description:40}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, auto_refresh=False) as bar, threadpool_limits(1):
        task = bar.add_task("", total=len(parts))
        for part in parts:
            bar.update(task, description=part.name)
            bar.refresh()
            started = time.monotonic()
            measured = part.run()
            if stored and part.name in topics.FILES:
                topics.store(part.name, measured)
            else:
                figures |= measured
            figures |= {f"{part.name}_run_date": machine.date()} if only else {}
            bar.advance(task)
            main = next((f"{value:.4f}" for value in measured.values() if isinstance(value, float)), "")
            console.print(f"{part.name}: {main} ({time.monotonic() - started:.0f} s)")
    return figures


def main() -> None:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("benchmarks.quality", description=__doc__, formatter_class=style)
    parser.add_argument("--quick", action="store_true", help="two minutes: figures without meaning")
    parser.add_argument(
        "--pages",
        action="store_true",
        help="measure nothing: take the figures of topics that have a goal, write the page and the pictures",
    )
    parser.add_argument(
        "--only",
        help="measure only the parts that match this regular expression, and keep the other figures",
    )
    parser.add_argument("--output", type=Path, help="default of a full run: benchmarks/results/quality.json")
    arguments = parser.parse_args()
    console = Console()
    if not arguments.pages:
        extent = QUICK if arguments.quick else WHOLE
        print_grids(console, extent)
        about, started = machine.facts(Path(tempfile.gettempdir())), time.monotonic()
        stored = not (arguments.quick or arguments.output)
        measured = measure(ratings_path(), extent, console, arguments.only or "", stored)
        about |= {"run_seconds": round(time.monotonic() - started, 1), "run_load_after": os.getloadavg()[0]}
        if arguments.only:
            about, measured = {}, json.loads(RESULTS.read_text(encoding="utf-8")) | measured
        figures = topics.with_goals(about | report.completed(measured))
        console.print(report.tables(figures))
        output = arguments.output or (None if arguments.quick else RESULTS)
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            console.print(f"written: {output}")
    if arguments.pages or not (arguments.quick or arguments.output):
        figures = topics.with_goals(json.loads(RESULTS.read_text(encoding="utf-8")))
        RESULTS.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        report.write_page(figures)
        pictures.draw(figures, ROOT / "docs" / "images")


if __name__ == "__main__":
    main()
