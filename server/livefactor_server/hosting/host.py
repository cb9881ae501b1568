"""The models of one server: create, open with recovery, restore, delete, drain.

<data>/lock                      locked by one server (flock)
<data>/models/<name>/log         segments of the model's log
<data>/models/<name>/snapshots   snapshots of the model
<data>/models/<name>/base        the snapshot with which a restored model began
<data>/models/<name>/challengers, challengers.json   of contests (`challenging`)
<data>/models/<name>/hold.json   the hold of updates, if there is one
<data>/models/<name>/model.json  the model's name and lineage (`identity.py`)

A model that cannot be opened has a fault (`faults.py`). The others are served.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from livefactor.errors import SnapshotInvalid
from livefactor.snapshots.format import Manifest
from livefactor.wire.limits import MODEL_NAME
from livefactor_kernels.spec.model import ModelSpec, SpecError
from livefactor_kernels.spec.presets import DEFAULT_PRESET, preset
from livefactor_server.challenging.challengers import Challengers, Subject
from livefactor_server.challenging.contests import Contests
from livefactor_server.engine.engine import Engine, EngineSettings
from livefactor_server.hosting import compiling, earlier, identity, kernels
from livefactor_server.hosting.earlier import Moment
from livefactor_server.hosting.faults import Fault, Faults
from livefactor_server.hosting.folders import DataFolderBusy as DataFolderBusy
from livefactor_server.hosting.folders import Folders, hold
from livefactor_server.hosting.following.follower import Following
from livefactor_server.hosting.following.leader import Leader
from livefactor_server.hosting.following.leading import Fencing, Lead, begin_terms
from livefactor_server.hosting.forgetting.forgetter import Forgetter
from livefactor_server.hosting.hosted import Hosted as Hosted
from livefactor_server.hosting.identity import Terms
from livefactor_server.hosting.keeper import Keeper, KeeperSettings
from livefactor_server.judging.board import start_board
from livefactor_server.log.errors import WrongKey
from livefactor_server.log.store import Log
from livefactor_server.model import spec_codec
from livefactor_server.snapshots import replay
from livefactor_server.snapshots.store import SnapshotNotFound, SnapshotStore
from livefactor_server.snapshots.store import verify as verify_snapshot
from livefactor_server.statuses import (
    NotLeader,
    exhausted,
    exists,
    invalid,
    later,
    no_memory,
    not_found,
    precondition,
    unavailable,
)
from livefactor_server.text import NAME_CHARACTERS_MAX, quoted

DEFAULT_MODEL = "default"
MODELS_MAX = 64

logger = logging.getLogger(__name__)


MODELS_LISTED_MAX = 10
"""Maximum number of models in the error for an unknown name."""


@dataclass(frozen=True, slots=True)
class HostingSettings:
    """Settings of a server's models.

    Attributes:
        default_preset: preset of the model "default", which an empty data folder gets at start.
        default_spec: spec of that model, in place of the preset.
        engine: settings of each engine.
        keeper: settings of the snapshots.
        auto_cpu_share: maximum share of one core of the models' contests (`challenging`). 0 turns
            challengers off.
        leader: the server that this one follows. None takes updates itself.
    """

    default_preset: str = DEFAULT_PRESET
    default_spec: ModelSpec | None = None
    engine: EngineSettings = field(default_factory=EngineSettings)
    keeper: KeeperSettings = field(default_factory=KeeperSettings)
    auto_cpu_share: float = 0.25
    leader: Leader | None = None


Progress = Callable[[str, int, int], None]
"""(model, reached revision, last revision) during the replay of a log."""


class Hosting:
    """All models of a data folder, which is `data`. Thread-safe."""

    def __init__(self, data: Path, settings: HostingSettings) -> None:
        self.data = data
        self._settings = settings
        self._models: dict[str, Hosted] = {}
        self._faults = Faults(data)
        self._lock = threading.Lock()
        self._leading = threading.Lock()
        self._fencing: Fencing | None = None
        self._open_for_calls = False
        self._draining = False
        self._folders = Folders(data)
        self._lock_file = hold(data / "lock")
        self._contests = Contests(self._challengers)
        self._compiler: compiling.Helper | None = None
        self.following = None if settings.leader is None else Following(self, settings.leader)

    def open_all(self, progress: Progress | None = None, on_step: kernels.StepReport | None = None) -> None:
        """Opens every model in the folder. One that cannot be opened gets a fault.

        If there is none, it creates the model "default" from the default spec or preset, if one is
        set. Calls get UNAVAILABLE until this returns. `on_step` reports the kernels that are being
        compiled.
        """
        self._folders.clean()
        there = self._folders.names()
        spec, name = self._settings.default_spec, self._settings.default_preset
        # A follower has the models of its leader.
        makes = not there and self.following is None and (spec or name)
        made = (spec or preset(name)) if makes else None
        models = {each: self._folders.path(each) for each in there}
        plan = kernels.plan_of_start(self._settings.engine.backend, models, made)
        try:
            compiling.compile_missing(plan, on_step)
        except Exception:
            # The model that is the cause gets a fault when it is opened.
            logger.exception("kernels could not be compiled ahead")
        for each in there:
            self._keep(each, progress)
        if made is not None:
            self._create(DEFAULT_MODEL, made)
        default = self._models.get(DEFAULT_MODEL)
        if default and spec and default.engine.state.spec != spec:
            logger.warning("model %s: it keeps its spec, which differs from the settings", DEFAULT_MODEL)
        self._open_for_calls = True
        self._compiler = compiling.compile_later(replace(plan, log=True))
        if self.following is not None:
            self.following.start()
        elif self._settings.auto_cpu_share > 0:
            self._contests.start()

    def _challengers(self) -> list[Challengers]:
        return [each.challengers for each in list(self._models.values()) if each.challengers is not None]

    def _keep(self, name: str, progress: Progress | None) -> None:
        try:
            self._models[name] = self._open(name, progress)
        except WrongKey:
            # It would be the same for each model.
            raise
        except Exception as error:
            self._faults.note(name, error)

    def _check_open(self) -> None:
        if not self._open_for_calls:
            raise unavailable("server: starting, models are being opened")

    def _open(self, name: str, progress: Progress | None) -> Hosted:
        folder = self._folders.path(name)
        store = replay.snapshot_store(folder)
        since = max((info.revision for info in store.list()), default=0)
        log = Log.open(replay.log_folder(folder), since=since)
        times: list[float] = []

        def report(at: int, last: int) -> None:
            times.append(time.monotonic())
            if progress is not None:
                progress(name, at, last)

        try:
            terms = Terms.load(folder)
            identity.check(folder, log.lineage, self._folders.siblings(name))
            store.clean()
            state = replay.recover(folder, log, self._settings.engine.backend, report)
            engine = Engine(name, state, log, self._settings.engine, folder / "hold.json")
        except BaseException:
            log.close()
            raise
        engine.leader = terms.fence(log.acts.term) if self.following is None else self.following.leader
        kernels.prepare(state.spec, self._settings.engine.backend)
        engine.start()
        # The first report comes after kernels were compiled and the snapshot was loaded.
        keeper = Keeper(engine, store, self._settings.keeper, times[-1] - times[0])
        keeper.start()
        board = start_board(self._settings.engine.observer.tensorboard, engine.name, engine.observer)
        logger.info(
            "model %s is open at revision %d with %d users and %d items",
            name, state.revision, *state.backend.published,
        )  # fmt: skip
        forgetter = Forgetter(folder, engine, keeper)
        hosted = Hosted(name, folder, engine, keeper, forgetter, board, terms=terms)
        hosted.keep_term()
        engine.on_switch, forgetter.is_sharing = hosted.forget_reader, lambda: hosted.sharing is not None
        if (share := self._settings.auto_cpu_share) and not engine.leader:
            start = partial(replay.start_of, folder, log, "cpu")
            subject = Subject(folder, engine, keeper.take, hosted.promote, start)
            made = Challengers(subject, share, self._settings.engine.memory_bytes_max)
            made.is_erasing = lambda: forgetter.running is not None
            forgetter.is_contesting = lambda: made.pid is not None
            hosted.challengers = made
        forgetter.resume()
        if engine.leader:
            forgetter.follow()
        return hosted

    def get(self, name: str, covers: Callable[[str], bool] | None = None) -> Hosted:
        """The model with this name. "" means "default".

        `covers` tells which other models the text of an error may name. None names them all.

        Raises:
            Refused: NOT_FOUND if it does not exist, FAILED_PRECONDITION if it cannot be opened,
                INVALID_ARGUMENT if the name is too long, UNAVAILABLE during the start.
        """
        self._check_open()
        hosted = self._models.get(name or DEFAULT_MODEL)
        if hosted is not None:
            return hosted
        if fault := self.fault(name):
            raise fault.refusal()
        if len(name) > NAME_CHARACTERS_MAX:
            raise invalid(f"model: a name has at most {NAME_CHARACTERS_MAX} characters, got {len(name)}")
        shown = sorted(filter(covers, self._models) if covers else self._models)
        there_are = ", ".join(shown[:MODELS_LISTED_MAX]) or "no models"
        raise not_found(f"model: {quoted(name or DEFAULT_MODEL)} does not exist; there are {there_are}")

    def fault(self, name: str) -> Fault | None:
        """Why the model with this name cannot be opened, or None. "" means "default".

        Raises:
            Refused: UNAVAILABLE during the start.
        """
        self._check_open()
        return self._faults.get(name or DEFAULT_MODEL)

    def faults(self) -> list[Fault]:
        """All models that cannot be opened, in order of their names."""
        return self._faults.all()

    def snapshots(self, name: str) -> SnapshotStore:
        """The snapshots of a model, also of one that cannot be opened. "" means "default".

        Raises:
            Refused: as `get`, but with FAILED_PRECONDITION only if the folder cannot be read.
        """
        fault = self.fault(name)
        if fault is None:
            return self.get(name).keeper.store
        try:
            return replay.snapshot_store(self._folders.path(fault.name))
        except OSError:
            raise fault.refusal() from None

    def all(self) -> list[Hosted]:
        """All models, in order of their names.

        Raises:
            Refused: UNAVAILABLE during the start.
        """
        self._check_open()
        return self._by_name()

    def _by_name(self) -> list[Hosted]:
        return [self._models[name] for name in sorted(self._models)]

    def create(self, name: str, spec: ModelSpec) -> Hosted:
        """Creates an empty model, which is durable when this returns.

        Raises:
            Refused: the name is invalid or in use, a limit is reached, or the server starts.
        """
        self._check_open()
        self._check_leads()
        return self._create(name, spec)

    def _create(self, name: str, spec: ModelSpec) -> Hosted:
        spec_body, lineage = spec_codec.encode(spec), uuid.uuid4()

        def fill(folder: Path) -> None:
            Log.create(
                replay.log_folder(folder), spec_body, 0, lineage, time_us=time.time_ns() // 1000
            ).close()
            identity.write(folder, name, lineage)

        with self._lock:
            if self._faults.get(name):
                raise exists(f"model: {quoted(name)} exists already, and it cannot be opened")
            return self._add(name, fill)

    def restore_at(self, name: str, source: str, moment: Moment, check: Callable[[], None]) -> Hosted:
        """Creates a model that begins with the state of the model `source` at an earlier moment.

        `check` is called again and again while the state is computed. Its exception ends the work.

        Raises:
            Refused: as `earlier.state_at` and `restore`.
        """
        self._check_name(name)
        origin = self.get(source)
        with earlier.snapshot_at(origin.folder, origin.engine, moment, check) as path:
            return self._begin_with(name, verify_snapshot(path).manifest, path)

    def restore(self, name: str, source: str, snapshot_id: str) -> Hosted:
        """Creates a model that begins with a snapshot of the model `source`.

        It verifies the snapshot first. Both models may be one that cannot be opened. The new model
        takes the place of such a one, whose folder is set aside.

        Raises:
            Refused: the snapshot does not exist or does not verify, the name is invalid or in use,
                or a limit is reached.
        """
        origin = self.snapshots(source)
        try:
            loaded = origin.load(snapshot_id)
            manifest, path = origin.open(loaded.manifest.snapshot_id)
            spec_codec.decode(manifest.spec)
        except SnapshotNotFound:
            raise not_found("snapshot: it does not exist") from None
        except (SpecError, SnapshotInvalid) as error:
            logger.warning("model %s: the verification of a snapshot failed: %s", source, error)
            raise precondition("snapshot: its verification failed; see the server's log") from None
        return self._begin_with(name, manifest, path)

    def _begin_with(self, name: str, manifest: Manifest, path: Path) -> Hosted:
        """Creates a model that begins with the verified snapshot in a folder."""
        self._check_leads()
        lineage = uuid.uuid4()

        def fill(folder: Path) -> None:
            earlier.begin_with(folder, path, manifest, lineage, self._settings.engine.backend)
            identity.write(folder, name, lineage)

        with self._lock:
            return self._add(name, fill)

    def _check_name(self, name: str) -> None:
        if not MODEL_NAME.fullmatch(name):
            raise invalid("model: a name has 1 to 64 of the characters a-z 0-9 _ - and begins with a letter")
        if name in self._models:
            raise exists(f"model: {quoted(name)} exists already")

    def _add(self, name: str, fill: Callable[[Path], None]) -> Hosted:
        """Makes and opens a model. The caller holds the lock."""
        self._check_name(name)
        if self._draining:
            raise unavailable("server: draining")
        fault = self._faults.get(name)
        if fault is None and len(self._models) + len(self._faults.all()) >= MODELS_MAX:
            raise exhausted(f"models: the server has reached its limit of {MODELS_MAX}")
        try:
            (self._folders.make if fault is None else self._folders.replace)(name, fill)
        except OSError:
            logger.exception("model %s: the creation failed", name)
            raise later("disk: the model's files could not be written") from None
        self._faults.forget(name)
        try:
            self._models[name] = self._open(name, None)
        except MemoryError as error:
            if fault is None:
                # The next start would have too little memory for this model, too.
                self._folders.remove(name)
            else:
                self._faults.note(name, error)
            raise no_memory("this model") from None
        except Exception as error:
            self._faults.note(name, error)
            raise
        return self._models[name]

    def names(self) -> list[str]:
        """See `following.follower.Models`."""
        return [*self._models, *(fault.name for fault in self._faults.all())]

    def followed(self, name: str) -> tuple[Engine, Path]:
        """See `following.follower.Models`."""
        hosted = self.get(name)
        return hosted.engine, hosted.folder

    def add_copy(self, name: str, fill: Callable[[Path], None]) -> None:
        """See `following.follower.Models`."""
        with self._lock:
            self._add(name, fill)

    def lost(self) -> list[str]:
        """See `following.follower.Models`."""
        return [fault.name for fault in self._faults.all() if fault.lost]

    def replace_with_copy(self, name: str, fill: Callable[[Path], None], keeps: bool = True) -> Path:
        """See `following.follower.Models`."""

        def fill_and_close(folder: Path) -> None:
            fill(folder)
            if before is not None:
                before.end()

        with self._lock:
            if self._draining:
                raise unavailable("server: draining")
            before = self._models.get(name)
            aside = self._folders.replace(name, fill_and_close, keeps)
            self._models[name] = self._open(name, None)
            self._faults.forget(name)
            if before is not None:
                before.engine.withdraw()
            return aside

    def reopen(self, name: str) -> None:
        """See `following.follower.Models`. The old state answers meanwhile."""
        with self._lock:
            if not self._draining:
                (before := self.get(name)).end()
                self._models[name] = self._open(name, None)
                before.engine.withdraw()

    def note_term(self, name: str) -> int:
        """See `following.follower.Models`."""
        (hosted := self.get(name)).keep_term()
        return hosted.term

    def take_lead(self, force: bool, address: str) -> list[Lead]:
        """Makes this server the leader of its models. `address` is where it can be reached.

        Raises:
            Refused: FAILED_PRECONDITION if it follows nobody, or the leader answers unforced.
        """
        with self._leading:
            following = self.following
            if following is None:
                raise precondition("server: it follows no other one")
            if not force and following.calls.answers():
                raise precondition(f"server: {following.leader} still answers; stop it, or force the change")
            following.stop()
            self.following = None
            models = self._by_name()
            leads = begin_terms(models, following.leader)
            self._fencing = Fencing(following.calls, models, address)
            return leads

    def _check_leads(self) -> None:
        if self.following is not None:
            raise NotLeader(self.following.leader)

    def delete(self, name: str) -> None:
        """Deletes a model, its log and its snapshots. If it cannot be opened, sets it aside.

        Raises:
            Refused: NOT_FOUND if it does not exist.
        """
        self._check_leads()
        with self._lock:
            if fault := self.fault(name):
                self._folders.set_aside(fault.name)
                self._faults.forget(fault.name)
                return
            hosted = self.get(name)
            del self._models[hosted.name]
            hosted.engine.withdraw()
            hosted.end()
            self._folders.remove(hosted.name)

    def finish_updates(self) -> None:
        """Refuses new batches and models, and finishes accepted batches. Idempotent."""
        with self._lock:
            if self._draining:
                return
            self._draining = True
        with self._leading:
            if self.following is not None:
                self.following.stop()
                self.following.calls.close()
            if self._fencing is not None:
                self._fencing.stop()
        with self._lock:
            for hosted in self._by_name():
                hosted.engine.drain()

    def drain(self) -> None:
        """Finishes accepted batches, takes last snapshots and closes all models. Idempotent."""
        self.finish_updates()
        self._contests.stop()
        if self._compiler is not None:
            self._compiler.end()
        with self._lock:
            for hosted in self._by_name():
                hosted.stop(take_last=True)
            self._faults.close()
            self._lock_file.close()
