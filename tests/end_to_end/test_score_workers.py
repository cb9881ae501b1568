"""`livefactor serve --score-workers`: the same answers and promises from several processes."""

from __future__ import annotations

import http.client
import os
import signal
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import pytest

import livefactor
from certificates import Authority
from livefactor.errors import DeadlineExceeded, NotFound, PermissionDenied, Unauthenticated
from livefactor.models import Models
from livefactor.pushing.producer import Producer
from livefactor.results.answers import Answers
from livefactor.scorer import Scorer
from livefactor_server.access.grants import Grant, Role, add_grant, new_token
from load import MODEL, SMALL, create_model
from server_process import Server, WarmStart, wait_until

Serve = Callable[..., Server]

KILLS = 2
CHANNELS = 6


def parent_of(pid: int) -> int:
    """The id of the parent of a process, 0 if the process does not run."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[:2]
    except OSError:
        return 0
    # A process that has ended but was not waited for does not run.
    return 0 if state == "Z" else int(parent)


def workers_of(pid: int) -> list[int]:
    """The ids of the children of a process."""
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [child for child in pids if parent_of(child) == pid]


def head_of(server: Server) -> str:
    """Where the head listens."""
    files = [os.readlink(path) for path in Path(f"/proc/{server.pid}/fd").iterdir() if path.is_symlink()]
    sockets = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    paths = {line[7] for line in sockets if len(line) > 7 and f"socket:[{line[6]}]" in files}
    return f"unix:{next(path for path in paths if path.endswith('head.sock'))}"


def value_of(name: str, answer: http.client.HTTPResponse) -> float:
    """The value of a metric with its labels, 0 if it is absent."""
    lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name} "))


def counted(server: Server, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=10) as answer:
        return value_of(name, answer)


def calls(server: Server, way: str) -> float:
    return counted(server, f'livefactor_score_worker_calls_total{{way="{way}"}}')


def is_complete(server: Server, killed: int) -> bool:
    """Whether both workers run after so many were killed."""
    replaced = counted(server, "livefactor_score_workers_replaced_total")
    return replaced == killed and counted(server, "livefactor_score_workers") == 2


def add_model(server: Server, name: str, preset: str = "purchases_sgd") -> str:
    """Make a model that has learned 900 events of 30 users and 40 items, and that workers know."""
    numbers = np.arange(900)
    with Models(server.target) as models:
        models.create(name, preset, **SMALL)
    with Producer(server.target, "first", model=name) as producer:
        producer.push(numbers % 30, numbers % 40).result(60)
    before = calls(server, "answered")
    wait_until(lambda: is_answered(server, name, before), "a worker knows the model")
    return name


def bytes_of(answers: Answers) -> list[object]:
    """All that answers say, as bytes."""
    return [answers.position] + [
        (
            one.scores.tobytes(),
            one.item_ids.tobytes(),
            one.item_known.tobytes(),
            one.spec_id,
            list(one.labels),
        )
        for one in answers
    ]


def is_answered(server: Server, model: str, before: float) -> bool:
    with server.channel() as channel:
        Scorer(channel, model=model).score(1, [1, 2])
    return calls(server, "answered") > before


@pytest.fixture(scope="module")
def served(warm: WarmStart, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two workers."""
    server = Server(warm, tmp_path_factory.mktemp("workers") / "data", "--preset", "", "--score-workers", "2")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def channels(served: Server) -> Iterator[list[grpc.Channel]]:
    """Connections to both workers, but once in 32 times."""
    with ExitStack() as stack:
        yield [stack.enter_context(served.channel()) for _ in range(CHANNELS)]


@pytest.mark.parametrize("preset", ["purchases_sgd", "auto"])
def test_workers_answer_as_the_head_does(served: Server, channels: list[grpc.Channel], preset: str) -> None:
    """The same bits, the same errors, and a write is visible in every process at once."""
    model = add_model(served, f"same-{preset}", preset)
    scorers = [Scorer(channel, model=model, timeout=30) for channel in channels]
    before = calls(served, "answered"), calls(served, "passed_on")
    items = list(range(50))
    with Producer(served.target, "labels", model=model) as producer:
        producer.push_labels("item", [1, 2], ["one", "two"]).result(30)
        producer.set_available([3, 4], False).result(30)
    with Scorer(head_of(served), model=model, timeout=30) as head:
        expected = [(users, head.score(users, items)) for users in (3, [1, 2, 99], list(range(60)))]
        lists, best = head.score([1, 2], [[1, 2, 3], [4]]), head.recommend([1, 7], 50)
    for scorer in scorers:
        for users, answers in expected:
            assert bytes_of(scorer.score(users, items)) == bytes_of(answers)
        assert bytes_of(scorer.score([1, 2], [[1, 2, 3], [4]])) == bytes_of(lists)
        assert bytes_of(scorer.recommend([1, 7], 50)) == bytes_of(best)
        with pytest.raises(NotFound, match="'nosuch' does not exist"):
            Scorer(served.target, model="nosuch").score(1, [1])
    assert {"one", "two"} <= set(best[0].labels) and not {3, 4} & set(best[0].item_ids.tolist())
    asked = len(scorers)
    wait_until(
        lambda: (
            calls(served, "answered") - before[0] >= 5 * asked
            and calls(served, "passed_on") - before[1] >= asked
        ),
        "the figures of the workers",
    )

    with served.channel() as channel, Producer(channel, "again", model=model) as producer:
        for number in range(20):
            seen = producer.push([number], [1]).result(30).position
            for scorer in scorers:
                assert scorer.score(number, [1]).position.revision >= seen.revision
                assert scorer.score(number, [1], min_position=seen).position.revision >= seen.revision
        # Waits for what is not published yet.
        later = livefactor.Position(seen.lineage, seen.revision + 1)
        with pytest.raises(DeadlineExceeded):
            scorers[0].score(1, [1], min_position=later, timeout=0.3)
        waiting: list[int] = []
        thread = threading.Thread(
            target=lambda: waiting.append(
                scorers[1].score(1, [1], min_position=later, timeout=30).position.revision
            )
        )
        thread.start()
        producer.push([1], [2]).result(30)
        thread.join(30)
        assert waiting and waiting[0] >= later.revision


def test_another_state_answers_at_once(served: Server, channels: list[grpc.Channel]) -> None:
    """A switched spec and a deleted model answer in no process any more."""
    model = add_model(served, "switched")
    scorers = [Scorer(channel, model=model, timeout=30) for channel in channels]
    with Models(served.target) as models:
        first = scorers[0].score(1, [1])[0].spec_id
        models.promote(model, k=16)
        for scorer in scorers:
            assert scorer.score(1, [1])[0].spec_id != first
        answered = calls(served, "answered")
        wait_until(
            lambda: scorers[0].score(1, [1]) is not None and calls(served, "answered") > answered,
            "the workers know the new state",
        )
        for _ in range(3):
            models.delete(model)
            for scorer in scorers:
                with pytest.raises(NotFound):
                    scorer.score(1, [1])
            models.create(model, "purchases_sgd", **SMALL)
            for scorer in scorers:
                assert scorer.score(1, [1]).position.revision < 3


def test_a_worker_that_is_killed_in_a_read_harms_nobody(served: Server) -> None:
    """Its callers go on elsewhere, the model learns on, and another worker takes its place."""
    model = add_model(served, "attacked", "auto")
    stop, errors, scores = threading.Event(), list[Exception](), list[int]()

    def read() -> None:
        try:
            with Scorer(served.target, model=model, timeout=60) as scorer:
                while not stop.is_set():
                    scores.append(len(scorer.score(range(30), range(2000))[0].scores))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    with Producer(served.target, "meanwhile", model=model) as producer:
        receipts = []
        for number in range(KILLS):
            wait_until(lambda killed=number: is_complete(served, killed), "two workers", 60)
            seen = len(scores)
            wait_until(lambda before=seen: len(scores) >= before + 8, "reads", 60)
            os.kill(workers_of(served.pid)[0], signal.SIGKILL)
            receipts += [producer.push([user], [user]) for user in range(30)]
        acks = [receipt.result(60) for receipt in receipts]
    stop.set()
    for thread in threads:
        thread.join(60)
    assert not errors, errors
    assert set(scores) == {2000}
    wait_until(lambda: is_complete(served, KILLS), "new workers", 60)
    with Scorer(served.target, model=model) as scorer:
        assert scorer.score(1, [1]).position.revision >= acks[-1].position.revision


def test_a_server_with_workers_drains_and_leaves_nobody_behind(
    serve: Serve, warm: WarmStart, tmp_path: Path
) -> None:
    """With open calls. Before that no other server gets its port."""
    served = serve("--score-workers", "1")
    create_model(served)
    for number, flags in enumerate(((), ("--score-workers", "1"))):
        other = Server(warm, tmp_path / f"other{number}", "--preset", "", *flags)
        other.port = served.port
        with pytest.raises(AssertionError, match="cannot be bound"):
            other.start()
    with served.channel() as channel, Producer(channel, "open", model=MODEL) as producer:
        producer.push([1], [1]).result(30)
        workers = workers_of(served.pid)
        assert len(workers) == 1
        # A terminal sends its signal to all processes.
        for pid in workers:
            os.kill(pid, signal.SIGINT)
        time.sleep(0.05)
        assert workers_of(served.pid) == workers
        assert served.stop() == 0
    assert "drained" in served.log
    assert not any(map(parent_of, workers))


class Guarded:
    """A server with one worker, TLS, client certificates and an access file."""

    def __init__(self, serve: Serve, folder: Path) -> None:
        self.authority, access = Authority(folder), folder / "access.toml"
        self.tokens = {role: new_token() for role in Role}
        for role, token in self.tokens.items():
            add_grant(access, Grant(role, role, None if role is Role.ADMIN else frozenset({MODEL})), token)
        with access.open("a") as file:
            file.write('[[grant]]\nname = "device"\nrole = "consumer"\ncertificate = "device"\n')
        own = self.authority.sign("server")
        files = {"cert": own.certificate, "key": own.key, "client-ca": self.authority.file}
        flags = [word for name, path in files.items() for word in (f"--tls-{name}", str(path))]
        self.server = serve("--score-workers", "1", "--access", str(access), *flags)
        self.target = f"localhost:{self.server.port}"

    def access(self, name: str, role: Role | None = None) -> livefactor.Access:
        signed = self.authority.sign(name)
        token = "" if role is None else self.tokens[role]
        return livefactor.Access(self.authority.file, signed.certificate, signed.key, token)

    def is_answered(self) -> bool:
        """Make a call, and look whether the worker has answered any."""
        with self.scorer("x", Role.CONSUMER) as scorer:
            scorer.score(1, [1])
        own = self.authority.sign("x")
        context = ssl.create_default_context(cafile=str(self.authority.file))
        context.load_cert_chain(own.certificate, own.key)
        token = {"Authorization": f"Bearer {self.tokens[Role.AUDITOR]}"}
        request = urllib.request.Request(
            f"https://localhost:{self.server.metrics_port}/metrics", headers=token
        )
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:
            return value_of('livefactor_score_worker_calls_total{way="answered"}', answer) > 0

    def scorer(self, name: str, role: Role | None = None, model: str = MODEL) -> Scorer:
        return Scorer(self.target, model=model, access=self.access(name, role), timeout=20)


def test_workers_check_tokens_and_certificates(serve: Serve, tmp_path: Path) -> None:
    guarded = Guarded(serve, tmp_path / "files")
    with Models(guarded.target, access=guarded.access("operator", Role.ADMIN)) as models:
        for name in (MODEL, "other"):
            models.create(name, "purchases_sgd", **SMALL)
    # The worker does not know the model at first.
    wait_until(guarded.is_answered, "an answer of the worker")
    with guarded.scorer("device") as scorer:
        scorer.score(1, [1])
    refused = [
        (guarded.scorer("x"), Unauthenticated, "certificate 'x'"),
        (guarded.scorer("x", Role.PRODUCER), PermissionDenied, "role producer"),
        (guarded.scorer("x", Role.CONSUMER, "other"), PermissionDenied, "does not cover 'other'"),
    ]
    for scorer, error, text in refused:
        with scorer, pytest.raises(error, match=text):
            scorer.score(1, [1])
    # Calls that the worker passes on have the same grants, and a client cannot name a certificate.
    with Models(guarded.target, access=guarded.access("device")) as models:
        assert {each.name for each in models.list()} >= {MODEL}
        with pytest.raises(PermissionDenied, match="role consumer"):
            models.delete(MODEL)
    credentials = guarded.access("x").credentials()
    with livefactor.open_channel(guarded.target, credentials=credentials) as channel:
        forged = (("livefactor-certificate-bin", b"device"),)
        call = channel.unary_unary("/livefactor.v1.ModelService/ListModels")
        with pytest.raises(Exception, match="certificate 'x'"):
            call(b"", timeout=20, metadata=forged)
    # Workers do not outlive a server that is killed.
    workers = workers_of(guarded.server.pid)
    guarded.server.kill()
    wait_until(lambda: not any(map(parent_of, workers)), "the end of the worker")


def test_workers_need_the_backend_cpu(serve: Serve) -> None:
    with pytest.raises(AssertionError, match="--score-workers needs the backend cpu, got reference"):
        serve("--score-workers", "1", "--backend", "reference")
