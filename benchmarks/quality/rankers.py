"""Settings of llmrec's rankers: sections of a configuration, and what each variant changes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.quality.settings import CONTEXTS, NOISY

Sections = dict[str, dict[str, Any]]
AUGMENTED = "augmented"  # stands for the item's template with what augment writes after it
IN_CONTEXT = "in context"  # stands for all contexts that are known of a data set's events

BASE: Sections = {
    "prompt": {"item": "{title}", "before_history": "History:", "max_history": 50},
    "model": {"layers": 2, "items": "token", "head": "retrieve"},
    "items": {},
    "train": {
        "epochs": 5, "users_per_step": 96, "decisions_per_user": 50, "learning_rate": 5e-4, "head_learning_rate": 2e-3,
        "dropout": 0.3, "horizon": 4, "horizon_decay": 0.6, "id_dropout": 0.1, "validate_every": 1000,
        "warmup_share": 0.05,
    },
}  # fmt: skip

# Of a ranker that reads the items' texts: a decision is a user's event beside its negatives.
TEXT = {
    "users_per_step": 4, "decisions_per_user": 8, "negatives": 8, "horizon": 1, "learning_rate": 2e-4, "dropout": 0.1,
}  # fmt: skip

# Of the small sets, whose users have long histories.
FEW_USERS = {
    "users_per_step": 16, "horizon": 2, "horizon_decay": 0.8, "dropout": 0.2, "epochs": 9, "head_learning_rate": 5e-4,
    "average": 0.98,
}  # fmt: skip

# With differential privacy noise is on all that learns, so less does, in few, large steps.
PRIVATE: Sections = {
    "items": {"id": False, "id_start": 0},
    "train": {
        "tune": "head", "users_per_step": 118, "epochs": 15, "learning_rate": 1e-3, "head_learning_rate": 1e-2,
        "dropout": 0.0, "id_dropout": 0.0, "average": 0.0,
    },
}  # fmt: skip


def private(epsilon: float) -> Sections:
    return PRIVATE | {"train": PRIVATE["train"] | {"private": {"epsilon": epsilon}}}


# Found on validation, as those of the baselines.
OF_DATASET: Mapping[str, Sections] = {
    "ml-100k": {
        "prompt": {"item": "{title} ({year}) {genres}"},
        "items": {"categories": ["genres"], "separator": ", "},
        "train": FEW_USERS,
    },
    "ml-latest-small-5core": {
        "prompt": {"item": "{title} ({release_year}) {category}"},
        "items": {"categories": ["category"]},
        "train": FEW_USERS,
    },
    "amazon-beauty": {"items": {"categories": ["attribute_ids"]}, "train": {"dropout": 0.2}},
    "coco-courses": {
        "prompt": {"item": "{title}. {category}. {concepts}. {level}, {language}"},
        "items": {"categories": ["category", "concepts", "level", "language"]},
    },
    "frappe": {
        "prompt": {"item": "{title} {category}. {short_description}"},
        "items": {"categories": ["category"]},
        "train": FEW_USERS,
    },
}

VARIANTS: Mapping[str, Sections] = {
    "lm": {},
    "lm-rank": {"model": {"head": "rank"}},
    "lm-augmented": {"prompt": {"item": AUGMENTED}, "augment": {"items": {"min_characters": 120}}},
    "lm-random": {"model": {"pretrained": False}},
    "lm-text-only": {"items": {"id": False}},
    "lm-id-only": {"items": {"encoder": "", "categories": [], "vectors": [], "numbers": []}},
    "lm-4-layers": {"model": {"layers": 4}},
    "lm-8-layers": {"model": {"layers": 8}},
    "lm-all-layers": {"model": {"layers": None}},
    "lm-random-all-layers": {"model": {"layers": None, "pretrained": False}},
    "lm-adversarial": {"train": {"adversarial": 0.1}},
    "lm-masks": {"train": {"dropout_passes": 2}},
    "lm-private-1": private(1),
    "lm-private-4": private(4),
    "lm-private-8": private(8),
    "lm-not-private": PRIVATE,
    "lm-without-graph": {"data": {"edges": ""}},
    "lm-context": {"prompt": {"context": IN_CONTEXT}},
    "lm-text": {"model": {"items": "text", "head": "linear"}, "prompt": {"max_history": 50}, "train": TEXT},
}


def sections(dataset: str, variant: str) -> Sections:
    """Those of the variant, with what is known of the data set's events where it is read."""
    found: Sections = {name: dict(section) for name, section in BASE.items()}
    dataset = dataset.partition(NOISY)[0]
    for changed in (OF_DATASET.get(dataset, {}), VARIANTS[variant]):
        for name, section in changed.items():
            found[name] = found.get(name, {}) | section
    if found["prompt"]["item"] == AUGMENTED:
        own = OF_DATASET.get(dataset, {}).get("prompt", {}).get("item", BASE["prompt"]["item"])
        found["prompt"]["item"] = f"{own}. {{augmentation}}"
    if found["prompt"].get("context") == IN_CONTEXT:
        found["prompt"]["context"] = " ".join(f"{{{name}}}" for name in CONTEXTS.get(dataset, ()))
    return found
