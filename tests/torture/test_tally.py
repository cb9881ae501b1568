"""The file of the battery's counts."""

from __future__ import annotations

import json
from pathlib import Path

from tally import PLANTS, Tally


def test_a_run_of_a_part_measures_it_anew_and_keeps_the_rest(tmp_path: Path) -> None:
    path, whole, part = tmp_path / "torture.json", Tally(), Tally()
    whole.add("kill -9 under load", 12, lost=1)
    whole.add("power cuts", 10)
    whole.catch(PLANTS[0])
    whole.save(path)
    assert json.loads(path.read_text())["acked_lost"] == 1
    part.add("kill -9 under load", 500)
    part.catch(PLANTS[1])
    part.save(path)
    found = json.loads(path.read_text())
    assert (found["kills"], found["power_cuts"], found["acked_lost"]) == (500, 10, 0)
    assert found["caught"] == sorted(PLANTS[:2]) and found["planted_caught"] == 2
