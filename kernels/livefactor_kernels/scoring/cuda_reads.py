"""GPU kernels of reads, as of the present or of a pin, and of copies for pins.

`Saved.place` locates a pin's row: 0 means that the live row is valid for the pin, and p > 0 that
its copy is row p - 1 of `Saved.arrays`. Kernels of updates and reads run one after the other on one
stream. A read therefore sees no half-written row, and `place` does not change while the kernel
runs.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np

from livefactor_kernels.device.factors import load_factor
from livefactor_kernels.device.warp import cuda, half_sum, kernel, lane
from livefactor_kernels.numbers.parts import inlined
from livefactor_kernels.spec.model import LANES
from livefactor_kernels.tables import NO_ROW

_NO_ROW = np.uint32(NO_ROW)


class Saved(NamedTuple):
    """The copies of one side's rows that a pin needs.

    Attributes:
        place: int32[rows at the pin], see above.
        rows: the row of each copy, uint32[capacity].
        counter: the number of copies, and the number of those with a copied history, int32[2].
        arrays: the copies, `factors.DeviceRows`.
    """

    place: Any
    rows: Any
    counter: Any
    arrays: Any


class SavedRows(Protocol):
    """Copies of one side's rows for a pin. bound: copies there can be at most."""

    saved: Saved
    bound: int


@kernel
def livefactor_gather_kernel(
    rows: Any, live: Any, copied: Any, saved: Any, pinned: Any, width: Any, count: Any, out: Any
) -> None:
    """Writes out[i] = row rows[i] of `width` elements in the stored type, or zeros for `NO_ROW`.

    With `pinned`, rows are as of the pin: those that were copied come from `copied`. One thread per
    element.
    """
    i = cuda.grid(1)
    if i >= count * width:
        return
    row, column = rows[i // width], i % width
    if row == _NO_ROW:
        out[i] = 0
        return
    place = np.int64(saved.place[row]) if pinned else np.int64(0)
    if place > 0:
        out[i] = copied[(place - 1) * width + column]
    else:
        out[i] = live[np.int64(row) * width + column]


@inlined
def _save(row: Any, below: Any, live: Any, saved: Any, width: Any, adagrad: Any) -> None:
    """Copies a row (int64) before its first change if it is below `below`."""
    if row >= below or cuda.atomic.cas(saved.place, row, 0, -1) != 0:
        return
    place = np.int64(cuda.atomic.add(saved.counter, 0, 1))
    saved.rows[place] = np.uint32(row)
    saved.arrays.bias[place] = live.bias[row]
    for j in range(width):
        saved.arrays.factors[place * width + j] = live.factors[row * width + j]
    if adagrad:
        saved.arrays.bias_g[place] = live.bias_g[row]
        for j in range(width):
            saved.arrays.factor_g[place * width + j] = live.factor_g[row * width + j]
    saved.place[row] = np.int32(place + 1)


@kernel
def livefactor_save_kernel(
    rows: Any, at: Any, count: Any, below: Any, live: Any, saved: Any, width: Any, adagrad: Any
) -> None:
    """Copies the rows rows[at : at + count] that are below `below`, each once.

    One thread per entry.
    """
    i = cuda.grid(1)
    if i < count:
        _save(np.int64(rows[at + i]), below, live, saved, width, adagrad)


@kernel
def livefactor_save_followed_kernel(
    words: Any, users_at: Any, users: Any, span: Any, count: Any, below: Any, live: Any, saved: Any, width: Any,
    adagrad: Any,
) -> None:  # fmt: skip
    """Does the same for the last `span` items of the users in a record.

    One thread per event and item.
    """
    i = cuda.grid(1)
    if i >= count:
        return
    user, back = np.int64(words[users_at + i // span]), 1 + i % span
    seen = np.int64(users.seen_count[user])
    if back <= min(seen, users.length):
        item = np.int64(users.seen_rows[user * users.length + (seen - back) % users.length])
        _save(item, below, live, saved, width, adagrad)


@kernel
def livefactor_copy_kernel(live: Any, saved: Any, copied: Any, width: Any) -> None:
    """Copies a section of the history (`width` elements per row).

    The rows are those that were saved since counter[1] was set.
    """
    first, last = np.int64(saved.counter[1]), np.int64(saved.counter[0])
    for i in range(first * width + cuda.grid(1), last * width, cuda.gridsize(1)):
        copied[i] = live[np.int64(saved.rows[i // width]) * width + i % width]


@inlined
def _pinned_score(user: Any, u: Any, base: Any, row: Any, live: Any, saved: Any, blocks: Any) -> Any:
    """The score of row u of `user` and an item's row as of the pin, float32 in all lanes.

    `base` is mu + b_u.
    """
    place, width = np.int64(saved.place[row]), blocks * LANES
    factors = saved.arrays.factors if place > 0 else live.factors
    at = (place - 1 if place > 0 else row) * width + lane()
    mine = u * width + lane()
    total = user[mine] * load_factor(factors, at)
    for c in range(1, blocks):
        total = total + user[mine + c * LANES] * load_factor(factors, at + c * LANES)
    bias = saved.arrays.bias[place - 1] if place > 0 else live.bias[row]
    return (base + bias) + half_sum(total)


@kernel
def livefactor_scan_kernel(
    users: Any, bases: Any, user_count: Any, live: Any, saved: Any, listed: Any, most: Any, items: Any,
    blocks: Any, scores: Any,
) -> None:  # fmt: skip
    """Writes scores[u * items + row], exact as of the pin, for all rows below `items`.

    With `listed`, it writes only the scores of copied rows, at most `most`. One half-warp per row
    and user.
    """
    i = cuda.grid(1) // LANES
    u, row = i // most, i % most
    if u >= user_count:
        return
    if listed:
        if row >= saved.counter[0]:
            return
        row = np.int64(saved.rows[row])
    if row >= items:
        return
    score = _pinned_score(users, u, bases[u], row, live, saved, blocks)
    if lane() == 0:
        scores[u * items + row] = score


@kernel
def livefactor_rescore_kernel(
    users: Any,
    bases: Any,
    live: Any,
    saved: Any,
    user_numbers: Any,
    rows: Any,
    count: Any,
    blocks: Any,
    scores: Any,
) -> None:
    """Writes scores[i], exact as of the pin, for user user_numbers[i] and row rows[i].

    One half-warp per pair.
    """
    i = cuda.grid(1) // LANES
    if i >= count:
        return
    u = user_numbers[i]
    score = _pinned_score(users, u, bases[u], rows[i], live, saved, blocks)
    if lane() == 0:
        scores[i] = score


@kernel
def livefactor_norms_kernel(live: Any, items: Any, blocks: Any, norms: Any) -> None:
    """Writes norms[row], the squared norm of a live row in float32. One half-warp per row."""
    row = cuda.grid(1) // LANES
    if row >= items:
        return
    at = row * (blocks * LANES) + lane()
    x = load_factor(live.factors, at)
    total = x * x
    for c in range(1, blocks):
        x = load_factor(live.factors, at + c * LANES)
        total = total + x * x
    norm = half_sum(total)
    if lane() == 0:
        norms[row] = norm
