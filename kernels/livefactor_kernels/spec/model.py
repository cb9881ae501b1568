"""What a model's state is a function of, beside its log: the specification.

`state(r) = apply(spec, log[1..r])`. Two models with equal specs and equal logs have bit-identical tables on
every supported machine; so every number here is part of the contract, is rounded once to float32 where the
arithmetic uses it, and is checked so that no event can make a table value infinite or NaN
(`ModelSpec.check`).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields

from livefactor_kernels.spec import checks as spec_checks
from livefactor_kernels.spec.parts import (
    FIXED_POINT_ONE,
    FLOAT16_MAX,
    KERNEL_SEMANTICS,
    LANES,
    MAX_EVENT_TYPES,
    MAX_HISTORY,
    MAX_K,
    MAX_MICRO_BATCH,
    MAX_NEGATIVES,
    MAX_NEIGHBORS,
    MAX_REPLAY_PER_EVENT,
    MAX_REPLAY_SIZE,
    MAX_SHARED_NEGATIVES,
    MAX_WINDOW,
    MIN_WINDOW,
    AdaptiveRate,
    Counts,
    EventType,
    FactorDtype,
    History,
    Limits,
    Loss,
    Optimizer,
    OptimizerKind,
    Proposal,
    Regularization,
    Replay,
    Rule,
    Softmax,
    Solve,
    SpecError,
)

__all__ = [
    "FIXED_POINT_ONE",
    "FLOAT16_MAX",
    "KERNEL_SEMANTICS",
    "LANES",
    "MAX_EVENT_TYPES",
    "MAX_HISTORY",
    "MAX_K",
    "MAX_MICRO_BATCH",
    "MAX_NEGATIVES",
    "MAX_NEIGHBORS",
    "MAX_REPLAY_PER_EVENT",
    "MAX_REPLAY_SIZE",
    "MAX_SHARED_NEGATIVES",
    "MAX_WINDOW",
    "MIN_WINDOW",
    "AdaptiveRate",
    "Counts",
    "EventType",
    "FactorDtype",
    "History",
    "Limits",
    "Loss",
    "ModelSpec",
    "Optimizer",
    "OptimizerKind",
    "Proposal",
    "Regularization",
    "Replay",
    "Rule",
    "Softmax",
    "Solve",
    "SpecError",
    "spec_fields",
]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model's specification. The docstrings of the packages `sgd`, `softmax`, `solve` and so on have the semantics.

    k: factors a row. loss: how an event's error is taken. l2 / bias_l2: weight of the L2 term of an
    occurrence. negatives: items drawn for each positive event (0 for squared loss). micro_batch: events a
    gradient step (B); 1 is exact sequential SGD. hot_row_events: a row named by more events of a micro-batch
    than this has its gradient scaled down to as many. init_scale: width of the uniform distribution of
    initial factors, centred on 0. seed: of every counter-based draw. factor_dtype: what factors are stored
    as; biases and accumulators are float32 always. rule: how it learns; SGD has an optimizer and negatives,
    SOLVE has none, of SOFTMAX `negatives` are a group's. history, counts: beside any rule. replay: beside SGD and
    SOFTMAX. event_types: weights by type. regularization: clipping, max-norm, frequency-scaled L2, dropout.
    adaptive_rate: with SGD.

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
    replay: Replay = field(default_factory=Replay)
    adaptive_rate: AdaptiveRate = field(default_factory=AdaptiveRate)
    event_types: tuple[EventType, ...] = ()
    regularization: Regularization = field(default_factory=Regularization)
    limits: Limits = field(default_factory=Limits)
    kernel_semantics: int = KERNEL_SEMANTICS

    @property
    def k_padded(self) -> int:
        """Factors a row takes in memory: k rounded up to a multiple of `LANES`."""
        return -(-self.k // LANES) * LANES

    @property
    def group_events(self) -> int:
        """Events that share their negatives, with rule SOFTMAX."""
        return self.softmax.group_events or self.micro_batch

    @property
    def negatives_of_event(self) -> int:
        """Most negatives that an event is told from."""
        is_in_batch = self.rule == Rule.SOFTMAX and self.softmax.proposal == Proposal.IN_BATCH
        return self.group_events if is_in_batch else self.negatives

    def drawn(self, events: int) -> int:
        """Item rows that a record of so many events draws, at most."""
        if self.rule == Rule.SOFTMAX:
            return -(-events // self.group_events) * self.negatives_of_event
        return events * self.negatives

    @property
    def work_of_event(self) -> int:
        """Scores that an event takes at most: of itself and its negatives, and of the events replayed for it."""
        return (1 + self.negatives_of_event) * math.ceil(1.0 + self.replay.per_event)

    def check(self) -> ModelSpec:
        """Return self, or raise `SpecError` naming the first field that is outside its domain."""
        spec_checks.check(self)
        return self


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
