"""Checks of a spec: every number is in its domain, and no sum can overflow float32 (`sums`)."""

from __future__ import annotations

import math
from itertools import chain

import numpy as np

from livefactor_kernels.spec.admission import MAX_SIGHTINGS
from livefactor_kernels.spec.model import (
    KERNEL_SEMANTICS,
    LANES,
    MAX_DIMENSION,
    MAX_EVENT_TYPES,
    MAX_FEATURES,
    MAX_FEATURES_PER_ID,
    MAX_HISTORY,
    MAX_K,
    MAX_MICRO_BATCH,
    MAX_NEGATIVES,
    MAX_NEIGHBORS,
    MAX_RATINGS_EVENTS,
    MAX_REPLAY_PER_EVENT,
    MAX_REPLAY_SIZE,
    MAX_SHARED_NEGATIVES,
    MAX_SIMILAR_USERS,
    MAX_WINDOW,
    MIN_WINDOW,
    EventType,
    FactorDtype,
    Limits,
    Loss,
    ModelSpec,
    OptimizerKind,
    Proposal,
    Rule,
)
from livefactor_kernels.spec.sums import check_sums, require


def check(spec: ModelSpec) -> ModelSpec:
    """Returns the spec if it is valid.

    Raises:
        SpecError: a field is outside its domain. The text names the first such field.
    """
    _check_shape(spec)
    _check_rates(spec)
    _check_limits(spec.limits)
    _check_history(spec)
    _check_mix(spec)
    _check_content(spec)
    _check_auto(spec)
    _check_replay(spec)
    _check_adaptive_rate(spec)
    _check_admission(spec)
    _check_merge(spec)
    # The first problem raises, and a later check may count on the earlier ones.
    problems = spec.privacy.problems(spec.merge.learning_rate > 0), spec.eviction.problems(spec.replay.size)
    for name, expected, got in chain.from_iterable(problems):
        require(False, name, expected, got)
    _check_event_types(spec.event_types)
    _check_regularization(spec)
    if spec.rule == Rule.SOLVE:
        _check_solve(spec)
    if spec.rule == Rule.SOFTMAX:
        _check_softmax(spec)
    check_sums(spec)
    return spec


def check_cuda(spec: ModelSpec) -> ModelSpec:
    """Returns a valid spec if the backend cuda has all of its parts.

    Raises:
        SpecError: it lacks a part. The text names it.
    """
    for name, value in (
        ("mix.learning_rate", spec.mix.learning_rate),
        ("solve.unobserved_density", spec.solve.unobserved_density),
        ("solve.ridge_events", spec.solve.ridge_events),
        ("solve.start_events", spec.solve.start_events),
        ("history.paged", spec.history.paged),
        ("embeddings.dimension", spec.embeddings.dimension),
        ("embeddings.user_dimension", spec.embeddings.user_dimension),
        ("features.size", spec.features.size),
        ("context.size", spec.context.size),
        ("merge.learning_rate", spec.merge.learning_rate),
        ("eviction.idle_events", spec.eviction.idle_events),
        ("regularization.adversarial_weight", spec.regularization.adversarial_weight),
    ):
        require(value == 0.0, name, "0 on backend cuda, which lacks this part (docs/gpu.md)", value)
    return spec


def _check_shape(spec: ModelSpec) -> None:
    require(1 <= spec.k <= MAX_K, "k", f"1..{MAX_K}", spec.k)
    require(spec.rule in tuple(Rule), "rule", "a known rule", spec.rule)
    require(spec.loss in tuple(Loss), "loss", "a known loss", spec.loss)
    if spec.loss == Loss.IMPLICIT:
        require(spec.rule == Rule.SOLVE, "rule", "solve with implicit loss", spec.rule)
    if spec.loss == Loss.SOFTMAX:
        require(spec.rule == Rule.SOFTMAX, "rule", "softmax with softmax loss", spec.rule)
    require(0 <= spec.negatives <= MAX_NEGATIVES, "negatives", f"0..{MAX_NEGATIVES}", spec.negatives)
    if spec.loss == Loss.SQUARED:
        require(spec.negatives == 0, "negatives", "0 with squared loss", spec.negatives)
    if spec.loss == Loss.BPR:
        require(spec.negatives >= 1, "negatives", "at least 1 with BPR", spec.negatives)
    require(
        1 <= spec.micro_batch <= MAX_MICRO_BATCH, "micro_batch", f"1..{MAX_MICRO_BATCH}", spec.micro_batch
    )
    require(0 <= spec.seed < 1 << 64, "seed", "an unsigned 64-bit number", spec.seed)
    require(spec.factor_dtype in tuple(FactorDtype), "factor_dtype", "a known dtype", spec.factor_dtype)
    found = spec.kernel_semantics
    require(found == KERNEL_SEMANTICS, "kernel_semantics", str(KERNEL_SEMANTICS), found)


def _check_history(spec: ModelSpec) -> None:
    history, counts = spec.history, spec.counts
    for name, length, most in (
        ("history.users", history.users, MAX_HISTORY),
        ("history.items", history.items, MAX_HISTORY),
        ("counts.neighbors", counts.neighbors, MAX_NEIGHBORS),
    ):
        require(
            0 <= length <= most and length % LANES == 0, name, f"a multiple of {LANES} up to {most}", length
        )
    require(_is_half_life(history.half_life, 0.0), "history.half_life", "0..1e6 visits", history.half_life)
    require(
        _finite32(counts.repeat) and 0.0 <= counts.repeat <= 1e6, "counts.repeat", "0..1e6", counts.repeat
    )
    if history.items or counts.neighbors or counts.repeat:
        require(history.users > 0, "history.users", "above 0 with history.items or counts", history.users)
    if history.paged:
        require(history.users > 0, "history.users", "above 0 with history.paged", history.users)
    if counts.neighbors or counts.repeat:
        require(_is_half_life(counts.half_life, 0.1), "counts.half_life", "0.1..1e6", counts.half_life)
    if counts.neighbors:
        expected = f"1..history.users ({history.users})"
        require(1 <= counts.span <= history.users, "counts.span", expected, counts.span)
        for name, value in (("counts.weight", counts.weight), ("counts.shrinkage", counts.shrinkage)):
            require(_finite32(value) and 0.0 <= value <= 1e6, name, "0..1e6", value)


def _check_mix(spec: ModelSpec) -> None:
    rate, counts = spec.mix.learning_rate, spec.counts
    require(_finite32(rate) and 0.0 <= rate <= 1.0, "mix.learning_rate", "0..1", rate)
    recent = spec.mix.recent_half_life
    is_given = recent == 0.0 or _is_half_life(recent, 0.1)
    require(is_given, "mix.recent_half_life", "0.1..1e6, or 0", recent)
    similar = spec.mix.neighbors
    require(0 <= similar <= MAX_SIMILAR_USERS, "mix.neighbors", f"0..{MAX_SIMILAR_USERS}", similar)
    require(not similar or recent > 0, "mix.recent_half_life", "above 0 with mix.neighbors", recent)
    first = spec.mix.predicted_first
    require(1 <= first <= 8, "mix.predicted_first", "1..8", first)
    start = spec.mix.recent_start
    require(_finite32(start) and 0.0 <= start <= 8.0, "mix.recent_start", "0..8", start)
    roots = spec.mix.neighbor_roots
    require(not roots or similar > 0, "mix.neighbors", "above 0 with mix.neighbor_roots", similar)
    baskets = spec.mix.baskets
    require(not baskets or similar > 0, "mix.neighbors", "above 0 with mix.baskets", similar)
    walks = spec.mix.walk_users
    require(0 <= walks <= MAX_SIMILAR_USERS, "mix.walk_users", f"0..{MAX_SIMILAR_USERS}", walks)
    early = spec.mix.early_events
    require(0 <= early <= 65536, "mix.early_events", "0..65536", early)
    require(not walks or similar > 0, "mix.neighbors", "above 0 with mix.walk_users", similar)
    if not rate:
        return
    require(spec.loss == Loss.IMPLICIT, "loss", "implicit (rule solve) with a mix", spec.loss)
    half_life = spec.history.half_life
    require(half_life == 0.0, "history.half_life", "0 with a mix, which has its own", half_life)
    require(counts.neighbors > 0, "counts.neighbors", "above 0 with a mix", counts.neighbors)
    require(counts.repeat == 0.0, "counts.repeat", "0 with a mix, which has its own", counts.repeat)
    weighs = spec.solve.unobserved > 0 or spec.solve.unobserved_density > 0
    require(weighs, "solve.unobserved", "above 0 with a mix", spec.solve.unobserved)


def _check_content(spec: ModelSpec) -> None:
    """Embeddings, features and context."""
    embeddings, features, start = spec.embeddings, spec.features, spec.solve.start_events
    for name in ("dimension", "user_dimension"):
        d = getattr(embeddings, name)
        require(0 <= d <= MAX_DIMENSION, f"embeddings.{name}", f"0..{MAX_DIMENSION}", d)
    for part, size in (("features", features.size), ("context", spec.context.size)):
        require(0 <= size <= MAX_FEATURES, f"{part}.size", f"0..{MAX_FEATURES}", size)
    is_number = 1 <= features.per_id <= MAX_FEATURES_PER_ID
    require(is_number, "features.per_id", f"1..{MAX_FEATURES_PER_ID}", features.per_id)
    events, prior = embeddings.prior_events, features.prior_events
    require(_is_amount(events), "embeddings.prior_events", "0.001..1e6", events)
    require(prior == 0 or _is_amount(prior), "features.prior_events", "0, or 0.001..1e6", prior)
    require(features.size > 0 or prior == 0, "features.prior_events", "0 without features.size", prior)
    is_right = spec.loss == Loss.IMPLICIT or not (embeddings.dimension or embeddings.user_dimension)
    require(is_right, "loss", "implicit (rule solve) with embeddings", spec.loss)
    if features.size:
        _check_feature_rows(spec)
    require(not features.size or start == 0, "solve.start_events", "0 with features", start)
    if embeddings.user_dimension:
        require(start == 0, "solve.start_events", "0 with embeddings.user_dimension", start)
        is_followed = prior > 0 or not features.size
        require(is_followed, "features.prior_events", "above 0 with embeddings.user_dimension", prior)
    is_right = not spec.context.size or spec.loss != Loss.SQUARED
    require(is_right, "loss", "another one than squared with context", spec.loss)


def _check_feature_rows(spec: ModelSpec) -> None:
    """The rules that features need."""
    if spec.rule == Rule.SOLVE:
        require(spec.loss == Loss.IMPLICIT, "loss", "implicit with features and rule solve", spec.loss)
        return
    # The number of a row's events is part of its history.
    require(spec.history.users > 0, "history.users", "above 0 with features", spec.history.users)
    is_float32 = spec.factor_dtype == FactorDtype.FLOAT32
    require(is_float32, "factor_dtype", "float32 with features", spec.factor_dtype)
    # With FTRL the factors follow from sums of gradients, which would undo what a bag says.
    is_other = spec.optimizer.kind != OptimizerKind.FTRL
    require(is_other, "optimizer.kind", "another one than ftrl with features", "ftrl")
    for name, value in (
        ("adaptive_rate.window", spec.adaptive_rate.window), ("merge.learning_rate", spec.merge.learning_rate)
    ):  # fmt: skip
        require(value == 0, name, "0 with features", value)


def _is_amount(events: float) -> bool:
    return _finite32(events) and 1e-3 <= events <= 1e6


def _check_auto(spec: ModelSpec) -> None:
    events = spec.auto.ratings_events
    require(0 <= events <= MAX_RATINGS_EVENTS, "auto.ratings_events", f"0..{MAX_RATINGS_EVENTS}", events)
    if spec.loss == Loss.SQUARED:
        require(events == 0, "auto.ratings_events", "0 with squared loss", events)


def _check_replay(spec: ModelSpec) -> None:
    size, per_event = spec.replay.size, spec.replay.per_event
    require(0 <= size <= MAX_REPLAY_SIZE, "replay.size", f"0..{MAX_REPLAY_SIZE}", size)
    if size:
        is_share = _finite32(per_event) and 0.0 < float(np.float32(per_event)) <= MAX_REPLAY_PER_EVENT
        require(is_share, "replay.per_event", f"(0, {MAX_REPLAY_PER_EVENT:.0f}]", per_event)
    else:
        require(per_event == 0.0, "replay.per_event", "0 without replay.size", per_event)


def _check_admission(spec: ModelSpec) -> None:
    sightings = spec.admission.sightings
    require(0 <= sightings <= MAX_SIGHTINGS, "admission.sightings", f"0..{MAX_SIGHTINGS}", sightings)


def _check_adaptive_rate(spec: ModelSpec) -> None:
    window = spec.adaptive_rate.window
    is_window = window == 0 or MIN_WINDOW <= window <= MAX_WINDOW
    require(is_window, "adaptive_rate.window", f"0, or {MIN_WINDOW}..{MAX_WINDOW}", window)
    if not window:
        return
    is_sgd = spec.optimizer.kind == OptimizerKind.SGD
    require(spec.rule == Rule.SGD, "rule", "sgd with an adaptive rate", spec.rule)
    require(is_sgd, "optimizer.kind", "sgd with an adaptive rate", spec.optimizer.kind)
    is_float32 = spec.factor_dtype == FactorDtype.FLOAT32
    require(is_float32, "factor_dtype", "float32 with an adaptive rate", spec.factor_dtype)


def _check_merge(spec: ModelSpec) -> None:
    rate, most = spec.merge.learning_rate, spec.merge.norm_max
    require(_finite32(rate) and 0.0 <= rate <= 100.0, "merge.learning_rate", "0..100", rate)
    if not rate:
        require(most == 0.0, "merge.norm_max", "0 without merge.learning_rate", most)
        steps = spec.merge.optimizer_step
        require(not steps, "merge.optimizer_step", "false without merge.learning_rate", steps)
        return
    is_norm = _finite32(most) and 1e-6 <= most <= 1e30
    require(is_norm, "merge.norm_max", "1e-6..1e30 with merge.learning_rate", most)
    # Rule SOLVE takes sums of the map of user vectors, and no deltas of rows.
    learns = spec.rule in (Rule.SGD, Rule.SOFTMAX) or spec.embeddings.user_dimension > 0
    rule = (
        "sgd or softmax with merge.learning_rate, because rule solve solves rows from their events, "
        "or solve with embeddings.user_dimension"
    )
    require(learns, "rule", rule, Rule(spec.rule).name.lower())
    is_open = not spec.privacy.epsilon or spec.rule != Rule.SOLVE
    require(is_open, "privacy.epsilon", "0 with rule solve", spec.privacy.epsilon)
    # With FTRL the factors follow from sums of gradients, so the next step would undo a delta.
    is_other = spec.optimizer.kind != OptimizerKind.FTRL
    require(is_other, "optimizer.kind", "another one than ftrl with merge.learning_rate", "ftrl")
    keeps_state = spec.optimizer.kind != OptimizerKind.SGD or not spec.merge.optimizer_step
    kinds = "adagrad, rowwise_adagrad or lazy_adam with merge.optimizer_step, because sgd only adds"
    require(keeps_state, "optimizer.kind", kinds, "sgd")


def _is_half_life(value: float, least: float) -> bool:
    return _finite32(value) and least <= value <= 1e6


def _check_solve(spec: ModelSpec) -> None:
    solve = spec.solve
    require(
        spec.loss in (Loss.SQUARED, Loss.IMPLICIT), "loss", "squared or implicit with rule solve", spec.loss
    )
    require(spec.history.users > 0, "history.users", "above 0 with rule solve", spec.history.users)
    require(spec.history.items > 0, "history.items", "above 0 with rule solve", spec.history.items)
    require(spec.negatives == 0, "negatives", "0 with rule solve", spec.negatives)
    is_sgd = spec.optimizer.kind == OptimizerKind.SGD
    require(is_sgd, "optimizer.kind", "sgd (no accumulators) with rule solve", spec.optimizer.kind)
    is_float32 = spec.factor_dtype == FactorDtype.FLOAT32
    require(is_float32, "factor_dtype", "float32 with rule solve", spec.factor_dtype)
    require(spec.l2 >= 1e-6, "l2", "1e-6..100 with rule solve", spec.l2)
    if spec.loss == Loss.SQUARED:
        require(spec.bias_l2 >= 1e-6, "bias_l2", "1e-6..100 with rule solve", spec.bias_l2)
        for name in ("unobserved", "unobserved_density"):
            value = getattr(solve, name)
            require(value == 0.0, f"solve.{name}", "0 with squared loss", value)
    require(
        _finite32(solve.unobserved) and 0.0 <= solve.unobserved <= 1e3,
        "solve.unobserved",
        "0..1e3",
        solve.unobserved,
    )
    density = solve.unobserved_density
    require(_finite32(density) and 0.0 <= density <= 1e6, "solve.unobserved_density", "0..1e6", density)
    if density:
        require(solve.unobserved == 0.0, "solve.unobserved", "0 with a density", solve.unobserved)
    ridge = solve.ridge_events
    require(_finite32(ridge) and 0.0 <= ridge <= 1e6, "solve.ridge_events", "0..1e6", ridge)
    start = solve.start_events
    is_start = start == 0.0 or (_finite32(start) and 1e-3 <= start <= 1e6)
    require(is_start, "solve.start_events", "0, or 0.001..1e6", start)
    if start:
        require(spec.loss == Loss.IMPLICIT, "loss", "implicit with solve.start_events", spec.loss)
    require(1 <= solve.item_events <= 1 << 16, "solve.item_events", "1..65536", solve.item_events)
    require(1 <= solve.sweeps <= 64, "solve.sweeps", "1..64", solve.sweeps)


def _check_softmax(spec: ModelSpec) -> None:
    proposal, drawn = spec.softmax.proposal, spec.negatives
    require(spec.loss == Loss.SOFTMAX, "loss", "softmax with rule softmax", spec.loss)
    is_float32 = spec.factor_dtype == FactorDtype.FLOAT32
    require(is_float32, "factor_dtype", "float32 with rule softmax", spec.factor_dtype)
    require(proposal in tuple(Proposal), "softmax.proposal", "a known proposal", proposal)
    group, size = spec.softmax.group_events, spec.micro_batch
    divides = group == 0 or (group > 0 and size % group == 0)
    require(divides, "softmax.group_events", f"0, or a divisor of micro_batch ({size})", group)
    if proposal == Proposal.IN_BATCH:
        require(drawn == 0, "negatives", "0 with proposal in-batch", drawn)
        name = "softmax.group_events" if group else "micro_batch"
        most = f"2..{MAX_NEGATIVES} with proposal in-batch"
        require(2 <= spec.group_events <= MAX_NEGATIVES, name, most, spec.group_events)
    else:
        require(drawn >= 1, "negatives", "at least 1 with rule softmax", drawn)
    shared, most = spec.drawn(size), f"at most {MAX_SHARED_NEGATIVES} negatives of a micro-batch's groups"
    require(shared <= MAX_SHARED_NEGATIVES, "softmax.group_events", most, shared)
    if proposal != Proposal.UNIFORM:
        # The number of an item's events is part of its history.
        require(spec.history.users > 0, "history.users", "above 0 with this proposal", spec.history.users)


def _check_regularization(spec: ModelSpec) -> None:
    part = spec.regularization
    for name in ("gradient_norm_max", "row_norm_max"):
        value = getattr(part, name)
        ok = value == 0.0 or (_finite32(value) and 1e-6 <= value <= 1e30)
        require(ok, f"regularization.{name}", "0, or 1e-6..1e30", value)
    power = part.l2_frequency
    require(power in (0.0, 0.5, 1.0), "regularization.l2_frequency", "0, 0.5 or 1", power)
    require(0.0 <= part.dropout <= 0.9, "regularization.dropout", "0..0.9", part.dropout)
    if power:
        # The number of a row's events is part of its history.
        require(spec.history.users > 0, "history.users", "above 0 with l2_frequency", spec.history.users)
    _check_adversarial(spec)
    if spec.rule != Rule.SGD:
        rule = f"0 with rule {Rule(spec.rule).name.lower()}"
        require(power == 0.0, "regularization.l2_frequency", rule, power)
        require(part.dropout == 0.0, "regularization.dropout", rule, part.dropout)
    if spec.rule == Rule.SOLVE:
        clipped = part.gradient_norm_max
        require(clipped == 0.0, "regularization.gradient_norm_max", "0 with rule solve", clipped)
        limited = part.row_norm_max
        require(limited == 0.0, "regularization.row_norm_max", "0 with rule solve", limited)


def _check_adversarial(spec: ModelSpec) -> None:
    part = spec.regularization
    weight, norm = part.adversarial_weight, part.adversarial_share
    require(0.0 <= weight <= 10.0, "regularization.adversarial_weight", "0..10", weight)
    require(0.0 <= norm <= 10.0, "regularization.adversarial_share", "0..10", norm)
    require(
        (weight > 0) == (norm > 0), "regularization.adversarial_share", "above 0 with a weight only", norm
    )
    if weight:
        fits = spec.rule == Rule.SGD and spec.loss in (Loss.LOGISTIC, Loss.BPR)
        expected = "0 without rule sgd and logistic or BPR loss"
        require(fits, "regularization.adversarial_weight", expected, weight)
        apart = part.dropout == 0.0 and not spec.adaptive_rate.window
        require(apart, "regularization.adversarial_weight", "0 with dropout or adaptive_rate", weight)


def _check_event_types(event_types: tuple[EventType, ...]) -> None:
    require(
        len(event_types) <= MAX_EVENT_TYPES, "event_types", f"at most {MAX_EVENT_TYPES}", len(event_types)
    )
    numbers = [each.type for each in event_types]
    require(len(set(numbers)) == len(numbers), "event_types", "each type once", numbers)
    for each in event_types:
        require(0 <= each.type < 1 << 32, "event_types.type", "an unsigned 32-bit number", each.type)
        require(
            _finite32(each.weight) and 0.0 < each.weight <= 1e3, "event_types.weight", "(0, 1e3]", each.weight
        )


def _finite32(value: float) -> bool:
    return math.isfinite(value) and bool(np.isfinite(np.float32(value)))


def _check_rates(spec: ModelSpec) -> None:
    optimizer = spec.optimizer
    require(optimizer.kind in tuple(OptimizerKind), "optimizer.kind", "a known optimizer", optimizer.kind)
    for name in ("learning_rate", "bias_learning_rate"):
        value = getattr(optimizer, name)
        require(_finite32(value) and 0.0 <= value <= 100.0, f"optimizer.{name}", "0..100", value)
    for name in ("l2", "bias_l2"):
        value = getattr(spec, name)
        require(_finite32(value) and 0.0 <= value <= 100.0, name, "0..100", value)
    require(
        _finite32(optimizer.initial_g) and 0.0 <= optimizer.initial_g <= spec.limits.g_max,
        "optimizer.initial_g",
        "0..g_max",
        optimizer.initial_g,
    )
    if optimizer.kind in (OptimizerKind.ADAGRAD, OptimizerKind.ROWWISE_ADAGRAD):
        require(1e-30 <= optimizer.eps <= 1e6, "optimizer.eps", "1e-30..1e6 with AdaGrad", optimizer.eps)
    if optimizer.kind == OptimizerKind.LAZY_ADAM:
        require(1e-20 <= optimizer.eps <= 1e6, "optimizer.eps", "1e-20..1e6 with lazy Adam", optimizer.eps)
    for name in ("beta1", "beta2"):
        value = getattr(optimizer, name)
        require(0.0 <= value <= 1.0 - 1e-6, f"optimizer.{name}", "0..0.999999", value)
    require(_finite32(optimizer.l1) and 0.0 <= optimizer.l1 <= 1e6, "optimizer.l1", "0..1e6", optimizer.l1)
    require(1e-6 <= optimizer.beta <= 1e6, "optimizer.beta", "1e-6..1e6", optimizer.beta)
    require(
        _finite32(spec.init_scale) and 0.0 <= spec.init_scale <= 2.0 * spec.limits.factor_max,
        "init_scale",
        "0..2*factor_max",
        spec.init_scale,
    )
    require(
        _finite32(spec.hot_row_events) and 1.0 <= spec.hot_row_events <= 1e9,
        "hot_row_events",
        "1..1e9",
        spec.hot_row_events,
    )


def _check_limits(limits: Limits) -> None:
    require(1 <= limits.users_max < 1 << 32, "limits.users_max", "1..2**32-1", limits.users_max)
    require(1 <= limits.items_max < 1 << 32, "limits.items_max", "1..2**32-1", limits.items_max)
    require(1 <= limits.producers_max <= 1 << 20, "limits.producers_max", "1..2**20", limits.producers_max)
    # The fixed-point sum of the global mean stays below 2**63 for 2**40 events.
    require(0.0 < limits.value_abs_max <= 1e6, "limits.value_abs_max", "(0, 1e6]", limits.value_abs_max)
    require(0.0 < limits.weight_max <= 1e6, "limits.weight_max", "(0, 1e6]", limits.weight_max)
    require(0.0 < limits.error_max <= 1e9, "limits.error_max", "(0, 1e9]", limits.error_max)
    require(0.0 < limits.factor_max <= 1e6, "limits.factor_max", "(0, 1e6]", limits.factor_max)
    require(0.0 < limits.g_max <= 1e38, "limits.g_max", "(0, 1e38]", limits.g_max)
