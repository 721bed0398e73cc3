"""What the pipeline keeps of a published run to compare the next with. No cluster: units run one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from llmrec import config, storage
from llmrec.engine import drift, ledger
from llmrec.engine.drift import OF_SCORES, SCORES, SHOWN_MIX, Profile
from llmrec.layout import Layout
from llmrec.tables import buckets


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    def each(
        units: Sequence[Mapping[str, Any]], function: Callable[..., pa.Table], arguments: Mapping[str, Any]
    ) -> Iterator[dict[str, Any]]:
        for unit in units:
            yield from function(pa.Table.from_pylist([dict(unit)]), **arguments).to_pylist()

    monkeypatch.setattr(drift, "each", each)
    return Layout(str(tmp_path))


def stage(layout: Layout, run_id: str, scores: np.ndarray, items: np.ndarray) -> None:
    halves = np.array_split(np.arange(len(scores)), 2)
    for bucket, rows in enumerate(halves):
        path = f"{run_id}-{bucket}.parquet"
        table = pa.table({
            "item_id": items[rows], "score": scores[rows].astype(np.float32), "source": ["item_item"] * len(rows),
        })  # fmt: skip
        size = buckets.write_parquet(table, storage.join(layout.rankings, path))
        counts = {"pairs_in": len(rows)} | {name: len(rows) * (name == "ranked") for name in ledger.ENDS}
        ledger.write(layout, run_id, ledger.Entry(bucket, path, size, len(rows), len(rows), counts, 1.0, None, 1, None))
    storage.write_json(layout.run_summary(run_id), {"output": layout.rankings, "staged": 2})


def psi(now: Profile, before: Profile | None) -> dict[str, float]:
    return {of.of: of.psi for of in drift.compare(config.Drift(), now, before, OF_SCORES).drifts}


def test_each_published_run_is_compared_in_tenths_of_the_one_before(layout: Layout) -> None:
    """A ranker's scores wander; those of today beside those of yesterday say whether something has happened."""
    rng, inputs = np.random.default_rng(0), Profile({}, None, [], None)
    found = []
    for day in range(4):
        scores = rng.normal(0.2 * day, 1, 4000)
        stage(layout, f"run{day}", scores, rng.integers(50, size=4000))
        before = drift.reference(layout)
        now, kept = drift.profile_scores(inputs, layout, f"run{day}", before, lambda line: None)
        found.append(psi(now, before).get(SCORES))
        drift.keep(kept, layout)
        reference = drift.reference(layout)
        assert reference is not None
        tenths = np.histogram(scores, [-np.inf, *np.quantile(scores, np.linspace(0.1, 0.9, 9)), np.inf])[0]
        assert np.abs(np.asarray(list(reference.counts[SCORES].values())) - tenths).max() <= 2
        again, _ = drift.profile_scores(inputs, layout, f"run{day}", reference, lambda line: None)
        assert set(psi(again, reference).values()) == {0.0}
    assert found[0] is None
    assert all(0 < moved < 0.1 for moved in found[1:] if moved is not None), "a step a day, not four at once"


def test_items_that_nobody_is_shown_any_more_are_forgotten(layout: Layout) -> None:
    inputs = Profile({}, None, [], None)
    for day in range(3):
        stage(layout, f"run{day}", np.arange(300.0), np.repeat(np.arange(100) + 100 * day, 3))
        now, kept = drift.profile_scores(inputs, layout, f"run{day}", drift.reference(layout), lambda line: None)
        assert len(now.counts[SHOWN_MIX]) == (101 if day == 0 else 201)
        drift.keep(kept, layout)
