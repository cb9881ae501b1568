"""Runs all benchmarks: `make bench`, or `python -m benchmarks`.

A full run takes about half an hour on two idle cores. It writes benchmarks/results/cpu.json (flat)
and the tables of docs/benchmarks.md and the README. A quick run and a run of some parts print their
tables, and they write figures only to `--output`. With `--merge`, a run of some parts replaces
their figures in cpu.json, and the tables say when. `--pages` measures nothing and writes the tables
again from cpu.json.

Environment variables:
    ML1M_RATINGS: MovieLens-1M's ratings.csv.gz, which may not be redistributed.
    BENCH_DIR: the folder for the servers' data, which selects the disk to measure (default: the
        temporary folder).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import brokers, machine, report
from benchmarks.pages import ROOT
from benchmarks.progressive import suite as progressive
from benchmarks.speed import (
    access,
    asynchronous,
    calls,
    disk,
    kernels,
    latency,
    limits,
    opponents,
    reads,
    side_by_side,
)
from benchmarks.speed import ingest as ingest_rounds
from benchmarks.speed import (
    keymap as keymap_bench,
)
from benchmarks.speed.background import challengers
from benchmarks.speed.recovery import followers, replay, snapshots, starts

RESULTS = ROOT / "benchmarks" / "results" / "cpu.json"
QUIET_LOAD = 0.5
"""Load average above which a run reports that the machine is busy."""

Figures = dict[str, report.Figure]


def folder() -> Path:
    """The folder for servers and raw files."""
    return Path(os.environ.get("BENCH_DIR") or tempfile.gettempdir())


def run_kernels(quick: bool) -> Figures:
    """Measures the kernels and plain loops."""
    figures = kernels.measure(300_000, 3) if quick else kernels.measure()
    figures |= kernels.measure_losses(100_000, 1) if quick else kernels.measure_losses()
    figures |= kernels.measure_solve(4096, 1) if quick else kernels.measure_solve()
    # The figure of this name is measured in turns with ingest, at the same batch size.
    figures["kernel_one_record_with_keys_events_per_s"] = figures.pop("kernel_with_keys_events_per_s")
    return dict(figures)


def run_ingest(quick: bool) -> Figures:
    """Measures gRPC ingest, the kernel with look-ups, implicit and River, in turns."""
    if quick:
        return dict(side_by_side.measure(1, 1 << 22, 1 << 18, 5_000))
    rounds, events = ingest_rounds.ROUNDS, ingest_rounds.ROUND_EVENTS
    return dict(side_by_side.measure(rounds, events, opponents.BPR_EVENTS, opponents.RIVER_EVENTS))


def run_disk(quick: bool) -> Figures:
    """Measures the disk, with and without the log."""
    with tempfile.TemporaryDirectory(prefix="livefactor-bench-", dir=folder()) as name:
        return dict(disk.measure(Path(name), 1, 0.3, 20_000) if quick else disk.measure(Path(name)))


def run_challengers(quick: bool) -> Figures:
    """Measures servers with and without challengers, in turns."""
    return dict(challengers.measure(1, challengers.QUICK) if quick else challengers.measure())


PARTS: dict[str, Callable[[bool], Figures]] = {
    "limits": lambda quick: dict(limits.measure(rounds=3 if quick else 7)),
    "kernels": run_kernels,
    "ingest": run_ingest,
    "brokers": lambda quick: dict(brokers.measure(100) if quick else brokers.measure()),
    "calls": lambda quick: dict(calls.measure(1, 0.4) if quick else calls.measure()),
    "clients": lambda quick: dict(asynchronous.measure(1, 1.0) if quick else asynchronous.measure()),
    "access": lambda quick: dict(access.measure(1, 300, 1 << 19) if quick else access.measure()),
    "latency": lambda quick: dict(latency.measure(latency.QUICK if quick else None)),
    "reads": lambda quick: dict(reads.measure(0.2 if quick else 1.0)),
    "disk": run_disk,
    "recovery": lambda quick: dict(replay.measure(1, 0.2) if quick else replay.measure()),
    "snapshots": lambda quick: dict(snapshots.measure(20_000, {}) if quick else snapshots.measure()),
    "followers": lambda quick: dict(followers.measure(1, 50, 1.0) if quick else followers.measure()),
    "challengers": run_challengers,
    "starts": lambda quick: dict(starts.measure(0.02 if quick else 1.0)),
    "keymap": lambda quick: dict(keymap_bench.measure((100_000,) if quick else keymap_bench.SIZES)),
    "progressive": lambda quick: dict(progressive.measure(progressive.ratings_path())),
}
SLOW = {"progressive", "challengers"}
"""Parts that a quick run skips, since they need the whole streams or wait for contests."""


def run_parts(names: list[str], quick: bool, console: Console, output: Path | None = None) -> Figures:
    """The figures of the named parts, measured one after the other.

    The console is idle during a part. `output` gets the figures after each part, so that a run that
    is ended loses only the part in progress.
    """
    figures: Figures = {}
    columns = TextColumn("{task.description:12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, auto_refresh=False) as bar:
        task = bar.add_task("", total=len(names))
        for name in names:
            bar.update(task, description=name)
            bar.refresh()
            started = time.monotonic()
            figures |= PARTS[name](quick)
            if output is not None:
                write(output, figures)
            bar.advance(task)
            console.print(f"{name}: {time.monotonic() - started:.0f} s")
        bar.update(task, description="done")
        bar.refresh()
    return figures


def write(output: Path, figures: Figures) -> None:
    """Writes figures as JSON."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def merge(names: list[str], figures: Figures, about: Figures) -> None:
    """Writes the figures of some parts into cpu.json, with their time, and the tables again."""
    # A quotient may have one figure of these parts and one of the others.
    found = report.completed(json.loads(RESULTS.read_text(encoding="utf-8")) | figures, whole=False)
    when = f"{about['run_date']}, load average {about['machine_load_before']:.2f} before"
    found |= {f"{report.LATER}{name}": when for name in names}
    write(RESULTS, found)
    report.write_pages(found)


def say_missing(figures: Figures, console: Console) -> None:
    """Prints what could not be measured."""
    missing = sorted(name for name, value in figures.items() if value is None)
    if missing:
        console.print("missing (a library is not installed, or ML1M_RATINGS is not set):", ", ".join(missing))


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(
        "benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two minutes: rough figures, no quality")
    parser.add_argument("--pages", action="store_true", help="only write the tables again, from cpu.json")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--merge", action="store_true", help="with --only: into cpu.json and the tables")
    parser.add_argument("--output", type=Path, help="default of a full run: benchmarks/results/cpu.json")
    arguments = parser.parse_args()
    if arguments.merge and (arguments.quick or not arguments.only):
        parser.error("--merge needs --only, and no --quick")
    if arguments.pages:
        report.write_pages(json.loads(RESULTS.read_text(encoding="utf-8")))
        return
    whole = not arguments.quick and not arguments.only
    left_out = SLOW if arguments.quick else set()
    names = [name for name in PARTS if name in (arguments.only or PARTS.keys() - left_out)]
    console = Console()
    about = machine.facts(folder())
    if about["machine_load_before"] > QUIET_LOAD:
        console.print(f"[yellow]the machine is busy (load average {about['machine_load_before']:.2f})[/]")
    started = time.monotonic()
    measured = run_parts(names, arguments.quick, console, arguments.output)
    about["run_seconds"] = round(time.monotonic() - started, 1)
    figures = about | report.completed(measured, whole)
    console.print(report.tables(figures))
    say_missing(figures, console)
    output = arguments.output or (RESULTS if whole else None)
    if output is not None:
        write(output, figures)
        console.print(f"written: {output}")
    if arguments.merge:
        merge(names, report.completed(measured, whole=False), about)
    if whole:
        report.write_pages(figures)


if __name__ == "__main__":
    main()
