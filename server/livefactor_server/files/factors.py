"""Files of factors of another model, and factors that a truncated SVD makes of a file of events.

npz          the arrays that `np.savez` wrote, such as those of `model.save` of the package implicit
safetensors  tensors

The names of arrays are those of implicit and LightFM, below. Ids are arrays of the file, too, or
stand in files of their own: npy, or text with one id a line.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from livefactor.wire.ids import ids_of_texts
from livefactor_server.files.vectors import VectorFileError, read_ids, tensors_of

SIDES = ("user", "item")
FACTOR_NAMES = ("factors", "embeddings", "representations", "vectors")
BIAS_NAMES = ("biases", "bias")


class SideFactors(NamedTuple):
    """The rows of one side.

    Attributes:
        ids: n ids, as a producer takes them.
        factors: [n, d].
        biases: [n], or None.
    """

    ids: Any
    factors: np.ndarray
    biases: np.ndarray | None


def read_factors(file: Path, id_files: Mapping[str, Path | None], string_ids: bool) -> dict[str, SideFactors]:
    """The factors of each side that a file has, by `SIDES`.

    `id_files` names the files of ids by side.

    Raises:
        VectorFileError: the file has another form, or the numbers of ids and rows differ.
        OSError: a file cannot be opened.
    """
    try:
        arrays = _arrays_of(file)
    except (ValueError, zipfile.BadZipFile) as error:
        raise VectorFileError(str(error)) from error
    found = {}
    for side in SIDES:
        factors = _first(arrays, side, FACTOR_NAMES)
        if factors is not None:
            ids = _ids(arrays, side, id_files.get(side), string_ids)
            found[side] = _checked(side, ids, factors, _first(arrays, side, BIAS_NAMES))
    if not found:
        names = ", ".join(sorted(arrays)) or "none"
        raise VectorFileError(f"expected arrays user_factors and item_factors; the file has {names}")
    if len({part.factors.shape[1] for part in found.values()}) > 1:
        raise VectorFileError("expected users and items with equally many factors")
    return found


def _arrays_of(file: Path) -> dict[str, np.ndarray]:
    if file.suffix.lower() == ".npz":
        with np.load(file, allow_pickle=False) as arrays:
            names = [f"{side}_{name}" for side in SIDES for name in (*FACTOR_NAMES, *BIAS_NAMES, "ids")]
            # Other arrays may be pickled objects, which stay unread.
            return {name: arrays[name] for name in arrays.files if name in names}
    if file.suffix.lower() == ".safetensors":
        return tensors_of(file)
    raise VectorFileError("expected a .npz or .safetensors file, or events with --svd")


def _first(arrays: Mapping[str, np.ndarray], side: str, names: tuple[str, ...]) -> np.ndarray | None:
    return next((arrays[f"{side}_{name}"] for name in names if f"{side}_{name}" in arrays), None)


def _ids(arrays: Mapping[str, np.ndarray], side: str, file: Path | None, string_ids: bool) -> Any:
    ids: Any = arrays.get(f"{side}_ids")
    if file is not None:
        ids = read_ids(file)
    if ids is None:
        raise VectorFileError(f"the file has no {side}_ids: name a file of ids with --{side}-ids")
    if isinstance(ids, np.ndarray) and ids.dtype.kind in "iu" and not string_ids:
        return ids
    texts = [str(each) for each in (ids.tolist() if isinstance(ids, np.ndarray) else ids)]
    is_text_file = file is not None and not isinstance(ids, np.ndarray)
    return ids_of_texts(texts) if is_text_file and not string_ids else texts


def _checked(side: str, ids: Any, factors: np.ndarray, biases: np.ndarray | None) -> SideFactors:
    if factors.ndim != 2 or len(factors) != len(ids) or not factors.size:
        raise VectorFileError(
            f"{side} factors: expected {len(ids)} rows, one for each id, got shape {factors.shape}"
        )
    if biases is not None:
        biases = biases.reshape(-1)
        if len(biases) != len(ids):
            raise VectorFileError(f"{side} biases: expected {len(ids)}, one for each id, got {len(biases)}")
    return SideFactors(ids, factors, biases)


def svd_factors(
    user_keys: np.ndarray, item_keys: np.ndarray, values: np.ndarray, k: int
) -> dict[str, SideFactors]:
    """The truncated SVD of the matrix of n events: 1 for each pair with a value above 0, else 0.

    The columns are uint64[n], uint64[n] and float32[n].
    Users and items get the singular vectors times the roots of the singular values. So their dot
    products are the best approximation of rank k of the matrix (latent semantic indexing).

    Raises:
        VectorFileError: the events have too few users or items for k factors, or SciPy is missing.
    """
    try:
        from scipy.sparse import csr_matrix
        from scipy.sparse.linalg import svds
    except ModuleNotFoundError:
        raise VectorFileError('SciPy is not installed: pip install "livefactor[factors]"') from None
    liked = values > 0
    users, user_rows = np.unique(user_keys[liked], return_inverse=True)
    items, item_rows = np.unique(item_keys[liked], return_inverse=True)
    if k >= min(users.size, items.size):
        raise VectorFileError(
            f"--svd: expected less than the number of users ({users.size}) and of items ({items.size}), got {k}"
        )
    matrix = csr_matrix((np.ones(user_rows.size), (user_rows, item_rows)), (users.size, items.size))
    matrix.data[:] = 1.0
    # A fixed start makes runs equal.
    left, values, right = svds(matrix, k=k, v0=np.ones(min(matrix.shape)))
    roots = np.sqrt(values)
    return {
        "user": SideFactors(users, left * roots, None),
        "item": SideFactors(items, right.T * roots, None),
    }


def without_biases(parts: dict[str, SideFactors]) -> dict[str, SideFactors]:
    """The same rows for a model that has no biases: those of items become one more factor.

    A user's bias does not change the order of his items, so it is left out.
    """
    biases = parts["item"].biases if "item" in parts else None
    if biases is None:
        return {side: part._replace(biases=None) for side, part in parts.items()}
    columns = {side: np.ones(len(part.factors)) for side, part in parts.items()} | {"item": biases}
    return {
        side: SideFactors(part.ids, np.column_stack([part.factors, columns[side]]), None)
        for side, part in parts.items()
    }
