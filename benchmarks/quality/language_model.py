"""llmrec's own rankers as methods: trained by its jobs on a local Ray cluster, then asked for the whole catalogue."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import xxhash

from benchmarks.quality import protocol, settings
from benchmarks.quality.baselines import item_item
from benchmarks.quality.cache import save
from benchmarks.quality.datasets import Dataset
from benchmarks.quality.methods import Ranked
from benchmarks.quality.protocol import Scorer
from benchmarks.quality.splits import COLD, Split, fitted_as, split
from llmrec import config
from llmrec.engine import stages
from llmrec.engine.item_vectors import freeze
from llmrec.engine.prompts import Prompts, bind, tokenise_items
from llmrec.engine.session import connected
from llmrec.layout import Layout
from llmrec.ranker import precision
from llmrec.ranker.card import model_version
from llmrec.ranker.heads import RetrieveHead
from llmrec.ranker.model import Ranker, score_requests
from llmrec.ranker.ragged import Ragged
from llmrec.ranker.retrieval import retrieve_head, user_vectors
from llmrec.schema import ITEM, TIMESTAMP, TITLE, USER
from llmrec.tables import buckets

RERANKED = 100
UNTITLED = "unknown"
BATCH_TOKENS = 4096


@dataclass(frozen=True)
class LanguageModel:
    """A ranker of llmrec. settings: sections of a configuration, see llmrec.config; work: a directory for tables and
    checkpoints, where a training that was cut off goes on."""

    name: str
    settings: Mapping[str, Any]
    work: Path
    threads: int
    say: Callable[[str], None]
    seeded: bool = True

    def ranked(self, dataset: Dataset, split_name: str, seed: int) -> Ranked:
        """Fitted on all training events of the split for the settings' epochs; nothing is validated meanwhile. Its
        seconds are those of the train stage."""
        asked = split(dataset, split_name)
        layout, fitting = self._trained(dataset, split_name, seed)
        found = protocol.target_ranks(_scorer(layout, dataset.name, asked, self.threads), asked)
        if split_name != COLD:  # whose ranker serves cold-only, too
            shutil.rmtree(layout.root)
        return Ranked(found, fitting)

    def over(self, dataset: Dataset, split_name: str, seed: int) -> Callable[[np.ndarray], np.ndarray]:
        """The scores of some targets of a split; see `fused.Member`. The vectors that make them are kept, so that the
        ranker is trained once."""
        file = self._root(dataset, split_name, seed).with_suffix(".npz")
        if not file.exists():
            asked = split(dataset, split_name)
            layout, _ = self._trained(dataset, split_name, seed)
            save(file, **_vectors(layout, asked, self.threads))
            shutil.rmtree(layout.root)
        with np.load(file) as kept:
            users, items, bias = kept["users"], kept["items"], kept["bias"]
        return lambda rows: users[rows] @ items.T + bias

    def _root(self, dataset: Dataset, split_name: str, seed: int) -> Path:
        fitted = fitted_as(split_name)
        key = json.dumps([dataset.digest, self.settings, fitted, seed], sort_keys=True)
        return self.work / dataset.name / f"{self.name}-{fitted}-{xxhash.xxh3_64_hexdigest(key.encode())}"

    def _trained(self, dataset: Dataset, split_name: str, seed: int) -> tuple[Layout, float]:
        """Where the ranker and the tables it needs are, and the seconds of training."""
        asked, root = split(dataset, split_name), self._root(dataset, split_name, seed)
        made = self._configuration(dataset, asked, root, seed)
        shared = self.work / dataset.name / "embeddings"
        layout = Layout.of(made)
        with connected(made.cluster, made.root):
            stages.run("prepare", made, self.say, reuse=True)
            if shared.is_dir() and not Path(layout.embeddings).is_dir():
                shutil.copytree(shared, layout.embeddings)  # embed looks what of it still holds
            stages.run("embed", made, self.say, reuse=True)
            fitting = stages.run("train", made, self.say, reuse=True)["seconds"]
        if Path(layout.embeddings).is_dir():
            shutil.rmtree(shared, ignore_errors=True)
            shutil.copytree(layout.embeddings, shared)
        return layout, fitting

    def _configuration(self, dataset: Dataset, asked: Split, root: Path, seed: int) -> config.Config:
        raw = root / "raw"
        titles = dataset.items[TITLE].fill_null(UNTITLED)
        items = dataset.items.set_column(dataset.items.column_names.index(TITLE), TITLE, titles)
        lengths = asked.training.lengths
        log = pa.table({
            USER: dataset.users.take(pa.array(np.repeat(np.arange(len(lengths)), lengths))),
            ITEM: dataset.items[ITEM].combine_chunks().take(pa.array(asked.training.values)),
            TIMESTAMP: pa.array(np.arange(len(asked.training.values)) + 1),
        })  # fmt: skip
        for name, table in (("items", items), ("interactions", log)):
            buckets.write_parquet(table, str(raw / f"{name}.parquet"))
        values = {name: dict(section) for name, section in self.settings.items()}
        values["data"] = values.get("data", {}) | {
            "items": str(raw / "items.parquet"), "interactions": str(raw / "interactions.parquet"), "split": "none",
            "min_user_events": 1, "buckets": 4,
        }  # fmt: skip
        if dataset.edges is not None:
            buckets.write_parquet(dataset.edges, str(raw / "edges.parquet"))
            values["data"]["edges"] = str(raw / "edges.parquet")
        values["train"] = values.get("train", {}) | {"seed": seed, "events": "all"}
        return config.build({"root": str(root), **values})


def _loaded(layout: Layout, asked: Split, threads: int) -> tuple[Ranker, Prompts]:
    """The trained ranker, ready to score."""
    torch.set_num_threads(threads)
    ranker = Ranker.from_pretrained(layout.ranker)
    prompts = bind(tokenise_items(ranker.tokenizer, ranker.card.prompt, layout), ranker, layout)
    assert len(prompts.catalogue.ids) == len(asked.candidates)
    if retrieve_head(ranker) is not None:
        freeze(ranker, model_version(layout.ranker), layout)
    ranker.only_score(precision.choose("auto", torch.device("cpu")))
    return ranker, prompts


def _vectors(layout: Layout, asked: Split, threads: int) -> dict[str, np.ndarray]:
    """users: float32[m, d] of a split's targets; items: float32[n_items, d] and bias: float32[n_items], with which the
    retrieve head scores them."""
    ranker, prompts = _loaded(layout, asked, threads)
    assert ranker.frozen is not None, "a ranker of texts has no vectors"
    none = np.empty(0, np.int64)
    known = [prompts.request(prompts.plain, asked.known[i], none) for i in range(len(asked.known))]
    with torch.inference_mode():
        users = user_vectors(ranker, known, BATCH_TOKENS)
        return {
            "users": users.numpy(), "items": ranker.frozen.direction().numpy(), "bias": ranker.frozen.bias.numpy()
        }  # fmt: skip


def _scorer(layout: Layout, dataset: str, asked: Split, threads: int) -> Scorer:
    """float32[m, n_items] of histories: by the retrieve head. A rank head puts its best ones in new order, a ranker of
    texts those of item-item neighbours."""
    ranker, prompts = _loaded(layout, asked, threads)
    head = retrieve_head(ranker)

    def requests(histories: Ragged, candidates: np.ndarray | None = None) -> list[Any]:
        none = np.empty(0, np.int64)
        return [
            prompts.request(prompts.plain, histories[i], none if candidates is None else candidates[i])
            for i in range(len(histories))
        ]

    def retrieved(histories: Ragged) -> np.ndarray:
        assert ranker.frozen is not None
        with torch.inference_mode():
            users = user_vectors(ranker, requests(histories), BATCH_TOKENS)
            return (users @ ranker.frozen.direction().T + ranker.frozen.bias).numpy()

    def reranked(histories: Ragged) -> np.ndarray:
        scores = first(histories)
        open_ = protocol.masked(np.where(asked.candidates, scores, -np.inf), histories, -np.inf)
        best = np.argpartition(-open_, RERANKED, axis=1)[:, :RERANKED]
        anew = torch.stack(score_requests(ranker, requests(histories, best), BATCH_TOKENS)).numpy()
        above = scores.max(axis=1, keepdims=True) - anew.min(axis=1, keepdims=True) + 1
        np.put_along_axis(scores, best, anew + above, axis=1)
        return scores

    if isinstance(ranker.head, RetrieveHead):
        return retrieved
    chosen = settings.of(dataset, "item-item")
    first = retrieved if head is not None else item_item.fit(asked.training, len(asked.candidates), chosen, 0)
    return reranked
