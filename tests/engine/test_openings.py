"""What a bucket's trunks say of their users: against the templates filled by hand and tokenised one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from llmrec import config
from llmrec.engine import run, tasks, work_rows
from llmrec.engine.scorer import ModelScorer
from llmrec.engine.watch import Beating
from llmrec.layout import Layout
from llmrec.tables import buckets, subsets
from llmrec.tables.users import openings

PROMPT = {"user": "w{age} ", "before_history": "w0", "before_item": "", "after_item": " \n"}


def test_openings_follow_the_users_and_are_null_for_strangers(tmp_path: Path) -> None:
    buckets.write_parquet(pa.table({"user_id": [3, 1, 5], "age": [30, None, 50]}), f"{tmp_path}/users.parquet")
    prompt = config.Prompt(**PROMPT)
    for users, wanted in (([1, 2, 3], ["w ", None, "w30 "]), ([2], [None]), ([], [])):
        assert openings(pa.array(users, pa.int64()), f"{tmp_path}/users.parquet", prompt).to_pylist() == wanted


@pytest.mark.parametrize("known", [True, False])
def test_an_actor_opens_each_trunk_with_its_users_own_text(tmp_path: Path, tiny_model: Path, known: bool) -> None:
    layout = Layout(str(tmp_path))
    buckets.write_parquet(pa.table({"item_id": range(9), "title": [f"w{i}" for i in range(9)]}), layout.items)
    lists = pa.table({"user_id": [1, 2, 3], "item_ids": [[1, 2], [3], [4, 5, 6]]})
    for where in (layout.candidates(), layout.histories):
        buckets.write_parquet(lists, buckets.bucket_file(where, 0))
    if known:
        table = pa.table({"user_id": [3, 1], "age": [30, 10]})
        buckets.write_parquet(table, buckets.bucket_file(layout.users, 0))
    settings = config.build({
        "root": str(tmp_path), "model": {"base": str(tiny_model), "items": "text", "head": "linear"}, "prompt": PROMPT,
        "score": {"model": "base", "precision": "float32", "exclude_seen": False, "probe_users": 0},
    })  # fmt: skip
    job, (unit,) = run.resolve(settings, layout)
    work = work_rows.from_row(
        work_rows.to_row(work_rows.Bucket(0, "c", tasks.judged(unit, job, tasks.rules(job))))
    ).work
    assert (work.openings is None) is not known
    scorer = ModelScorer(job, Beating(None), ModelScorer.shared(job))
    words = scorer.replica.ranker.tokenizer
    texts = ["w10 w0", "w0", "w30 w0"] if known else ["w0"] * 3
    wanted = [[0, *words(text, add_special_tokens=False)["input_ids"]] for text in texts]
    assert [tokens.tolist() for tokens in scorer._openings(work, range(3))] == wanted
    assert scorer.load(work).tokens == sum(len(w) for w in wanted) + 2 * (6 + 6)
    together = scorer.score(work, [0, 1, 2])
    for user in range(3):
        alone = scorer.score(subsets.only(work, np.asarray([user])), [0])[0]
        np.testing.assert_allclose(alone, together[user], rtol=1e-5, atol=1e-6)
    assert (scorer.fingerprints(work)[0] == scorer.fingerprints(subsets.only(work, np.asarray([0])))[0]).all()
