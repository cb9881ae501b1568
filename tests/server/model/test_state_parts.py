"""The parts of a state beside its tables: producers, labels, reject summaries, specs, the gate."""

from __future__ import annotations

import hashlib
import threading
import time
from contextlib import suppress
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livefactor.v1 import models_pb2
from livefactor.wire.limits import NOTE_BYTES_MAX
from livefactor_kernels.spec.checks import check
from livefactor_kernels.spec.model import (
    FactorDtype,
    Limits,
    Loss,
    ModelSpec,
    OptimizerKind,
    Proposal,
    Rule,
    Softmax,
    SpecError,
)
from livefactor_kernels.spec.presets import PRESET_NAMES, preset
from livefactor_server.changes import (
    NO_REJECTS,
    Rejects,
    decode_rejects,
    encode_rejects,
)
from livefactor_server.changes.rejects import REJECTS_LISTED_MAX
from livefactor_server.model import producers, spec_codec
from livefactor_server.model.gate import Gate
from livefactor_server.model.labels import Labels

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
HASH = st.binary(min_size=32, max_size=32)
SALT = st.binary(min_size=16, max_size=16)
REJECT_ROWS = st.lists(st.tuples(U32, st.integers(1, 255)), max_size=5).map(tuple)


@st.composite
def frozen_tables(draw: st.DrawFn) -> list[producers.FrozenProducer]:
    ids = draw(st.lists(st.binary(min_size=1, max_size=64), unique=True, max_size=4))
    table = []
    for producer_id in ids:
        last = draw(st.integers(0, 100))
        ring = tuple(
            producers.Outcome(
                sequence,
                draw(U64),
                draw(U32),
                draw(U32),
                draw(REJECT_ROWS),
                draw(SALT),
                draw(HASH),
                draw(st.booleans()),
            ).packed()
            for sequence in range(max(1, last - draw(st.integers(0, 5))), last + 1)
        )
        table.append((producer_id, draw(U64), last, ring, draw(st.binary(max_size=NOTE_BYTES_MAX))))
    return table


@given(frozen_tables())
def test_producer_tables_survive_their_bytes(table: list) -> None:
    data = producers.encode(table)
    assert producers.encode(list(reversed(table))) == data
    assert sorted(producers.decode(data)[0].freeze()) == sorted(table)
    again, rest = producers.decode(data + b"\xff\xff" + b"quarantine")
    assert (len(again), rest) == (len(producers.decode(data)[0]), b"quarantine")


@given(frozen_tables().filter(bool), st.data())
def test_cut_producer_bytes_are_refused(table: list, data: st.DataObject) -> None:
    whole = producers.encode(table)
    cut = whole[: data.draw(st.integers(1, len(whole) - 1))]
    try:
        assert len(producers.decode(cut)[0]) < len(table)
    except ValueError as error:
        assert "truncated" in str(error)


def test_a_note_stays_until_another_one_comes() -> None:
    table = producers.ProducerTable()
    for note in (b"", b"one", b"", b"two"):
        table.open(b"p", 1, note)
    assert table.freeze() == [(b"p", 1, 0, (), b"two")]
    table.open(b"p", 2)
    assert table.get(b"p").note == b"two"  # type: ignore[union-attr]


def test_a_table_without_notes_has_the_bytes_of_earlier_versions() -> None:
    table = producers.ProducerTable()
    table.open(b"p", 3)
    assert producers.encode(table.freeze()).hex() == "0100" + "70" + "03" + "00" * 7 + "00" * 8 + "0000"


def test_ring_finds_what_it_holds() -> None:
    table = producers.ProducerTable()
    table.open(b"p", 1)
    for sequence in range(1, 101):
        table.record(b"p", producers.Outcome(sequence, sequence + 5, 1, 0, (), bytes(16), bytes(32)))
    producer = table.get(b"p")
    assert producer is not None
    assert [producer.outcome(s).revision for s in (37, 64, 100)] == [42, 69, 105]
    assert producer.outcome(36) is None and producer.outcome(101) is None


@given(st.integers(0, 300), HASH)
def test_reject_summaries_survive_their_bytes(count: int, received: bytes) -> None:
    rejects = NO_REJECTS.merged([(row, 1 + row % 5) for row in range(count)])
    assert rejects.count == count and len(rejects.listed) == min(count, REJECTS_LISTED_MAX)
    commitment = b"c" * 32
    expected = received if count else commitment
    assert decode_rejects(encode_rejects(rejects, received), commitment) == (rejects, expected)


@given(st.sets(st.integers(0, 60)), st.sets(st.integers(0, 60)))
def test_rows_keep_their_received_numbers_through_two_rejections(first: set[int], second: set[int]) -> None:
    left = [row for row in range(61) if row not in first]
    later = [(index, 2) for index, row in enumerate(left) if row in second]
    both = NO_REJECTS.merged([(row, 1) for row in sorted(first)]).merged(later)
    assert both.listed == tuple(sorted([(row, 1) for row in first] + [(row, 2) for row in second - first]))


@given(st.lists(st.tuples(st.integers(0, 20), st.text(max_size=5))), st.integers(0, 50))
def test_labels_are_the_last_given_and_freeze(pairs: list[tuple[int, str]], cut: int) -> None:
    labels, expected = Labels(), {}
    frozen, frozen_expected = labels.freeze(), {}
    for index, (key, text) in enumerate(pairs):
        labels.put(np.array([key], np.uint64), [text])
        expected[key] = text
        if index == cut:
            frozen, frozen_expected = labels.freeze(), dict(expected)
    assert {key: labels.get(key) for key in expected} == expected
    again = Labels()
    again.load(frozen.arrays())
    assert {key: again.get(key) for key in frozen_expected} == frozen_expected
    assert len(again) == sum(bool(text) for text in frozen_expected.values())


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_specs_survive_their_bytes(name: str) -> None:
    spec = preset(name, seed=2**64 - 1)
    data = spec_codec.encode(spec)
    again = spec_codec.decode(data)
    assert spec_codec.encode(again) == data
    assert (again.k, again.loss, again.seed, again.optimizer.kind) == (
        spec.k,
        spec.loss,
        spec.seed,
        spec.optimizer.kind,
    )


def test_every_field_of_a_spec_is_in_the_contract() -> None:
    message = models_pb2.ModelSpec.DESCRIPTOR
    assert {f.name for f in fields(ModelSpec)} == {f.name for f in message.fields}
    assert {f.name for f in fields(type(ModelSpec().limits))} == {
        f.name for f in models_pb2.Limits.DESCRIPTOR.fields
    }
    assert {f.name for f in fields(type(ModelSpec().optimizer))} == {
        f.name for f in models_pb2.Optimizer.DESCRIPTOR.fields
    }
    assert {f.name for f in fields(type(ModelSpec().regularization))} == {
        f.name for f in models_pb2.Regularization.DESCRIPTOR.fields
    }
    for prefix, kernels, contract in (
        ("LOSS", Loss, models_pb2.Loss),
        ("OPTIMIZER_KIND", OptimizerKind, models_pb2.OptimizerKind),
        ("FACTOR_DTYPE", FactorDtype, models_pb2.FactorDtype),
        ("RULE", Rule, models_pb2.Rule),
        ("PROPOSAL", Proposal, models_pb2.Proposal),
    ):
        numbers = {f"{prefix}_{each.name}": each.value for each in kernels}
        assert {f"{prefix}_UNSPECIFIED": 0, **numbers} == dict(contract.items())


GOLDEN_SPECS = {
    "ratings_sgd": "0bfe4e58ced83f30",
    "clicks_sgd": "ad007ac1e348174f",
    "purchases_sgd": "f1e4fbe80f4f8180",
    "ratings": "4bee5d340b71ef3e",
    "clicks": "63e51217ace23fa2",
    "purchases": "19bcfaa2a77c1250",
    "news": "708c75acb1128cc9",
    "auto": "e4817b2d32d3f5fc",
}


@pytest.mark.parametrize("dtype", FactorDtype)
def test_the_factor_dtype_survives_its_bytes_and_float32_is_not_logged(dtype: FactorDtype) -> None:
    spec = preset("clicks_sgd", factor_dtype=dtype)
    data = spec_codec.encode(spec)
    assert spec_codec.decode(data) == spec_codec.decode(spec_codec.encode(spec_codec.decode(data)))
    assert spec_codec.decode(data).factor_dtype == dtype
    assert (models_pb2.ModelSpec.FromString(data).factor_dtype == 0) == (dtype == FactorDtype.FLOAT32)
    message = spec_codec.to_message(spec)
    # Unlike the log, the message for users always names the dtype.
    assert message.factor_dtype == dtype
    assert spec_codec.from_message(message, "clicks_sgd").factor_dtype == dtype
    assert spec_codec.decode(message.SerializeToString()).factor_dtype == dtype


def test_the_bytes_of_a_float32_spec_never_change() -> None:
    """Snapshots, logs and hashes of older models contain these bytes.

    Those models were made before narrow factors existed.
    """
    digests = {
        name: hashlib.sha256(spec_codec.encode(preset(name))).hexdigest()[:16] for name in PRESET_NAMES
    }
    assert digests == GOLDEN_SPECS


def test_groups_are_logged_only_if_they_are_set() -> None:
    """A field that was added later leaves the bytes of older specs unchanged."""
    grouped = preset("news")
    assert spec_codec.decode(spec_codec.encode(grouped)).softmax == grouped.softmax
    without = replace(grouped, softmax=Softmax(Proposal.UNIFORM))
    message = models_pb2.ModelSpec.FromString(spec_codec.encode(without))
    assert message.softmax.proposal and not message.softmax.HasField("group_events")
    assert spec_codec.decode(spec_codec.encode(without)).softmax == without.softmax
    given = models_pb2.ModelSpec(softmax=models_pb2.Softmax(group_events=2))
    assert spec_codec.from_message(given, "news").softmax == replace(grouped.softmax, group_events=2)


def test_repeats_are_logged_only_if_they_are_set() -> None:
    without = preset("clicks", limits=Limits())
    spec = replace(without, counts=replace(without.counts, repeat=0.1))
    assert spec_codec.decode(spec_codec.encode(spec)).counts.repeat == np.float32(0.1)
    data = spec_codec.encode(without)
    assert not models_pb2.ModelSpec.FromString(data).counts.HasField("repeat")
    # The digest is older than the field `repeat`.
    golden = "9f5f2f04a6d903cd"
    assert hashlib.sha256(data).hexdigest()[:16] == golden
    # Unlike the log, the message for users always names the field.
    assert spec_codec.to_message(without).counts.HasField("repeat")


def test_default_optimizer_fields_leave_the_spec_bytes_unchanged() -> None:
    """Fields that were added with later optimisers are not logged at their defaults.

    This holds also if the request gives them explicitly.
    """
    plain = spec_codec.encode(preset("clicks_sgd"))
    message = spec_codec.to_message(preset("clicks_sgd"))
    # Unlike the log, the message for users always names the fields.
    assert message.optimizer.HasField("beta1") and message.HasField("regularization")
    assert spec_codec.encode(spec_codec.from_message(message, "ratings_sgd")) == plain
    message.optimizer.beta1 = 0.5
    message.regularization.dropout = 0.25
    spec = spec_codec.from_message(message, "clicks_sgd")
    logged = models_pb2.ModelSpec.FromString(spec_codec.encode(spec))
    assert (logged.optimizer.beta1, logged.optimizer.HasField("beta2")) == (0.5, False)
    assert logged.regularization.dropout == 0.25
    assert spec_codec.decode(spec_codec.encode(spec)).regularization.dropout == 0.25


def test_an_unknown_factor_dtype_is_refused() -> None:
    message = models_pb2.ModelSpec(factor_dtype=9)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="factor_dtype: expected one of"):
        spec_codec.from_message(message, "clicks_sgd")
    whole = spec_codec.to_message(preset("clicks_sgd"))
    whole.factor_dtype = 9  # type: ignore[assignment]
    with pytest.raises(SpecError, match="factor_dtype: expected one of"):
        spec_codec.decode(whole.SerializeToString())


def test_changing_the_loss_of_a_preset_brings_fitting_negatives() -> None:
    squared = spec_codec.from_message(models_pb2.ModelSpec(loss=models_pb2.LOSS_SQUARED), "purchases_sgd")
    assert squared.negatives == 0
    assert (
        spec_codec.from_message(models_pb2.ModelSpec(loss=models_pb2.LOSS_BPR), "ratings_sgd").negatives >= 1
    )


def test_foreign_spec_bytes_are_refused() -> None:
    for data in (b"\xff\xff", b"", spec_codec.encode(preset("clicks_sgd"))[:10]):
        with pytest.raises(SpecError):
            spec_codec.decode(data)
    with pytest.raises(SpecError, match="kernel_semantics"):
        check(replace(preset("clicks_sgd"), kernel_semantics=2))


@pytest.mark.parametrize("is_shared", [True, False])
def test_the_gate_separates_readers_from_the_writer_and_starves_nobody(is_shared: bool) -> None:
    gate, together, count = Gate(is_shared), threading.Barrier(2), threading.Lock()
    readers_inside, most_readers, is_writing, mixed, writes = 0, 0, False, False, 0
    stop = threading.Event()

    def reader() -> None:
        nonlocal readers_inside, most_readers, mixed
        while not stop.is_set():
            with gate.reading():
                with count:
                    readers_inside += 1
                    most_readers = max(most_readers, readers_inside)
                mixed = mixed or is_writing
                time.sleep(0)
                with count:
                    readers_inside -= 1

    readers = [threading.Thread(target=reader) for _ in range(4)]
    for thread in readers:
        thread.start()
    deadline = time.monotonic() + 20
    while writes < 200 and time.monotonic() < deadline:
        with gate.writing():
            is_writing = True
            mixed = mixed or readers_inside > 0
            time.sleep(0)
            is_writing = False
        writes += 1
    stop.set()
    for thread in readers:
        thread.join(20)
    assert writes == 200 and not mixed
    assert is_shared or most_readers == 1

    def meet() -> None:
        with gate.reading(), suppress(threading.BrokenBarrierError):
            together.wait(20 if is_shared else 0.05)

    pair = [threading.Thread(target=meet) for _ in range(2)]
    for thread in pair:
        thread.start()
    for thread in pair:
        thread.join(20)
    assert together.broken is not is_shared, "readers are inside together exactly if they share"


@settings(max_examples=30)
@given(st.integers(1, 200))
def test_rejects_merge_in_row_order(count: int) -> None:
    merged = Rejects(1, ((50, 1),)).merged([(row, 2) for row in range(count)])
    assert merged.count == count + 1
    assert list(merged.listed) == sorted(merged.listed)
