"""Two search engines that find candidates: tantivy, and the full text search of PostgreSQL."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

CLUSTERS = Path("/usr/lib/postgresql")
"""Where Debian and Ubuntu keep the programs of a PostgreSQL server."""

HINT = "apt-get install postgresql; pip install 'psycopg[binary]'"


class Tantivy:
    """An index in memory (pip install tantivy). A text matches if it has a word of the query."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Indexes texts. A text is found by its place."""
        import tantivy

        fields = tantivy.SchemaBuilder()
        fields.add_text_field("text", stored=False, tokenizer_name="en_stem")
        fields.add_unsigned_field("place", stored=True)
        self._index = tantivy.Index(fields.build())
        writer = self._index.writer(heap_size=15_000_000, num_threads=1)
        for place, text in enumerate(texts):
            writer.add_document(tantivy.Document(text=text, place=place))
        writer.commit()
        writer.wait_merging_threads()
        self._index.reload()
        self._searcher = self._index.searcher()

    def search(self, words: Sequence[str], most: int) -> list[int]:
        """The places of at most `most` texts, best first, by BM25."""
        query = self._index.parse_query(" ".join(words), ["text"])
        hits = self._searcher.search(query, most).hits
        return [self._searcher.doc(address)["place"][0] for _, address in hits]

    def __enter__(self) -> Tantivy:
        return self

    def __exit__(self, *_: object) -> None:
        """Does nothing: the index ends with its memory."""


class Postgres:
    """A PostgreSQL server of its own, in a temporary folder, on a Unix-domain socket."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Starts the server and indexes texts. A text is found by its place.

        Raises RuntimeError if the programs of a server are not installed.
        """
        import psycopg

        programs = sorted(CLUSTERS.glob("*/bin/initdb"))
        if not programs:
            raise RuntimeError(f"no PostgreSQL server is installed: {HINT}")
        self._programs = programs[-1].parent
        self._folder = Path(tempfile.mkdtemp(prefix="livefactor-search-"))
        # PostgreSQL does not run as root. Debian's package has a user for it.
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(self._folder, self._user)
        try:
            data, owner = str(self._folder / "data"), ["--username=search", "--auth=trust"]
            self._run("initdb", "--pgdata", data, *owner, "--no-sync", "--encoding=UTF8", "--locale=C.UTF-8")
            options = f"-k {self._folder} -c listen_addresses='' -c fsync=off"
            log = str(self._folder / "log")
            self._run("pg_ctl", "start", "--wait", "--pgdata", data, "--options", options, "--log", log)
            self._connection = psycopg.connect(
                host=str(self._folder), user="search", dbname="postgres", autocommit=True
            )
            self._index_texts(texts)
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def _index_texts(self, texts: Sequence[str]) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(
                "CREATE TABLE items (place integer PRIMARY KEY, text text NOT NULL,"
                " words tsvector GENERATED ALWAYS AS (to_tsvector('english', text)) STORED)"
            )
            with cursor.copy("COPY items (place, text) FROM STDIN") as copy:
                for row in enumerate(texts):
                    copy.write_row(row)
            cursor.execute("CREATE INDEX ON items USING gin (words)")
            cursor.execute("ANALYZE items")

    def search(self, words: Sequence[str], most: int) -> list[int]:
        """The places of at most `most` texts, best first, by `ts_rank`."""
        found = self._connection.execute(
            "SELECT place FROM items, to_tsquery('english', %s) AS query WHERE words @@ query"
            " ORDER BY ts_rank(words, query) DESC, place LIMIT %s",
            (" | ".join(words), most),
        )
        return [place for (place,) in found]

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._programs / program), *arguments],
            user=self._user, cwd=self._folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stdout.strip()}")

    def __enter__(self) -> Postgres:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops the server and removes its folder."""
        if hasattr(self, "_connection"):
            self._connection.close()
        if (self._folder / "data" / "postmaster.pid").exists():
            self._run("pg_ctl", "stop", "--mode=fast", "--pgdata", str(self._folder / "data"))
        shutil.rmtree(self._folder, ignore_errors=True)


ENGINES = {"tantivy": Tantivy, "postgres": Postgres}
