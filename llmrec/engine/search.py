"""search: which settings of the training do best in validation, by trials that Ray Tune runs side by side.

A trial is a process without CPUs beside which `train` runs, its workers in a placement group of their own, and which
tells Ray Tune of every validation. What Ray Tune keeps is thrown away: the ledger under the root is what a search that
was cut off goes on from, on whatever cluster.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray
import yaml
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from llmrec import assets, config, storage
from llmrec.config import Config, SettingsSearch, Train
from llmrec.engine import search_space, search_trials, training_histories
from llmrec.engine.search_suggestions import Suggestions
from llmrec.engine.search_trial import run_trial
from llmrec.engine.search_trials import ENDED, FAILED, FINISHED, RUNNING, SETTINGS, STOPPED, Trial
from llmrec.engine.session import quiet
from llmrec.engine.training_worker import BEST, METRIC, STEPS, VALIDATIONS
from llmrec.engine.warm_start import PREVIOUS
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.tables import embeddings, rankings

READING_CPUS = 1  # for Ray Data's tasks of a trial: without, its workers would wait for ever
NO_CPU = {"memory": 1}  # bytes; Ray Tune refuses to ask for nothing
NOT_COMPARED = {"search": ("trials", "parallel"), "train": ("cpus_per_worker", "gpus_per_worker", "max_failures")}
QUIET_SECONDS, LAST_WRITES_SECONDS = 4, 60
NO_LIMIT = 1_000_000_000  # steps after which ASHA compares no more
TUNE_DEFAULTS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # jobs have their own way with Ctrl-C
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True)
class Searched:
    """What a search found. trials: all of its trials, the best first; kept: how many of them ended in an earlier run;
    best, settings: of the best trial; config: its configuration, for train; parallel: trials at once."""

    search: str
    metric: str
    best: float
    settings: dict[str, Any]
    config: str
    trials: list[dict[str, Any]]
    finished: int
    stopped_early: int
    failed: int
    kept: int
    parallel: int
    table: str


def search(settings: Config, layout: Layout, say: Callable[[str], None]) -> Searched:
    """Train trials with other settings until there are as many as asked, and leave the best one's configuration.

    Raises:
        UserError: a key or a range is wrong, no user validates, a trial does not fit into the cluster, or all trials
            fail.
    """
    space = search_space.checked(settings)
    if not training_histories.count(layout.histories, training_only=True).held_out:
        raise UserError(f"{layout.histories}: no user has validation events; a search compares trials by them")
    name = name_of(settings, layout)
    at_once = min(room(_nodes(), settings.train), settings.search.parallel or NO_LIMIT)
    earlier = search_trials.read(layout, name)
    kept = [trial for trial in earlier if trial.state in (FINISHED, STOPPED)]
    missing = settings.search.trials - len(kept)
    say(
        f"search {name}: {settings.search.trials} trials, "
        + (f"{len(kept)} of them there already, " if kept else "")
        + f"{at_once} at once"
    )
    if missing > 0:
        recorder = Recorder(layout, name, earlier, say)
        _run(settings, layout, name, space, earlier, recorder, missing, at_once)
        _clear(storage.join(layout.scratch("search"), name))
    return _found(settings, layout, name, len(kept), at_once)


def name_of(settings: Config, layout: Layout) -> str:
    """The same for searches whose trials are comparable; more trials may be asked of it than before, and other
    resources."""
    what = {part: getattr(settings, part).model_dump(mode="json") for part in (*search_space.SECTIONS, "search")}
    for part, asked in NOT_COMPARED.items():
        for name in asked:
            what[part].pop(name)
    what["negatives_from"] = settings.recall.item_item.model_dump(mode="json")
    read = [layout.histories, layout.items, layout.item_augmentations, layout.users, layout.edges]
    read += [storage.join(layout.embeddings, embeddings.DESCRIPTION)] * (settings.model.items == "token")
    start, teacher = settings.train.start, settings.train.teacher
    read += assets.files_of(settings.model.base, start) + ((layout.ranker,) if start == PREVIOUS else ())
    content = [storage.manifest(uri) for uri in read if storage.exists(uri)]
    taught = [rankings.snapshot(teacher).run_id] if teacher else []
    return "search-" + hashlib.sha256(json.dumps([what, content, *taught], sort_keys=True).encode()).hexdigest()[:12]


def room(nodes: Sequence[Mapping[str, float]], train: Train) -> int:
    """How many trials train at once in a cluster of nodes with such resources.

    Raises:
        UserError: not even one.
    """
    slots = 0
    for node in nodes:
        fit = node.get("CPU", 0.0) // train.cpus_per_worker
        if train.gpus_per_worker:
            fit = min(fit, node.get("GPU", 0.0) // train.gpus_per_worker)
        slots += int(fit)
    cpus = sum(node.get("CPU", 0.0) for node in nodes)
    of_cpus = int(cpus // (train.workers * train.cpus_per_worker + READING_CPUS))
    found = min(slots // train.workers, of_cpus)
    if not found:
        raise UserError(
            f"a trial takes {train.workers} workers of {train.cpus_per_worker:g} CPUs"
            + (f" and {train.gpus_per_worker:g} GPUs" if train.gpus_per_worker else "")
            + f", and {READING_CPUS} CPU to read; the cluster of {len(nodes)} nodes and {cpus:g} CPUs has no room"
        )
    return found


def scheduler(search: SettingsSearch, validate_every: int, earlier: Sequence[Trial]) -> TrialScheduler:
    """What stops trials early, told of what earlier ones reached at each step."""
    if search.early_stopping == "none":
        return FIFOScheduler()
    found = ASHAScheduler(
        time_attr=STEPS, metric=BEST, mode="max", grace_period=search.grace * validate_every,
        reduction_factor=search.reduction, max_t=NO_LIMIT,
    )  # fmt: skip
    for trial in earlier:
        known: Any = _Known(trial.name)
        found.on_trial_add(None, known)
        best = 0.0
        for step, metric in trial.curve:
            best = max(best, metric)
            found.on_trial_result(None, known, {STEPS: step, BEST: best})
    return found


@dataclass(frozen=True)
class _Known:
    """All that ASHA asks of a trial."""

    trial_id: str


class Recorder(tune.Callback):
    """Writes the ledger and a line of progress for whatever happens to trials. failed: why it could not; Ray Tune would
    take that for a trial's failure, or pass over it."""

    def __init__(self, layout: Layout, search: str, earlier: Sequence[Trial], say: Callable[[str], None]) -> None:
        self._layout, self._search, self._say = layout, search, say
        self._by_name = {trial.name: trial for trial in earlier}
        self._started: dict[str, float] = {}
        self.failed: UserError | None = None

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        found = self._of(trial)
        if found.state != RUNNING:  # it failed in an earlier run; one that was cut off goes on from its checkpoint
            found = Trial(found.number, found.name, found.settings)
        self._started[found.name] = time.monotonic() - found.seconds
        self._note(found, ", ".join(f"{key} = {_short(value)}" for key, value in found.settings.items()))

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        found = self._of(trial)
        found = replace(
            found, best=result[BEST], steps=result[STEPS], curve=tuple(map(tuple, result[VALIDATIONS])),
            seconds=round(time.monotonic() - self._started[found.name], 1),
        )  # fmt: skip
        news = "" if result.get(ENDED) else f"step {found.steps}  {METRIC} {result[METRIC]:.4f}"
        self._note(found, news)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        ended = trial.last_result.get(ENDED)
        found = replace(self._of(trial), state=FINISHED if ended else STOPPED)
        self._note(found, f"{found.state} at step {found.steps}, best {found.best:.4f}")
        storage.delete(self._layout.of_trial(self._search, found.name).training)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        told = Path(trial.error_file)  # beside the driver; what trial.get_error reads is not there yet
        reason = reason_of(told.read_text() if told.exists() else "")
        found = replace(self._of(trial), state=FAILED, reason=reason)
        self._note(found, f"{FAILED}: {found.reason}")
        storage.delete(self._layout.of_trial(self._search, found.name).training)

    def _of(self, trial: Any) -> Trial:
        settings = trial.config[SETTINGS]
        name = search_trials.name_of(settings)
        number = max((known.number for known in self._by_name.values()), default=0) + 1
        return self._by_name.get(name, Trial(number, name, settings))

    def _note(self, trial: Trial, line: str) -> None:
        self._by_name[trial.name] = trial
        try:
            search_trials.write(self._layout, self._search, trial)
        except UserError as error:
            self.failed = error
            raise
        if line:
            self._say(f"trial {trial.number}: {line}")


def reason_of(traceback: str) -> str:
    """Why a trial failed, in one line: the innermost error of a traceback's text."""
    lines = [line.strip() for line in traceback.splitlines() if line.strip()]
    found = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "unknown")
    return storage.redact(found.rpartition("UserError: ")[2])[:300]


def _run(
    settings: Config,
    layout: Layout,
    name: str,
    space: list[search_space.Parameter],
    earlier: Sequence[Trial],
    recorder: Recorder,
    count: int,
    at_once: int,
) -> None:
    for variable, value in TUNE_DEFAULTS.items():
        os.environ.setdefault(variable, value)
    quiet()
    ended = [trial for trial in earlier if trial.state in (FINISHED, STOPPED)]
    with tempfile.TemporaryDirectory(prefix="llmrec-tune-") as scratch:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(run_trial, base=settings, layout=layout, search=name), NO_CPU),
            tune_config=tune.TuneConfig(
                search_alg=Suggestions(space, earlier, settings.search.seed),
                scheduler=scheduler(settings.search, settings.train.validate_every, ended),
                num_samples=count, max_concurrent_trials=at_once,
            ),
            run_config=tune.RunConfig(name=name, storage_path=scratch, verbose=0, callbacks=[recorder]),
        )  # fmt: skip
        try:
            tuner.fit()
        except tune.TuneError:
            if recorder.failed is None:
                raise
        if recorder.failed is not None:
            raise recorder.failed


def _clear(uri: str) -> None:
    """Delete what trials left. The workers of one that was stopped end a moment after its process, and may write until
    then."""
    deadline = time.monotonic() + LAST_WRITES_SECONDS
    quiet = 0
    while quiet < QUIET_SECONDS and time.monotonic() < deadline:
        quiet = 0 if storage.list_files(uri) else quiet + 1
        storage.delete(uri)
        time.sleep(1)


def _found(settings: Config, layout: Layout, name: str, kept: int, at_once: int) -> Searched:
    trials = search_trials.read(layout, name)
    ended = [trial for trial in trials if trial.best is not None and trial.state in (FINISHED, STOPPED)]
    if not ended:
        first = trials[0].reason if trials else "none began"
        raise UserError(f"all {len(trials)} trials failed; the first: {first}")
    ranked = sorted(ended, key=lambda trial: (-(trial.best or 0.0), trial.number))
    ranked += [trial for trial in trials if trial not in ended]
    best = ranked[0]
    where = storage.join(layout.search(name), "best.yaml")
    storage.write_bytes(where, _as_yaml(_varied(settings, best.settings), best).encode())
    table = storage.join(layout.search(name), "trials.json")
    rows = [asdict(trial) for trial in ranked]
    storage.write_json(table, rows)
    states = [trial.state for trial in trials]
    assert best.best is not None
    return Searched(
        search=name, metric=METRIC, best=best.best, settings=best.settings, config=where, trials=rows,
        finished=states.count(FINISHED), stopped_early=states.count(STOPPED), failed=states.count(FAILED), kept=kept,
        parallel=at_once, table=table,
    )  # fmt: skip


def _varied(base: Config, settings: Mapping[str, Any]) -> Config:
    return config.varied(base, settings, "trial")


def _as_yaml(settings: Config, best: Trial) -> str:
    """What differs from the defaults, the search itself left out."""
    values = settings.model_dump(mode="json", exclude_defaults=True, exclude={"search"})
    head = f"# the best of a search's trials, number {best.number}: {METRIC} {best.best:.4f}\n"
    return head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _nodes() -> list[Mapping[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
