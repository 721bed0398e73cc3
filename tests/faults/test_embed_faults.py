"""embed goes on without what was killed, and a job that is cut off leaves what it has done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import HERE, actors, finish, wait_for

from llmrec import storage
from llmrec.layout import Layout
from llmrec.tables import buckets
from llmrec.tables.embeddings import TEXT, open_embeddings

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]
ITEMS, SHARD = 6000, 200


def start(root: Path, encoder: Path, address: str) -> subprocess.Popen[str]:
    """The job, at a pace that leaves time to disturb it."""
    items = {"encoder": str(encoder), "max_tokens": 30, "shard": SHARD, "batch_size": 1, "actors": 3}
    if not storage.exists(Layout(str(root)).items):
        titles = [" ".join(f"w{(i * 7 + j) % 60}" for j in range(28)) for i in range(ITEMS)]
        buckets.write_parquet(pa.table({"item_id": range(ITEMS), "title": titles}), Layout(str(root)).items)
        storage.write_json(Layout(str(root)).summary("prepare"), {})
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    settings = {"root": str(root), "items": items, "cluster": {"address": address, "no_progress_seconds": 100}}
    (root / "config.json").write_text(json.dumps(settings))  # JSON is YAML
    return subprocess.Popen(
        [sys.executable, "jobs/embed.py", "--config", str(root / "config.json"), "--json", str(root / "done.json")],
        cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def written(root: Path) -> int:
    return len(list((root / "tables" / "embeddings").glob("shard-*.arrow")))


def test_a_killed_driver_a_killed_actor_and_a_lost_node(own_cluster: Any, tmp_path: Path, tiny_encoder: Path) -> None:
    job = start(tmp_path, tiny_encoder, own_cluster.address)
    wait_for(lambda: written(tmp_path) > 3, job)
    job.kill()
    job.communicate()
    assert open_embeddings(Layout(str(tmp_path)).embeddings, tmp_path / "cache") is None
    left = written(tmp_path)
    job = start(tmp_path, tiny_encoder, own_cluster.address)
    wait_for(lambda: written(tmp_path) > left + 2, job)
    actors(own_cluster, "EncoderActor")[0].kill()
    wait_for(lambda: written(tmp_path) > left + 4, job)
    own_cluster.remove_node(sorted(own_cluster.worker_nodes, key=str)[0], allow_graceful=False)
    assert written(tmp_path) < ITEMS // SHARD, "it was over before the node was lost"
    done = finish(job, tmp_path)
    assert 0 < done["shards_written"] <= ITEMS // SHARD - 4 and done["items"] == ITEMS
    found = open_embeddings(Layout(str(tmp_path)).embeddings, tmp_path / "cache")
    assert found is not None and found.ids.to_pylist() == list(range(ITEMS))
    # Texts repeat every sixty items, and with them their vectors, whoever made them.
    np.testing.assert_allclose(found.parts[TEXT][60:], found.parts[TEXT][:-60], atol=1e-6)
    assert found.present[TEXT].all()
