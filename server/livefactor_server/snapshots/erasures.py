"""The report of an erasure: evidence that anyone who has the log can check.

It is a file of the model, `erasure-<revision of the ERASE record>.json`, and does not name the
subjects. An EVIDENCE record of the log has its SHA-256, so a change of any byte is found. The root
hashes in it are those of the state at `revision`. `learned_root_hash` leaves the section of the
producers out, because their answers stay as they were given. It is the one of a model whose log
never had the erased rows.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from livefactor.snapshots import format as fmt
from livefactor.snapshots.format import Tensor
from livefactor_server.changes.history.erase import Evidence
from livefactor_server.log.store import Kind, Log
from livefactor_server.model.state import ModelState
from livefactor_server.snapshots.freezing import freeze_idle
from livefactor_server.snapshots.records import present
from livefactor_server.snapshots.safetensors_writer import sync_folder
from livefactor_server.snapshots.store import root_hash_of

FORMAT = 1
_PREFIX = "erasure-"


@dataclass(frozen=True, slots=True)
class Report:
    """What an erasure did.

    Attributes:
        lineage: of the model.
        erase, erased: revisions of the ERASE and the ERASED record.
        records, rows: numbers of older records that named a subject, and of rows in them.
        revision: the revision of the hashes, at or after `erased`.
        log_hash: chain hash at `revision`, in hex.
        root_hash, learned_root_hash: of the state at `revision`, in hex. The second leaves the
            section of producers out.
        segments: names of the rewritten segments.
        snapshots: ids of the removed snapshots.
        tails: names of the removed copies of unsynced tails.
        archives: paths of archived segments of the model that name a subject, or may do so. The
            server did not change them.
        time_us: when the report was made, microseconds since 1970.
        began_with: id of the snapshot with which the replay began, which had learned nothing of the
            subjects. Empty if the replay began with the log.
        put_back: names of the archived segments that were put back for the replay.
        archives_changed: names of the archived segments that were rewritten in the archive, too.
    """

    lineage: str
    erase: int
    erased: int
    records: int
    rows: int
    revision: int
    log_hash: str
    root_hash: str
    learned_root_hash: str
    segments: tuple[str, ...]
    snapshots: tuple[str, ...]
    tails: tuple[str, ...]
    archives: tuple[str, ...]
    time_us: int
    began_with: str = ""
    put_back: tuple[str, ...] = ()
    archives_changed: tuple[str, ...] = ()

    def to_json(self) -> bytes:
        """The bytes of the file."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> Report:
        """Reads the bytes of a file.

        Raises:
            ValueError: they are no report. It may be a subclass.
        """
        try:
            fields: dict[str, Any] = json.loads(data)
            if fields.pop("format") != FORMAT:
                raise ValueError("a later version of livefactor wrote the report")
            lists = {name: tuple(each) for name, each in fields.items() if isinstance(each, list)}
            return cls(**{**fields, **lists})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is no report: {error}") from None


def learned_root(revision: int, tensors: Iterable[Tensor]) -> bytes:
    """The root hash of a state without its section of producers."""
    return fmt.root_hash(revision, [each for each in tensors if each.place.name != "producers"])


def fits(report: Report, state: ModelState) -> bool:
    """Whether a state that does not change any more has the hashes of a report."""
    root, tensors = root_hash_of(freeze_idle("replay", state, "sha256"))
    found = state.log_hash, root, learned_root(state.revision, tensors)
    said = report.log_hash, report.root_hash, report.learned_root_hash
    return tuple(each.hex() for each in found) == said


def path_of(folder: Path, erase: int) -> Path:
    """The file of the report of an erasure."""
    return folder / f"{_PREFIX}{erase}.json"


def write(folder: Path, report: Report) -> bytes:
    """Writes a report durably. Returns its SHA-256."""
    data = report.to_json()
    draft = folder / f".{_PREFIX}{report.erase}.json"
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path_of(folder, report.erase))
    sync_folder(folder)
    return hashlib.sha256(data).digest()


def files(folder: Path) -> Iterator[tuple[int, Path]]:
    """Yields the revision of an erasure and the file of its report, for each report of a model."""
    for path in sorted(folder.glob(f"{_PREFIX}*.json")):
        text = path.stem.removeprefix(_PREFIX)
        if text.isascii() and text.isdigit():
            yield int(text), path


def evidence(log: Log) -> dict[int, bytes]:
    """The SHA-256 of each report that the log has evidence of, by the revision of its erasure."""
    found = {}
    for records in present(log, log.last_revision) if log.acts.erased else ():
        for number in range(len(records)):
            if records[number].kind == Kind.EVIDENCE:
                each = Evidence.from_body(bytes(records[number].body))
                found[each.erase] = each.report
    return found


def check(folder: Path, log: Log) -> dict[int, tuple[Report | None, str]]:
    """Compares the reports of a model with the evidence in its log.

    Returns, by the revision of the ERASE record, the report and what is wrong with it; "" if
    nothing is. A report whose evidence a retention may have deleted is left out.
    """
    known, gap = evidence(log), log.gap
    found: dict[int, tuple[Report | None, str]] = {}
    for erase, path in files(folder):
        data = path.read_bytes()
        if erase not in known and gap is not None and gap.first <= erase <= gap.last:
            continue
        if erase not in known:
            found[erase] = None, "the log has no evidence of it"
        elif hashlib.sha256(data).digest() != known[erase]:
            found[erase] = None, "its bytes are not those that the log has the hash of"
        else:
            found[erase] = Report.from_json(data), ""
    for erase in known.keys() - found.keys():
        found[erase] = None, "the file is missing"
    return found
