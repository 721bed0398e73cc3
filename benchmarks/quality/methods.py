"""What a method is to the harness, and the baselines as methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from benchmarks.quality import fusion, linked, protocol
from benchmarks.quality.baselines import ease, ials, item_item, popularity, sasrec, title_similarity
from benchmarks.quality.contextual import InContext
from benchmarks.quality.datasets import Dataset
from benchmarks.quality.protocol import Rows, Scorer
from benchmarks.quality.splits import split
from llmrec.ranker.ragged import Ragged

TITLES = "title-similarity"
MODULES = {
    "popularity": popularity, TITLES: title_similarity, "item-item": item_item, "ease": ease, "ials": ials,
    "sasrec": sasrec, "item-item-last": item_item, "item-item-ever": item_item,
}  # fmt: skip
RANDOM = ("ials", "sasrec")
IN_CONTEXT = {"in-context": False, "popularity-in-context": True}  # and whether popularity counts


class Ranked(NamedTuple):
    """ranks: float32[m]: the rank, from 1, of the target of each user of a split among its candidates, what he has seen
    left out. fitting: seconds that fitting took."""

    ranks: np.ndarray
    fitting: float


class Method(Protocol):
    """Anything that ranks. settings: all that its ranks depend on beside the data set, the split and the seed, as JSON
    can hold it: the key under which they are kept. seeded: whether the seed matters."""

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...

    @property
    def seeded(self) -> bool: ...

    def ranked(self, dataset: Dataset, split: str, seed: int) -> Ranked:
        """Fitted on the training events of `splits.split(dataset, split)`, then asked about its users."""
        ...


@dataclass(frozen=True)
class Baseline:
    """Fitted on a split's training histories. fit: (histories, n_items, settings, seed) -> scorer."""

    name: str
    fit: Callable[[Ragged, int, Mapping[str, Any], int], Scorer]
    settings: Mapping[str, Any]
    seeded: bool

    def scorer(self, histories: Ragged, n_items: int, seed: int) -> Scorer:
        return self.fit(histories, n_items, self.settings, seed)

    def over(self, dataset: Dataset, name: str, seed: int) -> Rows:
        """Fitted on a split's training histories, the scores of some of its targets; see `fused.Member`."""
        asked = split(dataset, name)
        return protocol.of_rows(self.scorer(asked.training, dataset.items.num_rows, seed), asked)

    def ranked(self, dataset: Dataset, split: str, seed: int) -> Ranked:
        return _ranked(self, dataset, split, seed)


@dataclass(frozen=True)
class Fusion:
    """Reciprocal-rank fusion of baselines."""

    members: Sequence[Baseline]

    @property
    def name(self) -> str:
        return "+".join(member.name for member in self.members)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"k": fusion.K} | {member.name: member.settings for member in self.members}

    @property
    def seeded(self) -> bool:
        return any(member.seeded for member in self.members)

    def scorer(self, histories: Ragged, n_items: int, seed: int) -> Scorer:
        return fusion.fused([member.scorer(histories, n_items, seed) for member in self.members])

    def ranked(self, dataset: Dataset, split: str, seed: int) -> Ranked:
        return _ranked(self, dataset, split, seed)


def baseline(
    name: str, settings: Mapping[str, Any], titles: tuple[np.ndarray, str] | None = None
) -> Baseline | InContext | linked.Linked:
    """titles: float32[n_items, any] from `titles.vectors` and their digest, which title similarity needs."""
    if name in linked.METHODS:
        return linked.Linked(name, settings)
    if name in IN_CONTEXT:
        return InContext(name, settings, IN_CONTEXT[name])
    module = MODULES[name]
    fit, of = module.fit, dict(settings) | {"version": module.VERSION}
    if name == TITLES:
        assert titles is not None
        fit, of["encoder"] = partial(module.fit, titles[0]), titles[1]
    return Baseline(name, fit, of, name in RANDOM)


def _ranked(method: Baseline | Fusion, dataset: Dataset, name: str, seed: int) -> Ranked:
    asked = split(dataset, name)

    def fit() -> Rows:
        return protocol.of_rows(method.scorer(asked.training, dataset.items.num_rows, seed), asked)

    return Ranked(*protocol.fitted_then_ranked(fit, asked))
