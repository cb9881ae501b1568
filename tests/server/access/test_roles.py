"""Roles × RPCs, tokens and certificates, against a server with TLS and an access file."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import livefactor
from certificates import DAY, Authority
from contract import METHODS
from livefactor.v1 import (
    challenging_pb2,
    following_pb2,
    models_pb2,
    privacy_pb2,
    scoring_pb2,
    snapshots_pb2,
    updates_pb2,
)
from livefactor_server.access.certificates import CertificateError, CertificateFiles
from livefactor_server.access.entry import Entry
from livefactor_server.access.grants import Grant, Grants, Role, add_grant, digest, new_token
from livefactor_server.access.metrics_port import serve_metrics
from livefactor_server.hosting.host import Hosting, HostingSettings
from livefactor_server.rpc import guards
from livefactor_server.rpc.calls import ServiceSettings
from livefactor_server.rpc.server import RpcServer
from tally import Tally

ALLOWED = {
    Role.PRODUCER: {"OpenProducer", "ApplyUpdates", "StreamUpdates", "Contribute"},
    Role.CONSUMER: {"Score"},
    Role.AUDITOR: {
        "Snapshot",
        "ListSnapshots",
        "FetchSnapshot",
        "Explain",
        "FetchServed",
        "ListProducers",
        "ListQuarantine",
        "CopyModel",
        "FollowLog",
        "ConfirmLog",
    },
    Role.ADMIN: {path.rsplit("/", 1)[1] for path in METHODS},
}
"""Written out by hand: the matrix is a promise, and the table of RPCs must keep it."""
FOR_ALL = {"DescribeModel", "ListFeatures", "ListModels", "ListChallengers", "DescribePrivacy"}
REQUESTS = {
    message.DESCRIPTOR.name.removesuffix("Request"): message
    for module in (
        updates_pb2,
        scoring_pb2,
        snapshots_pb2,
        models_pb2,
        challenging_pb2,
        following_pb2,
        privacy_pb2,
    )
    for name in dir(module)
    if name.endswith("Request") and (message := getattr(module, name))
}


class Place:
    """A server with TLS and an access file, its authority, and a token of each role."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder)
        self.file = folder / "access.toml"
        self.tokens = {role: new_token() for role in Role}
        for role, token in self.tokens.items():
            add_grant(self.file, Grant(role, role, frozenset({"shop"})), token)
        self.ended = new_token()
        add_grant(self.file, Grant("ended", Role.ADMIN, None, 1.0), self.ended)
        with self.file.open("a") as file:
            file.write('[[grant]]\nname = "device"\nrole = "consumer"\ncertificate = "device"\n')
        signed = self.authority.sign("server")
        self.files = CertificateFiles(signed.certificate, signed.key)
        self.hosting = Hosting(folder / "data", HostingSettings(default_preset=""))
        self.grants = Grants(self.file)
        self.server = RpcServer(
            self.hosting, ServiceSettings(), "127.0.0.1:0", Entry(self.files, self.grants)
        )
        self.hosting.open_all()
        self.server.start()
        self.target = f"localhost:{self.server.port}"

    def access(self, role: Role | None) -> livefactor.Access:
        return livefactor.Access(ca=self.authority.file, token="" if role is None else self.tokens[role])

    def channel(self, access: livefactor.Access) -> grpc.Channel:
        return livefactor.open_channel(self.target, credentials=access.credentials())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("place"))
    with livefactor.Models(made.target, access=made.access(Role.ADMIN)) as models:
        models.create("shop", "clicks_sgd")
    yield made
    made.server.stop()
    made.hosting.drain()


def status_of(place: Place, path: str, token: str | None, model: str = "shop") -> str:
    """The status of one call with an otherwise empty request."""
    method = METHODS[path]
    kind = REQUESTS.get(method.input_type.name.removesuffix("Request"))
    assert kind is not None, path
    request = kind(**FIELDS.get(kind.DESCRIPTOR.name, {}))
    if "model" in kind.DESCRIPTOR.fields_by_name:
        request.model = model
    raw = request.SerializeToString()
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    with place.channel(livefactor.Access(ca=place.authority.file)) as channel:
        try:
            if method.client_streaming:
                (answer,) = channel.stream_stream(f"/{path}")(iter([raw]), timeout=20, metadata=metadata)
                code = updates_pb2.StreamUpdatesResponse.FromString(answer).answers[0].status.code
                return next(c.name for c in grpc.StatusCode if c.value[0] == code)
            if method.server_streaming:
                list(channel.unary_stream(f"/{path}")(raw, timeout=20, metadata=metadata))
            else:
                channel.unary_unary(f"/{path}")(raw, timeout=20, metadata=metadata)
        except grpc.RpcError as error:
            return error.code().name
    return "OK"


_PUSH: dict[str, Any] = {
    "producer": {"id": "p", "epoch": 1, "sequence": 1},
    "interactions": {"user_ids": [1], "item_ids": [1]},
}
FIELDS: dict[str, dict[str, Any]] = {
    "ApplyUpdatesRequest": _PUSH,
    "StreamUpdatesRequest": _PUSH,
    "OpenProducerRequest": {"producer_id": "p"},
    "ScoreRequest": {"user_ids": [1], "top_k": {"k": 1}},
    "RestoreSnapshotRequest": {"source_model": "shop"},
}
"""What the requests need beside the model, so that they reach the look at the model."""

DENIALS = {"UNAUTHENTICATED", "PERMISSION_DENIED"}


@pytest.mark.parametrize("path", sorted(METHODS))
def test_a_role_may_call_what_its_row_says(place: Place, path: str) -> None:
    check_row(place, path)


@pytest.mark.torture
def test_a_cell_that_was_opened_is_caught(
    place: Place, monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    given = guards.check_role

    def check(grant: Grant, roles: frozenset[Role], what: str) -> None:
        given(grant, roles | {Role.CONSUMER} if what.endswith(".Explain") else roles, what)

    monkeypatch.setattr(guards, "check_role", check)
    (path,) = (path for path in METHODS if path.endswith("/Explain"))
    with pytest.raises(AssertionError):
        check_row(place, path)
    tally.catch("a role may do more")


def check_row(place: Place, path: str) -> None:
    name = path.rsplit("/", 1)[1]
    assert status_of(place, path, None) == "UNAUTHENTICATED"
    for token in (new_token(), place.ended, "", place.tokens[Role.ADMIN][:-1]):
        assert status_of(place, path, token) == "UNAUTHENTICATED"
    # A deletion by admin would end the model of the other cases.
    for role in (Role.PRODUCER, Role.CONSUMER, Role.AUDITOR):
        status = status_of(place, path, place.tokens[role])
        if name in ALLOWED[role] | FOR_ALL:
            assert status not in DENIALS, (role, status)
        else:
            assert status == "PERMISSION_DENIED", (role, status)
    if name not in ("DeleteModel", "ListModels"):
        assert status_of(place, path, place.tokens[Role.ADMIN]) not in DENIALS
    # They name no model. ListModels leaves others out, and TakeLead needs a grant for all.
    if name not in ("ListModels", "TakeLead"):
        assert status_of(place, path, place.tokens[Role.ADMIN], model="other") == "PERMISSION_DENIED"


def test_a_grant_sees_its_models_only(place: Place) -> None:
    everything = new_token()
    add_grant(place.file, Grant("root", Role.ADMIN), everything)
    root = livefactor.Access(ca=place.authority.file, token=everything)
    place.grants._look_at = 0.0
    with livefactor.Models(place.target, access=root) as models:
        models.create("secret", "clicks_sgd")
        assert [model.name for model in models.list()] == ["secret", "shop"]
        with pytest.raises(livefactor.PermissionDenied, match="does not cover 'secret'"):
            livefactor.Scorer(place.target, model="secret", access=place.access(Role.CONSUMER)).recommend([1])
        with livefactor.Models(place.target, access=place.access(Role.AUDITOR)) as others:
            assert [model.name for model in others.list()] == ["shop"]
        models.delete("secret")


def test_the_clients_work_with_tls_and_tokens(place: Place, tmp_path: Path) -> None:
    users, items = np.arange(100, dtype=np.uint64), np.arange(100, dtype=np.uint64) % 7
    access = place.access(Role.PRODUCER)
    with livefactor.Producer(place.target, "p", model="shop", access=access) as producer:
        ack = producer.push(users, items).result(20)
    with livefactor.Scorer(place.target, model="shop", access=place.access(Role.CONSUMER)) as scorer:
        assert len(scorer.recommend([1], 3, min_position=ack.position)) == 1
    with livefactor.Auditor(place.target, model="shop", access=place.access(Role.AUDITOR)) as auditor:
        taken = auditor.snapshot()
        auditor.fetch(tmp_path / "copy", taken.snapshot_id)
    assert place.tokens[Role.PRODUCER] not in repr(access)


def test_a_stream_ends_with_its_token(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "GRANT_S", 0.0)
    token = new_token()
    whole = place.file.read_text()
    add_grant(place.file, Grant("leaver", Role.PRODUCER), token)
    place.grants._look_at = 0.0
    access = livefactor.Access(ca=place.authority.file, token=token)
    producer = livefactor.Producer(place.target, "leaver", model="shop", access=access)
    producer.push([1], [1]).result(20)
    place.file.write_text(whole)
    place.grants._look_at = 0.0
    with pytest.raises(livefactor.Unauthenticated):
        producer.push([1], [1]).result(20)
    with pytest.raises(livefactor.Unauthenticated):
        producer.close()


def test_plain_text_and_other_authorities_do_not_get_in(place: Place, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other")
    for access in (livefactor.Access(), livefactor.Access(ca=other.file)):
        with (
            livefactor.Models(place.target, access=access, connect_s=0.2) as models,
            pytest.raises(livefactor.Unavailable),
        ):
            models.list()


def test_health_needs_no_token(place: Place) -> None:
    with place.channel(livefactor.Access(ca=place.authority.file)) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_token_is_not_sent_in_plain_text_to_another_machine() -> None:
    with pytest.raises(livefactor.InvalidArgument, match="plain text"):
        livefactor.Scorer("models.example.org:50051", access=livefactor.Access(token="lf_x"))
    with pytest.raises(livefactor.InvalidArgument, match="need each other"):
        livefactor.Scorer(access=livefactor.Access(key="k"))


def test_client_certificates_have_grants_and_a_changed_certificate_is_taken_up(
    place: Place, tmp_path: Path
) -> None:
    server = place.authority.sign("own", file="own")
    files = CertificateFiles(server.certificate, server.key, place.authority.file)
    rpc = RpcServer(place.hosting, ServiceSettings(), "127.0.0.1:0", Entry(files, place.grants))
    rpc.start()
    target = f"localhost:{rpc.port}"

    def access(name: str, authority: Authority = place.authority) -> livefactor.Access:
        signed = authority.sign(name)
        return livefactor.Access(place.authority.file, signed.certificate, signed.key)

    try:
        with livefactor.Models(target, access=access("device")) as models:
            models.list()
            with pytest.raises(livefactor.PermissionDenied, match="role consumer"):
                models.delete("shop")
        stranger = pytest.raises(livefactor.Unauthenticated, match="certificate 'stranger'")
        with livefactor.Models(target, access=access("stranger")) as models, stranger:
            models.list()
        old = place.authority.sign("device", valid=-DAY, file="old")
        refused = (
            access("device", Authority(tmp_path, "other")),
            livefactor.Access(place.authority.file),
            livefactor.Access(place.authority.file, old.certificate, old.key),
        )
        for entry in refused:
            with (
                livefactor.Models(target, access=entry, connect_s=0.2) as models,
                pytest.raises(livefactor.Unavailable),
            ):
                models.list()
        # The new certificate comes from an authority that clients of the old one do not know.
        fresh = Authority(tmp_path / "fresh", "fresh")
        changed = fresh.sign("own")
        server.key.write_bytes(changed.key.read_bytes())
        server.certificate.write_bytes(changed.certificate.read_bytes())
        device = access("device")
        renewed = livefactor.Access(fresh.file, device.certificate, device.key)
        with livefactor.Models(target, access=renewed) as models:
            models.list()
    finally:
        rpc.stop()


def test_a_certificate_that_cannot_be_used_is_named(place: Place, tmp_path: Path) -> None:
    good, other = place.authority.sign("good"), place.authority.sign("different")
    ended = place.authority.sign("ended", valid=-DAY)
    shown = place.authority.sign("shown")
    shown.key.chmod(0o644)
    cases = [
        (CertificateFiles(good.certificate, other.key), "does not belong to the certificate"),
        (CertificateFiles(ended.certificate, ended.key), "the certificate expired at"),
        (CertificateFiles(shown.certificate, shown.key), "others can read"),
        (CertificateFiles(good.key, good.key), "no certificate in PEM form"),
        (CertificateFiles(good.certificate, good.certificate), "no private key in PEM form"),
        (CertificateFiles(tmp_path / "none", good.key), "No such file"),
    ]
    for files, fault in cases:
        with pytest.raises(CertificateError, match=fault):
            files.check()


def test_the_metrics_need_a_token_too(place: Place) -> None:
    port = serve_metrics("127.0.0.1", 0, Entry(None, place.grants))
    url = f"http://127.0.0.1:{port}/metrics"
    with pytest.raises(HTTPError, match="401"):
        urllib.request.urlopen(url, timeout=10)
    token = place.tokens[Role.AUDITOR]
    asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(asked, timeout=10) as answer:
        assert b"livefactor_" in answer.read()


def test_the_metrics_have_the_certificate_of_the_server(place: Place) -> None:
    import ssl

    port = serve_metrics("127.0.0.1", 0, Entry(place.files))
    trusted = ssl.create_default_context(cafile=place.authority.file)
    with urllib.request.urlopen(f"https://localhost:{port}/", context=trusted, timeout=10) as answer:
        assert answer.status == 200


def test_tokens_are_hashed_with_sha256() -> None:
    assert digest("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
