"""Every code block of the pages runs, or says what it needs.

The blocks of a page run in their order, in a folder with the files that the pages name, beside a
server with the models `default` and `shop`. Commands of `livefactor` run in this process, because
each start of Python takes half a second. Of `livefactor serve` only the settings are read, since
tests of its own start it. Of `make` and `pip` it is checked that the target and the extra exist.
All other commands run in bash.
"""

from __future__ import annotations

import ast
import asyncio
import doctest
import re
import shlex
import subprocess
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
import typer

import livefactor
import livefactor.federated
from doc_blocks import ROOT, Block, blocks_of, pages
from livefactor_server.cli.app import app
from livefactor_server.cli.serve import process

PAGES = [page for page in pages() if any(b.kind in ("python", "shell", "settings") for b in blocks_of(page))]
EXAMPLES = {"40210": "40", "feed:118-120": "feed:18-20", "feed:118": "feed:17", "shop:7": "feed:7"}
"""Numbers of a reader's own model, and those of the model here."""
A_TIME = "2026-11-30T02:00:00"
"""The time that pages name. Here it is now."""

ADDRESSES = re.compile(r'\["models-a:50051", "models-b:50051"\]|"(?:localhost|127\.0\.0\.1):50051"')
USERS = ["ann", "bob", "ben", "customer-7", "customer-9", "user-7", "visitor"]
ITEMS = ["tent", "lamp", "stove", "kettle", "mug", "cakestand", "milk"]


class World:
    """A folder, and a server with two models, which starts when it is needed."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder, self._monkeypatch = folder, monkeypatch
        write_files(folder)

    @cached_property
    def server(self) -> livefactor.Local:
        made = livefactor.local("clicks", self._folder / "shop-data")
        self._monkeypatch.setenv("LIVEFACTOR_TARGET", made.target)
        with made.models() as models:
            models.create("shop", "auto")
        for model in ("default", "shop"):
            with made.producer("feed", model=model) as producer:
                for n in range(45):
                    user = USERS[n % 7] if n % 3 else 17850
                    producer.push([user], [ITEMS[n * n % 7] if n % 3 else 22423 + n % 2]).result()
        return made

    def close(self) -> None:
        if "server" in self.__dict__:
            self.server.close()

    def remove(self, model: str) -> None:
        """Delete a model if it exists."""
        with self.server.models() as models:
            if model in [found.name for found in models.list()]:
                models.delete(model)


class Encoder:
    """What a page calls the encoder of texts."""

    def encode(self, text: str) -> np.ndarray:
        return np.full(384, len(text) / 384, np.float32)


def names_of(server: livefactor.Local) -> dict[str, Callable[[], Any]]:
    """The names that the pages use without making them, and what makes each."""
    random = np.random.default_rng(0)
    numbers = random.standard_normal((2, 64), np.float32) / 8
    frame = {"user": USERS[:2], "item": ITEMS[:2], "country": ["at", "de"], "plan": ["a", "b"]}
    frame |= {"device": ["phone", "desk"], "page": ["home", "cart"], "user_id": USERS[:2]}
    return {
        "livefactor": lambda: livefactor,
        "asyncio": lambda: asyncio,
        "producer": lambda: server.producer("docs", model="shop"),
        "server_producer": lambda: server.producer("common", model="shop"),
        "scorer": lambda: server.scorer(model="shop"),
        "models": server.models,
        "frame": lambda: pd.DataFrame(frame),
        "vectors": lambda: random.standard_normal((2, 384), np.float32),
        "vector": lambda: np.ones(384, np.float32),
        "encoder": Encoder,
        "candidates": lambda: ITEMS[:4],
        "users": lambda: USERS,
        "visitor": lambda: "somebody",
        "deltas": lambda: numbers,
        "biases": lambda: numbers[:, 0],
        "item_factors": lambda: numbers,
        "user_factors": lambda: random.standard_normal((3, 64), np.float32),
        "item_biases": lambda: numbers[:, 0],
        "contributions": lambda: dict.fromkeys(USERS, (ITEMS[:2], numbers, numbers[:, 0])),
        "others": list,
        "present": lambda: livefactor.federated.rows_of(livefactor.load("own")),
    }


def write_files(folder: Path) -> None:
    """The files that a reader of the pages has."""
    users = [(n * 7) % 60 + 17_800 for n in range(300)]
    frame = pd.DataFrame(
        {
            "user_id": users,
            "item_id": [(u * 3 + n % 9) % 60 for n, u in enumerate(users)],
            "query": ["warm light", "tent", "red"] * 100,
            "device": ["phone", "desk"] * 150,
            "customer": users,
            "article": "kettle",
            "time": np.arange(300) * 3600 + 1_700_000_000,
        }
    )
    frame.to_csv(folder / "events.csv", index=False)
    items = {"item_id": range(40), "title": [f"lamp {n}" for n in range(40)]}
    pd.DataFrame({**items, "description": "bright", "length": "1"}).to_csv(folder / "items.csv", index=False)
    pd.DataFrame({"user_id": range(17_800, 17_860), "zip": "1010"}).to_csv(folder / "users.csv", index=False)
    np.save(folder / "users.npy", np.ones((3, 4), np.float32))
    (folder / "users.txt").write_text("ann\nbob\nben\n")
    (folder / "items.txt").write_text("tent\nlamp\nmug\n")
    ids = np.array([17, 18, 19])
    factors = {
        "user_ids": ids,
        "item_ids": ids,
        "user_factors": np.ones((3, 8), np.float32),
        "item_factors": np.ones((3, 8), np.float32),
    }
    np.savez(folder / "model.npz", **factors)
    safetensors.numpy.save_file(factors, folder / "factors.safetensors")
    (folder / "tuned.toml").write_text('preset = "clicks_sgd"\nk = 16\n')


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(process, "run_server", lambda settings, port_file: 0)
    made = World(tmp_path, monkeypatch)
    yield made
    made.close()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_blocks_of_a_page_run(page: Path, world: World) -> None:
    for block in blocks_of(page):
        if block.kind == "settings":
            tomllib.loads(block.code)
            # The name that docs/privacy.md gives to its settings.
            Path("private.toml").write_text(block.code)
        elif block.kind == "python":
            run_python(block, world)
        elif block.kind == "shell":
            run_shell(block, world)


def run_python(block: Block, world: World) -> None:
    """Run a block with the names of `names_of`."""
    code = ADDRESSES.sub(partial(address_of, world.server.target), block.code)
    if 'livefactor.load("common")' in code:
        for name in ("common", "own"):
            run_command(block, ["snapshot", "--out", name, "-m", "shop"], world)
    if 'models.create("shop"' in code:
        world.remove("shop")
    if code.startswith(">>> "):
        run_session(block, world)
        return
    makers, names = names_of(world.server), dict[str, Any]()
    for statement in ast.parse(code).body:
        # A producer opens when it is made, and an earlier statement may make its model.
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and node.id in makers and node.id not in names:
                names[node.id] = makers[node.id]()
        module = ast.Module([statement], [])
        found = eval(compile(module, block.name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
        if asyncio.iscoroutine(found):
            asyncio.run(found)
    for made in names.values():
        if isinstance(made, livefactor.Producer):
            made.close()


def run_session(block: Block, world: World) -> None:
    """Run the lines after `>>>`. The answer has the columns of the page; the numbers differ."""
    for example in doctest.DocTestParser().get_examples(block.code):
        found = repr(eval(example.source, {"scorer": world.server.scorer(model="shop")}))
        assert found.split("\n")[0].split() == example.want.split("\n")[0].split(), block.name


def address_of(target: str, found: re.Match[str]) -> str:
    """The address of the server here, and another one where a page has two."""
    return repr([target, "127.0.0.1:1"] if found[0].startswith("[") else target)


def commands_of(code: str) -> Iterator[str]:
    """The commands of a block. A here-document belongs to its command."""
    lines = iter(code.replace("\\\n", " ").splitlines())
    for line in lines:
        if word := re.search(r"<<'(\w+)'", line):
            body = [line]
            for more in lines:
                body.append(more)
                if more == word[1]:
                    break
            yield "\n".join(body)
        elif line.strip():
            yield line


def run_shell(block: Block, world: World) -> None:
    for command in commands_of(block.code):
        for shown, own in EXAMPLES.items():
            command = command.replace(shown, own)
        command = command.replace(A_TIME, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()))
        words = shlex.split(command.partition("<<")[0], comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if not words:
            continue
        if words[0] == "livefactor":
            run_command(block, words[1:], world)
        elif words[0] == "pip":
            check_install(block, words)
        elif words[0] == "make":
            done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, f"{block.name}: {command}\n{done.stderr}"
        elif words[0].endswith("python") and words[1] == "-m":
            assert find_spec(words[2]) is not None, f"{block.name}: {command}"
        else:
            done = subprocess.run(["bash", "-euc", command], capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, f"{block.name}: {command}\n{done.stdout}{done.stderr}"


def run_command(block: Block, words: list[str], world: World) -> None:
    """Run a command of `livefactor`; it must succeed."""
    if words[-1] == "&":
        words = words[:-1]
    if words == ["doctor"]:
        # Tests beside this one use the ports.
        words += ["--port", "0", "--metrics-port", "-1"]
    if words[0] not in ("serve", "doctor", "evaluate", "token"):
        assert world.server
    if words[:2] in (["models", "create"], ["models", "restore"]):
        world.remove(words[2])
    if words[0] == "import":
        # Factors are for a model that has learned nothing.
        world.remove("warm")
        run_command(block, ["models", "create", "warm"], world)
        words = [*words, "--model", "warm"]
    done = click.testing.CliRunner().invoke(typer.main.get_command(app), words, catch_exceptions=False)
    assert done.exit_code == 0, f"{block.name}: livefactor {shlex.join(words)}\n{done.output}"


def check_install(block: Block, words: list[str]) -> None:
    """Every extra that a page installs exists."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = {
        name
        for word in words
        for found in re.findall(r"livefactor\[([\w,]+)\]", word)
        for name in found.split(",")
    }
    assert asked <= set(extras), f"{block.name}: {asked - set(extras)}"


def test_every_block_is_run_or_says_what_it_needs() -> None:
    every = [block for page in pages() for block in blocks_of(page)]
    kinds = Counter(block.kind for block in every)
    print(dict(kinds))
    for block in every:
        if block.kind == "needs":
            print(f"{block.name} needs {block.needs}")
    assert kinds["python"] + kinds["shell"] + kinds["elsewhere"] + kinds["settings"] > 2 * kinds["needs"]
