"""Something random is killed every few seconds, for some minutes; the table is the undisturbed one all the same."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from conftest import Job, actors
from test_faults import check

SECONDS, EVERY = 150, (4, 9)


@pytest.mark.faults
@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_chaos(job: Job, own_cluster: Any) -> None:
    chance = random.Random(0)
    killed = {"actor": 0, "driver": 0, "node": 0}
    driver, deadline = job.start(0.3), time.monotonic() + SECONDS
    while time.monotonic() < deadline and driver.poll() is None:
        time.sleep(chance.uniform(*EVERY))
        what = chance.choice(["actor", "actor", "actor", "driver", "node"])
        if what == "actor" and (found := actors(own_cluster)):
            chance.choice(found).kill()
        elif what == "driver":
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
        print(f"killed a {what}; {job.staged()} buckets are staged", flush=True)
    if driver.wait(300):
        driver = job.start(0.0)
    job.finish(driver)
    assert sum(killed.values()) >= 5, killed
    check(job)
    print(f"killed {killed}; the table is right", flush=True)
