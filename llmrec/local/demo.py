"""The whole main job on MovieLens-100k, on this machine: a mini cluster, an S3 server, and every stage."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from llmrec import assets, config, storage
from llmrec.data import movielens
from llmrec.engine import stages
from llmrec.engine.job import progress_line, terminating
from llmrec.engine.session import connected
from llmrec.layout import Layout
from llmrec.local import service
from llmrec.report import terminal
from llmrec.report.users import show_user

SHOWN_USERS, SHOWN_ITEMS = 3, 10


def demo(main: config.Config, zero_shot: config.Config) -> dict[str, Any]:
    """Run prepare, embed, train, recall, score, publish and evaluate, and the same scoring by the untouched model.

    Stages whose settings and inputs did not change since the last run are reused. Returns every stage's summary.
    """
    started = time.monotonic()
    say = progress_line("demo")
    summaries: dict[str, Any] = {}
    with terminating():
        for model in filter(None, (main.model.base, main.items.encoder)):
            assets.fetch(model, say)
        tables = movielens.tables(assets.fetch("ml-100k", say))
        with _cluster(main, say):
            say("putting MovieLens-100k into the bucket")
            for name, table in tables.items():
                _put(table, getattr(main.data, name))
            main_stages = main.model_copy(update={"score": main.score.model_copy(update={"publish": False})})
            for stage in stages.order(main)[:-1]:
                summaries[stage] = _stage(stage, main_stages)
            summaries["zero-shot"] = _stage("score", zero_shot, "zero-shot")
            # Leave the summary of the main run, which publish without settings goes by.
            storage.write_json(Layout.of(main).summary("score"), {"fingerprint": None, "summary": summaries["score"]})
            summaries["evaluate"] = _stage("evaluate", main)
            _report(main, summaries)
    summaries["minutes"] = round((time.monotonic() - started) / 60, 2)
    terminal.console().print(f"The demo took {summaries['minutes']:.1f} minutes; everything it started is stopped.")
    return summaries


def _stage(stage: str, settings: config.Config, label: str | None = None) -> dict[str, Any]:
    say = progress_line(label or stage)
    summary = stages.run(stage, settings, say, reuse=True)
    say("nothing changed, reused" if summary.get("reused") else "done")
    return summary


@contextlib.contextmanager
def _cluster(settings: config.Config, say: Callable[[str], None]) -> Iterator[None]:
    """The service of `llmrec cluster up` if it runs, else a cluster and a store of our own, stopped at the end."""
    if found := service.state():
        say("using the local cluster that is up")
        service.apply(found)
        with connected(settings.cluster, settings.root):
            yield
        return
    import os

    os.environ["RAY_AUTH_MODE"] = "disabled"
    from llmrec.local.cluster import joined, mini_cluster
    from llmrec.local.object_store import object_store

    say("starting the object store")
    with object_store(service.store_directory(), service.BUCKET):
        say(f"starting {settings.cluster.nodes} Ray nodes")
        with mini_cluster(settings.cluster) as cluster, joined(cluster):
            yield


def _put(table: Any, uri: str) -> None:
    """Write a raw table unless the same bytes lie there."""
    from llmrec.tables.buckets import parquet_bytes

    data = parquet_bytes(table)
    if not storage.exists(uri) or storage.read_bytes(uri) != data:
        storage.write_bytes(uri, data)


def _report(main: config.Config, summaries: dict[str, Any]) -> None:
    layout = Layout.of(main)
    for user in _some_users(layout):
        found, history, ranking = show_user(layout, main.score.output or layout.rankings, user, SHOWN_ITEMS)
        terminal.print_user(found, history, ranking[:SHOWN_ITEMS])
    terminal.print_evaluation(summaries["evaluate"])
    train, score, zero = summaries["train"], summaries["score"], summaries["zero-shot"]
    terminal.print_rows(
        "throughput",
        ["stage", "seconds", "what", "rate"],
        [
            ["train", train["seconds"], f"{train['tokens']:,} tokens, {train['decisions']:,} decisions",
             f"{train['tokens'] / train['seconds']:,.0f} tokens/s"],
            _throughput("score", score),
            _throughput("zero-shot", zero),
        ],
    )  # fmt: skip
    terminal.print_rows(
        "tables, in the local object store (llmrec cluster up, then llmrec show USER --config ...)",
        ["table", "where"],
        [
            ["items", layout.items], ["histories", layout.histories], ["candidates", layout.candidates()],
            ["rankings (Delta Lake)", summaries["publish"]["table"]], ["ranker", layout.ranker],
            ["metrics", layout.evaluation], ["report", layout.report], ["quarantine", layout.quarantine("")],
        ],
    )  # fmt: skip


def _throughput(name: str, summary: dict[str, Any]) -> list[Any]:
    pairs = summary["pairs_scored"]
    if not summary["pairs_per_second"]:
        return [name, summary["seconds"], f"{pairs:,} pairs", "all buckets were staged before"]
    return [
        name, summary["seconds"], f"{pairs:,} pairs",
        f"{summary['pairs_per_second']:,.0f} pairs/s, {summary['tokens_per_second']:,.0f} tokens/s while scoring",
    ]  # fmt: skip


def _some_users(layout: Layout) -> list[Any]:
    from llmrec.schema import USER
    from llmrec.tables import buckets

    first = min(buckets.bucket_files(layout.histories).items())[1]
    return list(buckets.read_parquet(first, [USER])[USER].to_pylist()[:SHOWN_USERS])
