"""Update kernels and plain Numba loops, without and with key look-ups: `python -m
benchmarks.speed.kernels`.

k = 64, squared loss, SGD, B = 1, 100 thousand users and 20 thousand items, both Zipf. The
candidates take turns on the same events in one run. Figures are medians of CPU seconds in one
thread: on an idle machine they equal wall time, and on a busy one they are still meaningful.
`events` is the number of events per turn, `rounds` the number of turns.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from statistics import median

import numpy as np

from benchmarks.speed.plain_kernels import plain_fast, plain_strict
from benchmarks.speed.streams import ITEMS, KEY_STEP, USERS, K, zipf_stream
from livefactor_kernels.backend import Update, state_sections
from livefactor_kernels.cpu import CpuModel
from livefactor_kernels.solve.features import Bags
from livefactor_kernels.spec.model import (
    Context,
    Embeddings,
    Features,
    History,
    Limits,
    Loss,
    ModelSpec,
    Optimizer,
    OptimizerKind,
    Proposal,
    Regularization,
    Rule,
    Softmax,
)
from livefactor_kernels.spec.presets import preset
from livefactor_kernels.update import UpdateRun

RATE, BIAS_RATE, L2, BIAS_L2 = 0.01, 0.01, 0.02, 0.005
DIMENSION = 384
"""Numbers of an item's vector, as MiniLM has them."""
FEATURES, FEATURES_PER_ID = 1000, 5
"""Distinct features of a side, and those of a bag."""
RUN_EVENTS = 4096
"""Events of a run of small records."""
_LIMITS = Limits(users_max=USERS, items_max=ITEMS, value_abs_max=1.0)


def _spec(**changes: object) -> ModelSpec:
    fields: dict[str, object] = {
        "k": K,
        "loss": Loss.SQUARED,
        "optimizer": Optimizer(OptimizerKind.SGD, RATE, BIAS_RATE),
        "l2": L2,
        "bias_l2": BIAS_L2,
        "seed": 1,
        "limits": Limits(users_max=USERS, items_max=ITEMS, error_max=1e3),
    }
    return ModelSpec(**{**fields, **changes})  # type: ignore[arg-type]


class _Events:
    """The events of the benchmark, by key and by row, and a model whose tables contain all keys."""

    def __init__(self, events: int) -> None:
        self.user_keys, self.item_keys, self.values = zipf_stream(events)

    def model(self, spec: ModelSpec) -> CpuModel:
        model = CpuModel(spec)
        all_keys = np.arange(max(USERS, ITEMS), dtype=np.uint64) * KEY_STEP
        model.users.allocate(all_keys[:USERS])
        model.items.allocate(all_keys[:ITEMS])
        return model

    def update(self, model: CpuModel, revision: int, with_keys: bool) -> None:
        """Applies all events as one record.

        `with_keys` looks up the rows first; otherwise the last ones are used.
        """
        if with_keys or not hasattr(self, "rows"):
            self.rows = model.users.find(self.user_keys, USERS), model.items.find(self.item_keys, ITEMS)
        values = self.values if model.spec.loss == Loss.SQUARED else None
        model.apply(Update(revision, *self.rows, values, None, USERS, ITEMS))


def _plain_state(model: CpuModel) -> list[np.ndarray]:
    tables = (
        model.users.factors[:USERS],
        model.items.factors[:ITEMS],
        model.users.bias[:USERS],
        model.items.bias[:ITEMS],
    )
    return [table.copy() for table in tables]


def _plain(loop: Callable[..., object], state: list[np.ndarray], events: _Events) -> None:
    f = np.float32
    loop(*state, *events.rows, events.values, f(0), f(0), f(RATE), f(BIAS_RATE), f(L2), f(BIAS_L2))


def measure(events: int = 1_000_000, rounds: int = 5) -> dict[str, float]:
    """Events per second of each candidate, under the names in `benchmarks/results/cpu.json`.

    It also prints the digest.
    """
    data = _Events(events)
    ours, keyed = data.model(_spec()), data.model(_spec())
    data.update(ours, 1, with_keys=True)
    data.update(keyed, 1, with_keys=True)
    print("digest of the tables after one pass:", digest(ours))
    fast, strict = _plain_state(data.model(_spec())), _plain_state(data.model(_spec()))
    candidates: dict[str, Callable[[int], None]] = {
        "kernel_events_per_s": lambda turn: data.update(ours, turn, with_keys=False),
        "kernel_plain_events_per_s": lambda turn: _plain(plain_fast, fast, data),
        "kernel_strict_events_per_s": lambda turn: _plain(plain_strict, strict, data),
        "kernel_with_keys_events_per_s": lambda turn: data.update(keyed, turn, with_keys=True),
    }
    return _take_turns(candidates, events, rounds)


def measure_losses(events: int = 500_000, rounds: int = 3) -> dict[str, float]:
    """Events per second of the other losses and of micro-batches, with 4 negatives per event if the
    loss has negatives.
    """
    data = _Events(events)
    specs = {
        "kernel_logistic_events_per_s": _spec(loss=Loss.LOGISTIC, negatives=4),
        "kernel_bpr_events_per_s": _spec(loss=Loss.BPR, negatives=4),
        "kernel_bpr_adagrad_events_per_s": _spec(
            loss=Loss.BPR, negatives=4, optimizer=Optimizer(OptimizerKind.ADAGRAD, RATE, BIAS_RATE)
        ),
        "kernel_micro_batch_1024_events_per_s": _spec(micro_batch=1024),
        "kernel_micro_batch_1024_logistic_events_per_s": _spec(
            loss=Loss.LOGISTIC, negatives=4, micro_batch=1024
        ),
    }
    models = {name: data.model(spec) for name, spec in specs.items()}
    candidates: dict[str, Callable[[int], None]] = {
        name: (lambda turn, model=model: data.update(model, turn, with_keys=False))  # type: ignore[misc]
        for name, model in models.items()
    }
    return _take_turns(candidates, events, rounds)


def measure_softmax(events: int = 200_000, rounds: int = 3) -> dict[str, float]:
    """Events per second of rule SOFTMAX with 64 shared negatives, by optimizer and micro-batch
    size.
    """
    data = _Events(events)
    models = {
        f"kernel_softmax_{kind.name.lower()}_{size}_events_per_s": data.model(
            _spec(
                loss=Loss.SOFTMAX,
                rule=Rule.SOFTMAX,
                softmax=Softmax(Proposal.UNIFORM),
                negatives=64,
                micro_batch=size,
                optimizer=Optimizer(kind, RATE, BIAS_RATE, 0.1),
            )
        )
        for kind in (OptimizerKind.SGD, OptimizerKind.ADAGRAD)
        for size in (16, 64, 256, 1024)
    }
    candidates: dict[str, Callable[[int], None]] = {
        name: (lambda turn, model=model: data.update(model, turn, with_keys=False))  # type: ignore[misc]
        for name, model in models.items()
    }
    return _take_turns(candidates, events, rounds)


def measure_solve(events: int = 20_000, rounds: int = 3) -> dict[str, float]:
    """Events per second of rule SOLVE with the presets `clicks` and `auto`, by size of the records,
    and of `clicks` whose items have vectors, whose users and items have features, or whose events
    have context.

    Records of one event come in runs, as in a replay. Each turn learns the events anew.
    """
    data = _Events(events)
    models = {
        f"kernel_solve_{name}_{size}_events_per_s": (data.model(preset(name, limits=_LIMITS)), size)
        for name in ("clicks", "auto")
        for size in (512, 64, 1)
    }
    described = preset("clicks", limits=_LIMITS, embeddings=Embeddings(DIMENSION))
    models["kernel_solve_embeddings_512_events_per_s"] = data.model(described), 512
    _describe(models["kernel_solve_embeddings_512_events_per_s"][0])
    featured = preset("clicks", limits=_LIMITS, features=Features(FEATURES, FEATURES_PER_ID))
    models["kernel_solve_features_512_events_per_s"] = data.model(featured), 512
    _tell(models["kernel_solve_features_512_events_per_s"][0])
    told = preset("clicks", limits=_LIMITS, context=Context(FEATURES))
    models["kernel_solve_context_512_events_per_s"] = data.model(told), 512
    candidates: dict[str, Callable[[int], None]] = {
        name: (lambda turn, model=model, size=size: _in_records(data, model, size))  # type: ignore[misc]
        for name, (model, size) in models.items()
    }
    return _take_turns(candidates, events, rounds)


def _describe(model: CpuModel) -> None:
    """Gives all items vectors of `DIMENSION` numbers."""
    vectors = np.random.default_rng(1).normal(size=(ITEMS, DIMENSION)).astype(np.float16)
    model.set_embeddings(ITEMS, np.arange(ITEMS, dtype=np.uint32), vectors, model.revision + 1, ITEMS)


def _bags(count: int) -> Bags:
    """Bags of `FEATURES_PER_ID` different features."""
    rng = np.random.default_rng(2)
    keys = np.sort(rng.integers(0, FEATURES // FEATURES_PER_ID, (count, FEATURES_PER_ID)), axis=1)
    keys += np.arange(FEATURES_PER_ID) * (FEATURES // FEATURES_PER_ID)
    ends = np.arange(1, count + 1) * FEATURES_PER_ID
    return Bags(ends, keys.reshape(-1).astype(np.uint64), np.ones(keys.size, np.float32))


def _tell(model: CpuModel) -> None:
    """Gives all users and items features."""
    for side, count in enumerate((USERS, ITEMS)):
        rows = np.arange(count, dtype=np.uint32)
        model.set_features(side, rows, _bags(count), model.revision + 1, count)


def _in_records(data: _Events, model: CpuModel, size: int) -> None:
    """Learns all events in runs of records of `size` events."""
    rows = model.users.find(data.user_keys, USERS), model.items.find(data.item_keys, ITEMS)
    if model.spec.context.size:
        _with_context(rows, model, size)
        return
    for start in range(0, len(rows[0]), RUN_EVENTS):
        users, items = (column[start : start + RUN_EVENTS] for column in rows)
        ends = np.minimum(np.arange(size, len(users) + size, size), len(users))
        counts = np.full(len(ends), USERS), np.full(len(ends), ITEMS)
        first = model.revision + 1
        joined = Update(first + len(ends) - 1, users, items, None, None, USERS, ITEMS)
        model.apply_all(UpdateRun(joined, first, ends, *counts))


def _with_context(rows: tuple[np.ndarray, np.ndarray], model: CpuModel, size: int) -> None:
    bags = _bags(size)
    for start in range(0, len(rows[0]), size):
        users, items = (column[start : start + size] for column in rows)
        model.apply(Update(model.revision + 1, users, items, None, None, USERS, ITEMS))
        count = len(items)
        told = Bags(
            bags.ends[:count], bags.keys[: bags.ends[count - 1]], bags.weights[: bags.ends[count - 1]]
        )
        model.learn_context(items, told)


def measure_optimizers(events: int = 200_000, rounds: int = 3) -> dict[str, float]:
    """Events per second of rule SGD with squared loss, by optimizer, micro-batch size and kind of
    regularisation.
    """
    data = _Events(events)
    specs = {
        f"kernel_{kind.name.lower()}_{size}_events_per_s": _spec(
            micro_batch=size, optimizer=Optimizer(kind, RATE, BIAS_RATE, 0.1)
        )
        for kind in OptimizerKind
        for size in (1, 1024)
    }
    for name, regularization in (
        ("gradient_norm", Regularization(gradient_norm_max=1.0)),
        ("row_norm", Regularization(row_norm_max=1.0)),
        ("l2_frequency", Regularization(l2_frequency=0.5)),
        ("dropout", Regularization(dropout=0.2)),
    ):
        history = History(16) if regularization.l2_frequency else History()
        spec = _spec(micro_batch=1024, history=history, regularization=regularization)
        specs[f"kernel_sgd_1024_{name}_events_per_s"] = spec
    models = {name: data.model(spec) for name, spec in specs.items()}
    candidates: dict[str, Callable[[int], None]] = {
        name: (lambda turn, model=model: data.update(model, turn, with_keys=False))  # type: ignore[misc]
        for name, model in models.items()
    }
    return _take_turns(candidates, events, rounds)


def _take_turns(candidates: dict[str, Callable[[int], None]], events: int, rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for run in candidates.values():
        # The first call compiles and warms up.
        run(2)
    for turn in range(3, rounds + 3):
        for name, run in candidates.items():
            start = time.thread_time()
            run(turn)
            seconds[name].append(time.thread_time() - start)
    return {name: events / median(times) for name, times in seconds.items()}


def digest(model: CpuModel) -> str:
    """SHA-256 of the model's tables."""
    sha = hashlib.sha256()
    model.advance(model.revision, USERS, ITEMS)
    for view in state_sections(model).values():
        sha.update(np.ascontiguousarray(view).tobytes())
    return sha.hexdigest()


def main() -> None:
    """Measures everything and prints a table."""
    rates = measure() | measure_losses() | measure_softmax() | measure_optimizers() | measure_solve()
    plain = rates["kernel_plain_events_per_s"]
    print(f"{'':48}{'M events/s':>12}{'ns/event':>10}{'x plain':>9}")
    for name, rate in rates.items():
        print(f"{name:48}{rate / 1e6:12.2f}{1e9 / rate:10.1f}{rate / plain:9.2f}")


if __name__ == "__main__":
    main()
