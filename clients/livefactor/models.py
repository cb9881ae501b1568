"""The class `Models` creates, describes, lists, deletes and restores the models of a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from livefactor.access import Access
from livefactor.calling.blocking import BlockingClient, blocking
from livefactor.calling.plans import Next, Plan
from livefactor.calling.routes import Route
from livefactor.channel import CONNECT_S, DEADLINE_S, READ_RETRY_S
from livefactor.errors import LivefactorError
from livefactor.position import Position, position_of
from livefactor.pushing.deltas import delta_body
from livefactor.pushing.labels import FEATURE_SIDES, SIDES
from livefactor.results.contest import Contest, contest_of
from livefactor.results.descriptions import FeatureReport, Lead, ProducerReport, description_of, producer_of
from livefactor.results.descriptions import ModelDescription as ModelDescription
from livefactor.results.descriptions import SpecPeriod as SpecPeriod
from livefactor.results.erasure import ErasureReport, ForgetCost, cost_of, report_of
from livefactor.results.privacy import PrivacyBudget, budget_of
from livefactor.results.quarantine import QuarantinedBatch, QuarantineDecision, batch_of, decision_of
from livefactor.v1 import challenging_pb2, following_pb2, models_pb2, privacy_pb2, updates_pb2
from livefactor.wire.ids import Ids, as_keys
from livefactor.wire.keys import keys_of
from livefactor.wire.limits import check_model
from livefactor.wire.plain import fill as fill
from livefactor.wire.plain import plain as plain
from livefactor.wire.plain import shortest as shortest

_SERVICE = "/livefactor.v1.ModelService/"
_CHALLENGES = "/livefactor.v1.ChallengeService/"
_FOLLOWING = "/livefactor.v1.FollowService/"
_SERVICES = dict.fromkeys(("AddChallenger", "ListChallengers", "SettleModel"), _CHALLENGES) | dict.fromkeys(
    ("Contribute", "MakeRelease", "DescribePrivacy"), "/livefactor.v1.PrivacyService/"
)
_READS = frozenset(
    {
        "DescribeModel",
        "ListFeatures",
        "ListProducers",
        "ListModels",
        "ListChallengers",
        "DescribePrivacy",
        "ListQuarantine",
    }
)
LONG_DEADLINE_S = 600.0
"""Deadline, in seconds, of calls that may read or write a whole model: create, root hash, delete,
restore.
"""


class ModelsBase:
    """What `Models` and its asyncio twin share: how a call is made."""

    _connects: type[Route]
    _connection: Any

    def __init__(
        self,
        target: str | Sequence[str] | Any | None = None,
        *,
        connect_s: float = CONNECT_S,
        access: Access | None = None,
        channel: Any | None = None,
    ) -> None:
        self._connection = self._connects(target, channel, connect_s, access)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._connection.target!r})"

    def _call(self, method: str, request: Any, name: str, timeout: float) -> Plan[bytes]:
        doing = f"model {check_model(name)!r}" if name else "models"
        retry_s = READ_RETRY_S if method in _READS else 0.0
        service = _SERVICES.get(method, _SERVICE)
        plan: Plan[bytes] = self._connection.unary(
            service + method, request.SerializeToString(), timeout, doing, retry_s
        )
        return plan


class Models(ModelsBase, BlockingClient):
    """The models of one server.

    target: "host:port" or "unix:/path", or several of them (`Scorer`), or a channel. connect_s: how
    long a call waits for a server that cannot be reached, seconds. access: TLS and token; None
    takes them from the environment. channel: the caller's own transport. timeout of a call:
    seconds.
    """

    @blocking
    def create(
        self, /, name: str, preset: str = "", *, timeout: float = LONG_DEADLINE_S, **spec: Any
    ) -> Plan[ModelDescription]:
        """Create an empty model.

        name: 1 to 64 characters of a-z 0-9 _ -; the first is a letter. preset: ratings, clicks,
        purchases or news; empty for the server's default. ratings_sgd, clicks_sgd and purchases_sgd
        learn faster and rank less well (docs/rules.md). spec: changes to the preset, by the field
        names of `livefactor.v1.ModelSpec`: k=32, loss="bpr", seed=7, limits={"users_max":
        1_000_000}, optimizer={"kind": "adagrad", "learning_rate": 0.1}. Raises AlreadyExists,
        InvalidArgument (its text names the field), and TypeError or ValueError for an unknown field
        or name.
        """
        request = models_pb2.CreateModelRequest(model=name, preset=preset)
        fill(request.spec, spec, "spec")
        request.spec.SetInParent()
        data = yield from self._call("CreateModel", request, name, timeout)
        return description_of(models_pb2.CreateModelResponse.FromString(data).description)

    @blocking
    def describe(
        self, name: str = "default", *, with_root_hash: bool = False, timeout: float | None = None
    ) -> Plan[ModelDescription]:
        """Describe a model.

        with_root_hash: also hash its whole state at one revision. Raises NotFound.
        """
        request = models_pb2.DescribeModelRequest(model=name, with_root_hash=with_root_hash)
        if timeout is None:
            timeout = LONG_DEADLINE_S if with_root_hash else DEADLINE_S
        data = yield from self._call("DescribeModel", request, name, timeout)
        return description_of(models_pb2.DescribeModelResponse.FromString(data).description)

    @blocking
    def features(
        self, name: str = "default", side: str = "item", *, limit: int = 100, weakest_first: bool = False,
        timeout: float = LONG_DEADLINE_S,
    ) -> Plan[tuple[FeatureReport, ...]]:  # fmt: skip
        """The features of a side that carry the most weight, or the least.

        side: "user", "item", or "context" for the features of events. limit: at most 4096. Raises
        NotFound, ValueError for another side, and InvalidArgument if there are no such features.
        """
        if side not in FEATURE_SIDES:
            raise ValueError(f"side: expected 'user', 'item' or 'context', got {side!r}")
        request = models_pb2.ListFeaturesRequest(
            model=name, side=FEATURE_SIDES[side], limit=limit, weakest_first=weakest_first
        )
        data = yield from self._call("ListFeatures", request, name, timeout)
        found = models_pb2.ListFeaturesResponse.FromString(data).features
        return tuple(FeatureReport(each.name, each.ids, each.strength) for each in found)

    @blocking
    def producers(
        self, name: str = "default", *, limit: int = 100, timeout: float = DEADLINE_S
    ) -> Plan[tuple[ProducerReport, ...]]:
        """The producers of a model, with how far each one is behind. Those that sent last come
        first.

        limit: at most 1000. Raises NotFound.
        """
        request = models_pb2.ListProducersRequest(model=name, limit=limit)
        data = yield from self._call("ListProducers", request, name, timeout)
        return tuple(map(producer_of, models_pb2.ListProducersResponse.FromString(data).producers))

    @blocking
    def list(self, *, timeout: float = DEADLINE_S) -> Plan[tuple[ModelDescription, ...]]:
        """Describe all models of the server, without their judgements."""
        data = yield from self._call("ListModels", models_pb2.ListModelsRequest(), "", timeout)
        return tuple(map(description_of, models_pb2.ListModelsResponse.FromString(data).models))

    @blocking
    def delete(self, name: str, *, timeout: float = LONG_DEADLINE_S) -> Plan[None]:
        """Delete a model, its log and its snapshots for good. Raises NotFound.

        The folder of a model with a fault is set aside instead.
        """
        yield from self._call("DeleteModel", models_pb2.DeleteModelRequest(model=name), name, timeout)

    @blocking
    def restore(
        self,
        name: str,
        source: str,
        snapshot_id: str = "",
        *,
        revision: int | None = None,
        time_us: int | None = None,
        timeout: float = LONG_DEADLINE_S,
    ) -> Plan[ModelDescription]:
        """Create the model `name` from a snapshot of the model `source`, or from an earlier state.

        The server verifies it first. snapshot_id: one of `Auditor.list`; empty for the newest.
        revision, time_us: in place of a snapshot, the state that the source had at this revision,
        or after the last record that arrived up to this time (microseconds since 1970). The server
        computes it from the nearest snapshot and the log. The new model has a new lineage. Its
        revisions continue those of the snapshot. Both names may be that of one model with a fault,
        whose folder the server then sets aside. Raises AlreadyExists, NotFound, ResourceExhausted,
        and FailedPrecondition if the snapshot does not verify or the revision cannot be computed.
        """
        request = models_pb2.RestoreSnapshotRequest(
            model=name, source_model=source, snapshot_id=snapshot_id, revision=revision, time_us=time_us
        )
        data = yield from self._call("RestoreSnapshot", request, name, timeout)
        return description_of(models_pb2.RestoreSnapshotResponse.FromString(data).description)

    @blocking
    def promote(
        self,
        /,
        name: str,
        preset: str = "",
        *,
        on_progress: Callable[[int, int], None] | None = None,
        timeout: float | None = None,
        **spec: Any,
    ) -> Plan[ModelDescription]:
        """Give a model another spec while it serves. Return when it is in force.

        The server learns the whole log with the new spec beside the live model, which takes as long
        as that. preset, spec: as in `create`; without a preset the fields change the spec in force.
        on_progress: called with (revision that the new state has reached, last revision). If the
        call ends before, the model keeps its spec. timeout: None waits for ever. Raises NotFound,
        InvalidArgument (its text names the field), FailedPrecondition if the spec does not fit what
        the model has learned, and ResourceExhausted.
        """
        request = models_pb2.PromoteSpecRequest(model=name, preset=preset)
        fill(request.spec, spec, "spec")
        doing = f"model {check_model(name)!r}"
        path, body = _SERVICE + "PromoteSpec", request.SerializeToString()
        stream, data = yield from self._connection.stream(path, body, timeout, doing)
        while data is not None:
            message = models_pb2.PromoteSpecResponse.FromString(data)
            if message.WhichOneof("kind") == "description":
                return description_of(message.description)
            if on_progress is not None:
                on_progress(message.progress.revision, message.progress.last_revision)
            data = yield Next(stream, doing)
        raise LivefactorError(f"{doing}: the server ended the promotion without a description")

    @blocking
    def roll_back(
        self,
        name: str,
        *,
        to_revision: int | None = None,
        to_time_us: int | None = None,
        without: Sequence[tuple[str, int, int]] = (),
        on_progress: Callable[[int, int], None] | None = None,
        timeout: float | None = None,
    ) -> Plan[ModelDescription]:
        """Roll a model back in place while it serves. Return when it is done.

        Name one of three. to_revision: the state at this revision comes back. to_time_us: that
        after the last record that arrived up to this time, microseconds since 1970. without:
        batches that the state is to be without, as (producer id, first sequence, last sequence).
        Batches that arrive during the call stay. on_progress: called with (revision that the new
        state has reached, last revision). If the call ends before, the model stays as it is.
        timeout: None waits for ever. Raises NotFound, InvalidArgument, FailedPrecondition and
        ResourceExhausted.
        """
        request = models_pb2.RollBackRequest(model=name, to_revision=to_revision, to_time_us=to_time_us)
        for producer_id, first, last in without:
            request.without.add(producer_id=producer_id, first_sequence=first, last_sequence=last)
        doing = f"model {check_model(name)!r}"
        path, body = _SERVICE + "RollBack", request.SerializeToString()
        stream, data = yield from self._connection.stream(path, body, timeout, doing)
        while data is not None:
            message = models_pb2.RollBackResponse.FromString(data)
            if message.WhichOneof("kind") == "description":
                return description_of(message.description)
            if on_progress is not None:
                on_progress(message.progress.revision, message.progress.last_revision)
            data = yield Next(stream, doing)
        raise LivefactorError(f"{doing}: the server ended the rollback without a description")

    @blocking
    def forget_cost(
        self,
        name: str = "default",
        *,
        users: Ids = (),
        items: Ids = (),
        secret: bytes = b"",
        timeout: float | None = None,
    ) -> Plan[ForgetCost]:
        """Return what it costs to forget users and items. Nothing changes. See `forget`."""
        request = _forget_request(name, users, items, secret, dry_run=True)
        path, body, doing = _SERVICE + "Forget", request.SerializeToString(), f"model {check_model(name)!r}"
        _, data = yield from self._connection.stream(path, body, timeout, doing)
        if data is None:
            raise LivefactorError(f"{doing}: the server did not say what it costs")
        return cost_of(models_pb2.ForgetResponse.FromString(data).cost)

    @blocking
    def forget(
        self,
        name: str = "default",
        *,
        users: Ids = (),
        items: Ids = (),
        secret: bytes = b"",
        on_progress: Callable[[str, int, int], None] | None = None,
        timeout: float | None = None,
    ) -> Plan[ErasureReport]:
        """Forget users and items (docs/audit.md). Return the report when it is done.

        users, items: ids as a producer sends them. secret: the key for string ids that the
        producers use. on_progress: called with (stage, done, total). If the call ends before, the
        work goes on; the same call then returns its report. timeout: None waits for ever. Raises
        ColumnError for a value that is no id, NotFound, InvalidArgument, FailedPrecondition and
        ResourceExhausted.
        """
        request = _forget_request(name, users, items, secret)
        path, body, doing = _SERVICE + "Forget", request.SerializeToString(), f"model {check_model(name)!r}"
        stream, data = yield from self._connection.stream(path, body, timeout, doing)
        while data is not None:
            message = models_pb2.ForgetResponse.FromString(data)
            kind, progress = message.WhichOneof("kind"), message.progress
            if kind == "report":
                return report_of(message.report.json)
            if kind == "progress" and on_progress is not None:
                on_progress(progress.stage, progress.done, progress.total)
            data = yield Next(stream, doing)
        raise LivefactorError(f"{doing}: the server ended the call without a report")

    @blocking
    def privacy(self, name: str = "default", *, timeout: float = DEADLINE_S) -> Plan[PrivacyBudget]:
        """Return the budget of differential privacy, and what of it is spent (docs/privacy.md).

        Raises NotFound, and FailedPrecondition if the model has no privacy.
        """
        request = privacy_pb2.DescribePrivacyRequest(model=name)
        data = yield from self._call("DescribePrivacy", request, name, timeout)
        return budget_of(privacy_pb2.DescribePrivacyResponse.FromString(data))

    @blocking
    def contribute(
        self, name: str, release: int, user: str | int, items: Ids, deltas: Any, biases: Any = None,
        *, secret: bytes = b"", timeout: float = DEADLINE_S,
    ) -> Plan[bool]:  # fmt: skip
        """Add what a user's events changed in the rows of items to a release.

        release: `PrivacyBudget.next_release`. items: n different ids. deltas: numbers [n, k].
        biases: n numbers. The server scales them down to the norm `PrivacyBudget.clip`. Return
        whether it counts: of several contributions of a user to a release only the first does.
        Raises ColumnError, NotFound, InvalidArgument, FailedPrecondition and ResourceExhausted.
        """
        hashed = partial(keys_of, secret=secret)
        keys, (key,) = as_keys("items", items, hashed), as_keys("user", [user], hashed).tolist()
        _, body = delta_body(SIDES["item"], keys, deltas, biases, 1.0)
        request = privacy_pb2.ContributeRequest(
            model=name, release=release, user_id=key, deltas=updates_pb2.FactorDeltas.FromString(body)
        )
        data = yield from self._call("Contribute", request, name, timeout)
        return privacy_pb2.ContributeResponse.FromString(data).counted

    @blocking
    def make_release(self, name: str, release: int, *, timeout: float = LONG_DEADLINE_S) -> Plan[Position]:
        """Add noise to the sum of a release, and apply it. Return its position.

        The call may be made again: a release is made once. Raises NotFound, and FailedPrecondition
        if the budget is spent or `release` is not the next one.
        """
        request = privacy_pb2.MakeReleaseRequest(model=name, release=release)
        data = yield from self._call("MakeRelease", request, name, timeout)
        return position_of(privacy_pb2.MakeReleaseResponse.FromString(data).position)

    @blocking
    def challenge(
        self,
        /,
        name: str,
        preset: str = "",
        *,
        challenger: str = "",
        share: float = 0.0,
        timeout: float = DEADLINE_S,
        **spec: Any,
    ) -> Plan[Contest]:
        """Add a challenger: a spec that is judged beside the model's own on the same events.

        preset, spec: as in `promote`. challenger: its name, in the characters of a model's name;
        empty for the preset's. share: the share of the users whom it answers, up to 0.5
        (docs/auto.md). A model that began with preset auto is switched to a challenger that wins.
        For other models the verdict only informs. Raises NotFound, InvalidArgument, AlreadyExists,
        ResourceExhausted, and FailedPrecondition if the spec could reject what the model accepts,
        or if the server runs without challengers.
        """
        request = challenging_pb2.AddChallengerRequest(
            model=name, preset=preset, name=challenger, share=share
        )
        fill(request.spec, spec, "spec")
        data = yield from self._call("AddChallenger", request, name, timeout)
        return contest_of(challenging_pb2.AddChallengerResponse.FromString(data).contest)

    @blocking
    def challengers(self, name: str = "default", *, timeout: float = DEADLINE_S) -> Plan[Contest]:
        """Return how the challengers of a model stand. Raises NotFound and FailedPrecondition."""
        request = challenging_pb2.ListChallengersRequest(model=name)
        data = yield from self._call("ListChallengers", request, name, timeout)
        return contest_of(challenging_pb2.ListChallengersResponse.FromString(data).contest)

    @blocking
    def settle(
        self,
        /,
        name: str = "default",
        challenger: str = "",
        *,
        preset: str = "",
        timeout: float = LONG_DEADLINE_S,
        **spec: Any,
    ) -> Plan[ModelDescription]:
        """End the search of a model for a better spec.

        challenger: the name of a challenger, or of a preset that the model tries, whose spec the
        model gets. preset, spec: the spec that it gets instead, as in `promote`. Without both its
        spec stays. Raises NotFound, InvalidArgument, FailedPrecondition and ResourceExhausted; the
        search then goes on.
        """
        request = challenging_pb2.SettleModelRequest(model=name, challenger=challenger, preset=preset)
        if spec:
            fill(request.spec, spec, "spec")
        data = yield from self._call("SettleModel", request, name, timeout)
        return description_of(challenging_pb2.SettleModelResponse.FromString(data).description)

    @blocking
    def take_lead(
        self, *, force: bool = False, address: str = "", timeout: float = LONG_DEADLINE_S
    ) -> Plan[tuple[Lead, ...]]:
        """Make the server, which follows another one, the leader of its models.

        force: also while the leader before answers; what it acknowledges from then on is lost.
        address: where clients and followers reach the server, "host:port"; the leader before names
        it to them. Raises FailedPrecondition if the server follows nobody, or if its leader still
        answers.
        """
        request = following_pb2.TakeLeadRequest(force=force, address=address)
        data = yield from self._connection.unary(
            _FOLLOWING + "TakeLead", request.SerializeToString(), timeout, "take the lead"
        )
        found = following_pb2.TakeLeadResponse.FromString(data)
        return tuple(Lead(each.model, each.revision, each.term) for each in found.leads)

    @blocking
    def release(self, name: str = "default", *, timeout: float = DEADLINE_S) -> Plan[ModelDescription]:
        """End a hold of updates (`ModelDescription.hold`). The judge takes what follows as normal.

        Open a producer again if it was refused with FailedPrecondition. It resumes behind its last
        sequence number. Raises NotFound, and FailedPrecondition if the model does not hold updates.
        """
        data = yield from self._call("ReleaseHold", models_pb2.ReleaseHoldRequest(model=name), name, timeout)
        return description_of(models_pb2.ReleaseHoldResponse.FromString(data).description)

    @blocking
    def quarantine(
        self, name: str = "default", *, timeout: float = LONG_DEADLINE_S
    ) -> Plan[tuple[QuarantinedBatch, ...]]:
        """Return the batches that wait in quarantine, the oldest first. Raises NotFound."""
        request = models_pb2.ListQuarantineRequest(model=name)
        data = yield from self._call("ListQuarantine", request, name, timeout)
        return tuple(map(batch_of, models_pb2.ListQuarantineResponse.FromString(data).batches))

    @blocking
    def decide(
        self,
        revisions: Sequence[int],
        accept: bool,
        name: str = "default",
        *,
        timeout: float = LONG_DEADLINE_S,
    ) -> Plan[tuple[QuarantineDecision, ...]]:
        """Accept or drop batches in quarantine: learn them now, or never.

        revisions: those of the batches, at most 1,000. Raises NotFound, FailedPrecondition if no
        batch waits at one of them, and ResourceExhausted if another act of the model is in
        progress.
        """
        decision = models_pb2.DECISION_ACCEPT if accept else models_pb2.DECISION_DROP
        request = models_pb2.DecideQuarantineRequest(model=name, revisions=revisions, decision=decision)
        data = yield from self._call("DecideQuarantine", request, name, timeout)
        return tuple(map(decision_of, models_pb2.DecideQuarantineResponse.FromString(data).decisions))


def _forget_request(
    name: str, users: Ids, items: Ids, secret: bytes, dry_run: bool = False
) -> models_pb2.ForgetRequest:
    hashed = partial(keys_of, secret=secret)
    keys = [as_keys(what, ids, hashed).tolist() for what, ids in (("users", users), ("items", items))]
    return models_pb2.ForgetRequest(model=name, user_ids=keys[0], item_ids=keys[1], dry_run=dry_run)
