"""The benchmark of the data plane: its tables are what they say, and all engines come to the same rankings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from benchmarks.scale import duckdb_peer, figures, formula, polars_peer, tables
from benchmarks.scale.agreement import COLUMNS, equal
from benchmarks.scale.engines import JOB, PEERS, Engine
from benchmarks.scale.free_scorer import FreeScorer
from llmrec import config
from llmrec.engine import publish, score
from llmrec.layout import Layout
from llmrec.tables import buckets

SHAPE = tables.Shape(pairs=60_000, per_user=60, items=100_000, events=5, users_per_bucket=300, full=True)
TOP_K = 10
HERE = Path(__file__).parents[2]
LIBRARIES = {"polars": polars_peer, "duckdb": duckdb_peer}


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return tables.write(tmp_path_factory.mktemp("scale") / "root", SHAPE)


def read(table: str) -> pl.DataFrame:
    return pl.read_parquet(f"{table}/*.parquet")


def by_numpy(layout: Layout) -> pl.DataFrame:
    """Each user's best, sorted one user at a time."""
    rows = []
    for user, items in read(layout.candidates()).select("user_id", "item_ids").iter_rows():
        ids = np.asarray(items)
        scores = formula.score(np.full(len(ids), user), ids)
        best = np.lexsort((ids, -scores))[:TOP_K]
        rows += [(user, place + 1, int(ids[i]), float(scores[i])) for place, i in enumerate(best)]
    return pl.DataFrame(rows, schema=COLUMNS, orient="row").sort(COLUMNS[:2])


def test_tables_hold_what_was_asked_for(layout: Layout) -> None:
    candidates, histories = read(layout.candidates()), read(layout.histories)
    assert len(candidates) == len(histories) == SHAPE.users == 1000
    assert set(candidates["user_id"]) == set(histories["user_id"]) == set(range(1000))
    both = candidates.join(histories, on="user_id").select(pl.concat_list("item_ids", "item_ids_right"))["item_ids"]
    assert set(both.list.len()) == set(both.list.n_unique()) == {65}
    items = pl.read_parquet(layout.items)["item_id"]
    assert len(items) == 100_000 and both.explode().is_in(items.implode()).all()
    for bucket, uri in buckets.bucket_files(layout.candidates()).items():
        users = buckets.read_parquet(uri, ["user_id"])["user_id"]
        assert set(buckets.bucket_of(users, SHAPE.buckets).tolist()) == {bucket}


def test_tables_are_made_once(layout: Layout) -> None:
    file = Path(buckets.bucket_file(layout.candidates(), 0))
    before = file.stat().st_mtime_ns
    tables.write(Path(layout.root), SHAPE)
    assert file.stat().st_mtime_ns == before


@pytest.mark.parametrize("engine", PEERS, ids=lambda engine: engine.name)
def test_every_formulation_ranks_as_numpy_does(
    engine: Engine, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THREADS", "2")
    out = f"{tmp_path}/out.parquet"
    LIBRARIES[engine.library].FORMULATIONS[engine.formulation](layout.candidates(), out, TOP_K)
    found, wanted = pl.read_parquet(out).sort(COLUMNS[:2]), by_numpy(layout)
    assert wanted.group_by("user_id").agg(pl.col("score").is_duplicated().any())["score"].any(), "nothing ties"
    assert found.cast(wanted.schema).equals(wanted)


def test_all_formulations_are_engines() -> None:
    assert {(e.library, e.formulation) for e in PEERS} == {
        (library, name) for library, module in LIBRARIES.items() for name in module.FORMULATIONS
    }


def test_the_job_publishes_what_the_peers_rank(cluster: Any, layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "none").touch()
    wanted = {"model": str(tmp_path / "model"), "top_k": TOP_K, "max_tied": 1, "max_constant_users": 1}
    settings = config.build({"root": layout.root, "score": wanted})
    done = score.score(settings, layout, lambda line: None, scorer=FreeScorer)
    publish.publish(layout, done.run_id)
    assert done.pairs["in"] == SHAPE.pairs
    polars_peer.lists(layout.candidates(), f"{tmp_path}/out.parquet", TOP_K)
    assert equal(layout.rankings, f"{tmp_path}/out.parquet")
    rows = pl.read_parquet(f"{tmp_path}/out.parquet")
    for wrong in (
        rows.head(-1),
        rows.with_columns(pl.col("item_id") + ((pl.col("rank") == 3) & (pl.col("user_id") == 7))),
    ):
        wrong.write_parquet(f"{tmp_path}/wrong.parquet")
        assert not equal(layout.rankings, f"{tmp_path}/wrong.parquet")


MEASURED = """
import json, time
import numpy as np
from benchmarks.scale.usage import Usage

with Usage() as before:
    time.sleep(0.5)
with Usage() as usage:
    held = np.ones(25_000_000)
    end = time.process_time() + 0.5
    while time.process_time() < end:
        held.sum()
print(json.dumps([before.figures(), usage.figures()]))
"""


def test_usage_sees_time_and_memory() -> None:
    # In a process of its own, since the cluster of other tests lives below this one.
    ran = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True, cwd=HERE)
    before, usage = json.loads(ran.stdout)
    assert usage["peak_mb"] - before["peak_mb"] > 150
    assert usage["seconds"] >= 0.4 and usage["cpu_seconds"] >= 0.4
    assert before["cpu_seconds"] < usage["cpu_seconds"]
    assert 0 <= usage["cpus_of_others"] <= (os.cpu_count() or 1) + 0.5


def test_rates_and_growth_by_hand() -> None:
    rows = [
        {"engine": e, "library": e.split()[0], "pairs": n, "seconds": s, "cpu_seconds": 2 * s, "peak_mb": m}
        for e, n, s, m in [
            (JOB.name, 100, 10.0, 50), ("polars a", 100, 5.0, 10), ("duckdb b", 100, 8.0, 10),
            ("polars c", 100, 9.0, 9), (JOB.name, 300, 20.0, 55), ("polars a", 300, 15.0, 30),
        ]
    ]  # fmt: skip
    peers = [Engine("duckdb", "b"), Engine("polars", "c"), Engine("polars", "a"), Engine("polars", "failed")]
    assert {e.name for e in figures.fastest_of_each_library(peers, rows[:4])} == {"polars a", "duckdb b"}
    rated = figures.with_rates(rows, threads=2)
    assert [r["over_best_peer"] for r in rated] == [0.5, 1.0, 5 / 8, 5 / 9, 0.75, 1.0]
    assert [rated[0][k] for k in ("pairs_per_second", "pairs_per_second_and_core", "pairs_per_cpu_second")] == [
        10,
        5,
        5,
    ]
    growth = figures.growth(rows)
    assert set(growth) == {JOB.name, "polars a"} and growth[JOB.name]["memory"] == 1.1
    assert growth[JOB.name]["seconds"] == pytest.approx({"slope": 0.05, "intercept": 5.0, "r_squared": 1.0})
