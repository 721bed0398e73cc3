"""What a run is named by: whatever its rows depend on, and nothing else. No cluster."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import staging
from served import settings_of

from llmrec import config, schema, storage
from llmrec.engine import explain, ledger, run, tasks
from llmrec.errors import UserError
from llmrec.fusion.ablations import Fitted
from llmrec.fusion.model import Fusion
from llmrec.layout import Layout
from llmrec.tables import buckets, embeddings


def run_id(wanted: config.Config) -> str:
    return run.resolve(wanted, Layout.of(wanted))[0].run_id


def blocked(tmp_path: Path, items: list[int]) -> str:
    buckets.write_parquet(pa.table({"item_id": items}), f"{tmp_path}/blocked.parquet")
    return f"{tmp_path}/blocked.parquet"


def test_a_ranker_that_is_not_trained_yet_is_one_line(tmp_path: Path, tiny_model: Path) -> None:
    wanted = settings_of(str(tmp_path), tmp_path, tiny_model, "text", {})
    wanted = wanted.model_copy(update={"score": wanted.score.model_copy(update={"model": ""})})
    shutil.rmtree(Layout.of(wanted).ranker, ignore_errors=True)
    with pytest.raises(UserError, match=r"/models/ranker: there is no ranker yet; run jobs/train\.py first") as caught:
        run_id(wanted)
    assert "\n" not in str(caught.value)


def test_another_block_list_is_another_run(tmp_path: Path, tiny_model: Path) -> None:
    uri = blocked(tmp_path, [3])
    wanted = settings_of(str(tmp_path), tmp_path, tiny_model, "text", {"score": {"blocked_items": uri}})
    first = run_id(wanted)
    assert run_id(wanted) == first
    blocked(tmp_path, [3, 4])
    assert run_id(wanted) != first


def test_other_edges_are_another_run_where_they_lock_items(tmp_path: Path, tiny_model: Path) -> None:
    def edges(tail: str) -> None:
        rows: list[list[Any]] = [[1], ["needs"], [tail], [1.0]]
        buckets.write_parquet(pa.table(rows, schema=schema.edges(pa.int64())), Layout(str(tmp_path)).edges)

    edges("2")
    plain = settings_of(str(tmp_path), tmp_path, tiny_model, "text", {})
    locking = settings_of(str(tmp_path), tmp_path, tiny_model, "text", {"score": {"requires": "needs"}})
    before = run_id(plain), run_id(locking)
    edges("3")
    assert run_id(plain) == before[0] and run_id(locking) != before[1]


@pytest.mark.parametrize(
    ("ids", "given"),
    [
        (pa.array(["a", "b", "c"]), pa.array(["a", "c", "a"]).dictionary_encode()),
        (pa.array(["a", "b", "c"]), pa.array(["c", "a"], pa.large_string())),
        (pa.array([1, 2, 3], pa.int64()), pa.array([1, 3, None], pa.uint16())),
    ],
)
def test_a_block_list_is_of_any_type_that_ids_have(ids: pa.Array, given: pa.Array, tmp_path: Path) -> None:
    layout, uri = Layout(str(tmp_path)), f"{tmp_path}/blocked.parquet"
    buckets.write_parquet(pa.table({"item_id": ids}), layout.items)
    buckets.write_parquet(pa.table({"item_id": given}), uri)
    rules = tasks.of_candidates(config.Score(blocked_items=uri), layout)
    assert rules.blocked.tolist() == [True, False, True]


def test_workers_elsewhere_find_the_block_list(tmp_path: Path, tiny_model: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    blocked(tmp_path, [3])
    wanted = settings_of(str(tmp_path), tmp_path, tiny_model, "text", {"score": {"blocked_items": "blocked.parquet"}})
    job, _ = run.resolve(wanted, Layout.of(wanted))
    assert job.score.blocked_items == f"{tmp_path}/blocked.parquet"


def test_weights_of_another_ranker_are_refused_unless_they_are_named(tmp_path: Path, tiny_model: Path) -> None:
    weights = Fusion(("ranker", "item_item"), ("z_score",), (1.0, 0.5), "", 1.0, 1.0, 9)
    wanted = settings_of(str(tmp_path), tmp_path, tiny_model, "text", {"fusion": {"method": "linear"}})
    layout, version = Layout.of(wanted), run.to_serve(wanted, Layout.of(wanted)).model_version
    storage.write_bytes(layout.fusion, Fitted(weights, {}, None, version).to_json())
    fused = run_id(wanted)
    storage.write_bytes(layout.fusion, Fitted(weights, {}, None, "yesterdays").to_json())
    with pytest.raises(UserError, match=rf"fitted with another ranker \(version yesterdays\) than .* \({version}\)"):
        run_id(wanted)
    named = wanted.model_copy(update={"fusion": wanted.fusion.model_copy(update={"model": layout.fusion})})
    assert run_id(named) == fused


def publish(job: run.Job) -> None:
    """As score and publish leave a run."""
    copied = job.earlier.run_id if job.earlier else None
    summary = {"run_id": job.run_id, "rule": job.rule, "work": job.work, "output": job.output, "buckets": job.buckets}
    storage.write_json(job.layout.run_summary(job.run_id), summary | {"reused": copied})
    staging.publish(job.output, job.run_id, range(5))


def test_a_run_that_copies_from_the_shown_one_is_that_one_where_nothing_changed(
    tmp_path: Path, tiny_model: Path
) -> None:
    """Or every day without news would make, copy and commit another."""
    sections = {"score": {"blocked_items": blocked(tmp_path, [3]), "reuse": "shown"}}
    wanted = settings_of(str(tmp_path), tmp_path, tiny_model, "text", sections)

    def resolved() -> run.Job:
        return run.resolve(wanted, Layout.of(wanted))[0]

    first = resolved()
    assert first.earlier is None
    publish(first)
    again = resolved()
    assert (again.run_id, again.earlier) == (first.run_id, None)

    blocked(tmp_path, [3, 4])
    second = resolved()
    assert second.run_id != first.run_id and second.earlier == run.Earlier(first.run_id, first.output)
    assert resolved().run_id == second.run_id, "what was cut off before it was shown goes on"
    publish(second)
    again = resolved()
    assert (again.run_id, again.earlier) == (second.run_id, second.earlier)


def test_a_shown_run_that_does_not_say_what_went_into_it_is_copied_from(tmp_path: Path, tiny_model: Path) -> None:
    wanted = settings_of(str(tmp_path), tmp_path, tiny_model, "text", {"score": {"reuse": "shown"}})
    first = run.resolve(wanted, Layout.of(wanted))[0]
    publish(first)
    where = first.layout.run_summary(first.run_id)
    storage.write_json(where, {name: value for name, value in storage.read_json(where).items() if name != "work"})
    again = run.resolve(wanted, Layout.of(wanted))[0]
    assert again.earlier == run.Earlier(first.run_id, first.output) and again.run_id != first.run_id


def test_other_attributes_of_users_are_explained_anew(tmp_path: Path, tiny_model: Path) -> None:
    """The sentences that were made before told what moved the scores of other trunks."""
    wanted = settings_of(str(tmp_path), tmp_path, tiny_model, "text", {})
    layout, (job, _) = Layout.of(wanted), run.resolve(wanted, Layout.of(wanted))
    publish(job)
    storage.write_json(
        layout.run_summary(job.run_id), storage.read_json(layout.run_summary(job.run_id)) | {"staged": 1}
    )
    nothing = dict.fromkeys(("pairs_in", *ledger.ENDS), 0)
    ledger.write(layout, job.run_id, ledger.Entry(0, "", 0, 0, 0, nothing, 0.0, None, 1, None))

    def explained() -> str:
        return explain._resolve(wanted, layout)[0].id

    first = explained()
    assert explained() == first
    uri = buckets.bucket_file(layout.users, 0)
    users = buckets.read_parquet(uri)
    buckets.write_parquet(users.set_column(1, "age", pa.array([99] * users.num_rows, pa.int64())), uri)
    assert explained() != first
    other = explained()
    storage.write_json(f"{layout.embeddings}/{embeddings.DESCRIPTION}", {"shards": ["other"]})
    assert explained() != other
