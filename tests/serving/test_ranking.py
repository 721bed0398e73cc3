"""Single requests against the pairs alone by transformers, and against what the score job makes of the same users."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from served import BUCKETS, HISTORIES, ITEMS, NOW, USERS, candidates_of

from llmrec import config, storage
from llmrec.engine import run, tasks
from llmrec.engine.prompts import load_prompts
from llmrec.engine.scorer import ModelScorer
from llmrec.engine.watch import Beating
from llmrec.errors import UserError
from llmrec.fusion.ablations import Fitted
from llmrec.fusion.model import Fusion
from llmrec.layout import Layout
from llmrec.ranker.model import Ranker, score_pair_by_pair
from llmrec.serving.candidates import Recalled
from llmrec.serving.ranking import Answer, Ranking
from llmrec.serving.request import Asked, InvalidError, parse
from llmrec.tables import buckets, forgotten, requests

Made = Callable[..., config.Config]
KINDS = ["text", "token"]


def ranking(wanted: config.Config) -> Ranking:
    return Ranking(wanted, Layout.of(wanted))


def asked(of: Ranking, **fields: Any) -> Asked:
    return parse(json.dumps(fields).encode(), of.bounds)


def answer(of: Ranking, **fields: Any) -> Answer:
    (found,) = of.rank([asked(of, **fields)])
    assert isinstance(found, Answer), found
    return found


def shown(found: Answer) -> list[tuple[int, Any, float]]:
    return [(of.rank, of.item_id, of.ranker_score) for of in found.items]


def by_job(wanted: config.Config) -> dict[int, list[tuple[int, int, float, float]]]:
    """user -> (rank, item, score, ranker's score), by the steps of the score job."""
    job, units = run.resolve(wanted, Layout.of(wanted))
    scorer, rules = ModelScorer(job, Beating(None), ModelScorer.shared(job)), tasks.rules(job)
    found: dict[int, list[tuple[int, int, float, float]]] = {}
    for unit in units:
        work = tasks.judged(unit, job, rules)
        scores = np.concatenate(scorer.score(work, range(len(work.users))))
        for row in tasks.ranked(work, tasks.fused(work, scores, job, rules), job, rules).to_pylist():
            told = (row["rank"], row["item_id"], row["score"], row["ranker_score"])
            found.setdefault(row["user_id"], []).append(told)
    return found


def naive(wanted: config.Config, user: int) -> dict[int, float]:
    """item -> score, pair by pair, of what the tables say of a user."""
    ranker = Ranker.from_pretrained(wanted.score.model)
    prompts = load_prompts(ranker, Layout.of(wanted))
    context = ranker.read_contexts(pa.table({"place": pa.array([NOW[user % len(NOW)]], pa.string())}))
    items = candidates_of(user)
    history = np.asarray(HISTORIES[user][-4:], np.int64)
    request = prompts.request(prompts.prefix(user), history, np.asarray(items), context)
    return dict(zip(items, score_pair_by_pair(ranker, request).tolist(), strict=True))


@pytest.mark.parametrize("items", KINDS)
def test_a_users_ranking_is_that_of_the_score_job_and_of_the_pairs_alone(made: Made, items: str) -> None:
    wanted = made(items)
    of, job = ranking(wanted), by_job(wanted)
    together = of.rank([asked(of, user_id=u, candidates=candidates_of(u)) for u in range(USERS)])
    for user, found in enumerate(together):
        assert isinstance(found, Answer) and found.known and found.user_id == user
        assert [i.item_id for i in found.items] == [item for _, item, _, _ in job[user]]
        scores = [(i.score, i.ranker_score) for i in found.items]
        np.testing.assert_allclose(scores, [(s, r) for _, _, s, r in job[user]], rtol=1e-5, atol=1e-5)
        assert shown(answer(of, user_id=user, candidates=candidates_of(user))) == [
            (rank, item, pytest.approx(score, rel=1e-4, abs=1e-4)) for rank, item, score in shown(found)
        ]
    for user in (1, 5, 10):
        alone = naive(wanted, user)
        best = sorted(alone, key=lambda item: -alone[item])[:5]
        assert shown(together[user]) == [
            (rank, item, pytest.approx(alone[item], rel=1e-4, abs=1e-4)) for rank, item in enumerate(best, 1)
        ]
    assert len({i.ranker_score for found in together for i in found.items}) == 5 * USERS


@pytest.mark.parametrize("items", KINDS)
def test_what_a_request_brings_itself_ranks_as_what_the_tables_know(made: Made, items: str) -> None:
    of, user = ranking(made(items)), 5
    whole = shown(answer(of, user_id=user, candidates=candidates_of(user)))
    brought = {"history": HISTORIES[user], "context": {"place": NOW[user % 4]}, "attributes": {"age": 20 + user}}
    fresh = answer(of, candidates=candidates_of(user), **brought)
    assert shown(fresh) == whole and not fresh.known and fresh.user_id is None
    for name, other in (("history", [3, 1]), ("context", {"place": "w42"}), ("attributes", {"age": 7})):
        changed = shown(answer(of, candidates=candidates_of(user), **(brought | {name: other})))
        assert {item: score for _, item, score in changed} != {item: score for _, item, score in whole}, name
        over = shown(answer(of, candidates=candidates_of(user), user_id=user, **{name: other}))
        assert [item for _, item, _ in over] == [item for _, item, _ in changed]
    nobody = answer(of, user_id=4711, candidates=[3, 4])
    assert not nobody.known and len(nobody.items) == 2
    assert shown(nobody) == shown(answer(of, history=[], candidates=[3, 4]))


def test_what_is_no_candidate_is_told_and_the_rules_of_score_hold(made: Made, tmp_path: Path) -> None:
    buckets.write_parquet(pa.table({"item_id": [8]}), f"{tmp_path}/blocked.parquet")
    of = ranking(made("text", score={"blocked_items": f"{tmp_path}/blocked.parquet"}))
    found = answer(of, history=[1, 99, 2], candidates=[7, 2, 500, 7, 8, 9, -1], top_k=1)
    assert {i.item_id for i in found.items} < {7, 9} and len(found.items) == 1
    assert found.set_aside == [
        {"item_id": 500, "reason_code": "unknown_item"}, {"item_id": -1, "reason_code": "unknown_item"},
        {"item_id": 7, "reason_code": "duplicate_candidate"},
    ]  # fmt: skip
    assert (found.filtered, found.unknown_history) == ([2, 8], [99])
    nothing = answer(of, history=[1], candidates=[1, 500])
    assert nothing.items == [] and nothing.filtered == [1]


def test_lists_are_chosen_as_by_the_score_job(made: Made) -> None:
    rerank = {"method": "mmr", "trade": 0.7, "by": ["kind"], "quotas": {"kind": 2}, "window": 9}
    wanted = made("text", rerank=rerank, recall={"popularity": {"top": 5}})
    of, job, plain = ranking(wanted), by_job(wanted), ranking(made("text"))
    lists = {}
    for user in range(USERS):
        found = answer(of, user_id=user, candidates=candidates_of(user))
        assert [i.item_id for i in found.items] == [item for _, item, _, _ in job[user]]
        lists[user] = [i.item_id for i in found.items]
    best = {u: [i.item_id for i in answer(plain, user_id=u, candidates=candidates_of(u)).items] for u in range(USERS)}
    assert lists != best


FUSED = {
    "fusion": {"method": "linear", "item_weights": {"price": 0.3}},
    "rerank": {"method": "mmr", "trade": 0.7, "by": ["kind"], "window": 9, "reserve": {"item_item": 2}},
    "recall": {"merge": ["popularity", "item_item"]},
}  # fmt: skip


def recalled(layout: Layout, ranker: str) -> None:
    """What two sources say of the candidates, the second one not of all; and weights for them and the ranker."""
    for uri in buckets.bucket_files(layout.candidates()).values():
        table = buckets.read_parquet(uri)
        told: dict[str, list[list[Any]]] = {"sources": [], "recall_score_popularity": [], "recall_score_item_item": []}
        for user, items in zip(*(table[name].to_pylist() for name in ("user_id", "item_ids")), strict=True):
            draw = np.random.default_rng(user + 99)
            told["sources"].append(["item_item" if i % 3 == 0 else "popularity" for i in items])
            told["recall_score_popularity"].append(draw.normal(size=len(items)).tolist())
            told["recall_score_item_item"].append([draw.random() if i % 3 == 0 else None for i in items])
        columns = {name: pa.array(lists, pa.list_(pa.string() if name == "sources" else pa.float32()))
                   for name, lists in told.items()}  # fmt: skip
        buckets.write_parquet(pa.table({name: table[name] for name in table.column_names} | columns), uri)
    known = Fusion(("ranker", "popularity", "item_item"), ("z_score",), (0.7, 1.0, 0.4), "", 1.0, 0.8, 9)
    fitted = Fitted(known, {}, replace(known, weights=(0.1, -1.0, 0.9), found=0.3), ranker)
    storage.write_bytes(layout.fusion, fitted.to_json())


def fused(made: Made, **sections: Any) -> config.Config:
    wanted = made("text", **(FUSED | sections))
    prices = buckets.read_parquet(Layout.of(wanted).items)
    price = prices["price"].to_numpy() + 1.0
    at = prices.schema.get_field_index("price")
    buckets.write_parquet(prices.set_column(at, "price", pa.array(price)), Layout.of(wanted).items)
    recalled(Layout.of(wanted), run.to_serve(wanted, Layout.of(wanted)).model_version)
    return wanted


def test_what_recall_brought_of_a_user_ranks_as_by_the_score_job(made: Made) -> None:
    wanted = fused(made)
    of, job = ranking(wanted), by_job(wanted)
    asks = [asked(of, user_id=u) if u % 3 else asked(of, user_id=u, candidates=candidates_of(u)) for u in range(USERS)]
    lists = of.rank(asks)
    for user, found in enumerate(lists):
        assert isinstance(found, Answer) and len(found.items) == 5
        if user % 3 == 0:  # it named its candidates
            assert all(i.score == i.ranker_score and i.probability is None for i in found.items)
            continue
        assert [(i.rank, i.item_id) for i in found.items] == [(rank, item) for rank, item, _, _ in job[user]]
        scores = [(i.score, i.ranker_score) for i in found.items]
        np.testing.assert_allclose(scores, [(s, r) for _, _, s, r in job[user]], rtol=1e-4, atol=1e-4)
        assert all(0 < (i.probability or 0) < (0.3 if not HISTORIES[user] else 0.8) for i in found.items)
    assert len(of.named.rules.ids) == ITEMS and not HISTORIES[0] and HISTORIES[1] and not HISTORIES[6]
    alone = answer(of, user_id=6)
    assert [i.item_id for i in alone.items] == [item for _, item, _, _ in job[6]]


def test_a_fresh_history_is_read_with_what_recall_brought(made: Made) -> None:
    wanted = fused(made)
    of = ranking(wanted)
    stored, user = answer(of, user_id=5), 5
    assert answer(of, user_id=user, history=HISTORIES[user]) == stored
    new = stored.items[0].item_id
    fresh = answer(of, user_id=user, history=[*HISTORIES[user], new])
    assert fresh.filtered == [new] and new not in [i.item_id for i in fresh.items]
    told = {i.item_id: i.ranker_score for i in stored.items}
    assert all(i.ranker_score != told[i.item_id] for i in fresh.items if i.item_id in told)


def test_whose_candidates_nobody_knows_must_name_some(made: Made) -> None:
    wanted = fused(made)
    of = ranking(wanted)
    (nobody,) = of.rank([asked(of, history=[1, 2])])
    assert isinstance(nobody, InvalidError) and str(nobody).startswith("candidates: missing; name some, or a user_id")
    known, stranger = of.rank([asked(of, user_id=1), asked(of, user_id=4711)])
    assert isinstance(known, Answer) and isinstance(stranger, InvalidError)
    assert "has none of this user; name some" in str(stranger)
    storage.delete(Layout.of(wanted).fusion)
    of = ranking(wanted)
    (unfitted,) = of.rank([asked(of, user_id=1)])
    assert isinstance(unfitted, InvalidError) and "is not fitted; name some" in str(unfitted)
    assert answer(of, user_id=1, candidates=[1, 2]).items
    forgotten.add(Layout.of(wanted), ["1"])
    plain = ranking(made("text"))
    (gone,) = plain.rank([asked(plain, user_id=1)])
    assert isinstance(gone, InvalidError) and "has none of this user" in str(gone)
    storage.delete(Layout.of(wanted).candidates())
    of = ranking(wanted)
    (none,) = of.rank([asked(of, user_id=2)])
    assert isinstance(none, InvalidError) and "there is no candidates table; name some" in str(none)


def test_a_candidates_table_of_ones_own_may_hold_anything(made: Made, tmp_path: Path) -> None:
    wanted = made("text", score={"candidates": f"{tmp_path}/own"})
    for b in range(BUCKETS):
        own = {"user_id": pa.array([5, 5, 5], pa.int64()), "item_id": pa.array([3, None, 77], pa.int64())}
        there = buckets.bucket_of(pa.array([5], pa.int64()), BUCKETS)[0] == b
        buckets.write_parquet(pa.table(own).slice(0, 3 * there), buckets.bucket_file(wanted.score.candidates, b))
    found = answer(ranking(wanted), user_id=5)
    assert [i.item_id for i in found.items] == [3]
    assert {(of["item_id"], of["reason_code"]) for of in found.set_aside} == {(None, "null_id"), (77, "unknown_item")}


def test_named_candidates_are_ranked_by_the_ranker_alone(made: Made) -> None:
    of = answer(ranking(fused(made)), user_id=3, candidates=candidates_of(3))
    assert shown(of) == shown(answer(ranking(made("text")), user_id=3, candidates=candidates_of(3)))


def test_a_request_that_the_model_cannot_take_leaves_the_others_alone(made: Made, monkeypatch: Any) -> None:
    of = ranking(made("text"))
    request = of.scorer.prompts.request

    def refusing(opening: np.ndarray, history: np.ndarray, *rest: Any) -> Any:
        if 23 in history:
            raise UserError("too long for this model")
        return request(opening, history, *rest)

    monkeypatch.setattr(type(of.scorer.prompts), "request", lambda self, *given: refusing(*given))
    asks = [asked(of, history=[h], candidates=[1, 2]) for h in (3, 23, 4)]
    first, refused, last = of.rank(asks)
    assert isinstance(refused, UserError) and "too long" in str(refused)
    assert isinstance(first, Answer) and isinstance(last, Answer) and len(first.items) == len(last.items) == 2


def test_buckets_of_users_are_kept_as_long_as_there_is_room(made: Made) -> None:
    of = ranking(made("text", serve={"buckets_kept": 1}))
    for user in range(USERS):
        known = of.users.find(user)
        assert known is not None and known.history == HISTORIES[user] and of.users.bucket.cache_info().currsize == 1
        assert known.context == {"place": NOW[user % 4]} and known.opening == (f"w{20 + user} " if user % 3 else "w ")
    assert of.users.find(ITEMS * 100) is None


def test_no_model_is_one_line(made: Made) -> None:
    wanted = made("text")
    gone = wanted.model_copy(update={"score": wanted.score.model_copy(update={"model": "/nowhere"})})
    with pytest.raises(UserError, match="/nowhere: no such directory"):
        ranking(gone)


def test_ranking_needs_no_ray(made: Made, tmp_path: Path) -> None:
    wanted = made("text")
    file = tmp_path / "config.json"
    file.write_text(json.dumps(wanted.model_dump(mode="json", exclude_unset=True)))
    code = f"""
import json, sys
from llmrec import config
from llmrec.layout import Layout
from llmrec.serving.ranking import Ranking
from llmrec.serving import web
from llmrec.serving.request import parse
wanted = config.load({str(file)!r})
of = Ranking(wanted, Layout.of(wanted))
print(len(of.rank([parse(b'{{"candidates": [1, 2]}}', of.bounds)])[0].items), "ray" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.split() == ["2", "False"], done.stderr


def test_buckets_whose_files_are_encoded_otherwise_go_together(tmp_path: Path) -> None:
    """Ids as texts are a dictionary in a file where they repeat, and none in another."""
    users = pa.array([f"u{u}" for u in range(60)])
    which = buckets.bucket_of(users, 2)
    lists = [["a", "b"] if b == 0 else [f"item-{u}-{i}" for i in range(300)] for u, b in enumerate(which)]
    layout = Layout(str(tmp_path))
    for b in range(2):
        table = pa.table({"user_id": users, "item_ids": lists}).filter(pa.array(which == b))
        buckets.write_parquet(table, buckets.bucket_file(layout.candidates(), b))
    kinds = {str(requests.read_candidates(buckets.bucket_file(layout.candidates(), b)).schema) for b in range(2)}
    assert len(kinds) == 2
    job = SimpleNamespace(score=config.Score(), layout=layout, buckets=2)
    asked_for = [f"u{int(np.flatnonzero(which == b)[0])}" for b in range(2)]
    found = Recalled(job, pa.string(), 4).of(asked_for)
    assert found["user_id"].to_pylist() == [0, 1]
    assert [len(items) for items in found["item_ids"].to_pylist()] == [2, 300]
    moved = SimpleNamespace(score=config.Score(), layout=layout, buckets=1)
    with pytest.raises(UserError, match=r"bucket 1 is beyond data.buckets = 1; recall again"):
        Recalled(moved, pa.string(), 4)
