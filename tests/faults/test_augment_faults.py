"""augment, with a real language model, goes on from what killed drivers and actors have written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from conftest import HERE, actors, finish, wait_for

from llmrec import assets, storage
from llmrec.layout import Layout
from llmrec.schema import CONTENT_HASH, TEXT
from llmrec.tables import buckets

pytestmark = [pytest.mark.faults, pytest.mark.timeout(560)]
ITEMS, SHARD = 36, 2
WRITER = "WriterActor"


def start(root: Path, address: str) -> subprocess.Popen[str]:
    layout = Layout(str(root))
    if not storage.exists(layout.items):
        titles = [f"{kind} of the {thing} ({1960 + year})" for year in range(4) for kind in ("Night", "Song", "Fall")
                  for thing in ("Sea", "City", "Wolves")]  # fmt: skip
        buckets.write_parquet(pa.table({"item_id": range(ITEMS), "title": titles}), layout.items)
        storage.write_json(layout.summary("prepare"), {})
    augment = {
        "items": {"min_characters": 95}, "actors": 2, "shard": SHARD, "max_new_tokens": 48, "precision": "float32",
    }  # fmt: skip
    settings = {
        "root": str(root), "prompt": {"item": "{title}"}, "augment": augment,
        "cluster": {"address": address, "no_progress_seconds": 100},
    }  # fmt: skip
    (root / "config.json").write_text(json.dumps(settings))  # JSON is YAML
    return subprocess.Popen(
        [sys.executable, "jobs/augment.py", "--config", str(root / "config.json"), "--json", str(root / "done.json")],
        cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(HERE)},
    )  # fmt: skip


def shards(root: Path) -> dict[str, list[str]]:
    """By file, the content hashes of the texts in it."""
    folder = Layout(str(root)).generated("items")
    files = [uri for uri, _ in storage.list_files(folder, ".parquet")]
    return {uri: buckets.read_parquet(uri)[CONTENT_HASH].to_pylist() for uri in files}


def texts(root: Path) -> dict[int, str]:
    table = buckets.read_parquet(Layout(str(root)).item_augmentations)
    return dict(zip(table["item_id"].to_pylist(), table[TEXT].to_pylist(), strict=True))


def test_a_killed_driver_and_a_killed_actor_cost_no_text_that_was_written(own_cluster: Any, tmp_path: Path) -> None:
    assets.fetch("smollm2-135m-instruct")
    disturbed, whole = tmp_path / "disturbed", tmp_path / "whole"
    disturbed.mkdir()
    whole.mkdir()
    job = start(disturbed, own_cluster.address)
    wait_for(lambda: len(shards(disturbed)) > 2, job)
    job.kill()
    job.communicate()
    wait_for(lambda: not actors(own_cluster, WRITER))
    left = shards(disturbed)
    assert not storage.exists(Layout(str(disturbed)).item_augmentations)

    job = start(disturbed, own_cluster.address)
    wait_for(lambda: len(shards(disturbed)) > len(left) + 1, job)
    actors(own_cluster, WRITER)[0].kill()
    done = finish(job, disturbed)
    # A writer that was at it may have left its shard after the driver's death, and after `left` was counted.
    there = sum(map(len, left.values()))
    assert 0 < there <= done["unchanged"] < ITEMS and done["generated"] == ITEMS - done["unchanged"]
    every = [mark for of in shards(disturbed).values() for mark in of]
    assert len(every) == len(set(every)) == ITEMS, "a text was written twice, or not at all"

    assert finish(start(whole, own_cluster.address), whole)["generated"] == ITEMS
    assert texts(disturbed) == texts(whole) and texts(whole)
