"""The fields of a spec, its parts and its enumerations (what a spec is: `spec/__init__.py`)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from enum import IntEnum

KERNEL_SEMANTICS = 1
"""Version of the arithmetic. Any change of the bits a log gives bumps it; golden digests fail otherwise."""

LANES = 16
"""Lanes of a dot product; rows are padded with zeros to a multiple of it."""

USERS, ITEMS = 0, 1
"""Sides of a model; also the table's number in the counter of its initial factors."""

FIXED_POINT_ONE = 1 << 20
"""The global mean sums values in fixed point: round-half-even(float64(value) * 2**20) as int64."""

MAX_K = 1024
MAX_NEGATIVES = 1024
MAX_MICRO_BATCH = 65_536
MAX_SHARED_NEGATIVES = 1 << 17
"""Of all groups of a micro-batch."""
MAX_HISTORY = 8192
MAX_NEIGHBORS = 1024
MAX_EVENT_TYPES = 64
MAX_REPLAY_SIZE = 1 << 20
MIN_WINDOW, MAX_WINDOW = 16, 1 << 24
RATE_STEPS_MAX = 24
"""An adapted rate is at most 2 ** 6 times the spec's, and at least as far below."""
MAX_REPLAY_PER_EVENT = 4.0


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
    ROWWISE_ADAGRAD = 3
    LAZY_ADAM = 4
    FTRL = 5


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
    """Step rule of factors and biases (`optimizers/__init__.py`: formulas, papers, what a row keeps).

    `bias_learning_rate` 0 means: biases stay 0. `initial_g` is the first value of sums of squares (AdaGrad, row-wise
    AdaGrad, FTRL), `eps` is added to their root (AdaGrad, row-wise AdaGrad, lazy Adam). beta1, beta2: what is left of lazy
    Adam's means at a step. l1: FTRL's L1 term of factors and biases; beta: added to the root of its sum of squares.
    """

    kind: OptimizerKind = OptimizerKind.SGD
    learning_rate: float = 0.05
    bias_learning_rate: float = 0.05
    initial_g: float = 0.0
    eps: float = 1e-6
    beta1: float = 0.9
    beta2: float = 0.999
    l1: float = 0.0
    beta: float = 1.0


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
    """Rule SOFTMAX: every event against negatives that its group shares (`softmax/__init__.py`): drawn from all items
    alike (UNIFORM) or in proportion to 1 + their events so far (POPULARITY), or the group's own items (IN_BATCH).

    group_events: of a group, a divisor of `micro_batch`; 0: all of it.
    """

    proposal: Proposal = Proposal.POPULARITY
    group_events: int = 0


@dataclass(frozen=True, slots=True)
class Counts:
    """Which item follows which: co-occurrence counts, added to scores (`history/__init__.py`).

    neighbors: followers that an item remembers (0: no counts), a multiple of 16 up to `MAX_NEIGHBORS`. span: an
    event follows up to so many earlier ones of its user. half_life: visits after which it adds half. weight:
    of the counts in a score. shrinkage: added to the norm, sqrt(events of the one * events of the other). repeat: what a
    user's remembered event adds to its own item's score, half after `half_life` visits; needs no neighbors.
    """

    neighbors: int = 0
    span: int = 32
    half_life: float = 8.0
    weight: float = 0.5
    shrinkage: float = 10.0
    repeat: float = 0.0


@dataclass(frozen=True, slots=True)
class Replay:
    """Replay of past events against forgetting (`replay/__init__.py`).

    size: events that a uniform sample of all events so far keeps, up to `MAX_REPLAY_SIZE` (0: no replay).
    per_event: events of it that are learned again for each new one, in (0, `MAX_REPLAY_PER_EVENT`].
    """

    size: int = 0
    per_event: float = 0.0


@dataclass(frozen=True, slots=True)
class AdaptiveRate:
    """A learning rate that moves to what evaluation finds best (`sgd/adaptive.py`).

    window: events between two moves, `MIN_WINDOW` to `MAX_WINDOW` (0: the rate stays as it is).
    """

    window: int = 0


@dataclass(frozen=True, slots=True)
class Regularization:
    """What keeps rows from growing, beside `l2` and `bias_l2` (`optimizers/__init__.py`: order and formulas); 0 switches each off.

    gradient_norm_max: a row's summed gradient is scaled down to this Euclidean norm, its bias's to this magnitude.
    row_norm_max: a row's factors are scaled down to this norm after their step. l2_frequency: p of l2 / n**p, n the
    events of the row so far; 0, 0.5 or 1; needs history.users. dropout: share of the columns that an event is told
    without, up to 0.9. Rule SOFTMAX has the first two.
    """

    gradient_norm_max: float = 0.0
    row_norm_max: float = 0.0
    l2_frequency: float = 0.0
    dropout: float = 0.0


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
    its step, `g_max` clamps the optimizer's accumulators; together they keep every table value finite.
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
    stochastically, up or down in proportion to the distance (`numbers/narrow.py`), by bits that are a function of
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
