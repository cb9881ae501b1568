"""The conformance kit: every backend keeps the same promises with every spec, bit by bit.

The cases are SPECS (`tests/kit/conformance.py`) times backends times the behaviours below. The
tests of a single rule, part or kernel stand in its own folder.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance import READ_IN_SIMULATOR, Record, draw_stream, learn, specs_of, with_extreme_numbers
from livefactor_kernels.backend import Backend, Pin, create_backend, state_sections
from livefactor_kernels.device.warp import SIMULATED
from livefactor_kernels.numbers.narrow import widened
from livefactor_kernels.reference import ReferenceModel
from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import Loss, ModelSpec, Rule
from livefactor_kernels.tables import ITEMS, NO_ROW, USERS
from synthetic import SIDES, copy_state, differences, read_pin, restore, unlike

if SIMULATED:
    import simulated_blocks

    simulated_blocks.install()

EVENTS = 9 if SIMULATED else 60
EXAMPLES = [1] if SIMULATED else [3, pytest.param(10, marks=pytest.mark.long)]
"""Streams that each spec learns: few in `make test`, and more in `make test-long`."""
COMPILED = specs_of("cuda") if SIMULATED else [*specs_of("cpu"), *specs_of("cuda")]
"""All backends that are compared with the reference. The simulator of GPU kernels does not repeat
the CPU.
"""
READ = specs_of("cuda", READ_IN_SIMULATOR) if SIMULATED else COMPILED
REFERENCE = [] if SIMULATED else specs_of("reference")[::6]
each_spec = pytest.mark.parametrize(("backend", "spec"), COMPILED, scope="module")
"""The scope runs all behaviours of a spec one after the other, so that one worker compiles its
kernels once.
"""


def assert_same(model: Backend, judge: Backend) -> None:
    """Both models have the same bits in their whole state, and their padding is 0."""
    assert differences(model, judge) == []
    assert (model.revision, model.published) == (judge.revision, judge.published)
    for side, count in enumerate(model.published):
        rows = np.arange(count, dtype=np.uint32)
        assert not model.gather(side, rows)[0][:, model.spec.k :].any(), "padding"


def varied(spec: ModelSpec, data: st.DataObject) -> ModelSpec:
    """Rule SGD with other sizes that need no other kernels. The other rules have their sizes in
    `SPECS`.
    """
    if spec.rule != Rule.SGD:
        return spec
    changes: dict[str, object] = {"hot_row_events": data.draw(st.sampled_from([1.0, 2.5, 64.0]), "h")}
    if spec.k == 16:
        changes["k"] = data.draw(st.sampled_from([1, 8, 16]), "k")
    if spec.micro_batch > 1:
        changes["micro_batch"] = data.draw(st.integers(2, 120), "B")
    if 0 < spec.negatives <= 16:
        fewer = [1, 2, 4, 16] if spec.micro_batch == 1 else [1, 3, 17, 40]
        changes["negatives"] = data.draw(st.sampled_from(fewer), "negatives")
    # Small enough for float16's multiples of 2**-24, and large enough for every exponent.
    changes["init_scale"] = data.draw(st.sampled_from([0.1, 1e-4, 1e-6, 50.0]), "init_scale")
    numbers = {
        "initial_g": data.draw(st.sampled_from([0.0, 0.1, 0.5]), "initial_g"),
        "eps": data.draw(st.sampled_from([1e-6, 0.1]), "eps"),
        "beta1": data.draw(st.sampled_from([0.0, 0.5, 0.999999]), "beta1"),
        "beta2": data.draw(st.sampled_from([0.0, 0.99, 0.999999]), "beta2"),
        "l1": data.draw(st.sampled_from([0.0, 1e-3, 1.0]), "l1") if spec.optimizer.l1 else 0.0,
        "beta": data.draw(st.sampled_from([1e-6, 1.0]), "beta"),
    }
    changes["optimizer"] = replace(spec.optimizer, **numbers)
    return check(replace(spec, **changes))  # type: ignore[arg-type]


@each_spec
@pytest.mark.parametrize("examples", EXAMPLES)
def test_any_stream_in_any_grouping_gives_the_bits_of_the_reference(backend, spec, examples) -> None:
    """Records of any sizes, also empty ones. One call applies several of them."""

    @settings(max_examples=examples)
    @given(data=st.data())
    def learns_alike(data: st.DataObject) -> None:
        chosen = spec if SIMULATED else varied(spec, data)
        sizes = data.draw(st.lists(st.integers(0, EVENTS), min_size=1, max_size=4), "sizes")
        seed, at_once = data.draw(st.integers(0, 2**32), "seed"), data.draw(st.integers(1, 4), "at once")
        model, judge = create_backend(backend, chosen), ReferenceModel(chosen)
        stream = draw_stream(seed, chosen, sizes)
        learn(model, stream, at_once)
        learn(judge, stream)
        assert_same(model, judge)

    learns_alike()


@each_spec
def test_a_restored_model_goes_on_to_the_same_bits(backend, spec) -> None:
    """A state goes from the reference to this backend and back."""
    stream = draw_stream(3, spec, [EVENTS, EVENTS // 2, EVENTS, EVENTS // 2])
    first, second, third = (create_backend(name, spec) for name in ("reference", backend, "reference"))
    learn(first, stream[:2])
    restore(second, first, EVENTS + EVENTS // 2)
    assert differences(second, first) == []
    with pytest.raises(ValueError, match="not empty"):
        second.load_sections(USERS, first.sections(USERS, 3), 3)
    learn(first, stream[2:3])
    learn(second, stream[2:3])
    assert differences(second, first) == []
    restore(third, second, 2 * EVENTS + EVENTS // 2)
    learn(first, stream[3:])
    learn(third, stream[3:])
    assert differences(third, first) == []


@pytest.mark.parametrize(("backend", "spec"), [*READ, *REFERENCE], scope="module")
def test_a_pin_keeps_its_revision_and_changes_no_bit(backend, spec) -> None:
    model, judge = create_backend(backend, spec), ReferenceModel(spec)
    stream = draw_stream(5, spec, [EVENTS, 1, EVENTS // 2, 3])
    learn(model, stream[:1])
    learn(judge, stream[:1])
    before, revisions = copy_state(model), [judge.revision]
    with model.pin() as first:
        learn(model, stream[1:2])
        learn(judge, stream[1:2])
        revisions.append(judge.revision)
        with model.pin() as second, judge.pin() as expected:
            learn(model, stream[2:])
            learn(judge, stream[2:])
            revisions.append(judge.revision)
            assert [first.revision, second.revision, model.revision] == revisions
            assert unlike(read_pin(second), read_pin(expected)) == []
        assert unlike(read_pin(first), {name: before[name] for name in read_pin(first)}) == []
        assert unlike(copy_state(model), before) != []
    assert_same(model, judge)


def reads_of(
    readable: Backend | Pin, counts: tuple[int, int], names: list[tuple[str, ...]]
) -> dict[str, np.ndarray]:
    """Reads known rows of both sides, one of them twice, and an unknown row."""
    answers = {}
    for side, name in SIDES:
        rows = np.array([counts[side] - 1, NO_ROW, 0, 0], np.uint32)
        factors, bias = readable.gather(side, rows)
        assert factors.ctypes.data % 64 == 0 and factors.flags.c_contiguous
        assert not factors[1].any() and not bias[1]
        answers |= {f"{name} factors": factors, f"{name} bias": bias}
        found = readable.read(side, rows, names[side])
        # Places after the last event of all rows may be left out.
        width = int(found["seen_count"].max()) if "seen_count" in found else 0
        for section, values in found.items():
            if section.startswith("seen_") and values.ndim == 2:
                assert not values[:, width:].any()
                values = values[:, :width]
            answers[f"{name} {section}"] = values
    return answers


def lists_of(pin: Pin) -> dict[str, np.ndarray]:
    """Top-k lists of an unknown user and of known users, with and without exclusions."""
    rows = np.array([0, NO_ROW, pin.counts[USERS] - 1], np.uint32)
    queries = pin.gather(USERS, rows)
    common, own, ends = np.array([0, 2], np.uint32), np.array([1, 3], np.uint32), np.array([0, 0, 1, 2])
    answers = {f"{k} best": pin.top_k(*queries, k) for k in (0, 3, pin.counts[ITEMS] + 5)}
    answers["some"] = pin.top_k(*queries, 4, common, own, ends)
    return {f"{name}: {part}": array for name, parts in answers.items() for part, array in enumerate(parts)}


@pytest.mark.parametrize(("backend", "spec"), READ, scope="module")
def test_reads_give_what_the_reference_gives_and_change_nothing(backend, spec) -> None:
    model, judge = create_backend(backend, spec), ReferenceModel(spec)
    stream = draw_stream(7, spec, [EVENTS, EVENTS])
    learn(model, stream)
    learn(judge, stream)
    before, counts = copy_state(model), judge.published
    sections = [tuple(name for name in judge.sections(side, 1) if name != "keys") for side, _ in SIDES]
    with model.pin() as pin, judge.pin() as expected:
        assert (pin.revision, pin.counts) == (judge.revision, counts)
        wanted = reads_of(judge, counts, sections)
        assert unlike(reads_of(model, counts, sections), wanted) == []
        assert unlike(reads_of(pin, counts, sections), wanted) == []
        assert unlike(read_pin(pin), read_pin(expected)) == []
        assert unlike(lists_of(pin), lists_of(expected)) == []
    assert unlike(copy_state(model), before) == []


@each_spec
def test_extreme_numbers_stay_finite_and_are_those_of_the_reference(backend, spec) -> None:
    spec = with_extreme_numbers(spec)
    model, judge = create_backend(backend, spec), ReferenceModel(spec)
    value = 1e6 if spec.loss in (Loss.SQUARED, Loss.BPR) else 1.0
    users, items = (np.arange(EVENTS, dtype=np.uint64) % most for most in (5, 4))
    for each in (model, judge):
        for sign in (1.0, -1.0) if spec.loss == Loss.SQUARED else (1.0, 0.0):
            values = np.full(EVENTS, sign * value, np.float32)
            learn(each, [Record(users, items, values, np.full(EVENTS, 1e3, np.float32), None)])
    assert_same(model, judge)
    for name, view in state_sections(model).items():
        if name.endswith(("factors", "factor_probe")):
            assert np.abs(widened(view)).max() <= spec.limits.factor_max, name
        assert view.dtype.kind != "f" or np.isfinite(view).all(), name
