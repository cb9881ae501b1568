"""Presets: a checked spec for each task, so that a first push needs no spec.

docs/rules.md explains which one to use.
"""

from __future__ import annotations

from dataclasses import replace

from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import (
    Auto,
    Counts,
    History,
    Limits,
    Loss,
    Mix,
    ModelSpec,
    Optimizer,
    OptimizerKind,
    Rule,
    Softmax,
    Solve,
    SpecError,
)
from livefactor_kernels.spec.names import DEFAULT_PRESET, PRESET_NAMES

__all__ = ["DEFAULT_PRESET", "PRESET_NAMES", "preset"]

_SHARED_NEGATIVES = ModelSpec(
    k=64,
    loss=Loss.SOFTMAX,
    rule=Rule.SOFTMAX,
    negatives=64,
    softmax=Softmax(group_events=4),
    init_scale=0.1,
    hot_row_events=32.0,
)

_PRESETS: dict[str, ModelSpec] = {
    "ratings_sgd": ModelSpec(
        k=32,
        loss=Loss.SQUARED,
        optimizer=Optimizer(OptimizerKind.SGD, 0.07, 0.05),
        l2=0.01,
        bias_l2=0.02,
        init_scale=0.3,
        hot_row_events=16.0,
        # The learning rates suit values up to 5. The bound on the error keeps the steps stable for
        # values up to 100.
        limits=Limits(value_abs_max=1e3, error_max=2.5),
    ),
    "clicks_sgd": ModelSpec(
        k=64,
        loss=Loss.LOGISTIC,
        negatives=4,
        optimizer=Optimizer(OptimizerKind.SGD, 0.12, 0.1),
        l2=0.001,
        init_scale=0.4,
        hot_row_events=32.0,
        limits=Limits(value_abs_max=1.0, error_max=4.0),
    ),
    "purchases_sgd": ModelSpec(
        k=64,
        loss=Loss.BPR,
        negatives=8,
        optimizer=Optimizer(OptimizerKind.ADAGRAD, 0.12, 0.15, 0.5, 1e-6),
        l2=0.001,
        init_scale=0.3,
        hot_row_events=32.0,
        limits=Limits(value_abs_max=1e6, error_max=4.0),
    ),
    "ratings": ModelSpec(
        k=32,
        loss=Loss.SQUARED,
        rule=Rule.SOLVE,
        l2=0.1,
        bias_l2=0.05,
        micro_batch=256,
        init_scale=0.3,
        history=History(users=512, items=1024),
        solve=Solve(sweeps=3),
        limits=Limits(value_abs_max=1e3),
    ),
    # The parameters were measured on Online Retail and on MovieLens (docs/quality.md). The limit of
    # values refuses ratings, because a rating of 3 is no click.
    "clicks": ModelSpec(
        k=64,
        loss=Loss.IMPLICIT,
        rule=Rule.SOLVE,
        l2=0.003,
        micro_batch=256,
        init_scale=0.05,
        history=History(users=256, items=512, half_life=1.5),
        solve=Solve(unobserved=1.0),
        counts=Counts(neighbors=128),
        limits=Limits(value_abs_max=1.0),
    ),
    # docs/quality.md says on which sets the density and the rate were chosen.
    "auto": ModelSpec(
        k=64,
        loss=Loss.IMPLICIT,
        rule=Rule.SOLVE,
        l2=0.003,
        micro_batch=256,
        init_scale=0.05,
        history=History(users=4096, items=4096, paged=True),
        solve=Solve(unobserved_density=40.0),
        counts=Counts(neighbors=128, weight=1.0),
        mix=Mix(
            learning_rate=0.04,
            recent_half_life=1.0,
            neighbors=100,
            predicted_first=2,
            neighbor_roots=True,
            recent_start=4.0,
            baskets=True,
            walk_users=64,
            early_events=8192,
        ),
        auto=Auto(ratings_events=1000),
        limits=Limits(value_abs_max=1e6),
    ),
    # The repeat gain and the high bias rate were the best on the first 60 % of Online Retail
    # (docs/quality.md).
    "purchases": replace(
        _SHARED_NEGATIVES,
        micro_batch=512,
        optimizer=Optimizer(OptimizerKind.ADAGRAD, 0.1, 0.4, 0.1, 1e-6),
        l2=0.001,
        history=History(users=256),
        counts=Counts(repeat=1.5),
        limits=Limits(value_abs_max=1e6, error_max=4.0),
    ),
    # Items that nobody reads any more sink, because they are drawn as negatives. A high bias rate
    # and small micro-batches follow current interest. Micro-batches of 512 events would cost a
    # sixth of the recall.
    "news": replace(
        _SHARED_NEGATIVES,
        micro_batch=8,
        optimizer=Optimizer(OptimizerKind.ADAGRAD, 0.2, 1.0, 0.1, 1e-6),
        l2=0.03,
        history=History(users=64),
        limits=Limits(value_abs_max=1.0, error_max=4.0),
    ),
}

# `names` has the names, so that their import is fast. Both modules export them.
assert set(PRESET_NAMES) == set(_PRESETS)


def preset(name: str, **changes: object) -> ModelSpec:
    """The spec of a preset, with `changes` in place of its own fields.

    `name` is one of `PRESET_NAMES`.

    Raises:
        SpecError: the name is unknown, or a change is invalid.
    """
    if name not in _PRESETS:
        raise SpecError(f"preset: expected one of {', '.join(PRESET_NAMES)}, got {name!r}")
    return check(replace(_PRESETS[name], **changes))  # type: ignore[arg-type]
