"""The limits of the contract: each has one name, one figure and one form of error text.

The server refuses what exceeds them with INVALID_ARGUMENT. The Python client checks them before it
sends, so both sides import the figures and the text from here.
"""

from __future__ import annotations

import re

from livefactor.errors import InvalidArgument

MESSAGE_BYTES_MAX = 4 << 20
"""Bytes of a message, in both directions."""

SCORE_USERS_MAX = 1024
"""Users of a Score call. The Scorer divides a larger request into several calls."""

SCORE_ROWS_MAX = 1 << 18
"""Scores in the answer of a Score call, and ids in each list of ids that it carries."""

SCORE_PAIRS_MAX = 1 << 28
"""Users of a top-k call times the items of the model. A call for one user has no such limit."""

EXPLAINED_MAX = 1024
"""Events, and updates, that an explanation of a score names."""

BATCH_ROWS_MAX = 65_536
"""Rows of a batch. A server may have a lower limit (`--batch-events-max`)."""

EMBEDDING_NUMBERS_MAX = 1 << 18
"""Numbers of all vectors of a batch of embeddings."""

SHA256_BYTES = 32
"""Bytes of the hash of an encoder or an adapter."""

FEATURES_OF_BATCH_MAX = 1 << 16
"""Features of all bags of a batch."""

FEATURE_NAME_BYTES_MAX = 256
"""Bytes of the name of a feature."""

FEATURE_WEIGHT_MAX = 1000.0
"""The largest weight of a feature in a bag, with either sign."""

DELTA_NUMBERS_MAX = 3 << 18
"""Deltas of all rows of a batch: 3 MiB, and the ids and biases fit into a message beside them."""

MAP_NUMBERS_MAX = 3 << 17
"""Numbers of the sums of a map, 8 bytes each."""

LABEL_BYTES_MAX = 1024
"""Bytes of a label. The server rejects the row of a longer one."""

PRODUCER_ID_BYTES_MAX = 64
"""Bytes of a producer's id."""

NOTE_BYTES_MAX = 256
"""Bytes of a producer's note."""

MODEL_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
"""What the name of a model looks like."""

_OVER = re.compile(r"[a-z_.]+: at most \d+")


def over(field: str, most: int, got: int, of: str = "") -> str:
    """The text for a field that is above its limit, such as "k: at most 262144, got 300000".

    of: what is counted, if the field does not say it: "user_ids: at most 1024 users a call".
    """
    return f"{field}: at most {most}{' ' if of else ''}{of}, got {got}"


def is_over(text: str) -> bool:
    """Whether a text of `over` says that a request is too large."""
    return _OVER.match(text) is not None


def check_most(field: str, most: int, got: int, of: str = "") -> None:
    """Raise InvalidArgument with the text of `over` if `got` is above `most`."""
    if got > most:
        text = over(field, most, got, of)
        raise InvalidArgument(text, code="INVALID_ARGUMENT", details=text)


def check_model(name: str) -> str:
    """The name of a model. Raises InvalidArgument if no model can have it; "" is the default."""
    if name and not MODEL_NAME.fullmatch(name):
        shown = f"{name[:64]!r}{'...' if len(name) > 64 else ''}"
        text = f"model: expected 1 to 64 characters a-z 0-9 _ -, the first a letter, got {shown}"
        raise InvalidArgument(text, code="INVALID_ARGUMENT", details=text)
    return name
