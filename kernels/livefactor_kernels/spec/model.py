"""The fields of a spec, its parts and its enumerations. `spec/__init__.py` explains the spec."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from enum import IntEnum

from livefactor_kernels.spec.admission import Admission, Eviction
from livefactor_kernels.spec.content import Context as Context
from livefactor_kernels.spec.content import Embeddings as Embeddings
from livefactor_kernels.spec.content import Features as Features
from livefactor_kernels.spec.privacy import Privacy as Privacy
from livefactor_kernels.spec.regularization import Regularization as Regularization

KERNEL_SEMANTICS = 1
"""Version of the arithmetic.

A change of any bit of a state increments it. Otherwise the golden digests fail.
"""

LANES = 16
"""Lanes of a dot product. Rows have padding zeros up to a multiple of it."""

USERS, ITEMS = 0, 1
"""The sides of a model. They are also the table numbers in the counters of initial factors."""

FIXED_POINT_ONE = 1 << 20
"""Scale of the fixed-point sum of the global mean: round-half-even(float64(value) * 2**20) as
int64.
"""

MAX_K = 1024
MAX_NEGATIVES = 1024
MAX_MICRO_BATCH = 65_536
MAX_SHARED_NEGATIVES = 1 << 17
"""Maximum number of negatives of all groups of a micro-batch."""
MAX_HISTORY = 8192
MAX_NEIGHBORS = 1024
MAX_EVENT_TYPES = 64
MAX_DIMENSION = 1024
"""Maximum number of numbers of an item's vector."""
MAX_FEATURES = 1 << 20
"""Maximum number of distinct features of a side."""
MAX_FEATURES_PER_ID = 64
MAX_SIMILAR_USERS = 512
MAX_REPLAY_SIZE = 1 << 20
MIN_WINDOW, MAX_WINDOW = 16, 1 << 24
RATE_STEPS_MAX = 24
"""Maximum number of steps of an adaptive rate in each direction.

24 steps multiply or divide the learning rates of the spec by 2 ** 6.
"""
MAX_REPLAY_PER_EVENT = 4.0
MAX_RATINGS_EVENTS = 10_000
MAX_UNOBSERVED = 4.0
"""Maximum weight of a pair without an event that follows the data."""


class Rule(IntEnum):
    """The rule by which a model learns from an event.

    The numbers equal `livefactor.v1.Rule`. Logged specs lack the rule if it is SGD.
    """

    SGD = 1
    SOLVE = 2
    SOFTMAX = 3


class Loss(IntEnum):
    """The loss of an event. The numbers equal `livefactor.v1.Loss`."""

    SQUARED = 1
    LOGISTIC = 2
    BPR = 3
    IMPLICIT = 4
    SOFTMAX = 5


class Proposal(IntEnum):
    """The distribution of the shared negatives of rule SOFTMAX.

    The numbers equal `livefactor.v1.Proposal`.
    """

    UNIFORM = 1
    POPULARITY = 2
    IN_BATCH = 3


class OptimizerKind(IntEnum):
    """The optimiser. The numbers equal `livefactor.v1.OptimizerKind`."""

    SGD = 1
    ADAGRAD = 2
    ROWWISE_ADAGRAD = 3
    LAZY_ADAM = 4
    FTRL = 5


class FactorDtype(IntEnum):
    """The stored type of factors.

    The numbers equal `livefactor.v1.FactorDtype`. Logged specs lack the type if it is FLOAT32.
    """

    FLOAT32 = 1
    FLOAT16 = 2
    BFLOAT16 = 3


FLOAT16_MAX = 65504.0
"""The largest float16."""


class SpecError(ValueError):
    """The spec is invalid. The text has the field, the expected value and the actual value."""


@dataclass(frozen=True, slots=True)
class Optimizer:
    """The optimiser of factors and biases. `optimizers/__init__.py` has the formulas and papers.

    Attributes:
        kind: the optimiser.
        learning_rate: learning rate of factors.
        bias_learning_rate: learning rate of biases. With 0 biases stay 0.
        initial_g: initial value of the sums of squares (AdaGrad, row-wise AdaGrad, FTRL).
        eps: summand of the root of the sum of squares (AdaGrad, row-wise AdaGrad, lazy Adam).
        beta1, beta2: decay of the means per step (lazy Adam).
        l1: weight of the L1 term of factors and biases (FTRL).
        beta: summand of the root of the sum of squares (FTRL).
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
    """The lengths of histories: the last events that each row stores (`history/__init__.py`).

    A length is 0 (no history) or a multiple of 16 up to `MAX_HISTORY`. Events of a user with equal
    times are one visit, like a basket. An event with time 0 (unknown) is a visit of its own.

    Attributes:
        users: items per user, with values, weights and visits.
        items: users per item, with values and weights.
        half_life: number of later visits of the user after which an event has half its weight in
            the fold-in for scores. With 0 all events have equal weights.
        paged: whether sections of events hold the remembered events of all rows end to end, in the
            order of rows and places, and not all places of each row. It needs users.
    """

    users: int = 0
    items: int = 0
    half_life: float = 0.0
    paged: bool = False


@dataclass(frozen=True, slots=True)
class Solve:
    """Rule SOLVE: a row is the least-squares solution for its history (`solve/__init__.py`).

    Attributes:
        unobserved: weight of the squared score of every pair without an event. An event has its own
            weight. It is 0 with squared loss.
        unobserved_density: if it is above 0, the weight follows the data, and `unobserved` is 0. It
            is unobserved_density * events / (users * items), at most `MAX_UNOBSERVED`, from the
            numbers after each record. So all pairs without an event together weigh
            `unobserved_density` times as much as all events.
        item_events: an item is solved at each of its first `item_events` events, and afterwards at
            every `item_events`-th event. A user is solved at every event.
        sweeps: Gauss-Seidel sweeps over the factors of a row.
        ridge_events: the regularisation of a row, which is in proportion to its events, counts so
            many further ones. So rows with few events stay near 0.
        start_events: if it is above 0, rows can begin with the factors of another model
            (`tables/start.py`). These factors count as much as this many events of a row.
    """

    unobserved: float = 0.0
    item_events: int = 8
    sweeps: int = 2
    unobserved_density: float = 0.0
    ridge_events: float = 0.0
    start_events: float = 0.0


@dataclass(frozen=True, slots=True)
class Softmax:
    """Rule SOFTMAX: sampled softmax with negatives that a group of events shares.

    `softmax/__init__.py` has the semantics.

    Attributes:
        proposal: distribution of the negatives. UNIFORM draws from all items with equal
            probability. POPULARITY draws in proportion to 1 + the number of an item's events.
            IN_BATCH takes the items of the group itself.
        group_events: events per group, a divisor of `micro_batch`. With 0 a micro-batch is one
            group.
    """

    proposal: Proposal = Proposal.POPULARITY
    group_events: int = 0


@dataclass(frozen=True, slots=True)
class Counts:
    """Co-occurrence counts of items, which add to scores (`history/__init__.py`).

    Attributes:
        neighbors: followers that each item stores: 0 (no counts) or a multiple of 16 up to
            `MAX_NEIGHBORS`.
        span: number of earlier events of the same user that an event follows.
        half_life: number of visits between two events after which the later one adds half.
        weight: weight of the counts in a score.
        shrinkage: summand of the norm, which is sqrt(events of one item * events of the other).
        repeat: gain that a remembered event adds to the score of its own item. It halves after
            `half_life` visits. It needs no neighbors.
    """

    neighbors: int = 0
    span: int = 32
    half_life: float = 8.0
    weight: float = 0.5
    shrinkage: float = 10.0
    repeat: float = 0.0


@dataclass(frozen=True, slots=True)
class Mix:
    """Several experts score together, and their weights are learned (`reading/__init__.py`).

    Attributes:
        learning_rate: learning rate of the weights. With 0 there is no mix.
        recent_half_life: half-life of recent popularity, in multiples of the number of items, or 0.
        recent_start: what recent popularity counts at first beside popularity all along.
        neighbors: number of similar users whose last events score, up to `MAX_SIMILAR_USERS`, or 0.
        predicted_first: of the first events, one in so many is predicted to learn from, 1 to 8.
        neighbor_roots: whether similar users give an item the square root of their gains.
        baskets: whether events without times that stand side by side are predicted as a basket.
        walk_users: number of users whose items score at the end of random walks, up to
            `MAX_SIMILAR_USERS`, or 0.
        early_events: all of the first so many events are predicted, with longer steps, up to 65536.
    """

    learning_rate: float = 0.0
    recent_half_life: float = 0.0
    neighbors: int = 0
    predicted_first: int = 8
    neighbor_roots: bool = False
    recent_start: float = 1.0
    baskets: bool = False
    walk_users: int = 0
    early_events: int = 0


@dataclass(frozen=True, slots=True)
class Auto:
    """What a model finds out about its events.

    Attributes:
        ratings_events: if it is above 0, any finite value up to `limits.value_abs_max` is accepted.
            A value above 0 is learned as 1, and any other value as 0. If the first `ratings_events`
            events look like ratings, the server gives the model the preset `ratings`. With 0 the
            loss says which values are accepted.
    """

    ratings_events: int = 0


@dataclass(frozen=True, slots=True)
class Replay:
    """Replay of past events, which reduces forgetting (`replay/__init__.py`).

    Attributes:
        size: number of events in a uniform sample of all past events, up to `MAX_REPLAY_SIZE`. With
            0 there is no replay.
        per_event: events of the sample that are learned again per new event, in (0,
            `MAX_REPLAY_PER_EVENT`].
    """

    size: int = 0
    per_event: float = 0.0


@dataclass(frozen=True, slots=True)
class AdaptiveRate:
    """A learning rate that adapts to the quality of predictions (`sgd/adaptive.py`).

    Attributes:
        window: events between two changes of the rate, `MIN_WINDOW` to `MAX_WINDOW`. With 0 the
            rate is fixed.
    """

    window: int = 0


@dataclass(frozen=True, slots=True)
class Merge:
    """Deltas of rows that someone else learned (`tables/deltas.py`), with rules SGD and SOFTMAX.

    Attributes:
        learning_rate: factor on the deltas of a contribution, up to 100. With 0 the model takes no
            deltas.
        norm_max: maximum Euclidean norm of a contribution. A longer one is scaled down.
        optimizer_step: whether a contribution is a step of the model's optimizer. Else it is added.
    """

    learning_rate: float = 0.0
    norm_max: float = 0.0
    optimizer_step: bool = False


@dataclass(frozen=True, slots=True)
class EventType:
    """The meaning of an event type.

    Attributes:
        type: the number of the type.
        weight: factor on the weights of its events.
        negative: whether its events have value 0.
    """

    type: int
    weight: float = 1.0
    negative: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the tables and of the numbers in events.

    The server rejects an event with a value or weight above its limit before it logs the event. The
    last three limits keep every table value finite.

    Attributes:
        users_max, items_max: maximum numbers of rows.
        producers_max: maximum number of producers.
        value_abs_max: maximum magnitude of a value.
        weight_max: maximum weight.
        error_max: maximum magnitude of the error of an occurrence (e_max).
        factor_max: maximum magnitude of factors and biases (c_max).
        g_max: maximum of the optimiser's accumulators.
    """

    users_max: int = 1 << 24
    items_max: int = 1 << 22
    producers_max: int = 1024
    value_abs_max: float = 1e6
    weight_max: float = 1e3
    error_max: float = 1e6
    factor_max: float = 1e3
    g_max: float = 1e30


SOLVE_COST = 64
"""Time of the two row solves of an event, in times of a score and its step. It is an estimate that
decides only how long a writer keeps readers waiting.
"""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The spec of a model. The docstrings of the packages `sgd`, `softmax` and `solve` have the
    semantics.

    Factors of type FLOAT16 and BFLOAT16 are narrow. They are widened to float32 without an error
    when they are read, and the arithmetic is float32. The clamped float32 factors of a step and
    those of a new row are rounded stochastically (`numbers/narrow.py`): up or down, in proportion
    to the distance. The random bits of a step are a function of (seed, revision, number of the
    micro-batch in its record, side, row, column). Those of a new row are a function of (seed, key,
    side, column). `random.rounding_word` and `random.column_word` define them. A representable
    value does not change. A bfloat16 factor may exceed factor_max by less than one step of the
    type. A float16 factor never exceeds 65504, because factor_max does not.

    Attributes:
        k: factors per row.
        loss: the loss of an event.
        optimizer: the optimiser of rules SGD and SOFTMAX.
        l2, bias_l2: weights of the L2 terms of an occurrence.
        negatives: negatives per positive event with rule SGD (0 for squared loss), or per group
            with rule SOFTMAX.
        micro_batch: events per gradient step (B). With 1 it is exact sequential SGD.
        hot_row_events: a row with more events in a micro-batch is hot. Its gradient is scaled down
            to this number of events.
        init_scale: width of the uniform distribution of initial factors, which has mean 0.
        seed: seed of every counter-based draw.
        factor_dtype: stored type of factors. Biases and accumulators are always float32.
        rule: the rule by which the model learns.
        history, counts: histories and co-occurrence counts, with any rule.
        mix: a mix of experts, with rule SOLVE and implicit loss.
        embeddings: vectors of items, with rule SOLVE and implicit loss.
        features: bags of features, with rule SOLVE and implicit loss.
        context: features of events, with any loss but SQUARED.
        auto: what the model finds out about its events, with any loss but SQUARED.
        solve, softmax: parameters of these rules.
        replay: replay, with any rule.
        adaptive_rate: adaptive learning rate, with rule SGD.
        merge: deltas that someone else learned, with rules SGD and SOFTMAX.
        privacy: differential privacy, with `merge`.
        admission: when new users and items get rows.
        eviction: when users and items lose their rows.
        event_types: weights by event type.
        regularization: clipping, max-norm, frequency-scaled L2, dropout.
        limits: limits of tables and events.
        kernel_semantics: version of the arithmetic.
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
    mix: Mix = field(default_factory=Mix)
    embeddings: Embeddings = field(default_factory=Embeddings)
    features: Features = field(default_factory=Features)
    context: Context = field(default_factory=Context)
    auto: Auto = field(default_factory=Auto)
    replay: Replay = field(default_factory=Replay)
    adaptive_rate: AdaptiveRate = field(default_factory=AdaptiveRate)
    merge: Merge = field(default_factory=Merge)
    privacy: Privacy = field(default_factory=Privacy)
    admission: Admission = field(default_factory=Admission)
    eviction: Eviction = field(default_factory=Eviction)
    event_types: tuple[EventType, ...] = ()
    regularization: Regularization = field(default_factory=Regularization)
    limits: Limits = field(default_factory=Limits)
    kernel_semantics: int = KERNEL_SEMANTICS

    @property
    def k_padded(self) -> int:
        """Factors of a row in memory: k rounded up to a multiple of `LANES`."""
        return -(-self.k // LANES) * LANES

    @property
    def group_events(self) -> int:
        """Events per group with rule SOFTMAX. The events of a group share their negatives."""
        return self.softmax.group_events or self.micro_batch

    @property
    def negatives_of_event(self) -> int:
        """Maximum number of negatives that an event is contrasted with."""
        is_in_batch = self.rule == Rule.SOFTMAX and self.softmax.proposal == Proposal.IN_BATCH
        return self.group_events if is_in_batch else self.negatives

    def drawn(self, events: int) -> int:
        """Maximum number of item rows that a record of `events` events draws."""
        if self.rule == Rule.SOFTMAX:
            return -(-events // self.group_events) * self.negatives_of_event
        return events * self.negatives

    @property
    def work_of_event(self) -> int:
        """Maximum number of scores per event: for itself, its negatives, and its replayed
        events.
        """
        return (1 + self.negatives_of_event) * math.ceil(1.0 + self.replay.per_event)

    @property
    def cost_of_event(self) -> int:
        """About how many scores' time an event takes. Rule SOLVE solves two rows for each event."""
        return self.work_of_event * (SOLVE_COST if self.rule == Rule.SOLVE else 1)


def spec_fields(spec: ModelSpec) -> dict[str, object]:
    """The spec as nested plain values, with the names of enumerations.

    It is for people and JSON. Hashes use the logged bytes.
    """
    values = asdict(spec)
    values["loss"] = Loss(spec.loss).name
    values["factor_dtype"] = FactorDtype(spec.factor_dtype).name
    values["rule"] = Rule(spec.rule).name
    values["softmax"]["proposal"] = Proposal(spec.softmax.proposal).name
    values["optimizer"]["kind"] = OptimizerKind(spec.optimizer.kind).name
    assert set(values) == {f.name for f in fields(spec)}
    return values
