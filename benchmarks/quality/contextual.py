"""Methods that know what a target's event happened in, which is known when it is asked about; its item is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.quality import protocol
from benchmarks.quality.datasets import Dataset
from benchmarks.quality.protocol import Rows
from benchmarks.quality.splits import Split, split
from llmrec.errors import UserError
from llmrec.ranker.ragged import Ragged
from llmrec.recall import context

VERSION = 1


@dataclass(frozen=True)
class InContext:
    """What `llmrec recall` says of how items go with contexts; likeliest: with log popularity, naive Bayes, as it
    recalls. settings: prior."""

    name: str
    chosen: Mapping[str, Any]
    likeliest: bool
    seeded: bool = False

    @property
    def settings(self) -> Mapping[str, Any]:
        return {**self.chosen, "version": VERSION}

    def over(self, dataset: Dataset, name: str, seed: int) -> Rows:
        """See `fused.Member`.

        Raises:
            UserError: the data set has no contexts.
        """
        asked, n_items = split(dataset, name), dataset.items.num_rows
        told = of_training(dataset, asked)
        counts = context.counted(
            asked.training, {column: told[column].combine_chunks() for column in told.column_names}
        )
        learned = context.learn(counts, n_items, self.chosen["prior"])
        told = of_targets(dataset, asked)
        rows = context.rows_of(told, learned, told.num_rows)
        popularity = np.bincount(asked.training.values, minlength=n_items)
        everywhere = np.log(np.maximum(popularity, 0.5)) if self.likeliest else np.zeros(n_items)

        def scores(of: np.ndarray) -> np.ndarray:
            items = Ragged(np.tile(np.arange(n_items, dtype=np.int32), len(of)), np.arange(len(of) + 1) * n_items)
            found = context.InContext(list(learned.values()), rows[of], popularity).at(items)
            return (np.nan_to_num(found).reshape(len(of), n_items) + everywhere).astype(np.float32)

        return scores

    def ranked(self, dataset: Dataset, name: str, seed: int) -> tuple[np.ndarray, float]:
        """See `methods.Method`."""
        return protocol.fitted_then_ranked(lambda: self.over(dataset, name, seed), split(dataset, name))


def of_training(dataset: Dataset, asked: Split) -> pa.Table:
    """The contexts of a split's training events, in the order of `training.values`."""
    return _contexts(dataset).take(pa.array(asked.events))


def of_targets(dataset: Dataset, asked: Split) -> pa.Table:
    """The contexts of a split's targets."""
    return _contexts(dataset).take(pa.array(asked.asked))


def _contexts(dataset: Dataset) -> pa.Table:
    if dataset.contexts is None:
        raise UserError(f"{dataset.name}: no contexts are known of its events; name its columns in settings.CONTEXTS")
    return dataset.contexts
