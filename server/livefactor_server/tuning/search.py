"""Optuna's study in a folder: trials that a killed run leaves behind are picked up where they were.

<study>/journal.log    every trial, as Optuna's journal (JSON lines, synced); also Optuna's own tools can read it
<study>/lock           held by one search (flock)

Which specs are tried is a function of the settings, the seed and the trials that were finished before: the sampler
is seeded anew for each trial with their number. So an interrupted search tries what an uninterrupted one would.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from livefactor_kernels.spec.model import ModelSpec
from livefactor_server.tuning.plan import Plan
from livefactor_server.tuning.rules import RULES

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

INSTALL_HINT = 'pip install "livefactor[tune]"'
JOURNAL = "journal.log"
NAME = "tune"
RANDOM_TRIALS = 10
"""So many are drawn at random, the rules' starts counted, before what they were worth guides the choice."""
JUDGED_TRIALS = 5
"""A trial is stopped early only beside so many finished ones, or the rules' starts if those are more."""


class StudyError(ValueError):
    """A study that cannot be gone on with; the text says why."""


class _StoppedEarly(Exception):
    """A trial is worse than the median of the others at this point."""


@dataclass(frozen=True, slots=True)
class Tried:
    """A finished trial. value: the metric, of a stopped one at the point that it reached. events_per_s: learned in a CPU
    second, 0 where it was stopped."""

    number: int
    rule: str
    spec: ModelSpec
    value: float
    stopped: bool
    events_per_s: float


def missing() -> str:
    """What tuning needs and is not installed, with the command to type; "" if all is there."""
    lacking = [name for name in ("optuna", "matplotlib") if find_spec(name) is None]
    return f"tuning needs {' and '.join(lacking)}: {INSTALL_HINT}" if lacking else ""


@contextmanager
def open_study(folder: Path, settings: dict[str, Any], larger_is_better: bool) -> Iterator[Study]:
    """The study of a folder, new or gone on with; the folder is held as long.

    settings: all that decides what a trial is worth (plain values). Raises StudyError if the folder holds a study of
    other settings or is in use, OSError.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StudyError(f"{folder} is in use by another search") from None
        journal = folder / JOURNAL
        _mend(journal)
        try:
            storage = optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
            study = optuna.create_study(
                storage=storage,
                study_name=NAME,
                direction="maximize" if larger_is_better else "minimize",
                load_if_exists=True,
            )
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError) as error:
            raise StudyError(f"{journal}: damaged ({error})") from None
        _agree(study, folder, settings)
        yield study


def _mend(journal: Path) -> None:
    """Undo what a kill can leave: a line that was not written to its end, and Optuna's lock, which is ours alone."""
    journal.with_name(journal.name + ".lock").unlink(missing_ok=True)
    if journal.exists():
        data = journal.read_bytes()
        with open(journal, "r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)


def _agree(study: Study, folder: Path, settings: dict[str, Any]) -> None:
    before = study.user_attrs.get("settings")
    if before is None:
        study.set_user_attr("settings", settings)
        return
    for name in {**before, **settings}:
        was, now = before.get(name), settings.get(name)
        if was != now:
            raise StudyError(
                f"{folder} holds a search with {name} {was}, not {now}: name another --study, or delete it"
            )


def search(
    study: Study,
    plan: Plan,
    rules: list[str],
    trials: int,
    minutes: float,
    on_events: Callable[[int], None],
    on_trial: Callable[[list[Tried]], None],
) -> list[Tried]:
    """Try specs until `trials` are finished in all, or `minutes` (0: no limit) have passed; all finished trials.

    on_events: called with the events that the trial under way has learned. on_trial: called with the finished
    trials, also before the first one.
    """
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)  # a run that was killed left it
    starts = [{"rule": name, **RULES[name].first(name)} for name in rules]
    deadline = time.monotonic() + 60.0 * minutes if minutes else float("inf")
    done = tried(study)
    on_trial(done)
    while len(done) < trials and time.monotonic() < deadline:
        _prepare(study, starts, len(done), plan.settings.seed)
        _try(study, study.ask(), plan, rules, on_events)
        done = tried(study)
        on_trial(done)
    return done


def _prepare(study: Study, starts: list[dict[str, Any]], finished: int, seed: int) -> None:
    """Make the next trial a function of the seed and of those that are finished."""
    from optuna.pruners import MedianPruner
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    number = int(np.random.SeedSequence([seed, finished]).generate_state(1)[0])
    study.sampler = TPESampler(seed=number, n_startup_trials=RANDOM_TRIALS)
    study.pruner = MedianPruner(n_startup_trials=max(JUDGED_TRIALS, len(starts)), n_warmup_steps=1)
    if finished < len(starts) and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        study.enqueue_trial(starts[finished])


def _try(study: Study, trial: Trial, plan: Plan, rules: list[str], on_events: Callable[[int], None]) -> None:
    from optuna.trial import TrialState

    name = trial.suggest_categorical("rule", rules)
    RULES[name].suggest(trial, name)
    spec = RULES[name].of_parameters(trial.params, name)

    def on_point(number: int, value: float) -> None:
        trial.report(value, number)
        if trial.should_prune():
            raise _StoppedEarly

    try:
        outcome = plan.search(spec, on_point, on_events)
    except _StoppedEarly:
        study.tell(trial, state=TrialState.PRUNED)
        return
    trial.set_user_attr("events_per_s", outcome.events_per_s)
    study.tell(trial, outcome.value)


def tried(study: Study) -> list[Tried]:
    """The finished trials, in their order."""
    from optuna.trial import TrialState

    finished = (TrialState.COMPLETE, TrialState.PRUNED)
    return [
        _tried(place, trial) for place, trial in enumerate(study.get_trials(deepcopy=False, states=finished))
    ]


def _tried(place: int, trial: FrozenTrial) -> Tried:
    name = trial.params["rule"]
    return Tried(
        place,
        name,
        RULES[name].of_parameters(trial.params, name),
        float(trial.value if trial.value is not None else np.nan),
        trial.state.name == "PRUNED",
        float(trial.user_attrs.get("events_per_s", 0.0)),
    )


def best_first(done: list[Tried], plan: Plan) -> list[Tried]:
    """Trials that ran to the end, the best one first; of equals the earliest."""
    sign = -1.0 if plan.metric.larger_is_better else 1.0
    return sorted((one for one in done if not one.stopped), key=lambda one: (sign * one.value, one.number))
