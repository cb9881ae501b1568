"""The measurements on a GPU measure what they claim. The simulator runs them at tiny sizes."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

# The benchmarks are not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from benchmarks.gpu import figures, served
from benchmarks.gpu.rivals import HogwildModel, RowBlockModel

from livefactor_kernels.device.warp import SIMULATED
from livefactor_kernels.reference import ReferenceModel
from livefactor_kernels.spec.model import Loss
from synthetic import differences, make_spec, push, push_random

pytestmark = [] if SIMULATED else [pytest.mark.gpu]

SIZES = figures.Sizes(
    users=6, items=9, events=6, records=1, rounds=1, batches=(3, 6), copy_bytes=1024, cpu_users=50,
    cpu_items=40, digest_events=8, queries=4, softmax_batch=4, group_events=2, solve_batch=3, solve_k=2,
)  # fmt: skip


def test_one_block_a_row_gives_the_bits_while_rows_are_short() -> None:
    spec = make_spec(Loss.SQUARED, k=64, micro_batch=6)
    rival, judge = RowBlockModel(spec), ReferenceModel(spec)
    for model in (rival, judge):
        push_random(model, np.random.default_rng(1), 11, 5, 4)
    assert differences(rival, judge) == []
    # The rival's own kernels have learned.
    assert rival._rule._totals is not None


def test_hogwild_learns_what_the_reference_does_where_nothing_races() -> None:
    spec = make_spec(Loss.SQUARED, k=64, micro_batch=3)
    rival, judge = HogwildModel(spec), ReferenceModel(spec)
    for model in (rival, judge):
        push(model, [1, 2, 3], [4, 5, 6], [1.0, 2.0, 3.0])
    # A warp sums a dot product in another order.
    for side in (0, 1):
        for name, view in judge.sections(side, 3).items():
            np.testing.assert_allclose(rival.sections(side, 3)[name], view, rtol=1e-5)


@pytest.mark.parametrize(
    "part",
    [figures.copy_rate, figures.update_rates, figures.rule_rates, figures.digests, figures.top_k_times],
)
def test_every_part_gives_its_figures(part) -> None:
    found = part(SIZES)
    assert found and all(value is None or value > 0 for value in found.values())
    assert found.get("gpu_digests_equal", 1.0) == 1.0
    # A record with few micro-batches takes one launch.
    assert found.get("gpu_ordered_3_launches_a_record", 4.0) == 4.0


class _Event:
    """The part of CuPy that measures times on a stream."""

    def record(self, _stream: object) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        assert self.time


def test_a_served_model_is_measured_over_the_wire() -> None:
    events = SimpleNamespace(
        Event=_Event, get_elapsed_time=lambda first, last: (last.time - first.time) * 1e3
    )
    load = served.Load(
        users=5, items=4, batch=4, batches=2, micro_batch=4, candidates=3, waiting=1, seconds=0.4
    )
    found = served.measure(SimpleNamespace(cuda=events), load)
    assert found["gpu_wire_events_per_s"] > 0 and 0 < found["gpu_device_busy_share"] <= 1.01
    assert found["gpu_score_3_ingest_p99_ms"] >= found["gpu_score_3_ingest_p50_ms"] > 0
