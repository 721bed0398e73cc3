"""Users whom the log does not know, items that nobody had and what users typed, through the same jobs, on a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from scipy.stats import zscore

from llmrec import config, storage
from llmrec.engine import stages
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.tables import buckets, rankings

ROOT = "s3://llmrec-test/new"
OLD, NEW, ITEMS = 30, 9, 20  # items 18 and 19 are new


def quietly(message: str) -> None:
    """A `say` for stages."""


def write(users: pa.Array) -> dict[str, str]:
    """Who is even had even items only. The new items are about what items 2 and 3 are about. Of the new users the last
    has a null for an attribute, and one of the old ones too few events to count."""
    log = [(u, u % 2 + 2 * ((u // 2 + step) % 9), step + 1) for u in range(OLD) for step in range(6)]
    log = [row for row in log if row[0] != 7 or row[2] < 3]
    kinds = ["even" if u % 2 == 0 else "odd" for u in range(OLD + NEW)]
    columns = [*map(list, zip(*log, strict=True)), pa.nulls(len(log))]
    tables = {
        "items": pa.table({"item_id": list(range(ITEMS)), "title": [f"w{i}" for i in range(ITEMS)]}),
        "interactions": pa.table(columns, ["user_id", "item_id", "timestamp", "query"]),
        "users": pa.table({"user_id": users, "kind": [*kinds[:-1], None]}),
        "edges": pa.table({"head": list(range(ITEMS)), "relation": ["about"] * ITEMS,
                           "tail": [f"t{i % 2 if i > 17 else i % 9}" for i in range(ITEMS)]}),
    }  # fmt: skip
    for name, table in tables.items():
        buckets.write_parquet(table, f"{ROOT}/raw/{name}.parquet")
    return {name: f"{ROOT}/raw/{name}.parquet" for name in tables}


def settings(data: dict[str, str], model: Any, **more: Any) -> config.Config:
    return config.build({
        "root": ROOT, "data": data | {"buckets": 4, "split": "none", "min_user_events": 3} | more,
        "prompt": {"before_candidate": "w1", "after_candidate": "w2"},
        "model": {"base": str(model), "items": "text", "head": "yes_no", "labels": ["w3", "w4"]},
        "recall": {
            "segment": {"top": 8, "columns": ["kind"], "prior": 1.0}, "graph": {"top": 3}, "popularity": {"top": 20},
            "item_item": {"top": 0}, "merge": ["graph", "segment", "popularity"], "candidates": 15,
        },
        "score": {"model": "base", "top_k": 10, "precision": "float32", "max_constant_users": 1.0, "max_tied": 1.0},
    })  # fmt: skip


def test_all_are_ranked_and_all_are_recommended(cluster: Any, tiny_model: Any) -> None:
    data = write(pa.array(range(OLD + NEW)))
    wanted = settings(data, tiny_model)
    done = {name: stages.run(name, wanted, quietly) for name in ("prepare", "recall", "score")}
    assert (done["prepare"]["users"], done["prepare"]["new_users"]) == (OLD + NEW, NEW + 1)
    assert done["prepare"]["set_aside"] == {"too_few_events": 2}
    assert (done["recall"]["users"], done["recall"]["no_candidates"]) == (OLD + NEW, 0)
    layout = Layout.of(wanted)
    rows = pl.DataFrame(pl.from_arrow(rankings.read(layout.rankings)))
    assert dict(rows.group_by("user_id").len().iter_rows()) == dict.fromkeys(range(OLD + NEW), 10)
    candidates = {row["user_id"]: row for row in buckets.read_parquet(layout.candidates()).to_pylist()}
    for user in range(OLD, OLD + NEW):
        mine = candidates[user]
        first = [item for item, source in zip(mine["item_ids"], mine["sources"], strict=True) if source == "segment"]
        if user < OLD + NEW - 1:  # what those like him had comes first, though all have both sides alike
            assert len(first) == 8 and {item % 2 for item in first} == {user % 2}
    # Nobody had the new items: they are found by what they are about alone, for those who had what is about it.
    found = {item: {u for u, of in candidates.items() if item in of["item_ids"]} for item in (18, 19)}
    assert found[18] and found[19] and not (found[18] | found[19]) & {7, *range(OLD, OLD + NEW)}

    without = settings(data, tiny_model, new_users=False)
    assert stages.run("prepare", without, quietly)["users"] == OLD - 1

    write(pa.array([str(user) for user in range(OLD + NEW)]))
    with pytest.raises(UserError, match=r"users\.parquet: column 'user_id' holds string ids, but the log holds int64"):
        stages.run("prepare", wanted, quietly)


TYPED = {0: "w4 w9", 100: "w9", 101: None, 102: "w3 " * 3334}  # 100 and above are known by what they typed alone


def nearest(encoder: Path, text: str) -> list[int]:
    """The items by the cosine of their title and a text, in plain transformers."""
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(encoder), AutoTokenizer.from_pretrained(encoder)

    def vector(of: str) -> torch.Tensor:
        with torch.no_grad():
            return model(**tokenizer(of, return_tensors="pt", truncation=True, max_length=16))[0][0].mean(0)

    titles = torch.stack([vector(f"w{i}") for i in range(ITEMS)])
    cosines = torch.nn.functional.cosine_similarity(titles, vector(text)[None])
    return torch.argsort(-cosines, stable=True).tolist()


def test_what_users_typed_brings_items_and_is_read(cluster: Any, tiny_model: Path, tiny_encoder: Path) -> None:
    data = write(pa.array(range(OLD + NEW)))
    raw = f"{ROOT}/raw/requests.parquet"
    buckets.write_parquet(pa.table({"user_id": list(TYPED), "query": pa.array(TYPED.values(), pa.string())}), raw)
    edges = buckets.read_parquet(data["edges"])
    needs = pa.table([[9], ["needs"], ["3"]], edges.column_names)  # user 0, who is even, never had item 3
    buckets.write_parquet(pa.concat_tables([edges, needs]), data["edges"])
    values = settings(data, tiny_model).model_dump(exclude_unset=True)
    values["data"] |= {"context": ["query"], "requests": raw}
    values["prompt"] |= {"context": " w5 {query}", "max_context_tokens": 12}
    values["items"] = {"encoder": str(tiny_encoder), "max_tokens": 16, "actors": 1}
    values["recall"] |= {"query": {"top": 6}, "merge": ["query", "popularity"]}
    values["score"] |= {"keep_parts": True}
    lax = config.build(values)
    values["score"] |= {"requires": "needs"}
    wanted = config.build(values)
    done = {name: stages.run(name, lax, quietly) for name in ("prepare", "embed", "recall")}
    done["score"] = stages.run("score", wanted, quietly)
    assert (done["prepare"]["new_users"], done["prepare"]["requests"]) == (NEW + 1 + 3, 4)
    assert (done["recall"]["queries"], done["recall"]["no_candidates"], done["recall"]["locked"]) == (3, 0, 0)
    layout = Layout.of(wanted)
    brought = {row["user_id"]: row["item_ids"] for row in buckets.read_parquet(layout.candidates("query")).to_pylist()}
    had = {row["user_id"]: row["item_ids"] for row in buckets.read_parquet(layout.histories).to_pylist()}
    for user, text in TYPED.items():
        if text is not None:
            assert brought[user] == [i for i in nearest(tiny_encoder, text) if i not in had[user]][:6]
    assert all(not items for user, items in brought.items() if not TYPED.get(user))
    rows = pl.DataFrame(pl.from_arrow(rankings.read(layout.rankings)))
    assert rows["user_id"].n_unique() == OLD + NEW + 3
    # No one is shown item 9 who has not had item 3, though it is what one of them typed.
    assert brought[100][0] == 9 and all(3 in had[user] for user in rows.filter(item_id=9)["user_id"])
    assert done["score"]["pairs"]["locked"] > 1
    # Recall that knows the rule brings another item in its place.
    ruled = stages.run("recall", wanted, quietly)
    lacking = [user for user, items in had.items() if 3 not in items]
    assert ruled["locked"] == round(len(lacking) / len(had), 1) > 0
    for row in buckets.read_parquet(layout.candidates("query")).to_pylist():
        if text := TYPED.get(row["user_id"]):
            user = had[row["user_id"]]
            open_ = [i for i in nearest(tiny_encoder, text) if i not in user and (i != 9 or 3 in user)]
            assert row["item_ids"] == open_[:6]
    # The ranker reads it: who differ in this alone have other scores for the same items.
    kept = {
        row["user_id"]: row for row in buckets.read_parquet(layout.score_parts(done["score"]["run_id"])).to_pylist()
    }
    scores = {u: dict(zip(kept[u]["item_ids"], kept[u]["score_ranker"], strict=True)) for u in (100, 101, 102)}
    both = scores[100].keys() & scores[101].keys() & scores[102].keys()
    assert len(both) > 3 and all(len({scores[u][item] for u in scores}) == 3 for item in both)

    values["recall"] |= {"query": {"top": 6, "context": "wish"}}
    with pytest.raises(UserError, match=r"recall\.query\.context = wish: .* has no such context \(it has: query\)"):
        stages.run("recall", config.build(values), quietly)


def test_users_without_a_history_have_weights_of_their_own(cluster: Any, tiny_model: Any) -> None:
    """What one's kind had tells most of a user of whom nothing else is known; of the others, the neighbours of what
    they had do."""
    root = f"{ROOT}/weights"
    values = settings(write(pa.array(range(OLD + NEW))), tiny_model).model_dump(exclude_unset=True)
    values |= {"root": root, "fusion": {"method": "linear", "normalise": ["z_score"]}}
    values["data"] |= {"split": "leave_one_out"}
    values["recall"] |= {"item_item": {"top": 10}, "merge": ["item_item", "segment", "popularity"]}
    values["score"] |= {"keep_parts": True}
    wanted = config.build(values)
    done = {name: stages.run(name, wanted, quietly) for name in ("prepare", "recall", "fuse", "score")}
    own, others = done["fuse"]["new_users"], done["fuse"]["importance"]
    assert max(own, key=own.get) == "segment" and others["item_item"] > own["item_item"] == 0
    layout = Layout.of(wanted)
    rows = pl.DataFrame(pl.from_arrow(rankings.read(layout.rankings)))
    for user in range(OLD, OLD + NEW - 1):
        assert set(rows.filter(user_id=user).sort("rank")["item_id"][:6] % 2) == {user % 2}, (
            "those of his kind come first"
        )
    fitted = storage.read_json(layout.fusion)
    kept = buckets.read_parquet(layout.score_parts(done["score"]["run_id"])).to_pylist()
    for row in kept:
        which = fitted["new_users" if row["user_id"] in (7, *range(OLD, OLD + NEW)) else "fusion"]
        total = np.zeros(len(row["item_ids"]))
        for name, weight in zip(which["parts"], which["weights"], strict=True):
            said = np.asarray(row[f"score_{name}"], float)
            said = np.where(np.isnan(said), np.nanmin(said) if not np.isnan(said).all() else 0, said)
            total += weight * (zscore(said) if np.ptp(said) > 0 else 0)
        np.testing.assert_allclose(row["scores"], total, atol=1e-4)
    assert not storage.list_files(layout.scratch("fuse"))

    values["fusion"] |= {"new_users": 0}
    assert stages.run("fuse", config.build(values), quietly)["new_users"] is None
