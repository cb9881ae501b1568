"""The grouping of records into runs changes nothing.

Records that are applied together give the same state as records that are applied one by one.
"""

from __future__ import annotations

import uuid

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livefactor.wire import columns as wire
from livefactor_kernels.backend import state_sections
from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import (
    AdaptiveRate,
    Counts,
    EventType,
    FactorDtype,
    History,
    Limits,
    Loss,
    Mix,
    ModelSpec,
    Optimizer,
    OptimizerKind,
    Replay,
    Rule,
    Solve,
)
from livefactor_server.changes import (
    NO_REJECTS,
    AvailabilityChange,
    Change,
    Header,
    InteractionsChange,
    OpenProducerChange,
    Record,
    apply,
    place,
)
from livefactor_server.model.state import ModelState

SMALL = Limits(users_max=512, items_max=512, value_abs_max=10.0, weight_max=10.0, error_max=100.0)
KERNELS = [
    (Loss.SQUARED, 0, 1),
    (Loss.LOGISTIC, 2, 1),
    (Loss.BPR, 2, 1),
    (Loss.BPR, 20, 1),
    (Loss.LOGISTIC, 1, 5),
]


@st.composite
def changes(draw: st.DrawFn, ratings: bool) -> Change:
    kind = draw(st.sampled_from(["events"] * 6 + ["marks", "open"]))
    if kind == "open":
        return OpenProducerChange()
    keys = st.integers(0, 9).map(lambda number: number * 0x9E3779B97F4A7C15 % 2**64)
    if kind == "marks":
        marked = np.array(draw(st.lists(keys, min_size=1, max_size=3)), np.uint64)
        return AvailabilityChange(marked, draw(st.booleans()), b"")
    # A record has no events if all rows of its batch were rejected.
    events = draw(st.integers(0, 7))
    columns = {
        name: np.array(draw(st.lists(keys, min_size=events, max_size=events)), np.uint64)
        for name in ("user_ids", "item_ids")
    }
    values = np.array(draw(st.lists(st.integers(0, 1), min_size=events, max_size=events)), np.float32)
    weights = np.full(events, 0.5, np.float32)
    body = wire.encode_interactions(
        **columns,
        values=values if events and (ratings or draw(st.booleans())) else None,
        weights=weights if events and draw(st.booleans()) else None,
    )
    return InteractionsChange.from_log(body)


def headers_of(stream: list[Change]) -> list[Header]:
    """Return the headers of a stream that one producer sends.

    An open raises the epoch. Every other change takes the next sequence.
    """
    headers: list[Header] = []
    epoch = sequence = 0
    for number, change in enumerate(stream):
        opens = isinstance(change, OpenProducerChange)
        epoch, sequence = epoch + opens, sequence + (not opens)
        salt = bytes([number]) * 16
        previous = headers[-1].hash if headers else b""
        headers.append(Header(number + 1, b"p", epoch, sequence, salt, salt, NO_REJECTS, salt, previous))
    return headers


def run(spec: ModelSpec, backend: str, stream: list[Change], cuts: list[int]) -> ModelState:
    state = ModelState.empty(spec, b"", uuid.UUID(int=0), backend, b"")
    headers = headers_of(stream)
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        if start < stop:
            placements = place(state, stream[start:stop])
            records = zip(headers[start:stop], stream[start:stop], placements, strict=True)
            apply(state, [Record(*record) for record in records])
    return state


def everything(state: ModelState) -> dict[str, object]:
    sections = {name: view.tobytes() for name, view in state_sections(state.backend).items()}
    small = {name: array.tobytes() for name, array in state.freeze_small().arrays().items()}
    facts = (state.revision, state.log_hash, state.backend.revision, state.backend.published)
    return {**sections, **small, "facts": facts}


@pytest.mark.parametrize(("loss", "negatives", "micro_batch"), KERNELS)
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (OptimizerKind.SGD, FactorDtype.FLOAT32),
        (OptimizerKind.FTRL, FactorDtype.FLOAT32),
        (OptimizerKind.ADAGRAD, FactorDtype.BFLOAT16),
    ],
)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_grouping_gives_the_same_state(
    loss: Loss,
    negatives: int,
    micro_batch: int,
    kind: OptimizerKind,
    dtype: FactorDtype,
    data: st.DataObject,
) -> None:
    spec = check(ModelSpec(
        k=16, loss=loss, negatives=negatives, micro_batch=micro_batch, seed=7, l2=0.01, limits=SMALL,
        optimizer=Optimizer(kind, 0.1, 0.05, 0.1, 1e-6), factor_dtype=dtype,
    ))  # fmt: skip
    _assert_grouping_is_nothing(spec, data)


HISTORY = {"k": 16, "seed": 7, "l2": 0.01, "limits": SMALL, "history": History(16, 16, 1.0)}
COUNTS = Counts(16, 4, 2.0)


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec(
            loss=Loss.IMPLICIT,
            rule=Rule.SOLVE,
            solve=Solve(0.5, 2, 2),
            micro_batch=3,
            counts=COUNTS,
            **HISTORY,
        ),
        ModelSpec(loss=Loss.SQUARED, rule=Rule.SOLVE, solve=Solve(0.0, 2, 2), bias_l2=0.1, **HISTORY),
        ModelSpec(
            loss=Loss.IMPLICIT,
            rule=Rule.SOLVE,
            solve=Solve(0.5, 2),
            micro_batch=3,
            replay=Replay(8, 0.7),
            **HISTORY,
        ),
        ModelSpec(
            loss=Loss.IMPLICIT,
            rule=Rule.SOLVE,
            solve=Solve(0.0, 2, 2, 10.0),
            micro_batch=3,
            counts=COUNTS,
            mix=Mix(0.05),
            **(HISTORY | {"history": History(16, 16)}),
        ),
        ModelSpec(loss=Loss.SQUARED, replay=Replay(8, 0.7), **HISTORY),
        ModelSpec(loss=Loss.SQUARED, adaptive_rate=AdaptiveRate(16), **HISTORY),
        ModelSpec(loss=Loss.BPR, negatives=2, adaptive_rate=AdaptiveRate(16), **HISTORY),
        ModelSpec(loss=Loss.BPR, negatives=2, micro_batch=3, replay=Replay(8, 1.5), counts=COUNTS, **HISTORY),
        ModelSpec(
            loss=Loss.SOFTMAX, rule=Rule.SOFTMAX, negatives=4, micro_batch=3, replay=Replay(8, 0.7), **HISTORY
        ),
        ModelSpec(loss=Loss.BPR, negatives=2, counts=COUNTS, event_types=(EventType(0, 0.5),), **HISTORY),
        ModelSpec(loss=Loss.LOGISTIC, counts=COUNTS, event_types=(EventType(0, 2.0, True),), **HISTORY),
    ],
    ids=[
        "solve",
        "solve-ratings",
        "replay-solve",
        "solve-mix",
        "replay-ratings",
        "adaptive-ratings",
        "adaptive-bpr",
        "replay-bpr",
        "replay-softmax",
        "bpr",
        "logistic",
    ],
)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_grouping_gives_the_same_state_with_histories(spec: ModelSpec, data: st.DataObject) -> None:
    _assert_grouping_is_nothing(check(spec), data)


def _assert_grouping_is_nothing(spec: ModelSpec, data: st.DataObject) -> None:
    drawn = data.draw(st.lists(changes(spec.loss == Loss.SQUARED), min_size=1, max_size=8))
    stream: list[Change] = [OpenProducerChange(), *drawn]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=4)))
    together = run(spec, "cpu", stream, cuts)
    one_by_one = run(spec, "reference", stream, list(range(1, len(stream))))
    assert everything(together) == everything(one_by_one)
