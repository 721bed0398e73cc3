"""What users typed, as vectors beside those of the items' texts: a pool of actors, bucket by bucket."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch

from llmrec import assets, config
from llmrec.engine.text_vectors import described
from llmrec.engine.units import by_actors, reporting
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.ranker.card import model_revision
from llmrec.ranker.sentence import SentenceEncoder
from llmrec.schema import BUCKET, USER
from llmrec.tables import buckets, contexts, queries
from llmrec.tables.embeddings import Description

BATCH = 64


def encode(settings: config.Recall, layout: Layout, say: Callable[[str], None]) -> int:
    """Write queries, a file a bucket of histories; how many users typed something.

    Raises:
        UserError: no context is called so, or the items' texts have no vectors, or of another encoder's revision.
    """
    wanted = settings.query
    histories = buckets.bucket_files(layout.histories)
    there = contexts.names_of(buckets.schema_of(next(iter(histories.values()))))
    if wanted.context not in there:
        raise UserError(
            f"recall.query.context = {wanted.context}: {layout.histories} has no such context (it has: "
            f"{', '.join(there) or 'none'}); name the column in data.context and run jobs/prepare.py again"
        )
    made = described(layout, "recall.query")
    if model_revision(made.encoder) != made.revision:
        raise UserError(
            f"recall.query: {layout.embeddings} is of another revision of {made.encoder} than is there now; run "
            "jobs/embed.py again"
        )
    units = [{BUCKET: bucket, "uri": uri} for bucket, uri in histories.items()]
    say(f"encoding what the users of {len(units)} buckets typed")
    rows = reporting(by_actors(units, _Encoder, (settings, layout, made), wanted), len(units), say, "queries")
    buckets.delete_others(layout.queries, histories)
    return sum(row["typed"] for row in rows)


class _Encoder:
    """A member of the pool: the encoder of the items' texts."""

    def __init__(self, settings: config.Recall, layout: Layout, made: Description) -> None:
        wanted = settings.query
        if not wanted.gpus_per_actor:
            torch.set_num_threads(max(1, round(wanted.cpus_per_actor)))
        self.settings, self.layout = settings, layout
        device = "cuda" if wanted.gpus_per_actor else "cpu"
        self.encoder = SentenceEncoder(assets.resolve_model(made.encoder), made.max_tokens, device)

    def __call__(self, batch: pa.Table) -> pa.Table:
        (unit,) = batch.to_pylist()
        name, training_only = self.settings.query.context, self.settings.training_only
        columns = [USER, *contexts.columns_of([name], training_only)]
        table = buckets.read_parquet(unit["uri"], columns)
        typed = contexts.now(table, [name], training_only)[name].combine_chunks().dictionary_encode()
        vectors = np.zeros((len(typed.dictionary) + 1, self.encoder.dimensions), np.float32)  # the last: nothing typed
        vectors[:-1] = self.encoder.encode(typed.dictionary.to_pylist(), BATCH)
        found = vectors[typed.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
        queries.write(table[USER], found, buckets.bucket_file(self.layout.queries, unit[BUCKET]))
        return pa.table({"typed": [int(found.any(axis=1).sum())]})
