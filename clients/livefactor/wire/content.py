"""The messages of vectors, of features of ids, and of bags of context, in both directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from livefactor.errors import ColumnError
from livefactor.v1 import updates_pb2
from livefactor.wire.arrays import FLOATS, HALVES, KEYS, NUMBERS, require_rows
from livefactor.wire.ids import Ids, as_keys
from livefactor.wire.limits import FEATURES_OF_BATCH_MAX
from livefactor.wire.twins import malformed, parse_body, twin_column, twin_of

_EmbeddingsTwin = twin_of(updates_pb2.Embeddings)
_FeaturesTwin = twin_of(updates_pb2.Features)
_BagsTwin = twin_of(updates_pb2.Bags)
_NAME_TAG = bytes([updates_pb2.Bags.NAMES_FIELD_NUMBER << 3 | 2])


@dataclass(frozen=True, slots=True)
class EmbeddingColumns:
    """Vectors of n ids of one side.

    side: a `livefactor.v1.Side` number. ids: uint64[n]. vectors: float16 or float32[n, dimension].
    body: the bytes of the message. encoder_hash: of what made the vectors; empty if it is unknown.
    """

    side: int
    ids: npt.NDArray[np.uint64]
    vectors: npt.NDArray[Any]
    body: bytes
    encoder_hash: bytes = b""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class FeatureColumns:
    """Bags of features of n ids of one side.

    side: a `livefactor.v1.Side` number. ids: uint64[n]. counts: the size of each bag, uint32[n].
    names: the texts of features. features: the index in `names` of each feature of each bag,
    uint32[m]. weights: float32[m]. body: the bytes of the message.
    """

    side: int
    ids: npt.NDArray[np.uint64]
    counts: npt.NDArray[np.uint32]
    names: Sequence[str]
    features: npt.NDArray[np.uint32]
    weights: npt.NDArray[np.float32]
    body: bytes

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class BagColumns:
    """n bags of features. The attributes are those of `FeatureColumns`."""

    counts: npt.NDArray[np.uint32]
    names: Sequence[str]
    features: npt.NDArray[np.uint32]
    weights: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.counts)

    def select(self, mask: npt.NDArray[np.bool_]) -> BagColumns:
        """The bags where `mask` (bool[n]) is true, with the names that they have."""
        kept = np.repeat(mask, self.counts)
        used, features = np.unique(self.features[kept], return_inverse=True)
        names = [self.names[at] for at in used.tolist()]
        return BagColumns(self.counts[mask], names, features.astype(NUMBERS), self.weights[kept])

    def part(self, start: int, stop: int) -> BagColumns:
        """The bags [start, stop)."""
        mask = np.zeros(len(self), np.bool_)
        mask[start:stop] = True
        return self.select(mask)


def bag_columns(bags: Sequence[Mapping[str, float]]) -> BagColumns:
    """The columns of bags, each a dict of names and weights."""
    names: dict[str, int] = {}
    features = [names.setdefault(name, len(names)) for bag in bags for name in bag]
    weights = np.array([weight for bag in bags for weight in bag.values()], FLOATS)
    counts = np.array([len(bag) for bag in bags], NUMBERS)
    return BagColumns(counts, list(names), np.array(features, NUMBERS), weights)


def encode_bags(bags: BagColumns) -> bytes:
    """The bytes of a Bags message. Raises ColumnError for names that are not str."""
    try:
        message = _BagsTwin(counts=bags.counts.astype(NUMBERS, copy=False).tobytes(), names=bags.names)
    except (TypeError, ValueError) as error:
        raise ColumnError("names: expected str that can be encoded as UTF-8") from error
    message.features = bags.features.astype(NUMBERS, copy=False).tobytes()
    if (bags.weights != 1).any():
        message.weights = bags.weights.astype(FLOATS, copy=False).tobytes()
    return bytes(message.SerializeToString())


def decode_bags(body: bytes) -> BagColumns:
    """Read a Bags message. Raises ColumnError if the bytes do not parse or the sizes differ."""
    # A name takes two bytes of a message at least, so names are counted before they are parsed.
    if body.count(_NAME_TAG) > 2 * FEATURES_OF_BATCH_MAX + len(body) // 64:
        raise ColumnError(f"names: at most {FEATURES_OF_BATCH_MAX} a batch, got many more")
    twin, _ = parse_body(_BagsTwin, updates_pb2.Bags, body)
    return BagColumns(twin_column(twin, "counts", NUMBERS), list(twin.names), *_features_of(twin))


def _features_of(twin: Any) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.float32]]:
    """The features and their weights of bags with counts. Raises ColumnError if sizes differ."""
    counts = twin_column(twin, "counts", NUMBERS)
    features, weights = twin_column(twin, "features", NUMBERS), twin_column(twin, "weights", FLOATS)
    if int(counts.sum(dtype=np.uint64)) != len(features):
        raise ColumnError(f"features has {len(features)} rows, expected the sum of counts")
    if not len(weights):
        weights = np.ones(len(features), np.float32)
    require_rows("weights", weights, len(features), "features")
    if len(features) and int(features.max()) >= len(twin.names):
        raise ColumnError(f"features: expected indexes below {len(twin.names)} (names)")
    return features, weights


def encode_embeddings(side: int, ids: Ids, vectors: npt.NDArray[Any], encoder_hash: bytes = b"") -> bytes:
    """The bytes of an Embeddings message.

    side: a `livefactor.v1.Side` number. ids: n ids. vectors: float16 or float32[n, dimension].
    encoder_hash: the SHA-256 hash of what made the vectors, 32 bytes or empty.
    Raises ColumnError for ids of a wrong type, and for another number of vectors.
    """
    keys = as_keys("ids", ids)
    require_rows("vectors", vectors, len(keys), "ids")
    message = _EmbeddingsTwin(side=side, ids=keys.tobytes(), dimension=vectors.shape[1])
    if encoder_hash:
        message.encoder_hash = encoder_hash
    if vectors.dtype == np.float16:
        message.half_vectors = vectors.astype(HALVES, copy=False).tobytes()
    else:
        message.vectors = vectors.astype(FLOATS, copy=False).tobytes()
    return bytes(message.SerializeToString())


def decode_embeddings(body: bytes) -> EmbeddingColumns:
    """Read an Embeddings message.

    Raises ColumnError if the bytes do not parse or the sizes differ.
    """
    twin, body = parse_body(_EmbeddingsTwin, updates_pb2.Embeddings, body)
    ids, wide = twin_column(twin, "ids", KEYS), twin_column(twin, "vectors", FLOATS)
    if len(wide) and twin.half_vectors:
        raise ColumnError("vectors: expected either vectors or half_vectors, got both")
    numbers = wide
    if twin.half_vectors:
        if len(twin.half_vectors) % HALVES.itemsize:
            raise ColumnError("half_vectors: expected 2 bytes for each number")
        numbers = np.frombuffer(twin.half_vectors, HALVES)
    if len(numbers) != len(ids) * twin.dimension:
        expected = f"{len(ids)} ids of dimension {twin.dimension}"
        raise ColumnError(f"vectors has {len(numbers)} numbers, expected those of {expected}")
    vectors = numbers.reshape(len(ids), twin.dimension)
    return EmbeddingColumns(twin.side, ids, vectors, body, bytes(twin.encoder_hash))


def encode_dropped_features(side: int, names: Sequence[str]) -> bytes:
    """The bytes of a DroppedFeatures message. Raises ColumnError for names that are not str."""
    try:
        return bytes(updates_pb2.DroppedFeatures(side=side, names=names).SerializeToString())  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ColumnError("names: expected str that can be encoded as UTF-8") from error


def decode_dropped_features(body: bytes) -> tuple[int, list[str]]:
    """The side and the names of a DroppedFeatures message. Raises ColumnError if it is not one."""
    try:
        message = updates_pb2.DroppedFeatures.FromString(body)
    except DecodeError as error:
        raise malformed(updates_pb2.DroppedFeatures) from error
    return message.side, list(message.names)


def encode_features(
    side: int,
    ids: Ids,
    counts: npt.NDArray[Any],
    names: Sequence[str],
    features: npt.NDArray[Any],
    weights: npt.NDArray[Any] | None,
) -> bytes:
    """The bytes of a Features message. The arguments are those of `FeatureColumns`.

    weights: None for weights of 1. Raises ColumnError for ids of a wrong type, for unequal lengths,
    and for names that are not str.
    """
    keys = as_keys("ids", ids)
    require_rows("counts", counts, len(keys), "ids")
    try:
        message = _FeaturesTwin(side=side, ids=keys.tobytes(), names=names)
    except (TypeError, ValueError) as error:
        raise ColumnError("names: expected str that can be encoded as UTF-8") from error
    message.counts = counts.astype(NUMBERS, copy=False).tobytes()
    message.features = features.astype(NUMBERS, copy=False).tobytes()
    if weights is not None:
        require_rows("weights", weights, len(features), "features")
        message.weights = weights.astype(FLOATS, copy=False).tobytes()
    return bytes(message.SerializeToString())


def decode_features(body: bytes) -> FeatureColumns:
    """Read a Features message. Raises ColumnError if the bytes do not parse or the sizes differ."""
    twin, body = parse_body(_FeaturesTwin, updates_pb2.Features, body)
    ids, counts = twin_column(twin, "ids", KEYS), twin_column(twin, "counts", NUMBERS)
    require_rows("counts", counts, len(ids), "ids")
    return FeatureColumns(twin.side, ids, counts, list(twin.names), *_features_of(twin), body)
