"""`Recommender` passes scikit-learn's own checks of estimators, except those that do not apply."""

from __future__ import annotations

from typing import Any
from unittest import SkipTest

import numpy as np
import pytest

from livefactor import Recommender

TWO_COLUMNS = "an event has two columns, however many features the table of the check has"
IDS = "the columns hold ids, which are integers or strings, and not measurements"
WORDS = "the error names pairs of a user and an item, and the check looks for other words"
DOES_NOT_APPLY = {
    "check_n_features_in_after_fitting": TWO_COLUMNS,
    "check_dtype_object": TWO_COLUMNS,
    "check_fit2d_1feature": WORDS,
    "check_fit2d_predict1d": WORDS,
    "check_complex_data": WORDS,
    "check_estimators_nan_inf": IDS,
    "check_estimators_empty_data_messages": "a model without events is valid, and its lists are empty",
    "check_estimators_pickle": "a fitted recommender is a server; `data=FOLDER` keeps its model",
}
"""Checks that fail, and why what they ask has no sense here."""


class OfNumbers(Recommender):
    """A recommender that takes the numbers of scikit-learn's tables as ids, and ignores y.

    The checks make tables of random numbers with any number of columns. All else is Recommender's.
    """

    def _columns(self, X: Any, y: Any) -> dict[str, Any]:
        return super()._columns(X, None)

    def _pairs(self, X: Any) -> dict[str, Any]:
        numbers = isinstance(X, np.ndarray) and X.ndim == 2 and X.shape[1] >= 2 and X.dtype.kind in "iuf"
        if numbers and np.isfinite(X).all():
            X = np.abs(8.0 * X[:, :2]).astype(np.int64)
        return super()._pairs(X)


@pytest.mark.filterwarnings("ignore")
def test_the_checks_of_scikit_learn_pass_except_those_named() -> None:
    """One test runs all checks. If each were a test, every process of a run would import
    scikit-learn to collect them.
    """
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    ran: set[str] = set()
    failed: dict[str, list[Exception]] = {}
    passed: set[str] = set()
    for estimator, check in checks.estimator_checks_generator(OfNumbers("clicks_sgd")):
        name = check.func.__name__
        ran.add(name)
        try:
            check(estimator)
        except SkipTest:
            continue
        except Exception as error:
            failed.setdefault(name, []).append(error)
        else:
            passed.add(name)
    assert {name: errors for name, errors in failed.items() if name not in DOES_NOT_APPLY} == {}
    assert not passed & DOES_NOT_APPLY.keys()
    assert DOES_NOT_APPLY.keys() <= ran and len(ran) > 30
