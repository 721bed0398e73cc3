from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from llmrec.config import Train
from llmrec.engine.training_worker import User
from llmrec.ranker.examples import Lesson, sample

NOTHING = Lesson(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))


@pytest.mark.parametrize("seed", range(5))
def test_decisions_of_a_window_weigh_as_the_events_of_the_whole_history(seed: int) -> None:
    """Item i of the history weighs i."""
    history = np.random.default_rng(seed).permutation(30)
    user = User(1, history, NOTHING, None, history.astype(np.float32))
    drawn = sample(history, Train(decisions_per_user=4), 9, None, np.random.default_rng(seed))
    weighed = user.weighed(drawn)
    assert weighed.weights is not None
    assert weighed.weights.tolist() == drawn.history[drawn.decisions].tolist()
    assert weighed.weight == pytest.approx(drawn.history[drawn.decisions].sum())
    assert User(1, history, NOTHING, None).weighed(drawn) is drawn


def test_weights_follow_what_is_known_of_a_batch() -> None:
    """A user's weights stand beside his events of the catalogue, those that validate left out."""
    from types import SimpleNamespace
    from typing import Any, cast

    from llmrec.engine.training_worker import _users

    batch = pa.table({
        "user_id": ["u", "v"], "item_ids": [["b", "gone", "a", "b"], ["a"]], "train_length": [3, 1],
        "weights": pa.array([[1.0, 7.0, 2.0, 3.0], [5.0]], pa.list_(pa.float32())),
    })  # fmt: skip
    task: Any = SimpleNamespace(train=Train(), prompt=SimpleNamespace(context=""), since=None)
    prompts: Any = SimpleNamespace(catalogue=SimpleNamespace(ids=pa.array(["a", "b"])), max_history=10)
    found = _users(batch, task, prompts, cast(Any, None))
    assert [user.history.tolist() for user in found] == [[1, 0], [0]]
    assert [user.weights.tolist() for user in found if user.weights is not None] == [[1.0, 2.0], [5.0]]
    assert all(user.weights is None for user in _users(batch.drop("weights"), task, prompts, cast(Any, None)))
