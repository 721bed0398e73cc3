"""The table of embeddings: what is written is what is mapped, on local paths and S3, by many processes at once."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import xxhash

from llmrec import storage
from llmrec.errors import UserError
from llmrec.tables import embeddings
from llmrec.tables.embeddings import GRAPH, MARK, TEXT, Description, Shard, open_embeddings


def write(uri: str, ids: list[Any], seed: int = 0, size: int = 7, parts: tuple[str, ...] = (TEXT, GRAPH)) -> dict:
    """A table as embed leaves it; its rows as one dict of arrays, every third item without a part."""
    rng = np.random.default_rng(seed)
    dimensions = {part: d for part, d in ((TEXT, 6), (GRAPH, 3)) if part in parts}
    rows: dict[str, Any] = {"item_id": pa.array(ids), MARK: rng.integers(0, 2**64, len(ids), np.uint64)}
    for number, (part, d) in enumerate(dimensions.items()):
        rows[part] = rng.standard_normal((len(ids), d)).astype(np.float32)
        rows[part][number::3] = 0
    shards = []
    for number, start in enumerate(range(0, len(ids), size)):
        here = {name: values[start : start + size] for name, values in rows.items()}
        path = embeddings.shard_path(number, here["item_id"], here[MARK], "g")
        table = pa.table({name: embeddings.as_column(v) if name in parts else v for name, v in here.items()})
        embeddings.write_shard(table, storage.join(uri, path))
        present = {part: n for part, (_, n) in embeddings.facts(table).items()}
        shards.append(Shard(path, table.num_rows, here["item_id"][0].as_py(), here["item_id"][-1].as_py(), present))
    version = embeddings.version_of(shards, "r", 96, "g")
    embeddings.publish(uri, Description(version, "enc", "r", 96, "g", "of", dimensions, len(ids), shards))
    return rows | {"version": version}


def check(found: embeddings.Embeddings | None, rows: dict[str, Any]) -> None:
    assert found is not None and found.ids.equals(rows["item_id"])
    assert (found.version, found.encoder, found.revisions[TEXT]) == (rows["version"], "enc", "r")
    assert set(found.parts) == set(found.present) == {TEXT, GRAPH} & set(rows)
    for part, vectors in found.parts.items():
        assert isinstance(vectors, np.memmap) and vectors.dtype == np.float32 and not vectors.flags.writeable
        np.testing.assert_array_equal(vectors, rows[part])
        np.testing.assert_array_equal(found.present[part], rows[part].any(axis=1))


IDS: list[list[Any]] = [list(range(-5, 95, 5)), sorted(f"item {i}é" for i in range(20))]


@pytest.mark.parametrize("ids", IDS, ids=["int64", "string"])
@pytest.mark.parametrize("where", ["local", "s3"])
def test_what_is_written_is_what_is_mapped(
    where: str, ids: list[Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if where == "s3":
        request.getfixturevalue("store")
    uri = str(tmp_path / "table") if where == "local" else f"s3://llmrec-test/embeddings/{tmp_path.name}"
    rows = write(uri, ids)
    check(open_embeddings(uri, tmp_path / "cache"), rows)
    for file, _ in storage.list_files(uri, ".arrow"):  # from here on it lives by the cache alone
        storage.delete(file)
    check(open_embeddings(uri, tmp_path / "cache"), rows)


def test_other_readers_read_a_shard(tmp_path: Path) -> None:
    rows = write(str(tmp_path), IDS[0], size=100)
    (file,) = tmp_path.glob("shard-00000-*.arrow")
    frame = pl.read_ipc(file)
    assert frame.schema == {
        "item_id": pl.Int64, "mark": pl.UInt64, "text": pl.Array(pl.Float32, 6), "graph": pl.Array(pl.Float32, 3),
    }  # fmt: skip
    assert frame["text"].null_count() == 7 and frame["text"][0] is None
    np.testing.assert_array_equal(frame["text"][1].to_numpy(), rows[TEXT][1])
    batches = pa.ipc.open_file(pa.memory_map(str(file)))
    assert batches.num_record_batches == 1


def test_there_is_no_table(tmp_path: Path) -> None:
    assert open_embeddings(str(tmp_path / "none"), tmp_path) is None


def test_one_part_alone(tmp_path: Path) -> None:
    for parts in ((TEXT,), (GRAPH,)):
        rows = write(str(tmp_path / parts[0]), IDS[0], parts=parts)
        check(open_embeddings(str(tmp_path / parts[0]), tmp_path / "cache"), rows)


def test_a_new_version_takes_the_place_of_the_old_one_and_of_no_other_table(tmp_path: Path) -> None:
    cache, uri, other = tmp_path / "cache", str(tmp_path / "a"), str(tmp_path / "b")
    first, aside = write(uri, IDS[0], 1), write(other, IDS[1], 2)
    opened = open_embeddings(uri, cache)
    open_embeddings(other, cache)
    (cache / next(p.name for p in cache.iterdir()) / "left-by-a-killed-process").mkdir()
    second = write(uri, IDS[0], 3)
    assert second["version"] != first["version"]
    assert len(storage.list_files(uri, ".arrow")) == 3  # the first table's shards are gone
    check(open_embeddings(uri, cache), second)
    assert opened is not None
    np.testing.assert_array_equal(opened.parts[TEXT], first[TEXT])  # who has it open keeps it
    check(open_embeddings(other, cache), aside)
    assert sorted(p.name for p in cache.glob("*/*") if len(p.name) == 16) == sorted(
        [second["version"], aside["version"]]
    )


def opener(uri: str, cache: Path, start: Any, answers: Any) -> None:
    start.wait()
    found = open_embeddings(uri, cache)
    assert found is not None
    answers.put((float(found.parts[TEXT].sum()), len(found.ids)))


def test_many_processes_at_once_see_the_whole_table_and_fetch_it_once(tmp_path: Path) -> None:
    uri, cache = str(tmp_path / "table"), tmp_path / "cache"
    rows = write(uri, list(range(2000)), size=100)
    spawn = multiprocessing.get_context("fork")
    start, answers = spawn.Event(), spawn.Queue()
    workers = [spawn.Process(target=opener, args=(uri, cache, start, answers)) for _ in range(6)]
    for worker in workers:
        worker.start()
    start.set()
    found = {answers.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert found == {(float(rows[TEXT].sum()), 2000)}
    assert [p.name for p in cache.glob("*/*") if p.name != ".lock"] == [rows["version"]]


def test_a_shard_that_is_missing_or_another_is_named(tmp_path: Path) -> None:
    uri = str(tmp_path / "table")
    write(uri, IDS[0])
    first, second = (file for file, _ in storage.list_files(uri, ".arrow")[:2])
    whole = storage.read_bytes(first)
    for damage, words in ((None, "no such file"), (b"x" * 40, "not a readable Arrow file")):
        storage.delete(first) if damage is None else storage.write_bytes(first, damage)
        with pytest.raises(UserError, match=words) as caught:
            open_embeddings(uri, tmp_path / "cache")
        assert first in str(caught.value)
    storage.write_bytes(first, whole)
    last = storage.list_files(uri, ".arrow")[-1][0]
    storage.write_bytes(second, storage.read_bytes(last))
    with pytest.raises(UserError, match=r"not the shard that _embeddings.json names; run jobs/embed.py again"):
        open_embeddings(uri, tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    write(str(tmp_path / "table"), IDS[0])
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match="this cache cannot be written"):
        open_embeddings(str(tmp_path / "table"), tmp_path / "cache")


def test_marks_are_hashes_of_text_and_encoder() -> None:
    texts = ["a", "b", "", "a"]
    found = embeddings.marks(texts, "rev", 96)
    assert found.tolist() == [xxhash.xxh64(f"mean rev 96 {t}".encode()).intdigest() for t in texts]
    assert not set(found) & set(embeddings.marks(texts, "rev", 95)) | set(found) & set(
        embeddings.marks(texts, "other", 96)
    )


def test_names_of_shards_tell_ids_and_marks_apart() -> None:
    marks = np.arange(2, dtype=np.uint64)
    ids = [pa.array(["ab", "c"]), pa.array(["a", "bc"]), pa.array([1, 2]), pa.array(["1", "2"])]
    names = {embeddings.shard_path(0, i, m, g) for i in ids for m in (marks, marks + np.uint64(1)) for g in ("", "g")}
    assert len(names) == 16


def test_reading_needs_no_ray(tmp_path: Path) -> None:
    write(str(tmp_path / "table"), IDS[0])
    code = (
        "import sys; from pathlib import Path; from llmrec.tables.embeddings import open_embeddings; "
        f"assert open_embeddings({str(tmp_path / 'table')!r}, Path({str(tmp_path / 'cache')!r})); "
        "assert not {'ray', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
