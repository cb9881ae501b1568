"""Narrow factors on the GPU backend against the reference, bit by bit, on a GPU or in the
simulator.
"""

from __future__ import annotations

import numpy as np
import pytest

from golden import GOLDEN, SPECS, digest
from gpu_models import EVENTS, LAUNCHES, TOGETHER, WALK, asked, assert_same, combinations, gathered, pair
from livefactor_kernels import cuda
from livefactor_kernels.cuda import CudaModel
from livefactor_kernels.device import plan as cuda_plan
from livefactor_kernels.device.factors import load_factor, store_factor
from livefactor_kernels.device.machine import open_device
from livefactor_kernels.device.warp import SIMULATED, kernel
from livefactor_kernels.device.warp import cuda as numba_cuda
from livefactor_kernels.numbers import narrow
from livefactor_kernels.numbers.random import column_word
from livefactor_kernels.scoring import cuda as cuda_top_k
from livefactor_kernels.spec.model import FactorDtype, Limits, Loss, Optimizer, OptimizerKind
from livefactor_kernels.tables import ITEMS, USERS
from synthetic import LOSSES, copy_state, make_spec, push, push_random, read_pin, unlike

pytestmark = [] if SIMULATED else [pytest.mark.gpu]

SGD, ADAGRAD = OptimizerKind.SGD, OptimizerKind.ADAGRAD
NARROW = [FactorDtype.FLOAT16, FactorDtype.BFLOAT16]
NUMBERS = 48 if SIMULATED else 1 << 16


@kernel
def livefactor_widen_kernel(factors, out) -> None:
    i = numba_cuda.grid(1)
    if i < out.size:
        out[i] = load_factor(factors, i)


@kernel
def livefactor_round_kernel(values, words, factors) -> None:
    i = numba_cuda.grid(1)
    if i < values.size:
        store_factor(factors, i, values[i], words[i], i % 100)


def sample(numbers: np.ndarray) -> np.ndarray:
    """All cases on a GPU, and some of them in the simulator."""
    return numbers[np.linspace(0, len(numbers) - 1, min(NUMBERS, len(numbers))).astype(int)]


@pytest.mark.parametrize("dtype", NARROW)
def test_every_number_is_widened_as_the_host_widens_it(dtype) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16).view(narrow.array_dtype(dtype))
    bits = sample(bits[np.isfinite(narrow.widened(bits))])
    device = open_device()
    stored, out = device.put(bits), device.empty(bits.size, np.float32)
    device.launch(livefactor_widen_kernel, bits.size, stored.argument, out.argument)
    assert device.fetch([out.array])()[0].tobytes() == narrow.widened(bits).tobytes()


@pytest.mark.parametrize("dtype", NARROW)
def test_every_number_is_rounded_as_the_host_rounds_it(dtype) -> None:
    rng = np.random.default_rng(1)
    values = (
        rng.uniform(1.0, 2.0, NUMBERS) * 2.0 ** rng.integers(-48, 15, NUMBERS) * rng.choice([-1, 1], NUMBERS)
    )
    values = values.astype(np.float32)
    words = rng.integers(0, 1 << 32, NUMBERS, dtype=np.uint32)
    device = open_device()
    out = device.empty(NUMBERS, narrow.array_dtype(dtype))
    arguments = device.put(values).argument, device.put(words).argument, out.argument
    device.launch(livefactor_round_kernel, NUMBERS, *arguments)
    noise = column_word(words.astype(np.uint64), np.arange(NUMBERS, dtype=np.uint64) % np.uint64(100))
    assert device.fetch([out.array])()[0].tobytes() == narrow.rounded(dtype, values, noise).tobytes()


def check_learning(dtype, loss, negatives, kind, batch, walk) -> None:
    """Growing tables, records of several micro-batches, and factors of every size."""
    for init_scale in (1.0, 1e-5):
        spec = make_spec(
            loss, kind, k=20, negatives=negatives, micro_batch=batch, hot_row_events=1.5, factor_dtype=dtype,
            init_scale=init_scale,
        )  # fmt: skip
        models = pair(spec, walk)
        for turn, events in enumerate((EVENTS, EVENTS // 2)):
            for model in models:
                push_random(model, np.random.default_rng(turn), events, 4 + 3 * turn, 3 + 2 * turn)
        assert_same(*models)


@pytest.mark.parametrize(
    ("dtype", "loss", "negatives", "kind", "batch", "walk"),
    combinations(
        NARROW,
        [
            (Loss.SQUARED, 0, SGD, 1, WALK),
            (Loss.LOGISTIC, 3, ADAGRAD, 4, LAUNCHES),
            (Loss.BPR, 3, SGD, 4, WALK),
            (Loss.BPR, 3, ADAGRAD, 4, TOGETHER),
        ],
    ),
)
def test_it_learns_what_the_reference_learns(dtype, loss, negatives, kind, batch, walk) -> None:
    check_learning(dtype, loss, negatives, kind, batch, walk)


@pytest.mark.long
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize(("batch", "walk"), [(1, WALK), (4, WALK), (4, LAUNCHES), (4, TOGETHER)])
@pytest.mark.parametrize("kind", [SGD, ADAGRAD])
@pytest.mark.parametrize(("loss", "negatives"), LOSSES)
def test_every_kind_of_model_learns_what_the_reference_learns(
    loss, negatives, kind, batch, walk, dtype
) -> None:
    check_learning(dtype, loss, negatives, kind, batch, walk)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [name for name in SPECS if name.endswith("float16")])
def test_the_golden_digests(name) -> None:
    assert digest(name, "cuda") == GOLDEN[name]


@pytest.mark.parametrize("dtype", NARROW)
def test_micro_batches_are_numbered_within_their_record(dtype, monkeypatch) -> None:
    """Two records. The second one has several spans."""
    monkeypatch.setattr(cuda_plan, "SPAN_ENTRIES", 24)
    models = pair(make_spec(Loss.SQUARED, micro_batch=2, factor_dtype=dtype), LAUNCHES)
    for turn, events in enumerate((3, 17)):
        for model in models:
            push_random(model, np.random.default_rng(turn), events, 4, 4)
    assert_same(*models)


@pytest.mark.parametrize(("loss", "dtype"), combinations([Loss.SQUARED, Loss.BPR], NARROW))
def test_extreme_inputs_stay_finite(loss, dtype) -> None:
    limits = Limits(users_max=64, items_max=64, error_max=1e6, factor_max=6e4, value_abs_max=1e6)
    spec = make_spec(
        loss, optimizer=Optimizer(SGD, 100.0, 100.0), limits=limits, negatives=3 * (loss == Loss.BPR), micro_batch=3,
        l2=100.0, init_scale=1.2e5, hot_row_events=1e9, factor_dtype=dtype,
    )  # fmt: skip
    models = pair(spec)
    for model in models:
        for sign in (1.0, -1.0):
            push(model, [0, 1, 0, 2], [0, 1, 2, 0], [sign * 1e6] * 4, [1e3] * 4)
    assert_same(*models)
    assert np.isfinite(narrow.widened(models[0].sections(ITEMS, 3)["factors"])).all()


@pytest.mark.parametrize("dtype", NARROW)
def test_it_reads_what_the_reference_reads(dtype, monkeypatch) -> None:
    """Reads live and through a pin during updates. A matrix product takes a few rows at a time."""
    monkeypatch.setattr(cuda_top_k, "WIDENED_AT_ONCE", 96)
    spec = make_spec(Loss.LOGISTIC, ADAGRAD, k=20, negatives=1, micro_batch=14, factor_dtype=dtype)
    model, judge = pair(spec)
    for each in (model, judge):
        push_random(each, np.random.default_rng(0), 9, 6, 7)
    assert unlike(gathered(model, model.published), gathered(judge, judge.published)) == []
    with model.pin() as pin, judge.pin() as expected:
        for each in (model, judge):
            push_random(each, np.random.default_rng(7), 4, 8, 9)
        assert unlike(gathered(pin, pin.counts), gathered(expected, pin.counts)) == []
        assert unlike(read_pin(pin), read_pin(expected)) == []
        for users in (1, 4):
            assert unlike(asked(pin, users), asked(expected, users)) == []
    assert_same(model, judge)


def test_sections_of_another_dtype_are_refused() -> None:
    models = [CudaModel(make_spec(Loss.SQUARED, factor_dtype=dtype)) for dtype in NARROW]
    push(models[0], [1, 2], [3, 4], [1.0, 2.0])
    sections = models[0].sections(USERS, 2)
    assert sections["factors"].dtype == np.float16 and sections["bias"].dtype == np.float32
    with pytest.raises(ValueError, match="factors: expected uint16"):
        models[1].load_sections(USERS, sections, 2)
    assert models[1].users.allocated == 0


def test_a_narrow_factor_takes_two_bytes() -> None:
    wide, *narrows = (CudaModel(make_spec(Loss.SQUARED, k=64, factor_dtype=dtype)) for dtype in FactorDtype)
    assert wide.users.row_bytes == 8 + 64 * 4 + 4
    for model in narrows:
        assert model.users.row_bytes == 8 + 64 * 2 + 4
        before = copy_state(model)
        assert model.reserve(40, 40)
        factors = model.users.arrays["factors"]
        assert factors.buffer.array.nbytes == model.spec.limits.users_max * 64 * 2
        # A GPU maps whole pieces.
        if SIMULATED:
            assert factors.mapped == 40 * 64 * 2
        assert unlike(copy_state(model), before) == []


def test_kernels_are_compiled_by_a_small_model() -> None:
    compile_kernels = cuda._compile_kernels.__wrapped__
    assert compile_kernels(cuda._kind_of(make_spec(Loss.LOGISTIC, factor_dtype=FactorDtype.BFLOAT16))) > 20


@pytest.mark.parametrize("dtype", NARROW)
def test_rounding_takes_one_launch_a_span(dtype) -> None:
    spec = make_spec(Loss.LOGISTIC, negatives=1, micro_batch=2, factor_dtype=dtype)
    model = CudaModel(spec, walk_entries_max=LAUNCHES)
    push(model, [1, 2, 3, 4], [1, 2, 1, 2])
    before = model.device.launches
    push(model, [1, 2, 3, 4, 1, 2], [1, 2, 1, 2, 1, 2])
    assert model.device.launches - before == 3 + 1 + 3 * 3
