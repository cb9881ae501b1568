"""Files of vectors and of texts."""

from __future__ import annotations

import gzip
import sys
import types
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from safetensors.numpy import save_file

from livefactor_server.files import encoding
from livefactor_server.files.encoding import Encoder, EncoderError
from livefactor_server.files.vectors import VectorFileError, read_texts, read_vectors, write_vectors

VECTORS = np.arange(12, dtype=np.float32).reshape(3, 4)


def test_every_form_gives_ids_and_vectors(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", VECTORS)
    np.save(tmp_path / "ids.npy", np.array([7, 8, 9]))
    (tmp_path / "ids.txt").write_text("7\n8\n9\n")
    (tmp_path / "names.txt").write_text("lamp\ntent\n7\n")
    save_file({"embedding": VECTORS, "ids": np.array([7, 8, 9])}, tmp_path / "v.safetensors")
    write_vectors(tmp_path / "v.parquet", [7, 8, 9], VECTORS)
    lists = {"sku": ["lamp", "tent", "7"], "e": VECTORS.astype(np.float64).tolist()}
    parquet.write_table(pa.table(lists), tmp_path / "other.parquet")
    for name, ids, item, expected in (
        ("v.npy", "ids.npy", "item_id", [7, 8, 9]),
        ("v.npy", "ids.txt", "item_id", [7, 8, 9]),
        ("v.npy", "names.txt", "item_id", ["lamp", "tent", "7"]),
        ("v.safetensors", "", "item_id", [7, 8, 9]),
        ("v.safetensors", "names.txt", "item_id", ["lamp", "tent", "7"]),
        ("v.parquet", "", "item_id", [7, 8, 9]),
        ("other.parquet", "", "sku", ["lamp", "tent", "7"]),
    ):
        found, vectors = read_vectors(tmp_path / name, tmp_path / ids if ids else None, item, "", False)
        assert list(found) == expected, name
        np.testing.assert_array_equal(vectors, VECTORS)
    found, _ = read_vectors(tmp_path / "v.npy", tmp_path / "ids.txt", "item_id", "", True)
    assert found == ["7", "8", "9"]


def test_a_file_of_another_form_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", VECTORS)
    np.save(tmp_path / "flat.npy", VECTORS[0])
    (tmp_path / "ids.txt").write_text("7\n8\n")
    (tmp_path / "four.txt").write_text("1\n2\n3\n4\n")
    (tmp_path / "v.csv").write_text("a\n")
    parquet.write_table(pa.table({"item_id": [1, 2], "e": [[1.0], [1.0, 2.0]]}), tmp_path / "ragged.parquet")
    parquet.write_table(pa.table({"item_id": [1], "a": [[1.0]], "b": [[1.0]]}), tmp_path / "two.parquet")
    for name, ids, text in (
        ("v.npy", "", "no ids"),
        ("v.npy", "ids.txt", "expected 2 vectors"),
        ("flat.npy", "four.txt", "expected 4 vectors"),
        ("v.csv", "ids.txt", "expected a .npy"),
        ("ragged.parquet", "", "equal length"),
        ("two.parquet", "", "--vector NAME; the file has a, b"),
    ):
        with pytest.raises(VectorFileError, match=text):
            read_vectors(tmp_path / name, tmp_path / ids if ids else None, "item_id", "", False)


def test_texts_join_the_columns_of_a_row(tmp_path: Path) -> None:
    rows = 'item_id,title,more\n1,Tent,"green,\nlarge"\n2,Lamp,\n'
    with gzip.open(tmp_path / "items.csv.gz", "wt") as file:
        file.write(rows)
    ids, texts = read_texts(tmp_path / "items.csv.gz", "item_id", ["title", "more"], False)
    assert (ids, texts) == ([1, 2], ["Tent. green,\nlarge", "Lamp"])
    parquet.write_table(pa.table({"sku": ["a", "b"], "t": ["x", None]}), tmp_path / "items.parquet")
    assert read_texts(tmp_path / "items.parquet", "sku", ["t"], False) == (["a", "b"], ["x", ""])
    (tmp_path / "bad.csv").write_text("item_id,t\n1,x\n,y\n")
    with pytest.raises(VectorFileError, match="row 1 has no id"):
        read_texts(tmp_path / "bad.csv", "item_id", ["t"], False)
    with pytest.raises(VectorFileError, match="absent"):
        read_texts(tmp_path / "bad.csv", "item_id", ["absent"], False)


def test_the_encoder_takes_a_folder_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package, which takes gigabytes: a vector has the lengths of the words."""

    class Model:
        def __init__(self, folder: str, local_files_only: bool) -> None:
            if not (Path(folder) / "modules.json").exists():
                raise OSError("no such model")
            assert local_files_only

        def encode(self, texts: list[str], normalize_embeddings: bool, show_progress_bar: bool) -> np.ndarray:
            assert normalize_embeddings and not show_progress_bar and len(texts) <= 2
            return np.array([[len(text), 1.0] for text in texts], np.float32)

    module = types.ModuleType("sentence_transformers")
    module.SentenceTransformer = Model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    with pytest.raises(EncoderError, match="no model of sentence-transformers"):
        Encoder(tmp_path)
    (tmp_path / "modules.json").write_text("[]")
    done: list[int] = []
    vectors = Encoder(tmp_path).encode(["a", "bb", "ccc"], 2, done.append)
    assert vectors.tolist() == [[1, 1], [2, 1], [3, 1]] and done == [2, 3]


def test_other_weights_than_the_known_ones_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "MODEL_PACKAGE", "package_of_weights")
    with pytest.raises(EncoderError, match="default model is not installed"):
        Encoder()
    package = tmp_path / encoding.MODEL_PACKAGE
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "model" / "model.safetensors").write_bytes(b"other")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EncoderError, match="the weights have the hash"):
        Encoder()
