"""Users' attributes, as text that opens their trunks."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute

from llmrec.config import Prompt
from llmrec.ranker.templates import fill
from llmrec.schema import USER
from llmrec.tables import buckets


def openings(users: pa.Array, attributes: str, prompt: Prompt) -> pa.Array:
    """string[n]: what the trunk says of each user, by a bucket's file of attributes; null where it has none of him."""
    table = buckets.read_parquet(attributes)
    place = pa.compute.index_in(users, table[USER].combine_chunks())
    known = pa.array(fill(prompt.user, table.take(place.drop_null()), "user"), pa.string())
    which = np.cumsum(place.is_valid().to_numpy(zero_copy_only=False)) - 1
    return known.take(pa.array(which, mask=place.is_null().to_numpy(zero_copy_only=False)))
