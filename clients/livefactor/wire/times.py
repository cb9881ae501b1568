"""Times of callers become microseconds since 1970-01-01 UTC. This is the one rule for every way in.

An integer counts seconds since 1970 UTC, or another unit that the caller names. Datetimes,
`datetime64` of any unit, Arrow timestamps and dates, and strings in ISO 8601 say their unit
themselves. Without a zone they count as UTC. 0, which is the first moment of 1970, stands for an
unknown time. Any other time outside 1990..2099 is refused, because it is almost always a wrong
unit: the error names the unit that fits.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from livefactor.errors import ColumnError
from livefactor.wire.arrays import TIMES, first_missing, first_true, is_missing, require_rows, to_numpy

UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
"""How many of each unit a second has."""

YEARS = 1990, 2100
"""A time is at or after the start of the first year, and before the start of the second one."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_S, _END_S = (int((datetime(year, 1, 1, tzinfo=UTC) - _EPOCH).total_seconds()) for year in YEARS)
_SECOND_US = 1_000_000


def as_times(
    name: str, times: Any, n: int, unit: str = "s", remedy: str = "pass them as datetime64[{unit}]"
) -> npt.NDArray[np.int64]:
    """Convert times to int64[n] microseconds since 1970-01-01 UTC. One time stands for all n rows.

    unit: of integers, one of `UNITS`. Parts of a microsecond are cut off. remedy: how a caller
    names the unit that fits, for the error. Raises ColumnError for another type or length, a
    missing time, or a time outside `YEARS`.
    """
    if isinstance(times, str | datetime | int | np.integer | np.datetime64) and not isinstance(times, bool):
        return np.repeat(as_times(name, [times], 1, unit, remedy), n)
    row = first_missing(times)
    if row is not None:
        raise ColumnError.at(name, row, "the time is missing")
    has_dtype = "datetime64" in str(getattr(times, "dtype", ""))
    if has_dtype and not isinstance(times, np.ndarray) and hasattr(times, "to_numpy"):
        # Without the dtype, a pandas column with a zone would give objects.
        times = times.to_numpy(dtype="datetime64[us]")
    array = to_numpy(name, times)
    require_rows(name, np.atleast_1d(array), n)
    if not n:
        return np.empty(0, TIMES)
    if array.dtype.kind in "iu":
        return _from_integers(name, array, unit, remedy)
    if array.dtype.kind == "M":
        return _checked(name, _from_datetime64(name, array))
    values = list(times) if isinstance(times, list | tuple) else array.tolist()
    return _checked(name, np.array([_microseconds(name, *each) for each in enumerate(values)], TIMES))


def _from_integers(name: str, numbers: npt.NDArray[Any], unit: str, remedy: str) -> npt.NDArray[np.int64]:
    row = first_true(~_within(numbers, unit))
    if row is None:
        if UNITS[unit] > _SECOND_US:
            return np.ascontiguousarray(numbers // (UNITS[unit] // _SECOND_US), TIMES)
        return np.ascontiguousarray(numbers, TIMES) * (_SECOND_US // UNITS[unit])
    got = f"expected a time of {YEARS[0]}..{YEARS[1] - 1}, got {numbers[row]} {unit}"
    for other, per_second in UNITS.items():
        if other != unit and _within(numbers[row : row + 1], other)[0]:
            day = datetime.fromtimestamp(int(numbers[row]) // per_second, UTC).date()
            got += f"; in {other} it is {day}: {remedy.format(unit=other)}"
    raise ColumnError.at(name, row, got)


def _within(numbers: npt.NDArray[Any], unit: str) -> npt.NDArray[np.bool_]:
    if numbers.dtype.itemsize < 8:
        numbers = numbers.astype(np.int64)
    within = (numbers >= _FIRST_S * UNITS[unit]) & (numbers < _END_S * UNITS[unit])
    return np.asarray(within | (numbers == 0))


def _from_datetime64(name: str, array: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    row = first_true(np.isnat(array))
    if row is not None:
        raise ColumnError.at(name, row, "the time is missing")
    return array.astype("datetime64[us]").view(np.int64)


def _checked(name: str, microseconds: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    outside = (microseconds < _FIRST_S * _SECOND_US) | (microseconds >= _END_S * _SECOND_US)
    row = first_true(outside & (microseconds != 0))
    if row is not None:
        moment = np.datetime64(int(microseconds[row]), "us")
        raise ColumnError.at(name, row, f"expected a time of {YEARS[0]}..{YEARS[1] - 1}, got {moment}")
    return np.ascontiguousarray(microseconds, TIMES)


def _microseconds(name: str, row: int, time: Any) -> int:
    if is_missing(time) or time == "":
        raise ColumnError.at(name, row, f"the time is missing: got {time!r}")
    if isinstance(time, np.datetime64):
        return int(time.astype("datetime64[us]").view(np.int64))
    moment = time
    if isinstance(time, str):
        try:
            moment = datetime.fromisoformat(time)
        except ValueError:
            raise ColumnError.at(name, row, f"expected a time in ISO 8601, got {time!r}") from None
    if not isinstance(moment, datetime) and isinstance(moment, date):
        moment = datetime(moment.year, moment.month, moment.day)
    if not isinstance(moment, datetime):
        raise ColumnError.at(name, row, f"expected whole numbers, datetimes or ISO 8601, got {time!r}")
    zoned = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    since = zoned - _EPOCH
    return (since.days * 86_400 + since.seconds) * _SECOND_US + since.microseconds
