"""What judging costs ingest: one stream to a server that judges and to one that does not, in turns.

`python -m benchmarks.judging`: batches of 8,192 and 512 events, ratings and clicks, default settings. Events a second until the
last ack, medians; and the least CPU seconds of the server, which say more where other work shares the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics

import psutil

from benchmarks.ingest import SPECS, Load, serving, stream_rate
from livefactor import Models

ROUNDS, ROUND_EVENTS = 7, 1 << 21
CASES = {
    "squared_8k": ("squared", 8_192),
    "logistic_8k": ("logistic", 8_192),
    "logistic_512": ("logistic", 512),
}


def server_process(target: str) -> psutil.Process:
    """The process that listens there, a child of this one."""
    port = int(target.rsplit(":", 1)[1])
    for child in psutil.Process().children(recursive=True):
        if any(one.laddr.port == port for one in child.net_connections() if one.status == "LISTEN"):
            return child
    raise RuntimeError(f"nothing of ours listens on {target}")


def cpu_seconds(process: psutil.Process) -> float:
    """CPU time a process has taken, s."""
    times = process.cpu_times()
    return float(times.user + times.system)


def measure(rounds: int = ROUNDS, events: int = ROUND_EVENTS) -> dict[str, float]:
    """By case: events a second without judging, and the ratios of rates and of CPU seconds with it."""
    figures: dict[str, float] = {}
    with serving() as judged, serving(flags=["--judge-record-share", "0"]) as plain:
        targets = {"judged": judged, "plain": plain}
        processes = {name: server_process(target) for name, target in targets.items()}
        for target in targets.values():
            with Models(target) as models:
                for name, spec in SPECS.items():
                    models.create(name, **spec)  # type: ignore[arg-type]
        for case, (model, batch) in CASES.items():
            load = Load(events, batch, model)
            rates: dict[str, list[float]] = {name: [] for name in targets}
            cpu: dict[str, list[float]] = {name: [] for name in targets}
            for number in range(rounds + 1):
                for name in sorted(targets, reverse=bool(number % 2)):
                    before = cpu_seconds(processes[name])
                    rate = stream_rate(targets[name], model, load)
                    if number:  # the first round warms up
                        rates[name].append(rate)
                        cpu[name].append(cpu_seconds(processes[name]) - before)
            figures[f"{case}_events_per_s"] = statistics.median(rates["plain"])
            plain_rate, judged_rate = (statistics.median(rates[name]) for name in ("plain", "judged"))
            figures[f"{case}_rate_ratio"] = judged_rate / plain_rate
            figures[f"{case}_cpu_ratio"] = min(cpu["judged"]) / min(cpu["plain"])
    return figures


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--events", type=int, default=ROUND_EVENTS)
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.rounds, arguments.events), indent=1))


if __name__ == "__main__":
    main()
