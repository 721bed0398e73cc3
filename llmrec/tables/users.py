"""What is known of users, their attributes and interests, as text that opens their trunks."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute

from llmrec.config import Prompt
from llmrec.ranker.templates import fill, placeholders
from llmrec.schema import USER
from llmrec.tables import buckets
from llmrec.tables.augmentations import INTERESTS, interests_read, with_interests


def known_users(attributes: str, interests: str, prompt: Prompt) -> pa.Table | None:
    """The users of whom prompt.user can say something; None if there are none. attributes, interests: files or folders,
    empty where there are none."""
    users = buckets.read_parquet(attributes) if prompt.user and attributes else None
    if not interests_read(prompt.user) or (users is not None and INTERESTS in users.column_names):
        return users
    found = with_interests(users, buckets.read_parquet(interests) if interests else None)
    if found is not None and users is None:
        for name in dict.fromkeys(placeholders(prompt.user)):
            if name not in found.column_names:  # nobody here has attributes
                found = found.append_column(name, pa.nulls(found.num_rows, pa.string()))
    return found


def openings(users: pa.Array, attributes: str, prompt: Prompt, interests: str = "") -> pa.Array | None:
    """string[n]: what the trunk says of each user, by a bucket's files of attributes and of interests; null where they
    have nothing of him, None if they have of nobody."""
    table = known_users(attributes, interests, prompt)
    if table is None:
        return None
    place = pa.compute.index_in(users, table[USER].combine_chunks())
    known = pa.array(fill(prompt.user, table.take(place.drop_null()), "user"), pa.string())
    which = np.cumsum(place.is_valid().to_numpy(zero_copy_only=False)) - 1
    return known.take(pa.array(which, mask=place.is_null().to_numpy(zero_copy_only=False)))
