"""Tables as the stages leave them, and a tiny saved ranker of texts or of vectors, whose every weight matters."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from llmrec import config
from llmrec.engine.prompts import load_prompts
from llmrec.layout import Layout
from llmrec.ranker.contexts import ContextEncoder
from llmrec.ranker.model import Ranker
from llmrec.tables import buckets

ITEMS, USERS, BUCKETS = 24, 12, 3
HISTORIES = [[(7 * u + 5 * i) % ITEMS for i in range(u % 6)] for u in range(USERS)]
NOW = ["w40", None, "w41", "w42"]
PROMPT = {
    "item": "{title}", "user": "w{age} ", "before_history": "w0", "before_item": "", "after_item": " \n",
    "context": " w9 {place}", "max_history": 4,
}  # fmt: skip


def candidates_of(user: int) -> list[int]:
    """So many that the ids' order and the scores' have nothing in common."""
    return np.random.default_rng(user).permutation([i for i in range(ITEMS) if i not in HISTORIES[user]])[:9].tolist()


def settings_of(root: str, local: Path, model: Path, items: str, sections: dict[str, Any]) -> config.Config:
    layout, users = Layout(root), pa.array(range(USERS), pa.int64())
    titles = [f"w{i} w{i * i % 37} w{i % 5}" for i in range(ITEMS)]
    kinds, price = [f"k{i % 4}" for i in range(ITEMS)], [float(i * i % 11) for i in range(ITEMS)]
    buckets.write_parquet(
        pa.table({"item_id": list(range(ITEMS)), "title": titles, "kind": kinds, "price": price}), layout.items
    )
    which = buckets.bucket_of(users, BUCKETS)
    place = pa.array([NOW[u % len(NOW)] for u in range(USERS)], pa.string())
    ages = pa.array([20 + u if u % 3 else None for u in range(USERS)], pa.int64())
    for columns, where in (
        ({"item_ids": pa.array(HISTORIES, pa.list_(pa.int64())), "now_place": place}, layout.histories),
        ({"item_ids": pa.array([candidates_of(u) for u in range(USERS)], pa.list_(pa.int64()))}, layout.candidates()),
        ({"age": ages}, layout.users),
    ):
        table = pa.table({"user_id": users} | columns)
        for b in range(BUCKETS):
            buckets.write_parquet(table.filter(pa.array(which == b)), buckets.bucket_file(where, b))
    values: dict[str, Any] = {
        "root": root, "data": {"context": ["place"], "buckets": BUCKETS},
        "model": {"base": str(model), "items": items, "head": "linear" if items == "text" else "rank"},
        "items": {"encoder": "", "id": False, "categories": ["kind"], "numbers": ["price"]}, "prompt": PROMPT,
        "score": {"model": str(local / f"ranker-{items}"), "precision": "float32", "top_k": 5},
    }  # fmt: skip
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    found = config.build(values)
    _save_ranker(found, layout)
    return found


def _save_ranker(wanted: config.Config, layout: Layout) -> None:
    ranker = Ranker.from_base(wanted.model, wanted.prompt, wanted.model.base, items=wanted.items)
    if wanted.model.items == "token":
        ranker.contexts = ContextEncoder({"place": ["w40", "w41", "w42"]}, ranker.backbone.config.hidden_size)
        load_prompts(ranker, layout)
    with torch.no_grad():
        for name, parameter in ranker.named_parameters():
            if not name.startswith("backbone"):
                seed = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.5 + 0.2)
    ranker.save_pretrained(wanted.score.model, "")
