"""Whether what a log holds is valid under another spec than the one that accepted it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from livefactor_kernels.solve.prior import dimension_of
from livefactor_kernels.spec.model import Loss, ModelSpec
from livefactor_kernels.tables import ITEMS, USERS
from livefactor_server.changes.bodies import decode_bodies
from livefactor_server.changes.content.embeddings import EmbeddingsChange
from livefactor_server.changes.content.factors import FactorsChange, misfit
from livefactor_server.changes.content.features import FeaturesChange
from livefactor_server.changes.content.map_sums import MapSumsChange, map_sums_misfit
from livefactor_server.changes.content.release import ReleaseChange, release_misfit
from livefactor_server.changes.deltas import DeltasChange, deltas_misfit
from livefactor_server.changes.history.quarantine import learned
from livefactor_server.changes.interactions import good_values, good_weights
from livefactor_server.log.columns import KIND, Columns
from livefactor_server.log.store import Kind, Record
from livefactor_server.model.state import ModelState

Column = np.ndarray | None


def rows_misfit(state: ModelState, spec: ModelSpec) -> str:
    """Which limit of `spec` the rows and lists of a state exceed, "" for none."""
    limits = spec.limits
    labels = state.labels
    for name, there, most in (
        ("users", state.backend.users.allocated, limits.users_max),
        ("items", state.backend.items.allocated, limits.items_max),
        ("producers", len(state.producers), limits.producers_max),
        ("labels of users", len(labels[USERS]), limits.users_max),
        ("labels of items", len(labels[ITEMS]), limits.items_max),
        ("features of users", len(state.features[USERS]), spec.features.size),
        ("features of items", len(state.features[ITEMS]), spec.features.size),
        ("unavailable unknown items", state.marks.unknown, limits.items_max),
    ):
        if there > most:
            return f"the model has {there} {name}, and the spec allows {most}"
    return ""


def accepts_all(new: ModelSpec, old: ModelSpec) -> bool:
    """Whether `new` accepts every event that `old` accepts. False may also mean "not sure"."""
    if new.limits.weight_max < old.limits.weight_max:
        return False
    for side in (USERS, ITEMS):
        if dimension_of(old, side) not in (0, dimension_of(new, side)):
            return False
    if old.features.size and new.features.per_id < old.features.per_id:
        return False
    if old.features.size > new.features.size:
        return False
    if old.context.size > 0 and not new.context.size:
        return False
    if old.solve.start_events and misfit(new, old.k):
        return False
    if old.merge.learning_rate and not _merges_alike(new, old):
        return False
    if new.privacy != old.privacy:
        return False
    if new.loss == Loss.SQUARED and old.loss != Loss.SQUARED:
        # Only squared loss requires values.
        return False
    most = np.float32(old.limits.value_abs_max)
    if old.loss == Loss.LOGISTIC and not old.auto.ratings_events:
        edges = np.array([0, 1], np.float32)
    elif old.loss == Loss.SQUARED or old.auto.ratings_events:
        edges = np.array([-most, -most / 2, 0, most / 2, most], np.float32)
    else:
        edges = np.array([0, most / 2, most], np.float32)
    if old.loss == Loss.BPR and not old.auto.ratings_events:
        edges = edges[1:]
    return bool(good_values(edges, new).all())


def events_misfit(
    groups: Iterable[Sequence[Record]], spec: ModelSpec, check: Callable[[], None] = lambda: None
) -> str:
    """The first record with events that `spec` does not accept, and the reason. "" for none.

    `groups` are consecutive records, many at a time (`Log.read_groups`). `check` is called between
    them. If it raises an exception, the work ends with this exception.
    """
    for records in groups:
        check()
        found = _misfit_of_columns(records, spec) if isinstance(records, Columns) else None
        if found is None:
            found = _misfit_of_records(records, spec)
        if found:
            return found
    return ""


def _misfit_of_columns(records: Columns, spec: ModelSpec) -> str | None:
    """As `events_misfit`. None if a record is unusual or does not fit."""
    if not (records.fields[:, KIND] == Kind.INTERACTIONS).all():
        return None
    events, _, _ = decode_bodies(records)
    if len(events.ends) < len(records) or _misfit(events.values, events.weights, spec):
        return None
    # Where only some records have values, the others count as 1.
    return None if spec.loss == Loss.SQUARED else ""


def _misfit_of_records(records: Sequence[Record], spec: ModelSpec) -> str:
    for record in records:
        change = learned(record.kind, record.body) if record.rows else None
        if change is not None:
            columns = change.columns
            if reason := _misfit(columns.values, columns.weights, spec):
                return f"revision {record.revision} has {reason}"
        if record.erased_at and not record.rows:
            continue
        if record.kind == Kind.EMBEDDINGS:
            vectors = EmbeddingsChange.from_log(bytes(record.body))
            found, expected = vectors.vectors.shape[1], dimension_of(spec, vectors.side)
            if found != expected:
                told = f"vectors of dimension {found}, and the spec expects dimension {expected}"
                return f"revision {record.revision} has {told}"
        if record.kind == Kind.FEATURES:
            bags, most = FeaturesChange.from_log(bytes(record.body)).columns.counts, spec.features.per_id
            if not spec.features.size:
                return f"revision {record.revision} has features, which the spec does not have"
            if bags.size and bags.max() > most:
                return (
                    f"revision {record.revision} has {bags.max()} features of an id, the spec allows {most}"
                )
        if record.kind == Kind.FACTORS:
            dimension = FactorsChange.from_log(bytes(record.body)).columns.factors.shape[1]
            if reason := misfit(spec, dimension):
                return f"revision {record.revision} has factors: {reason}"
        if record.kind == Kind.FACTOR_DELTAS:
            deltas = DeltasChange.from_log(bytes(record.body)).columns
            if reason := deltas_misfit(spec, deltas):
                return f"revision {record.revision} has deltas: {reason}"
        if record.kind == Kind.MAP_SUMS:
            map_sums = MapSumsChange.from_log(bytes(record.body)).columns
            if reason := map_sums_misfit(spec, map_sums):
                return f"revision {record.revision} has map sums: {reason}"
        if record.kind == Kind.RELEASE:
            sums = ReleaseChange.from_log(bytes(record.body)).columns
            if reason := release_misfit(spec, sums):
                return f"revision {record.revision} is a release: {reason}"
    return ""


def _merges_alike(new: ModelSpec, old: ModelSpec) -> bool:
    """Whether `new` takes all deltas that `old` takes."""
    has_biases = bool(new.optimizer.bias_learning_rate) or not old.optimizer.bias_learning_rate
    return new.merge.learning_rate > 0 and new.k == old.k and has_biases


def _misfit(values: Column, weights: Column, spec: ModelSpec) -> str:
    if values is None and spec.loss == Loss.SQUARED:
        return "events without values, which squared loss needs"
    for name, column, good in (("a value", values, good_values), ("a weight", weights, good_weights)):
        if column is not None and not (fits := good(column, spec)).all():
            return f"{name} of {column[~fits][0]:g}, which the spec does not accept"
    return ""
