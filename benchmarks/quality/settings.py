"""Settings of the baselines: what `--tune` tries on validation, and what it found.

A data set that is not named here takes the first value of every list, unless it is tuned in the same run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

Settings = dict[str, Any]
NOISY = "-noise"  # ends a data set's name, and how many percent of its events are drawn at random

# What the events of a data set happened in. Not what is a property of the item, as frappe's `cost`, which tells of it.
CONTEXTS: Mapping[str, Sequence[str]] = {
    "frappe": ("daytime", "weekday", "isweekend", "homework", "weather", "country", "city"),
}

GRID: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "popularity": {},
    "in-context": {"prior": [100.0, 10.0, 30.0, 300.0, 1000.0, 3000.0]},
    "popularity-in-context": {"prior": [100.0, 10.0, 30.0, 300.0, 1000.0, 3000.0]},
    "graph": {"decay": [0.85, 0.5, 1.0], "neighbours": [200], "max_items": [10_000], "reach": [2000]},
    "closeness": {"weight": [1.0, 0.3, 3.0], "smoothing": [1.0, 10.0], "decay": [0.85, 0.5, 1.0]},
    "title-similarity": {"decay": [0.5, 0.3, 0.7, 0.85, 1.0]},
    "item-item": {"neighbours": [1000, 200], "shrinkage": [50, 10, 100], "decay": [0.65, 0.5, 0.85, 1.0]},
    "ease": {"l2": [100.0, 30.0, 300.0, 1000.0]},
    "ials": {
        "factors": [64, 32, 256], "regularization": [1.0, 0.1, 10.0], "alpha": [5.0, 2.0, 20.0], "iterations": [15],
    },
    "sasrec": {
        "positions": [50, 200], "width": [64], "heads": [2], "blocks": [2], "dropout": [0.3, 0.5],
        "learning_rate": [1e-3, 3e-3], "epochs": [200], "patience": [10], "refit": [True],
    },
}  # fmt: skip

# Not searched over their whole grids yet: sasrec (two learning rates on ml-100k), ials on coco-courses, and on
# amazon-beauty everything but item-item.
CHOSEN: Mapping[str, Mapping[str, Settings]] = {
    "ml-100k": {
        "title-similarity": {"decay": 0.3},
        "item-item": {"neighbours": 200, "shrinkage": 10, "decay": 0.85},
        "ials": {"factors": 256, "regularization": 10.0, "alpha": 2.0},
        "sasrec": {"positions": 200, "learning_rate": 3e-3},
    },
    "ml-latest-small-5core": {
        "item-item": {"neighbours": 200, "shrinkage": 10, "decay": 0.65},
        "ease": {"l2": 30.0},
        "ials": {"factors": 256, "regularization": 10.0, "alpha": 2.0},
    },
    "amazon-beauty": {
        "item-item": {"neighbours": 1000, "shrinkage": 50, "decay": 0.5},
        "ials": {"factors": 256},
    },
    "coco-courses": {
        "title-similarity": {"decay": 0.3},
        "item-item": {"neighbours": 1000, "shrinkage": 100, "decay": 0.65},
        "ials": {"factors": 256},
    },
    "frappe": {
        "item-item": {"neighbours": 200, "shrinkage": 10, "decay": 1.0},
        "ease": {"l2": 30.0},
        "ials": {"factors": 256, "regularization": 10.0, "alpha": 2.0},
        "in-context": {"prior": 3000.0},
        "popularity-in-context": {"prior": 1000.0},
    },
}


# Methods that are another one with some of its settings fixed: item-item by the last events, and by all alike.
FIXED: Mapping[str, tuple[str, Settings]] = {
    "item-item-last": ("item-item", {"decay": 0.3}),
    "item-item-ever": ("item-item", {"decay": 1.0}),
}


def of(dataset: str, method: str) -> Settings:
    if method in FIXED:
        other, fixed = FIXED[method]
        return of(dataset, other) | fixed
    first = {name: values[0] for name, values in GRID[method].items()}
    return first | CHOSEN.get(dataset.partition(NOISY)[0], {}).get(method, {})


def everywhere(method: str) -> dict[str, Settings]:
    """A method's settings of every data set that has some of its own, and of the others."""
    return {dataset: of(dataset, method) for dataset in (*CHOSEN, "")}


def grid(method: str) -> list[Settings]:
    """Every combination.

    Raises:
        KeyError: it is another method with fixed settings, which has none to search.
    """
    names = list(GRID[method])
    return [dict(zip(names, values, strict=True)) for values in product(*GRID[method].values())]
