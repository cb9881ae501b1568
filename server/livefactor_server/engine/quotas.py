"""What one producer may ask of a model in a time: a bucket of tokens for each producer.

A bucket fills steadily up to its size. A request may be made while the bucket is not empty, and
takes what it costs, also more than there is. So a request of any size is possible, and the next one
waits the longer. Quotas use a clock, so they decide only what enters the log, and no state.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from livefactor_server.engine.metrics import PACED
from livefactor_server.statuses import paced

PAYERS_MAX = 4096
"""Maximum number of producers with a bucket of their own. Further ones share one bucket."""

_OTHERS = b""


class Quota:
    """The buckets of all producers of a model. Thread-safe."""

    def __init__(self, amount: float, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Buckets of `amount` tokens, which fill in `seconds`. `clock` gives seconds."""
        self._size, self._rate, self._clock = float(amount), amount / seconds, clock
        # Payer -> the time at which its bucket is full again.
        self._full_at: dict[bytes, float] = {}
        self._lock = threading.Lock()

    def left(self, payer: bytes) -> float:
        """The tokens of a producer. It is below 0 if the producer took more than there were."""
        with self._lock:
            missing_s = self._full_at.get(payer, 0.0) - self._clock()
            if payer not in self._full_at and len(self._full_at) >= PAYERS_MAX:
                missing_s = self._full_at.get(_OTHERS, 0.0) - self._clock()
        return self._size - max(0.0, missing_s) * self._rate

    def wait_s(self, payer: bytes) -> float:
        """Seconds until the producer has a token. 0 if it has one now."""
        left = self.left(payer)
        return 0.0 if left > 0 else (1.0 - left) / self._rate

    def take(self, payer: bytes, tokens: float) -> None:
        """Takes tokens of a producer."""
        if tokens <= 0:
            return
        with self._lock:
            now = self._clock()
            if payer not in self._full_at and len(self._full_at) >= PAYERS_MAX:
                self._forget_full(now)
                if len(self._full_at) >= PAYERS_MAX:
                    payer = _OTHERS
            begin = max(now, self._full_at.get(payer, now))
            self._full_at[payer] = begin + tokens / self._rate

    def _forget_full(self, now: float) -> None:
        """Drops the full buckets, which are as good as new ones."""
        self._full_at = {payer: at for payer, at in self._full_at.items() if at > now}


@dataclass(frozen=True, slots=True)
class QuotaSettings:
    """What one producer or one user may send to a model. 0 sets no limit.

    Attributes:
        rows_per_s: rows in a second, over the long run.
        new_ids_per_minute: new users and items together.
        user_rows_per_minute: events of one user, whoever sends them.
    """

    rows_per_s: float = 0.0
    new_ids_per_minute: int = 0
    user_rows_per_minute: int = 0


class Quotas:
    """The quotas of the producers of one model.

    Attributes:
        new_ids: how many users and items a producer may add, or None.
        user_rows_per_minute: how many events a user may have, or 0.
    """

    def __init__(self, model: str, settings: QuotaSettings) -> None:
        rows, ids = settings.rows_per_s, settings.new_ids_per_minute
        self._rows = Quota(rows, 1.0) if rows else None
        self._text = f"rate: the producer sends more than {rows:g} rows a second"
        self._paced = PACED.labels(model)
        self.new_ids = Quota(ids, 60.0) if ids else None
        self.user_rows_per_minute = settings.user_rows_per_minute

    def wait_s(self, payer: bytes) -> float:
        """Seconds that the next batch of a producer must wait."""
        wait_s = self._rows.wait_s(payer) if self._rows is not None else 0.0
        if wait_s:
            self._paced.inc()
        return wait_s

    def check(self, payer: bytes) -> None:
        """Checks that the next batch of a producer need not wait.

        Raises:
            Refused: RESOURCE_EXHAUSTED, with the time after which to try again.
        """
        if wait_s := self.wait_s(payer):
            raise paced(self._text, wait_s)

    def take(self, payer: bytes, rows: int) -> None:
        """Counts the rows of a batch."""
        if self._rows is not None:
            self._rows.take(payer, rows)
