"""Scores and top-k against plain NumPy, bit by bit: sizes, ties, exclusions, rows that change under
a pin.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from livefactor_kernels.cpu import CpuModel
from livefactor_kernels.scoring import cpu as scoring
from livefactor_kernels.scoring import cpu_kernels as scoring_kernels
from livefactor_kernels.spec.model import Limits, Loss, ModelSpec
from livefactor_kernels.tables import ITEMS, NO_ROW, USERS
from livefactor_kernels.tables.cpu import Table
from livefactor_kernels.update import Update

NOTHING = (np.empty(0, np.uint32), np.empty((0, 0), np.float32), np.empty(0, np.float32))


class StandInPin:
    """A pin of `items` rows with the copies `changed`: (rows, factors, biases)."""

    def __init__(self, items: int, mean: float = 0.25, changed=NOTHING) -> None:
        self.counts, self.mean = (0, items), np.float32(mean)
        self.changed, self.calls = changed, 0

    def copies(self, side):
        assert side in (USERS, ITEMS)
        self.calls += 1
        return self.changed


def reference_dots(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Dot products float32[n] in 16 lanes. A lane adds its products in order. Then lane l += l + 8,
    + 4, + 2, + 1.
    """
    products = (x[None, :] * rows).reshape(len(rows), len(x) // 16, 16)
    lanes = products[:, 0].copy()
    for v in range(1, products.shape[1]):
        lanes += products[:, v]
    for width in (8, 4, 2, 1):
        lanes = lanes[:, :width] + lanes[:, width : 2 * width]
    return lanes[:, 0]


def reference_scores(mean, x, user_bias, factors, bias) -> np.ndarray:
    return ((np.float32(mean) + np.float32(user_bias)) + bias) + reference_dots(x, factors)


def reference_top_k(mean, x, user_bias, factors, bias, keys, k, excluded) -> tuple[np.ndarray, np.ndarray]:
    scores = reference_scores(mean, x, user_bias, factors, bias)
    allowed = np.setdiff1d(np.arange(len(bias)), excluded)
    order = allowed[np.lexsort((keys[allowed], -scores[allowed]))][:k]
    return order.astype(np.uint32), scores[order]


def make_table(count, k=64, seed=0, spread=1.0, levels=None) -> Table:
    """A table of `count` random rows.

    `levels` is a number of values, so small that scores tie exactly.
    """
    table = Table(ModelSpec(k=k, limits=Limits(users_max=1, items_max=max(1, count))), ITEMS)
    rng = np.random.default_rng(seed)
    table.allocate(rng.permutation(count).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    draw = rng.standard_normal((count, k + 1)) if levels is None else rng.integers(0, levels, (count, k + 1))
    table.factors[:count, :k] = draw[:, :k] * spread
    table.bias[:count] = draw[:, k] * spread
    return table


def make_users(count, table: Table, seed=1, levels=None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    factors = np.zeros((count, table.factors.shape[1]), np.float32)
    drawn = factors[:, : table.spec.k]
    drawn[:] = rng.standard_normal(drawn.shape) if levels is None else rng.integers(0, levels, drawn.shape)
    return factors, rng.standard_normal(count).astype(np.float32)


def rows_of(values) -> np.ndarray:
    return np.array(sorted(values), np.uint32)


def check_top_k(pin, table, users, k, excluded=(), own=None, want=None) -> None:
    """Asserts that top_k equals the reference. `want` has the factors and biases at the pin's
    revision.
    """
    factors, bias = users
    own = own or [[] for _ in bias]
    count = pin.counts[ITEMS]
    as_of_pin, as_of_pin_bias = want or (table.factors[:count].copy(), table.bias[:count].copy())
    own_rows = np.concatenate([np.empty(0, np.uint32), *map(rows_of, own)])
    own_offsets = np.cumsum([0, *map(len, own)]).astype(np.uint32)
    exclusions = rows_of(excluded), own_rows, own_offsets
    rows, scores, offsets = scoring.top_k(pin, table, factors, bias, k, *exclusions)
    assert (rows.dtype, scores.dtype, offsets.dtype) == (np.uint32, np.float32, np.int64)
    assert len(offsets) == len(bias) + 1
    assert offsets[-1] == len(rows) == len(scores)
    for u in range(len(bias)):
        left_out = np.array([*excluded, *own[u]], int)
        expected_rows, expected_scores = reference_top_k(
            pin.mean, factors[u], bias[u], as_of_pin, as_of_pin_bias, table.keys[:count], k, left_out
        )
        mine = slice(offsets[u], offsets[u + 1])
        assert np.array_equal(rows[mine], expected_rows), u
        assert np.array_equal(scores[mine], expected_scores), u


# ---------------------------------------------------------------- gather and candidates


@pytest.mark.parametrize("k", [1, 16, 17, 64, 200])
def test_candidates_equal_the_reference(k):
    table = make_table(500, k)
    users, user_bias = make_users(3, table)
    rng = np.random.default_rng(5)
    wanted = rng.integers(0, 500, 700).astype(np.uint32)
    wanted[::7] = NO_ROW
    factors, bias = scoring.gather(table, wanted)
    known = wanted != NO_ROW
    assert factors.ctypes.data % 64 == 0
    assert np.array_equal(factors[known], table.factors[wanted[known]])
    assert np.array_equal(bias[known], table.bias[wanted[known]])
    assert not factors[~known].any()
    assert not bias[~known].any()
    offsets = np.array([0, 333, 333, 700], np.uint32)
    scores = scoring.score_candidates(np.float32(0.3), users, user_bias, factors, bias, offsets)
    for u, part in enumerate((slice(0, 333), slice(333, 333), slice(333, 700))):
        expected = reference_scores(0.3, users[u], user_bias[u], factors[part], bias[part])
        assert np.array_equal(scores[part], expected)
    assert (scores[333:][~known[333:]] == np.float32(0.3) + user_bias[2]).all()


def test_an_unknown_user_scores_mean_and_item_bias():
    table = make_table(50)
    nobody = scoring.gather(table, np.array([NO_ROW], np.uint32))
    items = scoring.gather(table, np.arange(50, dtype=np.uint32))
    scores = scoring.score_candidates(np.float32(1.5), *nobody, *items, np.array([0, 50]))
    assert np.array_equal(scores, np.float32(1.5) + table.bias[:50])
    check_top_k(StandInPin(50, 1.5), table, nobody, 10)


def test_read_only_unaligned_and_strided_arrays_score_the_same():
    table = make_table(40)
    users, user_bias = make_users(1, table)
    wire = np.frombuffer(b"\0\0\0\0" + users.tobytes(), np.float32, offset=4).reshape(1, -1)
    strided = np.repeat(table.factors[:40], 2, axis=0)[::2]
    bias, offsets = table.bias[:40], np.array([0, 40])
    expected = reference_scores(0.0, users[0], user_bias[0], table.factors[:40], bias)
    scores = scoring.score_candidates(np.float32(0), wire, user_bias, strided, bias, offsets)
    assert np.array_equal(scores, expected)
    excluded = np.frombuffer(np.arange(0, 40, 2, dtype=np.uint32).tobytes(), np.uint32)
    rows, _, _ = scoring.top_k(StandInPin(40), table, wire, user_bias, 40, excluded)
    assert np.array_equal(np.sort(rows), np.arange(1, 40, 2))


def test_gather_pinned_takes_changed_rows_from_the_copies():
    table = make_table(100)
    before, before_bias = table.factors[:100].copy(), table.bias[:100].copy()
    changed = rows_of([0, 17, 99])
    pin = StandInPin(100, changed=(changed, before[changed], before_bias[changed]))
    table.factors[changed, :64] = 7.0
    table.bias[changed] = -7.0
    wanted = np.array([99, 3, NO_ROW, 0, 99, 17, 18], np.uint32)
    factors, bias = scoring.gather_pinned(pin, ITEMS, table, wanted)
    known = wanted != NO_ROW
    assert np.array_equal(factors[known], before[wanted[known]])
    assert np.array_equal(bias[known], before_bias[wanted[known]])
    assert not factors[~known].any()


def test_malformed_arguments_are_refused():
    table = make_table(10)
    users, bias = make_users(2, table)
    pin = StandInPin(10)
    with pytest.raises(ValueError, match=r"user_factors: expected float32\[2, 64\]"):
        scoring.top_k(pin, table, users[:, :48], bias, 3)
    with pytest.raises(ValueError, match="k: expected 0 or more"):
        scoring.top_k(pin, table, users, bias, -1)
    for offsets in ([0, 1], [0, 2, 1], [1, 1, 2], [0, 1, 3], [0, 3, 2]):
        with pytest.raises(ValueError, match="own_offsets: expected 3 ascending numbers from 0 to 2"):
            scoring.top_k(pin, table, users, bias, 3, None, rows_of([1, 2]), np.array(offsets))
    with pytest.raises(ValueError, match="offsets: expected 3"):
        scoring.score_candidates(np.float32(0), users, bias, users, bias, np.array([0, 2]))


# ---------------------------------------------------------------- top-k, nothing changing


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_top_k_equals_the_reference(data):
    count = data.draw(st.sampled_from([0, 1, 2, 63, 64, 65, 130, 700]))
    users = data.draw(st.sampled_from([0, 1, 2, scoring.MANY_USERS, scoring.MANY_USERS + 3]))
    k = data.draw(st.sampled_from([0, 1, 2, 10, max(0, count - 1), count, count + 5]))
    levels = data.draw(st.sampled_from([None, 1, 2, 3]))
    table = make_table(count, data.draw(st.sampled_from([3, 16, 40])), seed=count + users, levels=levels)
    some_rows = st.sets(st.integers(0, max(0, count - 1)), max_size=count)
    excluded = data.draw(some_rows) if count else set()
    own = [data.draw(some_rows) if count else set() for _ in range(users)]
    check_top_k(StandInPin(count), table, make_users(users, table, levels=levels), k, excluded, own)


@pytest.mark.parametrize("users", [1, scoring.MANY_USERS, scoring.USERS_AT_ONCE + 6])
@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e-22, 300.0])
def test_several_blocks_of_items(users, spread):
    """More items than one matrix product takes, and values from underflow to large ones."""
    count = 2 * scoring.ITEMS_AT_ONCE + 77
    table = make_table(count, 64, seed=users, spread=spread)
    excluded = np.random.default_rng(1).choice(count, 500, replace=False).tolist()
    check_top_k(StandInPin(count), table, make_users(users, table), 100, excluded)


def test_rows_past_the_pins_count_are_not_seen():
    table = make_table(900)
    check_top_k(StandInPin(600), table, make_users(5, table), 50)
    check_top_k(StandInPin(600), table, make_users(1, table), 50)


@pytest.mark.parametrize("seed", range(4))
def test_scores_that_differ_by_less_than_the_products_rounding(seed):
    """Nearly equal rows. A matrix product ranks them wrongly. The bound and the exact scores
    correct it.
    """
    rng = np.random.default_rng(seed)
    count, users = 6000, 12
    table = make_table(count, 96, seed)
    common = rng.standard_normal(96).astype(np.float32)
    noise = rng.integers(-2, 3, (count, 96)).astype(np.float32) * np.float32(2**-23)
    table.factors[:count, :96] = common * (np.float32(1) + noise)
    table.bias[:count] = 0.0
    factors, bias = make_users(users, table, seed)
    exact = np.stack([reference_dots(x, table.factors[:count]) for x in factors])
    rounded = factors @ table.factors[:count].T
    assert (np.argsort(-exact, axis=1)[:, :100] != np.argsort(-rounded, axis=1)[:, :100]).mean() > 0.3
    check_top_k(StandInPin(count), table, (factors, bias), 100)


def test_the_bound_holds_and_is_not_idle():
    rng = np.random.default_rng(3)
    for k, scale in ((16, 1.0), (64, 1e-3), (1024, 100.0)):
        x = (rng.standard_normal((8, k)) * scale).astype(np.float32)
        y = (rng.standard_normal((3000, k)) * scale).astype(np.float32)
        bias = rng.standard_normal(3000).astype(np.float32)
        bases = rng.standard_normal(8).astype(np.float32)
        c = bases[:, None] + bias[None, :]
        exact = c + np.stack([reference_dots(row, y) for row in x])
        error = np.abs((c + x @ y.T).astype(np.float64) - exact).max(axis=1)
        norms = np.linalg.norm(x.astype(np.float64), axis=1)
        slacks = scoring.slacks(bases, norms, k, np.square(y).sum(axis=1).max(), np.abs(bias).max())
        assert (error <= slacks).all()
        assert error.max() > 0
        assert (slacks < 1e-3 * norms * np.linalg.norm(y, axis=1).max() + 1e-5).all()


@given(
    threshold=st.floats(width=32, allow_nan=False, allow_infinity=False),
    slack=st.floats(0, 2.0**100, allow_nan=False),
)
def test_a_cutoff_is_never_above_the_threshold_less_the_slack(threshold, slack):
    cutoff = scoring_kernels.cutoff(np.float32(threshold), slack)
    assert float(cutoff) <= threshold - slack


def test_large_k_is_split_into_fewer_users_and_still_exact(monkeypatch):
    table = make_table(3000)
    users = make_users(12, table)
    monkeypatch.setattr(scoring, "HEAP_SLOTS_MAX", 6 * (2000 + scoring.HEAP_MARGIN))
    check_top_k(StandInPin(3000), table, users, 2000)
    monkeypatch.setattr(scoring, "HEAP_SLOTS_MAX", 10)
    check_top_k(StandInPin(3000), table, users, 2000)


# ---------------------------------------------------------------- rows that change under a pin


@pytest.mark.parametrize("users", [1, scoring.MANY_USERS, 20])
@pytest.mark.parametrize("share", [0.001, 0.05, 0.6, 1.0])
@pytest.mark.parametrize("value", [1e3, -1e3, 0.0])
def test_rows_touched_since_the_pin_count_as_they_were(users, share, value):
    """If changed rows have higher scores, they push right rows out of the heaps. If they have lower
    ones, they miss them.
    """
    count = 5000
    table = make_table(count, 32)
    factors, bias = make_users(users, table)
    before, before_bias = table.factors[:count].copy(), table.bias[:count].copy()
    touched = rows_of(np.random.default_rng(7).choice(count, int(count * share), replace=False))
    table.bias[touched] = value
    table.factors[touched, :32] *= -1
    pin = StandInPin(count, changed=(touched, before[touched], before_bias[touched]))
    check_top_k(pin, table, (factors, bias), 100, excluded=[1, 2, 3], want=(before, before_bias))


def test_only_a_displaced_result_makes_a_users_scan_start_again():
    """The margin has room for as many changed rows with too high scores as it has places."""
    count, users = 5000, 10
    table = make_table(count, 32)
    queries = make_users(users, table)
    before, before_bias = table.factors[:count].copy(), table.bias[:count].copy()
    for touched_count, again in ((scoring.HEAP_MARGIN, 0), (3 * scoring.HEAP_MARGIN, users)):
        touched = rows_of(range(touched_count))
        table.factors[:count], table.bias[:count] = before, before_bias
        table.bias[touched] = 1e3
        pin = StandInPin(count, changed=(touched, before[touched], before_bias[touched]))
        check_top_k(pin, table, queries, 100, want=(before, before_bias))
        assert pin.calls == 1 + again


def test_a_writer_that_never_rests():
    """Rows change during a scan, each after it was copied. The answers are those of the pin's
    revision.
    """
    count = 40_000
    table = make_table(count, 64)
    before, before_bias = table.factors[:count].copy(), table.bias[:count].copy()
    lock, stop = threading.Lock(), threading.Event()
    touched: set[int] = set()

    class LivePin(StandInPin):
        def copies(self, side):
            with lock:
                rows = rows_of(touched)
            return rows, before[rows], before_bias[rows]

    def write() -> None:
        rng = np.random.default_rng(11)
        while not stop.is_set():
            batch = rng.integers(0, count, 200)
            with lock:
                touched.update(batch.tolist())
            table.factors[batch, :64] += rng.standard_normal((200, 64)).astype(np.float32)
            table.bias[batch] = rng.standard_normal(200).astype(np.float32) * 20

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for users in (1, 8, 1):
            pin = LivePin(count)
            check_top_k(pin, table, make_users(users, table, seed=users), 100, want=(before, before_bias))
    finally:
        stop.set()
        writer.join()
    assert touched


def test_top_k_of_a_model_that_learns_meanwhile():
    """Real pins during real updates, in two threads. Every answer is that of the pin's revision."""
    limits = Limits(users_max=500, items_max=6000, value_abs_max=1.0, error_max=1e3)
    model = CpuModel(ModelSpec(k=24, loss=Loss.LOGISTIC, negatives=3, init_scale=1.0, limits=limits))
    rng = np.random.default_rng(4)
    users = model.users.allocate(np.arange(500, dtype=np.uint64))
    items = model.items.allocate(rng.permutation(6000).astype(np.uint64))
    model.apply(Update(1, users, items[:500], None, None, 500, 6000))

    def learn() -> None:
        for _ in range(20):
            events = rng.choice(users, 300), rng.choice(items, 300)
            model.apply(Update(model.revision + 1, *events, None, None, 500, 6000))

    for asking in (1, 9):
        with model.pin() as pin:
            want = model.items.factors[:6000].copy(), model.items.bias[:6000].copy()
            asked = users[:asking]
            at_pin = scoring.gather(model.users, asked)
            learner = threading.Thread(target=learn)
            learner.start()
            for _ in range(3):
                meanwhile = scoring.gather_pinned(pin, USERS, model.users, asked)
                check_top_k(pin, model.items, meanwhile, 60, want=want)
            learner.join()
            assert pin.copies(ITEMS)[0].size > 1000
            again = scoring.gather_pinned(pin, USERS, model.users, asked)
            assert all(map(np.array_equal, again, at_pin))
            check_top_k(pin, model.items, again, 60, want=want)


def test_the_scan_is_compiled_with_lanes_and_prefetch_and_not_fused():
    table = make_table(20)
    # Numba does not show code from its cache.
    scan = njit(scoring_kernels.scan_kernel.py_func)
    scores = np.empty(20, np.float32)
    scan(table.factors[0], np.float32(0), table.factors, table.bias, np.uint64(4), scores)
    assert np.array_equal(scores, table.bias[:20] + reference_dots(table.factors[0], table.factors[:20]))
    (code,) = scan.inspect_llvm().values()
    assert "fmul <16 x float>" in code
    assert "fadd <16 x float>" in code
    (assembly,) = scan.inspect_asm().values()
    assert "prefetcht0" in assembly
    assert "mulps" in assembly
    assert "fmadd" not in assembly


def test_compiling_ahead_leaves_nothing_to_compile():
    scoring.compile_kernels()
    kernels = [value for value in vars(scoring_kernels).values() if getattr(value, "signatures", None)]
    assert len(kernels) > 5
    known = {kernel: len(kernel.signatures) for kernel in kernels}
    table = make_table(300)
    users, bias = make_users(6, table)
    for n in (1, 6):
        scoring.top_k(StandInPin(300), table, users[:n], bias[:n], 5, rows_of([1]))
    items = scoring.gather_pinned(StandInPin(300), ITEMS, table, np.arange(300, dtype=np.uint32))
    scoring.score_candidates(np.float32(0), users[:1], bias[:1], *items, np.array([0, 300], np.uint32))
    assert {kernel: len(kernel.signatures) for kernel in kernels} == known
