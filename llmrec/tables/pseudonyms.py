"""Users' ids as keyed pseudonyms: HMAC-SHA256 by a key that the environment alone holds.

A pseudonym is 64 hexadecimal digits, of the id's decimal or UTF-8 text, as `openssl dgst -sha256 -hmac KEY` gives them.
Beside the tables lies a check value, what the key makes of a constant, so that another key is told before it makes
other users.
"""

from __future__ import annotations

import hmac
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.compute

from llmrec import schema, storage
from llmrec.config import Privacy
from llmrec.errors import UserError
from llmrec.layout import Layout

LEAST = 32  # bytes of a key: as many as the digest has, which RFC 2104 asks for
CHECKED = "\0llmrec: the key of these pseudonyms"  # no user's id
HOW = "openssl rand -hex 32"


@dataclass(frozen=True)
class Pseudonyms:
    """How ids become pseudonyms. Holds no key, so that it may go to tasks: they take it from their own environment.

    variable: that the key is in; check: what the key makes of a constant; ids: 'int64' or 'string', what ids were.
    """

    variable: str
    check: str
    ids: str

    def ready(self) -> bytes:
        """The key.

        Raises:
            UserError: it is missing here, too short, or another.
        """
        found = _key(self.variable)
        if not hmac.compare_digest(_digest(found, CHECKED), self.check):
            raise UserError(
                f"environment variable {self.variable} holds another key here than the one that the tables were made "
                "with; give every process and every node of the cluster that one"
            )
        return found

    def of(self, ids: pa.Array | pa.ChunkedArray) -> pa.Array:
        """string[n]: the pseudonym of each id, null for a null. Every different id is hashed once.

        Raises:
            UserError: as `ready`.
        """
        key = self.ready()
        array = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
        different = array.cast(pa.string()).dictionary_encode()
        made = pa.array([_digest(key, text) for text in different.dictionary.to_pylist()], pa.string())
        return made.take(different.indices)


def begun(privacy: Privacy, layout: Layout, ids: pa.DataType) -> Pseudonyms | None:
    """How prepare is to make pseudonyms, None if ids stay what they are. Writes nothing.

    Raises:
        UserError: the key is missing, too short or another than before, or the tables there have ids of the other kind.
    """
    before = read(layout, privacy.key_variable)
    if not privacy.pseudonyms:
        if before is not None:
            raise UserError(
                f"{layout.pseudonyms}: users have pseudonyms there; set privacy.pseudonyms = true, or choose another "
                "root"
            )
        return None
    made = Pseudonyms(privacy.key_variable, check_of(privacy.key_variable), str(ids))
    if before is None and storage.list_files(layout.histories):
        raise UserError(
            f"{layout.root}: the tables there hold users' ids as they are, which privacy.pseudonyms = true is to keep "
            "out; choose another root, or delete this one"
        )
    if before is not None and not hmac.compare_digest(before.check, made.check):
        raise UserError(
            f"environment variable {privacy.key_variable} holds another key than the one of {layout.pseudonyms}, and "
            "would make other users; give that one, or choose another root"
        )
    return made


def write(made: Pseudonyms, layout: Layout) -> None:
    """Keep the check value beside the tables."""
    kept = {name: value for name, value in asdict(made).items() if name != "variable"}
    storage.write_json(layout.pseudonyms, {"method": "HMAC-SHA256", **kept})


def read(layout: Layout, variable: str) -> Pseudonyms | None:
    """What the tables were made with, None if users have their own ids there. variable: that the key is in."""
    if not storage.exists(layout.pseudonyms):
        return None
    found = storage.read_json(layout.pseudonyms)
    return Pseudonyms(variable, found["check"], found["ids"])


def brought(privacy: Privacy, layout: Layout) -> Pseudonyms | None:
    """How the ids in a table that is brought later become those of the tables; None if they are these already.

    Raises:
        UserError: the key is missing, too short or another.
    """
    found = None if privacy.brought == "pseudonyms" else read(layout, privacy.key_variable)
    if found is not None:
        found.ready()
    return found


def replaced(rows: pa.Table, column: str, names: Pseudonyms | None, source: str) -> pa.Table:
    """The rows with pseudonyms in a column of ids; as they are if names is None.

    Raises:
        UserError: the column is missing, its ids are of another type than the log's, or as `Pseudonyms.ready`.
    """
    if names is None:
        return rows
    kind = schema.id_type(rows.schema, column, source)
    if str(kind) != names.ids:
        raise UserError(f"{source}: column '{column}' holds {kind} ids, but the log holds {names.ids}")
    return rows.set_column(rows.column_names.index(column), column, names.of(schema.as_ids(rows, column, source)))


def is_one(text: str) -> bool:
    """Whether a text has the form of a pseudonym."""
    return re.fullmatch("[0-9a-f]{64}", text) is not None


def ids(texts: Sequence[str], kind: str) -> pa.Array:
    """Ids that a person wrote, as ones of a type, 'int64' or 'string'.

    Raises:
        UserError: one is none of that type.
    """
    if kind == "string":
        return pa.array(texts, pa.string())
    for text in texts:
        # No more than the 19 digits of the largest, so that nobody's long text is made a number first.
        if not re.fullmatch("-?[0-9]{1,19}", text.strip()) or not -(2**63) <= int(text) < 2**63:
            raise UserError(f"user '{text}': ids in the log are {kind}")
    return pa.array([int(text) for text in texts], pa.int64())


def check_of(variable: str) -> str:
    """What the key in an environment variable makes of a constant.

    Raises:
        UserError: it is missing or too short.
    """
    return _digest(_key(variable), CHECKED)


def _key(variable: str) -> bytes:
    storage.keep_secret(variable)  # in tasks, too, which get no configuration
    found = os.environ.get(variable, "").encode("utf-8", "surrogateescape")
    if not found:
        raise UserError(
            f"environment variable {variable} is not set; it holds the key of users' pseudonyms, {LEAST} bytes or "
            f"more, such as those of: {HOW}"
        )
    if len(found) < LEAST:
        raise UserError(
            f"environment variable {variable}: {len(found)} bytes are too short for a key of pseudonyms; give {LEAST} "
            f"or more, such as those of: {HOW}"
        )
    return found


def _digest(key: bytes, text: str) -> str:
    return hmac.digest(key, text.encode(), "sha256").hex()
