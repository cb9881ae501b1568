"""Rules for every file of the project."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from repository import PACKAGES, ROOT, STUBS, imports, modules, project_files, python_files

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 60
LEVEL_NAMES_MAX = 20

# Functions that may exceed the limit, and the length that each may have. Remove entries and lower
# their lengths, but never add or raise one.
LONG_FUNCTIONS: dict[str, int] = {}

BINARY = {".gz", ".binpb", ".png", ".ico"}

# The brackets keep the patterns from matching this file.
BANNED = {
    "a path of somebody's machine": r"/(?:work|root|farm|home/[a-z]+)(?=[/\"'\s`)])|\.librar[y]/",
    "a package registry's host": r"\bpyp[i]\.org|pythonhoste[d]\.org|npmj[s]\.|deb\.debia[n]|crates\.i[o]",
    "unfinished work": r"\b(?:TOD[O]|FIXM[E]|XX[X]|HAC[K])\b|NotImplementedErro[r]\b",
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


TEXT_FILES = [path for path in project_files() if path.suffix not in BINARY and STUBS not in path.parents]


@pytest.mark.parametrize("what", BANNED)
def test_no_file_holds(what: str) -> None:
    pattern = re.compile(BANNED[what])
    found = [
        f"{name_of(path)}:{number}: {match[0]}"
        for path in TEXT_FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if (match := pattern.search(line))
    ]
    assert not found, f"{what}:\n" + "\n".join(found)


def test_no_file_outgrows_one_idea() -> None:
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in python_files()}
    assert {name: lines for name, lines in lengths.items() if lines > FILE_LINES_MAX} == {}


def test_no_level_outgrows_what_a_reader_takes_in() -> None:
    """A folder has at most 20 files and folders, without those that every package has.

    The tests mirror the rooms of the code, so they are not counted.
    """
    levels: dict[str, set[str]] = {}
    for path in project_files():
        if path.relative_to(ROOT).parts[0] == "tests":
            continue
        for entry in (path, *path.parents):
            if entry == ROOT:
                break
            if not entry.name.startswith(("__", ".")) and entry.name != "py.typed":
                levels.setdefault(name_of(entry.parent), set()).add(entry.name)
    levels.pop(name_of(STUBS))
    assert {level: sorted(names) for level, names in levels.items() if len(names) > LEVEL_NAMES_MAX} == {}


def functions(path: Path) -> dict[str, int]:
    """Return the number of lines of every function in a file.

    Decorators, nested functions and docstrings do not count.
    """
    found = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = (
                node.body[1] if ast.get_docstring(node) is not None and len(node.body) > 1 else node.body[0]
            )
            nested = [
                child for child in ast.walk(node) if child is not node and isinstance(child, ast.FunctionDef)
            ]
            outer = [
                child
                for child in nested
                if not any(child in ast.walk(other) for other in nested if other is not child)
            ]
            lines = (
                (node.end_lineno or 0)
                - first.lineno
                + 1
                - sum((c.end_lineno or 0) - c.lineno + 1 for c in outer)
            )
            found[f"{name_of(path)}:{node.name}"] = lines
    return found


def test_each_test_file_has_a_name_of_its_own() -> None:
    """pytest imports test files by their basename, and refuses the second one of a name."""
    names = Counter(path.name for path in python_files() if path.name.startswith("test_"))
    assert [name for name, count in names.items() if count > 1] == []


def test_functions_are_short() -> None:
    longest = {
        name: lines
        for path in python_files()
        for name, lines in functions(path).items()
        if lines > FUNCTION_LINES_MAX
    }
    assert longest == LONG_FUNCTIONS


def test_no_module_is_dead() -> None:
    """Another module imports every module that is no entry point and starts no package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["scripts"], *project["entry-points"].values()]
    used = {target.split(":")[0] for group in groups for target in group.values()} | set(PACKAGES)
    # `python -m package` runs these modules.
    used |= {f"{package}.__main__" for package in PACKAGES}
    for _, path in modules():
        for _, name in imports(path):
            # A module's import runs its package.
            used.update({name, name.rpartition(".")[0]})
    assert {name for name, _ in modules()} - used == set()


def test_packages_are_typed() -> None:
    assert [folder for folder in PACKAGES.values() if not (folder / "py.typed").is_file()] == []


def test_the_data_that_is_shipped_names_its_source_and_licence() -> None:
    notice = (PACKAGES["livefactor_server"] / "data" / "online_retail" / "README.md").read_text(
        encoding="utf-8"
    )
    for needed in ("Daqing Chen", "10.24432/C5BW33", "CC BY 4.0", "Changes made"):
        assert needed in notice
