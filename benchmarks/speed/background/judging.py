"""The cost of judging: CPU time in process, and ingest of servers with and without a judge, in
turns.

`python -m benchmarks.speed.background.judging` uses batches of 8,192 and 512 events, ratings and
clicks, and default settings. It prints the median events per second until the last ack. It also
prints the minimum CPU seconds of the server, which are more reliable on a shared machine. For a
record of 8,192 events it prints the microseconds of CPU for judging and for applying it, as means
over the later half.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import uuid
from contextlib import ExitStack

import psutil

from benchmarks.speed.ingest import SPECS, Load, serving, stream_rate
from benchmarks.speed.streams import K
from livefactor import Models
from livefactor.wire import columns as wire
from livefactor_kernels.spec.presets import preset
from livefactor_server.changes import NO_REJECTS, Header, InteractionsChange, Record, apply, place
from livefactor_server.judging.judge import Judge, JudgeSettings
from livefactor_server.model.state import ModelState

ROUNDS, ROUND_EVENTS = 7, 1 << 22
CASES = {
    "squared_8k": ("squared", 8_192),
    "logistic_8k": ("logistic", 8_192),
    "logistic_512": ("logistic", 512),
}


def server_process(target: str) -> psutil.Process:
    """The process that listens on the target. It is a child of this one."""
    port = int(target.rsplit(":", 1)[1])
    for child in psutil.Process().children(recursive=True):
        if any(one.laddr.port == port for one in child.net_connections() if one.status == "LISTEN"):
            return child
    raise RuntimeError(f"no child process listens on {target}")


def cpu_seconds(process: psutil.Process) -> float:
    """CPU time of the process in seconds."""
    times = process.cpu_times()
    return float(times.user + times.system)


def in_process(load: Load, preset_name: str, **changes: int) -> tuple[float, float]:
    """Microseconds of CPU for judging and for applying a record, as means over the later half of
    the records.
    """
    state = ModelState.empty(preset(preset_name, k=K, **changes), b"", uuid.UUID(int=0), "cpu", b"")
    judge, judging, applying, records = Judge(state, JudgeSettings()), 0.0, 0.0, 0
    for revision, part in enumerate(load.slices(), 1):
        change = InteractionsChange.from_log(wire.encode_interactions(**load.columns(part)))
        placement = place(state, [change])[0]
        run = [Record(Header(revision, b"", 0, 0, b"", b"", NO_REJECTS, b"", b""), change, placement)]
        marks = [time.thread_time()]
        for step in (lambda: judge.before(run), lambda: apply(state, run), judge.after):  # noqa: B023 - called at once
            step()
            marks.append(time.thread_time())
        if 2 * revision * load.batch > len(load.users):
            records += 1
            judging += marks[1] - marks[0] + marks[3] - marks[2]
            applying += marks[2] - marks[1]
    return judging / records * 1e6, applying / records * 1e6


def served(rounds: int, loads: dict[str, Load]) -> dict[str, float]:
    """Rates and CPU times of servers, by case."""
    figures: dict[str, float] = {}
    with ExitStack() as stack:
        flags = {"judged": (), "plain": ("--judge-record-share", "0")}
        targets = {name: stack.enter_context(serving(flags=more)) for name, more in flags.items()}
        processes = {name: server_process(target) for name, target in targets.items()}
        for target in targets.values():
            with Models(target) as models:
                for name, spec in SPECS.items():
                    models.create(name, **spec)  # type: ignore[arg-type]
        for case, (model, _) in CASES.items():
            rates: dict[str, list[float]] = {name: [] for name in targets}
            cpu: dict[str, list[float]] = {name: [] for name in targets}
            for number in range(rounds + 1):
                for name in sorted(targets, reverse=bool(number % 2)):
                    before = cpu_seconds(processes[name])
                    rate = stream_rate(targets[name], model, loads[case])
                    # The first round warms up.
                    if number:
                        rates[name].append(rate)
                        cpu[name].append(cpu_seconds(processes[name]) - before)
            plain, judged = (statistics.median(rates[name]) for name in ("plain", "judged"))
            figures[f"{case}_events_per_s"] = plain
            figures[f"{case}_rate_ratio"] = judged / plain
            figures[f"{case}_cpu_ratio"] = min(cpu["judged"]) / min(cpu["plain"])
            figures[f"{case}_cpu_us_a_record"] = (
                min(cpu["plain"]) * 1e6 * loads[case].batch / len(loads[case].users)
            )
    return figures


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--events", type=int, default=ROUND_EVENTS)
    arguments = parser.parse_args()
    loads = {case: Load(arguments.events, batch, model) for case, (model, batch) in CASES.items()}
    figures: dict[str, float] = {}
    for case, name, changes in (
        ("squared_8k", "ratings_sgd", {}),
        ("logistic_8k", "clicks_sgd", {"negatives": 1}),
    ):
        judging, applying = in_process(loads[case], name, **changes)
        figures |= {f"{case}_judge_us_a_record": judging, f"{case}_apply_us_a_record": applying}
    print(json.dumps(figures | served(arguments.rounds, loads), indent=1))


if __name__ == "__main__":
    main()
