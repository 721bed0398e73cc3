"""Each fault for real; each job ends with the files of an undisturbed run, byte for byte."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
from conftest import BUCKETS, CANDIDATES, USERS, Job, actors, make_job, wait_for

from llmrec import storage
from llmrec.engine import ledger
from llmrec.tables import buckets, rankings

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


def check(job: Job) -> None:
    """The files are those of an undisturbed run, the table shows them, and every candidate is accounted for."""
    assert job.files() == job.wanted
    shown = rankings.read(job.layout.rankings)
    assert shown.num_rows == USERS * 5
    assert shown.select(["user_id", "rank"]).to_pylist() == [
        {"user_id": u, "rank": r} for u in range(USERS) for r in range(1, 6)
    ]
    entries = ledger.read(job.layout, job.run_id)
    assert ledger.total(entries)["pairs_in"] == USERS * CANDIDATES
    # The same sums by SQL over the ledger's table.
    table = pl.from_arrow(buckets.read_parquet(storage.join(job.layout.run(job.run_id), ledger.TABLE)))
    sums = pl.SQLContext(ledger=table).execute(
        "SELECT SUM(pairs_in), SUM(ranked + below_top_k + over_limit + seen + blocked + locked + quarantined) AS ends, "
        "COUNT(*) AS buckets FROM ledger", eager=True,
    )  # fmt: skip
    assert sums.row(0) == (USERS * CANDIDATES, USERS * CANDIDATES, BUCKETS)


def killed_while_scoring(job: Job, how: int) -> subprocess.Popen[str]:
    driver = job.start()
    wait_for(lambda: job.staged() >= 2, driver)
    driver.send_signal(how)
    driver.wait(60)
    return driver


def test_an_actor_is_killed(job: Job, own_cluster: Any) -> None:
    driver = job.start()
    wait_for(lambda: job.staged() >= 1 and len(actors(own_cluster)) == 2, driver)
    actors(own_cluster)[0].kill()
    assert job.finish(driver)["retried"] >= 1
    check(job)


def test_a_node_is_killed(job: Job, own_cluster: Any) -> None:
    driver = job.start()
    wait_for(lambda: job.staged() >= 1, driver)
    node = sorted(own_cluster.worker_nodes, key=lambda n: n.node_id)[0]
    own_cluster.remove_node(node, allow_graceful=False)
    try:
        job.finish(driver)
    finally:
        own_cluster.add_node(num_cpus=2, object_store_memory=256 << 20)
    check(job)


def test_the_driver_is_killed_and_the_same_command_run_again(job: Job) -> None:
    assert killed_while_scoring(job, signal.SIGKILL).returncode == -signal.SIGKILL
    assert rankings.opened(job.layout.rankings) is None
    assert 2 <= job.finish(job.start())["resumed"] < BUCKETS
    check(job)


def test_the_driver_is_told_to_stop_and_the_same_command_run_again(job: Job) -> None:
    driver = killed_while_scoring(job, signal.SIGTERM)
    assert driver.returncode == 130
    assert "nothing half-done was published" in driver.stderr.read()
    assert rankings.opened(job.layout.rankings) is None
    assert job.finish(job.start())["resumed"] >= 2
    check(job)


def test_a_job_is_started_twice_at_once(job: Job) -> None:
    drivers = [job.start(), job.start()]
    done = [job.finish(driver) for driver in drivers]
    assert done[0]["run_id"] == done[1]["run_id"]
    assert sorted(d["new"] for d in done) == [False, True]
    assert rankings.opened(job.layout.rankings).version() == 0
    check(job)


def test_a_node_is_slow(job: Job, own_cluster: Any) -> None:
    driver = job.start()
    wait_for(lambda: job.staged() >= 1 and len(actors(own_cluster)) == 2, driver)
    slow = actors(own_cluster)[0]
    slow.suspend()
    time.sleep(15)
    slow.resume()
    job.finish(driver)
    check(job)


def test_a_user_who_kills_the_process_is_found_and_set_aside(job: Job) -> None:
    killer = 17
    assert job.finish(job.start(0.0, str(killer)))["retried"] >= 1
    shown = rankings.read(job.layout.rankings)
    assert sorted(set(shown["user_id"].to_pylist())) == [u for u in range(USERS) if u != killer]
    aside = buckets.read_parquet(job.layout.quarantine(f"score/{job.run_id}"))
    assert set(aside["key"].to_pylist()) == {str(killer)} and aside.num_rows == CANDIDATES
    assert set(aside["reason_code"].to_pylist()) == {"scoring_killed"}
    bucket = int(buckets.bucket_of(shown["user_id"].combine_chunks()[:0].__class__.from_pandas([killer]), BUCKETS)[0])
    others = {name: data for name, data in job.wanted.items() if f"bucket-{bucket:05d}" not in name}
    assert {name: data for name, data in job.files().items() if name in others} == others


def test_a_pool_that_leaves_no_room_to_read_ends_in_an_error(job: Job, own_cluster: Any) -> None:
    job.sections["score"] = {"min_actors": 4, "max_actors": 4}
    job.sections["cluster"] = {"no_progress_seconds": 25}
    driver = job.start(0.02)
    out, err = driver.communicate(timeout=150)
    assert driver.returncode == 2, out + err
    assert "nothing has moved for 25 s" in err and "lower score.max_actors" in err
    assert rankings.opened(job.layout.rankings) is None
    job.sections.clear()
    job.finish(job.start(0.02))
    check(job)


def test_the_disk_is_full(job: Job, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a full disk needs the right to mount a small one")
    try:
        job.sections["score"] = {"output": str(disk)}
        driver = job.start(0.0)
        _, err = driver.communicate(timeout=120)
        assert driver.returncode == 2, err
        assert "No space left on device" in err and "Traceback" not in err
        assert rankings.opened(str(disk)) is None
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        job.finish(job.start(0.0))
        again = rankings.read(str(disk)).drop_columns(["run_id"])
        job.sections.clear()
        job.finish(job.start(0.0))
        assert again.equals(rankings.read(job.layout.rankings).drop_columns(["run_id"]))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def test_the_object_store_is_away_for_20_seconds(own_cluster: Any, tmp_path: Path) -> None:
    from llmrec.local import object_store

    with object_store.object_store(tmp_path / "store", "faults") as store:
        # The nodes of a mini cluster know the variables that they were started with; a job's own cluster knows these.
        job = make_job("s3://faults/root", tmp_path, type("Local", (), {"address": ""}))
        driver = job.start()
        wait_for(lambda: job.staged() >= 1, driver)
        os.killpg(store.pid, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(store.pid)] if psutil.pid_exists(store.pid) else [], timeout=5)
        time.sleep(20)
        again = object_store.start(tmp_path / "store", "faults", int(store.endpoint.rsplit(":", 1)[1]))
        try:
            job.finish(driver)
            check(job)
        finally:
            object_store.stop(again.pid)
