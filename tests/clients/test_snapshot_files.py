"""Reading snapshots: the arrays of `load`, the bits of scores, the errors of `verify`, and storing
a fetched one.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import snapshot_samples as samples
from livefactor.errors import LivefactorError, SnapshotInvalid
from livefactor.snapshots import digest
from livefactor.snapshots import files as snapshot_files
from livefactor.snapshots.loaded import LoadedSnapshot


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return samples.taken(tmp_path / "store", samples.view(30, 20, 5, samples.ADAGRAD))


def test_a_loaded_snapshot_has_ids_factors_biases_and_labels(path: Path) -> None:
    state = samples.view(30, 20, 5, samples.ADAGRAD)
    snapshot = snapshot_files.load(path)
    for side, (ids, factors, biases) in enumerate(
        (
            (snapshot.user_ids, snapshot.user_factors, snapshot.user_biases),
            (snapshot.item_ids, snapshot.item_factors, snapshot.item_biases),
        )
    ):
        np.testing.assert_array_equal(ids, state.pin.tables[side]["keys"])
        np.testing.assert_array_equal(factors, state.pin.tables[side]["factors"][:, :5])
        np.testing.assert_array_equal(biases, state.pin.tables[side]["bias"])
    assert {name: array.shape for name, array in snapshot.accumulators.items()} == {
        "users.factor_g": (30, 5),
        "users.bias_g": (30,),
        "items.factor_g": (20, 5),
        "items.bias_g": (20,),
    }
    assert (snapshot.lineage, snapshot.revision, snapshot.events) == (samples.LINEAGE, 7, 1234)
    assert (snapshot.spec.k, snapshot.spec.seed) == (5, 9)
    assert snapshot.spec.SerializeToString() == state.spec_body
    assert snapshot.log_hash == state.log_hash
    assert snapshot.unavailable_ids.tolist() == [1, 12, 2**64 - 1]
    assert snapshot.root_hash == snapshot_files.verify(path).manifest.root_hash


def test_the_mean_is_the_exact_sum_divided_once(tmp_path: Path) -> None:
    state = samples.view()
    for total, count in ((7_654_321, 3), (-(2**62) - 1, 2**40 - 1), (5, 0), (1, 3)):
        state.small = dict(state.small) | {"mean": np.array([total, count], np.int64)}
        mean = snapshot_files.load(samples.taken(tmp_path, state)).mean
        assert mean.dtype == np.float32
        assert mean == (np.float32(np.float64(total) / (np.float64(count) * 2.0**20)) if count else 0)


def test_labels_are_a_mapping(path: Path) -> None:
    snapshot = snapshot_files.load(path)
    assert dict(snapshot.user_labels) == samples.LABELS
    assert dict(snapshot.item_labels) == {1: "one"}
    assert snapshot.item_labels.get(2) is None
    for unknown in (0, 5, 2**64 - 2):
        with pytest.raises(KeyError):
            snapshot.user_labels[unknown]


def _dot_by_hand(x: np.ndarray, y: np.ndarray) -> np.float32:
    """The rule of a dot product, one float32 operation at a time."""
    width = -(-len(x) // 16) * 16
    x, y = np.pad(x, (0, width - len(x))), np.pad(y, (0, width - len(y)))
    lanes = []
    for lane in range(16):
        total = x[lane] * y[lane]
        for j in range(lane + 16, width, 16):
            total = total + x[j] * y[j]
        lanes.append(total)
    for half in (8, 4, 2, 1):
        lanes = [lanes[i] + lanes[i + half] for i in range(half)]
    return lanes[0]


def _row(ids: np.ndarray, factors: np.ndarray, biases: np.ndarray, key: int) -> tuple[np.ndarray, np.float32]:
    found = np.flatnonzero(ids == np.uint64(key))
    if not len(found):
        return np.zeros(factors.shape[1], np.float32), np.float32(0)
    return factors[found[0]], biases[found[0]]


def _score_by_hand(snapshot: LoadedSnapshot, user: int, item: int) -> np.float32:
    x, user_bias = _row(snapshot.user_ids, snapshot.user_factors, snapshot.user_biases, user)
    y, item_bias = _row(snapshot.item_ids, snapshot.item_factors, snapshot.item_biases, item)
    return np.float32(((snapshot.mean + user_bias) + item_bias) + _dot_by_hand(x, y))


@pytest.mark.parametrize("k", [1, 5, 15, 16, 17, 32, 33, 64, 100])
def test_scores_have_the_bits_of_the_rule(tmp_path: Path, k: int) -> None:
    snapshot = snapshot_files.load(samples.taken(tmp_path, samples.view(20, 25, k, seed=k)))
    # One id is unknown, and one stands there twice.
    items = [*snapshot.item_ids.tolist(), 2**64 - 1, int(snapshot.item_ids[0])]
    for user in (*snapshot.user_ids.tolist(), 0):
        scores = snapshot.score(user, items)
        assert scores.dtype == np.float32
        expected = np.array([_score_by_hand(snapshot, user, item) for item in items], np.float32)
        assert scores.tobytes() == expected.tobytes()
    assert snapshot.score(1, np.array([], np.uint64)).shape == (0,)


def test_float16_factors_are_loaded_without_a_change(tmp_path: Path) -> None:
    state = samples.view(30, 20, 5, samples.ADAGRAD, factor_dtype=samples.FLOAT16)
    snapshot = snapshot_files.load(samples.taken(tmp_path, state))
    for side, factors in enumerate((snapshot.user_factors, snapshot.item_factors)):
        assert factors.dtype == np.float16
        np.testing.assert_array_equal(factors, state.pin.tables[side]["factors"][:, :5])
    assert {array.dtype for array in snapshot.accumulators.values()} == {np.dtype(np.float32)}


def test_bfloat16_factors_are_widened_when_they_are_loaded(tmp_path: Path) -> None:
    state = samples.view(30, 20, 5, factor_dtype=samples.BFLOAT16)
    snapshot = snapshot_files.load(samples.taken(tmp_path, state))
    for side, name in enumerate(("users", "items")):
        stored = state.pin.tables[side]["factors"][:, :5]
        factors = (snapshot.user_factors, snapshot.item_factors)[side]
        assert factors.dtype == np.float32 and not factors.flags.writeable
        assert (factors.view(np.uint32) == stored.astype(np.uint32) << 16).all()
        np.testing.assert_array_equal(snapshot.tensors[f"{name}.factors"], stored)


@pytest.mark.parametrize("factor_dtype", [samples.FLOAT16, samples.BFLOAT16])
def test_scores_of_narrow_factors_have_the_bits_of_the_rule(tmp_path: Path, factor_dtype: int) -> None:
    state = samples.view(20, 25, 33, factor_dtype=factor_dtype)
    snapshot = snapshot_files.load(samples.taken(tmp_path, state))
    items = snapshot.item_ids.tolist()
    wide = replace_factors(snapshot)
    for user in snapshot.user_ids.tolist():
        expected = np.array([_score_by_hand(wide, user, item) for item in items], np.float32)
        assert snapshot.score(user, items).tobytes() == expected.tobytes()


def replace_factors(snapshot: LoadedSnapshot) -> LoadedSnapshot:
    """The same snapshot with float32 factors."""
    wide = {
        "users.factors": snapshot.user_factors.astype(np.float32),
        "items.factors": snapshot.item_factors.astype(np.float32),
    }
    return replace(snapshot, tensors=dict(snapshot.tensors) | wide)


def test_an_empty_model_scores_its_mean(tmp_path: Path) -> None:
    snapshot = snapshot_files.load(samples.taken(tmp_path, samples.view(0, 0)))
    assert snapshot.user_factors.shape == (0, 5)
    assert snapshot.score(1, [2, 3]).tolist() == [snapshot.mean, snapshot.mean]


def test_verify_names_file_tensor_and_block(tmp_path: Path) -> None:
    path = samples.taken(tmp_path, samples.view(60_000, 4, 8))
    verification = snapshot_files.verify(path)
    assert verification.bytes_checked == sum(file.stat().st_size for file in path.iterdir())
    assert verification.blocks_checked == sum(len(tensor.blocks) for tensor in verification.manifest.tensors)
    tensor = next(t for t in verification.manifest.tensors if t.place.name == "users.factors")
    file = path / tensor.place.file
    data = bytearray(file.read_bytes())
    data[tensor.place.offset + digest.BLOCK_BYTES + 5] ^= 1
    file.write_bytes(data)
    with pytest.raises(
        SnapshotInvalid, match=r"users\.safetensors, tensor users\.factors, block 1"
    ) as caught:
        snapshot_files.verify(path)
    assert (caught.value.file, caught.value.tensor, caught.value.block) == (
        "users.safetensors",
        "users.factors",
        1,
    )
    assert isinstance(caught.value, LivefactorError)


def test_another_root_than_the_trusted_one_is_refused(path: Path) -> None:
    root = snapshot_files.load(path).root_hash
    assert snapshot_files.verify(path, root).manifest.root_hash == root
    for verb in (snapshot_files.verify, snapshot_files.load):
        with pytest.raises(SnapshotInvalid, match="root_hash"):
            verb(path, bytes(32))


def test_a_missing_folder_and_another_folder_are_invalid(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "missing", tmp_path, tmp_path / "file"):
        with pytest.raises(SnapshotInvalid):
            snapshot_files.load(path)


def test_arrays_outlive_the_folder(path: Path) -> None:
    snapshot = snapshot_files.load(path)
    expected = snapshot.user_factors.copy()
    for file in path.iterdir():
        file.unlink()
    np.testing.assert_array_equal(snapshot.user_factors, expected)


def test_a_load_leaves_no_descriptor_open(path: Path) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    for _ in range(20):
        snapshot_files.load(path)
        snapshot_files.verify(path)
        with pytest.raises(SnapshotInvalid):
            snapshot_files.load(path, bytes(32))
    assert descriptors() <= before


def test_a_fetched_snapshot_is_stored_whole(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "deeper" / "copy"
    verification = snapshot_files.save(samples.pieces_of(path), target)
    assert verification == snapshot_files.verify(path)
    assert samples.files_of(target) == samples.files_of(path)
    with pytest.raises(FileExistsError):
        snapshot_files.save(samples.pieces_of(path), target)


def _gap(pieces: list) -> list:
    return pieces[:5] + pieces[6:]


def _twice(pieces: list) -> list:
    return [*pieces, pieces[0]]


def _cut(pieces: list) -> list:
    return pieces[:-1]


def _past_the_end(pieces: list) -> list:
    name, offset, size, data = pieces[-1]
    return [*pieces[:-1], (name, offset, size, data + b"x")]


def _flipped(pieces: list) -> list:
    name, offset, size, data = pieces[-1]
    return [*pieces[:-1], (name, offset, size, bytes([data[0] ^ 1]) + data[1:])]


@pytest.mark.parametrize("spoil", [_gap, _twice, _cut, _past_the_end, _flipped, lambda pieces: []])
def test_a_stream_that_is_not_a_snapshot_leaves_nothing(path: Path, tmp_path: Path, spoil: object) -> None:
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(SnapshotInvalid):
        snapshot_files.save(spoil(samples.pieces_of(path)), target / "copy")  # type: ignore[operator]
    assert list(target.iterdir()) == []


def test_a_wrong_root_is_not_stored(path: Path, tmp_path: Path) -> None:
    with pytest.raises(SnapshotInvalid):
        snapshot_files.save(samples.pieces_of(path), tmp_path / "copy", bytes(32))
    assert not (tmp_path / "copy").exists()


@settings(max_examples=100, deadline=None)
@given(
    data=st.binary(max_size=700), cuts=st.lists(st.integers(0, 700), max_size=8), block=st.integers(1, 300)
)
def test_the_hash_of_a_section_does_not_depend_on_its_pieces(
    data: bytes, cuts: list[int], block: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digest, "BLOCK_BYTES", block)
        hasher = digest.SectionHasher()
        edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
        for start, end in pairwise(edges):
            hasher.update(data[start:end])
        blocks = hasher.finish()
    assert blocks == tuple(
        hashlib.sha256(data[at : at + block]).digest() for at in range(0, len(data), block)
    )


GOLDEN_ROOT = "63ed17ef63ad39ea065a42dc24827a50425151e55d352418170e09c1966f02f5"


def test_the_root_of_a_known_state_never_changes() -> None:
    """Golden: a change of these bytes breaks every proof that was ever handed out."""
    hasher = digest.SectionHasher()
    hasher.update(np.arange(300_000, dtype="<f4").data)
    blocks = hasher.finish()
    sections = [
        digest.Section("users.factors", "F32", (100_000, 3), digest.section_digest(blocks)),
        digest.Section("empty", "U8", (0,), digest.section_digest(())),
    ]
    assert len(blocks) == 2
    assert digest.root_hash(41, sections).hex() == GOLDEN_ROOT


@pytest.mark.long
def test_verifying_256_mib_takes_at_most_two_seconds(tmp_path: Path) -> None:
    path = samples.taken(tmp_path, samples.view(520_000, 470_000, 64))
    began = time.perf_counter()
    checked = snapshot_files.verify(path).bytes_checked
    seconds = time.perf_counter() - began
    assert checked > 250 << 20
    assert seconds < 2.0
