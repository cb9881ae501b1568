"""What a model's state is a function of, beside its log: the specification.

`state(r) = apply(spec, log[1..r])`. Two models with equal specs and equal logs have bit-identical tables on
every supported machine; so every number here is part of the contract, is rounded once to float32 where the
arithmetic uses it, and is checked so that no event can make a table value infinite or NaN
(`ModelSpec.check`).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from enum import IntEnum

import numpy as np

KERNEL_SEMANTICS = 1
"""Version of the arithmetic. Any change of the bits a log gives bumps it; golden digests fail otherwise."""

LANES = 16
"""Lanes of a dot product; rows are padded with zeros to a multiple of it."""

FIXED_POINT_ONE = 1 << 20
"""The global mean sums values in fixed point: round-half-even(float64(value) * 2**20) as int64."""

MAX_K = 1024
MAX_NEGATIVES = 1024
MAX_MICRO_BATCH = 65_536
MAX_HISTORY = 8192
MAX_NEIGHBORS = 1024
MAX_EVENT_TYPES = 64


class Rule(IntEnum):
    """How a model learns from an event. Numbers equal `livefactor.v1.Rule`; logged specs leave SGD out."""

    SGD = 1
    SOLVE = 2
    SOFTMAX = 3


class Loss(IntEnum):
    """Numbers equal `livefactor.v1.Loss`."""

    SQUARED = 1
    LOGISTIC = 2
    BPR = 3
    IMPLICIT = 4
    SOFTMAX = 5


class Proposal(IntEnum):
    """How the shared negatives of rule SOFTMAX come. Numbers equal `livefactor.v1.Proposal`."""

    UNIFORM = 1
    POPULARITY = 2
    IN_BATCH = 3


class OptimizerKind(IntEnum):
    """Numbers equal `livefactor.v1.OptimizerKind`."""

    SGD = 1
    ADAGRAD = 2


class FactorDtype(IntEnum):
    """What factors are stored as. Numbers equal `livefactor.v1.FactorDtype`; logged specs leave FLOAT32 out."""

    FLOAT32 = 1
    FLOAT16 = 2
    BFLOAT16 = 3


FLOAT16_MAX = 65504.0
"""The largest float16."""


class SpecError(ValueError):
    """A spec that is refused; the text names the field, what was expected and what came."""


@dataclass(frozen=True, slots=True)
class Optimizer:
    """Step rule of factors and biases (AdaGrad: Duchi, Hazan, Singer 2011, diagonal form).

    `bias_learning_rate` 0 means: biases stay 0. `initial_g` is the accumulators' first value, `eps` is added
    to their root.
    """

    kind: OptimizerKind = OptimizerKind.SGD
    learning_rate: float = 0.05
    bias_learning_rate: float = 0.05
    initial_g: float = 0.0
    eps: float = 1e-6


@dataclass(frozen=True, slots=True)
class History:
    """How many of a row's last events it remembers (0: none), a multiple of 16 up to `MAX_HISTORY`.

    users: items that a user had, with values, weights and visits; items: an item's users. Events of a user at
    one time are one visit, as a basket is; an event whose time is 0 (unknown) is a visit of its own.
    `half_life`: after so many later visits of its user an event counts half when the user is folded in for a
    score; 0: all count alike.
    """

    users: int = 0
    items: int = 0
    half_life: float = 0.0


@dataclass(frozen=True, slots=True)
class Solve:
    """Rule SOLVE: a row is the least-squares solution for its history (`solve/__init__.py`).

    unobserved: weight of the error of every pair to 0, beside that of events to their targets (0 with squared
    loss). item_events: an item is solved for each of its first so many events, then at every so manieth; a user
    always. sweeps: Gauss-Seidel sweeps over a row's factors.
    """

    unobserved: float = 0.0
    item_events: int = 8
    sweeps: int = 2


@dataclass(frozen=True, slots=True)
class Softmax:
    """Rule SOFTMAX: every event against negatives that its micro-batch shares (`softmax/__init__.py`): drawn from all items
    alike (UNIFORM) or in proportion to 1 + their events so far (POPULARITY), or the micro-batch's own items (IN_BATCH)."""

    proposal: Proposal = Proposal.POPULARITY


@dataclass(frozen=True, slots=True)
class Counts:
    """Which item follows which: co-occurrence counts, added to scores (`history/__init__.py`).

    neighbors: followers that an item remembers (0: no counts), a multiple of 16 up to `MAX_NEIGHBORS`. span: an
    event follows up to so many earlier ones of its user. half_life: visits after which it adds half. weight:
    of the counts in a score. shrinkage: added to the norm, sqrt(events of the one * events of the other).
    """

    neighbors: int = 0
    span: int = 32
    half_life: float = 8.0
    weight: float = 0.5
    shrinkage: float = 10.0


@dataclass(frozen=True, slots=True)
class EventType:
    """What an event's type means: its weight is multiplied by `weight`; a `negative` one has value 0."""

    type: int
    weight: float = 1.0
    negative: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds with a meaning for the model: an event outside them is rejected before it is logged.

    `error_max` (e_max) clips an occurrence's error, `factor_max` (c_max) clamps every factor and bias after
    its step, `g_max` clamps AdaGrad's accumulators; together they keep every table value finite.
    """

    users_max: int = 1 << 24
    items_max: int = 1 << 22
    producers_max: int = 1024
    value_abs_max: float = 1e6
    weight_max: float = 1e3
    error_max: float = 1e6
    factor_max: float = 1e3
    g_max: float = 1e30


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model's specification (SEMANTICS of every field: docs/architecture.md).

    k: factors a row. loss: how an event's error is taken. l2 / bias_l2: weight of the L2 term of an
    occurrence. negatives: items drawn for each positive event (0 for squared loss). micro_batch: events a
    gradient step (B); 1 is exact sequential SGD. hot_row_events: a row named by more events of a micro-batch
    than this has its gradient scaled down to as many. init_scale: width of the uniform distribution of
    initial factors, centred on 0. seed: of every counter-based draw. factor_dtype: what factors are stored
    as; biases and accumulators are float32 always. rule: how it learns; SGD has an optimizer and negatives,
    SOLVE has none, of SOFTMAX `negatives` are a micro-batch's. history, counts: beside any rule. event_types: weights by type.

    Narrow factors (FLOAT16, BFLOAT16) are widened exactly to float32 when they are read, and all arithmetic
    is the same float32. The new float32 factors of a step, clamped, and those of a new row are rounded
    stochastically, up or down in proportion to the distance (`narrow.py`), by bits that are a function of
    (seed, revision, number of the micro-batch within its record, side, row, column), those of a new row of
    (seed, key, side, column): counters and mix in `random.rounding_word` and `random.column_word`. What is
    representable stays as it is. A bfloat16 factor may so come to lie above factor_max, by less than one
    step of the type; a float16 one never above 65504, since factor_max may not.
    """

    k: int = 64
    loss: Loss = Loss.LOGISTIC
    optimizer: Optimizer = field(default_factory=Optimizer)
    l2: float = 0.0
    bias_l2: float = 0.0
    negatives: int = 0
    micro_batch: int = 1
    hot_row_events: float = 64.0
    init_scale: float = 0.1
    seed: int = 0
    factor_dtype: FactorDtype = FactorDtype.FLOAT32
    rule: Rule = Rule.SGD
    history: History = field(default_factory=History)
    solve: Solve = field(default_factory=Solve)
    softmax: Softmax = field(default_factory=Softmax)
    counts: Counts = field(default_factory=Counts)
    event_types: tuple[EventType, ...] = ()
    limits: Limits = field(default_factory=Limits)
    kernel_semantics: int = KERNEL_SEMANTICS

    @property
    def k_padded(self) -> int:
        """Factors a row takes in memory: k rounded up to a multiple of `LANES`."""
        return -(-self.k // LANES) * LANES

    @property
    def negatives_of_event(self) -> int:
        """Most negatives that an event is told from."""
        is_in_batch = self.rule == Rule.SOFTMAX and self.softmax.proposal == Proposal.IN_BATCH
        return self.micro_batch if is_in_batch else self.negatives

    def check(self) -> ModelSpec:
        """Return self, or raise `SpecError` naming the first field that is outside its domain."""
        _check_shape(self)
        _check_rates(self)
        _check_limits(self.limits)
        _check_history(self)
        _check_event_types(self.event_types)
        if self.rule == Rule.SOLVE:
            _check_solve(self)
        if self.rule == Rule.SOFTMAX:
            _check_softmax(self)
        _check_bounded(self)
        return self


def _require(ok: bool, name: str, expected: str, got: object) -> None:
    if not ok:
        raise SpecError(f"{name}: expected {expected}, got {got!r}")


def _check_shape(spec: ModelSpec) -> None:
    _require(1 <= spec.k <= MAX_K, "k", f"1..{MAX_K}", spec.k)
    _require(spec.rule in tuple(Rule), "rule", "a known rule", spec.rule)
    _require(spec.loss in tuple(Loss), "loss", "a known loss", spec.loss)
    if spec.loss == Loss.IMPLICIT:
        _require(spec.rule == Rule.SOLVE, "rule", "solve with implicit loss", spec.rule)
    if spec.loss == Loss.SOFTMAX:
        _require(spec.rule == Rule.SOFTMAX, "rule", "softmax with softmax loss", spec.rule)
    _require(0 <= spec.negatives <= MAX_NEGATIVES, "negatives", f"0..{MAX_NEGATIVES}", spec.negatives)
    if spec.loss == Loss.SQUARED:
        _require(spec.negatives == 0, "negatives", "0 with squared loss", spec.negatives)
    if spec.loss == Loss.BPR:
        _require(spec.negatives >= 1, "negatives", "at least 1 with BPR", spec.negatives)
    _require(
        1 <= spec.micro_batch <= MAX_MICRO_BATCH, "micro_batch", f"1..{MAX_MICRO_BATCH}", spec.micro_batch
    )
    _require(0 <= spec.seed < 1 << 64, "seed", "an unsigned 64-bit number", spec.seed)
    _require(spec.factor_dtype in tuple(FactorDtype), "factor_dtype", "a known dtype", spec.factor_dtype)
    _require(
        spec.kernel_semantics == KERNEL_SEMANTICS,
        "kernel_semantics",
        str(KERNEL_SEMANTICS),
        spec.kernel_semantics,
    )


def _check_history(spec: ModelSpec) -> None:
    history, counts = spec.history, spec.counts
    for name, length, most in (
        ("history.users", history.users, MAX_HISTORY),
        ("history.items", history.items, MAX_HISTORY),
        ("counts.neighbors", counts.neighbors, MAX_NEIGHBORS),
    ):
        _require(
            0 <= length <= most and length % LANES == 0, name, f"a multiple of {LANES} up to {most}", length
        )
    _require(_is_half_life(history.half_life, 0.0), "history.half_life", "0..1e6 visits", history.half_life)
    if history.items or counts.neighbors:
        _require(history.users > 0, "history.users", "above 0 with history.items or counts", history.users)
    if counts.neighbors:
        expected = f"1..history.users ({history.users})"
        _require(1 <= counts.span <= history.users, "counts.span", expected, counts.span)
        _require(_is_half_life(counts.half_life, 0.1), "counts.half_life", "0.1..1e6", counts.half_life)
        for name, value in (("counts.weight", counts.weight), ("counts.shrinkage", counts.shrinkage)):
            _require(_finite32(value) and 0.0 <= value <= 1e6, name, "0..1e6", value)


def _is_half_life(value: float, least: float) -> bool:
    return _finite32(value) and least <= value <= 1e6


def _check_solve(spec: ModelSpec) -> None:
    solve = spec.solve
    _require(
        spec.loss in (Loss.SQUARED, Loss.IMPLICIT), "loss", "squared or implicit with rule solve", spec.loss
    )
    _require(spec.history.users > 0, "history.users", "above 0 with rule solve", spec.history.users)
    _require(spec.history.items > 0, "history.items", "above 0 with rule solve", spec.history.items)
    _require(spec.negatives == 0, "negatives", "0 with rule solve", spec.negatives)
    is_sgd = spec.optimizer.kind == OptimizerKind.SGD
    _require(is_sgd, "optimizer.kind", "sgd (no accumulators) with rule solve", spec.optimizer.kind)
    is_float32 = spec.factor_dtype == FactorDtype.FLOAT32
    _require(is_float32, "factor_dtype", "float32 with rule solve", spec.factor_dtype)
    _require(spec.l2 >= 1e-6, "l2", "1e-6..100 with rule solve", spec.l2)
    if spec.loss == Loss.SQUARED:
        _require(spec.bias_l2 >= 1e-6, "bias_l2", "1e-6..100 with rule solve", spec.bias_l2)
        _require(solve.unobserved == 0.0, "solve.unobserved", "0 with squared loss", solve.unobserved)
    _require(
        _finite32(solve.unobserved) and 0.0 <= solve.unobserved <= 1e3,
        "solve.unobserved",
        "0..1e3",
        solve.unobserved,
    )
    _require(1 <= solve.item_events <= 1 << 16, "solve.item_events", "1..65536", solve.item_events)
    _require(1 <= solve.sweeps <= 64, "solve.sweeps", "1..64", solve.sweeps)


def _check_softmax(spec: ModelSpec) -> None:
    proposal, drawn = spec.softmax.proposal, spec.negatives
    _require(spec.loss == Loss.SOFTMAX, "loss", "softmax with rule softmax", spec.loss)
    is_float32 = spec.factor_dtype == FactorDtype.FLOAT32
    _require(is_float32, "factor_dtype", "float32 with rule softmax", spec.factor_dtype)
    _require(proposal in tuple(Proposal), "softmax.proposal", "a known proposal", proposal)
    if proposal == Proposal.IN_BATCH:
        _require(drawn == 0, "negatives", "0 with proposal in-batch", drawn)
        most = f"2..{MAX_NEGATIVES} with proposal in-batch"
        _require(2 <= spec.micro_batch <= MAX_NEGATIVES, "micro_batch", most, spec.micro_batch)
    else:
        _require(drawn >= 1, "negatives", "at least 1 with rule softmax", drawn)
    if proposal != Proposal.UNIFORM:  # how often an item came is part of its history
        _require(spec.history.users > 0, "history.users", "above 0 with this proposal", spec.history.users)


def _check_event_types(event_types: tuple[EventType, ...]) -> None:
    _require(
        len(event_types) <= MAX_EVENT_TYPES, "event_types", f"at most {MAX_EVENT_TYPES}", len(event_types)
    )
    numbers = [each.type for each in event_types]
    _require(len(set(numbers)) == len(numbers), "event_types", "each type once", numbers)
    for each in event_types:
        _require(0 <= each.type < 1 << 32, "event_types.type", "an unsigned 32-bit number", each.type)
        _require(
            _finite32(each.weight) and 0.0 < each.weight <= 1e3, "event_types.weight", "(0, 1e3]", each.weight
        )


def _finite32(value: float) -> bool:
    return math.isfinite(value) and bool(np.isfinite(np.float32(value)))


def _check_rates(spec: ModelSpec) -> None:
    optimizer = spec.optimizer
    _require(optimizer.kind in tuple(OptimizerKind), "optimizer.kind", "a known optimizer", optimizer.kind)
    for name in ("learning_rate", "bias_learning_rate"):
        value = getattr(optimizer, name)
        _require(_finite32(value) and 0.0 <= value <= 100.0, f"optimizer.{name}", "0..100", value)
    for name in ("l2", "bias_l2"):
        value = getattr(spec, name)
        _require(_finite32(value) and 0.0 <= value <= 100.0, name, "0..100", value)
    _require(
        _finite32(optimizer.initial_g) and 0.0 <= optimizer.initial_g <= spec.limits.g_max,
        "optimizer.initial_g",
        "0..g_max",
        optimizer.initial_g,
    )
    if optimizer.kind == OptimizerKind.ADAGRAD:
        _require(1e-30 <= optimizer.eps <= 1e6, "optimizer.eps", "1e-30..1e6 with AdaGrad", optimizer.eps)
    _require(
        _finite32(spec.init_scale) and 0.0 <= spec.init_scale <= 2.0 * spec.limits.factor_max,
        "init_scale",
        "0..2*factor_max",
        spec.init_scale,
    )
    _require(
        _finite32(spec.hot_row_events) and 1.0 <= spec.hot_row_events <= 1e9,
        "hot_row_events",
        "1..1e9",
        spec.hot_row_events,
    )


def _check_limits(limits: Limits) -> None:
    _require(1 <= limits.users_max < 1 << 32, "limits.users_max", "1..2**32-1", limits.users_max)
    _require(1 <= limits.items_max < 1 << 32, "limits.items_max", "1..2**32-1", limits.items_max)
    _require(1 <= limits.producers_max <= 1 << 20, "limits.producers_max", "1..2**20", limits.producers_max)
    # The sum of the global mean must stay below 2**63 over 2**40 events of 2**20 fixed point.
    _require(0.0 < limits.value_abs_max <= 1e6, "limits.value_abs_max", "(0, 1e6]", limits.value_abs_max)
    _require(0.0 < limits.weight_max <= 1e6, "limits.weight_max", "(0, 1e6]", limits.weight_max)
    _require(0.0 < limits.error_max <= 1e9, "limits.error_max", "(0, 1e9]", limits.error_max)
    _require(0.0 < limits.factor_max <= 1e6, "limits.factor_max", "(0, 1e6]", limits.factor_max)
    _require(0.0 < limits.g_max <= 1e38, "limits.g_max", "(0, 1e38]", limits.g_max)


def _check_bounded(spec: ModelSpec) -> None:
    """No sum of a micro-batch may overflow float32, in any order the semantics allow.

    The largest score is k*c^2 + 2c + |mu|; times the largest weight it must be finite before it is clipped.
    The largest row gradient is (occurrences) * (e_max * c_max * 2 + l2 * c_max); it, its square (AdaGrad) and
    its step must be finite.
    """
    limits = spec.limits
    if spec.factor_dtype == FactorDtype.FLOAT16:
        most = f"at most {FLOAT16_MAX:.0f} with float16"
        _require(limits.factor_max <= FLOAT16_MAX, "limits.factor_max", most, limits.factor_max)
    occurrences = spec.micro_batch * (1 + spec.negatives_of_event)
    c, e = limits.factor_max, limits.error_max
    score = spec.k_padded * c * c + 2 * c + limits.value_abs_max
    _require(score * limits.weight_max * 2 < 1e37, "limits", "k * factor_max**2 * weight_max < 1e37", score)
    gradient = occurrences * (2 * e * c + max(spec.l2, spec.bias_l2) * c + e)
    rate = max(1.0, spec.optimizer.learning_rate, spec.optimizer.bias_learning_rate)
    _require(gradient * rate < 1e37, "limits", "events * error_max * factor_max * rate < 1e37", gradient)
    if spec.optimizer.kind == OptimizerKind.ADAGRAD:
        bound = math.sqrt(1e38)
        _require(
            gradient < bound,
            "limits",
            f"events * error_max * factor_max < {bound:.3g} with AdaGrad (lower error_max or factor_max)",
            gradient,
        )


def spec_fields(spec: ModelSpec) -> dict[str, object]:
    """The spec as nested plain values, enums by name: for people and JSON, never for hashing."""
    values = asdict(spec)
    values["loss"] = Loss(spec.loss).name
    values["factor_dtype"] = FactorDtype(spec.factor_dtype).name
    values["rule"] = Rule(spec.rule).name
    values["softmax"]["proposal"] = Proposal(spec.softmax.proposal).name
    values["optimizer"]["kind"] = OptimizerKind(spec.optimizer.kind).name
    assert set(values) == {f.name for f in fields(spec)}
    return values
