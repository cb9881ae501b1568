"""The counts of the battery: how often something was done to a model, and what came of it.

Tests with the marker `torture` count through the fixture `tally`. `make torture` runs them at full
size, prints the table and writes it as JSON. `amount` gives the size: the short one of the suite,
or that of an environment variable.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

PLANTS = (
    "no sync of files",
    "no sync of folders",
    "answer before the sync",
    "sync again after an error",
    "checksums not checked",
    "producers not kept",
    "applied before the log",
    "rows changed under readers",
    "quota off",
    "a role may do more",
    "masks off",
    "clip off",
    "noise off",
)
"""The bugs that tests plant. Each must be caught by a test."""


@dataclass(slots=True)
class Row:
    """How often something was done, and how many faults came of it.

    `undetected` counts changed bytes that nobody noticed.
    """

    often: int = 0
    lost: int = 0
    twice: int = 0
    undetected: int = 0


class Tally:
    """The counts of one run."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.caught: set[str] = set()

    def add(self, what: str, often: int = 1, *, lost: int = 0, twice: int = 0, undetected: int = 0) -> None:
        """Count that something was done `often` times, and its faults."""
        row = self.rows.setdefault(what, Row())
        row.often += often
        row.lost += lost
        row.twice += twice
        row.undetected += undetected

    def catch(self, plant: str) -> None:
        """Count that a planted bug was caught. It must be one of `PLANTS`."""
        assert plant in PLANTS, plant
        self.caught.add(plant)

    def figures(self) -> dict[str, object]:
        """The counts as plain values."""
        rows = self.rows.values()
        named = {key: self.rows[what].often for key, what in _NAMED.items() if what in self.rows}
        return named | {
            "planted": len(PLANTS),
            "planted_caught": len(self.caught),
            "caught": sorted(self.caught),
            "acked_lost": sum(row.lost for row in rows),
            "applied_twice": sum(row.twice for row in rows),
            "undetected": sum(row.undetected for row in rows),
            "rows": {what: asdict(row) for what, row in sorted(self.rows.items())},
        }

    def lines(self) -> list[str]:
        """The closing table."""
        width = max(map(len, self.rows), default=0)
        head = f"{'what':{width}}  {'how often':>10}  {'lost':>6}  {'twice':>6}  {'undetected':>10}"
        body = [
            f"{what:{width}}  {row.often:>10,}  {row.lost:>6}  {row.twice:>6}  {row.undetected:>10}"
            for what, row in sorted(self.rows.items())
        ]
        missing = [plant for plant in PLANTS if plant not in self.caught]
        last = f"planted bugs caught: {len(self.caught)} of {len(PLANTS)}"
        return [head, *body, last + (f" (not: {', '.join(missing)})" if missing else "")]

    def save(self, path: Path) -> None:
        """Write the counts as JSON. What an earlier run did and this one did not stays.

        So a run of some of the tests measures its part anew.
        """
        known = json.loads(path.read_text()) if path.exists() else {}
        whole = Tally()
        whole.rows = {what: Row(**row) for what, row in known.get("rows", {}).items()} | self.rows
        whole.caught = self.caught | set(known.get("caught", ()))
        path.write_text(json.dumps(whole.figures(), indent=2, sort_keys=True) + "\n")


_NAMED = {
    "kills": "kill -9 under load",
    "power_cuts": "power cuts",
    "leader_kills": "kill -9 of a leader",
}


def amount(what: str, short: int) -> int:
    """How often a test does something: TORTURE_<WHAT> of the environment, or `short`."""
    return int(os.environ.get(f"TORTURE_{what}", short))
