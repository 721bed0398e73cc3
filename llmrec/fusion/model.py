"""A fusion: which parts, how they are normalised, what they weigh; fitted on held-out events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llmrec.errors import UserError
from llmrec.fusion import listwise, trees
from llmrec.fusion.parts import Parts, normalised, sums

VERSION = 1


@dataclass(frozen=True)
class Fusion:
    """parts: names of what is fused, in order; normalise: of `parts.NORMALISERS`, how each is brought to one scale.

    weights: one for each part by each normaliser, part after part; or trees: a LightGBM model as text, whose scores
    are multiplied by `scale`. found: share of users, of those it was fitted on, with a true item among the candidates.
    users: with one, whose lists the weights were fitted to.
    """

    parts: tuple[str, ...]
    normalise: tuple[str, ...]
    weights: tuple[float, ...]
    trees: str
    scale: float
    found: float
    users: int

    def score(self, parts: Parts) -> np.ndarray:
        """float64[total]: such that a user's softmax over his candidates tells how likely each is, if one is true.

        Raises:
            UserError: the parts lack one that the fusion was fitted with.
        """
        for name in self.parts:
            if name not in parts.names:
                raise UserError(
                    f"the fusion was fitted with the part '{name}', which these candidates lack (they have: "
                    f"{', '.join(parts.names)}); recall with the same sources, or fit it anew (jobs/fuse.py)"
                )
        features = normalised(parts.only(self.parts), self.normalise)
        if self.trees:
            return trees.score(self.trees, features) * self.scale
        return features @ np.asarray(self.weights)

    def importance(self) -> dict[str, float]:
        """What each part counts: the sum of its weights' sizes, or how much its splits gained, as shares of 1."""
        gained = trees.gains(self.trees) if self.trees else np.abs(np.asarray(self.weights))
        of_parts = gained.reshape(len(self.parts), -1).sum(axis=1)
        shares = of_parts / of_parts.sum() if of_parts.sum() > 0 else of_parts
        return dict(zip(self.parts, shares.tolist(), strict=True))

    def as_dict(self) -> dict[str, Any]:
        return {"version": VERSION, **asdict(self)}

    @staticmethod
    def of_dict(values: dict[str, Any]) -> Fusion:
        """
        Raises:
            ValueError, KeyError, TypeError: it is no fusion of this version.
        """
        found: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        if found.pop("version") != VERSION:
            raise ValueError("another version")
        return Fusion(**found)


def fit(
    parts: Parts, truth: np.ndarray, normalise: Sequence[str], method: str = "linear", l2: float = 1e-3, seed: int = 0
) -> Fusion:
    """Weights by which the true candidates come first.

    truth: bool[total]. method: linear, by `listwise.fit`, or trees, by `trees.fit`. Users none of whose candidates is
    true say nothing of the weights and are only counted.

    Raises:
        UserError: no user has a true candidate, every part says the same of all candidates of every user, trees find
            nothing to split, or the weights do not settle.
    """
    told = sums(truth.astype(float), parts.offsets) > 0
    found = float(told.mean()) if len(told) else 0.0
    if not told.any():
        raise UserError(
            f"fusion: none of {len(told):,} users has a true item among the candidates; recall finds nothing that "
            "weights could be fitted on"
        )
    some = parts.take(told)
    true = truth[np.repeat(told, parts.lengths)]
    features = normalised(some, normalise)
    if not features.any():
        raise UserError(
            f"fusion: the parts ({', '.join(parts.names)}) each say the same of all candidates of a user; there is "
            "nothing to weigh"
        )
    weights: tuple[float, ...] = ()
    grown, scale = "", 1.0
    if method == "trees":
        grown = trees.fit(features, some.offsets, true, seed)
        scores = trees.score(grown, features)
        scale = float(listwise.fit(scores[:, None], some.offsets, true, 0.0)[0])
    else:
        weights = tuple(listwise.fit(features, some.offsets, true, l2).tolist())
    return Fusion(parts.names, tuple(normalise), weights, grown, scale, found, int(told.sum()))


def constant(parts: Parts) -> list[str]:
    """Names of the parts that say the same of all candidates of every user, to which no weight can be fitted."""
    features = normalised(parts, ["min_max"])
    return [name for name, column in zip(parts.names, features.T, strict=True) if not column.any()]
