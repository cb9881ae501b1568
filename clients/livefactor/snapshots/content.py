"""What a snapshot's tensors must hold beside numbers of the right shape: rows that exist, ids once, labels that are text."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from livefactor.errors import SnapshotInvalid
from livefactor.snapshots.format import Manifest
from livefactor.snapshots.sections import SIDES, Content, parse_spec, row_sections, small_sections

RATE_STEPS_MAX, MOVES_MAX = 24, 1 << 24


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
    events = int(tensors["events"][0])
    for name, content in _contents(manifest):
        names_rows = content in (Content.USER_ROWS, Content.ITEM_ROWS)
        # Places of the reservoir that no event has reached yet name no row.
        is_filled = slice(events if names_rows and name.startswith("replay.") else None)
        if fault := _fault(content, tensors[name][is_filled], tensors):
            require(False, name, fault)
    if "rates" in tensors:
        step, moves, in_window, _, squares = tensors["rates"].tolist()
        require(abs(step) <= RATE_STEPS_MAX, "rates", f"is past {RATE_STEPS_MAX} steps")
        require(moves < MOVES_MAX, "rates", f"is past {MOVES_MAX} moves")
        require(
            step % 1 == moves % 1 == in_window % 1 == 0,
            "rates",
            "holds a part of a step, of a move or of an event",
        )
        require(min(moves, in_window, squares) >= 0, "rates", "holds a negative number")
    for side in ("user", "item"):
        keys, offsets, text = (tensors[f"labels.{side}.{name}"] for name in ("keys", "offsets", "text"))
        require(_ascending(keys), f"labels.{side}.keys", "is not ascending")
        require(_cuts(offsets, len(keys), len(text)), f"labels.{side}.offsets", "does not cut the text")
        require(_utf8(offsets, text), f"labels.{side}.text", "is not UTF-8")


def _contents(manifest: Manifest) -> Iterator[tuple[str, Content]]:
    """Sections of which more is known than dtype and shape."""
    spec = parse_spec(manifest.spec)
    for side in SIDES:
        for section in row_sections(spec, side):
            yield f"{side}.{section.name}", section.content
    for small in small_sections(spec):
        yield small.name, small.content


def _fault(content: Content, array: np.ndarray, tensors: dict[str, np.ndarray]) -> str:
    """What is wrong with a section's numbers, "" if nothing is."""
    if content == Content.DISTINCT and not _ascending(np.sort(array)):
        return "holds an id twice"
    if content == Content.AMOUNTS and not bool((array >= 0).all()):
        return "holds a negative number"
    if content == Content.SQUARES and not bool((array >= 0).all()):
        return "holds a negative sum of squares"
    if content == Content.POWERS and not bool(((array >= 0) & (array <= 1)).all()):
        return "holds no power of a beta"
    if content in (Content.USER_ROWS, Content.ITEM_ROWS) and array.size:
        side = "users" if content == Content.USER_ROWS else "items"
        most = len(tensors[f"{side}.keys"])
        if int(array.max()) >= most:
            return f"names a row past the {most} {side}"
    return ""


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
