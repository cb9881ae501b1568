"""The TOML file of an ingester: what is wrong is named before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from livefactor.ingest.config import ConfigError, FieldRule, read_config

GOOD = """
model = "shop"
producer = "ingest"

[[sources]]
name = "clicks"
kind = "file"
path = "clicks.jsonl"
fields = {user = "customer.id", item = {from = "sku", cast = "integer"}, time = {from = "at", cast = "ms"}}
keep = [{from = "type", in = ["view", "buy"]}]
event_types = {from = "type", view = {type = 1}, buy = {type = 2, weight = 5.0}}
"""

OTHER = """
[[sources]]
name = "orders"
kind = "nats"
url = "nats://127.0.0.1"
stream = "ORDERS"
fields = {user = "user", item = "item"}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "sources.toml"
    path.write_text(text)
    return path


def test_a_good_file_is_read(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, GOOD))
    (source,) = config.sources
    assert source.fields["user"] == FieldRule(("customer", "id"), "string")
    assert source.fields["item"].cast == "integer"
    assert source.event_types is not None
    assert source.event_types.names == {"view": (1, 1.0), "buy": (2, 5.0)}
    assert config.folder == tmp_path


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('kind = "file"', 'kind = "ftp"', "expected one of file, http, kafka, nats, redis, got 'ftp'"),
        ('path = "clicks.jsonl"', "", "source 'clicks': path: expected a str"),
        ("item = {from", "itm = {from", "'itm' is not known; expected user, item, value"),
        (', item = {from = "sku", cast = "integer"}', "", "item is missing"),
        ('cast = "ms"', 'cast = "hours"', "fields.time: cast: expected one of iso, s, ms, us, ns"),
        ("weight = 5.0", "weight = 0", "buy: weight: expected a number above 0, got 0"),
        ('in = ["view", "buy"]', 'is = "view"', "keep[0]: expected from = 'field' and in = [values]"),
        ('model = "shop"', "", "model: expected a name"),
        ('name = "clicks"', 'name = "a/b"', "expected letters, digits"),
        ("[[sources]]", "[[sources", "at line 5"),
        ('producer = "ingest"', 'producer = "ingest"\ndelay_s = -1', "delay_s: expected 0..3600, got -1"),
        ('producer = "ingest"', 'producer = "ingest"\ndelay = 1', "'delay' is not known"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, old: str, new: str, told: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        read_config(written(tmp_path, GOOD.replace(old, new)))
    assert told in str(caught.value)


def test_sources_that_disagree_about_the_type_of_an_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(written(tmp_path, GOOD + OTHER))
    told = str(caught.value)
    assert "fields.item: the sources disagree" in told
    assert "integer in source 'clicks'" in told
    assert "string in source 'orders'" in told


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (OTHER.replace('fields = {user = "user", item = "item"}', ""), "expected a table [sources.fields]"),
        (
            OTHER.replace('"orders"', '"clicks"').replace('"item"}', '{from="i", cast="integer"}}'),
            "two sources",
        ),
    ],
)
def test_sources_must_fit_together(tmp_path: Path, extra: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(written(tmp_path, GOOD + extra))
    assert told in str(caught.value)
