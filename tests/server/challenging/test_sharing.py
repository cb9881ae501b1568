"""A challenger that answers a share of the users: who gets it, what it answers, what counts."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import livefactor
from livefactor.errors import AlreadyExists, InvalidArgument
from livefactor.results.contest import Share
from livefactor_server.challenging.outcomes import ITEMS_MAX, Outcomes
from livefactor_server.challenging.sharing import Terms
from livefactor_server.cli.app import app
from livefactor_server.model import spec_codec
from livefactor_server.snapshots.replay import challenger_store

USERS, ITEMS = 200, 30
SPEC = {"k": 8, "history": {"users": 32, "items": 32}, "counts": {"neighbors": 16, "span": 8}}


def share_of(models: livefactor.Models) -> Share:
    share = models.challengers("shop").share
    assert share is not None
    return share


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "the condition did not come true"
        time.sleep(0.02)


def answers(server: livefactor.Local, users: range) -> dict[int, tuple[str, list[float]]]:
    """The spec that answers each user, and the scores of some items."""
    found = {}
    with server.scorer(model="shop") as scorer:
        for user in users:
            answer = scorer.score(user, np.arange(ITEMS))[0]
            found[user] = answer.spec_id, answer.scores.tolist()
    return found


def test_a_share_of_the_users_gets_the_challenger_until_it_is_settled(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    with livefactor.local("clicks", data=tmp_path) as server, server.models() as models:
        models.create("shop", "clicks", **SPEC)
        with server.producer("p", model="shop") as producer:
            producer.push(rng.integers(0, USERS, 3000), rng.integers(0, ITEMS, 3000)).result()
            with pytest.raises(InvalidArgument, match=r"share: expected 0\.\.0\.5"):
                models.challenge("shop", share=0.7, k=4)
            models.challenge("shop", share=0.3, challenger="small", k=4)
            with pytest.raises(AlreadyExists, match="'small' has a share"):
                models.challenge("shop", share=0.1, challenger="other", k=6)
            wait_for(lambda: share_of(models).is_ready)
            champion, challenger = (each.spec_id for each in share_of(models).variants)
            first = answers(server, range(USERS))
            got = {user for user, (spec, _) in first.items() if spec == challenger}
            assert {spec for spec, _ in first.values()} == {champion, challenger}
            assert 0.15 * USERS < len(got) < 0.45 * USERS
            assert answers(server, range(USERS)) == first
            with server.scorer(model="shop") as scorer:
                # A call with users of both variants, and one for similar items, get the champion.
                inside, outside = min(got), min(set(range(USERS)) - got)
                assert scorer.score([inside, outside], np.arange(3))[0].spec_id == champion
                assert scorer.similar(3, k=2)[0].spec_id == champion
                lists = {user: scorer.recommend(user, k=3)[0] for user in (inside, outside)}
            hit, miss = (
                int(lists[inside].item_ids[0]),
                max(set(range(ITEMS)) - set(lists[outside].item_ids.tolist())),
            )
            ack = producer.push([inside, outside], [hit, miss]).result()
            wait_for(lambda: share_of(models).records_behind == 0)
            shown = [(each.lists, each.events, each.hits) for each in share_of(models).variants]
            assert shown == [(1, 1, 0), (1, 1, 1)]
            # The challenger answers at the position that the caller asks for, or the champion does.
            with server.scorer(model="shop") as scorer:
                assert (
                    scorer.score(inside, [0], min_position=ack.position).position.revision
                    >= ack.position.revision
                )
        screen = CliRunner().invoke(app, ["models", "challengers", "shop", "--target", server.target])
        assert "small answers, 30.0% of the users" in screen.output
        before = answers(server, range(USERS))
        last = models.describe("shop").position.revision
    # The next start need not learn the log again for the challenger.
    (manifest,) = challenger_store(tmp_path / "models" / "shop").list()
    assert (spec_codec.id_of(manifest.spec), manifest.revision) == (challenger, last)
    with livefactor.local("clicks", data=tmp_path) as again, again.models() as models:
        wait_for(lambda: share_of(models).is_ready)
        # The salt is kept, and the challenger has learned the log to the same bits.
        assert answers(again, range(USERS)) == before
        models.settle("shop", "small")
        assert models.challengers("shop").share is None
        after = answers(again, range(USERS))
        assert {spec for spec, _ in after.values()} == {challenger}
        assert all(after[user][1] == before[user][1] for user in got)


def test_each_salt_chooses_other_users() -> None:
    first, second = (Terms("x", b"", 0.2, salt * 16) for salt in ("00", "01"))
    chosen = [{user for user in range(5000) if terms.includes(user)} for terms in (first, second)]
    assert all(800 < len(users) < 1200 for users in chosen)
    assert len(chosen[0] & chosen[1]) < 350


def test_the_last_list_of_a_user_counts_and_lists_are_limited() -> None:
    outcomes, users = Outcomes("champion", "challenger"), np.array([7], np.uint64)
    items = np.arange(ITEMS_MAX + 50, dtype=np.uint64)
    outcomes.answered(0, users, items, np.array([0, len(items)]))
    assert outcomes.happened(np.array([7, 7, 8]), np.array([3, ITEMS_MAX, 3])) == [(2, 1), (0, 0)]
    outcomes.answered(1, users, items[:2], np.array([0, 2]))
    assert outcomes.happened(np.array([7, 7]), np.array([1, 3])) == [(0, 0), (2, 1)]
    champion, challenger = outcomes.variants
    assert (champion.answers, champion.events, champion.hits) == (1, 2, 1)
    assert (challenger.answers, challenger.events, challenger.hits) == (1, 2, 1)
