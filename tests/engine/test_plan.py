"""A plan beside the run that it plans, on a cluster; and what it refuses."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from llmrec import cli, config
from llmrec.engine import plan, score, session
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.tables import buckets

USERS, ITEMS, CANDIDATES, EVENTS, BUCKETS = 60, 40, 12, 4, 3
LAST_IN_LISTS = ITEMS + 1  # no such item


def quietly(message: str) -> None:
    """A `say`."""


@pytest.fixture(scope="module")
def values(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A configuration over tables of users with equally many candidates, of which one is unknown."""
    root = tmp_path_factory.mktemp("plan")
    layout, rng = Layout(str(root)), np.random.default_rng(0)
    buckets.write_parquet(pa.table({"item_id": range(ITEMS), "title": [f"w{i}" for i in range(ITEMS)]}), layout.items)
    of = buckets.bucket_of(pa.array(range(USERS)), BUCKETS)
    for b in range(BUCKETS):
        users = np.flatnonzero(of == b)
        drawn = [rng.permutation(ITEMS).tolist() for _ in users]
        lists = [[*d[: CANDIDATES - 1], LAST_IN_LISTS] for d in drawn]
        for where, column in ((layout.candidates(), lists), (layout.histories, [d[-EVENTS:] for d in drawn])):
            table = pa.table({"user_id": users, "item_ids": pa.array(column, pa.list_(pa.int64()))})
            buckets.write_parquet(table, buckets.bucket_file(where, b))
    return {
        "root": str(root),
        "model": {"base": str(tiny_model), "items": "text", "head": "linear"},
        "prompt": {"before_history": "w0", "before_item": "", "after_item": " \n", "max_history": EVENTS},
        "score": {
            "model": "base", "top_k": 5, "max_constant_users": 1, "max_tied": 1, "price_per_hour": 3.6,
            "precision": "float32", "exclude_seen": False,
        },
    }  # fmt: skip


@pytest.mark.usefixtures("cluster")
def test_a_plan_counts_what_the_run_then_does(values: dict[str, Any]) -> None:
    settings = config.build(values)
    layout = Layout.of(settings)
    planned = plan.plan(settings, layout, quietly, seconds=1)
    assert planned.pairs == {"in": USERS * CANDIDATES, "to_score": USERS * (CANDIDATES - 1), "copied": 0}
    assert (planned.buckets, planned.done, planned.users, planned.actors) == (BUCKETS, 0, USERS, 2)
    # Sampled are all three buckets, so that nothing is in proportion.
    done = score.score(settings, layout, quietly)
    assert (planned.run_id, planned.tokens, planned.prefix_reuse) == (done.run_id, done.tokens, done.prefix_reuse)
    assert planned.pairs["to_score"] == done.pairs_scored
    assert planned.operations > 0 and 0 < (planned.mfu or 0) < 2 and 0 < (done.mfu or 0) < 2
    assert planned.cost == pytest.approx(planned.hours * 2 * 3.6)
    assert (planned.output_mb or 0) > 0 and (planned.actor_mb or 0) > 50 and planned.bucket_mb > 0

    after = plan.plan(settings, layout, quietly, seconds=1)
    assert (after.buckets, after.done, after.hours, after.cost) == (0, BUCKETS, 0.0, 0.0)

    # A daily run after it: nobody has changed but one bucket.
    table = buckets.read_parquet(buckets.bucket_file(layout.histories, 0))
    changed = table.set_column(1, "item_ids", pa.array([[1, 2]] * table.num_rows, pa.list_(pa.int64())))
    buckets.write_parquet(changed, buckets.bucket_file(layout.histories, 0))
    daily = {**values, "score": {**values["score"], "reuse": done.run_id}}
    again = plan.plan(config.build(daily), layout, quietly, seconds=1)
    assert again.pairs["copied"] == (USERS - table.num_rows) * (CANDIDATES - 1)
    assert again.pairs["to_score"] + again.pairs["copied"] == done.pairs_scored


@pytest.mark.usefixtures("cluster")
def test_a_gpu_is_planned_by_its_published_rate(values: dict[str, Any]) -> None:
    settings = config.build({**values, "score": {**values["score"], "gpus_per_actor": 1, "max_actors": 3, "top_k": 4}})
    layout = Layout.of(settings)
    mfu = 1e-6  # or so small a model would be computed faster than it is packed
    found = plan.plan(settings, layout, quietly, gpu="H100", mfu=mfu)
    by_arithmetic = 3 * found.pairs["to_score"] * mfu * plan.GPUS["H100"] / found.operations
    assert found.pairs_per_second == pytest.approx(by_arithmetic) and found.packed_per_second > by_arithmetic
    assert (found.actors, found.actors_calibrated, found.output_mb) == (3, 0, None)
    with pytest.raises(UserError, match="--gpu H900: not known; one of L4, "):
        plan.plan(settings, layout, quietly, gpu="H900")


@pytest.mark.usefixtures("cluster")
def test_actors_that_fit_nowhere_are_refused(values: dict[str, Any]) -> None:
    settings = config.build({**values, "score": {**values["score"], "gpus_per_actor": 1, "top_k": 3}})
    with pytest.raises(UserError, match=r"no actor fits: .*score\.gpus_per_actor = 1, free are .* 0 GPUs; name"):
        plan.plan(settings, Layout.of(settings), quietly)


def test_makespan() -> None:
    assert plan.makespan([4, 3, 2, 2], 2) == 6
    assert plan.makespan([5.0], 4) == 5.0


def test_a_budget_refuses_what_is_dearer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = {"in": 10, "to_score": 10, "copied": 0}
    made = plan.Plan(
        "r", "m", "this cluster", 1, 0, 1, nothing, 5, 1.0, 1.0, 2, 2, 10, 1.0, 1.0, 1.0, 0.5, 1.0, 2.0, 8.0, 1.0, 1.0,
        1.0, 1.0,
    )  # fmt: skip
    monkeypatch.setattr(plan, "plan", lambda *_: made)
    monkeypatch.setattr(session, "connected", lambda *_: contextlib.nullcontext())
    command = ["plan", "--root", str(tmp_path), "--score.price_per_hour", "2", "--json", f"{tmp_path}/plan.json"]
    ran = CliRunner().invoke(cli.app, [*command, "--budget", "8"])
    assert ran.exit_code == 0, ran.output
    assert "8.00" in ran.output and "2.00 hours" in ran.output
    assert (tmp_path / "plan.json").exists()
    dear = CliRunner().invoke(cli.app, [*command, "--budget", "7.5"])
    assert str(dear.exception) == ("the run would cost 8.00, more than --budget 7.50: 2.00 hours of 2 actors at 2")
    free = CliRunner().invoke(cli.app, ["plan", "--root", str(tmp_path), "--budget", "1"])
    assert "score.price_per_hour is not set" in str(free.exception)
