"""Optuna's suggestions to Ray Tune, from what the ledger knows of earlier trials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from llmrec.engine.search_space import Parameter, distribution, drawn_of, settings_of
from llmrec.engine.search_trials import ENDED, FINISHED, SETTINGS, STOPPED, Trial, name_of
from llmrec.engine.training_worker import BEST, STEPS

ATTEMPTS = 200


class Suggestions(Searcher):
    """Settings for trials by Optuna's tree-structured Parzen estimator, none of them twice.

    A trial that was stopped early is told as pruned where it stopped; a failed one, as failed.
    """

    def __init__(self, space: list[Parameter], earlier: Sequence[Trial], seed: int) -> None:
        """earlier: those that ended count as evidence, the others are suggested again, first of all."""
        super().__init__(metric=BEST, mode="max")
        self._space = space
        self._distributions = {p.key: distribution(p) for p in space}
        # A search that goes on must not draw again what it drew at its start.
        sampler = optuna.samplers.TPESampler(seed=seed + len(earlier), constant_liar=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # jobs print a line of their own
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._asked: dict[str, optuna.Trial] = {}
        self._names = {trial.name for trial in earlier if trial.state in (FINISHED, STOPPED)}
        for trial in earlier:
            drawn = drawn_of(space, trial.settings)
            if trial.name not in self._names:
                self._study.enqueue_trial(drawn)
                continue
            stopped = trial.state == STOPPED
            self._study.add_trial(
                optuna.trial.create_trial(
                    state=TrialState.PRUNED if stopped else TrialState.COMPLETE, value=trial.best, params=drawn,
                    distributions=self._distributions,
                    intermediate_values={trial.steps: trial.best} if stopped and trial.best is not None else None,
                )
            )  # fmt: skip

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        for _ in range(ATTEMPTS):
            asked = self._study.ask(fixed_distributions=self._distributions)
            found = settings_of(self._space, asked.params)
            if name_of(found) not in self._names:
                self._names.add(name_of(found))
                self._asked[trial_id] = asked
                return {SETTINGS: found}
            self._study.tell(asked, state=TrialState.FAIL)
        return Searcher.FINISHED  # whatever there is has been tried

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        asked = self._asked.pop(trial_id)
        if error or not result or BEST not in result:
            self._study.tell(asked, state=TrialState.FAIL)
        elif result.get(ENDED):
            self._study.tell(asked, result[BEST])
        else:
            asked.report(result[BEST], result[STEPS])
            self._study.tell(asked, state=TrialState.PRUNED)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is what a search goes on from."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a search goes on from its ledger")
