"""The whole main job on MovieLens-100k, on this machine: a mini cluster, an S3 server, and every stage."""

from __future__ import annotations

import time
from typing import Any

from llmrec import assets, config, storage
from llmrec.data import movielens
from llmrec.engine import stages
from llmrec.engine.job import progress_line, terminating
from llmrec.layout import Layout
from llmrec.local import chain
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
        with chain.cluster_and_store(main, say):
            say("putting MovieLens-100k into the bucket")
            for name, table in tables.items():
                chain.put(table, getattr(main.data, name))
            main_stages = chain.staged_first(main)
            for stage in stages.order(main)[:-1]:
                summaries[stage] = chain.stage(stage, main_stages)
            summaries["zero-shot"] = chain.stage("score", zero_shot, "zero-shot")
            # Leave the summary of the main run, which publish without settings goes by.
            storage.write_json(Layout.of(main).summary("score"), {"fingerprint": None, "summary": summaries["score"]})
            summaries["evaluate"] = chain.stage("evaluate", main)
            _report(main, summaries)
    summaries["minutes"] = round((time.monotonic() - started) / 60, 2)
    terminal.console().print(f"The demo took {summaries['minutes']:.1f} minutes; everything it started is stopped.")
    return summaries


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
