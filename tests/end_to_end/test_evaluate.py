"""The command `livefactor evaluate`: is livefactor good on a file of events?"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pytest
import typer

from livefactor_kernels.spec.presets import preset
from livefactor_server.cli.app import app
from livefactor_server.engine.ratings import spec_for_ratings
from livefactor_server.files.specs import write_spec
from livefactor_server.tuning import metrics, opponents, progressive
from livefactor_server.tuning.evaluation import Evaluation, Protocol
from livefactor_server.tuning.progressive import TOP, Stream


@pytest.fixture
def clicks(tmp_path: Path) -> Path:
    """Write clicks of users who have eight tastes with twenty items each."""
    rng = np.random.default_rng(1)
    users = rng.integers(0, 120, 3000)
    items = users % 8 * 20 + np.minimum(rng.geometric(0.15, 3000), 20)
    lines = [f"u{u},{i},{at + 1_500_000_000}" for at, (u, i) in enumerate(zip(users, items, strict=True))]
    file = tmp_path / "clicks.csv"
    file.write_text("\n".join(["user,item,time", *lines]) + "\n")
    return file


def type_in(*arguments: str) -> tuple[int, str, str]:
    result = click.testing.CliRunner().invoke(typer.main.get_command(app), arguments, catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


def test_a_file_is_judged_beside_most_popular(clicks: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    spec, picture = tmp_path / "own.toml", tmp_path / "e.svg"
    write_spec(spec, preset("clicks_sgd", k=16), "clicks_sgd", [])
    common = ("evaluate", str(clicks), "--task", "clicks", "--preset", "purchases_sgd", "--spec", str(spec))
    code, out, err = type_in(*common, "--json", "--picture", str(picture))
    assert code == 0, err
    found = json.loads(out)
    assert (found["mode"], found["events"], found["task"]) == ("test-then-learn", 3000, "clicks")
    assert 2600 < found["judged"] <= 2700
    assert {one["name"] for one in found["models"]} == {"purchases_sgd", "own.toml"}
    assert [one["name"] for one in found["others"]][:2] == ["most-popular", "most-popular, decayed"]
    best, popular = found["models"][0], found["others"][0]
    for metric in ("recall@10", "NDCG@10"):
        assert best["figures"][metric]["value"] > 1.5 * popular["figures"][metric]["value"]
        assert 0 < best["figures"][metric]["error"] < 0.02
    assert len(best["tenths"]) == 10 and best["events_per_s"] > 0
    assert f"{best['name']} is the best" in found["verdict"]
    assert picture.read_text().startswith("<?xml")

    code, out, err = type_in(*common, "--held-out", "0.2", "--report", str(tmp_path / "report.html"))
    assert code == 0, err
    assert "600 events judged" in out and "most-popular, decayed" in out and "is the best" in out
    page = (tmp_path / "report.html").read_text()
    assert "600 of 3,000 events are judged: a part that was held out" in page
    assert page.count("<svg") == 1 and "By users" in page and "optimizer" in page
    # The page needs no other file, and no other machine.
    assert not re.search(r"(?:src|href)=\"(?!#)", page)


def test_a_report_has_groups_of_users_and_of_event_types(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rng = np.random.default_rng(3)
    users = np.r_[rng.integers(0, 40, 1500), np.arange(1000, 1200)]
    rng.shuffle(users)
    lines = [
        f"{user},{user % 5},{kind}" for user, kind in zip(users, rng.integers(0, 3, users.size), strict=True)
    ]
    file = tmp_path / "<typed>.csv"
    file.write_text("\n".join(["user,item,type", *lines]) + "\n")
    report = tmp_path / "report.html"
    code, _, err = type_in("evaluate", str(file), "--preset", "purchases_sgd", "--report", str(report))
    assert code == 0, err
    page = report.read_text()
    assert "&lt;typed&gt;.csv" in page and "<typed>" not in page
    counts = {
        name: int(count.replace(",", ""))
        for name, count in re.findall(r"<tr><td>([^<]*)</td><td>([\d,]+)</td>", page)
    }
    judged = int(re.search(r"<p>([\d,]+) of", page)[1].replace(",", ""))
    assert set(counts) == {
        "the user&#x27;s first event",
        "1 to 9 events before",
        "10 or more before",
        *(f"type {kind}" for kind in range(3)),
    }
    assert sum(count for name, count in counts.items() if name.startswith("type")) == judged
    assert 100 < counts["the user&#x27;s first event"] < 250


def test_a_spec_is_judged_with_and_without_the_context_of_events(tmp_path: Path) -> None:
    """Users have no taste, and the words of a query name the kind of the item."""
    rng = np.random.default_rng(3)
    users, items = rng.integers(0, 200, 2000), rng.integers(0, 120, 2000)
    lines = [
        f"{u},{i},the kind{i // 10},{at + 1_500_000_000}"
        for at, (u, i) in enumerate(zip(users, items, strict=True))
    ]
    file, spec = tmp_path / "searched.csv", tmp_path / "own.toml"
    file.write_text("\n".join(["user,item,query,time", *lines]) + "\n")
    write_spec(spec, preset("clicks"), "clicks", [])
    asked = ("evaluate", str(file), "--spec", str(spec), "--context", "query", "--json")
    code, out, err = type_in(*asked, "--separator", " ", "--context-weight", "3")
    assert code == 0, err
    best, plain = json.loads(out)["models"]
    assert (best["name"], plain["name"]) == ("own.toml, context", "own.toml")
    recall = "recall@10"
    assert best["figures"][recall]["value"] > 3 * plain["figures"][recall]["value"]
    # 65 words are one too many.
    file.write_text(f"user,item,query\n1,2,{' '.join(map(str, range(65)))}\n")
    code, _, err = type_in(*asked, "--separator", " ")
    assert code == 2 and "line 2: at most 64 features of context, got 65" in " ".join(err.split())


def test_events_without_taste_are_no_success(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    items = np.minimum(rng.geometric(0.1, 2000), 60)
    file = tmp_path / "noise.csv"
    lines = [f"{user},{item}" for user, item in zip(rng.integers(0, 500, 2000), items, strict=True)]
    file.write_text("\n".join(["user,item", *lines]) + "\n")
    code, out, err = type_in("evaluate", str(file), "--preset", "purchases_sgd", "--json")
    assert code == 0, err
    assert "is the best" not in json.loads(out)["verdict"]


def test_auto_is_judged_as_what_it_becomes(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    values = np.clip(rng.normal(3.6, 1.0, 600).round(), 1, 5).astype(int)
    file = tmp_path / "stars.csv"
    lines = [
        f"{u},{i},{v}"
        for u, i, v in zip(rng.integers(0, 30, 600), rng.integers(0, 40, 600), values, strict=True)
    ]
    file.write_text("\n".join(["user,item,value", *lines]) + "\n")
    becomes = tmp_path / "becomes.toml"
    write_spec(becomes, spec_for_ratings(preset("auto")), "ratings", [])
    code, out, err = type_in(
        "evaluate", str(file), "--preset", "auto", "--spec", str(becomes), "--task", "ratings", "--json"
    )
    assert code == 0, err
    (auto, same) = (model["figures"] for model in json.loads(out)["models"])
    assert auto == same and set(auto) == {"RMSE"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--preset", "films"], "preset: expected one of"),
        (["--preset", "clicks", "--value", "item"], "column item: clicks rejects the value"),
        (["--task", "films"], "--task: expected one of"),
        (["--item", "thing"], "there is no column 'thing'"),
    ],
)
def test_faults_are_one_line(clicks: Path, arguments: list[str], said: str) -> None:
    code, _, err = type_in("evaluate", str(clicks), *arguments)
    assert code == 2 and said in err.strip().splitlines()[-1]


# ------------------------------------------------------------------------------------------------
# The protocols.


def stream(events: int = 600) -> Stream:
    rng = np.random.default_rng(3)
    users = rng.integers(0, 30, events).astype(np.uint64)
    return Stream(
        users, users % 5 * 10 + rng.integers(0, 10, events).astype(np.uint64), np.ones(events, np.float32)
    )


def test_a_held_out_part_is_judged_by_what_was_learned_before_it() -> None:
    """Other events in the held-out part do not change the figures of an event there."""
    whole, spec = stream(), preset("purchases_sgd", k=8)
    asked = np.arange(600) >= 450
    steps = list(progressive.judge_then_learn(spec, whole, metrics.list_places, asked, 64, 450))
    assert [step.stop for step in steps][6:9] == [448, 450, 512]
    assert all(step.learn_s == 0.0 for step in steps[8:])
    places = np.concatenate([step.judged for step in steps])
    one_by_one = []
    for at in range(450, 600):
        order = [*range(450), at]
        part = Stream(*(column[order] for column in (whole.user_keys, whole.item_keys, whole.values)))
        if at % 10 == 0:
            last = np.arange(451) == 450
            steps = list(progressive.judge_then_learn(spec, part, metrics.list_places, last, 64, 450))
            one_by_one.append(steps[-1].judged[0])
    assert places[::10].tolist() == one_by_one
    for half_life in (np.inf, 100.0):
        popular = progressive.popular_ranks(whole, half_life, 64, 450)
        changed, same = asked & (np.arange(600) % 2 == 0), asked & (np.arange(600) % 2 == 1)
        keys = np.where(changed, np.uint64(1000), whole.item_keys)
        other = Stream(whole.user_keys, keys, whole.values)
        assert (popular[same] == progressive.popular_ranks(other, half_life, 64, 450)[same]).all()


def test_most_popular_is_that_of_a_full_sort() -> None:
    rng = np.random.default_rng(5)
    for size in (0, 1, 9, 10, 11, 500):
        counts = rng.integers(0, 4, size).astype(float)
        best = np.argsort(-counts, kind="stable")[:TOP]
        assert progressive.most_popular(counts).tolist() == best[counts[best] > 0].tolist()


def test_implicit_is_fitted_on_what_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[tuple[int, int]] = []

    def lists(users: Any, items: Any, shape: Any, seed: int) -> tuple[np.ndarray, np.ndarray]:
        fitted.append((len(users), seed))
        # Every user's list has item row 3 on its second place.
        return np.array([[-1, 3, *[-1] * 8]]), np.zeros(shape[0], np.int64)

    monkeypatch.setattr(opponents, "_lists", lists)
    whole = stream()
    for held_out, sizes in ((0.25, [450]), (0.0, [60 + 54 * n for n in range(10)])):
        fitted.clear()
        made = Evaluation(whole, Protocol("clicks", held_out, seed=4))
        found = made.of_implicit(lambda at: None)
        assert fitted == [(size, 4) for size in sizes]
        hit = whole.item_keys[made.sample] == np.unique(whole.item_keys)[3]
        assert found.figures["recall@10"][0] == pytest.approx(hit.mean())
        assert found.figures["NDCG@10"][0] == pytest.approx(hit.mean() / np.log2(3))


def test_implicit_ranks_a_users_taste() -> None:
    pytest.importorskip("implicit")
    made = Evaluation(stream(2000), Protocol("clicks", 0.2))
    found, popular = made.of_implicit(lambda at: None), made.baselines()[0]
    assert found.figures["recall@10"][0] > 2 * popular.figures["recall@10"][0]
