"""Vectors of short texts from their words alone: latent semantic indexing.

Texts and queries get vectors of the same space (Deerwester et al., Indexing by latent semantic
analysis, JASIS 1990). It needs no pretrained model, so it is for small catalogues, examples and the
demo. For longer texts a language model says more (`encoding.py`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

WORDS_MAX = 2048
"""Number of words that count: the most frequent ones that are in at least two texts."""

SPARE, ITERATIONS = 8, 4
"""Further vectors of the subspace iteration, and its steps."""

_WORD = re.compile(r"[^\W_]{2,}")


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without numbers."""
    return [word for word in _WORD.findall(text.lower()) if not word.isdigit()]


class WordSpace:
    """A space of word vectors, made from the texts of a catalogue.

    The weight of a word in a text is 1 + log(count), times log(n / number of texts with the word).
    The space has the leading right singular vectors of the matrix of texts and words, by subspace
    iteration from random vectors (Halko, Martinsson, Tropp, SIAM Review 2011, algorithm 4.4).
    """

    def __init__(self, texts: Sequence[str], dimension: int) -> None:
        """`dimension` is an upper bound: the space has no more axes than words."""
        found = Counter(word for text in texts for word in set(words_of(text)))
        common = sorted((word for word in found if found[word] > 1), key=lambda word: (-found[word], word))
        self._places = {word: place for place, word in enumerate(common[:WORDS_MAX])}
        counts = np.array([found[word] for word in self._places], np.float64)
        self._rarity = np.log(len(texts) / counts)
        matrix = self._matrix(texts)
        self._axes = _leading(matrix, min(dimension, len(self._places)))

    @property
    def dimension(self) -> int:
        """Numbers of a vector."""
        return int(self._axes.shape[1])

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors float32[n, dimension] of n texts, of unit length.

        A text without a known word has the vector 0.
        """
        return _unit(self._matrix(texts) @ self._axes).astype(np.float32)

    def _matrix(self, texts: Sequence[str]) -> np.ndarray:
        """The weights of words in texts, float64[n, words], each row of unit length."""
        matrix = np.zeros((len(texts), len(self._places)))
        for row, text in enumerate(texts):
            for word, count in Counter(words_of(text)).items():
                if (place := self._places.get(word)) is not None:
                    matrix[row, place] = (1.0 + np.log(count)) * self._rarity[place]
        return _unit(matrix)


def _leading(matrix: np.ndarray, count: int) -> np.ndarray:
    """The `count` leading right singular vectors of float64[n, m], as columns float64[m, count]."""
    axes = np.random.default_rng(0).normal(size=(matrix.shape[1], min(count + SPARE, matrix.shape[1])))
    for _ in range(ITERATIONS):
        axes, _ = np.linalg.qr(matrix.T @ (matrix @ axes))
    _, _, turned = np.linalg.svd(matrix @ axes, full_matrices=False)
    return np.ascontiguousarray((axes @ turned.T)[:, :count])


def _unit(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0))
