"""Bad input ends in one clear line, nothing published, and what can be set aside lies in quarantine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from llmrec import config, storage
from llmrec.engine import stages
from llmrec.engine.session import user_error_in
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.tables import buckets, rankings

HERE = Path(__file__).parents[2]


def log(users: int = 30, events: int = 8, items: int = 40) -> dict[str, Any]:
    """A small log with string ids under names that need mapping."""
    rng = np.random.default_rng(0)
    rows = [
        (f"u{u}", f"i{i:02d}", 1000 + t) for u in range(users) for t, i in enumerate(rng.permutation(items)[:events])
    ]
    user, item, time = zip(*rows, strict=True)
    return {
        "items": pa.table(
            {"sku": [f"i{i:02d}" for i in range(items)], "name": [f"w{i} w{i + 1}" for i in range(items)]}
        ),
        "interactions": pa.table({"uid": list(user), "sku": list(item), "at": pa.array(time, pa.int64())}),
    }


def settings(root: Path | str, tables: dict[str, Any], base: Path, **sections: Any) -> config.Config:
    """Write the tables under the root and configure a tiny model over them."""
    for name, table in tables.items():
        buckets.write_parquet(table, storage.join(str(root), "raw", f"{name}.parquet"))
    values = {
        "root": str(root),
        "data": {
            "items": storage.join(str(root), "raw", "items.parquet"),
            "interactions": storage.join(str(root), "raw", "interactions.parquet"),
            "columns": {"user": "uid", "item": "sku", "timestamp": "at", "title": "name"},
            "buckets": 2,
        },
        "prompt": {"max_history": 6, "before_history": "w0 ", "before_item": "", "after_item": " \n"},
        "model": {"base": str(base)},
        "items": {"encoder": ""},
        "train": {"max_steps": 2, "validate_every": 1, "users_per_step": 4, "validation_users": 10},
        "recall": {"candidates": 20},
        "score": {"top_k": 5},
    }
    return config.build({k: {**v, **sections.get(k, {})} if isinstance(v, dict) else v for k, v in values.items()})


def quietly(message: str) -> None:
    """A `say` for stages."""


def failure(stage: str, wanted: config.Config) -> str:
    """The one line that a stage fails with."""
    with pytest.raises(Exception) as caught:
        stages.run(stage, wanted, quietly)
    told = user_error_in(caught.value)
    assert isinstance(told, UserError), caught.value
    assert "\n" not in str(told)
    return str(told)


@pytest.mark.usefixtures("cluster")
class TestPrepare:
    def test_bad_rows_are_set_aside_with_their_reason(self, tmp_path: Path, tiny_model: Path) -> None:
        tables = log()
        bad = pa.table({
            "uid": ["u1", None, "u2", "u3", "lonely"], "sku": ["nowhere", "i01", "i02", "i03", "i04"],
            "at": pa.array([5, 6, None, -7, 8], pa.int64()),
        })  # fmt: skip
        again = tables["interactions"].slice(0, 1)
        tables["interactions"] = pa.concat_tables([tables["interactions"], bad, again])
        wanted = settings(tmp_path, tables, tiny_model, data={"min_user_events": 3})
        summary = stages.run("prepare", wanted, quietly)
        expected = {
            "unknown_item": 1, "null_id": 1, "null_timestamp": 1, "impossible_timestamp": 1, "duplicate_event": 1,
            "too_few_events": 1,
        }  # fmt: skip
        assert summary["set_aside"] == expected
        assert summary["rows_in"] == summary["events_kept"] + sum(expected.values()) == 30 * 8 + 6
        quarantine = buckets.read_parquet(Layout.of(wanted).quarantine("prepare"))
        reasons = quarantine["reason_code"].to_pylist()
        assert {r: reasons.count(r) for r in set(reasons)} == expected
        assert set(quarantine["source_file"].to_pylist()) == {wanted.data.interactions}

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda t: {**t, "interactions": t["interactions"].drop_columns("at")}, ["'at' is missing", "uid, sku"]),
            (lambda t: {**t, "interactions": t["interactions"].slice(0, 0)}, ["interactions.parquet", "empty"]),
            (lambda t: {**t, "items": t["items"].slice(0, 0)}, ["items.parquet", "empty"]),
            (lambda t: {**t, "items": t["items"].drop_columns("name")}, ["'name' is missing"]),
            (
                lambda t: {**t, "interactions": t["interactions"].set_column(2, "at", pa.array(["x"] * 240))},
                ["'at' has type string", "no time; give unix seconds as numbers, or timestamps"],
            ),
            (
                lambda t: {
                    **t,
                    "interactions": t["interactions"].set_column(2, "at", pa.array([1_700_000_000_000] * 240)),
                },
                ["none of its 240 rows", "240 impossible_timestamp; numbers in 'at' are unix seconds", "4102444800"],
            ),
            (
                lambda t: {**t, "interactions": t["interactions"].set_column(0, "uid", pa.array([0.5] * 240))},
                ["'uid' has type double", "integers or strings"],
            ),
            (
                lambda t: {**t, "interactions": t["interactions"].set_column(1, "sku", pa.array(["gone"] * 240))},
                ["none of its 240 rows", "unknown_item"],
            ),
            (
                lambda t: {**t, "items": t["items"].slice(0, 20)},
                ["unknown_item", "data.max_bad_share = 0.1", "nothing was written"],
            ),
        ],
    )
    def test_what_cannot_be_used_is_one_line(
        self, change: Any, words: list[str], tmp_path: Path, tiny_model: Path
    ) -> None:
        wanted = settings(tmp_path, change(log()), tiny_model)
        told = failure("prepare", wanted)
        assert all(word in told for word in words), told
        assert not storage.exists(Layout.of(wanted).histories)

    def test_a_truncated_file_is_named(self, tmp_path: Path, tiny_model: Path) -> None:
        wanted = settings(tmp_path, log(), tiny_model)
        file = Path(wanted.data.interactions)
        file.write_bytes(file.read_bytes()[:-50])
        told = failure("prepare", wanted)
        assert str(file) in told and "not a readable Parquet file" in told

    def test_a_directory_without_tables_is_named(self, tmp_path: Path, tiny_model: Path) -> None:
        (tmp_path / "empty").mkdir()
        wanted = settings(tmp_path, log(), tiny_model, data={"interactions": str(tmp_path / "empty")})
        assert "no Parquet files there" in failure("prepare", wanted)


@pytest.mark.usefixtures("cluster")
class TestWholeJobOnLocalPaths:
    @pytest.fixture(scope="class")
    def ran(self, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> config.Config:
        """Text items, a linear head, LoRA, fully sharded workers, a split by time, string ids, no S3."""
        wanted = settings(
            tmp_path_factory.mktemp("local"), log(), tiny_model,
            model={"items": "text", "head": "linear"}, data={"split": "time"},
            train={"tune": "lora", "strategy": "fsdp2", "negatives": 3, "decisions_per_user": 3},
            score={"precision": "float32"},
        )  # fmt: skip
        for stage in stages.order(wanted):
            stages.run(stage, wanted, quietly)
        return wanted

    @pytest.mark.parametrize("head", ["retrieve", "rank"])
    def test_vectors_of_items_are_trained_sharded_too(self, tmp_path: Path, tiny_model: Path, head: str) -> None:
        wanted = settings(
            tmp_path, log(), tiny_model, model={"items": "token", "head": head}, items={"categories": ["title"]},
            train={"strategy": "fsdp2", "workers": 2},
        )  # fmt: skip
        for stage in ("prepare", "embed", "train"):
            done = stages.run(stage, wanted, quietly)
        assert done["steps"] == 2 and 0 <= done["best"] <= 1

    def test_users_of_all_kinds_get_rankings(self, ran: config.Config) -> None:
        table = rankings.read(Layout.of(ran).rankings)
        assert table["user_id"].type == pa.string()
        assert set(table["user_id"].to_pylist()) == {f"u{u}" for u in range(30)}

    def test_bad_candidates_are_set_aside_and_counted(self, ran: config.Config, tmp_path: Path) -> None:
        layout = Layout.of(ran)
        mine = tmp_path / "candidates"
        for bucket, uri in buckets.bucket_files(layout.candidates()).items():
            table = buckets.read_parquet(uri)
            users = table["user_id"].to_pylist()[:3]
            rows = [
                (u, i) for u in users for i in ("i01", "i01", "nowhere", None, "i05", *(f"i{j}" for j in range(10, 35)))
            ]
            rows.append((None, "i01"))
            user, item = zip(*rows, strict=True)
            long = pa.table({"user_id": pa.array(user, pa.string()), "item_id": pa.array(item, pa.string())})
            buckets.write_parquet(long, buckets.bucket_file(str(mine), bucket))
        scored = ran.score.model_copy(
            update={"candidates": str(mine), "output": str(tmp_path / "ranked"), "max_bad_share": 0.2}
        )
        summary = stages.run("score", ran.model_copy(update={"score": scored}), quietly)
        aside = buckets.read_parquet(layout.quarantine(f"score/{summary['run_id']}"))
        reasons = aside["reason_code"].to_pylist()
        assert {r: reasons.count(r) for r in set(reasons)} == {
            "duplicate_candidate": 6,
            "unknown_item": 6,
            "null_id": 8,
        }
        assert summary["pairs"]["quarantined"] == 20
        assert summary["users"] == 6

    def test_too_many_bad_candidates_publish_nothing(self, ran: config.Config, tmp_path: Path) -> None:
        layout = Layout.of(ran)
        for bucket, uri in buckets.bucket_files(layout.histories).items():
            users = buckets.read_parquet(uri)["user_id"].combine_chunks()
            long = pa.table({"user_id": users, "item_id": ["nowhere"] * len(users)})
            buckets.write_parquet(long, buckets.bucket_file(str(tmp_path / "candidates"), bucket))
        output = str(tmp_path / "ranked")
        update = {"candidates": str(tmp_path / "candidates"), "output": output}
        told = failure("score", ran.model_copy(update={"score": ran.score.model_copy(update=update)}))
        assert "score.max_bad_share = 0.1" in told
        assert rankings.opened(output) is None

    def test_ids_of_another_type_are_refused(self, ran: config.Config, tmp_path: Path) -> None:
        for bucket in (0, 1):
            long = pa.table({"user_id": [1, 2], "item_id": ["i01", "i02"]})
            buckets.write_parquet(long, buckets.bucket_file(str(tmp_path / "candidates"), bucket))
        scored = ran.score.model_copy(update={"candidates": str(tmp_path / "candidates")})
        told = failure("score", ran.model_copy(update={"score": scored}))
        assert "'user_id' holds int64 ids, the prepared tables hold string" in told

    def test_a_table_that_is_not_bucketed_is_refused(self, ran: config.Config, tmp_path: Path) -> None:
        buckets.write_parquet(pa.table({"user_id": ["u1"], "item_id": ["i01"]}), str(tmp_path / "one.parquet"))
        scored = ran.score.model_copy(update={"candidates": str(tmp_path)})
        assert "no bucketed table there" in failure("score", ran.model_copy(update={"score": scored}))

    def test_a_model_that_scores_wrongly_is_refused(self, ran: config.Config, monkeypatch: pytest.MonkeyPatch) -> None:
        from llmrec.engine import run, tasks
        from llmrec.engine.scorer import ModelScorer
        from llmrec.engine.watch import Beating
        from llmrec.ranker import probe

        job, units = run.resolve(ran, Layout.of(ran))
        scorer = ModelScorer(job, Beating(None), ModelScorer.shared(job))
        import torch

        with torch.no_grad():
            scorer.team.own.ranker.head.weight.normal_()
        right = probe.score_requests
        monkeypatch.setattr(probe, "score_requests", lambda *a: [s + 0.1 * torch.rand(len(s)) for s in right(*a)])
        work = tasks.judged(units[0], job, tasks.rules(job))
        with pytest.raises(UserError, match="parity probe"):
            scorer.score(work, range(len(work.users)))

    def test_only_users_of_whom_something_changed_are_scored_again(self, ran: config.Config, tmp_path: Path) -> None:
        layout = Layout.of(ran)
        table = rankings.opened(layout.rankings)
        assert table is not None
        first = storage.read_json(layout.run_summary(rankings.shown(table)["run_id"]))
        changed: set[str] = set()
        for bucket, uri in buckets.bucket_files(layout.candidates()).items():
            table = buckets.read_parquet(uri)
            rows = table.to_pylist()
            for row in rows[:2]:
                changed.add(row["user_id"])
                row["item_ids"] = row["item_ids"][:1] + row["item_ids"][2:]
                row["recall_scores"], row["sources"] = row["recall_scores"][1:], row["sources"][1:]
            if bucket == 0:  # one who has nothing that may be shown
                changed.add(rows[2]["user_id"])
                rows[2] |= {name: rows[2][name][:1] for name in ("recall_scores", "sources")} | {"item_ids": ["gone"]}
            changed_table = pa.Table.from_pylist(rows, schema=table.schema)
            buckets.write_parquet(changed_table, buckets.bucket_file(str(tmp_path / "candidates"), bucket))

        def scored(**more: str) -> tuple[dict[str, Any], pa.Table]:
            wanted = {"candidates": str(tmp_path / "candidates"), "output": str(tmp_path / f"out{len(more)}"), **more}
            summary = stages.run(
                "score", ran.model_copy(update={"score": ran.score.model_copy(update=wanted)}), quietly
            )
            return summary, rankings.read(wanted["output"])

        afresh, whole = scored()
        summary, mixed = scored(reuse=first["run_id"])
        assert summary["reused"] == first["run_id"] != summary["run_id"]
        assert summary["users_copied"] == first["users"] - len(changed) and summary["users"] == afresh["users"]
        assert summary["pairs"] == afresh["pairs"]
        assert (first["users_without_list"], afresh["users_without_list"], summary["users_without_list"]) == (0, 1, 1)
        assert summary["tokens"] < afresh["tokens"] / 2
        columns = [c for c in whole.column_names if c not in ("score", "run_id")]
        assert mixed.select(columns).equals(whole.select(columns))
        np.testing.assert_allclose(mixed["score"].to_numpy(), whole["score"].to_numpy(), rtol=1e-4, atol=1e-5)
        assert set(mixed["run_id"].to_pylist()) == {summary["run_id"]}
        # Other rules, other rows: nothing may be copied.
        assert scored(reuse=first["run_id"], batch_tokens=128, output=str(tmp_path / "x"))[0]["users_copied"] == 0
        told = failure("score", ran.model_copy(update={"score": ran.score.model_copy(update={"reuse": "nothing"})}))
        assert told.startswith("score.reuse = nothing: no complete run 'nothing'")

    def test_an_actor_of_two_processes_ranks_as_one_process_does(self, ran: config.Config, tmp_path: Path) -> None:
        chosen = {"tensor_parallel": 2, "max_actors": 1, "output": str(tmp_path / "split")}
        scored = ran.score.model_copy(update=chosen)
        assert stages.run("score", ran.model_copy(update={"score": scored}), quietly)["probe_difference"] < 1e-4
        key = [("user_id", "ascending"), ("rank", "ascending")]
        one, two = (rankings.read(uri).sort_by(key) for uri in (Layout.of(ran).rankings, scored.output))
        columns = ["user_id", "rank", "item_id"]
        assert one.num_rows and two.select(columns).equals(one.select(columns))
        np.testing.assert_allclose(two["score"].to_numpy(), one["score"].to_numpy(), rtol=1e-4, atol=1e-6)

    def test_a_stage_needs_the_one_before(self, tmp_path: Path, tiny_model: Path) -> None:
        assert "prepare has not finished" in failure("recall", settings(tmp_path, log(), tiny_model))


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=HERE,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["--config", "nowhere.yaml"], {}, ["nowhere.yaml", "no such file"]),
        (["--root", "/tmp/x", "--score.topk", "3"], {}, ["--score.topk"]),
        (["--root", "/tmp/x", "--score.top_k", "0"], {}, ["score.top_k = '0'", "greater than or equal to 1"]),
        (["--root", "gs://bucket/x"], {}, ["unknown scheme 'gs://'"]),
        (
            ["--root", "s3://bucket/x"],
            {
                "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
                "AWS_ACCESS_KEY_ID": "AKIDX",
                "AWS_SECRET_ACCESS_KEY": "SECRETX",
            },
            ["no answer from http://127.0.0.1:9", "AWS_ENDPOINT_URL"],
        ),
    ],
)
def test_jobs_end_with_one_line_and_exit_code_two(
    arguments: list[str], environment: dict[str, str], words: list[str]
) -> None:
    ended = run("jobs/score.py", *arguments, **environment)
    assert ended.returncode == 2, ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
    assert all(word in ended.stderr for word in words), ended.stderr
    assert "SECRETX" not in ended.stderr + ended.stdout and "AKIDX" not in ended.stderr + ended.stdout


def test_wrong_keys_and_missing_buckets_are_told_apart(store: Any) -> None:
    wrong = run("jobs/score.py", "--root", "s3://llmrec-test/x", AWS_SECRET_ACCESS_KEY="wrong")
    assert wrong.returncode == 2 and "refuses these credentials" in wrong.stderr
    missing = run("jobs/score.py", "--root", "s3://no-such-bucket/x")
    assert missing.returncode == 2 and "bucket 'no-such-bucket' does not exist" in missing.stderr
