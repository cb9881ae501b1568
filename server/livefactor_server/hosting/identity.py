"""The identity of a model's folder: `model.json` holds the model's name and the lineage of its log.

It is written with the model. A folder that an earlier version made gets it when it is opened. So a
log that was copied here from another model is found, even where it is whole. The file has a hash of
itself, so that a changed byte is found. Earlier versions wrote none.

`term.json` beside it has the term of the model. A follower that becomes the leader logs a record
TERM, with a term above the one before. A start reads only the end of a log, so the file repeats the
newest term. It also keeps a fence: the term of a newer leader, of which this log has no record. A
fenced model takes no updates, also after a restart, until it follows the newer leader.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from livefactor_server.snapshots.safetensors_writer import sync_folder, write_file

FILE = "model.json"
TERMS_FILE = "term.json"
UNKNOWN_LEADER = "another server"
"""What stands in place of the address of a leader that is not known."""


class ForeignFolder(Exception):
    """The folder, or the log in it, belongs to another model."""


def write(folder: Path, name: str, lineage: uuid.UUID) -> None:
    """Writes the identity of a model's folder, durably.

    Raises:
        OSError: the file cannot be written.
    """
    temporary = folder / f".{FILE}"
    temporary.unlink(missing_ok=True)
    write_file(temporary, [_encoded({"model": name, "lineage": str(lineage)})])
    os.rename(temporary, folder / FILE)
    sync_folder(folder)


def _encoded(fields: dict[str, str]) -> bytes:
    """The bytes of the file: the fields, and their hash."""
    return _json(fields | {"sha256": hashlib.sha256(_json(fields)).hexdigest()})


def _json(fields: dict[str, str]) -> bytes:
    return json.dumps(fields, sort_keys=True).encode() + b"\n"


def _read(folder: Path) -> tuple[str, str]:
    """(name, lineage), or two empty texts where there is no file.

    Raises:
        ForeignFolder: the file is damaged.
    """
    try:
        data = (folder / FILE).read_bytes()
        found = json.loads(data)
        fields = {"model": str(found["model"]), "lineage": str(found["lineage"])}
    except FileNotFoundError:
        return "", ""
    except (ValueError, KeyError, TypeError):
        data, fields = b"", {}
    # An earlier version wrote no hash.
    if not fields or data not in (_encoded(fields), _json(fields)):
        raise ForeignFolder(
            f"{folder / FILE} is damaged; if this folder is the model's own, remove the file, and the next start"
            " writes it again"
        )
    return fields["model"], fields["lineage"]


def _other(folder: Path) -> tuple[str, str]:
    """What `_read` gives, or two empty texts where the file cannot be read."""
    try:
        return _read(folder)
    except (OSError, ForeignFolder):
        return "", ""


def check(folder: Path, lineage: uuid.UUID, others: Iterable[Path]) -> None:
    """Checks that a log belongs to the folder that it lies in, and writes a missing identity.

    Args:
        folder: the folder of the model, which has its name.
        lineage: the lineage of the log in it.
        others: the folders of the other models of the server.

    Raises:
        ForeignFolder: the log is another model's, the whole folder is a copy, or the file is
            damaged.
        OSError: the identity cannot be read or written.
    """
    name, own = _read(folder)
    if own and own != str(lineage):
        owner = next((other.name for other in others if _other(other)[1] == str(lineage)), "")
        whose = f"model {owner!r}" if owner else "another model"
        raise ForeignFolder(
            f"its log belongs to {whose}: it has lineage {lineage}, and this model has lineage {own}"
        )
    if name and name != folder.name:
        if any(other.name == name and _other(other)[1] == own for other in others):
            raise ForeignFolder(f"its folder is a copy of model {name!r}: both have lineage {own}")
        # The operator gave the folder another name.
        own = ""
    if not own:
        write(folder, folder.name, lineage)


@dataclass(frozen=True, slots=True)
class Terms:
    """What the file says.

    Attributes:
        term: the newest term in the log when it was written.
        newer: the term of a newer leader; 0 without a fence.
        leader: the address of the newer leader.
    """

    term: int = 0
    newer: int = 0
    leader: str = ""

    @classmethod
    def load(cls, folder: Path) -> Terms:
        """The terms of a model. 0 without a file.

        Raises:
            ValueError: the file is damaged.
        """
        try:
            fields = json.loads((folder / TERMS_FILE).read_bytes())
            return cls(int(fields["term"]), int(fields["newer"]), str(fields["leader"]))
        except FileNotFoundError:
            return cls()
        except (KeyError, TypeError) as error:
            raise ValueError(f"{folder / TERMS_FILE} is damaged: {error}") from None

    def fence(self, logged: int) -> str:
        """The leader that takes the updates in place of this server, "" for none.

        `logged` is the newest term that the log is known to have.
        """
        return (self.leader or UNKNOWN_LEADER) if self.newer > max(self.term, logged) else ""

    def save(self, folder: Path) -> None:
        """Writes the file durably.

        Raises:
            OSError: it cannot be written.
        """
        draft = folder / f".{TERMS_FILE}"
        draft.unlink(missing_ok=True)
        fields = {"term": self.term, "newer": self.newer, "leader": self.leader}
        write_file(draft, [json.dumps(fields, sort_keys=True).encode() + b"\n"])
        os.replace(draft, folder / TERMS_FILE)
        sync_folder(folder)
