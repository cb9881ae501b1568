"""A floor under the number of judged events an hour.

A share of the records is too few where records are rare, and where they are large: a bulk load of
two million events is 31 records. The floor is an allowance, which grows with the time that the log
gives its records, and which every judged event reduces. While some of it is left, more is judged
than the share. Time of the log, and not of the clock, so that a replay judges the same events.
"""

from __future__ import annotations

HOUR_US = 3_600_000_000


class Floor:
    """An allowance that is full at first, and refills within an hour."""

    def __init__(self, per_hour: int) -> None:
        self._per_hour, self._left, self._time_us = per_hour, float(per_hour), 0

    def left(self, time_us: int) -> int:
        """What is left at a time, microseconds since 1970. Time that goes back adds nothing."""
        if time_us > self._time_us:
            if self._time_us:
                grown = self._left + self._per_hour * (time_us - self._time_us) / HOUR_US
                self._left = min(float(self._per_hour), grown)
            self._time_us = time_us
        return int(self._left)

    def take(self, events: int) -> None:
        """Reduces the allowance by events that were judged, down to 0."""
        self._left = max(0.0, self._left - events)
