"""What a person reads on the terminal. Computes no number itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from llmrec.evaluation.verdict import main_metric
from llmrec.reasons.quoting import one_line
from llmrec.report import caveats

METRICS = ("recall@10", "ndcg@10", "mrr@10", "recall@20", "ndcg@20")
BEYOND = {
    "coverage": "catalogue shown", "gini": "Gini of places", "novelty": "novelty, bits", "diversity": "diversity",
    "popularity_percentile": "popularity percentile", "popularity_lift": "popularity lift",
}  # fmt: skip


def console() -> Console:
    """A terminal of at least 140 columns where it is none, so that tables in logs are not cut. What is printed is data,
    such as titles: brackets and colons in it are no markup and no emoji."""
    found = Console(markup=False, emoji=False)
    return found if found.is_terminal else Console(width=max(found.width, 140), markup=False, emoji=False)


def print_summary(stage: str, summary: Mapping[str, Any]) -> None:
    """A stage's summary as a table of names and values, metrics as a table of their own."""
    if stage == "evaluate":
        print_evaluation(summary)
        return
    if stage == "explain":
        print_explanation(summary)
        return
    if stage == "search":
        print_search(summary)
        return
    table = Table(title=f"{stage}: done", title_justify="left", show_header=False)
    for key, value in summary.items():
        table.add_row(key.replace("_", " "), text(value))
    console().print(table)


def print_search(summary: Mapping[str, Any]) -> None:
    """The trials of a search, the best first, why some failed, and what the best one was trained with."""
    keys = list(dict.fromkeys(key for of in summary["trials"] for key in of["settings"]))
    rows = [
        [of["number"], *(of["settings"].get(key) for key in keys), figure(of["best"]), of["steps"], of["seconds"],
         of["state"]]
        for of in summary["trials"]
    ]  # fmt: skip
    print_rows(
        f"search {summary['search']}: trials, the best first",
        ["trial", *keys, f"best {summary['metric']}", "steps", "seconds", ""],
        rows,
    )
    for of in summary["trials"]:
        if of["reason"]:
            console().print(f"trial {of['number']} failed: {of['reason']}")
    best = ", ".join(f"{key} = {text(value)}" for key, value in summary["settings"].items())
    console().print(f"best: {best}, {summary['metric']} {figure(summary['best'])}")
    console().print(f"train with it: python jobs/train.py --config {summary['config']}", soft_wrap=True)
    console().print(f"all trials: {summary['table']}", soft_wrap=True)


def print_explanation(summary: Mapping[str, Any]) -> None:
    """What the reasons rest on, whether the cited items matter, and some of the sentences."""
    shown = {name: value for name, value in summary.items() if name not in ("faithfulness", "examples")}
    print_rows("explain: done", ["", ""], [[name.replace("_", " "), value] for name, value in shown.items()])
    print_rows(
        "some reasons", ["user", "rank", "words of", "reason"],
        [[str(of["user"]), of["rank"], of["source"], of["reason"]] for of in summary["examples"]],
    )  # fmt: skip
    found = summary["faithfulness"]
    if not found["users"]:
        console().print(
            "faithfulness: not measured; no user was sampled who has a reason that cites, and other items to leave out"
        )
        return
    console().print(
        f"faithfulness, {found['reasons']:,} reasons of {found['users']:,} users: without the cited items scores fall "
        f"by {found['cited']:.4f}, without as many random others by {found['random']:.4f}; difference "
        f"{found['difference']:+.4f}, 95% {found['low']:+.4f} to {found['high']:+.4f}; a reason's cited items take "
        f"{found['cited_events']:.1f} events with them, the others {found['random_events']:.1f}"
    )


def print_evaluation(summary: Mapping[str, Any]) -> None:
    """Metrics of every ranking and how many users it ranks, with bootstrap intervals of one of them and of the first
    ranking's lead; what rankings are beside right; the first ranking and the best other in every group; what each
    source finds."""
    groups = [(f"{caveats.whose(summary)} with a held-out item", summary["all_users"])]
    groups += [(f"users that '{name}' ranks too", rows) for name, rows in summary["same_users"].items() if rows]
    key = main_metric(summary["all_users"][0]["values"])
    for title, rows in groups:
        shown = [m for m in METRICS if m in rows[0]["values"]] or list(rows[0]["values"])[: len(METRICS)]
        table = Table(title=f"{title}: {rows[0]['users']:,}", title_justify="left")
        table.add_column("ranking")
        table.add_column("ranked", justify="right")
        for metric in (*shown, f"{key} 95%"):
            table.add_column(metric, justify="right")
        table.add_column(f"{rows[0]['name']} leads by, 95%", justify="right", min_width=18)
        table.add_column("p", justify="right")
        for row in rows:
            first = row is rows[0]
            lead = "" if first else "{:+.4f} to {:+.4f}".format(*row["lead"][key])
            p_value = "" if first else f"{row['p_value'][key]:.4f}"
            values = (f"{row['values'][m]:.4f}" for m in shown)
            table.add_row(row["name"], text(row.get("ranked")), *values, _span(row["interval"][key]), lead, p_value)
        console().print(table)
    for told in (*caveats.of_users(summary), *caveats.of_parts(summary)):
        console().print(told, highlight=False)
    cutoff = key.split("@")[1]
    print_rows(
        f"beyond accuracy: the first {cutoff} places of {caveats.whose(summary)} with a held-out item",
        ["ranking", *BEYOND.values()],
        [[row["name"], *(row["beyond"][f"{name}@{cutoff}"] for name in BEYOND)] for row in summary["all_users"]],
    )
    _print_segments(summary, key)
    _print_fairness(summary["fairness"])
    if (found := summary["calibration"]) is not None:
        pairs = sum(of["pairs"] for of in found["bins"])
        console().print(
            f"probabilities of {pairs:,} published pairs: expected calibration error {found['ece']:.4f}, Brier score "
            f"{found['brier']:.4f}"
        )
    if (found := summary["labelled"]) is not None:
        console().print(
            f"labelled pairs: {found['covered']:,} of {found['pairs']:,} were candidates; AUC {text(found['auc'])}, by "
            f"user {text(found['uauc'])} ({found['users']:,} users with both labels)"
        )
    recall, alone = (list(summary["sources"][0][name]) for name in ("recall", "alone"))
    print_rows(
        "sources of candidates: the share of held-out items that each finds, and finds alone",
        ["source", "users", *recall, *alone],
        [[of["name"], of.get("users"), *_found_by(of)] for of in summary["sources"]],
    )
    console().print(
        f"recall of the candidates that were scored: {summary['recall_of_candidates']:.4f}; all figures: "
        f"{summary['table']}"
    )
    if "report" in summary:
        console().print(f"the same as a page, with the run, its training and some users: {summary['report']}")


def _found_by(source: Mapping[str, Any]) -> list[str]:
    if source.get("users") == 0:
        return ["nothing for anybody"]
    return [f"{share:.4f}" for share in (*source["recall"].values(), *(source["alone"] or {}).values())]


def _print_segments(summary: Mapping[str, Any], key: str) -> None:
    ours, *others = summary["all_users"]
    best = max(others, key=lambda row: row["values"][key])["name"]
    for segments in summary["segments"]:
        rows = []
        for group in segments["groups"]:
            of = {row["name"]: row for row in group["rows"]}
            row = [group["name"], group["users"]]
            for name in (ours["name"], best):
                row += [f"{of[name]['values'][key]:.4f}", _span(of[name]["interval"][key])] if of else ["-", "-"]
            rows.append(row)
        print_rows(
            f"{key} by {segments['by']}",
            ["group", "users", ours["name"], "95%", f"{best}, the best other", "95%"],
            rows,
        )


def _print_fairness(fairness: Mapping[str, Any]) -> None:
    for kind, gaps in (("", fairness["users"]), ("held-out items by ", fairness["item_gaps"])):
        for gap in gaps:
            console().print(
                f"{kind}{gap['by']}: {gap['metric']} is {gap['gap']:.4f} higher for '{gap['best']}' than for "
                f"'{gap['worst']}', 95% {gap['low']:+.4f} to {gap['high']:+.4f}"
            )
    for items in fairness["items"]:
        shares = (
            f"{of['name']} {text(of['ratio'])}"
            + (f" ({_span((of['low'], of['high']), 2)})" if of["ratio"] is not None else "")
            for of in items["groups"]
        )
        console().print(f"{items['by']}: share of what is shown over share of the catalogue: {', '.join(shares)}")


def _span(interval: Sequence[float], digits: int = 4) -> str:
    low, high = interval
    return f"{low:.{digits}f} - {high:.{digits}f}"


def print_user(user: Any, history: Sequence[str], ranking: Sequence[tuple[int, str, float]]) -> None:
    """A user's newest events beside the ranking.

    history: titles, newest first; ranking: (rank, title, score).
    """
    table = Table(title=f"user {user}", title_justify="left")
    table.add_column("recent history, newest first", max_width=48)
    table.add_column("rank", justify="right")
    table.add_column("recommended", max_width=48)
    table.add_column("score", justify="right")
    for i in range(max(len(history), len(ranking))):
        rank, title, score = ranking[i] if i < len(ranking) else ("", "", None)
        event = history[i] if i < len(history) else ""
        table.add_row(one_line(event), str(rank), one_line(title), "" if score is None else f"{score:.3f}")
    console().print(table)


def print_rows(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Any small table."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(text(v) for v in row))
    console().print(table)


def figure(value: float | None) -> str:
    """To four places, as metrics are read; a dash where nothing can be said."""
    return "-" if value is None else f"{value:.4f}"


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def text(value: Any) -> str:
    """A value as a person writes it."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {text(v)}" for k, v in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(text(v) for v in value)
    return str(value)


def settings_help(model: type[BaseModel], prefix: str = "") -> str:
    """Every setting with its default and meaning, one a line."""
    lines = [] if prefix else ["settings:"]
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            lines.append(settings_help(kind, f"{prefix}{name}."))
            continue
        meaning = f"  {field.description}" if field.description else ""
        lines.append(
            f"  --{prefix}{name} (default {'null' if field.default is None else repr(field.default)}){meaning}"
        )
    return "\n".join(lines)
