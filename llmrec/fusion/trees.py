"""LambdaMART by LightGBM: what no sum of parts can say, such as that a part counts only where another is small."""

from __future__ import annotations

import numpy as np

from llmrec.errors import UserError

ROUNDS, PATIENCE = 400, 30
HELD_OUT = 0.2
SETTINGS = {
    "objective": "lambdarank", "metric": "ndcg", "eval_at": [10], "learning_rate": 0.05, "num_leaves": 15,
    "min_data_in_leaf": 50, "lambda_l2": 1.0, "lambdarank_truncation_level": 20, "deterministic": True,
    "force_row_wise": True, "num_threads": 1, "verbosity": -1,
}  # fmt: skip


def fit(features: np.ndarray, offsets: np.ndarray, truth: np.ndarray, seed: int) -> str:
    """A model as text: as many trees as rank a fifth of the users best, then grown anew on all of them.

    features: float64[total, f]; offsets: int64[n + 1]; truth: bool[total].

    Raises:
        UserError: LightGBM is not installed, or splits nothing, so that all candidates would have one score.
    """
    lightgbm = _lightgbm()
    settings = {**SETTINGS, "seed": seed}
    lengths = np.diff(offsets)
    held_out = np.random.default_rng(seed).random(len(lengths)) < HELD_OUT

    def data(users: np.ndarray, reference: object = None) -> object:
        rows = np.repeat(users, lengths)
        return lightgbm.Dataset(
            features[rows], truth[rows].astype(int), group=lengths[users], reference=reference, params={"verbosity": -1}
        )

    rounds = ROUNDS
    if held_out.any() and not held_out.all():
        learnt = data(~held_out)
        stop = lightgbm.early_stopping(PATIENCE, verbose=False)
        first = lightgbm.train(settings, learnt, ROUNDS, valid_sets=[data(held_out, learnt)], callbacks=[stop])
        rounds = max(first.best_iteration, 1)
    grown = str(lightgbm.train(settings, data(np.ones(len(lengths), bool)), rounds).model_to_string())
    if not gains(grown).any():
        raise UserError(
            f"fusion by trees: {len(features):,} candidates of {len(lengths):,} users give nothing to split (a leaf "
            f"holds {SETTINGS['min_data_in_leaf']} of them); set fusion.method = linear, or hold out events of more "
            "users"
        )
    return grown


def score(model: str, features: np.ndarray) -> np.ndarray:
    """float64[total]."""
    return np.asarray(_lightgbm().Booster(model_str=model).predict(features, num_threads=1), np.float64)


def gains(model: str) -> np.ndarray:
    """float64[f]: by how much the splits on each feature lowered the loss."""
    return np.asarray(_lightgbm().Booster(model_str=model).feature_importance("gain"))


def check() -> None:
    """
    Raises:
        UserError: LightGBM is not installed.
    """
    _lightgbm()


def _lightgbm():  # type: ignore[no-untyped-def]
    try:
        import lightgbm
    except ImportError:
        raise UserError(
            "fusion by trees needs LightGBM: pip install 'llmrec[trees]', or set fusion.method = linear"
        ) from None
    return lightgbm
