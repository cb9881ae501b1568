"""Explanations of scores: their bits, their parts, the events and the updates that they name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pytest
import typer

from livefactor import Auditor, FailedPrecondition, InvalidArgument, Models, Producer, Scorer
from livefactor.in_process import local
from livefactor.results.explanation import ScoreExplanation
from livefactor_kernels.numbers.sums import dot
from livefactor_server.cli.app import app
from livefactor_server.hosting import explaining

PRESETS = ("clicks_sgd", "purchases", "ratings", "auto")
SPEC: dict[str, Any] = {"k": 8, "limits": {"users_max": 1000, "items_max": 1000}}
BATCHES, DAY_S = 6, 86_400


def events(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    users, items = rng.integers(1, 20, 40), rng.integers(100, 130, 40)
    users[0], items[0] = 7, 105
    return users, items, rng.integers(1, 6, 40).astype(np.float32)


class Place:
    """A server with a model of each preset, and the scores that it gave at each revision."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = local(None, folder).__enter__()
        self.scores: dict[str, dict[int, np.ndarray]] = {}
        with Models(channel=self.server.channel) as models:
            for name in PRESETS:
                models.create(name, name, **SPEC)
        for name in PRESETS:
            self.scores[name] = {}
            with Producer(producer_id="shop", channel=self.server.channel, model=name) as producer:
                for seed in range(BATCHES):
                    users, items, values = events(seed)
                    if name != "ratings":
                        values = np.ones(40, np.float32)
                    ack = producer.push(
                        users, items, values=values, times=np.full(40, DAY_S * (20_000 + seed))
                    ).result(30)
                    self.scores[name][ack.position.revision] = self.score(name, 7, ITEMS)

    def score(self, model: str, user: int, items: Any) -> np.ndarray:
        with Scorer(channel=self.server.channel, model=model) as scorer:
            return scorer.score(user, items).scores

    def explain(self, model: str, user: Any, item: Any, **options: Any) -> ScoreExplanation:
        with Auditor(channel=self.server.channel, model=model) as auditor:
            return auditor.explain(user, item, **options)


ITEMS = [105, 110, 129]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("explain"))
    yield made
    made.server.__exit__(None, None, None)


def same_bits(one: Any, other: Any) -> bool:
    return np.float32(one).tobytes() == np.float32(other).tobytes()


def check_terms(found: ScoreExplanation) -> None:
    total = ((found.mean + found.user_bias) + found.item_bias) + found.product
    assert same_bits(total + found.gain, found.score)
    padded = np.zeros((2, 16), np.float32)
    padded[0, : len(found.user_factors)], padded[1, : len(found.item_factors)] = (
        found.user_factors,
        found.item_factors,
    )
    assert same_bits(dot(padded[0], padded[1]), found.product)


@pytest.mark.parametrize("name", PRESETS)
def test_the_terms_give_the_score_to_the_bit_at_every_revision(place: Place, name: str) -> None:
    for revision, scores in place.scores[name].items():
        for item, score in zip(ITEMS, scores, strict=True):
            found = place.explain(name, 7, item, revision=revision, events_max=2)
            assert found.position.revision == revision and found.user_known
            assert same_bits(found.score, score)
            check_terms(found)
    now = place.explain(name, 7, 105)
    assert same_bits(now.score, place.scores[name][now.position.revision][0])


@pytest.mark.parametrize("name", PRESETS)
def test_unknown_users_and_items_are_explained(place: Place, name: str) -> None:
    for user, item in ((999, 105), (7, 9999), (999, 9999), ("zoe", "chair")):
        found = place.explain(name, user, item)
        check_terms(found)
        assert (found.user_known, found.item_known) == (user == 7, item == 105)
        if isinstance(user, int):
            assert same_bits(found.score, place.score(name, user, [item])[0])
        assert found.remembered_events == len(found.events) or user == 7


def test_the_experts_of_a_mix_add_up_to_the_score(place: Place) -> None:
    for item in (105, 110, 129):
        found = place.explain("auto", 7, item)
        assert [part.name for part in found.parts][::6] == ["factors", "repeats"]
        assert len(found.parts) == 10
        assert sum(part.amount for part in found.parts) == pytest.approx(float(found.score), abs=1e-4)
        for part in found.parts:
            assert part.weight >= 0 and np.isfinite(part.amount)
    assert found.parts[-3].value == pytest.approx(float(found.item_bias))
    assert [part.name for part in found.parts[-2:]] == ["similar users", "random walks"]


def test_the_parts_of_a_gain(place: Place) -> None:
    found = place.explain("purchases", 7, 105)
    assert sum(part.amount for part in found.parts) == pytest.approx(float(found.gain), abs=1e-6)
    assert place.explain("clicks_sgd", 7, 105).parts == ()


@pytest.mark.parametrize("name", ["purchases", "auto"])
def test_the_effect_of_an_event_is_what_the_score_loses_without_it(place: Place, name: str) -> None:
    found = place.explain(name, 7, 105, events_max=1024)
    assert len(found.events) == found.remembered_events >= 6
    effects = [abs(each.effect) for each in found.events]
    assert effects == sorted(effects, reverse=True) and effects[0] > 0
    own = [each for each in found.events if each.item_id == 105]
    assert len(own) >= BATCHES and all(each.value == 1 for each in own)
    if name == "purchases":
        # With counts.repeat the item itself carries its score most.
        assert found.events[0].item_id == 105 and found.events[0].effect > 0
    few = place.explain(name, 7, 105, events_max=2)
    ages = sorted(each.visits_ago for each in found.events)
    assert sorted(each.visits_ago for each in few.events) == ages[:2]
    by_event = {(each.item_id, each.visits_ago): each.effect for each in found.events}
    for each in few.events:
        assert each.effect == pytest.approx(by_event[each.item_id, each.visits_ago], abs=1e-5)


def test_the_updates_of_a_pair(place: Place) -> None:
    found = place.explain("clicks_sgd", 7, 105, updates_max=4)
    revisions = list(place.scores["clicks_sgd"])
    assert [each.revision for each in found.updates] == revisions[::-1][:4]
    assert found.searched_from == revisions[-4]
    for update in found.updates:
        users, items, _ = events(revisions.index(update.revision))
        counted = (
            int((users == 7).sum()),
            int((items == 105).sum()),
            int(((users == 7) & (items == 105)).sum()),
        )
        assert (update.user_rows, update.item_rows, update.both_rows) == counted
        assert (update.kind, update.producer_id) == ("INTERACTIONS", "shop")
        assert update.sequence == revisions.index(update.revision) + 1 and update.time_us > 0
    early = place.explain("clicks_sgd", 7, 105, revision=revisions[1])
    assert [each.revision for each in early.updates] == revisions[1::-1]
    none = place.explain("clicks_sgd", 12_345, 54_321)
    assert none.updates == () and none.searched_from == 1


def test_the_search_of_the_log_is_bounded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explaining, "SEARCHED_MAX", 3)
    monkeypatch.setattr(explaining, "WINDOW", 2)
    found = place.explain("clicks_sgd", 7, 105)
    revisions = list(place.scores["clicks_sgd"])
    assert [each.revision for each in found.updates] == revisions[-3:][::-1]
    assert found.searched_from == revisions[-3]


def test_what_cannot_be_explained_is_refused(place: Place) -> None:
    with pytest.raises(FailedPrecondition, match="the model is at revision"):
        place.explain("auto", 7, 105, revision=10**6)
    with pytest.raises(InvalidArgument, match="events_max: at most 1024"):
        place.explain("auto", 7, 105, events_max=5000)


def test_the_command(place: Place) -> None:
    target = place.server.target
    runner, command = click.testing.CliRunner(), typer.main.get_command(app)
    asked = ["explain", "--user", "7", "--item", "105", "-m", "auto", "--target", target]
    shown = runner.invoke(command, [*asked, "--json"])
    assert shown.exit_code == 0, shown.output
    fields = json.loads(shown.stdout)
    found = place.explain("auto", 7, 105)
    assert same_bits(fields["score"], found.score) and len(fields["parts"]) == 10
    assert np.array_equal(np.array(fields["user_factors"], np.float32), found.user_factors)
    text = runner.invoke(command, asked)
    assert text.exit_code == 0 and f"score {found.score}" in text.stdout
    assert "popularity" in text.stdout and "INTERACTIONS" in text.stdout
    missing = runner.invoke(command, [*asked, "--revision", "999999"])
    assert missing.exit_code == 1 and "the model is at revision" in missing.output
