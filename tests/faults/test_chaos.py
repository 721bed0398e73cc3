"""Something random is killed every few seconds, for some minutes; every table is the undisturbed one all the same."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from conftest import BUCKETS, Job, actors
from test_faults import check

SECONDS, EVERY = 180, (3, 8)


@pytest.mark.faults
@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_chaos(job: Job, own_cluster: Any) -> None:
    chance, deadline = random.Random(0), time.monotonic() + SECONDS
    killed, tables = {"actor": 0, "driver": 0, "node": 0}, 0
    while time.monotonic() < deadline:
        driver = job.start(0.3)
        while driver.poll() is None and time.monotonic() < deadline:
            time.sleep(chance.uniform(*EVERY))
            what = chance.choice(["actor", "actor", "actor", "driver", "node"])
            if what == "actor" and (found := actors(own_cluster)):
                chance.choice(found).kill()
            elif what == "driver" and driver.poll() is None:
                driver.kill()
                driver.wait()
                driver = job.start(0.3)
            elif what == "node":
                node = sorted(own_cluster.worker_nodes, key=lambda n: n.node_id)[0]
                own_cluster.remove_node(node, allow_graceful=False)
                own_cluster.add_node(num_cpus=2, object_store_memory=256 << 20)
            else:
                continue
            killed[what] += 1
            print(f"killed: {what}; {job.staged()} of {BUCKETS} buckets are staged", flush=True)
        # A job that ends with an error, for too many deaths at one place, is run again, as its message says.
        if driver.wait(300):
            driver = job.start(0.0)
        job.finish(driver)
        check(job)
        tables += 1
        print(f"table {tables} is right", flush=True)
        job.forget()
    assert sum(killed.values()) >= 10 and tables >= 2, (killed, tables)
    print(f"killed {killed}; all {tables} tables are right", flush=True)
