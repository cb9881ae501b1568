"""Taking, listing and removing snapshots.

A state always gives the same bytes. Taking a snapshot makes no full copy of the state, syncs files
in a safe order, and leaves nothing behind when it fails.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import deserialize

import snapshot_samples as samples
from livefactor.errors import SnapshotInvalid
from livefactor.snapshots import digest
from livefactor.snapshots import files as snapshot_files
from livefactor.snapshots.sections import parse_spec
from livefactor.v1 import models_pb2
from livefactor_server.snapshots import removal, safetensors_writer, scanning
from livefactor_server.snapshots import store as snapshots
from livefactor_server.snapshots.store import (
    FrozenState,
    SnapshotDiskFull,
    SnapshotNotFound,
    SnapshotStore,
    root_hash_of,
)


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    return SnapshotStore(tmp_path / "snapshots")


_DTYPES = {
    "uint64": "U64",
    "int64": "I64",
    "float32": "F32",
    "float16": "F16",
    "uint16": "BF16",
    "uint8": "U8",
}
"""Of safetensors, by those of NumPy."""


def _expected_sections(state: FrozenState) -> list[tuple[str, np.ndarray]]:
    k = parse_spec(state.spec_body).k
    sections = []
    for side, name in enumerate(("users", "items")):
        for column, array in state.pin.tables[side].items():
            sections.append((f"{name}.{column}", array[:, :k] if column.startswith("factor") else array))
    return sections + sorted(state.small.items())


def _plain_root(state: FrozenState) -> bytes:
    """Return the root hash, computed from its definition on whole arrays."""
    text = f"livefactor-state 1 {state.revision}\n"
    for name, array in _expected_sections(state):
        data = np.ascontiguousarray(array).tobytes()
        starts = range(0, len(data), digest.BLOCK_BYTES)
        blocks = b"".join(
            hashlib.sha256(data[start : start + digest.BLOCK_BYTES]).digest() for start in starts
        )
        shape = "x".join(map(str, array.shape))
        text += f"{name} {_DTYPES[str(array.dtype)]} {shape} {hashlib.sha256(blocks).hexdigest()}\n"
    return hashlib.sha256(text.encode()).digest()


@settings(max_examples=60, deadline=None)
@given(
    users=st.integers(0, 60),
    items=st.integers(0, 60),
    k=st.integers(1, 40),
    optimizer=st.sampled_from(models_pb2.OptimizerKind.values()[1:]),
    factor_dtype=st.sampled_from(samples.FACTOR_DTYPES),
    revision=st.integers(0, 2**64 - 1),
    block=st.sampled_from([64, 100, 1000]),
    step=st.sampled_from([1, 500, 4 << 20]),
)
def test_a_snapshot_of_any_shape_is_the_state(
    users: int,
    items: int,
    k: int,
    optimizer: int,
    factor_dtype: int,
    revision: int,
    block: int,
    step: int,
) -> None:
    state = samples.view(users, items, k, optimizer, revision=revision, factor_dtype=factor_dtype)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        # The blocks are small, so that a section spans many whole blocks and a partial one.
        patch.setattr(digest, "BLOCK_BYTES", block)
        patch.setattr(scanning, "PASS_BYTES", step)
        manifest = SnapshotStore(folder).take(state)
        assert manifest.root_hash == root_hash_of(state)[0] == _plain_root(state)
        assert manifest.log_hash == state.log_hash
        assert (manifest.users, manifest.items, manifest.revision) == (users, items, revision)
        loaded = SnapshotStore(folder).load()
        path = Path(folder) / manifest.snapshot_id
        by_library = {k: v for file in path.glob("*.safetensors") for k, v in deserialize(file.read_bytes())}
        expected = dict(_expected_sections(state))
        assert set(loaded.tensors) == set(by_library) == set(expected)
        for name, array in expected.items():
            assert loaded.tensors[name].dtype == array.dtype
            np.testing.assert_array_equal(loaded.tensors[name], array)
            found = by_library[name]
            assert (found["dtype"], tuple(found["shape"])) == (_DTYPES[str(array.dtype)], array.shape)
            assert bytes(found["data"]) == array.tobytes()
        assert manifest.size_bytes == sum(map(len, samples.files_of(path).values()))


def test_tensors_are_aligned_and_cannot_be_written_to(store: SnapshotStore) -> None:
    store.take(samples.view(33, 17, 5, samples.ADAGRAD))
    for name, array in store.load().tensors.items():
        assert array.ctypes.data % array.itemsize == 0, name
        assert not array.flags.writeable, name


def test_two_saves_of_a_state_differ_in_their_time_alone(tmp_path: Path) -> None:
    first = samples.files_of(samples.taken(tmp_path / "a", samples.view(created_us=1)))
    again = samples.files_of(samples.taken(tmp_path / "b", samples.view(created_us=1)))
    later = samples.files_of(samples.taken(tmp_path / "c", samples.view(created_us=2)))
    assert first == again
    different = {name for name in first if first[name] != later[name]}
    assert different == {"manifest.json"}
    early, late = json.loads(first["manifest.json"]), json.loads(later["manifest.json"])
    assert {key for key in early if early[key] != late[key]} == {"created_us", "manifest_hash"}


def test_bytes_are_the_same_in_every_process(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib, snapshot_samples as s\n"
        "f = s.files_of(s.taken(pathlib.Path(sys.argv[1])))\n"
        "import hashlib\nprint(hashlib.sha256(repr(sorted(f.items())).encode()).hexdigest())"
    )
    digests = set()
    for seed in ("0", "1", "77"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", program, str(tmp_path / seed)]
        digests.add(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
    assert len(digests) == 1


def test_other_states_have_other_roots() -> None:
    state = samples.view()
    roots = {root_hash_of(state)[0]}
    state.revision += 1
    roots.add(root_hash_of(state)[0])
    state.pin.tables[1]["bias"][-1] = np.nextafter(state.pin.tables[1]["bias"][-1], np.float32(9))
    roots.add(root_hash_of(state)[0])
    state.small = dict(state.small) | {"events": np.array([1235], np.uint64)}
    roots.add(root_hash_of(state)[0])
    assert len(roots) == 4


def test_padding_of_rows_in_memory_is_not_part_of_a_state() -> None:
    state = samples.view(k=5)
    root = root_hash_of(state)[0]
    state.pin.tables[0]["factors"][:, 5:] = 3.0
    assert root_hash_of(state)[0] == root


def test_taking_holds_a_few_pieces_in_memory_not_the_state(store: SnapshotStore) -> None:
    # 46 MiB.
    state = samples.view(120_000, 60_000, 64)
    tracemalloc.start()
    try:
        manifest = store.take(state)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert manifest.size_bytes > 40 << 20
    assert peak < 4 * scanning.PASS_BYTES, f"{peak >> 20} MiB"
    assert state.pin.rows_read_max < 20_000


def test_progress_grows_to_all_bytes(store: SnapshotStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "PASS_BYTES", 300)
    calls: list[tuple[int, int]] = []
    store.take(samples.view(), lambda done, total: calls.append((done, total)))
    done = [call[0] for call in calls]
    assert len(done) > 5
    assert done == sorted(done)
    assert {call[1] for call in calls} == {done[-1]}


class _Stop(Exception):
    pass


def _stop(done: int, total: int) -> None:
    raise _Stop


def test_an_abandoned_snapshot_leaves_nothing(store: SnapshotStore) -> None:
    with pytest.raises(_Stop):
        store.take(samples.view(), _stop)
    assert list(store.folder.iterdir()) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda small: small.pop("labels.user.text"),
        lambda small: small.update(surprise=np.zeros(1, np.uint8)),
        lambda small: small.update(mean=np.zeros(3, np.int64)),
        lambda small: small.update(events=np.zeros(1, np.int64)),
        lambda small: small.update(events=np.zeros((1, 1), np.uint64)),
    ],
)
def test_a_state_outside_the_format_is_refused_and_leaves_nothing(
    store: SnapshotStore, spoil: object
) -> None:
    state = samples.view()
    spoil(state.small)  # type: ignore[operator]
    with pytest.raises(ValueError, match="expected"):
        store.take(state)
    assert list(store.folder.iterdir()) == []


class FaultyOs:
    """The os module with a fault. It records all calls that touch the disk.

    The call with number `fail_at` fails with `error`.
    """

    VERBS = ("open", "posix_fallocate", "pwrite", "fsync", "rename")

    def __init__(self, fail_at: int = -1, error: int = errno.ENOSPC) -> None:
        self.calls: list[tuple[str, object]] = []
        self._fail_at, self._error = fail_at, error
        self._paths: dict[int, Path] = {}

    def __getattr__(self, verb: str) -> object:
        real = getattr(os, verb)
        if verb not in self.VERBS:
            return real

        def call(*args: object) -> object:
            target = args[1] if verb == "rename" else self._paths.get(args[0], args[0])  # type: ignore[call-overload]
            self.calls.append((verb, target))
            if len(self.calls) - 1 == self._fail_at:
                raise OSError(self._error, os.strerror(self._error))
            if verb == "pwrite":
                args = (args[0], args[1][: max(1, len(args[1]) // 2)], args[2])  # type: ignore[index]  # a short write
            result = real(*args)
            if verb == "open":
                self._paths[result] = Path(args[0])  # type: ignore[arg-type]
            return result

        return call


def _with_os(patch: pytest.MonkeyPatch, faulty: FaultyOs) -> None:
    patch.setattr(safetensors_writer, "os", faulty)
    patch.setattr(snapshots, "os", faulty)


def _calls_of_a_take(folder: Path) -> list[tuple[str, object]]:
    with pytest.MonkeyPatch.context() as patch:
        recorder = FaultyOs()
        _with_os(patch, recorder)
        path = samples.taken(folder)
    # The calls must have finished the short writes.
    snapshot_files.verify(path)
    return recorder.calls


def test_everything_is_synced_before_the_name_appears(tmp_path: Path) -> None:
    calls = _calls_of_a_take(tmp_path)
    at = next(number for number, (verb, _) in enumerate(calls) if verb == "rename")
    final = Path(calls[at][1])  # type: ignore[arg-type]
    written = {path for verb, path in calls if verb == "pwrite"}
    assert len(written) == 4
    temporary = next(iter(written)).parent
    for path in (*written, temporary):
        last_write = max((n for n, call in enumerate(calls) if call == ("pwrite", path)), default=-1)
        last_sync = max(n for n, call in enumerate(calls[:at]) if call == ("fsync", path))
        assert last_sync > last_write, path
    opened = [n for n, (verb, path) in enumerate(calls) if verb == "open" and Path(path).parent == temporary]  # type: ignore[arg-type]
    assert max(n for n, call in enumerate(calls[:at]) if call == ("fsync", temporary)) > max(opened)
    assert ("fsync", final.parent) in calls[at + 1 :]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_fault_at_any_call_leaves_nothing_and_the_old_snapshot_whole(tmp_path: Path, error: int) -> None:
    count = len(_calls_of_a_take(tmp_path / "dry"))
    assert count > 30
    folder = tmp_path / "store"
    old = samples.taken(folder, samples.view(revision=1))
    expected = OSError if error == errno.EIO else SnapshotDiskFull
    # The last two calls open and sync the parent folder, and the snapshot exists by then.
    for fail_at in range(count - 2):
        with pytest.MonkeyPatch.context() as patch:
            _with_os(patch, FaultyOs(fail_at, error))
            with pytest.raises(expected):
                SnapshotStore(folder).take(samples.view())
        assert os.listdir(folder) == [old.name], fail_at
    snapshot_files.verify(old)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root to mount a small file system")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"mount: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_nothing_and_later_there_is_room_again(small_disk: Path) -> None:
    store = SnapshotStore(small_disk / "snapshots")
    store.take(samples.view(revision=1))
    ballast = small_disk / "ballast"
    # The disk is full at the first file in one case, and in the middle in the other.
    for size in (1_900_000, 1_500_000):
        ballast.write_bytes(bytes(size))
        with pytest.raises(SnapshotDiskFull):
            store.take(samples.view(2_000, 3_000, 40, revision=2))
        assert [entry.name for entry in store.folder.iterdir()] == list(store.ids())
        assert [store.verify(snapshot_id).manifest.revision for snapshot_id in store.ids()] == [1]
    ballast.unlink()
    store.take(samples.view(2_000, 3_000, 40, revision=2))
    assert store.verify().manifest.revision == 2


def test_unfinished_work_of_a_dead_process_is_removed_at_start(store: SnapshotStore, tmp_path: Path) -> None:
    store.take(samples.view())
    half = store.folder / ".tmp-dead"
    half.mkdir()
    (half / "users.safetensors").write_bytes(b"x")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (store.folder / ".tmp-link").symlink_to(outside)
    (store.folder / ".tmp-file").touch()
    assert len(store.list()) == 1
    store.clean()
    assert [entry.name for entry in store.folder.iterdir()] == list(store.ids())
    assert (outside / "kept").exists()


def test_list_open_and_prune_go_by_revision(store: SnapshotStore) -> None:
    taken = {revision: store.take(samples.view(revision=revision)) for revision in (9, 100, 11, 2**64 - 1, 0)}
    assert [manifest.revision for manifest in store.list()] == [0, 9, 11, 100, 2**64 - 1]
    assert store.open()[0] == taken[2**64 - 1]
    assert store.open(taken[9].snapshot_id) == (taken[9], store.folder / taken[9].snapshot_id)
    assert store.prune(5) == ()
    assert store.prune(2) == tuple(taken[revision].snapshot_id for revision in (0, 9, 11))
    assert [manifest.revision for manifest in store.list()] == [100, 2**64 - 1]
    assert [entry.name for entry in sorted(store.folder.iterdir())] == list(store.ids())
    with pytest.raises(ValueError, match="at least 1"):
        store.prune(0)


def test_unknown_ids_are_not_found_and_never_leave_the_folder(store: SnapshotStore, tmp_path: Path) -> None:
    with pytest.raises(SnapshotNotFound):
        store.open()
    real = samples.taken(tmp_path / "elsewhere").name
    bases = [
        "",
        "..",
        ".",
        "/",
        "\x00",
        "~",
        "%2e%2e",
        "..\\",
        "\uff0e\uff0e",
        "C:",
        "$HOME",
        "*",
        "\n",
        "users.safetensors",
    ]
    ids = [
        f"{a}{joint}{b}" for a in bases for joint in ("/", "") for b in (*bases, real, f"../elsewhere/{real}")
    ]
    ids = [text for text in dict.fromkeys(ids) if text and text != real]
    assert len(ids) >= 200
    for text in (*ids, real, "0" * 20, "0" * 20 + "-" + "A" * 8, "٠" * 20 + "-00000000"):
        for verb in (store.open, store.load, store.verify, lambda text: list(store.pieces(text))):
            with pytest.raises(SnapshotNotFound):
                verb(text)


def test_taking_the_same_state_again_keeps_a_sound_snapshot_and_replaces_a_damaged_one(
    store: SnapshotStore,
) -> None:
    first = store.take(samples.view(created_us=1))
    assert store.take(samples.view(created_us=2)).created_us == 1
    file = store.folder / first.snapshot_id / "items.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    with pytest.raises(SnapshotInvalid):
        store.verify()
    assert store.take(samples.view(created_us=3)).created_us == 3
    assert store.verify().manifest.created_us == 3
    assert len(list(store.folder.iterdir())) == 1


def test_a_damaged_snapshot_is_left_out_of_the_list_and_not_loaded(
    store: SnapshotStore, caplog: pytest.LogCaptureFixture
) -> None:
    good = store.take(samples.view(revision=1))
    bad = store.take(samples.view(revision=2))
    (store.folder / bad.snapshot_id / "manifest.json").write_bytes(b"{}")
    assert store.list() == (good,)
    assert bad.snapshot_id in caplog.text
    with pytest.raises(SnapshotInvalid, match=r"manifest\.json"):
        store.load()
    assert store.load(good.snapshot_id).revision == 1


def test_a_snapshot_under_another_name_is_refused(store: SnapshotStore) -> None:
    manifest = store.take(samples.view(revision=3))
    other = f"{4:020d}{manifest.snapshot_id[20:]}"
    os.rename(store.folder / manifest.snapshot_id, store.folder / other)
    for verb in (store.open, store.load, store.verify):
        with pytest.raises(SnapshotInvalid, match="named"):
            verb(other)


def test_pieces_are_the_files_even_while_the_snapshot_is_pruned(
    store: SnapshotStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "FETCH_BYTES", 1000)
    monkeypatch.setattr(removal, "STEP_BYTES", 1000)
    old = store.take(samples.view(300, revision=1))
    expected = samples.files_of(store.folder / old.snapshot_id)
    store.take(samples.view(revision=2))
    stream = store.pieces(old.snapshot_id)
    pieces = [next(stream)]
    store.prune(1)
    pieces += stream
    assert pieces[0].file_name == "manifest.json"
    found: dict[str, bytes] = {}
    for piece in pieces:
        assert len(piece.data) <= 1000
        assert piece.offset == len(found.get(piece.file_name, b""))
        assert piece.file_size == len(expected[piece.file_name])
        found[piece.file_name] = found.get(piece.file_name, b"") + piece.data
    assert found == expected
