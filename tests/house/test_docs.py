"""The documentation covers every call, setting, metric and command, and its examples work."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

from repository import ROOT, compiled_contract, contract_files, project_files

PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]
# `make docs` generates this page, so it always names every call and proves nothing.
GENERATED = {"api.md"}
NOT_YET_MEASURED = {"benchmarks/results/gpu.json"}
"""Files that a command writes which has not run yet."""


def documentation() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in PAGES if path.name not in GENERATED)


def missing(names: list[str]) -> list[str]:
    """Return the names that no page contains as a separate word."""
    text = documentation()
    return [name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)]


def commands() -> Iterator[tuple[str, click.Command]]:
    """Yield every command of `livefactor` with the text that a user types for it."""
    from livefactor_server.cli.app import app

    def walk(typed: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        children = getattr(command, "commands", None)
        if children is None:
            yield typed, command
        for name, child in (children or {}).items():
            yield from walk(f"{typed} {name}", child)

    yield from walk("livefactor", typer.main.get_command(app))


def test_every_call_is_explained() -> None:
    calls = [
        m.name
        for file in contract_files(compiled_contract()).values()
        for s in file.service
        for m in s.method
    ]
    assert len(calls) >= 12
    assert missing(calls) == []


def test_every_setting_is_explained() -> None:
    from livefactor_server.cli.serve.settings import ServerSettings

    flags = ["--" + field.name.replace("_", "-") for field in dataclasses.fields(ServerSettings)]
    assert len(flags) >= 5
    assert missing(flags) == []


def test_every_metric_is_explained() -> None:
    import livefactor_server.rpc.server  # noqa: F401 - every room of the server defines its own
    from livefactor_server.metrics import metric_names

    names = metric_names()
    assert {"livefactor_revision", "livefactor_refused_calls", "livefactor_judge_figure"} <= set(names)
    # A page may write a counter with its suffix from the wire format.
    assert missing([name for name in names if missing([name + "_total"])]) == []


def test_every_command_and_flag_is_explained() -> None:
    found = dict(commands())
    assert len(found) >= 8
    assert missing(list(found)) == []
    flags = {option for command in found.values() for p in command.params for option in flags_of(p)}
    assert missing(sorted(flags - {"--help"})) == []


def flags_of(parameter: click.Parameter) -> list[str]:
    """Return the long flags of a parameter and the flags that turn it off."""
    return [flag for flag in (*parameter.opts, *parameter.secondary_opts) if flag.startswith("--")]


FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")


def typed_in_docs() -> Iterator[tuple[str, str]]:
    """Yield the page and the text of every code line and code span that a reader may type."""
    for page in PAGES:
        if page.name in GENERATED:
            continue
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"^```[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        for block in blocks:
            for line in block.replace("\\\n", " ").splitlines():
                yield page.name, line.split(" #")[0].strip()
        for span in re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
            yield page.name, span.strip()


def test_every_flag_that_a_page_names_exists() -> None:
    """After a whole command, only the flags of that command may stand.

    Elsewhere, the flags of any command may stand.
    """
    found = dict(commands())
    root = {"--version", "--help"}
    every = root.union(*(flags_of(p) for command in found.values() for p in command.params))
    checked, wrong = 0, []
    for page, text in typed_in_docs():
        first = text.split()[0] if text.split() else ""
        names = {typed.split()[-1] for typed in found} | {"livefactor"}
        if not FLAG.match(first) and first not in names:
            continue
        command = next((c for typed, c in found.items() if f"{text} ".startswith(f"{typed} ")), None)
        known = every if command is None else {*root, *(f for p in command.params for f in flags_of(p))}
        flags = FLAG.findall(text)
        checked += len(flags)
        wrong += [(page, text, flag) for flag in flags if flag not in known]
    assert checked > 50
    assert wrong == []


def test_every_command_line_of_a_page_is_accepted() -> None:
    """The parser accepts each `livefactor ...` line in a code block. The test runs no command."""
    from livefactor_server.cli.app import app

    group = typer.main.get_command(app)
    lines = [
        line.removeprefix("$ ")
        for page in PAGES
        if page.name not in GENERATED
        for block in re.findall(
            r"^```[^\n]*\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        )
        for line in block.replace("\\\n", " ").splitlines()
        if re.match(r"(\$ )?livefactor [a-z]", line)
    ]
    assert lines
    wrong = []
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        words = words[
            : next((at for at, word in enumerate(words) if word in ("|", "&", "&&", ">")), len(words))
        ]
        command = group
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        known = {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)} | {"--help"}
        wrong += [(line, word) for word in words if word.startswith("-") and word.split("=")[0] not in known]
    assert wrong == []


def test_every_command_and_flag_has_help() -> None:
    silent = [typed for typed, command in commands() if not command.help]
    silent += [
        f"{typed} {p.name}"
        for typed, command in commands()
        for p in command.params
        if not getattr(p, "help", None)
    ]
    assert silent == []


MARKDOWN = [path for path in project_files() if path.suffix == ".md"]


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        target, _, anchor = link.partition("#")
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path = (page.parent / target) if target else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            broken.append(link)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_excerpts_are_the_files_they_name() -> None:
    """A code block whose first comment names a file is an exact excerpt from that file."""
    seen = 0
    for page in PAGES:
        for code in re.findall(
            r"^```\w+\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        ):
            first, _, rest = code.partition("\n")
            named = re.match(r"(?:#|//) ((?:examples|protos)/\S+)$", first)
            if named:
                seen += 1
                assert rest.strip("\n") in (ROOT / named[1]).read_text(encoding="utf-8"), (
                    f"{page.name}: {named[1]}"
                )
    assert seen >= 2


def test_files_that_pages_name_exist() -> None:
    rooms = "|".join(folder.name for folder in ROOT.iterdir() if folder.is_dir() and folder.name[0] != ".")
    lost = [
        f"{page.name}: {name}"
        for page in [*PAGES, ROOT / "CONTRIBUTING.md"]
        for name in re.findall(rf"(?<![\w/.])((?:{rooms})/[\w./-]+\w)", page.read_text(encoding="utf-8"))
        if name not in NOT_YET_MEASURED and not (ROOT / name).exists()
    ]
    assert lost == []


def test_the_table_of_outcomes_has_every_status_of_the_contract() -> None:
    """For each status a reader finds whether the batch was applied, and what to do."""
    contract = (ROOT / "protos" / "livefactor" / "v1" / "updates.proto").read_text(encoding="utf-8")
    closed = contract.partition("The set is closed:")[2].partition("// Outcomes.")[0]
    statuses = set(re.findall(r"\b[A-Z]{2,}(?:_[A-Z]+)*\b", closed))
    page = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
    table = page.partition("| answer | was the batch applied? |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines()[2:]]
    assert sorted(name for row in rows for name in re.findall(r"[A-Z_]{2,}", row)) == sorted(statuses)
