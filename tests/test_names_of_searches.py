"""Trials are compared if they read the same tables. No cluster."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import staging
from served import settings_of

from llmrec import config, storage
from llmrec.engine.search import name_of
from llmrec.layout import Layout
from llmrec.ranker.card import RANKER_FILE
from llmrec.tables import buckets, embeddings


@pytest.mark.parametrize("items", ["text", "token"])
def test_a_search_over_other_attributes_edges_vectors_or_another_base_is_another(
    items: str, tmp_path: Path, tiny_model: Path
) -> None:
    wanted = settings_of(str(tmp_path), tmp_path, tiny_model, items, {})
    layout = Layout.of(wanted)
    base = tmp_path / "base"
    storage.upload_directory(tiny_model, str(base))
    wanted = config.varied(wanted, {"model.base": str(base)}, "test")
    names = [name_of(wanted, layout)]
    assert name_of(wanted, layout) == names[0]
    users = buckets.bucket_file(layout.users, 0)
    buckets.write_parquet(buckets.read_parquet(users).drop_columns(["age"]), users)
    names.append(name_of(wanted, layout))
    buckets.write_parquet(pa.table({"head": [1], "relation": ["r"], "tail": ["t"]}), layout.edges)
    names.append(name_of(wanted, layout))
    (base / "config.json").write_text((base / "config.json").read_text() + " ")
    names.append(name_of(wanted, layout))
    names.append(name_of(config.varied(wanted, {"recall.item_item.decay": 0.5}, "test"), layout))
    assert len(set(names)) == 5
    storage.write_json(f"{layout.embeddings}/{embeddings.DESCRIPTION}", {"shards": ["other"]})
    assert (name_of(wanted, layout) in names) == (items == "text"), "texts of items are no vectors"


def test_a_search_with_another_teacher_or_from_another_previous_ranker_is_another(
    tmp_path: Path, tiny_model: Path
) -> None:
    wanted = settings_of(str(tmp_path / "root"), tmp_path, tiny_model, "text", {})
    layout = Layout.of(wanted)
    staging.publish(f"{tmp_path}/teacher", "run-1", range(9))
    taught = config.varied(wanted, {"train.teacher": f"{tmp_path}/teacher"}, "test")
    names = [name_of(taught, layout)]
    staging.publish(f"{tmp_path}/teacher", "run-2", range(9))
    names.append(name_of(taught, layout))
    goes_on = config.varied(wanted, {"train.start": "previous"}, "test")
    names.append(name_of(goes_on, layout))
    storage.write_bytes(f"{layout.ranker}/{RANKER_FILE}", b"{}")
    names.append(name_of(goes_on, layout))
    assert len(set(names)) == 4
    anew = name_of(wanted, layout)
    storage.write_bytes(f"{layout.ranker}/{RANKER_FILE}", b"{ }")
    assert name_of(wanted, layout) == anew, "the untouched base has nothing to do with the ranker that is there"
