"""A mix of experts: what its weights learn, what it reads, and what a pin keeps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from livefactor_kernels.backend import AUTO, choose_backend, create_backend
from livefactor_kernels.cpu import CpuModel
from livefactor_kernels.reading import (
    BLEND,
    BLEND_MAX,
    COUNTS,
    EXPERTS,
    FOLDS,
    GROUPS,
    LEARNED_BLEND,
    MIX,
    NEIGHBOR_WEIGHTS,
    NEIGHBORS,
    POPULARITY,
    POPULARITY_MIN,
    REPEATS,
    RUNS,
    SQUARES,
    SUM,
    WALK,
    WALK_START,
    WALK_WEIGHTS,
    WEIGHT_START,
    initial,
    moments,
    predicted_share,
    rate_after,
)
from livefactor_kernels.reading.cpu import CpuArithmetic
from livefactor_kernels.reading.cpu_learning import Candidates
from livefactor_kernels.reading.cpu_steps import step_weights
from livefactor_kernels.reading.persons import Events, PersonReader
from livefactor_kernels.reading.reference import ReferenceArithmetic, step
from livefactor_kernels.reading.reference_experts import Panel
from livefactor_kernels.reading.remembered import remembered
from livefactor_kernels.scoring.cpu import score_candidates
from livefactor_kernels.spec.checks import check, check_cuda
from livefactor_kernels.spec.model import Counts, History, Loss, Mix, ModelSpec, Rule, Solve, SpecError
from livefactor_kernels.spec.presets import preset
from livefactor_kernels.tables import ITEMS, NO_ROW
from specs import solve_spec
from synthetic import push

USERS, SHELF = 60, 40
SEEN = ("seen_rows", "seen_values", "seen_weights", "seen_visits", "seen_count", "visits")


def mix_spec(**changes: object) -> ModelSpec:
    fields: dict[str, object] = {
        "k": 8,
        "history": History(32, 32),
        "counts": Counts(16, 6),
        "solve": Solve(0.0, 3, 2, 10.0),
        "mix": Mix(0.2),
    }
    return solve_spec(**{**fields, **changes})


def similar_spec(**changes: object) -> ModelSpec:
    return mix_spec(mix=Mix(0.2, 0.5, 10, walk_users=10), **changes)


def weights(model: CpuModel) -> np.ndarray:
    """The weights float64[GROUPS, NEIGHBORS] of a model."""
    return np.array(model.state()[MIX][: GROUPS * NEIGHBORS].reshape(GROUPS, NEIGHBORS))


def learned(draw_items, spec: ModelSpec | None = None, records: int = 60) -> CpuModel:
    """A model that has learned random users with the items of `draw_items(users, generator)`."""
    model, rng = CpuModel(spec or mix_spec()), np.random.default_rng(3)
    for _ in range(records):
        users = rng.integers(0, USERS, 40)
        push(model, users.tolist(), draw_items(users, rng).tolist())
    return model


def by_popularity(users: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.zipf(1.3, users.size) % SHELF


def by_taste(users: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Every item is equally popular. A user takes those of one of four shelves."""
    return users % 4 * SHELF + rng.integers(0, SHELF, users.size)


def again(users: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Every user takes the same item for ever."""
    return users


def test_weights_follow_what_predicts() -> None:
    popular, taste, repeats = (weights(learned(draw)) for draw in (by_popularity, by_taste, again))
    known = GROUPS - 1
    assert popular[known, POPULARITY] > 2 * popular[known, :FOLDS].mean()
    assert taste[known, POPULARITY] < 0.5 * taste[known, :3].sum()
    assert repeats[known, REPEATS] > WEIGHT_START > taste[known, REPEATS]
    assert (popular >= 0).all() and (taste[:, POPULARITY] >= POPULARITY_MIN).all()


def baskets_model(timed: bool, mix: Mix, records: int = 40) -> CpuModel:
    """A model that has learned pairs of items. They come at one time, or side by side without a
    time.
    """
    model, rng = CpuModel(mix_spec(mix=mix)), np.random.default_rng(4)
    for record in range(1, records + 1):
        users = np.repeat(rng.permutation(USERS)[:20], 2)
        items = np.repeat(2 * rng.integers(0, 50, 20), 2)
        items[1::2] += 1
        times = np.full(users.size, record, np.int64) if timed else None
        push(model, users.tolist(), items.tolist(), times=times)
    return model


def most_of_counts(model: CpuModel) -> float:
    return float(weights(model)[GROUPS - 1, COUNTS:REPEATS].max())


def test_a_basket_does_not_foresee_itself() -> None:
    """Items that come at one time are not predicted from one another."""
    most = {timed: most_of_counts(baskets_model(timed, Mix(0.2))) for timed in (False, True)}
    assert most[True] < 2 * WEIGHT_START < 0.5 * most[False]


def test_events_side_by_side_are_a_basket_if_users_come_back() -> None:
    plain, baskets = (Mix(0.2, 0.5, 10, baskets=on) for on in (False, True))
    assert most_of_counts(baskets_model(False, baskets)) < 2 * WEIGHT_START
    assert most_of_counts(baskets_model(False, plain)) > 4 * WEIGHT_START
    # With times, the field changes nothing.
    same = [weights(baskets_model(True, mix)) for mix in (plain, baskets)]
    assert np.array_equal(*same)


def test_runs_are_counted_record_by_record() -> None:
    model = CpuModel(mix_spec(mix=Mix(0.2, 0.5, 10, baskets=True)))
    push(model, [1, 1, 2, 2, 2, 3], [1, 2, 3, 4, 5, 6])
    # The first run of a record may go on from the record before. Users 2 and 3 are new.
    assert model.state()[MIX][RUNS:].tolist() == [2, 0, 0]
    push(model, [3, 1, 1, 4], [1, 2, 3, 4])
    assert model.state()[MIX][RUNS:].tolist() == [4, 1, 0]
    push(model, [3, 1, 1, 4], [1, 2, 3, 4], times=np.array([5, 6, 0, 0], np.int64))
    # Events with times are in no run, and there are two times.
    assert model.state()[MIX][RUNS:].tolist() == [6, 3, -1]


def test_one_time_for_all_events_is_no_time() -> None:
    found = {}
    for time in (0, 9):
        model, rng = CpuModel(mix_spec(mix=Mix(0.2, 0.5, 10, baskets=True))), np.random.default_rng(3)
        for _ in range(30):
            users = rng.integers(0, USERS, 40)
            items = by_taste(users, rng)
            push(model, users.tolist(), items.tolist(), times=np.full(40, time))
        found[time] = weights(model)[GROUPS - 1]
    # The histories differ, because events of one time are one visit.
    assert found[9][:FOLDS].sum() > 1.5 * FOLDS * WEIGHT_START
    assert found[9][POPULARITY] == pytest.approx(found[0][POPULARITY], abs=0.2)


def test_a_log_that_lists_user_after_user_has_no_baskets() -> None:
    """Everything that is known of a user stands side by side there."""
    learned_mixes = []
    for on in (False, True):
        model, rng = CpuModel(mix_spec(mix=Mix(0.2, 0.5, 10, baskets=on))), np.random.default_rng(4)
        for record in range(30):
            users = np.repeat(np.arange(4) + 4 * record, 10)
            push(model, users.tolist(), by_taste(users, rng).tolist())
        learned_mixes.append(np.array(model.state()[MIX][:RUNS]))
    assert np.array_equal(*learned_mixes)


def test_a_new_user_gets_what_is_popular() -> None:
    model = learned(by_popularity)
    rows = np.arange(model.published[ITEMS], dtype=np.uint32)
    counts = model.items.history["seen_count"][: rows.size]
    with model.pin() as pin:
        new = PersonReader(model.spec).read(pin, np.array([NO_ROW], np.uint32), rows.size)
        none = np.empty(0, np.uint32)
        best = new.top_k(pin, model.items.keys, 5, none, none, np.zeros(2, np.int64))[0]
    assert counts[best].mean() > 4 * np.median(counts)


def test_top_k_is_exact() -> None:
    model = learned(by_taste, similar_spec(), records=20)
    count = model.published[ITEMS]
    rows, users = np.arange(count, dtype=np.uint32), np.array([0, 7, NO_ROW], np.uint32)
    with model.pin() as pin:
        persons = PersonReader(model.spec).read(pin, users, count)
        common, none = np.array([5], np.uint32), (np.empty(0, np.uint32), np.zeros(4, np.int64))
        own, offsets = persons.exclusions(*none)
        best, scores, ends = persons.top_k(pin, model.items.keys, 7, common, own, offsets)
        factors, bias = pin.gather(ITEMS, rows)
        for user in range(3):
            one = persons.factors[user : user + 1], persons.bias[user : user + 1]
            each = score_candidates(pin.mean, *one, factors, bias, np.array([0, count]))
            each = each + persons.gains(user, rows)
            left = np.setdiff1d(rows, [5, *own[offsets[user] : offsets[user + 1]]])
            expected = left[np.lexsort((model.items.keys[left], -each[left]))][:7]
            mine = slice(ends[user], ends[user + 1])
            assert best[mine].tolist() == expected.tolist()
            assert scores[mine].tobytes() == each[expected].tobytes()


def test_scores_are_the_weighted_sum_of_standardised_experts() -> None:
    """The moments without a scan are those of all items."""
    model = learned(by_taste, similar_spec(), records=20)
    count = model.published[ITEMS]
    rows = np.arange(count, dtype=np.uint32)
    reader = PersonReader(model.spec)
    parts = []
    for expert in (*range(REPEATS), POPULARITY, NEIGHBORS, WALK):
        alone = np.zeros((GROUPS, EXPERTS))
        alone[:, POPULARITY], alone[:, expert] = 1e-6, 1.0
        parts.append((expert, alone))
    with model.pin() as pin:
        section = pin.state()[MIX]
        before = section.copy()
        for expert, alone in parts:
            section[: GROUPS * NEIGHBORS] = alone[:, :NEIGHBORS].reshape(-1)
            section[NEIGHBOR_WEIGHTS : NEIGHBOR_WEIGHTS + GROUPS] = alone[:, NEIGHBORS]
            section[WALK_WEIGHTS:] = alone[:, WALK]
            person = reader.read(pin, np.array([3], np.uint32), count)
            factors, bias = pin.gather(ITEMS, rows)
            scores = factors.astype(np.float64) @ person.factors[0] + bias + person.bias[0]
            scores = (scores + person.gains(0, rows)) * alone[0, POPULARITY]
            scores /= np.sqrt(section[SQUARES] / count - (section[SUM] / count) ** 2)
            assert abs(scores.mean()) < 1e-3 and abs(scores.std() - 1) < 1e-3, expert
        section[:] = before


def test_a_pin_keeps_popularity_when_all_of_it_decays() -> None:
    model = learned(by_popularity, records=3)
    rows = np.arange(model.published[ITEMS], dtype=np.uint32)
    with model.pin() as pin:
        before = pin.gather(ITEMS, rows)[1].copy()
        for _ in range(6):
            push(model, list(range(30)), list(range(30)))
        assert pin.gather(ITEMS, rows)[1].tobytes() == before.tobytes()
    assert model.items.bias[: rows.size].tobytes() != before.tobytes()


def test_sums_of_popularity_stay_those_of_all_items() -> None:
    model = learned(by_popularity)
    bias = model.items.bias[: model.published[ITEMS]].astype(np.float64)
    mix = model.state()[MIX]
    assert np.isclose(mix[SUM], bias.sum(), rtol=1e-9) and np.isclose(
        mix[SQUARES], (bias**2).sum(), rtol=1e-9
    )


@pytest.mark.parametrize("exponent", [0, 6])
def test_steps_of_cpu_and_reference_agree_on_extreme_numbers(exponent: int) -> None:
    spec, rng = mix_spec(), np.random.default_rng(1)
    z = rng.standard_normal((EXPERTS, 90)) * 10.0 ** rng.integers(-exponent, exponent + 1, (EXPERTS, 1))
    odds, room = np.linspace(1.0, 50.0, 90), Candidates.of(spec)
    cpu, reference = np.full((2, EXPERTS), WEIGHT_START)
    repeats = np.arange(EXPERTS) == REPEATS
    for is_new in (True, False):
        learns = ~repeats if is_new else repeats
        step(reference, z, odds, learns, np.float64(0.5), is_new)
        rows = np.ascontiguousarray(z.T)
        step_weights(cpu, rows, odds, np.uint64(90), is_new, np.float64(0.5), room)
    assert cpu.tobytes() == reference.tobytes()
    assert (cpu != WEIGHT_START).all() or exponent


@pytest.mark.parametrize("kinds", [1, 2])
def test_popularity_of_cpu_and_reference_agrees_on_extreme_numbers(kinds: int) -> None:
    spec, found = mix_spec(mix=Mix(0.2, float(kinds - 1))), []
    model = CpuModel(spec)
    for arithmetic in (CpuArithmetic(spec, model.users, model.items), ReferenceArithmetic(spec)):
        popularity, bias = np.full((3, kinds), 1e30, np.float32), np.zeros(3, np.float32)
        mix, rows = initial(spec), np.array([0, 2, 0], np.uint32)
        arithmetic.add_events(rows, np.array([1, 0, 3e5], np.float32), popularity, bias, mix)
        arithmetic.decay(popularity, bias, mix)
        found.append([popularity.tobytes(), bias.tobytes(), mix.tobytes()])
    assert found[0] == found[1]
    assert moments(3.0, 3.0, 3.0).scale == 0.0


def test_recent_popularity_counts_more_where_it_says_more() -> None:
    """What is popular changes for good in one stream, and never in the other one."""

    def blend(changes: bool) -> tuple[float, CpuModel]:
        model, rng = CpuModel(mix_spec(mix=Mix(0.2, 0.5))), np.random.default_rng(3)
        for record in range(90):
            users = np.arange(40) + 40 * record
            taken = rng.choice(40, 40, p=np.repeat([0.2, 0.05 / 9], [4, 36]))
            push(model, users.tolist(), ((taken + 4 * (record // 4) * changes) % 40).tolist())
        return float(model.state()[MIX][LEARNED_BLEND]), model

    (changing, model), (steady, _) = blend(True), blend(False)
    assert Mix().recent_start < changing <= BLEND_MAX
    assert 0.0 <= steady < 0.7 * changing
    mix, counts = model.state()[MIX], model.items.history["popularity"][:40].astype(float)
    logs = np.array([[_log(count) for count in item] for item in counts])
    found = logs[:, 0] + mix[BLEND] * logs[:, 1]
    assert model.items.bias[:40] == pytest.approx(found, rel=1e-5)
    assert mix[SUM] == pytest.approx(found.sum(), rel=1e-5)


def _log(count: float) -> float:
    """log(1 + count) of the semantics: linear between powers of 2."""
    exponent = np.floor(np.log2(1 + count))
    return float(exponent + (1 + count) / 2**exponent - 1)


def test_reads_are_those_of_the_reference() -> None:
    """Long and short histories, also ones that a full ring or a record without times makes old."""
    for length, records, spec_of in ((16, 40, similar_spec), (64, 20, similar_spec), (16, 40, mix_spec)):
        spec = spec_of(history=History(length, 32))
        model = learned(by_taste, spec, records)
        users = np.append(np.arange(model.published[0], dtype=np.uint32), np.uint32(NO_ROW))
        count = model.published[ITEMS]
        with model.pin() as pin:
            read, panel = PersonReader(spec).read(pin, users, count), Panel(spec)
            for user in range(len(users)):
                row = users[user : user + 1]
                person = {name: section[0] for name, section in pin.read(0, row, SEEN).items()}
                events = remembered(person)
                factors, bias, gains = panel.of(pin, row, events, count).combined()
                assert factors.tobytes() == read.factors[user].tobytes()
                assert bias == read.bias[user]
                assert gains.rows.tobytes() == read.followers[user][0].tobytes()
                assert gains.gains.tobytes() == read.followers[user][1].tobytes()
                assert np.unique(events.rows).tolist() == read.items[user].tolist()
        assert read.truncated.any() == (length == 16)


def test_a_part_of_the_users_reads_what_all_of_them_read() -> None:
    """Users are read in blocks. No user's answer depends on the others in the block."""
    model = learned(by_taste, similar_spec())
    reader, count = PersonReader(model.spec), model.published[ITEMS]
    users = np.arange(model.published[0], dtype=np.uint32)
    with model.pin() as pin:
        together = reader.read(pin, users, count)
        own: list[Events | None] = [None] * len(users)
        own[3] = reader.events_of(np.array([5, 1, 5], np.uint32))
        replaced = reader.read(pin, users, count, own)
        for user in (0, 3, 30, len(users) - 1):
            alone = reader.read(pin, users[user : user + 1], count)
            assert alone.factors[0].tobytes() == together.factors[user].tobytes()
            assert alone.followers[0][1].tobytes() == together.followers[user][1].tobytes()
            is_same = replaced.factors[user].tobytes() == together.factors[user].tobytes()
            assert is_same == (user != 3)
    assert replaced.items[3].tolist() == [1, 5]


def test_few_events_of_a_long_stream_are_predicted() -> None:
    def shares(mix: Mix, *events: int) -> list[int]:
        return predicted_share(np.array(events), mix).tolist()

    assert shares(Mix(0.1), 0, 100_000, 10**9) == [8, 97, 256]
    assert shares(Mix(0.1, predicted_first=2), 0, 4096, 10**9) == [2, 4, 256]
    assert shares(Mix(0.1, early_events=5000), 0, 4999, 5000) == [1, 1, 8]


def test_steps_are_longer_at_first() -> None:
    mix = Mix(0.25, early_events=1000)
    assert [rate_after(events, mix) for events in (0, 1000, 2000, 3000)] == [0.625, 0.625, 0.4375, 0.25]
    assert rate_after(0, Mix(0.25)) == 0.25


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("mix.learning_rate", {"mix": Mix(1.5)}),
        ("mix.recent_half_life", {"mix": Mix(0.1, 0.01)}),
        ("mix.recent_half_life", {"mix": Mix(0.1, 0.0, 5)}),
        ("mix.neighbors", {"mix": Mix(0.1, 1.0, 513)}),
        ("mix.predicted_first", {"mix": Mix(0.1, predicted_first=9)}),
        ("mix.recent_start", {"mix": Mix(0.1, 1.0, recent_start=8.5)}),
        ("mix.neighbors", {"mix": Mix(0.1, 1.0, neighbor_roots=True)}),
        ("mix.neighbors", {"mix": Mix(0.1, 1.0, baskets=True)}),
        ("mix.neighbors", {"mix": Mix(0.1, 1.0, walk_users=5)}),
        ("mix.walk_users", {"mix": Mix(0.1, 1.0, 5, walk_users=513)}),
        ("mix.early_events", {"mix": Mix(0.1, early_events=65537)}),
        ("loss", {"loss": Loss.BPR, "negatives": 1, "rule": Rule.SGD, "solve": Solve()}),
        ("history.half_life", {"history": History(16, 16, 1.5)}),
        ("counts.neighbors", {"counts": Counts()}),
        ("counts.repeat", {"counts": Counts(16, 6, repeat=1.0)}),
        ("solve.unobserved", {"solve": Solve(0.0)}),
        ("solve.unobserved", {"solve": Solve(0.5, unobserved_density=1.0)}),
        ("solve.unobserved_density", {"mix": Mix(), "solve": Solve(unobserved_density=-1.0)}),
    ],
)
def test_a_mix_that_cannot_work_is_refused_by_name(field: str, changes: dict[str, object]) -> None:
    with pytest.raises(SpecError, match=f"^{field}: "):
        check(replace(mix_spec(), **changes))


def test_cuda_refuses_a_mix_by_name_and_is_not_chosen_for_it() -> None:
    with pytest.raises(SpecError, match=r"^mix.learning_rate: .*docs/gpu.md"):
        check_cuda(mix_spec())
    with pytest.raises(SpecError, match=r"^solve.unobserved_density: "):
        check_cuda(mix_spec(mix=Mix()))
    with pytest.raises(SpecError, match=r"^solve.ridge_events: "):
        check_cuda(mix_spec(mix=Mix(), solve=Solve(0.5, ridge_events=1.0)))
    assert choose_backend(AUTO, preset("auto")) == "cpu"
    assert check_cuda(preset("clicks")) == preset("clicks")


def test_unobserved_pairs_weigh_by_the_density_of_the_data() -> None:
    spec = mix_spec(mix=Mix(), solve=Solve(0.0, 3, 2, 3.0))
    model = create_backend("cpu", spec)
    push(model, [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6])
    assert model.state()["unobserved"][0] == np.float32(3.0 * 6 / 36)
    push(model, [1, 1], [2, 3])
    assert model.state()["unobserved"][0] == np.float32(3.0 * 8 / 36)


def test_similar_users_say_what_comes_next() -> None:
    """Users go through one of many lists, so users who share the last items know the next one."""
    model, rng = CpuModel(mix_spec(mix=Mix(0.2, 1.0, 10))), np.random.default_rng(5)
    lists = rng.permuted(np.tile(np.arange(200), (20, 1)), axis=1)[:, :6]
    for record in range(60):
        users = np.arange(20) + 20 * record
        for place in range(6):
            push(model, users.tolist(), lists[users % 20, place].tolist())
    mix = model.state()[MIX]
    assert mix[NEIGHBOR_WEIGHTS] == 0.0
    assert mix[NEIGHBOR_WEIGHTS + 1 : NEIGHBOR_WEIGHTS + 3].max() > 2 * WEIGHT_START
    reader, count = PersonReader(model.spec), model.published[ITEMS]
    with model.pin() as pin:
        rows = model.items.find(lists[3, :3].astype(np.uint64), count)
        found = reader.read(pin, np.array([NO_ROW], np.uint32), count, [reader.events_of(rows)])
        gains = found.gains(0, np.arange(count, dtype=np.uint32))
        gains[rows] = 0.0
    assert model.items.keys[np.argmax(gains)] == lists[3, 3]


def test_walks_reach_what_users_of_old_items_had() -> None:
    """User 1 had item 0 before ten others. User 2 had item 0, too, and then item 99."""
    model = CpuModel(similar_spec())
    push(model, [1] * 11, list(range(11)))
    push(model, [2, 2, 3], [0, 99, 50])
    count = model.published[ITEMS]
    row = model.items.find(np.array([99], np.uint64), count)
    with model.pin() as pin:
        user = np.array([0], np.uint32)
        events = remembered({name: section[0] for name, section in pin.read(0, user, SEEN).items()})
        found = Panel(model.spec).of(pin, user, events, count)
    assert found.neighbors.at(row)[0] == 0.0
    expected = 2.0**20 / np.sqrt(2 + 1) / (2 + 1) / np.sqrt(1 + 1)
    assert np.isclose(found.walks.at(row)[0], expected, rtol=1e-6)
    assert found.weights[WALK] == WALK_START
    # Nothing leads to item 50 of user 3.
    assert found.walks.at(model.items.find(np.array([50], np.uint64), count))[0] == 0.0


@pytest.mark.parametrize("length", [16, 128])
def test_recent_events_are_those_of_the_revision(length: int) -> None:
    """Also when later events take the places of those that a pin sees."""
    spec = mix_spec(history=History(length, length), mix=Mix(0.2, 0.5, 10))
    model, reference = CpuModel(spec), create_backend("reference", spec)
    rng = np.random.default_rng(6)
    for record in range(12):
        users, items = rng.integers(0, 4, 30).tolist(), rng.integers(0, 5, 30).tolist()
        values = rng.integers(0, 2, 30).astype(np.float32)
        for each in (model, reference):
            push(each, users, items, values=values)
        rows = np.array([2, 0, NO_ROW, 3], np.uint32)
        with model.pin() as pin, reference.pin() as plain:
            expected = [plain.recent(side, rows, 9) for side in (0, 1)]
            for side in (0, 1):
                for one, other in zip(model.recent(side, rows, 9), expected[side], strict=True):
                    assert one.tobytes() == other.tobytes()
            if record % 3 == 0:
                for each in (model, reference):
                    push(each, users, items)
            for side in (0, 1):
                for one, other in zip(pin.recent(side, rows, 9), expected[side], strict=True):
                    assert one.tobytes() == other.tobytes()
    assert expected[0].counts.tolist() == [9, 9, 0, 9]
