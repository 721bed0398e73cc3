"""What prepare does with tables that hold what must never leave, and the search of logs. No cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from llmrec import cli, config, storage
from llmrec.engine import kept_out
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.tables import buckets

MAIL = "zoe@example.org"


@pytest.fixture
def settings(tmp_path: Path) -> config.Config:
    layout = Layout(str(tmp_path / "root"))
    users = pa.table({"user_id": [1], "mail": [MAIL]})
    items = pa.table({"item_id": [1], "title": ["w1"]})
    log = pa.table({"user_id": [1], "item_id": [1], "timestamp": [5]})
    raw = {"items": items, "users": users, "interactions": log}
    for name, table in raw.items():
        buckets.write_parquet(table, str(tmp_path / "raw" / f"{name}.parquet"))
    buckets.write_parquet(items, layout.items)
    for table in (layout.users, layout.targets, layout.quarantine("prepare")):
        buckets.write_parquet(users.drop_columns(["mail"]), buckets.bucket_file(table, 0))
    histories = {"user_id": [1], "item_ids": [[1]], "timestamps": [[5]], "train_length": [1]}
    buckets.write_parquet(pa.table(histories), buckets.bucket_file(layout.histories, 0))
    data = {name: str(tmp_path / "raw" / f"{name}.parquet") for name in raw}
    return config.build({"root": layout.root, "data": data, "privacy": {"never": ["mail"]}})


def here(
    units: Sequence[Mapping[str, Any]], work: Callable[..., pa.Table], given: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Tasks, without a cluster."""
    for unit in units:
        yield from work(pa.Table.from_pylist([unit]), **given).to_pylist()


def test_tables_that_are_refused_are_deleted(settings: config.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_out, "each", here)
    layout = Layout.of(settings)
    storage.write_bytes(f"{layout.ranker}/ranker.json", b"{}")
    before = storage.manifest(layout.root)
    assert kept_out.after_prepare(settings, layout, print) == 1 and storage.manifest(layout.root) == before
    buckets.write_parquet(pa.table({"item_id": [1], "title": [f"w1, ask {MAIL}"]}), layout.items)
    with pytest.raises(
        UserError, match=r"items\.parquet, column 'title', holds 1 .*; the tables were deleted$"
    ) as told:
        kept_out.after_prepare(settings, layout, print)
    assert MAIL not in str(told.value)
    assert [uri for uri, _ in storage.list_files(layout.root)] == [f"{layout.ranker}/ranker.json"]


def test_logs_are_searched_if_they_are_named(settings: config.Config, tmp_path: Path) -> None:
    layout, logs = Layout.of(settings), tmp_path / "logs"
    (logs / "old").mkdir(parents=True)
    (logs / "a.out").write_text("started\nended\n")
    done = kept_out.check(settings, layout, print, [str(logs)])
    assert (done.found, done.logs) == ([], 1)
    (logs / "old" / "worker.err").write_bytes(b"\x00\xff ValueError: {'mail': '" + MAIL.encode() + b"'}\n")
    done = kept_out.check(settings, layout, print, [str(logs), str(logs / "old")])
    assert done.logs == 2 and [(f.place, f.values) for f in done.found] == [(f"{logs}/old/worker.err", 1)]
    assert kept_out.check(settings, layout, print).found == []
    with pytest.raises(UserError, match="--logs /nowhere: no files there"):
        kept_out.check(settings, layout, print, ["/nowhere"])


def test_the_command_tells_of_a_log_and_not_the_value(settings: config.Config, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "driver.log").write_text(f"no such user: {MAIL}")
    given = [
        part for name in ("items", "users", "interactions") for part in (f"--data.{name}", getattr(settings.data, name))
    ]
    given += ["--root", settings.root, "--privacy.never", '["mail"]']
    told = CliRunner().invoke(cli.app, ["check-privacy", *given, "--logs", str(tmp_path / "logs")])
    assert told.exit_code == cli.EXIT_REFUSED and "driver.log" in told.output and MAIL not in told.output, told.output
