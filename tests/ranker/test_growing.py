"""A trained ranker's parts that go on to learn of more items and values than before."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from llmrec.config import Items
from llmrec.ranker.contexts import ContextEncoder
from llmrec.ranker.item_encoder import ItemEncoder
from llmrec.ranker.item_features import ItemFeatures

N, MORE, WIDTH = 12, 3, 8


def features(count: int) -> ItemFeatures:
    vectors = np.random.default_rng(0).normal(size=(N + MORE, 4)).astype(np.float32)
    ids = pa.array([f"i{i:02}" for i in range(count)])
    return ItemFeatures(ids, {"text": vectors[:count]}, {"text": np.ones(count, bool)}, revisions={"text": "r"})


def test_items_that_are_new_to_training_begin_where_they_were_foretold() -> None:
    torch.manual_seed(0)
    encoder = ItemEncoder.fresh(features(N), Items(), np.ones(N, bool), WIDTH, 1.0)
    torch.nn.init.normal_(encoder.bias)
    encoder.foretell()
    encoder.eval()
    encoder.bind(features(N + MORE))
    before = encoder.frozen()
    trained = np.ones(N + MORE, bool)
    trained[-1] = False
    encoder.grow(features(N + MORE), trained)
    after = encoder.frozen()
    assert torch.allclose(after.vectors, before.vectors, atol=1e-6)
    assert torch.allclose(after.bias[:-1], before.bias[:-1], atol=1e-6)
    assert len(encoder.ids) == N + MORE - 1 == encoder.plan["items"] == len(encoder.bias)
    encoder.train()
    encoder().vectors[N].sum().backward()
    assert encoder.own is not None and encoder.own.grad is not None
    assert encoder.own.grad[N].abs().sum() > 0, "the new item does not learn"


def test_what_was_learned_of_values_is_found_again_among_others() -> None:
    before = ContextEncoder({"device": ["phone", "tv"], "hour": ["1", "2"]}, WIDTH)
    torch.nn.init.normal_(before.table)
    after = before.extended({"device": ["car", "phone", "tv"], "hour": ["2", "3"]})
    vectors = torch.zeros(4, WIDTH)
    known = pa.table({"device": ["phone", "tv", "phone", "tv"], "hour": ["2", "2", "7", None]})
    both = [of(vectors, torch.from_numpy(of.codes(known))) for of in (before, after)]
    assert torch.allclose(both[0], both[1]) and both[0].abs().min() > 0
    new = pa.table({"device": ["car"] * 4, "hour": ["3"] * 4})
    assert not after(vectors, torch.from_numpy(after.codes(new))).any()
