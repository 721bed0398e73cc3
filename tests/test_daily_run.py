"""The daily run from its command line: exit codes, what it prints, what it leaves. No cluster: stages that need one
leave the tables that theirs would; drift, gate and publishing are the real ones, their units one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import staging
import yaml
from prometheus_client.parser import text_string_to_metric_families

from llmrec import storage
from llmrec.engine import drift, gate, job, ledger, stages
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.tables import buckets, rankings

USERS = range(40)


def one_after_another(
    units: Sequence[Mapping[str, Any]], function: Callable[..., pa.Table], arguments: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    for unit in units:
        yield from function(pa.Table.from_pylist([dict(unit)]), **arguments).to_pylist()


@dataclass
class Daily:
    """Stages that leave the tables below; a day differs by what a test sets. ran: the stages that were run."""

    root: str
    items: range = range(10)
    run_id: str = "monday"
    shown_items: tuple[int, ...] = (0, 1, 2)
    ran: list[str] = field(default_factory=list)
    fails: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        return Layout(self.root)

    def stage(self, name: str, summary: Mapping[str, Any]) -> Callable[..., dict[str, Any]]:
        def run(*given: Any) -> dict[str, Any]:
            self.ran.append(name)
            if name == self.fails:
                raise UserError(f"{name} cannot")
            made = getattr(self, f"_{name}", dict)()
            return {**summary, **made}

        return run

    def _prepare(self) -> dict[str, Any]:
        layout, users = self.layout, pa.array(USERS)
        buckets.write_parquet(
            pa.table({"item_id": list(range(100)), "title": [f"t{i}" for i in range(100)]}), layout.items
        )
        which = buckets.bucket_of(users, staging.BUCKETS)
        n = len(self.items)
        past = {"item_ids": [list(self.items)] * len(users), "timestamps": [list(range(1, n + 1))] * len(users)}
        tables = {
            layout.histories: pa.table({"user_id": users, **past}),
            layout.targets: pa.table({"user_id": users, "item_ids": [[0]] * len(users)}),
        }
        for uri, table in tables.items():
            for b in range(staging.BUCKETS):
                buckets.write_parquet(table.filter(pa.array(which == b)), buckets.bucket_file(uri, b))
        return {}

    def _score(self) -> dict[str, Any]:
        layout, table = self.layout, self.layout.rankings
        for file in staging.stage(table, self.run_id, dict.fromkeys(USERS, self.shown_items)):
            counts = {"pairs_in": file.rows} | {name: file.rows * (name == "ranked") for name in ledger.ENDS}
            entry = ledger.Entry(file.bucket, file.path, file.size, file.rows, file.rows, counts, 1.0, None, 1, None)
            ledger.write(layout, self.run_id, entry)
        found = {"run_id": self.run_id, "output": table, "staged": staging.BUCKETS, "buckets": staging.BUCKETS}
        storage.write_json(layout.run_summary(self.run_id), found)
        return found

    def run(self, *arguments: str) -> int:
        """The exit code."""
        file = Path(self.root).parent / "daily.yaml"
        file.write_text(yaml.safe_dump({"root": self.root, "data": {"split": "time"}} | self.settings))
        self.ran.clear()
        with pytest.raises(SystemExit) as ended:
            job.run_pipeline(["--config", str(file), *arguments])
        assert isinstance(ended.value.code, int)
        return ended.value.code

    def shown(self) -> str | None:
        table = self.layout.rankings
        return rankings.snapshot(table).run_id if rankings.opened(table) is not None else None

    def metric(self, name: str) -> float | None:
        text = storage.read_bytes(self.layout.metrics).decode()
        samples = [s for family in text_string_to_metric_families(text) for s in family.samples if s.name == name]
        return samples[0].value if samples else None


SUMMARIES: dict[str, dict[str, Any]] = {
    "feedback": {"outcomes": 3, "impressions": 9},
    "prepare": {"users": 40, "items": 100, "events_kept": 400, "set_aside": {}},
    "embed": {"encoded": 100},
    "train": {"users": 40, "steps": 5, "best": 0.5},
    "recall": {"users": 40},
    "score": {
        "users": 40, "rows": 120, "users_copied": 0, "resumed": 0, "pairs_scored": 120, "pairs_per_second": 1.0,
        "cost": 0.0, "pairs": {"quarantined": 0},
    },
    "evaluate": {"all_users": [{"values": {"ndcg@10": 0.25}}], "report": "report.html"},
}  # fmt: skip


@pytest.fixture
def daily(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Daily:
    found = Daily(f"{tmp_path}/root")
    for module in (drift, gate):
        monkeypatch.setattr(module, "each", one_after_another)
    monkeypatch.setattr(job, "connected", lambda cluster, root: nullcontext())
    for name, summary in SUMMARIES.items():
        monkeypatch.setitem(stages._STAGES, name, found.stage(name, summary))
    return found


def rows_of(printed: str) -> dict[str, tuple[str, str]]:
    """Status and words of each step of the table that is printed last."""
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if line.startswith("│")]
    return {step: (status, what) for step, status, _, what in (row for row in cells if len(row) == 4)}


def test_a_day_that_publishes_ends_with_0_and_says_that_nothing_was_asked_of_it(
    daily: Daily, capsys: pytest.CaptureFixture[str]
) -> None:
    assert daily.run() == 0
    printed = capsys.readouterr().out
    assert f"run monday is published: {daily.layout.rankings}" in printed
    assert rows_of(printed)["gate"] == ("skipped", "no condition (evaluate.promote_if)")
    assert daily.shown() == "monday" and daily.ran[-1] == "evaluate"
    assert daily.metric("llmrec_pipeline_success") == 1

    assert daily.run() == 0
    printed = capsys.readouterr().out
    assert "run monday is shown already" in printed and rows_of(printed)["publish"][0] == "reused"


def test_what_you_can_mend_ends_with_2_and_readers_keep_the_run_before(
    daily: Daily, capsys: pytest.CaptureFixture[str]
) -> None:
    assert daily.run() == 0
    daily.run_id, daily.fails = "tuesday", "score"
    assert daily.run() == 2
    assert capsys.readouterr().err == "error: score cannot\n"
    assert daily.shown() == "monday"
    assert (daily.metric("llmrec_pipeline_success"), daily.metric("llmrec_pipeline_refused")) == (0, 0)
    assert daily.metric("llmrec_published_timestamp_seconds")


def test_a_condition_that_does_not_hold_ends_with_3(daily: Daily, capsys: pytest.CaptureFixture[str]) -> None:
    daily.settings = {"evaluate": {"promote_if": ["ndcg@3 >= published"]}}
    assert daily.run() == 0
    assert rows_of(capsys.readouterr().out)["gate"] == ("ran", "1 conditions hold")
    daily.run_id, daily.shown_items = "tuesday", (7, 8, 0)
    assert daily.run() == 3
    printed = capsys.readouterr().out
    assert rows_of(printed)["gate"][0] == "refused" and "publish" not in rows_of(printed)
    assert "NOT published: does not hold: ndcg@3 >= published (ndcg@3 0.5000)" in printed
    assert "readers still see the run before" in printed and daily.shown() == "monday"
    assert (daily.metric("llmrec_pipeline_success"), daily.metric("llmrec_pipeline_refused")) == (0, 1)


def test_drift_that_is_refused_ends_with_3_and_accepted_is_called_so(
    daily: Daily, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert daily.run() == 0
    daily.items, daily.run_id = range(50, 60), "tuesday"
    monkeypatch.setattr(stages, "_fingerprint", lambda *given: None)  # nothing is reused
    capsys.readouterr()
    assert daily.run() == 3
    printed = capsys.readouterr().out
    assert rows_of(printed)["drift of inputs"][0] == "refused" and daily.ran == ["prepare"]
    assert "NOT published: item_mix has moved by a PSI of " in printed and "--accept-drift" in printed

    assert daily.run("--accept-drift") == 0
    printed = capsys.readouterr().out
    assert {rows_of(printed)[f"drift of {of}"][0] for of in ("inputs", "scores")} == {"accepted"}
    assert daily.shown() == "tuesday" and "NOT published" not in printed


def test_a_run_that_is_to_stay_staged_does(daily: Daily, capsys: pytest.CaptureFixture[str]) -> None:
    daily.settings = {"score": {"publish": False}, "evaluate": {"promote_if": ["ndcg@3 > 0.1"]}}
    assert daily.run() == 0
    printed = capsys.readouterr().out
    assert rows_of(printed)["gate"][0] == "ran" and rows_of(printed)["publish"] == ("skipped", "score.publish = false")
    assert "run monday is staged (score.publish = false); jobs/publish.py shows it to readers" in printed
    assert daily.shown() is None and daily.ran[-1] == "score" and daily.metric("llmrec_pipeline_success") == 1
    assert not storage.exists(daily.layout.profile)

    with pytest.raises(SystemExit) as ended:
        job.run_job("publish", ["--config", str(Path(daily.root).parent / "daily.yaml")])
    assert ended.value.code == 0 and daily.shown() == "monday"
    capsys.readouterr()
    assert daily.run() == 0
    assert "run monday is shown already" in capsys.readouterr().out
    assert daily.ran[-1] == "evaluate" and storage.exists(daily.layout.profile)


def test_conditions_without_held_out_events_are_refused_before_there_is_a_cluster(
    daily: Daily, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "connected", lambda cluster, root: pytest.fail("a cluster was started"))
    daily.settings = {"data": {"split": "none"}, "evaluate": {"promote_if": ["ndcg@10 not worse"]}}
    assert daily.run() == 2
    assert "evaluate.promote_if asks what only held-out events tell, and data.split = none" in capsys.readouterr().err
    assert daily.ran == []


def test_the_first_day_has_no_impressions_and_goes_on(daily: Daily, capsys: pytest.CaptureFixture[str]) -> None:
    where = f"{daily.root}/shown"
    daily.settings = {"feedback": {"impressions": where}}
    assert daily.run() == 0
    printed = capsys.readouterr().out
    assert f"{where}: no Parquet files there; going on without impressions" in printed
    assert rows_of(printed)["feedback"] == ("skipped", "no impressions there")
    assert "feedback" not in daily.ran and daily.shown() == "monday"
    buckets.write_parquet(pa.table({"any": [1]}), f"{where}/0.parquet")
    assert daily.run() == 0
    assert rows_of(capsys.readouterr().out)["feedback"] == ("ran", "outcomes 3, impressions 9")
    assert daily.ran[0] == "feedback"


@contextmanager
def no_cluster(cluster: Any, root: str) -> Iterator[None]:
    raise UserError("no Ray cluster answers")
    yield


def test_metrics_tell_of_what_failed_before_the_first_stage(
    daily: Daily, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(told: str) -> None:
        assert daily.run() == 2
        assert told in capsys.readouterr().err
        assert daily.metric("llmrec_pipeline_success") == 0 and daily.metric("llmrec_published_timestamp_seconds")
        assert daily.ran == []

    assert daily.run() == 0 and daily.metric("llmrec_pipeline_success") == 1
    with monkeypatch.context() as without:
        without.setattr(job, "connected", no_cluster)
        fails("no Ray cluster answers")

    assert daily.run() == 0 and daily.metric("llmrec_pipeline_success") == 1
    with monkeypatch.context() as without:
        without.setattr(stages.trees, "check", lambda: (_ for _ in ()).throw(UserError("pip install it")))
        daily.settings = {"fusion": {"method": "trees"}}
        fails("pip install it")

    daily.settings = {}
    assert daily.run() == 0 and daily.metric("llmrec_pipeline_success") == 1
    storage.write_json(daily.layout.profile, {"something": "else"})
    fails("not a profile of this version")


def test_metrics_that_cannot_be_told_are_no_reason_to_fail(
    daily: Daily, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, there = storage.write_bytes, daily.layout.metrics

    def full(uri: str, data: bytes) -> None:
        if uri == there:
            raise OSError("no space left")
        write(uri, data)

    monkeypatch.setattr(storage, "write_bytes", full)
    daily.settings = {"pipeline": {"pushgateway": "127.0.0.1:1"}}
    assert daily.run() == 0
    printed = capsys.readouterr().out
    assert f"{there} does not tell of this pipeline: no space left" in printed
    assert "pipeline.pushgateway = 127.0.0.1:1: no answer" in printed and daily.shown() == "monday"
