"""Converts `livefactor.v1.ModelSpec` messages to `livefactor_kernels.spec.model.ModelSpec` and
back.

Hashes use the logged bytes of a spec, which are never serialised again. `encode` is called once, at
the creation of a model. `decode` reads logged bytes.
"""

from __future__ import annotations

import hashlib
from dataclasses import fields, replace
from enum import IntEnum
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from livefactor.v1 import models_pb2
from livefactor_kernels.spec.admission import Admission, Eviction
from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import (
    AdaptiveRate,
    Auto,
    Context,
    Counts,
    Embeddings,
    EventType,
    FactorDtype,
    Features,
    History,
    Limits,
    Loss,
    Merge,
    Mix,
    ModelSpec,
    Optimizer,
    OptimizerKind,
    Privacy,
    Proposal,
    Regularization,
    Replay,
    Rule,
    Softmax,
    Solve,
    SpecError,
)
from livefactor_kernels.spec.presets import preset

ID_BYTES = 8
"""Bytes of the id of a spec."""

_PLAIN = (
    "k",
    "l2",
    "bias_l2",
    "negatives",
    "micro_batch",
    "hot_row_events",
    "init_scale",
    "seed",
    "kernel_semantics",
)
_OPTIMIZER = ("learning_rate", "bias_learning_rate", "initial_g", "eps", "beta1", "beta2", "l1", "beta")
_LATER = {
    "optimizer": ("beta1", "beta2", "l1", "beta"),
    "counts": ("repeat",),
    "history": ("paged",),
    "embeddings": ("user_dimension",),
    "features": ("prior_events",),
    "mix": (
        "recent_half_life",
        "neighbors",
        "predicted_first",
        "neighbor_roots",
        "recent_start",
        "baskets",
        "walk_users",
        "early_events",
    ),
    "solve": ("unobserved_density", "ridge_events", "start_events"),
    "softmax": ("group_events",),
    "regularization": ("adversarial_weight", "adversarial_share"),
    "merge": ("optimizer_step",),
}
"""Fields that parts got after specs with these parts had been logged.

The bytes lack them where they have their defaults.
"""
_LIMITS = tuple(field.name for field in fields(Limits))
_PARTS: dict[str, Any] = {
    "history": History,
    "solve": Solve,
    "counts": Counts,
    "mix": Mix,
    "embeddings": Embeddings,
    "features": Features,
    "context": Context,
    "auto": Auto,
    "regularization": Regularization,
    "replay": Replay,
    "adaptive_rate": AdaptiveRate,
    "merge": Merge,
    "privacy": Privacy,
    "admission": Admission,
    "eviction": Eviction,
}
"""Parts of the spec. The bytes lack a part in which all fields have their defaults."""


def _given(message: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(message, name) for name in names if message.HasField(name)}


def from_message(message: models_pb2.ModelSpec, preset_name: str) -> ModelSpec:
    """The preset with the message's fields in place of its own, after a check.

    Raises:
        SpecError: the preset is unknown, or a field is invalid. The text names it.
    """
    return changed(preset(preset_name), message)


def changed(base: ModelSpec, message: models_pb2.ModelSpec) -> ModelSpec:
    """The spec `base` with the message's fields in place of its own, after a check.

    Raises:
        SpecError: a field is invalid. The text names it.
    """
    changes: dict[str, Any] = _given(message, _PLAIN)
    if message.loss:
        changes["loss"] = _known(Loss, message.loss, "loss")
        if changes["loss"] != base.loss and "negatives" not in changes:
            changes["negatives"] = 0 if changes["loss"] == Loss.SQUARED else max(1, base.negatives)
    if message.factor_dtype:
        changes["factor_dtype"] = _known(FactorDtype, message.factor_dtype, "factor_dtype")
    if message.rule:
        changes["rule"] = _known(Rule, message.rule, "rule")
    changes["softmax"] = _softmax(message, base.softmax)
    for name, kind in _PARTS.items():
        changes[name] = replace(getattr(base, name), **_given(getattr(message, name), _names(kind)))
    if message.event_types:
        changes["event_types"] = _event_types(message)
    optimizer = _given(message.optimizer, _OPTIMIZER)
    if message.optimizer.kind:
        optimizer["kind"] = _known(OptimizerKind, message.optimizer.kind, "optimizer.kind")
    changes["optimizer"] = replace(base.optimizer, **optimizer)
    changes["limits"] = replace(base.limits, **_given(message.limits, _LIMITS))
    return check(replace(base, **changes))


def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def _event_types(message: models_pb2.ModelSpec) -> tuple[EventType, ...]:
    return tuple(EventType(each.type, each.weight, each.negative) for each in message.event_types)


def _softmax(message: models_pb2.ModelSpec, base: Softmax) -> Softmax:
    given = _given(message.softmax, ("group_events",))
    if message.softmax.proposal:
        given["proposal"] = _known(Proposal, message.softmax.proposal, "softmax.proposal")
    return replace(base, **given)


def _known(kind: type[IntEnum], number: int, name: str) -> Any:
    try:
        return kind(number)
    except ValueError:
        raise SpecError(f"{name}: expected one of {[int(k) for k in kind]}, got {number}") from None


def to_message(spec: ModelSpec) -> models_pb2.ModelSpec:
    """The complete message of a spec."""
    message = models_pb2.ModelSpec(
        loss=int(spec.loss),  # type: ignore[arg-type]
        factor_dtype=int(spec.factor_dtype),  # type: ignore[arg-type]
        rule=int(spec.rule),  # type: ignore[arg-type]
        event_types=[
            models_pb2.EventType(type=each.type, weight=each.weight, negative=each.negative)
            for each in spec.event_types
        ],
        optimizer=models_pb2.Optimizer(kind=int(spec.optimizer.kind)),  # type: ignore[arg-type]
        softmax=models_pb2.Softmax(
            proposal=int(spec.softmax.proposal),  # type: ignore[arg-type]
            group_events=spec.softmax.group_events,
        ),
    )
    for target, source, names in (
        (message, spec, _PLAIN),
        (message.optimizer, spec.optimizer, _OPTIMIZER),
        (message.limits, spec.limits, _LIMITS),
        *((getattr(message, name), getattr(spec, name), _names(kind)) for name, kind in _PARTS.items()),
    ):
        for name in names:
            setattr(target, name, getattr(source, name))
    return message


def encode(spec: ModelSpec) -> bytes:
    """The bytes of a spec for the first record of a log.

    They lack float32 factors, rule SGD, and parts without effect. So the bytes of older specs stay
    the same.
    """
    message = to_message(spec)
    if spec.factor_dtype == FactorDtype.FLOAT32:
        message.ClearField("factor_dtype")
    if spec.rule == Rule.SGD:
        message.ClearField("rule")
    if spec.softmax == Softmax():
        message.ClearField("softmax")
    for part, names in _LATER.items():
        if message.HasField(part):  # type: ignore[arg-type]
            own, logged = getattr(spec, part), getattr(message, part)
            for name in names:
                if np.float32(getattr(own, name)) == np.float32(getattr(type(own)(), name)):
                    logged.ClearField(name)
    for name, kind in _PARTS.items():
        if getattr(spec, name) == kind():
            message.ClearField(name)  # type: ignore[arg-type]
    return message.SerializeToString(deterministic=True)


def id_of(body: bytes) -> str:
    """The id of a spec: `ID_BYTES` bytes of the SHA-256 hash of its logged bytes, in hex."""
    return hashlib.sha256(body).hexdigest()[: 2 * ID_BYTES]


def decode(body: bytes) -> ModelSpec:
    """The spec of logged bytes.

    Raises:
        SpecError: the bytes are no complete and valid spec, or their version is not supported.
    """
    try:
        message = models_pb2.ModelSpec.FromString(bytes(body))
    except DecodeError:
        raise SpecError("spec: the bytes are not a ModelSpec message") from None
    dtype = message.factor_dtype or FactorDtype.FLOAT32
    return check(
        ModelSpec(
            factor_dtype=_known(FactorDtype, dtype, "factor_dtype"),
            rule=_known(Rule, message.rule or Rule.SGD, "rule"),
            event_types=_event_types(message),
            softmax=_softmax(message, Softmax()),
            **{name: kind(**_given(getattr(message, name), _names(kind))) for name, kind in _PARTS.items()},
            loss=_known(Loss, message.loss, "loss"),
            optimizer=Optimizer(
                kind=_known(OptimizerKind, message.optimizer.kind, "optimizer.kind"),
                **_given(message.optimizer, _OPTIMIZER),
            ),
            limits=Limits(**_given(message.limits, _LIMITS)),
            **_given(message, _PLAIN),
        )
    )
