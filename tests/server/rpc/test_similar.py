"""Similar items: exact cosines of the item factors, without unavailable items."""

from __future__ import annotations

from pathlib import Path

import grpc
import numpy as np
import pytest

import livefactor
from livefactor.errors import InvalidArgument
from livefactor_server.engine.answering import similar as engine_similar

ITEMS = 40


@pytest.fixture(scope="module")
def server() -> livefactor.Local:
    with livefactor.local("clicks_sgd") as server:
        rng = np.random.default_rng(3)
        with server.producer() as producer:
            producer.push(rng.integers(0, 30, 3000), rng.zipf(1.3, 3000) % ITEMS)
            producer.push_labels("item", np.arange(ITEMS), [f"film {item}" for item in range(ITEMS)])
        yield server


def test_the_lists_are_the_exact_cosines_of_the_factors(
    server: livefactor.Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_similar, "BLOCK_ROWS", 7)
    with server.auditor() as auditor:
        taken = auditor.snapshot()
        auditor.fetch(tmp_path / "snapshot", taken.snapshot_id)
    loaded = livefactor.load(tmp_path / "snapshot")
    unit = loaded.item_factors / np.linalg.norm(loaded.item_factors.astype(float), axis=1)[:, None]
    ids = loaded.item_ids.tolist()
    with server.scorer() as scorer:
        answers = scorer.similar([3, 5], k=6)
        alone = scorer.similar(5, k=6)[0]
    for asked, answer in zip((3, 5), answers, strict=True):
        cosines = unit @ unit[ids.index(asked)]
        expected = sorted((-cosine, item) for cosine, item in zip(cosines, ids, strict=True) if item != asked)
        assert answer.user_id == asked and answer.known and answer.item_known.all()
        assert answer.item_ids.tolist() == [item for _, item in expected[:6]]
        np.testing.assert_allclose(answer.scores, [-cosine for cosine, _ in expected[:6]], atol=1e-6)
        assert list(answer.labels) == [f"film {item}" for item in answer.item_ids.tolist()]
    # An answer does not depend on the other items of the call.
    assert alone.scores.tolist() == answers[1].scores.tolist()


def test_unavailable_and_unknown_items(server: livefactor.Local) -> None:
    with server.scorer() as scorer:
        nearest = scorer.similar(3, k=1)[0].item_ids.tolist()
        with server.producer() as producer:
            after = producer.set_available(nearest, False).result().position
        left = scorer.similar(3, k=ITEMS, min_position=after)[0].item_ids.tolist()
        assert nearest[0] not in left and len(left) > 20
        everything = scorer.similar(3, k=ITEMS, include_unavailable=True)[0].item_ids.tolist()
        assert everything[:1] == nearest and set(everything) == {*left, *nearest}
        # An unavailable item can still be asked for.
        assert len(scorer.similar(nearest, k=2)[0]) == 2
        unknown, known = scorer.similar([10**9, 3], k=2)
        assert not unknown.known and not len(unknown) and len(known) == 2


def test_equal_cosines_are_ordered_by_id() -> None:
    keys = np.array([9, 4, 7, 1, 3], np.uint64)
    best = engine_similar.Best(keys, 2)
    best.add(np.array([0, 1, 2], np.uint32), np.array([0.5, 0.5, 0.5], np.float32))
    assert keys[best.rows].tolist() == [4, 7]
    best.add(np.array([3, 4], np.uint32), np.array([0.5, 0.6], np.float32))
    assert keys[best.rows].tolist() == [3, 1]


def test_a_call_above_a_limit_says_so(server: livefactor.Local) -> None:
    from livefactor.v1 import scoring_pb2

    call = server.channel.unary_unary("/livefactor.v1.ScoringService/Score")

    def refusal(**fields: object) -> str:
        with pytest.raises(grpc.RpcError) as error:
            call(scoring_pb2.ScoreRequest(**fields).SerializeToString(), timeout=10)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        return error.value.details()

    target = scoring_pb2.Similar
    assert refusal(similar=target(k=1)) == "item_ids: at least one is required"
    assert refusal(similar=target(item_ids=[1])) == "k: expected at least 1, got 0"
    assert refusal(similar=target(item_ids=range(1025), k=1)) == (
        "item_ids: at most 1024 items a call, got 1025"
    )
    assert "no user_ids" in refusal(similar=target(item_ids=[1], k=1), user_ids=[2])
    with server.scorer() as scorer, pytest.raises(InvalidArgument, match="k: at most"):
        scorer.similar(1, k=1 << 19)
