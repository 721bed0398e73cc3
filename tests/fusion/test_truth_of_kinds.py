from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from llmrec.engine.fuse import _with_truth
from llmrec.schema import histories
from llmrec.tables import buckets


@pytest.mark.parametrize(("weighted", "wanted"), [(True, [True, False, False]), (False, [True, True, False])])
def test_the_heaviest_events_that_validate_are_the_truth(tmp_path: Path, weighted: bool, wanted: list[bool]) -> None:
    """Item 1 was bought and then item 2 viewed; item 3 was bought in training."""
    schema = histories(pa.int64(), pa.int64(), weighted=weighted)
    columns = {"user_id": [7], "item_ids": [[3, 1, 2]], "timestamps": [[1, 2, 3]], "train_length": [1],
               "weights": [[5.0, 1.0, 0.5]]}  # fmt: skip
    past, parts = str(tmp_path / "histories.parquet"), str(tmp_path / "parts.parquet")
    buckets.write_parquet(pa.table({name: columns[name] for name in schema.names}, schema=schema), past)
    scores = pa.array([[0.1, 0.2, 0.3]], pa.list_(pa.float32()))
    buckets.write_parquet(
        pa.table({"user_id": [7], "item_ids": [[1, 2, 3]], "scores": scores, "score_ranker": scores}), parts
    )
    _, true = _with_truth(parts, past, pa.array([1, 2, 3]))
    assert true.tolist() == wanted
