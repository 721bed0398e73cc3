"""What recall has brought of each user, for requests that name no candidates."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute

from llmrec.engine.run import Job, candidates_table
from llmrec.errors import UserError
from llmrec.schema import USER
from llmrec.serving.request import InvalidError
from llmrec.tables import buckets, forgotten, requests


class Recalled:
    """Candidates by user, with what each source says of them. They are read bucket by bucket when a user of it is asked
    for; the last `kept` buckets stay in memory.

    Raises:
        UserError: there is no bucketed table.
    """

    def __init__(self, job: Job, kind: pa.DataType, kept: int) -> None:
        """kind: of user ids."""
        self.uri = candidates_table(job.score, job.layout)
        self.files = buckets.bucket_files(self.uri)
        self.count, self.kind = job.buckets, kind
        if extra := set(self.files) - set(range(self.count)):
            raise UserError(f"{self.uri}: bucket {min(extra)} is beyond data.buckets = {self.count}; recall again")
        self.forgotten = forgotten.read(job.layout)
        self._bucket = functools.lru_cache(kept)(self._read)

    def of(self, users: Sequence[int | str | None]) -> pa.Table:
        """Candidates as of `requests.candidates_in_list_form`, their user_id the place of a user in `users`.

        Raises:
            InvalidError: a user is None or has no candidates.
            UserError: a file cannot be read, or holds other ids.
        """
        found = []
        for place, user in enumerate(users):
            if user is None:
                raise InvalidError("candidates: missing; name some, or a user_id who has some in the candidates table")
            rows = self._rows(user)
            if not rows.num_rows:
                # Neither what tables call a user nor where they lie is for who asks.
                raise InvalidError("candidates: missing, and the candidates table has none of this user; name some")
            places = pa.array([place] * rows.num_rows, pa.int64())
            found.append(rows.set_column(rows.schema.get_field_index(USER), USER, places))
        return pa.concat_tables(found).combine_chunks()

    def _rows(self, user: int | str) -> pa.Table:
        key = pa.array([user], self.kind)
        number = int(buckets.bucket_of(key, self.count)[0])
        if number not in self.files:
            return pa.table({USER: key[:0]})
        rows = self._bucket(number)
        return rows.filter(pa.compute.equal(rows[USER], key[0]))

    def _read(self, number: int) -> pa.Table:
        uri = self.files[number]
        rows = requests.read_candidates(uri, parts=True)
        if (found := rows.schema.field(USER).type) != self.kind:
            raise UserError(f"{uri}: column '{USER}' holds {found} ids, the prepared tables hold {self.kind}")
        strays = buckets.bucket_of(rows[USER].combine_chunks(), self.count) != number
        if strays.any():
            raise UserError(f"{uri}: holds users of other buckets; recall again (data.buckets has changed)")
        for at, field in enumerate(rows.schema):  # a dictionary in one file and none in another do not go together
            if pa.types.is_large_list(field.type) and pa.types.is_dictionary(field.type.value_type):
                kind = pa.large_list(field.type.value_type.value_type)
                rows = rows.set_column(at, field.name, rows[field.name].cast(kind))
        return rows if self.forgotten is None else self.forgotten.without(rows, USER)
