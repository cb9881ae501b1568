"""Forged snapshots are refused.

The attacker computes every hash correctly, so only the checks of the format can find the forgery.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import snapshot_samples as samples
from livefactor.errors import SnapshotInvalid
from livefactor.snapshots import files as snapshot_files
from livefactor.snapshots.format import NUMPY_DTYPES
from livefactor.snapshots.sections import small_sections
from livefactor.v1 import models_pb2
from snapshot_refusals import refused, refused_in_little_memory


def _write_manifest(path: Path, fields: dict[str, object]) -> None:
    fields.pop("manifest_hash", None)
    text = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    fields["manifest_hash"] = hashlib.sha256(text).hexdigest()
    (path / "manifest.json").write_text(json.dumps(fields, sort_keys=True, separators=(",", ":")) + "\n")


def _fields(path: Path) -> dict[str, object]:
    return json.loads((path / "manifest.json").read_bytes())


def test_a_rewritten_manifest_without_changes_is_accepted(copy: Path) -> None:
    """The tests below rely on this: a refusal there must come from the change itself."""
    _write_manifest(copy, _fields(copy))
    snapshot_files.verify(copy)


def _traversals() -> list[str]:
    ups = ["../" * depth for depth in range(1, 6)] + ["..\\" * depth for depth in range(1, 4)]
    ups += [
        "/",
        "//",
        "./",
        "~/",
        "%2e%2e%2f",
        "..%2f",
        "....//",
        "\uff0e\uff0e/",
        "..\u2215",
        "C:\\",
        "\\\\host\\",
        "file://",
    ]
    ends = [
        "users.safetensors",
        "etc/passwd",
        "",
        "users.safetensors\x00.txt",
        "manifest.json",
        "dev/zero",
        "proc/self/mem",
        "items.safetensors/",
        ".git/hooks/post-checkout",
        "state.safetensors\n",
    ]
    return [up + end for up in ups for end in ends]


def test_no_file_name_in_a_manifest_leaves_the_folder(copy: Path) -> None:
    payloads = _traversals()
    assert len(payloads) >= 200
    pristine = _fields(copy)
    for payload in payloads:
        for key in ("file", "name"):
            fields = json.loads(json.dumps(pristine))
            fields["tensors"][0][key] = payload
            _write_manifest(copy, fields)
            assert refused(copy).file == "manifest.json"


def test_no_fetched_file_name_leaves_the_folder(pristine: Path, tmp_path: Path) -> None:
    inside = tmp_path / "a" / "b" / "c" / "d" / "e" / "f"
    inside.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    pieces = samples.pieces_of(pristine)
    for payload in _traversals():
        for stream in ([(payload, 0, 1, b"x")], [*pieces, (payload, 0, 1, b"x")]):
            with pytest.raises(SnapshotInvalid):
                snapshot_files.save(stream, inside / "copy")
    assert sorted(tmp_path.rglob("*")) == before


def _set(*path: object) -> Callable[[dict], None]:
    *keys, last, value = path

    def change(fields: dict) -> None:
        target = fields
        for key in keys:
            target = target[key]
        target[last] = value

    return change


def _delete(name: str) -> Callable[[dict], None]:
    return lambda fields: fields.pop(name)


NUMBERS = [-1, 2**64, 2**200, True, None, "1", [], {}]
FIELDS: dict[str, Callable[[dict], object]] = {
    **{
        f"{name} = {value!r:.20}": _set(name, value)
        for value in NUMBERS
        for name in ("created_us", "format", "kernel_semantics", "revision")
    },
    **{f"offset = {value!r:.20}": _set("tensors", 1, "offset", value) for value in (*NUMBERS, 0, 8, 2**61)},
    **{
        f"shape = {value!r:.30}": _set("tensors", 1, "shape", value)
        for value in (
            [40],
            [-40, -5],
            [40, 5, 1],
            [2**39, 2**39],
            [5, 40],
            [],
            40,
            [40, 5.0],
            [True, 5],
            [[40], 5],
        )
    },
    **{
        f"dtype = {value!r}": _set("tensors", 0, "dtype", value)
        for value in ("O", "I64", "F64", "<u8", "u64", "", 8, None)
    },
    **{
        f"blocks = {value!r:.20}": _set("tensors", 0, "blocks", value)
        for value in (
            [],
            ["00" * 32] * 2,
            ["00" * 31],
            ["0x" + "00" * 31],
            [0],
            "00" * 32,
            None,
            ["AA" * 32],
            [" " * 64],
        )
    },
    **{
        f"spec = {value!r:.20}": _set("spec", value)
        for value in (
            "",
            "00",
            "0a",
            "ff" * 70_000,
            "0g",
            samples.spec_bytes(6, samples.ADAGRAD).hex(),
            samples.spec_bytes(5, samples.SGD).hex(),
            samples.spec_bytes(2000, samples.ADAGRAD).hex(),
            5,
        )
    },
    **{
        f"{name} = {value!r:.20}": _set(name, value)
        for name in ("root_hash", "log_hash")
        for value in ("", "00" * 31, "zz" * 32, "AA" * 32, None, 5)
    },
    "root of another state": _set("root_hash", "00" * 32),
    **{
        f"model = {value!r:.20}": _set("model", value)
        for value in ("", "../x", "A", "a" * 65, "a\n", 5, None)
    },
    **{
        f"lineage = {value!r:.20}": _set("lineage", value)
        for value in ("", "-" * 36, "0" * 32, "0" * 36, "0" * 37, None)
    },
    **{
        f"without {name}": _delete(name)
        for name in ("created_us", "format", "model", "parent", "root_hash", "spec", "tensors")
    },
    "a parent": _set("parent", "x"),
    "an extra field": _set("code", "import os"),
    "an extra field of a tensor": _set("tensors", 0, "code", "x"),
    "tensors = {}": _set("tensors", {}),
    "tensors = []": _set("tensors", []),
    "tensors of other kinds": _set("tensors", [0, None, [], "x"]),
    "a tensor twice": lambda fields: fields["tensors"].append(fields["tensors"][0]),
    "a tensor less": lambda fields: fields["tensors"].pop(3),
    "tensors in another order": lambda fields: fields["tensors"].reverse(),
    "two offsets swapped": lambda fields: fields["tensors"][2].update(offset=fields["tensors"][4]["offset"]),
    "overlapping tensors": lambda fields: fields["tensors"][1].update(offset=fields["tensors"][0]["offset"]),
    "the digest of another": lambda fields: fields["tensors"][0].update(
        digest=fields["tensors"][1]["digest"]
    ),
}


@pytest.mark.parametrize("change", FIELDS)
def test_an_invalid_manifest_with_a_correct_hash_is_refused(copy: Path, change: str) -> None:
    fields = _fields(copy)
    FIELDS[change](fields)
    _write_manifest(copy, fields)
    assert refused_in_little_memory(copy).file == "manifest.json"


TEXTS = {
    "not an object": b"[]\n",
    "a number": b"1\n",
    "nothing": b"\n",
    "deep lists": b"[" * 60_000,
    "deep objects": b'{"a":' * 20_000,
    "a number of many digits": b'{"format":' + b"9" * 60_000 + b"}",
    "not ASCII": '{"format":1,"é":2}'.encode(),
    "not UTF-8": b"\xff\xfe{}",
    "with a mark": b"\xef\xbb\xbf{}",
    "NaN": b'{"format":NaN}',
    "a float": b'{"format":1.0}',
    "an exponent": b'{"format":1e400}',
    "pickle": b"cos\nsystem\n(S'true'\ntR.",
    "many small lists": b"[" + b"[]," * 20_000 + b"[]]",
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_manifest_that_is_not_canonical_json_is_refused(copy: Path, name: str) -> None:
    (copy / "manifest.json").write_bytes(TEXTS[name])
    assert refused_in_little_memory(copy).file == "manifest.json"


@pytest.mark.parametrize(
    "respell",
    [
        lambda text: text + b"\n",
        lambda text: text.rstrip(b"\n"),
        lambda text: b" " + text,
        lambda text: text.replace(b",", b", ", 1),
        lambda text: b'{"format":1,' + text[1:],
        lambda text: text.replace(b'"format":1', b'"format":01'),
        lambda text: text.replace(b'"format"', b'"\\u0066ormat"'),
        lambda text: text.replace(b'"manifest_hash":"', b'"manifest_hash":"0'),
    ],
)
def test_another_spelling_of_the_same_manifest_is_refused(
    copy: Path, respell: Callable[[bytes], bytes]
) -> None:
    file = copy / "manifest.json"
    text = file.read_bytes()
    file.write_bytes(respell(text))
    assert file.read_bytes() != text
    assert refused(copy).file == "manifest.json"


def test_huge_sparse_files_are_refused_in_little_memory(copy: Path) -> None:
    for name in ("manifest.json", "users.safetensors"):
        size = (copy / name).stat().st_size
        os.truncate(copy / name, 1 << 40)
        refused_in_little_memory(copy)
        os.truncate(copy / name, size)
    snapshot_files.verify(copy)


Spoil = Callable[[samples.FrozenState], None]


def _with_rows(column: str, value: float) -> Spoil:
    def spoil(state: samples.FrozenState) -> None:
        state.pin.tables[1][column].reshape(-1)[2] = value

    return spoil


def _with_small(**arrays: list[int] | bytes) -> Spoil:
    def spoil(state: samples.FrozenState) -> None:
        for name, value in arrays.items():
            name = name.replace("_", ".")
            dtype = state.small[name].dtype
            array = np.frombuffer(value, dtype) if isinstance(value, bytes) else np.array(value, dtype)
            state.small = dict(state.small) | {name: array}

    return spoil


CONTENTS = {
    "NaN factor": (_with_rows("factors", np.nan), "items.factors"),
    "infinite bias": (_with_rows("bias", np.inf), "items.bias"),
    "infinite accumulator": (_with_rows("factor_g", -np.inf), "items.factor_g"),
    "negative accumulator": (_with_rows("bias_g", -1e-3), "items.bias_g"),
    "an id twice": (_with_rows("keys", 1), "items.keys"),
    "negative count": (_with_small(mean=[1, -1]), "mean"),
    "another spec": (_with_small(spec=b"\x08\x06"), "spec"),
    "unavailable in disorder": (_with_small(unavailable=[3, 2]), "unavailable"),
    "unavailable twice": (_with_small(unavailable=[3, 3]), "unavailable"),
    "label keys in disorder": (_with_small(labels_user_keys=[7, 4, 3, 9]), "labels.user.keys"),
    "offsets go back": (_with_small(labels_user_offsets=[0, 9, 5, 11, 15]), "labels.user.offsets"),
    "offsets past the text": (_with_small(labels_user_offsets=[0, 5, 5, 11, 2**63]), "labels.user.offsets"),
    "offsets begin late": (_with_small(labels_user_offsets=[1, 5, 5, 11, 15]), "labels.user.offsets"),
    "offsets missing": (_with_small(labels_user_offsets=[]), "labels.user.offsets"),
    "an offset too many": (_with_small(labels_item_offsets=[0, 3, 3]), "labels.item.offsets"),
    "text is no UTF-8": (_with_small(labels_item_text=b"\xff\xff\xff"), "labels.item.text"),
    "a label cut inside a character": (
        _with_small(labels_user_offsets=[0, 4, 5, 11, 15]),
        "labels.user.text",
    ),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_invalid_content_with_correct_hashes_is_refused(tmp_path: Path, name: str) -> None:
    state = samples.view(40, 30, 5, samples.ADAGRAD)
    spoil, tensor = CONTENTS[name]
    spoil(state)
    error = refused(samples.taken(tmp_path, state))
    assert error.tensor == tensor
    assert error.file == ("items.safetensors" if tensor.startswith("items.") else "state.safetensors")


RESERVOIRS = {
    "user_rows": [40, 0, 0, 0],
    "item_rows": [0, 0, 0, 30],
    "values": [0.0, 0.0, np.nan, 0.0],
    "weights": [0.0, 0.0, 0.0, -1.0],
}


@pytest.mark.parametrize("name", RESERVOIRS)
def test_an_invalid_reservoir_is_refused(tmp_path: Path, name: str) -> None:
    state = samples.view(40, 30, 5)
    # The bytes encode the field `replay` (number 22) with `size` 4.
    state.spec_body += b"\xb2\x01\x02\x08\x04"
    state.small = dict(state.small) | {"spec": np.frombuffer(state.spec_body, np.uint8)}
    dtypes = {
        each.name: NUMPY_DTYPES[each.dtype]
        for each in small_sections(models_pb2.ModelSpec.FromString(state.spec_body))
        if each.name.startswith("replay.")
    }
    state.small |= {section: np.zeros(4, dtype) for section, dtype in dtypes.items()}
    snapshot_files.verify(samples.taken(tmp_path / "good", state))
    column = np.array(RESERVOIRS[name], dtypes[f"replay.{name}"])
    state.small |= {f"replay.{name}": column}
    error = refused(samples.taken(tmp_path / "bad", state))
    assert (error.tensor, error.file) == (f"replay.{name}", "state.safetensors")
    state.small |= {f"replay.{name}": column[:3]}
    with pytest.raises(ValueError, match=f"replay.{name}: expected 4 elements, got 3"):
        samples.taken(tmp_path / "short", state)


HISTORIES: dict[str, tuple[str, list[int]]] = {
    "more events than counted": ("seen_count", [2, 0, 1, 0, 1]),
    "fewer events than counted": ("seen_count", [2, 0, 1, 20, 1]),
    "an item that is not there": ("seen_rows", [0, 1, 2, 30, 0]),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_events_that_do_not_fit_their_numbers_are_refused(tmp_path: Path, name: str) -> None:
    state = samples.view(5, 30, 5)
    # The bytes encode `history` (number 15): `users` 16 and `paged`.
    state.spec_body += b"\x7a\x04\x08\x10\x20\x01"
    state.small = dict(state.small) | {"spec": np.frombuffer(state.spec_body, np.uint8)}
    state.remembered = (5, 0)
    users, items = state.pin.tables
    users |= {column: np.zeros(5, np.uint32) for column in ("seen_rows", "seen_visits", "visits")}
    users |= {column: np.ones(5, np.float32) for column in ("seen_values", "seen_weights")}
    users |= {"last_time": np.zeros(5, np.int64), "seen_count": np.array([2, 0, 1, 1, 1], np.uint32)}
    items["seen_count"] = np.zeros(30, np.uint32)
    snapshot_files.verify(samples.taken(tmp_path / "good", state))
    column, numbers = HISTORIES[name]
    users[column] = np.array(numbers, np.uint32)
    error = refused(samples.taken(tmp_path / "bad", state))
    assert (error.tensor, error.file) == ("users.seen_rows", "users.safetensors")


@pytest.mark.parametrize("value", [-0.5, 1.5])
def test_invalid_powers_are_refused(tmp_path: Path, value: float) -> None:
    state = samples.view(40, 30, 5, models_pb2.OPTIMIZER_KIND_LAZY_ADAM)
    _with_rows("powers", value)(state)
    assert refused(samples.taken(tmp_path, state)).tensor == "items.powers"


@pytest.mark.parametrize(
    ("place", "value"),
    [(0, 25), (0, 0.5), (1, -1), (1, 0.5), (1, 1 << 24), (2, -1), (2, 1.5), (3, np.inf), (4, -1)],
)
def test_invalid_rates_are_refused(tmp_path: Path, place: int, value: float) -> None:
    state = samples.view(3, 2, 5)
    # The bytes encode the field `adaptive_rate` (number 23) with `window` 16.
    state.spec_body += b"\xba\x01\x02\x08\x10"
    state.small = dict(state.small) | {"spec": np.frombuffer(state.spec_body, np.uint8), "rates": np.zeros(5)}
    for table in state.pin.tables:
        table |= {"factor_probe": table["factors"], "bias_probe": table["bias"], "row_probe": table["bias"]}
    snapshot_files.verify(samples.taken(tmp_path / "good", state))
    state.small["rates"][place] = value
    error = refused(samples.taken(tmp_path / "bad", state))
    assert (error.tensor, error.file) == ("rates", "state.safetensors")


@pytest.mark.parametrize(
    ("factor_dtype", "value"),
    [
        (samples.FLOAT16, np.float16(np.nan)),
        (samples.FLOAT16, np.float16(-np.inf)),
        (samples.BFLOAT16, np.uint16(0x7F80)),
        (samples.BFLOAT16, np.uint16(0xFFC0)),
    ],
)
def test_narrow_factors_that_are_not_finite_are_refused(
    tmp_path: Path, factor_dtype: int, value: np.generic
) -> None:
    state = samples.view(40, 30, 5, samples.ADAGRAD, factor_dtype=factor_dtype)
    snapshot_files.verify(samples.taken(tmp_path / "good", state))
    state.pin.tables[1]["factors"][7, 3] = value
    error = refused(samples.taken(tmp_path / "bad", state))
    assert (error.tensor, error.file) == ("items.factors", "items.safetensors")


def test_factors_with_another_dtype_than_the_spec_are_refused(copy: Path) -> None:
    """The spec determines the dtype of the factors. A manifest cannot change it."""
    pristine = _fields(copy)
    for dtype in ("F16", "BF16", "U64"):
        fields = json.loads(json.dumps(pristine))
        tensor = next(one for one in fields["tensors"] if one["name"] == "items.factors")
        tensor["dtype"] = dtype
        _write_manifest(copy, fields)
        assert refused(copy).file == "manifest.json"


def test_a_spec_with_unknown_factors_is_refused(copy: Path) -> None:
    fields = _fields(copy)
    # The bytes encode `factor_dtype` (field 13) with the unknown value 9.
    fields["spec"] = str(fields["spec"]) + "6809"
    _write_manifest(copy, fields)
    assert "factor_dtype" in str(refused(copy))
