"""Changed snapshots are refused.

The attacker changes bytes, files or names, and does not recompute the hashes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import snapshot_samples as samples
from livefactor.errors import SnapshotInvalid
from livefactor.snapshots import files as snapshot_files
from livefactor.snapshots import format as fmt
from snapshot_refusals import VERBS, refused, refused_in_little_memory, watched
from tally import Tally, amount

SEED = 20_240_917
FLIPS, LONG_FLIPS = 500, 10_000
"""Changed bytes in the suite and with the marker `long`. TORTURE_FLIPS sets the first."""


def _flip_many(path: Path, count: int) -> None:
    """Flip random bits of one random byte at a time.

    The files take turns. Each byte is restored before the next one changes.
    """
    chance = random.Random(SEED)
    files = samples.files_of(path)
    for number in range(count):
        name = fmt.FILES[number % len(fmt.FILES)]
        at = chance.randrange(len(files[name]))
        mask = chance.randrange(1, 256)
        with open(path / name, "r+b") as file:
            file.seek(at)
            file.write(bytes([files[name][at] ^ mask]))
        error = refused(path, [VERBS[number // len(fmt.FILES) % 2]])
        assert error.file == name, (SEED, name, at, mask, str(error))
        with open(path / name, "r+b") as file:
            file.seek(at)
            file.write(files[name][at : at + 1])
    snapshot_files.verify(path)


def test_the_watch_notices_forbidden_calls(copy: Path, tmp_path: Path) -> None:
    """The other tests rely on the watch to prove that a snapshot runs no code."""
    for plant in (
        lambda: pickle.loads(pickle.dumps(Path)),
        lambda: exec("pass"),
        lambda: subprocess.run([sys.executable, "-c", ""], check=True),
        lambda: os.remove(tmp_path / "missing"),
        lambda: open(__file__).close(),
    ):
        with pytest.raises(AssertionError), watched(copy), contextlib.suppress(OSError):
            plant()


@pytest.mark.torture
def test_every_flipped_byte_is_found(copy: Path, tally: Tally) -> None:
    flips = amount("FLIPS", FLIPS)
    _flip_many(copy, flips)
    tally.add("changed bytes of a snapshot and its manifest", flips)


@pytest.mark.long
def test_every_flipped_byte_is_found_at_length(copy: Path) -> None:
    _flip_many(copy, LONG_FLIPS)


def test_every_change_in_a_header_is_refused(copy: Path) -> None:
    for name in fmt.TENSOR_FILES:
        data = (copy / name).read_bytes()
        for at in range(0, 8 + struct.unpack_from("<Q", data)[0], 5):
            (copy / name).write_bytes(data[:at] + bytes([data[at] ^ 0x20]) + data[at + 1 :])
            with pytest.raises(SnapshotInvalid, match=name):
                snapshot_files.verify(copy)
        (copy / name).write_bytes(data)


def _link_out(path: Path) -> None:
    """Replace a file by a link to an identical copy outside the folder."""
    outside = path.parent / "outside"
    shutil.move(path / "users.safetensors", outside)
    (path / "users.safetensors").symlink_to(outside)


def _pipe(path: Path) -> None:
    (path / "state.safetensors").unlink()
    os.mkfifo(path / "state.safetensors")


def _folder_in_place(path: Path) -> None:
    (path / "manifest.json").unlink()
    (path / "manifest.json").mkdir()


def _swap(path: Path) -> None:
    os.rename(path / "users.safetensors", path / "x")
    os.rename(path / "items.safetensors", path / "users.safetensors")
    os.rename(path / "x", path / "items.safetensors")


ADDED = [
    ".git",
    ".gitattributes",
    ".gitignore",
    ".hidden",
    "users.safetensors.bak",
    "Manifest.json",
    "manifest.json ",
    "model.pkl",
    "__init__.py",
    "\u200bmanifest.json",
    "\udcff",
]
CHANGES: dict[str, Callable[[Path], object]] = {
    **{f"add {name!a}": (lambda path, name=name: (path / name).touch()) for name in ADDED},
    "add a folder": lambda path: (path / ".git").mkdir(),
    "add a dangling link": lambda path: (path / "extra").symlink_to("/nowhere"),
    **{f"remove {name}": (lambda path, name=name: (path / name).unlink()) for name in fmt.FILES},
    **{
        f"rename {name}": (lambda path, name=name: os.rename(path / name, path / (name + "x")))
        for name in fmt.FILES
    },
    **{f"empty {name}": (lambda path, name=name: (path / name).write_bytes(b"")) for name in fmt.FILES},
    **{f"grow {name}": (lambda path, name=name: (path / name).open("ab").write(b"\0")) for name in fmt.FILES},
    **{
        f"cut {name}": (lambda path, name=name: os.truncate(path / name, (path / name).stat().st_size - 1))
        for name in fmt.FILES
    },
    "link out": _link_out,
    "pipe": _pipe,
    "folder in place of a file": _folder_in_place,
    "swap two files": _swap,
}


@pytest.mark.parametrize("change", CHANGES)
def test_added_removed_renamed_and_linked_files_are_refused(copy: Path, change: str) -> None:
    CHANGES[change](copy)
    refused_in_little_memory(copy)


def test_files_from_another_snapshot_are_refused(copy: Path, tmp_path: Path) -> None:
    other = samples.taken(tmp_path / "other", samples.view(40, 30, 5, samples.ADAGRAD, seed=1))
    for name in fmt.FILES:
        original = (copy / name).read_bytes()
        if original == (other / name).read_bytes():
            continue
        shutil.copy(other / name, copy / name)
        refused(copy)
        (copy / name).write_bytes(original)
    snapshot_files.verify(copy)


def test_every_truncation_is_refused(copy: Path) -> None:
    for name in fmt.FILES:
        data = (copy / name).read_bytes()
        for size in sorted({*range(0, min(len(data), 80)), *range(0, len(data), 97)}):
            (copy / name).write_bytes(data[:size])
            with pytest.raises(SnapshotInvalid):
                snapshot_files.verify(copy)
        (copy / name).write_bytes(data)


def _entry(begin: int, end: int, shape: object = (40,), dtype: str = "U64") -> dict[str, object]:
    return {"data_offsets": [begin, end], "dtype": dtype, "shape": shape}


HEADERS = {
    "huge length": struct.pack("<Q", 2**63),
    "length of the whole file and more": struct.pack("<Q", 1 << 32),
    "length past 64 bits when summed": struct.pack("<Q", 2**64 - 1),
    "zero length": struct.pack("<Q", 0),
    **{
        name: struct.pack("<Q", len(text)) + text
        for name, text in {
            "negative offset": json.dumps({"users.keys": _entry(-8, 320)}).encode(),
            "reversed offsets": json.dumps({"users.keys": _entry(320, 0)}).encode(),
            "overlap": json.dumps({"users.keys": _entry(0, 320), "users.bias": _entry(0, 320)}).encode(),
            "past the end": json.dumps({"users.keys": _entry(0, 2**62)}).encode(),
            "huge shape": json.dumps({"users.keys": _entry(0, 320, [2**31, 2**31, 2**31])}).encode(),
            "object dtype": json.dumps({"users.keys": _entry(0, 320, dtype="O")}).encode(),
            "deep nesting": b"[" * 900,
            "metadata": json.dumps({"__metadata__": {"a": "b"}, "users.keys": _entry(0, 320)}).encode(),
            "not UTF-8": b"\xff" * 64,
        }.items()
    },
}


@pytest.mark.parametrize("name", HEADERS)
def test_hostile_safetensors_headers_are_refused_unread(copy: Path, name: str) -> None:
    file = copy / "users.safetensors"
    data = file.read_bytes()
    file.write_bytes(HEADERS[name] + data[len(HEADERS[name]) :])
    error = refused_in_little_memory(copy)
    assert error.file == "users.safetensors"
    assert "header" in error.reason


def test_a_file_replaced_by_a_link_after_the_check_is_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attacker can replace a file by a link between the check and the opening."""
    _link_out(copy)
    refused(copy)
    monkeypatch.setattr(Path, "is_symlink", lambda path: False)
    assert os.strerror(errno.ELOOP) in refused(copy).reason
