"""Users' histories and rankings, with titles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec import storage
from llmrec.config import Privacy
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.schema import ITEM, ITEMS, PROBABILITY, RANK, SCORE, SOURCE, TITLE, USER
from llmrec.tables import buckets, pseudonyms, rankings


def named(user: str, table: str, privacy: Privacy, layout: Layout) -> str:
    """A user as the tables call him, by what a person calls him: his id, or his pseudonym where users have such.

    Raises:
        UserError: users have pseudonyms whose key is missing or another, or the id is of another type than the log's.
    """
    names = pseudonyms.read(layout, privacy.key_variable)
    if names is None or (pseudonyms.is_one(user) and rankings.read(table, user).num_rows):
        return user
    return str(names.of(pseudonyms.ids([user], names.ids))[0])


def show_user(
    layout: Layout, table: str, user: Any, recent: int
) -> tuple[Any, list[str], list[tuple[int, str, float]]]:
    """(user, newest titles of his history, newest first; (rank, title, score) of his ranking).

    Raises:
        UserError: nothing is published, or the table does not rank this user.
    """
    ranked = rankings.read(table, user)
    if not ranked.num_rows:
        raise UserError(f"user '{user}' is not in {table}")
    items = buckets.read_parquet(layout.items, [ITEM, TITLE])
    titles = dict(zip(items[ITEM].to_pylist(), items[TITLE].to_pylist(), strict=True))
    key = ranked[USER][0]
    files = buckets.bucket_files(layout.histories)
    bucket = int(buckets.bucket_of(ranked[USER].slice(0, 1), len(files))[0])
    histories = buckets.read_parquet(files[bucket], [USER, ITEMS])
    history = histories.filter(pc.equal(histories[USER], key))[ITEMS].to_pylist()
    newest = list(reversed(history[0]))[:recent] if history else []
    rows = zip(ranked[RANK].to_pylist(), ranked[ITEM].to_pylist(), ranked[SCORE].to_pylist(), strict=True)
    return key.as_py(), [titles.get(i, str(i)) for i in newest], [(r, titles.get(i, str(i)), s) for r, i, s in rows]


PART = f"{SCORE}_"


def sample(layout: Layout, run: rankings.Snapshot, count: int, recent: int, places: int) -> list[dict[str, Any]]:
    """Some users with held-out events, the same for the same users: `user`, `events` (known ones), `history` (newest
    titles, newest first), `held_out` (title, and rank or None), `rows` (rank, title, score, probability, source, hit,
    and parts by name if the run kept them).
    """
    chosen = _chosen(layout, count)
    if not chosen:
        return []
    ids = pa.array([user for user, _ in chosen])
    histories = buckets.bucket_files(layout.histories)
    of_histories = buckets.bucket_of(ids, len(histories)).tolist()
    of_run = buckets.bucket_of(ids, run.buckets).tolist()
    shown = rankings.rows(run, sorted(set(of_run)))
    found = []
    for (user, held_out), bucket, run_bucket in zip(chosen, of_histories, of_run, strict=True):
        past = _only(buckets.read_parquet(histories[bucket], [USER, ITEMS]), user)[ITEMS].to_pylist()
        events = past[0] if past else []
        ranked = _only(shown, user).to_pylist()
        parts = _parts(layout, run.run_id, run_bucket, user)
        found.append({
            "user": user, "events": len(events), "history": list(reversed(events))[:recent],
            "held_out": [{"item": i, "rank": next((r[RANK] for r in ranked if r[ITEM] == i), None)} for i in held_out],
            "ranked": len(ranked),
            "rows": [
                {
                    "rank": r[RANK], "item": r[ITEM], "score": r[SCORE], "probability": r[PROBABILITY],
                    "source": r[SOURCE], "hit": r[ITEM] in held_out, "parts": parts.get(r[ITEM], {}),
                }
                for r in ranked[:places]
            ],
        })  # fmt: skip
    return _titled(found, layout)


def _chosen(layout: Layout, count: int) -> list[tuple[Any, list[Any]]]:
    """(user, held-out items) of those whose ids have the least hashes, bucket after bucket until there are enough."""
    found: list[tuple[Any, list[Any]]] = []
    for _, uri in sorted(buckets.bucket_files(layout.targets).items()):
        targets = buckets.read_parquet(uri, [USER, ITEMS])
        order = np.argsort(buckets.user_hash(targets[USER]))[: count - len(found)]
        found += [(row[USER], row[ITEMS]) for row in targets.take(pa.array(order)).to_pylist()]
        if len(found) == count:
            break
    return found


def _only(table: pa.Table, user: Any) -> pa.Table:
    return table.filter(pc.equal(table[USER], user))


def _parts(layout: Layout, run_id: str, bucket: int, user: Any) -> dict[Any, dict[str, float | None]]:
    """Item -> what each part says of it, if the run kept that."""
    uri = buckets.bucket_file(layout.score_parts(run_id), bucket)
    if not storage.exists(uri):
        return {}
    table = _only(buckets.read_parquet(uri), user)
    if not table.num_rows:
        return {}
    (row,) = table.to_pylist()
    names = [name for name in table.column_names if name.startswith(PART)]
    said = zip(*(row[name] for name in names), strict=True)
    of_part = [dict(zip((n.removeprefix(PART) for n in names), values, strict=True)) for values in said]
    return dict(zip(row[ITEMS], of_part, strict=True))


def _titled(users: list[dict[str, Any]], layout: Layout) -> list[dict[str, Any]]:
    """Items replaced by their titles."""
    table = buckets.read_parquet(layout.items, [ITEM, TITLE])
    shown = {i for u in users for i in (*u["history"], *(r["item"] for r in (*u["rows"], *u["held_out"])))}
    table = table.filter(pc.is_in(table[ITEM], pa.array(sorted(shown), table[ITEM].type)))
    titles = dict(zip(table[ITEM].to_pylist(), table[TITLE].to_pylist(), strict=True))

    def titled(row: dict[str, Any]) -> dict[str, Any]:
        return {"title": titles.get(row["item"], str(row["item"])), **row}

    return [
        {
            **u,
            "history": [titles.get(i, str(i)) for i in u["history"]],
            "held_out": [titled(r) for r in u["held_out"]],
            "rows": [titled(r) for r in u["rows"]],
        }
        for u in users
    ]
