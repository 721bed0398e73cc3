"""Whether values of columns that must never leave have got into what lies under the root, or into prompts.

Values are looked for where they stand by themselves in a text. What says nothing of where it comes from, because texts
hold such anyway, is not looked for: single words, dates, anything shorter than six characters, numbers of fewer than
seven digits. What is found is told by its place; the values are not.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from llmrec import config, storage
from llmrec.engine.prompts import item_texts
from llmrec.engine.units import each
from llmrec.errors import UserError
from llmrec.layout import Layout, reasons_table
from llmrec.ranker.templates import fill, placeholders
from llmrec.schema import ITEM, ITEMS, NOW, TEXT, TIMESTAMP, TIMESTAMPS, USER
from llmrec.tables import buckets, contents, contexts, inputs
from llmrec.tables.users import openings

MOST = 100_000  # values of a column that are looked for
LEAST, LEAST_DIGITS = 6, 7
SAMPLED = 200  # users whose prompts are made
PROMPTS = "prompts"
# Numbers there are ids, times and counts of our own, if not columns of the input.
OWN_NUMBERS = (ITEM, ITEMS, TIMESTAMP, TIMESTAMPS, USER)
WITH_COLUMNS_OF_INPUT = ("tables/items/", "tables/users/", "tables/candidates/")


@dataclass(frozen=True)
class Column:
    """A column that is kept out. values: different ones in the input, MOST at most; looked_for: those of them that can
    be told from other texts."""

    name: str
    values: int
    looked_for: int


@dataclass(frozen=True)
class Found:
    """Values of a column where none may be. place: a file and its column, or the prompts; values: how many."""

    column: str
    place: str
    values: int


@dataclass(frozen=True)
class Checked:
    """prompts, files, logs: how many were searched; logs: files of the directories that were named as such."""

    columns: list[Column]
    prompts: int
    files: int
    logs: int
    found: list[Found]


def after_prepare(settings: config.Config, layout: Layout, say: Callable[[str], None]) -> int:
    """Search what prepare has written, in tasks, and the prompts that follow; how many values were looked for.

    Raises:
        UserError: some were found. What prepare has written is deleted then.
    """
    wanted, columns = _wanted(settings)
    if not wanted:
        return 0
    tables = (layout.items, layout.users, layout.edges, layout.histories, layout.targets, layout.quarantine("prepare"))
    files = [uri for table in tables for uri, _ in storage.list_files(table)]
    say(f"looking for {len(wanted):,} values of {', '.join(c.name for c in columns)} in {len(files)} files")
    rows = each([{"uri": uri} for uri in files], _search_row, {"wanted": wanted, "root": layout.root})
    found = [Found(*(row[name] for name in ("column", "place", "values"))) for row in rows]
    found += _in_texts(PROMPTS, prompts(settings, layout), wanted)
    if found:
        for table in tables:
            storage.delete(table)
    refuse(found, "; the tables were deleted")
    return len(wanted)


def check(settings: config.Config, layout: Layout, say: Callable[[str], None], logs: Sequence[str] = ()) -> Checked:
    """Search all that lies under the root and in the tables of rankings and reasons, except the input, the prompts of
    some users, and the files of directories of logs.

    Raises:
        UserError: nothing is to be kept out, there are no tables yet, or a log is not there or cannot be read.
    """
    if not settings.privacy.never:
        raise UserError("privacy.never names no column; name those whose values must not leave")
    wanted, columns = _wanted(settings)
    tables = [layout.root, settings.score.output or layout.rankings, reasons_table(settings, layout)]
    files = list(dict.fromkeys(uri for table in tables for uri, _ in storage.list_files(storage.absolute(table))))
    inputs = inputs_of(settings)
    files = [uri for uri in files if not any(f"{uri}/".startswith(f"{given}/") for given in inputs)]
    told = _logs(logs)
    texts = prompts(settings, layout)
    say(f"looking for {len(wanted):,} values in {len(files) + len(told):,} files and {len(texts):,} prompts")
    hits = storage.each(lambda uri: _search(uri, wanted, layout.root), files)
    hits += storage.each(lambda uri: _search_log(uri, wanted), told)
    found = [f for of in hits for f in of] + _in_texts(PROMPTS, texts, wanted)
    return Checked(columns, len(texts), len(files), len(told), found)


def _logs(directories: Sequence[str]) -> list[str]:
    found: list[str] = []
    for directory in directories:
        there = [uri for uri, _ in storage.list_files(directory)]
        if not there:
            raise UserError(f"--logs {directory}: no files there")
        found += there
    return list(dict.fromkeys(found))


def _search_log(uri: str, wanted: Mapping[str, str]) -> list[Found]:
    try:
        return _search(uri, wanted, uri)
    except FileNotFoundError:  # it was rotated away meanwhile
        return []
    except OSError as error:
        raise UserError(f"{uri}: cannot be read ({error.strerror or str(error).splitlines()[0]})") from None


def refuse(found: Sequence[Found], done: str = "") -> None:
    """
    done: what has followed already.

    Raises:
        UserError: something was found.
    """
    if found:
        more = f", and {len(found) - 1} more places" if len(found) > 1 else ""
        raise UserError(
            f"privacy.never: {found[0].place} holds {found[0].values:,} values of '{found[0].column}'{more}; take them "
            f"out of the input, or name the column that brings them, too, and prepare again{done}"
        )


def inputs_of(settings: config.Config) -> list[str]:
    """What is read and belongs to the user, absolute."""
    data = settings.data
    given = (
        data.items, data.interactions, data.users, data.requests, data.edges, settings.bucket.input,
        settings.evaluate.labelled, settings.score.blocked_items, settings.items.image_root,
        settings.feedback.impressions,
    )  # fmt: skip
    return [storage.absolute(uri) for uri in given if uri]


def prompts(settings: config.Config, layout: Layout, users: int = SAMPLED) -> list[str]:
    """What the model reads of some users, as one text each, and of each item; texts that augment wrote are left out."""
    prompt, names = settings.prompt, placeholders(settings.prompt.context)
    items = item_texts(prompt, layout, [])
    said = dict(zip(items[ITEM].to_pylist(), items[TEXT].to_pylist(), strict=True))
    found = list(said.values())
    attributes = buckets.bucket_files(layout.users) if prompt.user and storage.exists(layout.users) else {}
    interests = {}
    if storage.exists(layout.user_augmentations):
        interests = buckets.bucket_files(layout.user_augmentations)
    files = buckets.bucket_files(layout.histories)
    contexts.check(buckets.schema_of(next(iter(files.values()))), names, layout.histories)
    for bucket, uri in sorted(files.items()):
        if users <= 0:
            break
        table = buckets.read_parquet(uri).slice(0, users)
        users -= table.num_rows
        opened = openings(table[USER].combine_chunks(), attributes.get(bucket, ""), prompt, interests.get(bucket, ""))
        opened = pa.nulls(table.num_rows, pa.string()) if opened is None else opened
        asked = pa.table({name: table[NOW + name] for name in names}) if names else pa.table({USER: table[USER]})
        ends = fill(prompt.context, asked, "context")
        for opening, history, end in zip(opened.to_pylist(), table[ITEMS].to_pylist(), ends, strict=True):
            events = (prompt.before_item + said.get(i, "") + prompt.after_item for i in history[-prompt.max_history :])
            found.append((opening or "") + prompt.before_history + "".join(events) + end)
    return found


def _wanted(settings: config.Config) -> tuple[dict[str, str], list[Column]]:
    """Value -> the column that it is looked for as, and what there is of each column."""
    data, values = settings.data, defaultdict[str, set[str]](set)
    for uri in filter(None, (data.items, data.users, data.interactions, data.requests)):
        for file in inputs.found(uri):
            there = [n for n in settings.privacy.never if n in buckets.schema_of(file).names]
            if there:
                _collect(file, there, values)
    columns, wanted = [], dict[str, str]()
    for name in settings.privacy.never:
        telling = sorted(filter(tells, values[name]))
        columns.append(Column(name, len(values[name]), len(telling)))
        wanted |= dict.fromkeys(telling, name)
    return wanted, columns


def _collect(file: str, names: Sequence[str], values: dict[str, set[str]]) -> None:
    fs, path = storage.filesystem(file)
    with pq.ParquetFile(path, filesystem=fs) as opened:
        for group in range(opened.num_row_groups):
            for texts in contents.of_table(opened.read_row_group(group, columns=list(names))):
                room = MOST - len(values[texts.where])
                values[texts.where].update(texts.values.drop_nulls().head(max(room, 0)).str.strip_chars().to_list())


def tells(value: str) -> bool:
    """Whether a value can be told from what other texts hold."""
    if re.fullmatch(r"[-+]?[0-9][0-9,]*(\.[0-9]*)?", value):
        return sum(c.isdigit() for c in value) >= LEAST_DIGITS
    date = re.match(r"\d{4}-\d{2}-\d{2}([T ][0-9:.Z+-]*)?$", value)
    return len(value) >= LEAST and not value.isalpha() and date is None


def _search_row(batch: pa.Table, wanted: Mapping[str, str], root: str) -> pa.Table:
    (unit,) = batch.to_pylist()
    rows = _search(unit["uri"], wanted, root)
    return pa.table({
        "column": pa.array([f.column for f in rows], pa.string()),
        "place": pa.array([f.place for f in rows], pa.string()),
        "values": pa.array([f.values for f in rows], pa.int64()),
    })  # fmt: skip


def _search(uri: str, wanted: Mapping[str, str], root: str) -> list[Found]:
    path = uri.removeprefix(root + "/")
    hits = defaultdict[str, set[str]](set)
    of_input = path.startswith(WITH_COLUMNS_OF_INPUT)
    for texts in contents.texts(uri, lambda column: of_input and column not in OWN_NUMBERS):
        hits[texts.where] |= contents.found(texts.values, list(wanted))
    found = []
    for where, values in hits.items():
        place = path if where == contents.INSIDE else f"{path}, column '{where}',"
        found += _by_column(place, values, wanted)
    return found


def _in_texts(place: str, texts: Sequence[str], wanted: Mapping[str, str]) -> list[Found]:
    return _by_column(place, contents.found(pl.Series(values=texts, dtype=pl.String).unique(), list(wanted)), wanted)


def _by_column(place: str, values: set[str], wanted: Mapping[str, str]) -> list[Found]:
    counts: dict[str, int] = defaultdict(int)
    for value in values:
        counts[wanted[value]] += 1
    return [Found(column, place, n) for column, n in sorted(counts.items())]
