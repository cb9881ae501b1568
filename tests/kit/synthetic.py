"""Models and event streams for the tests of the kernels."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest

from livefactor_kernels.backend import BACKEND_NAMES, Backend, Pin, Update, state_sections
from livefactor_kernels.cpu import CpuModel
from livefactor_kernels.reference import ReferenceModel
from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import Limits, Loss, ModelSpec, Optimizer, OptimizerKind
from livefactor_kernels.tables import ITEMS, USERS

BACKENDS = [pytest.param(name, marks=pytest.mark.gpu) if name == "cuda" else name for name in BACKEND_NAMES]
"""Every backend, for `parametrize`; the GPU's where one is."""
LOSSES = ((Loss.SQUARED, 0), (Loss.LOGISTIC, 0), (Loss.LOGISTIC, 3), (Loss.BPR, 3))
"""Loss and negatives of each kind of event."""
SIDES = ((USERS, "users"), (ITEMS, "items"))
SMALL = Limits(users_max=4096, items_max=4096, value_abs_max=10.0, weight_max=10.0, error_max=100.0)


def make_spec(loss: Loss, kind: OptimizerKind = OptimizerKind.SGD, **changes: object) -> ModelSpec:
    """Return a small spec with every term of the arithmetic switched on."""
    fields: dict[str, object] = {
        "k": 16,
        "loss": loss,
        "optimizer": Optimizer(kind, 0.07, 0.03, 0.1, 1e-6),
        "l2": 0.02,
        "bias_l2": 0.005,
        "hot_row_events": 5.0,
        "seed": 0x1234_5678_9ABC_DEF0,
        "limits": SMALL,
    }
    return check(ModelSpec(**{**fields, **changes}))  # type: ignore[arg-type]


def push(model: Backend, users, items, values=None, weights=None, times=None) -> None:
    """Allocate the keys (sequences of int) and apply them as the next record."""
    columns = [None if column is None else np.asarray(column, np.float32) for column in (values, weights)]
    user_rows = model.users.allocate(np.asarray(users, np.uint64))
    item_rows = model.items.allocate(np.asarray(items, np.uint64))
    counts = model.users.allocated, model.items.allocated
    times = None if times is None else np.asarray(times, np.int64)
    model.apply(Update(model.revision + 1, user_rows, item_rows, *columns, *counts, times))


def push_random(model: Backend, rng: np.random.Generator, events: int, users: int, items: int) -> None:
    """Push a record with random events among few keys, so that rows repeat.

    Every second event names item 3.
    """
    item_keys = rng.integers(0, items, events)
    item_keys[::2] = 3
    values = rng.integers(0, 2, events) if model.spec.loss == Loss.LOGISTIC else rng.normal(size=events)
    push(model, rng.integers(0, users, events), item_keys, values, rng.random(events) + 0.1)


def learn_side_by_side(models: Sequence[Backend]) -> None:
    """Push the same random records to every model at the same time, in one thread per model."""

    def run(model: Backend) -> None:
        rng = np.random.default_rng(8)
        for _ in range(12):
            push_random(model, rng, 700, 200, 90)

    threads = [threading.Thread(target=run, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def differences(one: Backend, other: Backend) -> list[str]:
    """Return the names of the sections whose bits differ."""
    left, right = state_sections(one), state_sections(other)
    assert left.keys() == right.keys()
    return [name for name in left if left[name].tobytes() != right[name].tobytes()]


def pair(spec: ModelSpec) -> tuple[CpuModel, ReferenceModel]:
    """Return an empty model and its empty judge."""
    return CpuModel(spec), ReferenceModel(spec)


def assert_same(fast: CpuModel, judge: ReferenceModel) -> None:
    """Check that every table has the same bits and that the padding is still 0."""
    assert differences(fast, judge) == []
    assert (fast.revision, fast.published) == (judge.revision, judge.published)
    assert fast.mean.tobytes() == judge.mean.tobytes()
    kp, k = fast.spec.k_padded, fast.spec.k
    for table, count in zip((fast.users, fast.items), fast.published, strict=True):
        assert not any(table.factors[:count, k:kp].tobytes()), "padding"


def copy_state(model: Backend) -> dict[str, np.ndarray]:
    """Return a copy of the published state."""
    return {name: view.copy() for name, view in state_sections(model).items()}


def restore(model: Backend, other: Backend, events: int) -> None:
    """Load the state of `other`, which has learned `events` events, into an empty model."""
    for side, count in enumerate(other.published):
        model.load_sections(side, {n: v.copy() for n, v in other.sections(side, count).items()}, count)
    model.advance(other.revision, *other.published)
    state = {name: array.copy() for name, array in other.state().items()}
    model.load_state(state | {"events": np.array([events], np.uint64)})


def read_pin(pin: Pin, step: int = 7) -> dict[str, np.ndarray]:
    """Return all arrays of a pin, named as in `state_sections`. Read `step` rows at a time."""
    sections: dict[str, list[np.ndarray]] = {}
    for side, name in SIDES:
        for start in range(0, max(1, pin.counts[side]), step):
            rows = pin.read_rows(side, start, min(start + step, pin.counts[side]))
            for section, values in rows.items():
                sections.setdefault(f"{name}.{section}", []).append(values)
    joined = {name: np.concatenate(parts) for name, parts in sections.items()}
    return joined | pin.state()


def unlike(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> list[str]:
    """Return the names of arrays that differ in bits, shape or dtype or that only one has."""
    both = got.keys() & expected.keys()
    return sorted(got.keys() ^ expected.keys()) + [
        name
        for name in sorted(both)
        if (got[name].dtype, got[name].shape) != (expected[name].dtype, expected[name].shape)
        or got[name].tobytes() != expected[name].tobytes()
    ]
