"""Hooks of mkdocs: the pages outside docs/, the files that pages link to, and the API reference.

`mkdocs.yml` names this file. The links of a page lead to files of the repository. In the site a
page of the repository has a page, and any other file is copied to the folder `files`.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "clients"))

PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
"""Pages of the repository outside docs/, and their names in the site. Linked pages join them."""

FOLDERS = {"protos/livefactor/v1": "docs/api.md"}
"""What the site shows in place of a folder."""

CLIENTS = (
    "Producer",
    "Scorer",
    "Auditor",
    "Models",
    "Recommender",
    "local",
    "Local",
    "Access",
    "BatchSettings",
)
ASYNC = ("AsyncProducer", "AsyncScorer", "AsyncAuditor", "AsyncModels")
LINK = re.compile(r"(\]\()([^)\s#]*)(#[^)\s]*)?(\))")
CODE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that docs/ does not hold."""
    for name, content in reference().items():
        files.append(File.generated(config, name, content=content))
    waiting = [*PAGES, *(f"docs/{file.src_uri}" for file in files.documentation_pages() if file.abs_src_path)]
    sources = {f"docs/{file.src_uri}" for file in files}
    while waiting:
        page = waiting.pop()
        if not page.startswith("docs/"):
            files.append(File.generated(config, PAGES[page], abs_src_path=str(ROOT / page)))
        for target in linked(page):
            if target in sources or not (ROOT / target).is_file():
                continue
            sources.add(target)
            if target.endswith(".md"):
                if target not in PAGES:
                    PAGES[target] = target
                    waiting.append(target)
            else:
                files.append(File.generated(config, f"files/{target}", abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads the links of a page to the names that their targets have in the site."""
    here = page.file.src_uri
    source = next((name for name, site in PAGES.items() if site == here), f"docs/{here}")

    def moved(match: re.Match[str]) -> str:
        target = resolved(source, match[2])
        if target is None:
            return match[0]
        path = posixpath.relpath(in_site(target), posixpath.dirname(here) or ".")
        return f"{match[1]}{path}{match[3] or ''}{match[4]}"

    parts = CODE.split(markdown)
    parts[::2] = [LINK.sub(moved, part) for part in parts[::2]]
    return "".join(parts)


def linked(page: str) -> list[str]:
    """The files of the repository that a page links to."""
    text = CODE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    found = (resolved(page, match[2]) for match in LINK.finditer(text))
    return [target for target in found if target is not None]


def resolved(page: str, link: str) -> str | None:
    """The path in the repository that a link of a page names; None for one that leads elsewhere."""
    if not link or re.match(r"[a-z]+:", link):
        return None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    return FOLDERS.get(target, target)


def in_site(target: str) -> str:
    """The name in the site of a file of the repository."""
    if target in PAGES:
        return PAGES[target]
    return target.removeprefix("docs/") if target.startswith("docs/") else f"files/{target}"


def reference() -> dict[str, str]:
    """The pages of the API reference, by their names. The docstrings are their texts."""
    import livefactor

    errors = [name for name in livefactor.__all__ if livefactor._HOMES.get(name) == "errors"]
    results = [name for name in livefactor.__all__ if name not in {*CLIENTS, *errors, "__version__"}]
    return {
        "reference/clients.md": listed("The Python clients", "livefactor", CLIENTS),
        "reference/results.md": listed("Results, and functions of files and ids", "livefactor", results),
        "reference/errors.md": listed("The errors of the Python clients", "livefactor", errors),
        "reference/asyncio.md": listed("The Python clients for asyncio", "livefactor.aio", ASYNC),
    }


def listed(title: str, module: str, names: tuple[str, ...] | list[str]) -> str:
    """A page that shows the docstrings of names."""
    return "\n\n".join([f"# {title}", *(f"::: {module}.{name}" for name in names)]) + "\n"
