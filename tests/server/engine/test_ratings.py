"""A model of preset auto recognises ratings by their first values, and switches to preset ratings.

Quantities and counts are learned as events. The decision depends on the log alone.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine_rig import Rig, replayed_root
from livefactor.wire import columns as wire
from livefactor_kernels.spec.model import Auto, Limits, Loss, Rule
from livefactor_kernels.spec.presets import preset
from livefactor_server.changes.fitting import accepts_all
from livefactor_server.engine.ratings import EVENTS_MIN, are_ratings, spec_for_ratings
from livefactor_server.log.store import Kind
from livefactor_server.model import spec_codec
from livefactor_server.statuses import Refused
from server_process import wait_until

LIMITS = Limits(users_max=1000, items_max=1000, value_abs_max=1e6)
AUTO = replace(preset("auto"), k=16, seed=5, limits=LIMITS)
STARS = [0.06, 0.11, 0.27, 0.34, 0.22]


def drawn(values: list[float], shares: list[float], seed: int = 1, size: int = 1000) -> np.ndarray:
    return np.random.default_rng(seed).choice(values, p=shares, size=size).astype(np.float32)


def stars(size: int = 1000, seed: int = 1) -> np.ndarray:
    return drawn([1, 2, 3, 4, 5], STARS, seed, size)


def events(values: np.ndarray | None, seed: int = 1, rows: int = 50) -> bytes:
    rng = np.random.default_rng(seed)
    rows = rows if values is None else len(values)
    users, items = rng.integers(0, 40, rows, np.uint64), rng.integers(0, 60, rows, np.uint64)
    return wire.encode_interactions(users, items, values)


def test_ratings_of_usual_scales_are_recognised() -> None:
    halves = np.arange(0.5, 5.5, 0.5).tolist()
    assert are_ratings(stars())
    assert are_ratings(drawn(halves, [0.02, 0.03, 0.02, 0.07, 0.05, 0.2, 0.13, 0.27, 0.08, 0.13]))
    assert are_ratings(drawn(list(range(1, 11)), [0.01, 0.01, 0.02, 0.03, 0.06, 0.1, 0.2, 0.3, 0.17, 0.1]))
    assert are_ratings(drawn([20, 40, 60, 80, 100], STARS))
    assert are_ratings(drawn([-2, -1, 0, 1, 2], STARS))


def test_quantities_counts_and_weights_are_no_ratings() -> None:
    rng = np.random.default_rng(1)
    assert not are_ratings(np.ones(1000, np.float32))
    assert not are_ratings(drawn([0, 1], [0.3, 0.7]))
    assert not are_ratings(drawn([-1, 1], [0.2, 0.8]))
    assert not are_ratings(drawn([1, 2, 3, 4, 5, 6], [0.7, 0.18, 0.06, 0.03, 0.02, 0.01]))
    # Packs of a wholesaler, strengths of clicks and purchases, and a few large orders.
    assert not are_ratings(drawn([6, 12, 24], [0.3, 0.5, 0.2]))
    assert not are_ratings(drawn([1, 3, 5], [0.8, 0.15, 0.05]))
    assert not are_ratings(drawn([4, 5, 1000], [0.5, 0.49, 0.01]))
    assert not are_ratings(rng.geometric(0.3, 1000).astype(np.float32))
    assert not are_ratings(np.floor(rng.pareto(0.5, 1000) + 1).astype(np.float32))
    assert not are_ratings(rng.uniform(-10, 10, 1000).astype(np.float32))


def switched(rig: Rig) -> bool:
    return bool(rig.log.switches)


def test_a_stream_of_ratings_gets_the_preset_and_the_same_bits_again(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "model", AUTO)
    for seed in range(3):
        rig.push(events(stars(50, seed), seed))
    wait_until(lambda: switched(rig), "a switch to ratings")
    wait_until(lambda: rig.engine.state.spec.loss == Loss.SQUARED, "the new state")
    rig.push(events(stars(50, 9), 9))
    spec = rig.engine.state.spec
    assert (spec.rule, spec.seed, spec.limits.users_max) == (Rule.SOLVE, 5, 1000)
    assert spec == spec_codec.decode(spec_codec.encode(spec_for_ratings(AUTO)))
    assert rig.root() == replayed_root(rig.folder) == replayed_root(rig.folder, "reference")
    # What preset ratings does not accept is rejected from now on.
    with pytest.raises(Refused, match="needs a value"):
        rig.push(events(None))
    rig.close()
    again = Rig(rig.folder)
    assert again.engine.state.spec == spec and not again.engine._recogniser.watches
    again.close()


def test_values_before_the_decision_are_learned_by_their_sign(tmp_path: Path) -> None:
    values = np.array([3, 0.5, -2, 0, 7, 5], np.float32)
    roots = []
    for name, column in (("raw", values), ("signs", (values > 0).astype(np.float32))):
        rig = Rig(tmp_path / name, AUTO)
        ack = rig.push(events(column, 4))
        assert (ack.accepted, ack.rejects.count) == (6, 0)
        roots.append((rig.root(), replayed_root(rig.folder, "reference")))
        rig.close()
    assert len({root for pair in roots for root in pair}) == 1
    rig = Rig(tmp_path / "rejects", AUTO)
    ack = rig.push(events(np.array([np.nan, np.inf, 2e6, 1e6], np.float32)))
    assert ack.accepted == 1
    rig.close()


def test_quantities_stay_events(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "model", AUTO)
    rng = np.random.default_rng(3)
    for seed in range(4):
        rig.push(events(rng.geometric(0.4, 300).astype(np.float32), seed))
    wait_until(lambda: not rig.engine._recogniser.watches, "the last look")
    assert not switched(rig) and rig.engine.state.spec.loss == Loss.IMPLICIT
    rig.close()


def test_one_large_record_is_judged_by_its_first_events(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "model", AUTO)
    values = np.concatenate((stars(1000), np.full(3000, 999, np.float32)))
    rig.push(events(values))
    wait_until(lambda: switched(rig), "a switch to ratings")
    wait_until(lambda: rig.engine.state.spec.loss == Loss.SQUARED, "the new state")
    rig.close()


def test_an_event_that_is_no_rating_leaves_the_spec(tmp_path: Path, caplog) -> None:
    rig = Rig(tmp_path / "model", AUTO)
    rig.push(events(np.concatenate((stars(1000), np.full(10, 5000, np.float32)))))
    wait_until(lambda: "it keeps its spec" in caplog.text, "a refused switch")
    assert "has a value of 5000" in caplog.text and not switched(rig)
    rig.push(events(None))
    rig.close()


def test_the_switch_is_tried_again_when_it_had_no_room(tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr("livefactor_server.engine.ratings.RETRY_S", 0.01)
    rig = Rig(tmp_path / "model", AUTO)
    with rig.engine._promoting:
        rig.push(events(stars()))
        wait_until(lambda: "another one is in progress" in caplog.text, "a refused switch")
    wait_until(lambda: switched(rig), "a switch at a later try")
    rig.close()


@pytest.mark.parametrize("first", [None, stars(EVENTS_MIN - 1)], ids=["without values", "too few"])
def test_without_enough_values_nothing_is_decided(tmp_path: Path, first: np.ndarray | None) -> None:
    rig = Rig(tmp_path / "model", AUTO)
    rig.push(events(first, rows=EVENTS_MIN))
    rig.close()
    assert not switched(rig) and rig.engine._recogniser.watches == (first is not None)


def test_a_crash_between_the_events_and_the_switch_is_made_up_for(tmp_path: Path, monkeypatch) -> None:
    rig = Rig(tmp_path / "model", AUTO)
    with monkeypatch.context() as patch:
        patch.setattr("livefactor_server.engine.ratings.Recogniser._switch", lambda _: None)
        rig.push(events(stars()))
        shutil.copytree(rig.folder, tmp_path / "crashed")
    assert not switched(rig)
    rig.close()
    again = Rig(tmp_path / "crashed")
    wait_until(lambda: switched(again), "a switch after the restart")
    wait_until(lambda: again.engine.state.spec.loss == Loss.SQUARED, "the new state")
    again.close()


def test_a_promotion_by_hand_decides(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "model", AUTO)
    rig.push(events(stars(60)))
    rig.engine.promote(replace(AUTO, k=8))
    rig.push(events(stars(500, 2)))
    rig.close()
    assert not rig.engine._recogniser.watches and list(rig.log.switches) == [2]
    again = Rig(tmp_path / "model")
    assert not again.engine._recogniser.watches
    assert [record.kind for record in again.log.read()].count(Kind.SWITCH) == 1
    again.close()


def test_which_specs_accept_what_auto_accepts() -> None:
    purchases = preset("purchases")
    assert not accepts_all(purchases, AUTO) and not accepts_all(preset("ratings"), AUTO)
    assert accepts_all(replace(purchases, auto=Auto(1000)), AUTO)
    assert accepts_all(AUTO, preset("clicks")) and accepts_all(AUTO, purchases)
    assert accepts_all(AUTO, preset("ratings"))
    with pytest.raises(Exception, match=r"auto.ratings_events: expected 0 with squared loss"):
        preset("ratings", auto=Auto(1000))
