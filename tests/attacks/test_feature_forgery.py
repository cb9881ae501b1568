"""Forged snapshots of models with features are refused, although every hash is correct."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import snapshot_samples as samples
from livefactor.snapshots import files as snapshot_files
from livefactor.v1 import models_pb2
from snapshot_refusals import refused

K, PER_ID = 5, 3


def state_with_features() -> samples.FrozenState:
    """Two features of items, which two items have, and one feature of users."""
    state = samples.view(20, 10, K)
    message = models_pb2.ModelSpec.FromString(state.spec_body)
    message.features.size, message.features.per_id = 2, PER_ID
    spec, small = message.SerializeToString(), dict(state.small)
    small["spec"] = np.frombuffer(spec, np.uint8)
    for side, names, table in zip(
        ("user", "item"), ({9: "x"}, {5: "a", 7: "b"}), state.pin.tables, strict=True
    ):
        rows = len(table["keys"])
        table["bag"], table["bag_weights"] = (
            np.zeros((rows, PER_ID), np.uint32),
            np.zeros((rows, PER_ID), np.float32),
        )
        table["bagged"] = np.zeros(rows, np.uint8)
        table["bag"][2, : len(names)], table["bag_weights"][2, : len(names)] = range(1, len(names) + 1), 0.5
        table["bagged"][2] = 2
        name = f"features.{side}"
        small |= {f"{name}.labels.{part}": array for part, array in samples.labels(names).items()}
        small[f"{name}.keys"] = np.array(list(names), np.uint64)
        # Rule sgd, which the sample has, learns the bias of a feature, too.
        small[f"{name}.rows"] = np.ones((len(names) + 1) * (K + 1), np.float32)
        small[f"{name}.progress"] = np.array([0, 4, 1], np.int64)
    return replace(state, spec_body=spec, small=small)


FORGED = {
    "a number that no feature has": ("bag", (0, 0), 3, "items.bag"),
    "a gap": ("bag", (2, 0), 0, "items.bag"),
    "a mark of another bag": ("bagged", (0,), 1, "items.bagged"),
    "a mark that does not exist": ("bagged", (2,), 3, "features.item.progress"),
    "a weight beside no feature": ("bag_weights", (0, 0), 1.0, "items.bag_weights"),
    "a weight of 0": ("bag_weights", (2, 1), 0.0, "items.bag_weights"),
    "keys twice": ("features.item.keys", (1,), 5, "features.item.keys"),
    "labels in disorder": ("features.item.labels.keys", (1,), 3, "features.item.labels.keys"),
    "labels of other lengths": ("features.user.labels.offsets", (1,), 9, "features.user.labels.offsets"),
    "no UTF-8": ("features.item.labels.text", (0,), 255, "features.item.labels.text"),
    "a NaN": ("features.user.rows", (1,), np.nan, "features.user.rows"),
    "a negative place": ("features.item.progress", (1,), -1, "features.item.progress"),
    "another count": ("features.item.progress", (2,), 2, "features.item.progress"),
}


def test_an_honest_snapshot_is_accepted(tmp_path: Path) -> None:
    """The tests below rely on this: a refusal there must come from the change itself."""
    snapshot_files.verify(samples.taken(tmp_path, state_with_features()))


@pytest.mark.parametrize("name", FORGED)
def test_forged_features_are_refused(tmp_path: Path, name: str) -> None:
    state = state_with_features()
    section, place, value, tensor = FORGED[name]
    array = state.small[section].copy() if "." in section else state.pin.tables[1][section]
    array[place] = value
    if "." in section:
        state.small = dict(state.small) | {section: array}
    assert refused(samples.taken(tmp_path, state)).tensor == tensor


@pytest.mark.parametrize(
    ("section", "size"),
    [("features.item.rows", 2 * K), ("features.user.rows", 3 * K), ("features.item.keys", 3)],
)
def test_features_of_other_numbers_are_refused(tmp_path: Path, section: str, size: int) -> None:
    state = state_with_features()
    state.small = dict(state.small) | {section: np.arange(1, size + 1).astype(state.small[section].dtype)}
    assert refused(samples.taken(tmp_path, state)).tensor == section
