"""Bugs that are planted in this process: the check of each promise passes without, and fails with.

`tally.PLANTS` lists all bugs. The others are caught by the tests of the log, of readers, of roles
and of power cuts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine_rig import SPEC, Rig, batch, replayed_root
from livefactor.federated import masking
from livefactor.federated.masking import Participant, addressed_to
from livefactor.wire import columns as wire
from livefactor_kernels.numbers import scalar
from livefactor_kernels.reference import ReferenceModel
from livefactor_kernels.spec.model import Limits, Loss
from livefactor_kernels.spec.privacy import Privacy
from livefactor_kernels.tables import ITEMS, USERS
from livefactor_server.changes import Header
from livefactor_server.changes.content import releasing
from livefactor_server.engine.commit import Commit
from livefactor_server.engine.engine import EngineSettings
from livefactor_server.engine.quotas import Quota, QuotaSettings
from livefactor_server.log.store import LogFull
from livefactor_server.model import producers
from livefactor_server.model.producers import ProducerTable
from livefactor_server.snapshots.freezing import freeze_idle
from livefactor_server.snapshots.replay import snapshot_store
from livefactor_server.statuses import Refused
from synthetic import make_spec, push
from tally import Tally

PRODUCER = b"shop"


def rig_at(folder: Path, settings: EngineSettings | None = None) -> Rig:
    (folder / "snapshots").mkdir(parents=True)
    return Rig(folder, SPEC, settings)


def producers_are_kept(folder: Path) -> None:
    """A producer that does not know what arrived asks after a restart, and sends only the rest."""
    rig = rig_at(folder)
    epoch = rig.open(PRODUCER).epoch
    for sequence in range(1, 4):
        rig.push(batch(sequence), PRODUCER, epoch, sequence)
    snapshot_store(folder).take(freeze_idle("m", rig.engine.state, "sha256"))
    rig.close()
    rig = Rig(folder)
    try:
        opened = rig.open(PRODUCER)
        for sequence in range(opened.last_sequence + 1, 5):
            rig.push(batch(sequence), PRODUCER, opened.epoch, sequence)
        assert rig.engine.state.events == 400
    finally:
        rig.close()


def plant_lost_producers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(producers, "decode", lambda body: (ProducerTable(), b""))


def nothing_is_applied_that_is_not_in_the_log(folder: Path) -> None:
    """With a full disk no batch is taken, and the state stays that of the log."""
    rig = rig_at(folder)
    rig.io.full = True
    try:
        for seed in range(100):
            rig.push(batch(seed))
    except Refused:
        pass
    root = rig.root()
    rig.io.full = False
    rig.close()
    assert root == replayed_root(folder)


def plant_apply_first(patch: pytest.MonkeyPatch) -> None:
    """A group that cannot be written is applied nevertheless."""
    given = Commit.append

    def append(self: Commit) -> None:
        try:
            given(self)
        except LogFull:
            for batch_, entry in zip(self.batches, self.entries, strict=True):
                self.headers.append(
                    Header(
                        revision=entry.revision, producer=batch_.producer, epoch=batch_.epoch,
                        sequence=batch_.sequence, salt=batch_.salt, received_hash=batch_.received_hash,
                        rejects=batch_.rejects, hash=bytes(32), previous=self.chain, time_us=entry.time_us,
                    )
                )  # fmt: skip

    patch.setattr(Commit, "append", append)


def a_producer_stays_within_its_quota(folder: Path) -> None:
    rig = rig_at(folder, EngineSettings(quotas=QuotaSettings(new_ids_per_minute=50)))
    rig.push(wire.encode_interactions([*range(1, 1001)], [1] * 1000))
    found = sum(rig.engine.state.backend.published)
    rig.close()
    assert found <= 100


def plant_no_quota(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Quota, "left", lambda self, payer: float("inf"))


def messages_hide_vectors(folder: Path) -> None:
    vectors = {index: np.full(64, index, np.uint32) for index in (1, 2, 3)}
    people = {index: Participant(index, 2, b"round") for index in vectors}
    adverts = [each.advert() for each in people.values()]
    shares = [each.share(adverts) for each in people.values()]
    for index, each in people.items():
        masked = each.mask(addressed_to(index, shares), vectors[index])
        assert (masked.vector == vectors[index]).mean() < 0.1


def plant_no_masks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(masking, "_add", lambda total, seed, is_added: None)


def an_event_has_a_bounded_influence(folder: Path) -> None:
    spec = make_spec(
        Loss.SQUARED, limits=Limits(100, 100, value_abs_max=1000.0, weight_max=10.0, error_max=0.5)
    )
    model = ReferenceModel(spec)
    push(model, [1], [1], [0.0])
    before = [model.gather(side, np.zeros(1, np.int64)) for side in (USERS, ITEMS)]
    push(model, [1], [1], [1000.0], [10.0])
    after = [model.gather(side, np.zeros(1, np.int64)) for side in (USERS, ITEMS)]
    step = max(float(np.abs(new[1] - old[1]).max()) for new, old in zip(after, before, strict=True))
    assert 0 < step < 0.07 * 0.6


def plant_no_clip(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(scalar, "squared_error", lambda s, value, weight, limit: weight * (s - value))


def a_release_is_noisy(folder: Path) -> None:
    """The noise of a release has the standard deviation that the budget is computed from."""
    privacy = Privacy(epsilon=2.0, delta=1e-6, clip=0.5, noise=3.0)
    noise = releasing.released(np.zeros((500, 40), np.int64), privacy)
    found = float(noise.std()) / (privacy.clip * privacy.noise)
    assert 0.97 < found < 1.03 and abs(float(noise.mean())) < 0.05


def plant_no_noise(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(releasing, "normal", np.zeros)


CASES: dict[str, tuple[Callable[[Path], None], Callable[[pytest.MonkeyPatch], None]]] = {
    "producers not kept": (producers_are_kept, plant_lost_producers),
    "applied before the log": (nothing_is_applied_that_is_not_in_the_log, plant_apply_first),
    "quota off": (a_producer_stays_within_its_quota, plant_no_quota),
    "masks off": (messages_hide_vectors, plant_no_masks),
    "clip off": (an_event_has_a_bounded_influence, plant_no_clip),
    "noise off": (a_release_is_noisy, plant_no_noise),
}


@pytest.mark.torture
@pytest.mark.parametrize("plant", CASES)
def test_a_planted_bug_is_caught(plant: str, tmp_path: Path, monkeypatch, tally: Tally) -> None:
    check, spoil = CASES[plant]
    check(tmp_path / "sound")
    spoil(monkeypatch)
    with pytest.raises(AssertionError):
        check(tmp_path / "spoiled")
    tally.catch(plant)
