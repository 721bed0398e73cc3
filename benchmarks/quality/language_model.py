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

from benchmarks.quality import contextual, protocol, settings
from benchmarks.quality.baselines import item_item
from benchmarks.quality.cache import save
from benchmarks.quality.datasets import Dataset
from benchmarks.quality.methods import Ranked
from benchmarks.quality.protocol import Rows
from benchmarks.quality.splits import COLD, Split, fitted_as, split
from llmrec import config
from llmrec.engine import stages
from llmrec.engine.item_vectors import freeze
from llmrec.engine.prompts import Prompts, bind, tokenise_items
from llmrec.engine.session import connected
from llmrec.layout import Layout
from llmrec.ranker import precision
from llmrec.ranker.card import model_version
from llmrec.ranker.contexts import Contexts
from llmrec.ranker.model import Ranker, score_requests
from llmrec.ranker.ragged import Ragged
from llmrec.ranker.retrieval import retrieve_head, user_vectors
from llmrec.ranker.templates import placeholders
from llmrec.schema import ITEM, TIMESTAMP, TITLE, USER
from llmrec.tables import buckets

VERSION = 2  # of what a training or a ranking gives for the same settings
RERANKED = 100
UNTITLED = "unknown"
BATCH_TOKENS = 4096


@dataclass(frozen=True)
class LanguageModel:
    """A ranker of llmrec. sections: of a configuration, see llmrec.config; work: a directory for tables and
    checkpoints, where a training that was cut off goes on."""

    name: str
    sections: Mapping[str, Any]
    work: Path
    threads: int
    say: Callable[[str], None]
    seeded: bool = True

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that the sections leave to defaults, too; and of the method by which a ranker of texts finds what it puts
        in order."""
        first = {} if self.sections["model"]["head"] == "retrieve" else {"first": settings.everywhere("item-item")}
        return {"version": VERSION, **first, **config.build(dict(self.sections)).model_dump(mode="json")}

    def ranked(self, dataset: Dataset, split_name: str, seed: int) -> Ranked:
        """Fitted on all training events of the split for the settings' epochs; nothing is validated meanwhile. Its
        seconds are those of the train stage."""
        asked = split(dataset, split_name)
        if self.sections["model"]["head"] == "retrieve":
            vectors = self._vectors(dataset, split_name, seed)
            return Ranked(protocol.ranks_of_rows(_retrieved(vectors), asked), float(vectors["fitting"]))
        layout, fitting = self._trained(dataset, split_name, seed)
        found = protocol.ranks_of_rows(_reranked(layout, dataset, asked, self.threads), asked)
        if split_name != COLD:  # whose ranker serves cold-only, too
            shutil.rmtree(layout.root)
        return Ranked(found, fitting)

    def over(self, dataset: Dataset, split_name: str, seed: int) -> Rows:
        """The scores of some targets of a split, by the retrieve head; see `fused.Member`."""
        return _retrieved(self._vectors(dataset, split_name, seed))

    def _vectors(self, dataset: Dataset, split_name: str, seed: int) -> dict[str, np.ndarray]:
        """Those of `_vectors`, and fitting: float64, seconds. They are kept, so that one training serves the ranker and
        fusions."""
        file = self._root(dataset, split_name, seed).with_suffix(".npz")
        if not file.exists():
            layout, fitting = self._trained(dataset, split_name, seed)
            vectors = _vectors(*loaded(layout, self.threads), dataset, split(dataset, split_name))
            assert len(vectors["items"]) == dataset.items.num_rows
            save(file, fitting=np.float64(fitting), **vectors)
            shutil.rmtree(layout.root)
        with np.load(file) as kept:
            return dict(kept)

    def _root(self, dataset: Dataset, split_name: str, seed: int) -> Path:
        fitted = fitted_as(split_name)
        key = json.dumps([dataset.digest, dict(self.settings), fitted, seed], sort_keys=True)
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
            if made.augment.wanted:
                self._augment(made, layout, self.work / dataset.name / "generated")
            stages.run("embed", made, self.say, reuse=True)
            fitting = stages.run("train", made, self.say, reuse=True)["seconds"]
        if Path(layout.embeddings).is_dir():
            shutil.rmtree(shared, ignore_errors=True)
            shutil.copytree(layout.embeddings, shared)
        return layout, fitting

    def _augment(self, made: config.Config, layout: Layout, written: Path) -> None:
        """By the job, which finds there all that it has ever written for this data set."""
        mine = layout.generated("items")
        if written.is_dir():
            shutil.copytree(written, mine, dirs_exist_ok=True)
        stages.run("augment", made, self.say, reuse=True)
        shutil.copytree(mine, written, dirs_exist_ok=True)

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
        if named := placeholders(self.sections["prompt"].get("context", "")):
            told = contextual.of_training(dataset, asked)
            for name in named:
                log = log.append_column(name, told[name])
        for name, table in (("items", items), ("interactions", log)):
            buckets.write_parquet(table, str(raw / f"{name}.parquet"))
        values = {name: dict(section) for name, section in self.sections.items()}
        values["data"] = values.get("data", {}) | {
            "items": str(raw / "items.parquet"), "interactions": str(raw / "interactions.parquet"), "split": "none",
            "min_user_events": 1, "buckets": 4, "context": named,
        }  # fmt: skip
        if dataset.edges is not None and "edges" not in values["data"]:
            buckets.write_parquet(dataset.edges, str(raw / "edges.parquet"))
            values["data"]["edges"] = str(raw / "edges.parquet")
        values["train"] = values.get("train", {}) | {"seed": seed, "events": "all"}
        return config.build({"root": str(root), **values})


def loaded(layout: Layout, threads: int, directory: Path | None = None) -> tuple[Ranker, Prompts]:
    """The trained ranker, or that of a directory, ready to score the items of a layout."""
    torch.set_num_threads(threads)
    directory = directory or Path(layout.ranker)
    ranker = Ranker.from_pretrained(directory)
    prompts = bind(tokenise_items(ranker.tokenizer, ranker.card.prompt, layout), ranker, layout)
    if retrieve_head(ranker) is not None:
        freeze(ranker, str(directory), model_version(directory), layout)
    ranker.only_score(precision.choose("auto", torch.device("cpu")))
    return ranker, prompts


def _vectors(ranker: Ranker, prompts: Prompts, dataset: Dataset, asked: Split) -> dict[str, np.ndarray]:
    """users: float32[m, d] of a split's targets; items: float32[n_items, d] and bias: float32[n_items], with which the
    retrieve head scores them."""
    return _vectors_of(ranker, prompts, asked.known, _contexts(ranker, dataset, asked))


def _vectors_of(
    ranker: Ranker, prompts: Prompts, histories: Ragged, contexts: Contexts | None = None
) -> dict[str, np.ndarray]:
    assert ranker.frozen is not None, "a ranker of texts has no vectors"
    with torch.inference_mode():
        users = user_vectors(ranker, _requests(prompts, histories, contexts=contexts), BATCH_TOKENS)
        return {
            "users": users.numpy(), "items": ranker.frozen.direction().numpy(), "bias": ranker.frozen.bias.numpy()
        }  # fmt: skip


def user_scores(ranker: Ranker, prompts: Prompts, histories: Ragged) -> np.ndarray:
    """float32[len(histories), n_items]: of all items by the retrieve head."""
    return _retrieved(_vectors_of(ranker, prompts, histories))(np.arange(len(histories)))


def _retrieved(vectors: Mapping[str, np.ndarray]) -> Rows:
    users, items, bias = (vectors[name] for name in ("users", "items", "bias"))
    return lambda rows: users[rows] @ items.T + bias


def _reranked(layout: Layout, dataset: Dataset, asked: Split, threads: int) -> Rows:
    """A rank head puts the best that its retrieve head finds in new order, a ranker of texts those of item-item
    neighbours."""
    ranker, prompts = loaded(layout, threads)
    assert len(prompts.catalogue.ids) == len(asked.candidates)
    if retrieve_head(ranker) is not None:
        first = _retrieved(_vectors(ranker, prompts, dataset, asked))
    else:
        chosen = settings.of(dataset.name, "item-item")
        first = protocol.of_rows(item_item.fit(asked.training, len(asked.candidates), chosen, 0), asked)

    told = _contexts(ranker, dataset, asked)

    def reranked(rows: np.ndarray) -> np.ndarray:
        scores, histories = first(rows), asked.known.take(rows)
        open_ = protocol.masked(np.where(asked.candidates, scores, -np.inf), histories, -np.inf)
        best = np.argpartition(-open_, RERANKED, axis=1)[:, :RERANKED]
        contexts = None if told is None else told.take(rows)
        anew = torch.stack(score_requests(ranker, _requests(prompts, histories, best, contexts), BATCH_TOKENS)).numpy()
        above = scores.max(axis=1, keepdims=True) - anew.min(axis=1, keepdims=True) + 1
        np.put_along_axis(scores, best, anew + above, axis=1)
        return scores

    return reranked


def _contexts(ranker: Ranker, dataset: Dataset, asked: Split) -> Contexts | None:
    """What a split's targets are asked about in, if the ranker reads it."""
    named = placeholders(ranker.card.prompt.context)
    return ranker.read_contexts(contextual.of_targets(dataset, asked).select(named) if named else None)


def _requests(
    prompts: Prompts, histories: Ragged, candidates: np.ndarray | None = None, contexts: Contexts | None = None
) -> list[Any]:
    """candidates: int64[len(histories), n], or none; contexts: one of each history, or none."""
    none = np.empty(0, np.int64)
    return [
        prompts.request(
            prompts.plain, histories[i], none if candidates is None else candidates[i],
            None if contexts is None else contexts.take(np.asarray([i])),
        )
        for i in range(len(histories))
    ]  # fmt: skip
