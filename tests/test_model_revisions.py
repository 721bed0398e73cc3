"""Which revision of a model a name means: of a directory by its files, of a hub id by the commit in the hub's cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow as pa
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers.utils import cached_file

from llmrec import config, schema
from llmrec.engine import queries
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.ranker.card import model_revision, model_version
from llmrec.tables import buckets, embeddings
from llmrec.tables.embeddings import TEXT, Description

HUB_ID = "org/encoder"
FIRST, SECOND = "a" * 40, "b" * 40


def put(cache: Path, commit: str) -> None:
    """What the hub's client leaves of a model's newest commit, its weights left out."""
    of_model = cache / "models--org--encoder"
    snapshot = of_model / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (of_model / "refs").mkdir(exist_ok=True)
    (of_model / "refs" / "main").write_text(commit)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, with no hub behind it."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", _away)
    return tmp_path / "hub"


def _away(*_: Any) -> str:
    raise LocalEntryNotFoundError("no answer")


def test_a_hub_id_means_the_commit_that_transformers_would_load(cache: Path) -> None:
    assert model_revision(HUB_ID) == HUB_ID, "nothing is known of it"
    for commit in (FIRST, SECOND):
        put(cache, commit)
        loaded = cached_file(HUB_ID, "config.json", cache_dir=str(cache), local_files_only=True)
        assert model_revision(HUB_ID) == commit == Path(str(loaded)).parent.name


def test_the_first_run_tells_what_the_next_one_does(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(hub_id: str, file: str) -> str:
        put(cache, FIRST)
        return str(cache / "models--org--encoder" / "snapshots" / FIRST / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetched)
    assert model_revision(HUB_ID) == FIRST
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", _away)
    assert model_revision(HUB_ID) == FIRST


def test_a_directory_means_its_files_and_no_name_nothing(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"1")
    assert model_revision(str(tmp_path)) == model_version(tmp_path) and model_revision("") == ""
    with pytest.raises(UserError, match="no such asset"):
        model_revision("nonsense")


def test_queries_are_encoded_by_the_hub_model_that_made_the_items_vectors(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(str(tmp_path))
    rows = {"user_id": [1], "item_ids": [[1]], "timestamps": [[1]], "train_length": [1]}
    form = schema.histories(pa.int64(), pa.int64(), ["query"])
    contexts = {schema.CONTEXT + "query": [["w1"]], schema.NOW + "query": ["w1"]}
    buckets.write_parquet(pa.table({**rows, **contexts}, schema=form), buckets.bucket_file(layout.histories, 0))
    put(cache, FIRST)
    embeddings.publish(layout.embeddings, Description("v", HUB_ID, model_revision(HUB_ID), 8, "", "", {TEXT: 4}, 0, []))
    monkeypatch.setattr(queries, "by_actors", lambda *_: iter([{"typed": 1}]))  # the pool, which needs a cluster
    wanted = config.Recall(query={"top": 5, "context": "query"}, merge=("query",))
    assert queries.encode(wanted, layout, lambda _: None) == 1
    put(cache, SECOND)
    with pytest.raises(UserError, match=f"of another revision of {HUB_ID} than is there now"):
        queries.encode(wanted, layout, lambda _: None)
