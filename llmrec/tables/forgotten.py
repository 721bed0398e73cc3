"""The users who were forgotten, so that prepare keeps them out when it reads the log again: hashes, no ids.

Of ids as they are, who has the list can test every id that he can think of; of pseudonyms, only who has their key.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec import storage
from llmrec.layout import Layout

REASON = "forgotten_user"
BYTES = 16  # of a hash


@dataclass(frozen=True)
class Forgotten:
    """salt: hexadecimal, drawn at random for a root; hashes: of users as the tables call them."""

    salt: str
    hashes: frozenset[str]

    def among(self, users: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """bool[n]: which of these users were forgotten; a null was not."""
        array = users.combine_chunks() if isinstance(users, pa.ChunkedArray) else users
        different = array.cast(pa.string()).dictionary_encode()
        gone = [_hash(self.salt, text) in self.hashes for text in different.dictionary.to_pylist()]
        found: np.ndarray = pc.fill_null(pa.array(gone, pa.bool_()).take(different.indices), False).to_numpy(False)
        return found

    def without(self, rows: pa.Table, column: str) -> pa.Table:
        """The rows of all others."""
        return rows.filter(pa.array(~self.among(rows[column])))


def read(layout: Layout) -> Forgotten | None:
    """None if nobody was forgotten."""
    if not storage.exists(layout.forgotten):
        return None
    found = storage.read_json(layout.forgotten)
    return Forgotten(found["salt"], frozenset(found["users"]))


def add(layout: Layout, users: list[str]) -> None:
    """Put users, as the tables call them, on the list."""
    before = read(layout) or Forgotten(secrets.token_hex(32), frozenset())
    hashes = before.hashes | {_hash(before.salt, user) for user in users}
    storage.write_json(layout.forgotten, {"salt": before.salt, "users": sorted(hashes)})


def _hash(salt: str, text: str) -> str:
    return hmac.digest(bytes.fromhex(salt), text.encode(), "sha256")[:BYTES].hex()
