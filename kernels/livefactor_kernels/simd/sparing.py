"""A process whose models take little: less memory and less CPU time, at the cost of speed."""

from __future__ import annotations

_sparing = False


def spare() -> None:
    """Has models that are made from now on spare memory and CPU time. Their bits stay the same.

    Their arrays have pages of 4 KiB, so that a small model takes no 2 MiB for each of them. No two
    threads share a record, because such threads wait for each other without rest.
    """
    global _sparing
    _sparing = True


def is_sparing() -> bool:
    """Whether models spare memory and CPU time."""
    return _sparing
