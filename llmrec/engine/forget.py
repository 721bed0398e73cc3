"""forget: take users out of everything that was written, wherever that is. Needs no cluster; no job may run meanwhile.

Files that hold one of them are found by their column of users alone, and only those are read and written again, each
whole or not at all. Nothing is remembered of how far it got: what holds a user is to be done, what holds none is not,
so that the same command run again finishes what was cut off. At the end all files are searched once more.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from llmrec import config, storage
from llmrec.engine import kept_out, ledger, warm_start
from llmrec.errors import UserError
from llmrec.layout import Layout, reasons_table
from llmrec.schema import CONTENT_HASH, KEY, ORIGIN, RANK, REASON, USER
from llmrec.tables import (
    augmentations,
    buckets,
    contents,
    export,
    forgotten,
    pseudonyms,
    rankings,
    redis_lists,
    runs,
)
from llmrec.tables.rankings import STAGED, StagedFile

REWRITTEN, DELETED = "rows taken out", "deleted"
OF_ITEMS = ("prepare/items.parquet", "prepare/edges.parquet", "augment/items/")  # quarantine whose keys are items
USER_KEYS = (USER, "user")  # in JSON, of what tells of one user
LOG = "/_delta_log/"
JSON_LINES = ".jsonl"


@dataclass(frozen=True)
class Users:
    """texts: as the tables call them, ids as decimal or UTF-8 text; said: as a person called them."""

    texts: tuple[str, ...]
    said: tuple[str, ...]

    @property
    def telling(self) -> list[str]:
        """Those that can be looked for in any text."""
        return sorted({text for text in (*self.texts, *self.said) if kept_out.tells(text)})


@dataclass(frozen=True)
class Removed:
    """place: a table or folder; what: REWRITTEN or DELETED; rows: of these users, of the files deleted all that were of
    them; 0 where files have no rows."""

    place: str
    what: str
    files: int
    rows: int


@dataclass(frozen=True)
class Done:
    """What forget did. runs_deleted: earlier published runs that can no longer be read, and unfinished ones;
    ranker_knows: the trained ranker may tell of them, so that the next training does not go on from it; searched:
    files, afterwards; left: places where a user still is."""

    users: int
    removed: list[Removed]
    runs_deleted: list[str]
    ranker_knows: bool
    searched: int
    left: list[str]


@dataclass
class _Tally:
    counts: dict[tuple[str, str], list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    runs: list[str] = field(default_factory=list)

    def add(self, place: str, what: str, rows: int = 0, files: int = 1) -> None:
        count = self.counts[place, what]
        count[0] += files
        count[1] += rows

    def removed(self) -> list[Removed]:
        return [Removed(place, what, *count) for (place, what), count in sorted(self.counts.items())]


def named(settings: config.Config, layout: Layout, asked: Sequence[str], file: str = "") -> Users:
    """The users that a person names, by ids, or by pseudonyms where users have such, and those of a file: Parquet with
    a column of users, or text, one a line.

    Raises:
        UserError: nobody is named, the file is not there, an id is of another type than those of the tables, or the key
            of pseudonyms is missing or another.
    """
    said = [*asked, *(_listed(file, settings.data.columns.user) if file else ())]
    if not said:
        raise UserError("nobody is named; give users' ids, or a file of them with --users")
    names = pseudonyms.read(layout, settings.privacy.key_variable)
    if names is None:
        kind = _id_type(layout)
        return Users(tuple(pseudonyms.ids(said, kind).cast(pa.string()).to_pylist()), tuple(said))
    own = [text for text in said if not pseudonyms.is_one(text) or names.ids == "string"]
    made = names.of(pseudonyms.ids(own, names.ids)).to_pylist() if own else []
    return Users(tuple(dict.fromkeys([*made, *filter(pseudonyms.is_one, said)])), tuple(said))


def _listed(file: str, column: str) -> list[str]:
    if not file.endswith(".parquet"):
        lines = storage.read_bytes(file).decode(errors="replace").splitlines()
        return [line.strip() for line in lines if line.strip()]
    rows = buckets.read_parquet(file)
    name = column if column in rows.column_names else USER
    if name not in rows.column_names:
        raise UserError(f"{file}: column '{column}' is missing (it has: {', '.join(rows.column_names)})")
    return list(rows[name].cast(pa.string()).drop_null().unique().to_pylist())


def _id_type(layout: Layout) -> str:
    for uri, _ in storage.list_files(layout.histories, ".parquet"):
        return str(buckets.schema_of(uri).field(USER).type)
    return "string"


def forget(
    settings: config.Config, layout: Layout, users: Users, exports: Sequence[str], say: Callable[[str], None]
) -> Done:
    """Take users out of all tables under the root, of rankings and reasons, and out of exports, and keep them out.

    exports: targets beside that of the settings. The Redis server of the settings is looked into, too.

    Raises:
        UserError: a table was changed by another job meanwhile, an export is none, or the Redis server does not answer;
            the same command goes on from there.
    """
    targets = _exports(settings, exports)
    known, asked = forgotten.read(layout), pa.array(users.texts, pa.string())
    if known is None or not known.among(asked).all():
        warm_start.to_begin_anew(layout)  # before the list, by which it would seem to be done
    forgotten.add(layout, list(users.texts))  # first: prepare, run before this ends, must not bring them back
    tally = _Tally()
    if files := storage.list_files(layout.scratch()):
        storage.delete(layout.scratch())
        tally.add("scratch", DELETED, 0, len(files))
    for uri in filter(storage.is_leftover, files_of(settings, layout, targets)):
        storage.delete(uri)
        tally.add(_path(uri, layout).rsplit("/", 1)[0], DELETED)
    tables = tables_of(settings, layout)
    for table in tables:
        say(f"looking through {table}")
        _of_table(layout, table, users, tally)
    mine = files_of(settings, layout)
    say(f"looking through {len(mine):,} other files")
    of_tables = tuple(f"{table}/" for table in tables)
    for uri in _with_users((uri for uri in mine if not uri.startswith(of_tables)), users, layout):
        path = _path(uri, layout)
        tally.add(path.rsplit("/", 1)[0], REWRITTEN, _rewritten(uri, users, path))
    for uri in mine:
        if uri.endswith(".json") and LOG not in uri:
            _of_json(uri, users, layout, tally)
    _of_generated(layout, tally)
    pages = [layout.report] * storage.exists(layout.report)
    for page in (*pages, *(uri for uri, _ in storage.list_files(layout.runs, "/report.html"))):
        if _in_text(page, users.texts):
            storage.delete(page)
            tally.add(_path(page, layout), DELETED)
    for target in targets:
        _of_export(target, users, layout, tally)
    if settings.export.redis.url:
        with redis_lists.connected(settings.export.redis) as client:
            if lists := redis_lists.delete_users(client, settings.export.redis, users.texts):
                tally.add(_of_redis(settings.export.redis), DELETED, lists, files=0)
    say("searching all files again")
    searched, left = search(settings, layout, users, exports)
    return Done(
        len(users.texts), tally.removed(), sorted(tally.runs), warm_start.knows_forgotten(layout), searched, left
    )


def search(settings: config.Config, layout: Layout, users: Users, exports: Sequence[str] = ()) -> tuple[int, list[str]]:
    """How many files there are, and the places in them where a user is: by columns of users and keys in JSON, and if an
    id can be told from other texts, anywhere."""
    files = files_of(settings, layout, _exports(settings, exports))

    def places(uri: str) -> list[str]:
        path = _path(uri, layout)
        found = [path] if _holds(uri, users, path) else []
        if uri.endswith(".json") and not found and LOG not in uri:
            found = [path] if _pruned(_json(uri), users.texts)[1] else []
        return found or ([path] if users.telling and _in_text(uri, users.telling) else [])

    left = [place for of in storage.each(places, files) for place in of]
    if settings.export.redis.url:
        with redis_lists.connected(settings.export.redis) as client:
            if redis_lists.held(client, settings.export.redis, users.texts):
                left.append(_of_redis(settings.export.redis))
    return len(files), left


def _exports(settings: config.Config, asked: Sequence[str]) -> list[str]:
    """Targets of exports, absolute: those that a person names, and that of the settings if anything was exported there.

    Raises:
        UserError: one is none.
    """
    for target in asked:
        export.manifest(target)
    own = settings.export.target
    found = [*asked, own] if own and export.files(own) else asked
    return list(dict.fromkeys(map(storage.absolute, found)))


def _of_redis(server: config.Redis) -> str:
    return f"{redis_lists.address(server)}, {server.prefix}:*"


def tables_of(settings: config.Config, layout: Layout) -> list[str]:
    """Tables of rankings and of reasons: those that the settings name, and those that a run under the root was for."""
    found = [storage.absolute(settings.score.output) if settings.score.output else layout.rankings]
    found.append(reasons_table(settings, layout))
    for uri, _ in storage.list_files(layout.runs, ".json"):
        if uri.endswith(("/plan.json", "/run.json")):
            found.append(storage.absolute(_json(uri).get("output") or found[0]))
    return list(dict.fromkeys(found))


def files_of(settings: config.Config, layout: Layout, exports: Sequence[str] = ()) -> list[str]:
    """All that was written: under the root, in tables elsewhere and in exports; the inputs are left out."""
    places = [layout.root, *tables_of(settings, layout)]
    files = dict.fromkeys(uri for place in places for uri, _ in storage.list_files(place))
    files |= dict.fromkeys(uri for target in exports for uri in export.files(target))
    inputs = kept_out.inputs_of(settings)
    return [uri for uri in files if not any(f"{uri}/".startswith(f"{given}/") for given in inputs)]


def _of_table(layout: Layout, table: str, users: Users, tally: _Tally) -> None:
    """The run that is shown is shown without them; what is staged is staged without them; earlier published runs that
    hold them go, as a part of them could not be read."""
    handle = rankings.opened(table)
    now, published = None, set[str]()
    if handle is not None:
        now, published = rankings.shown(handle)["run_id"], set(rankings.latest(rankings.log(table)))
        _shown_without(table, users, layout, tally)
        _settle(layout, now, table, rankings.shown_files(rankings.published(table)))
    kept = set() if now is None else _shown_paths(table)
    for run_id, run in runs.of_table(layout, table).items():
        staged = [f.uri for f in run.staged if f.uri not in kept]
        held = _with_users(staged, users, layout)
        folder = [f.uri for f in run.folder]
        if run_id == now:
            for uri in held:
                tally.add(_path(table, layout), DELETED, _holds(uri, users, _path(uri, layout)))
                storage.delete(uri)
        elif storage.exists(layout.run_summary(run_id)) and run_id not in published:
            for uri in held:
                place = _path(storage.join(table, STAGED, run_id), layout)
                tally.add(place, REWRITTEN, _rewritten(uri, users, _path(uri, layout)))
            _settle(layout, run_id, table, [_staged_file(uri, table) for uri in staged if uri.endswith(".parquet")])
        elif held or _with_users(folder, users, layout):
            rows = sum(_holds(uri, users, _path(uri, layout)) for uri in held)
            storage.delete(layout.run(run_id))  # first, so that no ledger speaks of files that are gone
            storage.delete(storage.join(table, STAGED, run_id))
            tally.add(_path(storage.join(table, STAGED, run_id), layout), DELETED, rows, len(staged) + len(folder))
            tally.runs.append(run_id)
    # What another tool has written into the table, and shows no more.
    others = [uri for uri, _ in storage.list_files(table, ".parquet") if uri not in kept and LOG not in uri]
    for uri in _with_users([u for u in others if not u.startswith(f"{table}/{STAGED}/")], users, layout):
        tally.add(_path(table, layout), DELETED, _holds(uri, users, _path(uri, layout)))
        storage.delete(uri)


def _shown_paths(table: str) -> set[str]:
    return {storage.join(table, f.path) for f in rankings.shown_files(rankings.published(table))}


def _shown_without(table: str, users: Users, layout: Layout, tally: _Tally) -> None:
    files = rankings.shown_files(rankings.published(table))
    held = _with_users([storage.join(table, f.path) for f in files], users, layout)
    which = sorted({f.bucket for f in files if storage.join(table, f.path) in held})
    made = []
    for bucket in which:
        rows = pa.concat_tables(
            [buckets.read_parquet(storage.join(table, f.path)) for f in files if f.bucket == bucket]
        )
        kept = rows.filter(pc.invert(_is_of(rows[USER], users))).combine_chunks()
        kept = kept.sort_by([(USER, "ascending"), (RANK, "ascending")])
        tally.add(_path(table, layout), REWRITTEN, rows.num_rows - kept.num_rows)
        if kept.num_rows:
            data = buckets.parquet_bytes(kept)
            # Beside the one that it replaces: polars refuses a table of which some folders alone say the bucket.
            folder = next(f.path for f in files if f.bucket == bucket).rsplit("/", 1)[0]
            path = f"{folder}/bucket-{bucket:05d}-{hashlib.sha256(data).hexdigest()[:8]}.parquet"
            storage.write_bytes(storage.join(table, path), data)
            made.append(StagedFile(bucket, path, len(data), kept.num_rows))
    if which:
        rankings.rewrite(table, which, made)


def _staged_file(uri: str, table: str) -> StagedFile:
    fs, path = storage.filesystem(uri)
    bucket = int(uri.rsplit("/bucket-", 1)[1][:5])
    return StagedFile(bucket, uri.removeprefix(table + "/"), fs.get_file_info(path).size, buckets.rows_in(uri))


def _settle(layout: Layout, run_id: str, table: str, files: Sequence[StagedFile]) -> None:
    """Let the ledger of a run say what its files are now. Its counts lose the rows that are gone, as if they had never
    been candidates."""
    there, changed = {f.bucket: f for f in files}, False
    for uri, _ in storage.list_files(layout.ledger(run_id), ".json"):
        entry = _json(uri)
        now = there.get(entry["bucket"], StagedFile(entry["bucket"], entry["path"], 0, 0))
        if entry["rows"] == 0 or (now.path, now.size, now.rows) == (entry["path"], entry["size"], entry["rows"]):
            continue
        gone, changed = entry["rows"] - now.rows, True
        entry |= {"path": now.path, "size": now.size, "rows": now.rows}
        entry["users"] = 0 if not now.rows else _count_users(storage.join(table, now.path))
        if "pairs_in" in entry["counts"]:
            entry["counts"] |= {name: entry["counts"][name] - gone for name in ("pairs_in", "ranked")}
        storage.write_json(uri, entry)
    if storage.exists(storage.join(layout.run(run_id), ledger.TABLE)) and changed:
        ledger.write_table(layout, run_id, ledger.read(layout, run_id))


def _count_users(uri: str) -> int:
    return len(buckets.read_parquet(uri, [USER])[USER].unique())


def _of_json(uri: str, users: Users, layout: Layout, tally: _Tally) -> None:
    """What is told of a user in a list, such as the examples of a summary, is left out of it."""
    kept, gone = _pruned(_json(uri), users.texts)
    if gone:
        storage.write_json(uri, kept)
        tally.add(_path(uri, layout), REWRITTEN, gone)


def _json(uri: str) -> Any:
    try:
        return storage.read_json(uri)
    except ValueError:
        return {}


def _pruned(value: Any, texts: Collection[str]) -> tuple[Any, int]:
    """JSON without the mappings in lists that tell of these users, and how many they were."""
    if isinstance(value, Mapping):
        parts = {name: _pruned(part, texts) for name, part in value.items()}
        return {name: part for name, (part, _) in parts.items()}, sum(n for _, n in parts.values())
    if not isinstance(value, list):
        return value, 0
    kept = [part for part in value if not _tells_of(part, texts)]
    inner = [_pruned(part, texts) for part in kept]
    return [part for part, _ in inner], len(value) - len(kept) + sum(n for _, n in inner)


def _tells_of(part: Any, texts: Collection[str]) -> bool:
    return isinstance(part, Mapping) and any(name in part and str(part[name]) in texts for name in USER_KEYS)


def _of_generated(layout: Layout, tally: _Tally) -> None:
    """Texts on users are kept by content, not by user: only those in use stay."""
    folder = layout.generated("users")
    files = [uri for uri, _ in storage.list_files(folder, ".parquet")]
    if not files:
        return
    used = pa.array([], pa.string())
    for uri, _ in storage.list_files(layout.user_augmentations, ".parquet"):
        used = pa.concat_arrays([used, buckets.read_parquet(uri, [CONTENT_HASH])[CONTENT_HASH].combine_chunks()])
    for uri in files:
        rows = buckets.read_parquet(uri)
        kept = rows.filter(pc.is_in(rows[CONTENT_HASH], used))
        if kept.num_rows == rows.num_rows:
            continue
        if kept.num_rows:
            augmentations.add(folder, kept)
        storage.delete(uri)
        tally.add("generated/users", REWRITTEN, rows.num_rows - kept.num_rows)


def _of_export(target: str, users: Users, layout: Layout, tally: _Tally) -> None:
    for uri in _with_users(export.files(target), users, layout):
        tally.add(target, REWRITTEN, _rewritten(uri, users, uri))
    if not storage.exists(storage.join(target, export.MANIFEST)):  # the first export there was cut off
        return
    made = export.manifest(target)
    sizes = dict(storage.list_files(target))
    for file in made["files"]:
        uri = storage.join(target, file["path"])
        if sizes.get(uri) != file["bytes"] or export.rows_in(uri) != file["rows"]:
            data = storage.read_bytes(uri)
            file |= {"bytes": len(data), "rows": export.rows_in(uri), "sha256": hashlib.sha256(data).hexdigest()}
    if made != export.manifest(target) or made["rows"] != sum(f["rows"] for f in made["files"]):
        storage.write_json(
            storage.join(target, export.MANIFEST), made | {"rows": sum(f["rows"] for f in made["files"])}
        )


def _with_users(uris: Iterable[str], users: Users, layout: Layout) -> list[str]:
    """Those of the files that hold one of the users."""
    files = list(uris)
    held = storage.each(lambda uri: _holds(uri, users, _path(uri, layout)), files)
    return [uri for uri, rows in zip(files, held, strict=True) if rows]


def _holds(uri: str, users: Users, path: str) -> int:
    """Rows of a Parquet file that are of the users; reads their column alone, by its statistics where they tell. Of
    JSON lines, lines."""
    if uri.endswith(JSON_LINES):
        return _lines_without(uri, users)[1]
    if not uri.endswith(".parquet"):
        return 0
    fs, inner = storage.filesystem(uri)
    kinds = pq.read_schema(inner, filesystem=fs)
    column = _column(path, kinds.names)
    if column is None:
        return 0
    ids = _as(kinds.field(column).type, users)
    found: int = ds.dataset(inner, filesystem=fs, format="parquet").count_rows(filter=ds.field(column).isin(ids))
    return found


def _column(path: str, names: Sequence[str]) -> str | None:
    """The column of a table that holds users: `user_id`, and in quarantine the key, unless that is an item's."""
    if USER in names:
        return USER
    aside = {KEY, REASON, ORIGIN} <= set(names)
    return KEY if aside and not any(of in path for of in OF_ITEMS) else None


def _rewritten(uri: str, users: Users, path: str) -> int:
    """Write a file again without the users; how many rows were theirs."""
    if uri.endswith(JSON_LINES):
        data, gone = _lines_without(uri, users)
        storage.write_bytes(uri, data)
        return gone
    rows = buckets.read_parquet(uri)
    column = _column(path, rows.column_names)
    assert column is not None
    kept = rows.filter(pc.invert(_is_of(rows[column], users)))
    buckets.write_parquet(kept, uri)
    return rows.num_rows - kept.num_rows


def _lines_without(uri: str, users: Users) -> tuple[bytes, int]:
    """JSON lines without those of the users, and how many these are."""
    lines = storage.read_bytes(uri).splitlines(keepends=True)
    kept = [line for line in lines if not _tells_of(_parsed(line), users.texts)]
    return b"".join(kept), len(lines) - len(kept)


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _is_of(column: pa.ChunkedArray, users: Users) -> pa.ChunkedArray:
    return pc.is_in(column, _as(column.type, users))


def _as(kind: pa.DataType, users: Users) -> pa.Array:
    """The users as values of a column's type."""
    if pa.types.is_dictionary(kind):
        return _as(kind.value_type, users)
    if not pa.types.is_integer(kind):
        return pa.array(users.texts, kind)
    return pa.array([int(text) for text in users.texts if text.removeprefix("-").isdigit()], kind)


def _in_text(uri: str, wanted: Sequence[str]) -> bool:
    return any(contents.found(texts.values, wanted) for texts in contents.texts(uri, lambda column: False))


def _path(uri: str, layout: Layout) -> str:
    return uri.removeprefix(layout.root + "/")
