"""What a snapshot's tensors must hold beside numbers of the right shape: rows that exist, ids once, labels that are text."""

from __future__ import annotations

import numpy as np

from livefactor.errors import SnapshotInvalid
from livefactor.snapshots.format import MOVES_MAX, RATE_STEPS_MAX, Manifest

SQUARES = ("factor_g", "row_g", "bias_g", "factor_v", "bias_v", "factor_n", "bias_n")
"""Sections of an optimizer's state whose square root is taken."""


def check_content(manifest: Manifest, tensors: dict[str, np.ndarray]) -> None:
    """Raise SnapshotInvalid for what no honest server writes, though its hashes may be right. tensors: by section name,
    read and hashed."""

    def require(ok: bool, name: str, reason: str) -> None:
        if not ok:
            file = next(tensor.place.file for tensor in manifest.tensors if tensor.place.name == name)
            raise SnapshotInvalid(file, reason, name)

    require(tensors["spec"].tobytes() == manifest.spec, "spec", "is not the manifest's")
    require(int(tensors["mean"][1]) >= 0, "mean", "counts less than nothing")
    require(_ascending(tensors["unavailable"]), "unavailable", "is not ascending")
    for name in ("users.keys", "items.keys"):
        require(_ascending(np.sort(tensors[name])), name, "holds an id twice")
    for section, rows_of in (
        ("users.seen_rows", "items"),
        ("items.seen_rows", "users"),
        ("items.neighbor_rows", "items"),
    ):
        if section in tensors and tensors[section].size:
            most = len(tensors[f"{rows_of}.keys"])
            require(int(tensors[section].max()) < most, section, f"names a row past the {most} {rows_of}")
    for section in ("users.seen_weights", "items.seen_weights", "items.neighbor_counts", "replay.weights"):
        if section in tensors:
            require(bool((tensors[section] >= 0).all()), section, "holds a negative number")
    if "rates" in tensors:
        step, moves, events, _, squares = tensors["rates"].tolist()
        require(abs(step) <= RATE_STEPS_MAX, "rates", f"is past {RATE_STEPS_MAX} steps")
        require(moves < MOVES_MAX, "rates", f"is past {MOVES_MAX} moves")
        require(
            step % 1 == moves % 1 == events % 1 == 0,
            "rates",
            "holds a part of a step, of a move or of an event",
        )
        require(min(moves, events, squares) >= 0, "rates", "holds a negative number")
    if "replay.user_rows" in tensors:
        kept = int(min(tensors["events"][0], len(tensors["replay.user_rows"])))
        for side in ("user", "item"):
            rows, most = tensors[f"replay.{side}_rows"][:kept], len(tensors[f"{side}s.keys"])
            require(
                not kept or int(rows.max()) < most,
                f"replay.{side}_rows",
                f"names a row past the {most} {side}s",
            )
    for side in ("users", "items"):
        for name in SQUARES:
            section = f"{side}.{name}"
            if section in tensors:
                require(bool((tensors[section] >= 0).all()), section, "holds a negative sum of squares")
        if f"{side}.powers" in tensors:
            powers = tensors[f"{side}.powers"]
            require(bool(((powers >= 0) & (powers <= 1)).all()), f"{side}.powers", "holds no power of a beta")
    for side in ("user", "item"):
        keys, offsets, text = (tensors[f"labels.{side}.{name}"] for name in ("keys", "offsets", "text"))
        require(_ascending(keys), f"labels.{side}.keys", "is not ascending")
        require(_cuts(offsets, len(keys), len(text)), f"labels.{side}.offsets", "does not cut the text")
        require(_utf8(offsets, text), f"labels.{side}.text", "is not UTF-8")


def _ascending(keys: np.ndarray) -> bool:
    return bool((keys[1:] > keys[:-1]).all())


def _cuts(offsets: np.ndarray, count: int, size: int) -> bool:
    return (
        len(offsets) == count + 1
        and int(offsets[0]) == 0
        and int(offsets[-1]) == size
        and bool((offsets[1:] >= offsets[:-1]).all())
    )


def _utf8(offsets: np.ndarray, text: np.ndarray) -> bool:
    """Whether the whole is UTF-8 and no label begins inside a character."""
    try:
        text.tobytes().decode()
    except UnicodeDecodeError:
        return False
    starts = offsets[offsets < len(text)].astype(np.int64)
    return not bool(((text[starts] & 0xC0) == 0x80).any())
