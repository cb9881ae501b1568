"""Folders of adapters: one numbered folder a run, with hashes that name what it was made of.

    OUT/1/adapter.json              the facts below; its SHA-256 hash is the hash of the adapter
    OUT/1/adapter_config.json       LoRA's settings, in the format of peft
    OUT/1/adapter_model.safetensors LoRA's matrices, in the format of peft
    OUT/1/vectors.parquet           the vectors of all items, for `livefactor push-embeddings`

A folder gets its number when everything in it is written.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from livefactor_server.files.encoding import Encoder
from livefactor_server.files.vectors import write_vectors

FACTS, VECTORS = "adapter.json", "vectors.parquet"
PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")


class AdapterError(ValueError):
    """An adapter cannot be used. The text has the reason."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What `adapter.json` says.

    Attributes:
        encoder: the hash of the encoder (`Encoder.digest`).
        lineage: the uuid of the history of the model whose log trained it.
        revision: the last revision of that log.
        previous: the hash of the adapter that it continues, or "".
        steps, pairs: the batches of the training, and the pairs that were new in it.
        files: the SHA-256 hash of each file of peft.
    """

    encoder: str
    lineage: str
    revision: int
    previous: str
    steps: int
    pairs: int
    files: dict[str, str]


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter on the disk, with its SHA-256 hash in hex."""

    folder: Path
    facts: Facts
    digest: str


def read_adapter(folder: Path) -> Adapter:
    """Reads and verifies the adapter of a folder.

    Raises:
        AdapterError: a file is missing or changed.
    """
    try:
        body = (folder / FACTS).read_bytes()
        facts = Facts(**json.loads(body))
        for name in PEFT_FILES:
            if _digest(folder / name) != facts.files[name]:
                raise AdapterError(f"{folder / name} was changed: its hash differs from the one in {FACTS}")
    except (OSError, TypeError, KeyError, ValueError) as error:
        if isinstance(error, AdapterError):
            raise
        raise AdapterError(f"{folder}: no adapter ({error})") from None
    return Adapter(folder, facts, hashlib.sha256(body).hexdigest())


def last_adapter(out: Path) -> Adapter | None:
    """The adapter with the highest number in `out`, if there is one.

    Raises:
        AdapterError: a file of it is missing or changed.
    """
    numbers = _numbers(out)
    return read_adapter(out / str(numbers[-1])) if numbers else None


def load(encoder: Encoder, adapter: Adapter) -> None:
    """Adds an adapter to the encoder that it was trained for.

    Raises:
        AdapterError: it was trained for another encoder.
        EncoderError: peft is not installed, or cannot read it.
    """
    found = encoder.digest()
    if found != adapter.facts.encoder:
        raise AdapterError(
            f"{adapter.folder}: the adapter was trained for the encoder with the hash {adapter.facts.encoder}, "
            f"and {encoder.folder} has {found}"
        )
    encoder.adapt(adapter.folder)


def write_adapter(
    out: Path, encoder: Encoder, previous: Adapter | None, ids: Any, vectors: np.ndarray, **facts: Any
) -> Adapter:
    """Writes the adapter of `encoder`, and the vectors float32[n, d] of ids, as the next number.

    facts: lineage, revision, steps and pairs. Raises OSError, and nothing has a new number then.
    """
    numbers = _numbers(out)
    target = out / str(numbers[-1] + 1 if numbers else 1)
    made = out / f".{target.name}.new"
    shutil.rmtree(made, ignore_errors=True)
    encoder.save_adapter(made)
    for extra in made.iterdir():
        if extra.name not in PEFT_FILES:
            extra.unlink()
    files = {name: _digest(made / name) for name in PEFT_FILES}
    before = previous.digest if previous else ""
    told = Facts(encoder=encoder.digest(), previous=before, files=files, **facts)
    body = json.dumps(asdict(told), indent=1, sort_keys=True).encode() + b"\n"
    (made / FACTS).write_bytes(body)
    digest = hashlib.sha256(body).hexdigest()
    write_vectors(made / VECTORS, ids, vectors, digest)
    made.rename(target)
    return Adapter(target, told, digest)


def _numbers(out: Path) -> list[int]:
    found = [each.name for each in out.iterdir() if each.is_dir()] if out.is_dir() else []
    return sorted(int(name) for name in found if name.isdecimal())


def _digest(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
