"""The access file: what it holds, what is refused, and how a change is taken up."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from livefactor_server.access import grants as access
from livefactor_server.access.clock import JUMP_S, RELEASED_S, Clock
from livefactor_server.access.grants import AccessFileError, Grant, Grants, Role, add_grant, digest, new_token


@pytest.fixture(autouse=True)
def _look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "RELOAD_S", 0.0)


def written(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


HASH = digest("lf_one")


def test_a_token_has_the_grant_that_was_made_for_it(tmp_path: Path) -> None:
    path, token, other = tmp_path / "access.toml", new_token(), new_token()
    add_grant(path, Grant("shop", Role.PRODUCER, frozenset({"shop"}), time.time() + 100), token)
    add_grant(path, Grant("audit", Role.AUDITOR), other)
    assert path.stat().st_mode & 0o777 == 0o600 and token not in path.read_text()
    found = Grants(path)
    grant = found.of_token(token)
    assert grant is not None and grant.role is Role.PRODUCER
    assert grant.covers("shop") and not grant.covers("other")
    audit = found.of_token(other)
    assert audit is not None and audit.covers("other")
    assert found.of_token(token + "x") is None and found.of_token("") is None
    with pytest.raises(AccessFileError, match="has a grant named 'shop'"):
        add_grant(path, Grant("shop", Role.ADMIN), new_token())


def test_an_expired_grant_is_void(tmp_path: Path) -> None:
    path, token = tmp_path / "access.toml", new_token()
    add_grant(path, Grant("late", Role.CONSUMER, None, time.time() - 1), token)
    assert Grants(path).of_token(token) is None


class Clocks:
    """A clock that a test sets, and one that goes on steadily."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall, self.steady = float(RELEASED_S + 10**7), 50.0
        monkeypatch.setattr(access, "CLOCK", Clock(lambda: self.wall, lambda: self.steady))

    def passes(self, seconds: float) -> None:
        self.wall, self.steady = self.wall + seconds, self.steady + seconds


def test_a_clock_that_jumps_makes_no_expired_grant_valid_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clocks, path, token = Clocks(monkeypatch), tmp_path / "access.toml", new_token()
    add_grant(path, Grant("shop", Role.CONSUMER, None, clocks.wall + 7200), token)
    grants = Grants(path)
    clocks.passes(3600)
    assert grants.of_token(token) is not None and "jumped" not in caplog.text
    clocks.wall += 10**8
    assert grants.of_token(token) is None and "jumped ahead by 100000000 s" in caplog.text
    clocks.wall -= 10**8
    assert grants.of_token(token) is not None and "jumped back by 100000000 s" in caplog.text
    # Two hours have passed, whatever the clock says.
    clocks.passes(3700)
    clocks.wall -= 5000
    assert grants.of_token(token) is None and "jumped back by 5000 s" in caplog.text
    told = len(caplog.records)
    clocks.passes(10)
    clocks.wall += JUMP_S / 2
    assert grants.of_token(token) is None and len(caplog.records) == told


def test_a_clock_that_is_not_set_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clocks, path = Clocks(monkeypatch), tmp_path / "access.toml"
    add_grant(path, Grant("shop", Role.CONSUMER), new_token())
    clocks.wall = 0.0
    with pytest.raises(AccessFileError, match="the clock says 1970-01-01"):
        Grants(path)


def test_a_change_is_taken_up_and_a_faulty_one_is_not(tmp_path: Path, caplog) -> None:
    path, token, later = tmp_path / "access.toml", new_token(), new_token()
    add_grant(path, Grant("one", Role.CONSUMER), token)
    grants = Grants(path)
    assert grants.of_token(later) is None
    add_grant(path, Grant("two", Role.CONSUMER), later)
    assert grants.of_token(later) is not None
    written(path, "[[grant]]\nrole = 7\n")
    assert grants.of_token(later) is not None and "stay in force" in caplog.text
    written(path, "")
    assert grants.of_token(later) is None and grants.of_token(token) is None


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('[[grant]]\nname = "a"\nrole = "root"\ncertificate = "c"', "role: expected one of producer"),
        ('[[grant]]\nrole = "admin"\ncertificate = "c"', "name: expected a text"),
        ('[[grant]]\nname = "a"\nrole = "admin"', "expected token_sha256 or certificate"),
        ('[[grant]]\nname = "a"\nrole = "admin"\ntoken_sha256 = "abc"', "64 hex digits"),
        ('[[grant]]\nname = "a"\nrole = "admin"\ncertificate = "c"\nmodel = "m"', "no field 'model'"),
        ('[[grant]]\nname = "a"\nrole = "admin"\ncertificate = "c"\nmodels = "m"', "a list of names"),
        ('[[grant]]\nname = "a"\nrole = "admin"\ncertificate = "c"\nexpires = 1', "a time with a zone"),
        (f'[[grant]]\nname = "a"\nrole = "admin"\ntoken_sha256 = "{HASH}"\n' * 2, "grant 2: an earlier"),
        ("token = 1", "expected only"),
        ("lf_secret = = 1", "not a TOML file"),
    ],
)
def test_a_fault_of_the_file_is_named(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(AccessFileError, match=fault) as caught:
        Grants(written(tmp_path / "access.toml", text))
    assert "lf_secret" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o644, 0o602, 0o620])
def test_a_file_that_others_can_read_or_change_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(AccessFileError, match="others can read or change it"):
        Grants(written(tmp_path / "access.toml", "", mode))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AccessFileError, match="No such file"):
        Grants(tmp_path / "none.toml")
