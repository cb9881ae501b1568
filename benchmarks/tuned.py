"""The worked example of docs/tune.md: `livefactor tune` on the shipped year of purchases, with three seeds.

Writes benchmarks/results/tune.json, from it the table of the page, and the picture of the first seed. A few minutes.
"""

from __future__ import annotations

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
PAGE = ROOT / "docs" / "tune.md"
PICTURE = ROOT / "docs" / "images" / "tune-retail.svg"
EVENTS = "server/livefactor_server/data/online_retail/events.csv.gz"
OPTIONS = ("--user", "customer_id", "--item", "stock_code", "--string-ids")
SPEC_FIELDS = ("k", "l2", "negatives", "learning_rate", "bias_learning_rate")
ROWS = {"winner": "the spec that was found", "preset": "preset `purchases`", "naive": "most-popular, decayed"}

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
        "| seed | | recall@10, search | recall@10, rest | to the preset | learned, M/s |",
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
        "What was found:",
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
    where = f"{figures['run_date']}, {machine}, load before {figures['machine_load_before']:.1f}."
    return "\n".join([*lines, "", where])


def main() -> None:
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
