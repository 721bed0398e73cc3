"""What recall found for the users of a bucket: the candidates table in list form, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from llmrec import schema
from llmrec.ranker.ragged import offsets_of
from llmrec.recall.candidates import Candidates
from llmrec.schema import ITEMS, PART_OF_RECALL, RECALL_SCORES
from llmrec.tables import buckets
from llmrec.tables.histories import as_lists, flatten, item_rows


def table(
    users: pa.ChunkedArray,
    parts: Sequence[Candidates],
    labels: Sequence[str],
    ids: pa.Array,
    scored: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> pa.Table:
    """Candidates of the users of a bucket, some users after others.

    labels: the names of their sources; scored: what each of some sources says of all candidates, part by part, float32,
    NaN where nothing: one more column each, `recall_score_<source>`.
    """
    offsets = offsets_of(np.concatenate([np.empty(0, np.int64), *(p.items.lengths for p in parts)]))
    rows = np.concatenate([np.empty(0, np.int32), *(p.items.values for p in parts)])
    scores = np.concatenate([np.empty(0, np.float32), *(p.scores for p in parts)])
    source = np.concatenate([np.empty(0, np.int8), *(p.source for p in parts)])
    names = pa.DictionaryArray.from_arrays(pa.array(source, pa.int8()), pa.array(labels)).cast(pa.string())
    columns = [
        users,
        as_lists(ids.take(pa.array(rows)), offsets),
        as_lists(pa.array(scores), offsets),
        as_lists(names, offsets),
    ]
    wanted = schema.candidates(users.type, ids.type)
    made = pa.table([c.cast(f.type) for c, f in zip(columns, wanted, strict=True)], schema=wanted)
    for name, values in (scored or {}).items():
        flat = np.concatenate([np.empty(0, np.float32), *values])
        made = made.append_column(PART_OF_RECALL + name, as_lists(pa.array(flat, mask=np.isnan(flat)), offsets))
    return made


def read(uri: str, ids: pa.Array) -> Candidates:
    """What `table` made of one source."""
    found = buckets.read_parquet(uri, [ITEMS, RECALL_SCORES])
    scores = flatten(found[RECALL_SCORES])[0].to_numpy(zero_copy_only=False)
    return Candidates(item_rows(found[ITEMS], ids), scores, np.zeros(len(scores), np.int8))
