"""A trial of a search, as Ray Tune's process for it runs it; light to import, for the work is done beside it."""

from __future__ import annotations

from typing import Any

import ray
import ray.train
from ray import tune
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from llmrec.config import Config, varied
from llmrec.engine.search_trials import ENDED, SETTINGS, name_of
from llmrec.engine.session import prepare_environment, quiet
from llmrec.layout import Layout

POLL_SECONDS = 1.0


class Reported(ray.train.UserCallback):
    """Hands what workers report to the trial that waits for it; runs where Ray Train's controller does."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        self._queue.put(metrics[0])


def run_trial(config: dict[str, Any], base: Config, layout: Layout, search: str) -> None:
    """Train with a trial's settings and report every validation to Ray Tune.

    Ray's own TuneReportCallback is not used: its queue is drained only while Ray Tune asks for results, and a trial
    that ends with a result in it waits for ever. Here the last result comes after all others.

    Raises:
        UserError: as of `train`, inside Ray's wrapper.
    """
    queue = Queue(actor_options={"num_cpus": 0})
    # What a trial's process starts would have to fit into the resources of that process, which are none.
    beside = PlacementGroupSchedulingStrategy(placement_group=None)
    work = ray.remote(_train).options(num_cpus=0, max_retries=0, scheduling_strategy=beside)
    aside = layout.of_trial(search, name_of(config[SETTINGS]))
    training = work.remote(varied(base, config[SETTINGS], "trial"), aside, queue)
    while True:
        done, _ = ray.wait([training], timeout=0)
        try:
            tune.report(queue.get(timeout=POLL_SECONDS))
        except Empty:
            if done:
                break
    tune.report({**ray.get(training), ENDED: True})


def _train(settings: Config, layout: Layout, queue: Any) -> dict[str, Any]:
    """The metrics at its end: a trial that was cut off right there reports nothing more on the way."""
    prepare_environment(settings.cluster.no_progress_seconds)
    quiet()
    from llmrec.engine import train

    plan = train.planned(settings, layout, train.begin_with(settings, layout))
    return train.fit(settings, layout, plan, lambda _: None, [Reported(queue)])[1]
