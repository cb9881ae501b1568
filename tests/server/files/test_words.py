"""Vectors from words: axes of a catalogue against NumPy's singular value decomposition."""

from __future__ import annotations

import numpy as np

from livefactor_server.files.words import WordSpace, words_of

TEXTS = [
    f"{color} {shape} {'large' if number % 3 else 'small'} 12"
    for number, (color, shape) in enumerate(
        (color, shape) for color in ("red", "blue", "green", "white") for shape in ("cup", "lamp", "tent")
    )
]


def test_words_are_lower_case_and_have_no_numbers() -> None:
    assert words_of("RED cup, 3 PIECES & T-LIGHTS x") == ["red", "cup", "pieces", "lights"]


def test_the_axes_are_the_leading_singular_vectors() -> None:
    space = WordSpace(TEXTS, 4)
    matrix = space._matrix(TEXTS)
    np.testing.assert_allclose(space._axes.T @ space._axes, np.eye(4), atol=1e-9)
    strengths = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(((matrix @ space._axes) ** 2).sum(axis=0), strengths[:4] ** 2, rtol=1e-3)
    assert WordSpace(TEXTS, 64).dimension == len(space._places)


def test_a_query_is_near_the_texts_that_share_its_words() -> None:
    space = WordSpace([*TEXTS, "quite another thing"], 16)
    cosines = space.vectors(TEXTS) @ space.vectors(["a red lamp"])[0]
    assert TEXTS[int(np.argmax(cosines))].startswith("red lamp")
    assert not space.vectors(["unknown"]).any()
    np.testing.assert_allclose(np.linalg.norm(space.vectors(TEXTS), axis=1), 1.0, rtol=1e-6)
