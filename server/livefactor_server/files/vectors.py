"""Files of vectors with their ids, and texts of items.

npy      float[n, d], with the ids in a second file: npy, or text with one id a line
parquet  a column of ids, and a column of lists of d numbers
safetensors  a tensor float[n, d], with the ids in a tensor of integers `ids`, or in a second file
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv as arrow_csv
from pyarrow import parquet

from livefactor.wire.ids import ids_of_texts
from livefactor.wire.limits import SHA256_BYTES

PARQUET = (".parquet", ".pq")

HASH_KEY = b"livefactor.encoder_hash"
"""The key of the metadata of a parquet file that holds the hash of what made its vectors."""


class VectorFileError(ValueError):
    """A file of vectors or texts cannot be read. The text has the reason."""


def read_vectors(
    file: Path, ids_file: Path | None, item: str, vector: str, string_ids: bool
) -> tuple[Any, np.ndarray]:
    """(ids, vectors [n, d]) of a file.

    `item` names the column of ids of a parquet file, and `vector` its column of vectors, or the
    tensor of a safetensors file. An empty `vector` takes the only one, or the one named embedding.

    Raises:
        VectorFileError: the file has another form, or the numbers of ids and vectors differ.
        OSError: a file cannot be opened.
    """
    suffix = file.suffix.lower()
    ids: Any = None
    try:
        if suffix in PARQUET:
            ids, vectors = _of_parquet(file, item, vector)
        elif suffix == ".npy":
            vectors = np.load(file, mmap_mode="r", allow_pickle=False)
        elif suffix == ".safetensors":
            ids, vectors = _of_safetensors(file, vector)
        else:
            raise VectorFileError("expected a .npy, .parquet or .safetensors file")
        if ids_file is not None:
            ids = read_ids(ids_file)
    except (ValueError, KeyError, pa.ArrowException) as error:
        raise VectorFileError(str(error)) from error
    if ids is None:
        raise VectorFileError("the file has no ids: name a file of ids with --ids")
    if vectors.ndim != 2 or len(vectors) != len(ids):
        raise VectorFileError(f"expected {len(ids)} vectors, one for each id, got shape {vectors.shape}")
    if isinstance(ids, list):
        texts = [str(each) for each in ids] if string_ids else ids
        is_text = bool(texts) and isinstance(texts[0], str)
        ids = ids_of_texts(texts) if is_text and not string_ids else texts
    return ids, vectors


def _of_parquet(file: Path, item: str, vector: str) -> tuple[list[Any], np.ndarray]:
    schema = parquet.read_schema(file)
    lists = [
        field.name
        for field in schema
        if pa.types.is_list(field.type) or pa.types.is_fixed_size_list(field.type)
    ]
    name = vector or _one_of("column of lists", lists)
    table = parquet.read_table(file, columns=[item, name])
    column = table[name].combine_chunks()
    flat = np.asarray(column.flatten().to_numpy(zero_copy_only=False))
    if column.null_count or (len(column) and len(flat) % len(column)):
        raise VectorFileError(f"column {name}: expected lists of equal length in every row")
    return table[item].to_pylist(), flat.reshape(len(column), -1)


def tensors_of(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file by name.

    Raises:
        VectorFileError: the file is damaged, or the package safetensors is missing.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ModuleNotFoundError:
        raise VectorFileError('safetensors is not installed: pip install "livefactor[factors]"') from None
    try:
        tensors: dict[str, np.ndarray] = load_file(file)
    except SafetensorError as error:
        raise VectorFileError(str(error)) from error
    return tensors


def _of_safetensors(file: Path, vector: str) -> tuple[np.ndarray | None, np.ndarray]:
    tensors = tensors_of(file)
    ids = tensors.pop("ids", None)
    return ids, tensors[vector or _one_of("tensor of vectors", list(tensors))]


def _one_of(what: str, names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    if "embedding" in names:
        return "embedding"
    raise VectorFileError(f"expected one {what}, or --vector NAME; the file has {', '.join(names) or 'none'}")


def read_ids(file: Path) -> Any:
    """The ids of a file: integers of a npy file as an array, others as a list of texts."""
    if file.suffix.lower() == ".npy":
        ids = np.load(file, allow_pickle=False)
        return ids if ids.dtype.kind in "iu" else ids.tolist()
    return file.read_text(encoding="utf-8").splitlines()


def read_texts(file: Path, item: str, columns: list[str], string_ids: bool) -> tuple[Any, list[str]]:
    """(ids, one text for each) of a csv or parquet file. A text joins the row's columns.

    Raises:
        VectorFileError: the file has another form, or an id is missing.
        OSError: the file cannot be opened.
    """
    names = [item, *columns]
    try:
        if file.suffix.lower() in PARQUET:
            table = parquet.read_table(file, columns=names)
        else:
            kinds = arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), include_columns=names
            )
            options = arrow_csv.ParseOptions(newlines_in_values=True)
            table = arrow_csv.read_csv(file, parse_options=options, convert_options=kinds)
    except (KeyError, pa.ArrowException) as error:
        raise VectorFileError(str(error)) from error
    ids = table[item].to_pylist()
    if any(each is None or each == "" for each in ids):
        raise VectorFileError(
            f"column {item}: row {ids.index(None) if None in ids else ids.index('')} has no id"
        )
    rows = zip(*(table[name].to_pylist() for name in columns), strict=True)
    texts = [". ".join(str(part).strip() for part in row if part not in (None, "")) for row in rows]
    if string_ids or not isinstance(ids[0] if ids else 0, str):
        return [str(each) for each in ids] if string_ids else ids, texts
    return ids_of_texts(ids), texts


def write_vectors(file: Path, ids: Any, vectors: np.ndarray, encoder_hash: str = "") -> None:
    """Writes a parquet file with the columns item_id and embedding.

    `ids` are n integers or strings, and `vectors` float32[n, d]. `encoder_hash` is the SHA-256 hash
    of what made the vectors, in hex. `hash_of` reads it.
    """
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
    lists = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    kind = pa.string() if len(ids) and isinstance(ids[0], str) else pa.uint64()
    table = pa.table({"item_id": pa.array(ids, kind), "embedding": lists})
    parquet.write_table(table.replace_schema_metadata({HASH_KEY: encoder_hash.encode()}), file)


def hash_of(file: Path) -> bytes:
    """The hash of what made the vectors of a file, empty if the file does not say.

    Raises:
        VectorFileError: the file says something else than a SHA-256 hash.
        OSError: the file cannot be opened.
    """
    if file.suffix.lower() not in PARQUET:
        return b""
    told = (parquet.read_schema(file).metadata or {}).get(HASH_KEY, b"")
    try:
        found = bytes.fromhex(told.decode())
        if len(found) in (0, SHA256_BYTES):
            return found
    except ValueError:
        pass
    raise VectorFileError(f"{HASH_KEY.decode()}: expected a SHA-256 hash in hex")
