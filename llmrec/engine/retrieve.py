"""The ranker's retrieve head as a source of candidates: a pool of actors, bucket by bucket."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from llmrec import assets, config, storage
from llmrec.engine.clustered import clustered
from llmrec.engine.counts import asked_histories
from llmrec.engine.item_vectors import freeze
from llmrec.engine.prompts import bind, check_items, opening_tokens, tokenise_items
from llmrec.engine.recall_bucket import CELLS_AT_ONCE, RETRIEVE, tallies
from llmrec.engine.units import by_actors, reporting
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.ranker import attention, precision
from llmrec.ranker.card import model_version, read_card
from llmrec.ranker.item_encoder import ItemVectors
from llmrec.ranker.model import Ranker
from llmrec.ranker.ragged import Ragged, offsets_of
from llmrec.ranker.retrieval import asking, nearest, retrieve_head, user_vectors, with_bias
from llmrec.ranker.templates import placeholders
from llmrec.recall.candidates import Candidates
from llmrec.recall.clusters import Clusters, shared
from llmrec.recall.prerequisites import closed
from llmrec.schema import BUCKET, USER
from llmrec.tables import buckets, contexts, recalled
from llmrec.tables.users import openings

NO_ROWS = np.empty(0, np.int64)


def retrieve(
    settings: config.Recall, layout: Layout, attend: str, requires: Ragged | None, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Write candidates/retrieve, a file a bucket of histories; a row of counts of each. requires: as in `Models`.

    Raises:
        UserError: there is no trained ranker, or it has no retrieve head.
    """
    wanted = settings.retrieve
    model = storage.absolute(wanted.model) if wanted.model else layout.ranker
    if not wanted.model and not storage.exists(layout.ranker):
        raise UserError(
            f"recall.retrieve needs a trained ranker, and {layout.ranker} has none; run jobs/train.py first"
        )
    directory = _directory(model)
    card = read_card(directory)
    if card.items != "token":
        raise UserError(f"{model}: reads items as text and has no retrieve head; set recall.retrieve.top = 0")
    check_items(directory, layout)
    known = buckets.bucket_files(layout.users) if card.prompt.user and storage.exists(layout.users) else {}
    histories = buckets.bucket_files(layout.histories)
    contexts.check(
        buckets.schema_of(next(iter(histories.values()))), placeholders(card.prompt.context), layout.histories
    )
    units = [{BUCKET: b, "uri": uri, "users": known.get(b, "")} for b, uri in histories.items()]
    say(f"retrieving for the users of {len(units)} buckets from all items")
    done = by_actors(units, _Retriever, (settings, layout, model, attend, requires), wanted)
    rows = reporting(done, len(units), say, "retrieve")
    buckets.delete_others(layout.candidates(RETRIEVE), histories)
    return rows


class _Retriever:
    """A member of the pool: the ranker and all items' vectors."""

    def __init__(
        self, settings: config.Recall, layout: Layout, model: str, attend: str, requires: Ragged | None
    ) -> None:
        wanted = settings.retrieve
        device = torch.device("cuda") if wanted.gpus_per_actor else torch.device("cpu")
        if device.type == "cpu":
            torch.set_num_threads(max(1, round(wanted.cpus_per_actor)))
        self.settings, self.layout, self.requires, directory = settings, layout, requires, _directory(model)
        self.ranker = Ranker.from_pretrained(directory).to(device)
        self.ranker.attend_by(attention.choose(attend, device))
        prompt = self.ranker.card.prompt
        self.prompts = bind(tokenise_items(self.ranker.tokenizer, prompt, layout), self.ranker, layout)
        made = freeze(self.ranker, model, model_version(directory), layout)
        assert retrieve_head(self.ranker) is not None
        self.ranker.only_score(precision.choose(wanted.precision, device))
        self.clusters: Clusters | None = None
        if settings.search.method == "clusters":
            assert self.ranker.frozen is not None
            vectors = partial(with_bias, self.ranker.frozen)
            self.clusters = clustered(RETRIEVE, len(self.prompts.catalogue.ids), vectors, made, settings.search, layout)

    def __call__(self, batch: pa.Table) -> pa.Table:
        (unit,) = batch.to_pylist()
        table = buckets.read_parquet(unit["uri"])
        ids, prompt = self.prompts.catalogue.ids, self.ranker.card.prompt
        histories = asked_histories(table, ids, self.settings.history)
        users = table[USER].combine_chunks()
        texts = openings(users, unit["users"], prompt) if unit["users"] else None
        opened = opening_tokens(texts, len(users), self.prompts.plain, prompt, self.ranker.tokenizer)
        names = placeholders(prompt.context)
        told = contexts.now(table, names, self.settings.training_only) if names else None
        asked = self.ranker.read_contexts(told)
        requests = [
            self.prompts.request(opening, histories[i], NO_ROWS, None if asked is None else asked.take(np.asarray([i])))
            for i, opening in enumerate(opened)
        ]
        vectors = user_vectors(self.ranker, requests, self.settings.retrieve.batch_tokens)
        items = self.ranker.frozen
        assert items is not None
        top, checked, parts = self.settings.retrieve.top, dict[str, tuple[int, int]](), list[Candidates]()
        for some in self._blocks(len(users)):
            shut = closed(histories.take(some), self.settings.exclude_seen, self.requires)
            if self.clusters is None:
                parts.append(_exact(vectors[some], items, shut, top))
                continue
            parts.append(self.clusters.nearest(asking(vectors[some]), shut, top))
            if not checked:  # the bucket's first ones stand for it
                few = np.arange(min(self.settings.search.checked, len(some)))
                exact = _exact(vectors[some[few]], items, None if shut is None else shut.take(few), top)
                checked = {RETRIEVE: (len(exact.scores), shared(exact, parts[0].take(few), len(ids)))}
        written = recalled.table(table[USER], parts, [RETRIEVE], ids)
        buckets.write_parquet(written, buckets.bucket_file(self.layout.candidates(RETRIEVE), unit[BUCKET]))
        return pa.table({"users": [len(users)], **tallies(checked)})

    def _blocks(self, users: int) -> list[np.ndarray]:
        """Users one after another, int64[m] at a time, of whom the locked items take about CELLS_AT_ONCE numbers."""
        asking = 0 if self.requires is None else int(np.count_nonzero(self.requires.lengths))
        return np.array_split(np.arange(users), 1 + users * asking // CELLS_AT_ONCE)


def _exact(users: torch.Tensor, items: ItemVectors, seen: Ragged | None, top: int) -> Candidates:
    rows, scores = nearest(users, items, seen, top)
    kept = np.isfinite(scores)
    lists = Ragged(rows[kept].astype(np.int32), offsets_of(kept.sum(axis=1)))
    return Candidates(lists, scores[kept], np.zeros(int(kept.sum()), np.int8))


def _directory(model: str) -> Path:
    return storage.local_directory(model, assets.cache_directory() / "models")
