"""Kept answers outlive the process that gave them, within their limits."""

from __future__ import annotations

import json
import uuid
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
from livefactor_server.engine.answering.journal import UNWRITTEN, Claim
from livefactor_server.engine.answering.served import FILES, Served
from livefactor_server.log import sealing
from livefactor_server.log.sealing import KEY_BYTES, Key

OWNER = (b"shop", 7, b"digest", 0)
NAME = b"a name that only this answer has"


def kept(served: Served, model: str = "m", request: bytes = b"request", answer: bytes = b"answer") -> int:
    return int.from_bytes(served.keep(model, request, answer)[-8:], "little")


def claim(served: Served, score_id: int, outcome: tuple[int, int, int], owner: Any) -> bool:
    (is_first,) = served.claim([Claim(score_id, outcome, owner)])
    return is_first


def reopened(folder: Path, bytes_max: int = 1 << 20, **options: Any) -> Served:
    """What a process finds whose predecessor was killed."""
    return Served(bytes_max, 60.0, folder=folder, **options)


def bytes_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()))


def run(server: livefactor.Local, *arguments: str) -> Any:
    command = typer.main.get_command(app)
    return click.testing.CliRunner().invoke(
        command, ["explain", "-m", "m", "--target", server.target, *arguments]
    )


def test_a_restart_explains_what_was_served_before(tmp_path: Path) -> None:
    with livefactor.local(None, tmp_path) as server:
        with server.models() as models:
            models.create("m", "purchases_sgd", k=8, context={"size": 40})
        with server.producer("first", model="m") as producer:
            for user in range(4):
                producer.push(np.full(20, user), np.arange(20), context=["start"]).result(30)
        with server.scorer(model="m") as scorer:
            shown = scorer.score([3], [[4, 5]], context=["hour:3"], keep=True)
        score_id = shown[0].score_id
        with server.producer("p", model="m") as producer:
            producer.push([3], [4], score_ids=score_id).result(30)
    with livefactor.local(None, tmp_path) as server:
        with server.auditor(model="m") as auditor:
            found = auditor.served(score_id)
        assert found.position == shown.position and found.scores.tobytes() == shown.scores.tobytes()
        assert found.context == ("hour:3",)
        told = run(server, "--score-id", str(score_id), "--user", "3", "--item", "5", "--json")
        assert told.exit_code == 0, told.output
        assert json.loads(told.stdout)["revision"] == shown.position.revision
        with server.producer("p", model="m") as producer:
            again = producer.push([3, 3], [4, 5], score_ids=[score_id, score_id]).result(30)
        # The outcome from before the restart was learned once, and a late one gets its context.
        assert [(each.row, each.reason) for each in again.rejects] == [(0, "DUPLICATE_OUTCOME")]
        assert again.accepted == 1
        with server.models() as models:
            models.forget("m", users=[3])
        with server.auditor(model="m") as auditor, pytest.raises(NotFound):
            auditor.served(score_id)
    with (
        livefactor.local(None, tmp_path) as server,
        server.auditor(model="m") as auditor,
        pytest.raises(NotFound),
    ):
        auditor.served(score_id)
    assert not any((3).to_bytes(8, "little") in path.read_bytes() for path in (tmp_path / "served").iterdir())


def test_calls_and_outcomes_survive_the_end_of_the_process(tmp_path: Path) -> None:
    one = reopened(tmp_path)
    score_id = kept(one, request=b"question")
    assert claim(one, score_id, (1, 2, 0), OWNER)
    two = reopened(tmp_path)
    call, before = two.get(score_id), one.get(score_id)
    assert call is not None and call == before and call.request == b"question"
    assert two.nbytes == one.nbytes
    assert claim(two, score_id, (1, 2, 0), OWNER) and not claim(two, score_id, (1, 2, 0), (b"x", 1, b"d", 0))
    later = kept(two)
    three = reopened(tmp_path)
    assert [three.get(each) is not None for each in (score_id, later)] == [True, True]


def test_files_are_bounded_as_the_memory_is(tmp_path: Path) -> None:
    now, most = [100.0], 200_000
    served = Served(most, 60.0, lambda: now[0], tmp_path)
    for number in range(2000):
        score_id = kept(served, request=bytes(500), answer=bytes(500))
        claim(served, score_id, (number, 1, 0), OWNER)
        assert len(bytes_of(tmp_path)) < most * (1 + 2 / FILES)
    assert len(list(tmp_path.iterdir())) <= FILES + 2
    again = Served(most, 60.0, lambda: now[0], tmp_path)
    assert len(again) == len(served) > 50 and again.nbytes == served.nbytes
    now[0] += 61
    assert again.get(score_id) is None
    assert len(Served(most, 60.0, lambda: now[0], tmp_path)) == 0
    assert not list(tmp_path.iterdir())
    # Whoever keeps none any more has no files.
    kept(Served(most, 60.0, lambda: now[0], tmp_path))
    assert list(tmp_path.iterdir()) and len(Served(0, 60.0, lambda: now[0], tmp_path)) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_damaged_file_is_read_up_to_there(
    tmp_path: Path, encrypted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    sealing.use(Key(bytes(KEY_BYTES)) if encrypted else None)
    try:
        ids = [kept(served := reopened(tmp_path), request=bytes(40))]
        ids += [kept(served, request=bytes(40)) for _ in range(3)]
        (path,) = tmp_path.iterdir()
        good, rng = path.read_bytes(), np.random.default_rng(1)
        size = (len(good) - 28) // 4
        for at in [*range(28), *rng.integers(28, len(good), 40).tolist()]:
            changed = bytearray(good)
            changed[at] ^= 1 << int(rng.integers(8))
            path.write_bytes(changed)
            caplog.clear()
            there = [reopened(tmp_path).get(each) is not None for each in ids]
            whole = max(0, (at - 28) // size)
            # The salt of a file without encryption says nothing.
            if encrypted or not 12 <= at < 28:
                assert there == [number < whole for number in range(4)], at
                assert "is read up to where it is damaged" in caplog.text
        for cut in range(len(good)):
            path.write_bytes(good[:cut])
            there = [reopened(tmp_path).get(each) is not None for each in ids]
            assert there == [number < (cut - 28) // size for number in range(4)], cut
        path.write_bytes(good)
        assert len(reopened(tmp_path)) == 4
    finally:
        sealing.use(None)


def test_what_is_forgotten_is_in_no_file(tmp_path: Path) -> None:
    served = reopened(tmp_path)
    gone = kept(served, "m", NAME)
    other = kept(served, "other", b"stays")
    claim(served, other, (1, 2, 0), OWNER)
    assert NAME in bytes_of(tmp_path)
    served.forget("m")
    assert NAME not in bytes_of(tmp_path)
    again = reopened(tmp_path)
    assert again.get(gone) is None and (call := again.get(other)) is not None
    assert call.request == b"stays" and call.outcomes == {(1, 2, 0): OWNER}


def test_a_start_drops_the_answers_of_models_that_are_gone_or_forget(tmp_path: Path) -> None:
    served = reopened(tmp_path)
    gone, other = kept(served, "m", NAME), kept(served, "other")
    again = reopened(tmp_path, is_lost=lambda model: model == "m")
    assert again.get(gone) is None and again.get(other) is not None
    assert NAME not in bytes_of(tmp_path)


@pytest.fixture
def key() -> Iterator[Key]:
    made = Key(uuid.uuid4().bytes * 2)
    sealing.use(made)
    yield made
    sealing.use(None)


def test_files_are_encrypted_with_the_key_of_the_data(tmp_path: Path, key: Key) -> None:
    score_id = kept(reopened(tmp_path), "a-model", NAME)
    assert NAME not in bytes_of(tmp_path) and b"a-model" not in bytes_of(tmp_path)
    assert reopened(tmp_path).get(score_id) is not None
    for other in (None, Key(uuid.uuid4().bytes * 2)):
        sealing.use(other)
        assert reopened(tmp_path / "none").get(score_id) is None
        assert len(reopened(tmp_path)) == 0


def test_a_disk_that_refuses_is_counted_and_answers_go_on(tmp_path: Path) -> None:
    (tmp_path / "served").write_text("no folder")
    served, before = reopened(tmp_path / "served"), UNWRITTEN._value.get()
    score_id = kept(served)
    assert served.get(score_id) is not None and UNWRITTEN._value.get() == before + 1
    (tmp_path / "served").unlink()
    later = kept(served)
    again = reopened(tmp_path / "served")
    assert again.get(later) is not None and again.get(score_id) is None
