"""What the prepared tables know of users, for requests that name one."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute

from llmrec.engine import tasks
from llmrec.engine.prompts import user_files
from llmrec.engine.run import Job
from llmrec.schema import ITEMS, USER
from llmrec.tables import buckets
from llmrec.tables.users import openings


@dataclass(frozen=True)
class Known:
    """Of one user. history: item ids, oldest first; context: by name, what he is asked about in; opening: what a trunk
    says of him, None if nothing."""

    history: list[Any]
    context: dict[str, str | None]
    opening: str | None


@dataclass(frozen=True)
class _Bucket:
    users: pa.Array
    histories: pa.ChunkedArray
    contexts: pa.Table | None
    openings: pa.Array | None


class Users:
    """Users by id, read bucket by bucket when one of them is asked for; the last `kept` buckets stay in memory.

    Raises:
        UserError: the tables are not there, or cannot be read.
    """

    def __init__(self, job: Job, kept: int) -> None:
        self.job = job
        self.files = buckets.bucket_files(job.layout.histories)
        self.attributes, self.interests = user_files(job.prompt, job.layout)
        self.kind = buckets.schema_of(next(iter(self.files.values()))).field(USER).type
        self.bucket = functools.lru_cache(kept)(self._read)

    def find(self, user_id: int | str) -> Known | None:
        """None for a user without a row in histories."""
        key = pa.array([user_id], self.kind)
        found = self.bucket(int(buckets.bucket_of(key, len(self.files))[0]))
        place = pa.compute.index_in(key, found.users)[0].as_py()
        if place is None:
            return None
        context = {} if found.contexts is None else found.contexts.slice(place, 1).to_pylist()[0]
        opening = None if found.openings is None else found.openings[place].as_py()
        return Known(found.histories[place].as_py(), context, opening)

    def some(self, count: int) -> list[int | str]:
        """Ids of so many users, or fewer if the first bucket has no more."""
        return list(self.bucket(min(self.files)).users.slice(0, count).to_pylist())

    def _read(self, number: int) -> _Bucket:
        table, asked = tasks.histories_of(self.files[number], self.job)
        users = table[USER].combine_chunks()
        told = None
        if number in self.attributes or number in self.interests:
            files = self.attributes.get(number, ""), self.interests.get(number, "")
            told = openings(users, files[0], self.job.prompt, files[1])
        return _Bucket(users, table[ITEMS], asked, told)
