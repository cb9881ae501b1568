"""gRPC ingest in turns with the kernel with key look-ups, with implicit and with River.

All use wall time, in one run, on the same stream. The kernel with key look-ups gets the same
batches and the same spec as the server, in process, in one thread. Ratios are those of the medians.
"""

from __future__ import annotations

import time

from benchmarks.speed import ingest, opponents
from benchmarks.speed.streams import K, Run
from livefactor_kernels.backend import Update
from livefactor_kernels.cpu import CpuModel
from livefactor_kernels.spec.presets import preset

RATIOS = {
    "ratio_ingest_to_kernel_with_keys": (
        "ingest_stream_durable_events_per_s",
        "kernel_with_keys_events_per_s",
    ),
    "ratio_ingest_to_kernel_with_keys_8k": (
        "ingest_stream_durable_8k_events_per_s",
        "kernel_with_keys_8k_events_per_s",
    ),
    "ratio_ingest_to_unsynced": ("ingest_stream_durable_events_per_s", "ingest_stream_unsynced_events_per_s"),
    "ratio_ingest_to_implicit_bpr": (
        "ingest_stream_durable_logistic_events_per_s",
        "implicit_bpr_events_per_s",
    ),
    "ratio_ingest_labels_to_implicit_bpr": (
        "ingest_stream_durable_labels_events_per_s",
        "implicit_bpr_events_per_s",
    ),
    "ratio_ingest_to_river_mf": ("ingest_stream_durable_events_per_s", "river_mf_events_per_s"),
}


def kernel_with_keys(load: ingest.Load) -> Run:
    """A run that looks up and learns the load batch by batch, and returns the events per second."""
    model = CpuModel(preset("ratings_sgd", k=K))
    model.users.allocate(load.users)
    model.items.allocate(load.items)
    counts = model.users.allocated, model.items.allocated

    def run() -> float:
        started = time.perf_counter()
        for part in load.slices():
            rows = (
                model.users.find(load.users[part], counts[0]),
                model.items.find(load.items[part], counts[1]),
            )
            values = None if load.values is None else load.values[part]
            model.apply(Update(model.revision + 1, *rows, values, None, *counts))
        return len(load.users) / (time.perf_counter() - started)

    return run


def measure(rounds: int, events: int, bpr_events: int, river_events: int) -> dict[str, float | None]:
    """Medians of all rates, and the ratios; None for what is not installed."""
    beside: dict[str, Run | None] = {
        "kernel_with_keys_events_per_s": kernel_with_keys(ingest.Load(events, 65_536)),
        "kernel_with_keys_8k_events_per_s": kernel_with_keys(ingest.Load(events, 8_192)),
        "implicit_bpr_events_per_s": opponents.implicit_bpr(bpr_events),
        "river_mf_events_per_s": opponents.river_mf(river_events),
    }
    figures: dict[str, float | None] = dict.fromkeys(beside)
    figures |= ingest.measure(rounds, events, {name: run for name, run in beside.items() if run is not None})
    return figures | {name: _ratio(figures[over], figures[under]) for name, (over, under) in RATIOS.items()}


def _ratio(over: float | None, under: float | None) -> float | None:
    return None if over is None or under is None else over / under
