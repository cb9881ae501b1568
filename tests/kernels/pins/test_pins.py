"""Pins: reads of one revision during updates, the cap on copies, many pins at once."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livefactor_kernels.cpu import CpuModel
from livefactor_kernels.pins.cpu import Pin, PinBoard
from livefactor_kernels.spec.model import Loss, OptimizerKind
from livefactor_kernels.tables import ITEMS, USERS
from synthetic import SIDES, copy_state, make_spec, push, push_random, read_pin

SPEC = make_spec(Loss.BPR, OptimizerKind.ADAGRAD, negatives=3, k=20)


def assert_reads(pin: Pin, expected: dict[str, np.ndarray]) -> None:
    got = read_pin(pin)
    assert got.keys() == expected.keys()
    assert [name for name in got if got[name].tobytes() != expected[name].tobytes()] == []


@settings(max_examples=12)
@given(data=st.data())
def test_every_pin_reads_its_own_state(data) -> None:
    model = CpuModel(SPEC)
    held: list[tuple[Pin, dict[str, np.ndarray]]] = []
    for _ in range(data.draw(st.integers(3, 12))):
        action = data.draw(st.sampled_from(["update", "update", "pin", "release"]))
        if action == "update":
            seed, keys = data.draw(st.integers(0, 1000)), data.draw(st.integers(1, 60))
            push_random(model, np.random.default_rng(seed), 40, keys, keys)
        elif action == "pin":
            held.append((model.pin(), copy_state(model)))
        elif held:
            held.pop(data.draw(st.integers(0, len(held) - 1)))[0].release()
        for pin, expected in held:
            assert_reads(pin, expected)
    for pin, _ in held:
        pin.release()
    assert (model.pins.active, model.pins.copied_rows) == (0, 0)


def test_pins_change_no_bit() -> None:
    plain, pinned = CpuModel(SPEC), CpuModel(SPEC)
    for turn in range(5):
        with pinned.pin() as pin:
            for model in (plain, pinned):
                push_random(model, np.random.default_rng(turn), 60, 30, 30)
            read_pin(pin)
    left, right = copy_state(plain), copy_state(pinned)
    assert all(left[name].tobytes() == right[name].tobytes() for name in left)


def test_a_row_is_copied_at_its_first_touch_only() -> None:
    model = CpuModel(make_spec(Loss.SQUARED))
    push(model, [1, 2, 3], [1, 2, 3], [1.0] * 3)
    push(model, [1, 2], [1, 2], [1.0] * 2)
    # There is no pin.
    assert model.pins.copied_rows == 0
    pin = model.pin()
    for _ in range(4):
        push(model, [1, 1, 9], [2, 2, 2], [1.0] * 3)
    # User 1 and item 2. User 9 is newer than the pin.
    assert model.pins.copied_rows == 2
    rows, factors, bias = pin.copies(ITEMS)
    assert rows.tolist() == [1]
    assert rows.dtype == np.uint32 and factors.shape == (1, 16) and bias.shape == (1,)
    assert (factors[0] != model.items.factors[1]).any()
    assert pin.copies(USERS)[0].tolist() == [0]
    second = model.pin()
    push(model, [1], [3], [1.0])
    # User 1 again, for the second pin, and item 3.
    assert model.pins.copied_rows == 4
    pin.release()
    assert model.pins.copied_rows == 2
    assert second.copies(USERS)[0].tolist() == [0]
    second.release()
    second.release()
    assert model.pins.copied_rows == 0


def test_copies_are_what_read_rows_patches() -> None:
    model = CpuModel(SPEC)
    push_random(model, np.random.default_rng(0), 80, 30, 30)
    with model.pin() as pin:
        before = copy_state(model)
        push_random(model, np.random.default_rng(1), 80, 30, 30)
        for side, name in SIDES:
            rows, factors, bias = pin.copies(side)
            assert len(set(rows.tolist())) == rows.size > 0
            assert factors[:, :20].tobytes() == before[f"{name}.factors"][rows].tobytes()
            assert bias.tobytes() == before[f"{name}.bias"][rows].tobytes()


def test_rows_past_the_pins_count_are_refused() -> None:
    model = CpuModel(SPEC)
    push(model, [1, 2], [1, 2])
    with model.pin() as pin:
        push(model, [3], [3])
        assert pin.counts == (2, 2) and pin.revision == 1 and pin.mean == 0.0
        with pytest.raises(IndexError, match=r"0\.\.2"):
            pin.read_rows(USERS, 0, 3)


def test_a_record_larger_than_the_overlay_makes_it_grow() -> None:
    model = CpuModel(SPEC)
    model.pins = PinBoard(model.spec, (model.users, model.items), overlay_rows_max=8)
    push_random(model, np.random.default_rng(0), 90, 70, 60)
    with model.pin() as first:
        expected = copy_state(model)
        push(model, [3], [4])
        with model.pin() as second:
            later = copy_state(model)
            push_random(model, np.random.default_rng(1), 200, 70, 60)
            assert model.pins.copied_rows > 16
            assert_reads(first, expected)
            assert_reads(second, later)
        assert_reads(first, expected)


def test_the_writer_waits_for_room_until_a_pin_is_released() -> None:
    model = CpuModel(make_spec(Loss.SQUARED))
    model.pins = PinBoard(model.spec, (model.users, model.items), overlay_rows_max=10)
    push(model, range(20), range(20), [1.0] * 20)
    # There is no pin.
    assert model.pins.wait_for_room(10_000, timeout=0)
    pin = model.pin()
    # The number is above the cap, but there are no copies.
    assert model.pins.wait_for_room(10_000, timeout=0)
    push(model, range(8), range(8), [1.0] * 8)
    assert model.pins.wait_for_room(2, timeout=0)
    assert not model.pins.wait_for_room(3, timeout=0.01)
    passed = threading.Event()
    writer = threading.Thread(target=lambda: model.pins.wait_for_room(3) and passed.set())
    writer.start()
    assert not passed.wait(0.05)
    pin.release()
    writer.join(10)
    assert passed.is_set()


def test_a_reader_without_a_lock_never_sees_a_later_row() -> None:
    model = CpuModel(SPEC)
    push_random(model, np.random.default_rng(0), 400, 300, 200)
    gate, stop, failures = threading.Lock(), threading.Event(), []

    def learn() -> None:
        rng = np.random.default_rng(1)
        while not stop.is_set():
            with gate:
                push_random(model, rng, 100, 300, 200)

    def look() -> None:
        while not stop.is_set():
            with gate:
                expected, pin = copy_state(model), model.pin()
            with pin:
                got = read_pin(pin, 23)
            failures.extend(name for name in got if got[name].tobytes() != expected[name].tobytes())

    threads = [threading.Thread(target=target) for target in (learn, look, look)]
    for thread in threads:
        thread.start()
    time.sleep(1.5)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert model.revision > 3
