"""Augmentation of texts: a text in other words that should have nearly the same vector.

Words are left out at random, or replaced by synonyms, and then a function may do anything with the
text, such as translate it and translate it back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from livefactor_server.files.encoding import Encoder

Hook = Callable[[str], str]
"""A function that gives a text in other words."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What is done to a text.

    Attributes:
        word_dropout: the share of words that are left out. One word stays.
        synonyms: for a word in lower case the words that may stand for it.
        synonym_rate: the share of words with synonyms that are replaced by one of them.
        hook: what comes last, if there is one.
    """

    word_dropout: float = 0.0
    synonyms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    synonym_rate: float = 0.3
    hook: Hook | None = None

    @property
    def is_off(self) -> bool:
        """Whether each text stays as it is."""
        return not self.word_dropout and not self.synonyms and self.hook is None

    def apply(self, text: str, rng: np.random.Generator) -> str:
        """The text in other words."""
        words = text.split()
        if len(words) > 1 and (self.word_dropout or self.synonyms):
            draws = rng.random((len(words), 2))
            kept = draws[:, 0] >= self.word_dropout
            kept[int(rng.integers(len(words)))] |= not kept.any()
            words = [
                self._other(word, draw, rng)
                for word, keep, draw in zip(words, kept.tolist(), draws[:, 1].tolist(), strict=True)
                if keep
            ]
            text = " ".join(words)
        return text if self.hook is None else self.hook(text)

    def _other(self, word: str, draw: float, rng: np.random.Generator) -> str:
        others = self.synonyms.get(word.lower(), ()) if draw < self.synonym_rate else ()
        return others[int(rng.integers(len(others)))] if others else word


def read_synonyms(file: Path) -> dict[str, list[str]]:
    """The synonyms of a text file: a word and its synonyms a line, separated by commas.

    Raises OSError.
    """
    rows = (
        [word.strip() for word in line.split(",")] for line in file.read_text(encoding="utf-8").splitlines()
    )
    return {word.lower(): others for word, *others in rows if word and others}


def encode_averaged(
    encoder: Encoder,
    texts: list[str],
    augmentation: Augmentation,
    variants: int,
    batch: int,
    report: Callable[[int], None],
) -> np.ndarray:
    """The vectors float32[n, d] of n texts: each is the mean of the text's and of its variants'.

    variants: the number of augmented texts beside the text itself. `report` gets the number of
    texts that are done. The variants are drawn with seed 0.
    """
    rng, parts = np.random.default_rng(0), []
    step = max(1, batch // (1 + variants))
    for start in range(0, len(texts), step):
        part = texts[start : start + step]
        told = [
            each
            for text in part
            for each in (text, *(augmentation.apply(text, rng) for _ in range(variants)))
        ]
        vectors = (
            encoder.encode(told, batch, lambda _: None).reshape(len(part), 1 + variants, -1).mean(axis=1)
        )
        parts.append(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))
        report(start + len(part))
    return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)
