"""A GPU without free memory: an admitted record is learned, a read is refused, and nothing is half
done.
"""

from __future__ import annotations

import numpy as np
import pytest

from gpu_models import assert_same, pair
from livefactor_kernels import cuda
from livefactor_kernels.cuda import CudaModel
from livefactor_kernels.device import scratch as cuda_scratch
from livefactor_kernels.device.machine import CudaDevice, SimulatedDevice
from livefactor_kernels.device.scratch import Scratch, chunks_of, record_bytes
from livefactor_kernels.device.warp import SIMULATED
from livefactor_kernels.pins import cuda as cuda_pins
from livefactor_kernels.spec.model import (
    AdaptiveRate,
    Counts,
    FactorDtype,
    History,
    Loss,
    OptimizerKind,
    Replay,
)
from livefactor_kernels.tables import ITEMS, USERS
from specs import solve_spec
from synthetic import LOSSES, copy_state, make_spec, push, push_random, read_pin, unlike

pytestmark = [] if SIMULATED else [pytest.mark.gpu]

RECORD = 12
"""Events of the largest record in these tests. `RECORD_EVENTS_MAX` would take the simulator an
hour.
"""


class ScarceDevice(SimulatedDevice if SIMULATED else CudaDevice):
    """A device that gives no memory after `left` more requests."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 1_000_000

    def empty(self, count, dtype):
        if not self.left:
            raise MemoryError("full")
        self.left -= 1
        return super().empty(count, dtype)


@pytest.fixture
def device(monkeypatch) -> ScarceDevice:
    """The device of all models in a test."""
    for module in (cuda, cuda_scratch):
        monkeypatch.setattr(module, "RECORD_EVENTS_MAX", RECORD)
    monkeypatch.setattr(cuda_pins, "_SAVED_ROWS_MIN", 1)
    device = ScarceDevice()
    monkeypatch.setattr(cuda, "open_device", lambda: device)
    return device


def taught(spec) -> tuple[CudaModel, object]:
    models = pair(spec)
    for model in models:
        push_random(model, np.random.default_rng(0), 8, 6, 7)
    return models


@pytest.mark.parametrize(("loss", "negatives"), LOSSES)
def test_a_record_takes_no_memory(device, loss, negatives) -> None:
    dtype = FactorDtype.FLOAT16 if negatives else FactorDtype.FLOAT32
    spec = make_spec(loss, OptimizerKind.ADAGRAD, negatives=negatives, micro_batch=5, factor_dtype=dtype)
    model, judge = pair(spec)
    assert model.reserve(50, 50)
    device.left = 0
    for turn, events in enumerate((1, RECORD, 3)):
        for each in (model, judge):
            push_random(each, np.random.default_rng(turn), events, 5 + 4 * turn, 5 + 4 * turn)
    assert_same(model, judge)


@pytest.mark.parametrize(
    "spec",
    [
        solve_spec(k=2, micro_batch=5),
        make_spec(Loss.SQUARED, k=2, micro_batch=5, history=History(16, 16), counts=Counts(16, 4)),
        make_spec(Loss.SQUARED, k=2, micro_batch=5, history=History(16, 16), replay=Replay(8, 0.6)),
        make_spec(Loss.LOGISTIC, k=2, micro_batch=5, negatives=1, adaptive_rate=AdaptiveRate(16)),
    ],
    ids=["solve", "counts", "replay", "adaptive rate"],
)
def test_a_record_with_more_state_takes_no_memory(device, spec) -> None:
    model, judge = pair(spec)
    assert model.reserve(50, 50)
    device.left = 0
    for turn, events in enumerate((1, RECORD, 3)):
        for each in (model, judge):
            push_random(each, np.random.default_rng(turn), events, 5 + 4 * turn, 5 + 4 * turn)
    device.left = 1_000_000
    assert_same(model, judge)


def test_a_larger_record_takes_it_before_it_is_begun(device) -> None:
    model, judge = taught(make_spec(Loss.SQUARED, micro_batch=30))
    device.left = 0
    before = copy_state(model)
    with pytest.raises(MemoryError, match="full"):
        push(model, [1] * 30, [3] * 30, [1.0] * 30)
    assert (model.revision, model.published) == (judge.revision, judge.published)
    assert unlike(copy_state(model), before) == []
    for each in (model, judge):
        push(each, [1] * RECORD, [3] * RECORD, [1.0] * RECORD)
    device.left = 1_000_000
    for each in (model, judge):
        push(each, [1] * 30, [3] * 30, [1.0] * 30)
    assert_same(model, judge)


@pytest.mark.parametrize(
    "spec",
    [make_spec(Loss.SQUARED), make_spec(Loss.SQUARED, adaptive_rate=AdaptiveRate(16)), solve_spec()],
    ids=["sgd", "adaptive rate", "solve"],
)
def test_a_device_without_memory_for_a_record_holds_no_model(device, spec) -> None:
    used = device.left
    CudaModel(spec)
    used -= device.left
    for left in range(used):
        device.left = left
        with pytest.raises(MemoryError, match="full"):
            CudaModel(spec)
    device.left = used
    assert CudaModel(spec).revision == 0


def test_pins_have_room_for_what_the_writer_was_let_through_for(device) -> None:
    model, judge = taught(make_spec(Loss.BPR, negatives=2, micro_batch=8))
    assert model.pins.wait_for_room(4)
    # The writer has room already.
    with model.pin() as pin, judge.pin() as expected:
        device.left = 0
        for each in (model, judge):
            push_random(each, np.random.default_rng(1), 4, 6, 7)
        assert not model.pins.wait_for_room(4, timeout=0.01)
        before = copy_state(judge)
        # Without a wait for room the record is refused before anything changes.
        with pytest.raises(MemoryError, match="full"):
            push_random(model, np.random.default_rng(2), 4, 6, 7)
        assert model.revision == judge.revision
        device.left = 1_000_000
        assert unlike(copy_state(model), before) == []
        assert unlike(read_pin(pin), read_pin(expected)) == []
        device.left = 0
    assert model.pins.wait_for_room(4, timeout=0)
    for each in (model, judge):
        push_random(each, np.random.default_rng(2), 4, 6, 7)
    device.left = 1_000_000
    assert_same(model, judge)


@pytest.mark.parametrize(
    "spec", [make_spec(Loss.SQUARED, micro_batch=8), solve_spec(k=2, micro_batch=8)], ids=["sgd", "solve"]
)
def test_a_pin_without_memory_is_refused_and_leaves_nothing(device, spec) -> None:
    model, judge = taught(spec)
    assert model.pins.wait_for_room(4)
    used = device.left
    with model.pin():
        used -= device.left
        assert used > 6
        left = device.left
        with model.pin():
            # Pins of one revision share their copies.
            assert device.left == left
    for left in range(used):
        device.left = left
        with pytest.raises(MemoryError, match="full"):
            model.pin()
        assert model.pins.frozen == []
    for each in (model, judge):
        push_random(each, np.random.default_rng(1), 4, 6, 7)
    device.left = 1_000_000
    assert_same(model, judge)


def test_a_read_without_memory_is_refused_and_the_next_one_is_right(device) -> None:
    model, judge = taught(make_spec(Loss.SQUARED, micro_batch=8))
    with model.pin() as pin, judge.pin() as expected:
        users = expected.gather(USERS, np.arange(4, dtype=np.uint32))
        for read in (
            lambda: model.gather(ITEMS, np.arange(3, dtype=np.uint32)),
            lambda: pin.read_rows(USERS, 0, 3),
            lambda: pin.top_k(*users, 2),
        ):
            used = device.left
            read()
            used -= device.left
            assert used > 0
            for left in range(used):
                device.left = left
                with pytest.raises(MemoryError, match="full"):
                    read()
            device.left = 1_000_000
        found, wanted = pin.top_k(*users, 2), expected.top_k(*users, 2)
        assert [part.tobytes() for part in found] == [part.tobytes() for part in wanted]


@pytest.mark.parametrize(("loss", "negatives"), LOSSES)
@pytest.mark.parametrize("micro_batch", [1, 7, 4096])
def test_what_is_held_is_enough_for_every_smaller_record(loss, negatives, micro_batch) -> None:
    spec = make_spec(loss, negatives=negatives, micro_batch=micro_batch)
    device = ScarceDevice()
    scratch = Scratch(spec, device)
    device.left = 0
    for events in (1, 6, 8, 4095, 4097, 65_535, 65_536):
        for rows in (1, 2, 100, 4096):
            scratch.hold(events, [negatives if rows > 1 else 0], rows, rows)
            assert record_bytes(spec, events) <= record_bytes(spec, 65_536)
    users, items = chunks_of(spec, 65_536, negatives, 4096, 4096)
    assert 0 < users <= items
