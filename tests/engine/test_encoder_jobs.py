"""An encoder in a training worker's steps and in a scoring actor, both called here: no cluster is needed for that."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy import sparse

from llmrec import config, schema
from llmrec.engine import run, tasks
from llmrec.engine import training_worker as worker
from llmrec.engine.prompts import load_prompts
from llmrec.engine.scorer import ModelScorer
from llmrec.engine.watch import Beating
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.ranker.cost import Load
from llmrec.ranker.examples import Recaller, sample_last
from llmrec.ranker.model import Ranker
from llmrec.ranker.objective import loss_of, request_of
from llmrec.ranker.tuning import prepare_tuning
from llmrec.tables import buckets

USERS, EVENTS, ITEMS, CANDIDATES = 8, 6, 20, 10
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices are quicker on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def prepared(tmp_path: Path, tiny_encoder: Path) -> config.Config:
    """Tables as prepare and recall leave them, in one bucket. A trunk opens with two tokens, an item has two."""
    layout, rng = Layout(str(tmp_path)), np.random.default_rng(0)
    drawn = [rng.permutation(ITEMS).tolist() for _ in range(USERS)]
    users = list(range(USERS))
    buckets.write_parquet(
        pa.table({"item_id": list(range(ITEMS)), "title": [f"w{i}" for i in range(ITEMS)]}), layout.items
    )
    histories = [users, [d[:EVENTS] for d in drawn], [list(range(EVENTS))] * USERS, [EVENTS - 1] * USERS]
    candidates = [users, [d[-CANDIDATES:] for d in drawn], [[0.0] * CANDIDATES] * USERS, [["x"] * CANDIDATES] * USERS]
    for columns, form, where in (
        (histories, schema.histories, layout.histories),
        (candidates, schema.candidates, layout.candidates()),
    ):
        made = pa.table(columns, schema=form(pa.int64(), pa.int64()))
        buckets.write_parquet(made, buckets.bucket_file(where, 0))
    return config.build({
        "root": str(tmp_path),
        "model": {"base": str(tiny_encoder), "items": "text", "head": "linear"},
        "prompt": {"before_history": "w0", "before_item": "", "after_item": " \n", "max_history": EVENTS},
        "train": {"negatives": 3, "hard_share": 0.0, "batch_tokens": 64},
        "score": {"batch_tokens": 64, "precision": "float32", "max_constant_users": 1, "max_tied": 1},
    })  # fmt: skip


def scored(settings: config.Config) -> tuple[Load, Any]:
    """What an actor counts in the bucket, and its probe."""
    job, units = run.resolve(settings, Layout.of(settings))
    work = tasks.judged(units[0], job, tasks.rules(job))
    scorer = ModelScorer(job, Beating(None), ModelScorer.shared(job))
    scores = np.concatenate(scorer.score(work, range(USERS)))
    assert len(scores) == USERS * CANDIDATES and len(set(scores.tolist())) > USERS
    return scorer.load(work), scorer.probe


def test_steps_learn_and_what_they_save_scores_by_branches(prepared: config.Config) -> None:
    layout, train = Layout.of(prepared), prepared.train
    ranker = Ranker.from_base(prepared.model, prepared.prompt, prepared.model.base)
    prompts = load_prompts(ranker, layout)
    prepare_tuning(ranker, train)
    recaller = Recaller(sparse.csr_matrix(np.ones((ITEMS, ITEMS), np.float32)), 0.9, ITEMS, np.arange(ITEMS))
    table = buckets.read_parquet(layout.histories)
    rows = worker.known_histories(table, prompts.catalogue.ids, training_only=True)
    rng = np.random.default_rng(0)
    examples = [sample_last(rows[i].astype(np.int64), train, EVENTS, recaller, rng) for i in range(USERS)]
    requests = [request_of(e, prompts.prefix(i), prompts.catalogue, ranker) for i, e in enumerate(examples)]
    assert [len(r.branches) for r in requests] == [1 + 3] * USERS
    optimizer = torch.optim.AdamW([p for p in ranker.parameters() if p.requires_grad], lr=0.01)
    objective = partial(loss_of, train=train, choices=None, decisions=USERS, lessons=1)
    on = {"train": train, "dtype": torch.float32, "device": CPU, "world": 1}
    losses = []
    for _ in range(20):
        losses.append(worker._step(ranker.eval(), ranker.causal, requests, examples, objective, **on))
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.5 * losses[0]
    held = worker.held_out(table, prompts, recaller, train, everywhere=False, rank=0, world=1)
    metric = worker._validate(ranker, prompts, held, train, torch.float32, CPU, 1)
    # A checkpoint holds it, and is read back with nothing in it but plain types and tensors.
    assert type(metric) is float and 0 < metric < 1

    ranker.save_pretrained(layout.ranker, "")
    assert Ranker.from_pretrained(layout.ranker).card.packing == "branches"
    load, probe = scored(prepared)
    trunk, item = 2 + 2 * EVENTS, 2
    assert load.tokens == USERS * (trunk + CANDIDATES * item)
    assert load.alone == USERS * CANDIDATES * (trunk + item)
    assert probe.difference < 1e-5


def test_an_untouched_encoder_counts_every_pair_whole(prepared: config.Config) -> None:
    ranker = Ranker.from_base(prepared.model, prepared.prompt, prepared.model.base)
    torch.nn.init.normal_(ranker.head.weight)
    ranker.save_pretrained(Layout.of(prepared).ranker, "")
    load, probe = scored(prepared)
    assert load.tokens == load.alone == USERS * CANDIDATES * (2 + 2 * EVENTS + 2)
    assert probe.difference < 1e-5


def test_histories_longer_than_its_positions_are_refused(prepared: config.Config) -> None:
    words = 32 - 1 - 2 * EVENTS - 2
    long = prepared.prompt.model_copy(update={"before_history": " ".join(["w0"] * (words + 1))})
    Ranker.from_base(prepared.model, long, prepared.model.base).save_pretrained(Layout.of(prepared).ranker, "")
    with pytest.raises(UserError, match=r"take 33 positions, and this model has 32; lower prompt\.max_history"):
        scored(prepared)
