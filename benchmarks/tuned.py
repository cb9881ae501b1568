"""The worked example of docs/guides/tune.md: `make tune` or `python -m benchmarks.tuned [--pages]`.

It runs `livefactor tune` on the shipped year of purchases with three seeds. It writes
benchmarks/results/tune.json, the tables of docs/guides/tune.md from that file, and the picture of
the first seed. `--pages` measures nothing and writes the tables again from tune.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import facts
from benchmarks.pages import ROOT, six_digits, write_between

COMMAND = "make tune"
SEEDS = (0, 1, 2)
RESULTS = ROOT / "benchmarks" / "results" / "tune.json"
PAGE = ROOT / "docs" / "guides" / "tune.md"
PICTURE = ROOT / "docs" / "images" / "tune-retail.svg"
EVENTS = "server/livefactor_server/data/online_retail/events.csv.gz"
OPTIONS = ("--user", "customer_id", "--item", "stock_code", "--string-ids")
SPEC_FIELDS = ("k", "l2", "negatives", "learning_rate", "bias_learning_rate")
ROWS = {"winner": "best spec found", "preset": "preset `purchases`", "naive": "most-popular, decayed"}

Figures = dict[str, Any]


def measure(seed: int, out: Path) -> Figures:
    """Figures of one search, by name."""
    command = [
        sys.executable,
        "-m",
        "livefactor",
        "tune",
        EVENTS,
        *OPTIONS,
        "--seed",
        str(seed),
        "-o",
        str(out),
        "--json",
    ]
    started = time.monotonic()
    found = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    figures = {
        "seconds": time.monotonic() - started,
        "trials": found["trials"],
        "stopped": found["stopped"],
        "rule": found["rule"],
    }
    for row in ROWS:
        figures |= {f"{row}_{part}": found[row][part] for part in ("search", "rest", "events_per_s")}
    spec = found["winner"]["spec"]
    values = {**spec, **spec["optimizer"]}
    figures |= {f"winner_{field}": values[field] for field in SPEC_FIELDS}
    return {f"seed_{seed}_{name}": value for name, value in figures.items()}


def page(figures: Figures) -> str:
    """The table, with the machine it was measured on."""
    lines = [
        "| seed | spec | recall@10, search part | recall@10, rest | rest ÷ preset | million events learned / CPU s |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for seed in SEEDS:
        for row, label in ROWS.items():
            search, rest, speed = (
                figures[f"seed_{seed}_{row}_{name}"] for name in ("search", "rest", "events_per_s")
            )
            ratio = rest / figures[f"seed_{seed}_preset_rest"]
            shown = f"{speed / 1e6:.2f}" if speed else ""
            lines.append(f"| {seed} | {label} | {search:.4f} | {rest:.4f} | {ratio:.3f} | {shown} |")
    lines += [
        "",
        "The best spec of each seed:",
        "",
        "| seed | rule | " + " | ".join(SPEC_FIELDS) + " | trials (stopped) | seconds |",
    ]
    lines.append("|---|---|" + "---:|" * (len(SPEC_FIELDS) + 2))
    for seed in SEEDS:
        own = {name.removeprefix(f"seed_{seed}_"): value for name, value in figures.items()}
        spec = " | ".join(f"{own[f'winner_{field}']:.3g}" for field in SPEC_FIELDS)
        counts = f"{own['trials']} ({own['stopped']})"
        lines.append(f"| {seed} | {own['rule']} | {spec} | {counts} | {own['seconds']:.0f} |")
    machine = f"{figures['machine_cpu']}, {figures['machine_cores']} cores"
    load = f"{figures['machine_load_before']:.1f}"
    where = f"Measured {figures['run_date']} on {machine}. The load average before the run was {load}."
    return "\n".join([*lines, "", where])


def main() -> None:
    parser = argparse.ArgumentParser("benchmarks.tuned", description=__doc__)
    parser.add_argument("--pages", action="store_true", help="only write the tables again, from tune.json")
    if parser.parse_args().pages:
        write_between(PAGE, COMMAND, page(json.loads(RESULTS.read_text(encoding="utf-8"))))
        return
    figures: Figures = dict(facts(ROOT))
    with tempfile.TemporaryDirectory() as name:
        for seed in SEEDS:
            out = Path(name) / f"seed-{seed}.toml"
            figures |= measure(seed, out)
            if seed == SEEDS[0]:
                shutil.copyfile(out.with_suffix(".svg"), PICTURE)
    figures = six_digits(figures)
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    write_between(PAGE, COMMAND, page(figures))


if __name__ == "__main__":
    main()
