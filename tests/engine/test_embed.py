"""embed on a cluster: vectors are those of plain transformers, and what did not change is not computed again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from test_bad_input import log
from transformers import AutoModel, AutoTokenizer

from llmrec import config, schema, storage
from llmrec.engine import stages
from llmrec.engine.session import user_error_in
from llmrec.layout import Layout
from llmrec.ranker.graph import spectral_embedding
from llmrec.tables import buckets
from llmrec.tables.embeddings import GRAPH, TEXT, Embeddings, open_embeddings

N, SHARD, TOKENS = 30, 7, 12


def quietly(message: str) -> None:
    """A `say` for stages."""


def catalogue(text: bool) -> dict[Any, str]:
    """Item id -> note; not in order; the fifth has none, one is longer than TOKENS."""
    names = [f"i{i:02d}" if text else 10 * i for i in range(N)]
    notes = [" ".join(f"w{(i * 7 + j) % 60}" for j in range(1 + (5 * i) % 17)) for i in range(N)]
    notes[4] = " "
    order = np.random.default_rng(0).permutation(N)
    return {names[i]: notes[i] for i in order}


def put_items(root: str, items: dict[Any, str]) -> None:
    """What embed needs of prepare."""
    table = pa.table({"item_id": list(items), "title": ["a title"] * len(items), "note": list(items.values())})
    buckets.write_parquet(table, Layout(root).items)
    storage.write_json(Layout(root).summary("prepare"), {})


def put_edges(root: str, items: dict[Any, str], seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    heads = [list(items)[i] for i in rng.integers(0, N - 5, 80)]
    kind = pa.string() if isinstance(heads[0], str) else pa.int64()
    columns = [heads, ["by"] * 80, [f"t{t}" for t in rng.integers(0, 12, 80)], [1.0] * 80]
    table = pa.table(columns, schema=schema.edges(kind))
    buckets.write_parquet(table, Layout(root).edges)
    return table


def settings(root: str, encoder: Any, edges: str = "", **items: Any) -> config.Config:
    """One actor where nothing else is said, since each one takes seconds to start."""
    return config.build({
        "root": root, "prompt": {"item": "{note}"}, "data": {"edges": edges},
        "items": {"encoder": str(encoder), "max_tokens": TOKENS, "shard": SHARD, "batch_size": 4,
                  "graph_dimensions": 5, "actors": 1, **items},
    })  # fmt: skip


def by_transformers(directory: Any, items: dict[Any, str], max_tokens: int = TOKENS) -> np.ndarray:
    """float32[n, d] by ascending id, one text at a time."""
    words, model = AutoTokenizer.from_pretrained(directory), AutoModel.from_pretrained(directory)
    found = np.zeros((len(items), model.config.hidden_size), np.float32)
    for row, item in enumerate(sorted(items)):
        tokens = words(items[item])["input_ids"][:max_tokens] if items[item].strip() else []
        if tokens:
            with torch.no_grad():
                mean = model(torch.tensor([tokens])).last_hidden_state[0].mean(0)
            found[row] = (mean / mean.norm()).numpy()
    return found


def opened(root: str, cache: Path) -> Embeddings:
    found = open_embeddings(Layout(root).embeddings, cache)
    assert found is not None
    return found


def check(root: str, cache: Path, encoder: Any, items: dict[Any, str]) -> Embeddings:
    found = opened(root, cache)
    assert found.ids.to_pylist() == sorted(items)
    expected = by_transformers(encoder, items)
    np.testing.assert_allclose(found.parts[TEXT], expected, atol=1e-5)
    np.testing.assert_array_equal(found.present[TEXT], expected.any(axis=1))
    return found


def shards(root: str) -> dict[str, bytes]:
    return {uri: storage.read_bytes(uri) for uri, _ in storage.list_files(Layout(root).embeddings, ".arrow")}


def failure(stage: str, wanted: config.Config) -> str:
    with pytest.raises(Exception) as caught:
        stages.run(stage, wanted, quietly)
    told = str(user_error_in(caught.value))
    assert "\n" not in told
    return told


@pytest.fixture(scope="module")
def other_encoder(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other weights, a decoder in fact."""
    from transformers import LlamaConfig, LlamaForCausalLM

    directory = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(tiny_encoder, directory, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    torch.manual_seed(1)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(AutoTokenizer.from_pretrained(directory)), **shape)).save_pretrained(
        directory
    )
    return directory


@pytest.mark.usefixtures("cluster")
class TestEmbed:
    @pytest.mark.parametrize("text", [True, False], ids=["string", "int64"])
    def test_only_what_changed_is_encoded(
        self, text: bool, tiny_encoder: Path, other_encoder: Path, tmp_path: Path
    ) -> None:
        root, items = f"s3://llmrec-test/embed-{text}", catalogue(text)
        wanted = settings(root, tiny_encoder)
        put_items(root, items)
        done = stages.run("embed", settings(root, tiny_encoder, actors=2), quietly)
        assert (done["items"], done["encoded"], done["unchanged"], done["shards"], done["shards_written"]) == (
            N, N, 0, 5, 5,
        )  # fmt: skip
        assert done["dimensions"] == {TEXT: 32} and done["with_part"] == {TEXT: N - 1}
        first, files = check(root, tmp_path, tiny_encoder, items), shards(root)
        assert (first.version, first.encoder) == (done["version"], str(tiny_encoder))

        # Nothing changed.
        again = stages.run("embed", wanted, quietly)
        assert (again["encoded"], again["unchanged"], again["shards_written"]) == (0, N, 0)
        assert again["version"] == done["version"] and again["with_part"] == done["with_part"]
        assert shards(root) == files
        assert stages.run("embed", wanted, quietly, reuse=True)["reused"] is True

        # One item has another text.
        last = max(items)
        items = {**items, last: "w1 w2 w3"}
        put_items(root, items)
        done = stages.run("embed", wanted, quietly)
        assert (done["encoded"], done["unchanged"], done["shards_written"]) == (1, N - 1, 1)
        check(root, tmp_path, tiny_encoder, items)
        assert len(set(shards(root)) & set(files)) == 4

        # Two items come, one goes: every border moves, and the vectors with their ids.
        before = dict(zip(sorted(items), opened(root, tmp_path).parts[TEXT].copy(), strict=True))
        new = {"a00": "w5", "i0555": "w6 w7"} if text else {-3: "w5", 55: "w6 w7"}
        items = {item: note for item, note in (items | new).items() if item != sorted(items)[20]}
        put_items(root, items)
        done = stages.run("embed", wanted, quietly)
        assert (done["encoded"], done["unchanged"], done["shards_written"]) == (2, N - 1, 5)
        found = check(root, tmp_path, tiny_encoder, items)
        for item, vector in zip(found.ids.to_pylist(), found.parts[TEXT], strict=True):
            if item not in new:
                np.testing.assert_array_equal(vector, before[item])

        # Another encoder and another cut make other vectors of all.
        done = stages.run("embed", settings(root, other_encoder, max_tokens=3, shard=1000), quietly)
        assert (done["encoded"], done["unchanged"], done["dimensions"]) == (N + 1, 0, {TEXT: 16})
        assert len(shards(root)) == done["shards"] == 1
        expected = by_transformers(other_encoder, items, 3)
        np.testing.assert_allclose(opened(root, tmp_path).parts[TEXT], expected, atol=1e-5)

    def test_the_graph_is_a_part_of_its_own(self, tiny_encoder: Path, tmp_path: Path) -> None:
        root, items = str(tmp_path / "root"), catalogue(text=True)
        put_items(root, items)
        edges = put_edges(root, items)
        ids = pa.array(sorted(items))
        wanted = settings(root, tiny_encoder, "edges.parquet")
        said: list[str] = []
        done = stages.run("embed", wanted, said.append)
        assert done["dimensions"] == {TEXT: 32, GRAPH: 5}
        found = check(root, tmp_path, tiny_encoder, items)
        expected = spectral_embedding(edges, ids, 5)
        np.testing.assert_array_equal(found.parts[GRAPH], expected)
        np.testing.assert_array_equal(found.present[GRAPH], expected.any(axis=1))
        assert done["with_part"] == {TEXT: N - 1, GRAPH: int(expected.any(axis=1).sum())}
        assert 0 < done["with_part"][GRAPH] < N and "decomposing the graph" in said

        # Another text leaves the graph as it is.
        items = {**items, min(items): "w9"}
        put_items(root, items)
        said.clear()
        done = stages.run("embed", wanted, said.append)
        assert (done["encoded"], done["shards_written"]) == (1, 1) and "decomposing the graph" not in said
        np.testing.assert_array_equal(opened(root, tmp_path).parts[GRAPH], expected)

        # Other edges leave the texts as they are.
        before = opened(root, tmp_path)
        edges = put_edges(root, items, seed=1)
        done = stages.run("embed", wanted, quietly)
        assert (done["encoded"], done["shards_written"]) == (0, 5)
        found = check(root, tmp_path, tiny_encoder, items)
        np.testing.assert_array_equal(found.parts[GRAPH], spectral_embedding(edges, ids, 5))
        assert found.version != before.version

        # A graph that ties no items together is no part.
        buckets.write_parquet(edges.slice(0, 1), Layout(root).edges)
        done = stages.run("embed", wanted, said.append)
        assert done["dimensions"] == {TEXT: 32} and done["encoded"] == 0
        assert any("no two items share" in line for line in said)

        # No texts, and the graph as it was.
        buckets.write_parquet(edges, Layout(root).edges)
        done = stages.run("embed", settings(root, "", "edges.parquet"), quietly)
        assert done["dimensions"] == {GRAPH: 5} and (done["encoded"], done["unchanged"]) == (0, 0)
        assert set(opened(root, tmp_path).parts) == {GRAPH}
        np.testing.assert_array_equal(opened(root, tmp_path).parts[GRAPH], found.parts[GRAPH])

    def test_a_job_that_was_cut_off_does_the_rest(self, tiny_encoder: Path, tmp_path: Path) -> None:
        root, items = str(tmp_path / "root"), catalogue(text=False)
        put_items(root, items)
        put_edges(root, items)
        wanted = settings(root, tiny_encoder, "edges.parquet")
        done, files = stages.run("embed", wanted, quietly), shards(root)
        storage.delete(storage.join(Layout(root).embeddings, "_embeddings.json"))
        lost = sorted(files)[2]
        storage.delete(lost)
        again = stages.run("embed", wanted, quietly)
        assert (again["encoded"], again["shards_written"]) == (SHARD, 1)
        assert again["version"] == done["version"] and again["with_part"] == done["with_part"]
        assert shards(root).keys() == files.keys()
        check(root, tmp_path, tiny_encoder, items)
        # A shard that somebody deleted is no reason to copy from it.
        storage.delete(lost)
        assert stages.run("embed", wanted, quietly)["encoded"] == SHARD
        check(root, tmp_path, tiny_encoder, items)

    def test_with_nothing_to_embed_nothing_is_written(self, tmp_path: Path) -> None:
        root = str(tmp_path)
        put_items(root, catalogue(text=False))
        said: list[str] = []
        storage.write_json(storage.join(Layout(root).embeddings, "_embeddings.json"), {"of": "an earlier job"})
        as_text = config.build({"root": root, "model": {"items": "text", "head": "linear"}})
        assert stages.run("embed", as_text, said.append)["table"] is None
        assert "items are read as text" in said[-1] and storage.exists(Layout(root).embeddings)
        assert stages.run("embed", settings(root, ""), said.append)["table"] is None
        assert "items.encoder, items.images and data.edges are empty" in said[-1]
        assert not storage.exists(Layout(root).embeddings)

    def test_training_on_item_vectors_needs_embed(self, tiny_encoder: Path, tmp_path: Path) -> None:
        put_items(str(tmp_path), catalogue(text=False))
        assert "embed has not finished there; run jobs/embed.py first" in failure(
            "train", settings(str(tmp_path), tiny_encoder)
        )
        for without in (settings(str(tmp_path), ""), config.build({"root": str(tmp_path), "model": TEXT_MODEL})):
            assert "embed has not finished" not in failure("train", without)

    def test_what_is_wrong_is_one_line(self, tiny_encoder: Path, tmp_path: Path) -> None:
        root = str(tmp_path / "root")
        assert "prepare has not finished" in failure("embed", settings(root, tiny_encoder))
        put_items(root, catalogue(text=False))
        assert "no such asset" in failure("embed", settings(root, "nowhere"))
        assert "has 32 positions" in failure("embed", settings(root, tiny_encoder, max_tokens=33))
        wrong = settings(root, tiny_encoder).model_copy(update={"prompt": config.Prompt(item="{plot}")})
        assert "prompt.item uses '{plot}', but the items table has: item_id, title, note" in failure("embed", wrong)
        (tmp_path / "empty").mkdir()
        assert str(tmp_path / "empty") in failure("embed", settings(root, tmp_path / "empty"))
        assert not storage.exists(Layout(root).embeddings)


TEXT_MODEL = {"items": "text", "head": "linear"}


@pytest.mark.usefixtures("cluster")
class TestEdges:
    def wanted(self, root: Path, edges: pa.Table) -> config.Config:
        for name, table in {**log(), "edges": edges}.items():
            buckets.write_parquet(table, str(root / "raw" / f"{name}.parquet"))
        columns = {"user": "uid", "item": "sku", "timestamp": "at", "title": "name"}
        files = {name: str(root / "raw" / f"{name}.parquet") for name in ("items", "interactions", "edges")}
        return config.build({
            "root": str(root), "data": {**files, "columns": columns, "buckets": 2}, "items": {"encoder": ""},
        })  # fmt: skip

    def test_they_are_cleaned_and_embedded(self, tmp_path: Path) -> None:
        n = 40
        heads = [f"i{i % 25:02d}" for i in range(n)]
        good = pa.table({
            "head": heads, "relation": ["by"] * n, "tail": pa.array([i % 6 for i in range(n)], pa.int32()),
            "weight": [1.0 + i % 3 for i in range(n)], "since": [1999] * n,
        })  # fmt: skip
        bad = pa.table({
            "head": [None, "i01", "i01", "elsewhere", "i02", "i03"], "relation": ["by", "by", None, "by", "by", "by"],
            "tail": pa.array([1, None, 1, 2, 3, 3], pa.int32()), "weight": [1.0, 1.0, 1.0, 1.0, -1.0, None],
            "since": [1999] * 6,
        })  # fmt: skip
        far = pa.table({
            "head": [f"elsewhere {i}" for i in range(500)], "relation": ["by"] * 500,
            "tail": pa.array([1] * 500, pa.int32()), "weight": [1.0] * 500, "since": [1999] * 500,
        })  # fmt: skip
        wanted = self.wanted(tmp_path, pa.concat_tables([bad, good, far]))
        wanted = wanted.model_copy(update={"data": wanted.data.model_copy(update={"max_bad_share": 0.01})})
        layout = Layout.of(wanted)
        done = stages.run("prepare", wanted, quietly)
        assert done["edges"] == n
        assert done["edges_set_aside"] == {"null_id": 3, "impossible_weight": 2, "unknown_item": 501}
        assert done["tables"]["edges"] == layout.edges
        found = buckets.read_parquet(layout.edges)
        assert found.schema == schema.edges(pa.string())
        assert found["head"].to_pylist() == heads
        assert found["tail"].to_pylist() == [str(i % 6) for i in range(n)]
        aside = buckets.read_parquet(storage.join(layout.quarantine("prepare"), "edges.parquet"))
        assert aside.schema == schema.QUARANTINE and aside.num_rows == 506
        assert aside.slice(3, 1).to_pylist() == [
            {"key": "elsewhere", "reason_code": "unknown_item", "detail": "relation=by tail=2 weight=1.0",
             "source_file": wanted.data.edges}
        ]  # fmt: skip
        embedded = stages.run("embed", wanted, quietly)
        assert embedded["dimensions"] == {GRAPH: 5} and embedded["with_part"] == {GRAPH: 25}

        # Without edges the table of before goes.
        without = wanted.model_copy(update={"data": wanted.data.model_copy(update={"edges": ""})})
        assert stages.run("prepare", without, quietly)["edges"] == 0
        assert not storage.exists(layout.edges)

    def test_bad_ones_stop_the_job_before_it_writes(self, tmp_path: Path) -> None:
        edges = pa.table({"head": ["i01", None], "relation": ["by"] * 2, "tail": ["x"] * 2})
        told = failure("prepare", self.wanted(tmp_path, edges))
        assert "of 2 edges 1 null_id, more bad ones than data.max_bad_share = 0.1 allows" in told
        assert not storage.exists(Layout(str(tmp_path)).items)
        told = failure("prepare", self.wanted(tmp_path, edges.drop_columns("tail")))
        assert "edges.parquet: column 'tail' is missing (it has: head, relation)" in told
