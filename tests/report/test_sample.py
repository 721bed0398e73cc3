from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from llmrec import schema, storage
from llmrec.layout import Layout
from llmrec.report.users import sample
from llmrec.tables import buckets, rankings
from llmrec.tables.rankings import StagedFile

USERS = [f"u{i}" for i in range(12)]
COUNT = 3


def write_bucketed(table: pa.Table, uri: str) -> None:
    which = buckets.bucket_of(table["user_id"], COUNT)
    for b in range(COUNT):
        buckets.write_parquet(table.filter(pa.array(which == b)), buckets.bucket_file(uri, b))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Everyone had items 0 to 4, then 5, was shown 9, 8, 7, 6 and 5 but the last of them; u3 was shown nothing."""
    found = Layout(str(tmp_path))
    n, strings, integers = len(USERS), pa.string(), pa.int64()
    titles = pa.table({"item_id": list(range(10)), "title": [f"<title {i}>" for i in range(10)]})
    buckets.write_parquet(titles, found.items)
    past = {"user_id": USERS, "item_ids": [[0, 1, 2, 3, 4]] * n, "timestamps": [[1] * 5] * n, "train_length": [5] * n}
    write_bucketed(pa.table(past, schema.histories(strings, integers)), found.histories)
    truth = {"user_id": USERS, "item_ids": [[5], *[[7]] * (n - 1)]}
    write_bucketed(pa.table(truth, schema.targets(strings, integers)), found.targets)
    shown = [(u, r, i) for u in USERS if u != "u3" for r, i in enumerate((9, 8, 7, 6), 1)]
    wanted = schema.rankings(strings, integers)
    rows = pa.Table.from_pylist([
        {"user_id": u, "rank": r, "item_id": i, "score": 1 / r, "source": "item_item", "run_id": "one"}
        for u, r, i in shown
    ], wanted)  # fmt: skip
    which = buckets.bucket_of(rows["user_id"], COUNT)
    files = []
    for b in range(COUNT):
        part, path = rows.filter(pa.array(which == b)), rankings.staged_path("one", b)
        size = buckets.write_parquet(part, storage.join(found.rankings, path))
        files.append(StagedFile(b, path, size, part.num_rows))
    rankings.publish(found.rankings, files, COUNT, wanted, "one")
    return found


def read(layout: Layout, count: int = 12, **settings: Any) -> dict[str, dict[str, Any]]:
    asked = {"recent": 2, "places": 3} | settings
    found = sample(layout, rankings.snapshot(layout.rankings), count, **asked)
    assert len(found) == len({u["user"] for u in found}) == count
    return {u["user"]: u for u in found}


def test_a_user_with_history_list_and_what_was_held_out(layout: Layout) -> None:
    found = read(layout)
    assert set(found) == set(USERS)
    one = found["u1"]
    assert (one["events"], one["history"]) == (5, ["<title 4>", "<title 3>"])
    assert one["held_out"] == [{"item": 7, "title": "<title 7>", "rank": 3}]
    assert [(r["rank"], r["title"], r["hit"]) for r in one["rows"]] == [
        (1, "<title 9>", False), (2, "<title 8>", False), (3, "<title 7>", True),
    ]  # fmt: skip
    assert one["rows"][0] | {"score": 1.0, "source": "item_item", "probability": None, "parts": {}} == one["rows"][0]
    assert found["u0"]["held_out"][0]["rank"] is None
    assert (found["u3"]["rows"], found["u3"]["ranked"], found["u3"]["held_out"][0]["rank"]) == ([], 0, None)


def test_a_hit_beyond_the_shown_places_is_told(layout: Layout) -> None:
    one = read(layout, places=1)["u1"]
    assert (len(one["rows"]), one["ranked"], one["held_out"][0]["rank"]) == (1, 4, 3)


def test_who_is_shown_depends_on_ids_alone(layout: Layout) -> None:
    hashes = {u: xxhash.xxh64_intdigest(u.encode()) for u in USERS}
    order = sorted(USERS, key=lambda u: (hashes[u] % COUNT, hashes[u]))
    for count in (1, 4, 7):
        assert list(read(layout, count)) == order[:count]


def test_kept_parts_are_beside_the_items_that_they_are_of(layout: Layout) -> None:
    scores = np.arange(10, dtype=np.float32)
    kept = pa.table({
        "user_id": USERS, "item_ids": [list(range(10))] * 12, "scores": [scores] * 12,
        "score_ranker": [scores + n for n in range(12)], "score_item_item": [[None] * 9 + [0.5]] * 12,
    })  # fmt: skip
    write_bucketed(kept, layout.score_parts("one"))
    rows = read(layout)["u2"]["rows"]
    assert [r["parts"] for r in rows] == [
        {"ranker": 11.0, "item_item": 0.5}, {"ranker": 10.0, "item_item": None}, {"ranker": 9.0, "item_item": None},
    ]  # fmt: skip


def test_the_ends_of_a_column_by_the_footer(layout: Layout, tmp_path: Path) -> None:
    uri = str(tmp_path / "events.parquet")
    table = pa.table({"timestamps": [[5, 3], [], None, [9]], "at": [4, None, 1, 2], "none": pa.nulls(4, pa.int64())})
    buckets.write_parquet(table, uri)
    assert buckets.bounds(uri, "timestamps") == (3, 9)
    assert buckets.bounds(uri, "at") == (1, 4)
    assert buckets.bounds(uri, "none") is None and buckets.bounds(uri, "absent") is None
