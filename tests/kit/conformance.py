"""The specs of the conformance kit, and the records that its models learn.

`tests/kernels/test_conformance.py` holds every backend to the same behaviours with each of these
specs. A new rule, optimiser or part of a spec adds its lines to `SPECS`, and needs no test of its
own for what the kit checks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from livefactor_kernels.backend import Backend, BackendUnavailable, Update, choose_backend, is_on_cuda
from livefactor_kernels.device.warp import SIMULATED
from livefactor_kernels.solve.features import Bags
from livefactor_kernels.solve.prior import dimension_of
from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import (
    AdaptiveRate,
    Context,
    Counts,
    Embeddings,
    FactorDtype,
    Features,
    History,
    Limits,
    Loss,
    Mix,
    ModelSpec,
    Optimizer,
    OptimizerKind,
    Regularization,
    Replay,
    Rule,
    Solve,
)
from livefactor_kernels.tables import ITEMS, USERS
from specs import ADAGRAD, IN_BATCH, POPULARITY, UNIFORM, grouped, softmax_spec, solve_spec
from synthetic import LOSSES, make_spec

FLOAT16, BFLOAT16 = FactorDtype.FLOAT16, FactorDtype.BFLOAT16
SGD, ADAM, FTRL = OptimizerKind.SGD, OptimizerKind.LAZY_ADAM, OptimizerKind.FTRL
NUMBERS = {
    kind: Optimizer(kind, 0.07, 0.03, 0.1, 1e-6, l1=0.004 if kind == FTRL else 0.0) for kind in OptimizerKind
}
"""Each optimiser with a value for every number that it has."""
KEPT = {"history": History(16, 16), "counts": Counts(16, 4)}
BOUNDS = Regularization(0.05, 0.2, 0.5, 0.3)
ATTACKED = Regularization(0.0, 0.0, 0.5, adversarial_weight=0.7, adversarial_share=0.3)
WINDOW = AdaptiveRate(16)


def _sgd(loss: Loss, negatives: int, kind: OptimizerKind, batch: int, **changes: object) -> ModelSpec:
    return make_spec(loss, negatives=negatives, optimizer=NUMBERS[kind], micro_batch=batch, **changes)


def _every_optimizer() -> Iterator[tuple[str, ModelSpec]]:
    """Yield specs of rule SGD for every loss with every optimiser.

    Each pair comes event by event and in micro-batches.
    """
    for loss, negatives in LOSSES:
        for kind in OptimizerKind:
            for batch in (1, 7):
                name = f"{loss.name}-{negatives}-{kind.name}-B{batch}".lower()
                yield name, _sgd(loss, negatives, kind, batch)


def _narrow_factors(every: bool) -> Iterator[tuple[str, ModelSpec]]:
    """Yield specs for each optimiser with both narrow types and both kinds of kernels.

    The losses take turns unless `every` is true.
    """
    for d, dtype in enumerate((FLOAT16, BFLOAT16)):
        for b, batch in enumerate((1, 7)):
            for o, kind in enumerate(OptimizerKind):
                for n, (loss, negatives) in enumerate(LOSSES):
                    if (n == (o + d + 2 * b) % len(LOSSES)) != every:
                        name = f"{loss.name}-{negatives}-{kind.name}-B{batch}-{dtype.name}".lower()
                        yield name, _sgd(loss, negatives, kind, batch, factor_dtype=dtype)


SPECS: dict[str, ModelSpec] = {
    **dict(_every_optimizer()),
    **dict(_narrow_factors(every=False)),
    "wide-squared-adagrad": _sgd(Loss.SQUARED, 0, ADAGRAD, 1, k=20),
    "wide-bpr-sgd": _sgd(Loss.BPR, 3, SGD, 1, k=20),
    "wide-squared-sgd": _sgd(Loss.SQUARED, 0, SGD, 7, k=64),
    "wide-logistic-adagrad": _sgd(Loss.LOGISTIC, 3, ADAGRAD, 7, k=64),
    "wide-bpr-float16": _sgd(Loss.BPR, 3, ADAGRAD, 7, k=64, factor_dtype=FLOAT16),
    "wide-squared-bfloat16": _sgd(Loss.SQUARED, 0, SGD, 1, k=20, factor_dtype=BFLOAT16),
    "many-negatives-bpr": _sgd(Loss.BPR, 40, SGD, 1),
    "many-negatives-logistic": _sgd(Loss.LOGISTIC, 17, SGD, 1),
    "clip-gradient": _sgd(Loss.SQUARED, 0, SGD, 7, regularization=Regularization(gradient_norm_max=0.05)),
    "clip-gradient-bpr": _sgd(Loss.BPR, 3, SGD, 1, regularization=Regularization(gradient_norm_max=0.05)),
    "clip-row": _sgd(Loss.LOGISTIC, 3, ADAM, 1, regularization=Regularization(row_norm_max=0.1), factor_dtype=BFLOAT16),
    "clip-row-squared": _sgd(Loss.SQUARED, 0, FTRL, 7, regularization=Regularization(row_norm_max=0.1)),
    "l2-sqrt": _sgd(Loss.LOGISTIC, 0, SGD, 7, regularization=Regularization(l2_frequency=0.5), history=History(16)),
    "l2-frequency": _sgd(Loss.BPR, 3, SGD, 7, regularization=Regularization(l2_frequency=1.0), history=History(16)),
    "dropout-squared": _sgd(Loss.SQUARED, 0, ADAM, 1, regularization=Regularization(dropout=0.4)),
    "dropout-logistic": _sgd(Loss.LOGISTIC, 0, ADAM, 7, regularization=Regularization(dropout=0.4)),
    "dropout-negatives": _sgd(Loss.LOGISTIC, 3, ADAM, 1, regularization=Regularization(dropout=0.4)),
    "dropout-bpr": _sgd(Loss.BPR, 3, ADAM, 7, regularization=Regularization(dropout=0.4)),
    "adversarial-logistic": _sgd(Loss.LOGISTIC, 3, SGD, 7, regularization=ATTACKED, history=History(16)),
    "adversarial-bpr": _sgd(Loss.BPR, 3, OptimizerKind.ADAGRAD, 7, k=33, regularization=ATTACKED, history=History(16)),
    "all-bounds-squared": _sgd(Loss.SQUARED, 0, SGD, 7, k=33, regularization=BOUNDS, history=History(16)),
    "all-bounds-logistic": _sgd(Loss.LOGISTIC, 3, SGD, 7, k=33, regularization=BOUNDS, history=History(16)),
    "all-bounds-bpr": _sgd(Loss.BPR, 3, SGD, 1, k=33, regularization=BOUNDS, history=History(16)),
    "all-bounds-ftrl": _sgd(Loss.BPR, 3, FTRL, 3, regularization=BOUNDS, history=History(16), replay=Replay(8, 0.5)),
    "adaptive-squared": make_spec(Loss.SQUARED, k=20, adaptive_rate=WINDOW),
    "adaptive-logistic": make_spec(Loss.LOGISTIC, adaptive_rate=WINDOW),
    "adaptive-negatives": make_spec(Loss.LOGISTIC, k=33, negatives=3, adaptive_rate=WINDOW),
    "adaptive-bpr": make_spec(Loss.BPR, k=1, negatives=2, adaptive_rate=AdaptiveRate(50)),
    "adaptive-micro": make_spec(Loss.LOGISTIC, negatives=2, micro_batch=7, adaptive_rate=WINDOW),
    "adaptive-bounds": make_spec(
        Loss.BPR, negatives=2, history=History(16), regularization=Regularization(2.0, 1.5, 0.5, 0.25), adaptive_rate=WINDOW
    ),
    "adaptive-replay": make_spec(
        Loss.SQUARED, replay=Replay(30, 0.75), history=History(16, 16), adaptive_rate=WINDOW
    ),
    "adaptive-negatives-replay": make_spec(Loss.LOGISTIC, negatives=2, replay=Replay(30, 0.75), adaptive_rate=WINDOW),
    "replay-squared": make_spec(Loss.SQUARED, replay=Replay(24, 0.75)),
    "replay-squared-micro": make_spec(Loss.SQUARED, ADAGRAD, micro_batch=7, replay=Replay(24, 2.5), **KEPT),
    "replay-logistic": make_spec(Loss.LOGISTIC, negatives=3, replay=Replay(24, 0.75), **KEPT),
    "replay-bpr": make_spec(Loss.BPR, ADAGRAD, negatives=2, replay=Replay(500, 0.1)),
    "replay-bpr-bfloat16": make_spec(
        Loss.BPR, negatives=2, micro_batch=5, replay=Replay(24, 0.75), factor_dtype=BFLOAT16
    ),
    "history-bpr-counts": make_spec(Loss.BPR, negatives=2, history=History(16), counts=Counts(16, 5)),
    "history-logistic": make_spec(Loss.LOGISTIC, micro_batch=8, history=History(16, 32)),
    "solve-implicit": solve_spec(),
    "solve-implicit-B1": solve_spec(k=16, micro_batch=1),
    "solve-implicit-every-item": solve_spec(k=5, micro_batch=64, solve=Solve(0.3, 1, 1)),
    "solve-no-counts": solve_spec(counts=Counts()),
    "solve-squared": solve_spec(Loss.SQUARED),
    "solve-squared-B1": solve_spec(Loss.SQUARED, k=17, micro_batch=1, solve=Solve(0.0, 2, 3)),
    "solve-density": solve_spec(solve=Solve(0.0, 3, 2, 10.0, 5.0)),
    "solve-mix": solve_spec(history=History(16, 16), counts=Counts(16, 6), mix=Mix(0.05)),
    "solve-mix-replay": solve_spec(
        micro_batch=8, solve=Solve(0.0, 3, 2, 10.0), history=History(16, 16), counts=Counts(16, 6), mix=Mix(0.05),
        replay=Replay(24, 0.75),
    ),
    "solve-mix-recent": solve_spec(history=History(16, 16), counts=Counts(16, 6), mix=Mix(0.05, 0.5)),
    "solve-mix-similar": solve_spec(
        history=History(16, 16), counts=Counts(16, 6), mix=Mix(0.05, 0.5, 5)
    ),
    "solve-mix-roots": solve_spec(
        history=History(16, 16), counts=Counts(16, 6), mix=Mix(0.05, 0.5, 5, 2, True, 3.0)
    ),
    "solve-mix-walks": solve_spec(
        history=History(16, 16), counts=Counts(16, 6),
        mix=Mix(0.05, 0.5, 5, 2, baskets=True, walk_users=7, early_events=40),
    ),
    "solve-replay": solve_spec(micro_batch=8, replay=Replay(24, 0.75)),
    "solve-replay-B1": solve_spec(micro_batch=1, replay=Replay(24, 2.5), counts=Counts()),
    "solve-replay-squared": solve_spec(Loss.SQUARED, micro_batch=7, replay=Replay(500, 1.0)),
    "solve-embeddings": solve_spec(embeddings=Embeddings(5, 2.0)),
    "solve-features-B1": solve_spec(micro_batch=1, counts=Counts(), features=Features(24, 3), embeddings=Embeddings(0, 2.0)),
    "solve-features-follow": solve_spec(features=Features(24, 3, 2.0), embeddings=Embeddings(5, 2.0)),
    "solve-features-follow-mix": solve_spec(
        history=History(16, 16), counts=Counts(16, 6), mix=Mix(0.05, 0.5), features=Features(24, 3, 2.0),
    ),
    "solve-embeddings-users": solve_spec(embeddings=Embeddings(5, 2.0, 4)),
    "solve-embeddings-users-mix": solve_spec(
        history=History(16, 16), counts=Counts(16, 6), mix=Mix(0.05, 0.5), features=Features(24, 3, 2.0),
        embeddings=Embeddings(0, 2.0, 4),
    ),
    "solve-content-mix": solve_spec(
        history=History(16, 16), counts=Counts(16, 6), mix=Mix(0.05, 0.5), embeddings=Embeddings(5, 2.0),
        features=Features(24, 3), context=Context(12),
    ),
    "solve-content-replay": solve_spec(
        micro_batch=8, replay=Replay(24, 0.75), embeddings=Embeddings(5, 2.0), features=Features(24, 3),
        context=Context(12),
    ),
    "context-bpr-bfloat16": _sgd(Loss.BPR, 3, ADAGRAD, 7, factor_dtype=BFLOAT16, context=Context(12)),
    "context-softmax": softmax_spec(context=Context(12)),
    "softmax-uniform": softmax_spec(UNIFORM),
    "softmax-uniform-B1": softmax_spec(UNIFORM, k=16, negatives=16, micro_batch=1),
    "softmax-uniform-wide": softmax_spec(UNIFORM, ADAGRAD, k=64, negatives=64, micro_batch=100),
    "softmax-popularity": softmax_spec(POPULARITY, ADAGRAD, k=5, micro_batch=33),
    "softmax-popularity-wide": softmax_spec(POPULARITY, k=80, negatives=17),
    "softmax-popularity-counts": softmax_spec(counts=Counts(16, 5), history=History(16, 16)),
    "softmax-in-batch": softmax_spec(IN_BATCH, micro_batch=40),
    "softmax-in-batch-adagrad": softmax_spec(IN_BATCH, ADAGRAD, micro_batch=16, k=33),
    "softmax-uniform-groups": grouped(UNIFORM, 5, ADAGRAD, micro_batch=40, k=33),
    "softmax-popularity-groups": grouped(POPULARITY, 36, micro_batch=72, negatives=17),
    "softmax-in-batch-groups": grouped(IN_BATCH, 4, micro_batch=48),
    "softmax-rowwise": softmax_spec(POPULARITY, optimizer=NUMBERS[OptimizerKind.ROWWISE_ADAGRAD]),
    "softmax-adam": softmax_spec(POPULARITY, optimizer=NUMBERS[ADAM]),
    "softmax-ftrl": softmax_spec(POPULARITY, optimizer=NUMBERS[FTRL]),
    "softmax-bounds": softmax_spec(POPULARITY, regularization=Regularization(0.05, 0.1)),
    "softmax-replay": softmax_spec(replay=Replay(24, 0.75)),
    "softmax-in-batch-replay": softmax_spec(IN_BATCH, replay=Replay(24, 0.75)),
}  # fmt: skip
LONG_SPECS: dict[str, ModelSpec] = dict(_narrow_factors(every=True))
"""The remaining losses and optimisers with narrow factors."""
IN_SIMULATOR = (
    "squared-0-adagrad-b7",
    "bpr-3-ftrl-b7-bfloat16",
    "logistic-3-lazy_adam-b1",
    "adaptive-micro",
    "replay-squared-micro",
    "solve-replay",
    "solve-squared",
    "history-bpr-counts",
    "softmax-uniform-B1",
    "softmax-in-batch-groups",
    "softmax-replay",
)
"""The specs that run on the simulator in `make test`, which takes a second for a millisecond of a
device.

The files of the GPU tests learn with the other optimisers, losses and rules there. All of `SPECS`
run on a device, and with the marker `long`.
"""


READ_IN_SIMULATOR = (
    "bpr-3-ftrl-b7-bfloat16",
    "logistic-3-lazy_adam-b1",
    "adaptive-micro",
    "solve-replay",
    "history-bpr-counts",
    "softmax-replay",
)
"""Those of them whose pins and reads differ, because their tables have other columns."""


def specs_of(backend: str, in_simulator: Sequence[str] = IN_SIMULATOR) -> list[object]:
    """Return the parameters (backend, spec) for `parametrize`.

    Without a GPU one case stands for all of CUDA. CUDA gets no spec that it refuses. In the
    simulator specs that are not `in_simulator` have the marker `long`.
    """
    names = [*SPECS, *LONG_SPECS]
    if backend == "cuda" and not SIMULATED and not _gpu_answers():
        names = names[:1]
    parameters = []
    for name in names:
        marks = [pytest.mark.long] if name in LONG_SPECS else []
        if backend == "cuda":
            marks += [pytest.mark.gpu] if not SIMULATED else []
            marks += [pytest.mark.long] if SIMULATED and name not in in_simulator else []
        spec = (SPECS | LONG_SPECS)[name]
        if backend == "cuda" and not is_on_cuda(spec):
            continue
        spec = _small(spec) if backend == "cuda" and SIMULATED else spec
        parameters.append(pytest.param(backend, spec, id=f"{name}-{backend}", marks=marks))
    return parameters


def _gpu_answers() -> bool:
    try:
        return choose_backend("cuda") == "cuda"
    except BackendUnavailable:
        return False


def _small(spec: ModelSpec) -> ModelSpec:
    """Return the spec with narrower rows and fewer negatives, because the simulator is slow."""
    group = spec.softmax.group_events
    batch = min(spec.micro_batch, 2 * group if group else 6)
    small = replace(
        spec, k=min(spec.k, 3), negatives=min(spec.negatives, 3), micro_batch=batch,
        softmax=replace(spec.softmax, group_events=min(group, batch // 2)),
    )  # fmt: skip
    return check(small)


def with_extreme_numbers(spec: ModelSpec) -> ModelSpec:
    """Return the spec with rates, ridges and limits that provoke every possible overflow."""
    kind = spec.optimizer.kind
    limits = Limits(
        users_max=64, items_max=64, value_abs_max=1e6, weight_max=1e3, error_max=1e6, factor_max=1e3
    )
    optimizer = Optimizer(kind, 100.0, 100.0, 0.0, 1e-20 if kind == ADAM else 1e-30)
    changed = replace(spec, limits=limits, optimizer=optimizer, init_scale=2e3, hot_row_events=1e9)
    return check(changed if spec.rule == Rule.SOLVE else replace(changed, l2=100.0, bias_l2=100.0))


@dataclass
class Record:
    """The columns of one record. Users and items are given by key.

    `seed` draws what a spec with embeddings, features or context learns after it. None: nothing.
    """

    users: np.ndarray
    items: np.ndarray
    values: np.ndarray | None
    weights: np.ndarray | None
    times: np.ndarray | None
    seed: int | None = None

    def placed(self, model: Backend, revision: int) -> Update:
        """Return the update for a model. The call allocates rows for the keys."""
        rows = model.users.allocate(self.users), model.items.allocate(self.items)
        counts = model.users.allocated, model.items.allocated
        return Update(revision, *rows, self.values, self.weights, *counts, self.times)


def draw_record(
    rng: np.random.Generator, spec: ModelSpec, events: int, users: int = 9, items: int = 12
) -> Record:
    """Draw random events among few keys.

    Rows repeat and item 3 is frequent. Some records have runs of one user or lack columns.
    """
    user_keys = rng.integers(0, users, events)
    user_keys = np.sort(user_keys) if rng.random() < 0.5 else user_keys
    item_keys = np.where(rng.random(events) < 0.3, 3, rng.integers(0, items, events))
    if spec.loss in (Loss.LOGISTIC, Loss.IMPLICIT):
        values = rng.integers(0, 2, events).astype(np.float32)
    elif spec.loss == Loss.SOFTMAX:
        values = (rng.random(events) < 0.8) * rng.random(events)
    else:
        values = rng.normal(size=events)
    # With squared loss the contract requires a value for every event.
    if spec.loss != Loss.SQUARED and rng.random() < 0.2:
        values = None
    weights = rng.random(events) * 3 + 0.1 if rng.random() < 0.6 else None
    times = np.sort(rng.integers(0, 6, events)) if rng.random() < 0.6 else None
    return Record(
        user_keys.astype(np.uint64),
        item_keys.astype(np.uint64),
        None if values is None else values.astype(np.float32),
        None if weights is None else weights.astype(np.float32),
        times,
        int(rng.integers(1 << 32)) if has_content(spec) and rng.random() < 0.6 else None,
    )


def has_content(spec: ModelSpec) -> bool:
    """Whether models learn something beside events."""
    has_vectors = spec.embeddings.dimension or spec.embeddings.user_dimension
    return bool(has_vectors or spec.features.size or spec.context.size)


def tell(model: Backend, record: Record) -> None:
    """Give ids, of which some are new, vectors and bags, and the record's events context."""
    rng, spec = np.random.default_rng(record.seed), model.spec
    if spec.context.size:
        rows = model.items.find(record.items, model.published[ITEMS])
        model.learn_context(rows, draw_bags(rng, len(rows), 3))
    for side, table in ((ITEMS, model.items), (USERS, model.users)):
        if dimension_of(spec, side):
            rows = table.allocate(rng.integers(0, 30, 6).astype(np.uint64))
            vectors = rng.normal(size=(6, dimension_of(spec, side))) * (rng.random((6, 1)) < 0.8)
            model.set_embeddings(side, rows, vectors.astype(np.float16), model.revision + 1, table.allocated)
    for side, table in ((USERS, model.users), (ITEMS, model.items)) if spec.features.size else ():
        rows = table.allocate(rng.integers(0, 30, 6).astype(np.uint64))
        bags = draw_bags(rng, 6, spec.features.per_id)
        model.set_features(side, rows, bags, model.revision + 1, table.allocated)


def draw_bags(rng: np.random.Generator, n: int, per_id: int) -> Bags:
    """Draw n bags with up to `per_id` of 20 features."""
    sizes = rng.integers(0, per_id + 1, n)
    keys = [rng.choice(20, int(size), replace=False) for size in sizes]
    weights = rng.normal(size=int(sizes.sum())).astype(np.float32)
    return Bags(np.cumsum(sizes), np.concatenate([*keys, []]).astype(np.uint64), weights)


def draw_stream(seed: int, spec: ModelSpec, sizes: Sequence[int]) -> list[Record]:
    """Draw one record for each size. The tables grow from one record to the next."""
    rng = np.random.default_rng(seed)
    return [draw_record(rng, spec, size, 5 + 3 * turn, 6 + 4 * turn) for turn, size in enumerate(sizes)]


def learn(model: Backend, records: Sequence[Record], at_once: int = 1) -> None:
    """Apply the records in calls of `at_once` records, or fewer up to one that tells more."""
    part: list[Update] = []
    for record in records:
        part.append(record.placed(model, model.revision + 1 + len(part)))
        if record.seed is not None or len(part) == at_once or record is records[-1]:
            model.apply_all(part)
            part = []
        if record.seed is not None:
            tell(model, record)
