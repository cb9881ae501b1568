"""A contest over a log: what is judged, what is learned, and what is left behind."""

from __future__ import annotations

import io
import queue
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from contests import BAD, GOOD, OTHER, entry, events, hold, learner, push, rig, task
from engine_rig import state_root
from livefactor_server.challenging import keeping, worker
from livefactor_server.challenging.contestants import open_learner
from livefactor_server.challenging.messages import Go, Report
from livefactor_server.challenging.steps import STEP_EVENTS, Steps, judged_events
from livefactor_server.log.following import Follower
from livefactor_server.model import spec_codec
from livefactor_server.model.state import Meanings, ModelState
from livefactor_server.snapshots.replay import apply_groups, challenger_store, snapshot_store


def verdicts(reports: list) -> list:
    """The last report without what depends on the clock."""
    last = reports[-1]
    figures = tuple(replace(each, event_s=0.0) for each in last.figures)
    return [replace(last, cpu_s=0.0, is_waiting=False, figures=figures)]


def test_the_better_spec_wins_and_its_state_is_kept(tmp_path: Path) -> None:
    live = rig(tmp_path, BAD)
    push(live, *events(9_500))
    made = task(tmp_path, entry("bad", BAD), entry("good", GOOD), entry("other", OTHER))
    reports = hold(made, live.engine.revision)
    last = reports[-1]
    assert (last.over, last.winner, last.round) == (True, "good", 1)
    assert 9_000 <= last.learned < 9_600 and 1_500 < last.judged < 2_500
    champion, good, _ = last.figures
    assert (champion.standing, good.standing) == ("champion", "won")
    assert good.difference > 5 * good.error and good.mean == pytest.approx(champion.mean + good.difference)
    # The snapshot is the state that the log up to its revision gives with the winner's spec.
    log, body = live.log, spec_codec.encode(GOOD)
    kept = {manifest.spec: manifest for manifest in challenger_store(tmp_path).list()}
    assert set(kept) == {body, spec_codec.encode(OTHER)}
    manifest = kept[body]
    assert manifest.revision == last.revision
    state = ModelState.empty(GOOD, body, log.lineage, "cpu", next(log.read()).hash)
    apply_groups(state, Follower(tmp_path / "log", after=0).read(manifest.revision))
    assert state_root(state) == manifest.root_hash and state.log_hash == manifest.log_hash
    live.close()


def test_the_same_log_gives_the_same_verdict_however_it_is_read(tmp_path: Path) -> None:
    """Records are of all sizes. One run reads the log at once, the other little by little."""
    live = rig(tmp_path, BAD)
    push(live, *events(9_600, seed=3), sizes=None)
    made, last = task(tmp_path, entry("bad", BAD), entry("other", OTHER)), live.engine.revision
    at_once = hold(made, last)
    in_parts = hold(made, 1, 4, 5, last // 2, last - 1, last)
    assert verdicts(at_once) == verdicts(in_parts)
    assert at_once[-1].judged > 1_500 and not at_once[-1].winner
    live.close()


def test_a_snapshot_before_judging_saves_learning_and_changes_no_verdict(tmp_path: Path) -> None:
    live = rig(tmp_path, BAD)
    users, items = events(10_500, seed=4)
    push(live, users[:1_500], items[:1_500])
    with live.engine.view() as view:
        taken = snapshot_store(tmp_path).take(view)
    push(live, users[1_500:], items[1_500:])
    (first,) = next(Follower(tmp_path / "log").read(0))
    body = spec_codec.encode(BAD)
    for judge_from, revision in ((1_499, 0), (1_500, taken.revision)):
        opened = open_learner("bad", body, tmp_path, first, judge_from)
        assert opened.state.revision == revision
    made = task(tmp_path, entry("bad", BAD), entry("good", GOOD), judge_from=1_500)
    with_snapshot = hold(made, live.engine.revision)
    assert with_snapshot[-1].winner == "good"
    shutil.rmtree(tmp_path / "snapshots")
    assert verdicts(hold(made, live.engine.revision)) == verdicts(with_snapshot)
    live.close()


def test_a_dropped_challenger_learns_no_more_and_the_others_go_on_to_the_last_round(
    tmp_path: Path,
) -> None:
    live = rig(tmp_path, GOOD)
    push(live, *events(33_500))
    made = task(tmp_path, entry("good", GOOD), entry("bad", BAD), entry("same", learner(0.29)))
    last = hold(made, live.engine.revision)[-1]
    assert (last.over, last.winner, last.round, last.learned) == (True, "", 3, 33_000)
    champion, bad, same = last.figures
    assert (bad.standing, same.standing) == ("dropped", "running")
    assert bad.events != champion.events == same.events
    # The challenger that stays is kept, and the next contest need not learn it again.
    (manifest,) = challenger_store(tmp_path).list()
    body = spec_codec.encode(learner(0.29))
    assert (manifest.spec, manifest.revision) == (body, last.revision)
    (first,) = next(Follower(tmp_path / "log").read(0))
    assert open_learner("same", body, tmp_path, first, 33_000).state.revision == last.revision
    live.close()


def test_a_contest_that_begins_again_need_not_learn_what_was_before_judging(tmp_path: Path) -> None:
    live = rig(tmp_path, BAD)
    push(live, *events(20_000, seed=4))
    made = task(tmp_path, entry("bad", BAD), entry("other", OTHER), judge_from=9_000)
    assert not hold(made, live.engine.revision // 2)[-1].over
    (manifest,) = challenger_store(tmp_path).list()
    assert (manifest.spec, manifest.revision) == (spec_codec.encode(OTHER), 18)
    again = hold(made, live.engine.revision)
    shutil.rmtree(tmp_path / "challengers")
    assert verdicts(hold(made, live.engine.revision)) == verdicts(again)
    live.close()


def test_a_large_record_before_judging_shortens_no_round(tmp_path: Path) -> None:
    live = rig(tmp_path, BAD)
    users, items = events(13_500)
    push(live, users[:4_000], items[:4_000], sizes=4_000)
    push(live, users[4_000:], items[4_000:])
    last = hold(task(tmp_path, entry("bad", BAD), entry("good", GOOD)), live.engine.revision)[-1]
    assert (last.learned, last.winner) == (12_000, "good") and 1_800 < last.judged < 2_200
    live.close()


def test_the_newest_state_of_each_spec_is_kept(tmp_path: Path) -> None:
    live = rig(tmp_path, BAD)
    for seed in range(2):
        push(live, *events(500, seed=seed))
        keeping.keep(tmp_path, "m", [live.engine.state], live.log.hash_name)
    (manifest,) = challenger_store(tmp_path).list()
    assert (manifest.spec, manifest.revision) == (spec_codec.encode(BAD), live.engine.revision)
    live.close()


def test_contestants_may_hold_no_more_memory_than_the_setting(tmp_path: Path) -> None:
    live = rig(tmp_path, BAD)
    push(live, *events(1_200))
    made = task(tmp_path, entry("bad", BAD), entry("good", GOOD), memory=10_000)
    with pytest.raises(MemoryError, match="may hold 10000"):
        hold(made, live.engine.revision)
    live.close()


def test_a_contest_that_may_take_no_more_waits_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "ALLOWED_S_LEAST", 0.0)
    live = rig(tmp_path, BAD)
    push(live, *events(9_500))
    made, last = task(tmp_path, entry("bad", BAD), entry("good", GOOD)), live.engine.revision
    orders, out = queue.SimpleQueue[Go](), io.StringIO()
    for allowed in (0.0, None):
        orders.put(Go(last, allowed))
    held = worker.Worker(made, orders, out)
    assert held._follow()
    first, *_ = reports = [Report.from_line(line) for line in out.getvalue().splitlines()]
    assert [each.is_too_dear for each in reports].count(True) == 1
    waited = next(each for each in reports if each.is_too_dear)
    assert waited.is_waiting and waited.learned < 9_000 and waited.cpu_s > 0 and not first.over
    live.close()


@pytest.mark.parametrize("sizes", [1, 500, None])
def test_steps_end_where_the_log_says(tmp_path: Path, sizes: int | None) -> None:
    live = rig(tmp_path, BAD)
    users, items = events(3_000)
    push(live, users, items, sizes)
    ends = []
    for until in ([live.engine.revision], range(live.engine.revision, 0, -97)):
        steps, follower = Steps(1_000), Follower(tmp_path / "log", after=0)
        ends.append(
            [
                (step.revision, step.before, step.after)
                for revision in sorted(until)
                for records in follower.read(revision)
                for step in steps.add(records)
            ]
        )
    first, second = ends
    assert first == second
    assert first[0][2] >= 1_000 and all(after - before >= STEP_EVENTS for _, before, after in first)
    assert [before for _, before, _ in first[1:]] == [after for _, _, after in first[:-1]]
    live.close()


def test_judged_events_are_a_share_of_the_log_and_depend_on_it_alone(tmp_path: Path) -> None:
    live = rig(tmp_path, BAD)
    users, items = events(4_000)
    push(live, users, items, 1)
    parts = {}
    for step_events in (1, 4_000):
        found = []
        follower, steps = Follower(tmp_path / "log", after=0), Steps(0 if step_events == 1 else 4_000)
        for records in follower.read(live.engine.revision):
            for step in steps.add(records):
                found.append(judged_events(step, 5, 0.25, Meanings(BAD), True))
        parts[step_events] = np.concatenate([np.column_stack((each.users, each.items)) for each in found])
    few = parts[1]
    assert 0.2 < len(few) / 3_584 < 0.3
    assert (few == parts[4_000][: len(few)]).all()
    live.close()
