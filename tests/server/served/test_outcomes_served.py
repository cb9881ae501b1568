"""Score ids: what was served is found, and delayed outcomes learn the context as it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pytest
import typer.main

import livefactor
from livefactor.errors import NotFound
from livefactor_server.cli.app import app
from livefactor_server.engine.answering.journal import Claim
from livefactor_server.engine.answering.served import Served
from livefactor_server.log.store import Log
from livefactor_server.snapshots.audit import replay_model
from livefactor_server.snapshots.freezing import freeze_idle
from livefactor_server.snapshots.replay import replay
from livefactor_server.snapshots.store import root_hash_of

SPEC: dict[str, Any] = {"k": 8, "context": {"size": 40}}
ITEMS = np.arange(20)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[livefactor.Local]:
    with livefactor.local(None, tmp_path) as made:
        with made.models() as models:
            for name in ("m", "ideal"):
                models.create(name, "purchases_sgd", **SPEC)
        for name in ("m", "ideal"):
            with made.producer("first", model=name) as producer:
                for user in range(4):
                    producer.push(np.full(20, user), ITEMS, context=["start"])
        yield made


def run(server: livefactor.Local, *arguments: str) -> Any:
    command = typer.main.get_command(app)
    return click.testing.CliRunner().invoke(
        command, ["explain", "-m", "m", "--target", server.target, *arguments]
    )


def claim(served: Served, score_id: int, outcome: tuple[int, int, int], owner: Any) -> bool:
    (is_first,) = served.claim([Claim(score_id, outcome, owner)])
    return is_first


def learned(folder: Path) -> dict[str, str]:
    """The hashes of all that a model learned, without the answers to producers, by section."""
    log = Log.open(folder / "log", read_only=True)
    state = replay(folder, log, "cpu")
    log.close()
    found = root_hash_of(freeze_idle("m", state, "sha256"))[1]
    sections = {each.place.name: each.digest.hex() for each in found if each.place.name != "producers"}
    return {"revision": str(state.revision), **sections}


def test_what_was_served_is_found_and_explained(server: livefactor.Local) -> None:
    with server.scorer(model="m") as scorer:
        plain = scorer.recommend([1, 2], k=3)
        kept = scorer.recommend([1, 2], k=3, context=["hour:3", "phone"], keep=True)
        scores = scorer.score([3], [[4, 5]], keep=True)
    assert plain.score_ids.tolist() == [0, 0] and plain[0].score_id == 0
    score_id = kept[0].score_id
    assert score_id == kept[1].score_id != scores[0].score_id and score_id > 0
    with server.producer("later", model="m") as producer:
        producer.push([1], [2]).result(30)
    with server.auditor(model="m") as auditor:
        found = auditor.served(score_id)
        assert found.position == kept.position and found.context == ("hour:3", "phone")
        assert found.user_keys.tolist() == [1, 2] and found.item_keys.tolist() == kept.item_keys.tolist()
        assert found.scores.tobytes() == kept.scores.tobytes()
        for gone in (score_id ^ 1, 0):
            with pytest.raises(NotFound, match="does not keep"):
                auditor.served(gone)
    with server.auditor(model="ideal") as auditor, pytest.raises(NotFound):
        auditor.served(score_id)
    told = json.loads(run(server, "--score-id", str(score_id), "--json").stdout)
    assert told["revision"] == kept.position.revision and len(told["lists"]) == 2
    assert told["lists"][0]["scores"] == [float(str(each)) for each in kept[0].scores]
    assert "hour:3" in run(server, "--score-id", str(score_id)).stdout
    # With a user and an item, the score at that revision is explained.
    again = run(server, "--score-id", str(scores[0].score_id), "--user", "3", "--item", "4", "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["score"] == float(str(scores[0].scores[0]))
    for bad in ([], ["--user", "1"], ["--score-id", "5", "--item", "1"]):
        assert run(server, *bad).exit_code == 2


def test_late_duplicate_and_missing_outcomes_give_the_model_of_the_ideal_log(
    server: livefactor.Local, tmp_path: Path
) -> None:
    """The ideal log has each outcome once, with the context of its call, in order of arrival."""
    bags = [["hour:3"], ["hour:15", "phone"], {"query:tea": 2.0}]
    with server.scorer(model="m") as scorer:
        calls = [scorer.recommend([0, 1, 2], k=5, context=bags, keep=True)[0].score_id for _ in range(3)]
        shared = scorer.recommend([3], k=5, context=["shared"], keep=True)[0].score_id
    steps: list[tuple[list[int], list[int], list[int], list[Any]]] = [
        # users, items, score ids, and the context that each should have.
        ([0, 1], [5, 6], [calls[0], calls[0]], [bags[0], bags[1]]),
        # Other events come first: the outcome is late.
        ([2, 3], [7, 8], [0, 0], [{}, {}]),
        ([2, 3, 3], [7, 8, 9], [calls[0], shared, 0], [bags[2], ["shared"], {}]),
        # No call of this id, and a user who is not in the call.
        ([0, 3], [1, 2], [12345, calls[1]], [{}, {}]),
        ([1], [6], [calls[1]], [bags[1]]),
    ]
    with server.producer("p", model="m") as ours, server.producer("p", model="ideal") as ideal:
        for users, items, ids, context in steps:
            ack = ours.push(users, items, score_ids=ids).result(30)
            assert (ack.accepted, ack.rejected_count) == (len(users), 0)
            ideal.push(users, items, context=context if any(context) else None).result(30)
        # The same outcome again is rejected, and the other rows of its batch are learned.
        again = ours.push([0, 0], [5, 9], score_ids=[calls[0], calls[0]]).result(30)
        assert (again.accepted, [each.reason for each in again.rejects]) == (1, ["DUPLICATE_OUTCOME"])
        assert again.rejects[0].row == 0
        ideal.push([0], [9], context=[bags[0]]).result(30)
        # Another type of event is another outcome.
        assert ours.push([0], [5], event_types=3, score_ids=calls[0]).result(30).accepted == 1
        ideal.push([0], [5], event_types=3, context=[bags[0]]).result(30)
        # What was sent is known by its own bytes.
        assert ours.has_applied(len(steps) + 2, [0], [5], event_types=3, score_ids=calls[0])
        assert not ours.has_applied(len(steps) + 2, [0], [5], event_types=3, score_ids=calls[1])
    server.close()
    folders = [tmp_path / "models" / name for name in ("m", "ideal")]
    assert learned(folders[0]) == learned(folders[1])
    assert all(replay_model(folder).good for folder in folders)


def test_a_batch_that_is_sent_again_is_no_duplicate_of_itself(tmp_path: Path) -> None:
    served = Served(1 << 20, 60.0)
    answer = served.keep("m", b"request", b"answer")
    score_id = int.from_bytes(answer[-8:], "little")
    owner = (b"shop", 7, b"digest", 0)
    assert claim(served, score_id, (1, 2, 0), owner)
    assert claim(served, score_id, (1, 2, 0), (b"shop", 7, b"digest", 0))
    assert not claim(served, score_id, (1, 2, 0), (b"shop", 7, b"digest", 1))
    assert not claim(served, score_id, (1, 2, 0), (b"shop", 8, b"digest", 0))
    assert claim(served, score_id, (1, 3, 0), (b"shop", 8, b"digest", 0))


def test_kept_answers_are_bounded_in_bytes_and_in_time() -> None:
    now = [100.0]
    served = Served(10_000, 60.0, lambda: now[0])
    ids = [int.from_bytes(served.keep("m", bytes(1000), bytes(1000))[-8:], "little") for _ in range(10)]
    assert served.nbytes <= 10_000 and 3 <= len(served) < 10
    assert served.get(ids[0]) is None and served.get(ids[-1]) is not None
    for item in range(100):
        claim(served, ids[-1], (1, item, 0), (b"p", item, b"", 0))
    assert served.nbytes <= 10_000
    now[0] += 61
    assert served.get(ids[-1]) is None and served.nbytes == 0 and not len(served)
    served.keep("m", b"", b"")
    served.forget("other")
    assert len(served) == 1
    served.forget("m")
    assert not len(served) and served.nbytes == 0
    assert Served(0, 60.0).is_too_large(0) and not served.is_too_large(1000)
