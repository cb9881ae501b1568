"""Optuna's study in a folder. A search can continue the study of an interrupted one.

<study>/journal.log    all trials, in Optuna's journal format (JSON lines, synced)
<study>/lock           locked by the running search (flock)

The specs to try are a function of the settings, the seed and the finished trials, since the sampler
gets a new seed for each trial from their number. An interrupted search therefore tries the same
specs as an uninterrupted one.
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
from livefactor_server.challenging.rules import RULES
from livefactor_server.tuning.plan import Plan
from livefactor_server.tuning.starts import Start

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

INSTALL_HINT = 'pip install "livefactor[tune]"'
JOURNAL = "journal.log"
NAME = "tune"
RANDOM_TRIALS = 10
"""Number of random trials, with the rules' first ones, before results guide the choice."""
REST_MARGIN = 1.2
"""The run of a spec over the whole stream may take so many times what its trial suggests."""
JUDGED_TRIALS = 5
"""Minimum number of finished trials before a trial can be stopped early.

The number of rules is also a minimum.
"""


class StudyError(ValueError):
    """The study cannot be continued. The text says why."""


class _StoppedEarly(Exception):
    """The trial is worse than the median of the other trials at this point."""


class TimeIsUp(Exception):
    """The time limit was reached while a spec was tried."""


@dataclass(frozen=True, slots=True)
class FinishedTrial:
    """A finished trial.

    Attributes:
        number: its number among the finished trials.
        rule: its rule.
        spec: its spec.
        value: the metric. If the trial was stopped, the metric at that point.
        stopped: whether it was stopped early.
        events_per_s: events learned per CPU second, 0 if it was stopped.
        seconds: how long it took, 0 if it was stopped.
        preset: name of the preset that it tried; "" if it tried none.
    """

    number: int
    rule: str
    spec: ModelSpec
    value: float
    stopped: bool
    events_per_s: float
    seconds: float = 0.0
    preset: str = ""


def missing() -> str:
    """The missing packages and the command that installs them; "" if none is missing."""
    lacking = [name for name in ("optuna", "matplotlib") if find_spec(name) is None]
    return f"tuning needs {' and '.join(lacking)}: {INSTALL_HINT}" if lacking else ""


@contextmanager
def open_study(folder: Path, settings: dict[str, Any], larger_is_better: bool) -> Iterator[Study]:
    """Opens or creates the study of a folder, and locks the folder while the context is active.

    Args:
        folder: the folder of the study.
        settings: everything that influences the result of a trial, as plain values.
        larger_is_better: direction of the metric.

    Raises:
        StudyError: the folder has a study with other settings, is damaged, or is in use.
        OSError: the folder cannot be used.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
            raise StudyError(f"{journal} is damaged ({error})") from None
        _agree(study, folder, settings)
        yield study


def _mend(journal: Path) -> None:
    """Repairs the journal after a kill.

    It removes an incomplete last line and Optuna's lock, which only this search uses.
    """
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
                f"{folder} has a search with {name} {was}, not {now}: choose another --study, or delete the folder"
            )


def search(
    study: Study,
    plan: Plan,
    starts: list[Start],
    rules: list[str],
    trials: int,
    until: float,
    on_events: Callable[[int], None],
    on_trial: Callable[[list[FinishedTrial]], None],
) -> list[FinishedTrial]:
    """Tries specs until `trials` are finished in total, or until the time is up.

    The presets come first, and are tried even if they are more than `trials`. Behind them the
    search leaves enough time for the figures of the rest of the stream (`rest_seconds`). A trial
    that the end of the time interrupts does not count.

    Args:
        study: the study.
        plan: the stream and its judged events.
        starts: what is tried first, the presets before others.
        rules: the names of the rules to try.
        trials: total number of finished trials.
        until: when the time is up, as `time.monotonic`; infinity means no limit.
        on_events: called with the number of events that the running trial has learned.
        on_trial: called with the finished trials, before the first new trial and after each.

    Returns:
        All finished trials.
    """
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        # A killed search left this trial unfinished.
        study.tell(trial.number, state=TrialState.FAIL)
    presets = sum(start.preset != "" for start in starts)
    finished = finished_trials(study)
    on_trial(finished)
    while len(finished) < max(trials, presets):
        # What is chosen from must be there first. So the presets may use all of the time.
        reserve_s = 0.0 if len(finished) < presets else rest_seconds(finished, plan)
        if time.monotonic() >= until - reserve_s:
            break
        start = starts[len(finished)] if len(finished) < len(starts) else None
        _prepare(study, start, len(starts), len(finished), plan.settings.seed)
        try:
            _try(study, study.ask(), start, plan, rules, timed(on_events, until - reserve_s))
        except TimeIsUp:
            break
        finished = finished_trials(study)
        on_trial(finished)
    return finished


def rest_seconds(finished: list[FinishedTrial], plan: Plan) -> float:
    """An estimate of the time that the figures of the rest of the stream take.

    They take a run of the best trial and one of the best preset over the whole stream.
    """
    best = best_first(finished, plan)
    specs = {one.spec: one.seconds for one in (*best[:1], *[one for one in best if one.preset][:1])}
    return REST_MARGIN * sum(specs.values()) * len(plan.stream) / plan.search_events


def timed(on_events: Callable[[int], None], until: float) -> Callable[[int], None]:
    """`on_events`, which raises TimeIsUp when the time is up."""

    def check(learned: int) -> None:
        if time.monotonic() >= until:
            raise TimeIsUp
        on_events(learned)

    return check


def _prepare(study: Study, start: Start | None, starts: int, finished: int, seed: int) -> None:
    """Makes the next trial a function of the seed and of the finished trials."""
    from optuna.pruners import MedianPruner
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    number = int(np.random.SeedSequence([seed, finished]).generate_state(1)[0])
    study.sampler = TPESampler(seed=number, n_startup_trials=RANDOM_TRIALS)
    study.pruner = MedianPruner(n_startup_trials=max(JUDGED_TRIALS, starts), n_warmup_steps=1)
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    if start is not None and start.parameters and not waiting:
        study.enqueue_trial(dict(start.parameters))


def _try(
    study: Study,
    trial: Trial,
    start: Start | None,
    plan: Plan,
    rules: list[str],
    on_events: Callable[[int], None],
) -> None:
    from optuna.trial import TrialState

    if start is not None:
        trial.set_user_attr("preset", start.preset)
        trial.set_user_attr("rule", start.rule)
    if start is None or start.parameters:
        name = trial.suggest_categorical("rule", rules)
        RULES[name].suggest(trial, name)
    else:
        name = start.rule
    spec = RULES[name].of_parameters(trial.params, name)

    def on_point(number: int, value: float) -> None:
        trial.report(value, number)
        if trial.should_prune():
            raise _StoppedEarly

    begin_s = time.monotonic()
    try:
        outcome = plan.search(spec, on_point, on_events)
    except _StoppedEarly:
        study.tell(trial, state=TrialState.PRUNED)
        return
    except TimeIsUp:
        study.tell(trial, state=TrialState.FAIL)
        raise
    trial.set_user_attr("events_per_s", outcome.events_per_s)
    trial.set_user_attr("seconds", time.monotonic() - begin_s)
    study.tell(trial, outcome.value)


def finished_trials(study: Study) -> list[FinishedTrial]:
    """The finished trials in order."""
    from optuna.trial import TrialState

    states = (TrialState.COMPLETE, TrialState.PRUNED)
    return [
        _finished_trial(place, trial)
        for place, trial in enumerate(study.get_trials(deepcopy=False, states=states))
    ]


def _finished_trial(place: int, trial: FrozenTrial) -> FinishedTrial:
    name = trial.params.get("rule") or trial.user_attrs["rule"]
    return FinishedTrial(
        place,
        name,
        RULES[name].of_parameters(trial.params, name),
        float(trial.value if trial.value is not None else np.nan),
        trial.state.name == "PRUNED",
        float(trial.user_attrs.get("events_per_s", 0.0)),
        float(trial.user_attrs.get("seconds", 0.0)),
        str(trial.user_attrs.get("preset", "")),
    )


def best_first(finished: list[FinishedTrial], plan: Plan) -> list[FinishedTrial]:
    """The trials that ran to the end, best first. Ties are ordered by number."""
    sign = -1.0 if plan.metric.larger_is_better else 1.0
    return sorted(
        (one for one in finished if not one.stopped), key=lambda one: (sign * one.value, one.number)
    )
