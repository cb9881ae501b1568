"""Checks of the values in a snapshot: row numbers exist, ids are distinct, labels are UTF-8."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from livefactor.errors import SnapshotInvalid
from livefactor.snapshots.format import Manifest
from livefactor.snapshots.sections import (
    SIDES,
    Content,
    parse_spec,
    remembered_offsets,
    row_sections,
    small_sections,
)
from livefactor.v1 import models_pb2

RATE_STEPS_MAX, MOVES_MAX = 24, 1 << 24


def check_content(manifest: Manifest, tensors: dict[str, np.ndarray]) -> None:
    """Raise SnapshotInvalid for values that no honest server writes. The hashes do not prove these.

    tensors: the arrays by section name. Their hashes are already checked.
    """

    def require(ok: bool, name: str, reason: str) -> None:
        if not ok:
            file = next(tensor.place.file for tensor in manifest.tensors if tensor.place.name == name)
            raise SnapshotInvalid(file, reason, name)

    require(tensors["spec"].tobytes() == manifest.spec, "spec", "differs from the spec in the manifest")
    require(int(tensors["mean"][1]) >= 0, "mean", "has a negative count")
    require(_is_ascending(tensors["unavailable"]), "unavailable", "is not in ascending order")
    events = int(tensors["events"][0])
    for name, content in _contents(manifest):
        names_rows = content in (Content.USER_ROWS, Content.ITEM_ROWS)
        # The reservoir fills up from its start. The row numbers behind its last event have no
        # meaning.
        filled_part = slice(events if names_rows and name.startswith("replay.") else None)
        if fault := _fault(content, tensors[name][filled_part], tensors):
            require(False, name, fault)
    for side in SIDES if parse_spec(manifest.spec).history.paged else ():
        if f"{side}.seen_rows" in tensors:
            ends = remembered_offsets(parse_spec(manifest.spec), side, tensors[f"{side}.seen_count"])
            fits = int(ends[-1]) == len(tensors[f"{side}.seen_rows"])
            require(fits, f"{side}.seen_rows", "does not have as many events as seen_count tells")
    if "rates" in tensors:
        step, moves, in_window, _, squares = tensors["rates"].tolist()
        require(
            abs(step) <= RATE_STEPS_MAX,
            "rates",
            f"is more than {RATE_STEPS_MAX} steps away from the spec's rate",
        )
        require(moves < MOVES_MAX, "rates", f"holds {MOVES_MAX} moves or more")
        whole = step % 1 == moves % 1 == in_window % 1 == 0
        require(whole, "rates", "holds a fraction where it counts steps, moves or events")
        require(min(moves, in_window, squares) >= 0, "rates", "holds a negative number")
    for side, prefix in (("items", "prior"), ("users", "user_prior")):
        if f"{side}.described" in tensors:
            described, progress = tensors[f"{side}.described"], tensors[f"{prefix}.progress"].tolist()
            require(not (described > 2).any(), f"{side}.described", "holds a number above 2")
            require(min(progress) >= 0, f"{prefix}.progress", "holds a negative number")
            summed, told = int((described == 2).sum()), f"counts other {side} than {side}.described"
            require(progress[2] == summed, f"{prefix}.progress", told)
    names = ["labels.user", "labels.item"]
    if "context.keys" in tensors:
        _check_context(manifest, tensors, require)
        names.append("context.labels")
    for side in ("user", "item") if "features.item.keys" in tensors else ():
        _check_features(manifest, tensors, side, require)
        names.append(f"features.{side}.labels")
    for name in names:
        keys, offsets, text = (tensors[f"{name}.{part}"] for part in ("keys", "offsets", "text"))
        require(_is_ascending(keys), f"{name}.keys", "is not in ascending order")
        fits = _fits(offsets, len(keys), len(text))
        require(fits, f"{name}.offsets", "does not divide the text into one label for each id")
        require(_is_utf8(offsets, text), f"{name}.text", "is not UTF-8")


def _check_context(
    manifest: Manifest, tensors: dict[str, np.ndarray], require: Callable[[bool, str, str], None]
) -> None:
    """Checks the statistics of context."""
    spec = parse_spec(manifest.spec)
    count = len(tensors["context.keys"])
    require(count <= spec.context.size, "context.keys", "has more features than the spec allows")
    require(len(tensors["context.counts"]) == count, "context.counts", "does not have one for each feature")
    is_whole = len(tensors["context.sums"]) == count * (spec.k + 1)
    require(is_whole, "context.sums", "does not have a row for each feature")


def _check_features(
    manifest: Manifest,
    tensors: dict[str, np.ndarray],
    side: str,
    require: Callable[[bool, str, str], None],
) -> None:
    """Checks the features of a side ("user" or "item"), and the bags of its rows."""
    spec, name = parse_spec(manifest.spec), f"features.{side}"
    keys, rows, progress = (tensors[f"{name}.{part}"] for part in ("keys", "rows", "progress"))
    bags, weights, bagged = (tensors[f"{side}s.{part}"] for part in ("bag", "bag_weights", "bagged"))
    require(len(keys) <= spec.features.size, f"{name}.keys", "has more features than the spec allows")
    # Rule solve has no biases here.
    width = spec.k + (spec.rule != models_pb2.RULE_SOLVE)
    require(len(rows) == (len(keys) + 1) * width, f"{name}.rows", "does not have a row for each feature")
    require(bool(np.isfinite(rows).all()), f"{name}.rows", "holds a number that is NaN or infinite")
    require(min(progress.tolist()) >= 0, f"{name}.progress", "holds a negative number")
    fitted = int((bagged == 2).sum())
    require(int(progress[2]) == fitted, f"{name}.progress", f"counts other rows than {side}s.bagged")
    require(not (bagged > 2).any(), f"{side}s.bagged", "holds a number above 2")
    is_there = bags > 0
    require(not (bags > len(keys)).any(), f"{side}s.bag", "holds a number that no feature has")
    is_packed = not (is_there[:, 1:] & ~is_there[:, :-1]).any()
    require(is_packed, f"{side}s.bag", "has a gap")
    matches = bool((is_there[:, 0] == (bagged > 0)).all())
    require(matches, f"{side}s.bagged", f"tells of other bags than {side}s.bag")
    is_good = bool((np.isfinite(weights) & ((weights != 0) == is_there)).all())
    require(is_good, f"{side}s.bag_weights", "holds a weight that no feature can have")


def _contents(manifest: Manifest) -> Iterator[tuple[str, Content]]:
    """Each section whose content is known beyond dtype and shape, with that content."""
    spec = parse_spec(manifest.spec)
    for side in SIDES:
        for section in row_sections(spec, side):
            yield f"{side}.{section.name}", section.content
    for small in small_sections(spec):
        yield small.name, small.content


def _fault(content: Content, array: np.ndarray, tensors: dict[str, np.ndarray]) -> str:
    """What is wrong with the numbers of a section; "" if nothing is."""
    if content == Content.DISTINCT and not _is_ascending(np.sort(array)):
        return "holds an id twice"
    if content == Content.AMOUNTS and not bool((array >= 0).all()):
        return "holds a negative number"
    if content == Content.SQUARES and not bool((array >= 0).all()):
        return "holds a negative sum of squares"
    if content == Content.POWERS and not bool(((array >= 0) & (array <= 1)).all()):
        return "holds a number that is not a power of a beta"
    if content in (Content.USER_ROWS, Content.ITEM_ROWS) and array.size:
        side = "users" if content == Content.USER_ROWS else "items"
        count = len(tensors[f"{side}.keys"])
        if int(array.max()) >= count:
            return f"holds a row number that is too large for {count} {side}"
    return ""


def _is_ascending(keys: np.ndarray) -> bool:
    return bool((keys[1:] > keys[:-1]).all())


def _fits(offsets: np.ndarray, count: int, size: int) -> bool:
    return (
        len(offsets) == count + 1
        and int(offsets[0]) == 0
        and int(offsets[-1]) == size
        and bool((offsets[1:] >= offsets[:-1]).all())
    )


def _is_utf8(offsets: np.ndarray, text: np.ndarray) -> bool:
    """Whether the text is UTF-8 and every label begins at a character."""
    try:
        text.tobytes().decode()
    except UnicodeDecodeError:
        return False
    starts = offsets[offsets < len(text)].astype(np.int64)
    return not bool(((text[starts] & 0xC0) == 0x80).any())
