"""Examples with a known truth: made-up data, every stage on this machine, and whether the rankings found the truth.

Each example is a module `llmrec.local.example_<name>` with an `EXAMPLE`, and a configuration; here is what they share.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

import polars as pl
import pyarrow as pa

from llmrec import assets, config
from llmrec.config import Config
from llmrec.engine import diff, stages
from llmrec.engine.job import progress_line, terminating
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.local import chain
from llmrec.report import terminal
from llmrec.report.comparison import print_diff
from llmrec.report.users import show_user
from llmrec.schema import ITEM, RANK, USER
from llmrec.tables import rankings

NAMES = ("courses", "shop")
SHOWN_ITEMS = 5

W = TypeVar("W")
Figures = Mapping[str, float]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Promise:
    """Something that the figures have to show for the truth to count as recovered. what: one line, with the numbers."""

    what: str
    holds: bool


@dataclass(frozen=True)
class Example(Generic[W]):
    """What an example brings. W: its world, the data and the truth behind it, a value that nothing changes.

    config: its configuration, a path from the root of a checkout; users: how many its world has unless one says.
    make: a world of so many users; raises UserError for a number that it cannot make.
    tables: its raw tables by the settings that say where they lie, such as `items` for `data.items`, or
    `score.blocked_items`.
    measure: figures of published rankings (user_id, rank, item_id and the other columns of the table), by name.
    beside: further figures, of what the stages left of the run with this id, such as other lists.
    variants: by a name, settings that are tried as well: the same world through every stage once more. They say another
    root. Of an example of one round.
    people: a few users to show, by id, and a line about each.
    promises: of the figures of all rounds, the first one first.
    respond: the world after users saw these rankings; with it there is a second round, on the longer log. None: one
    round.
    """

    config: str
    users: int
    make: Callable[[int], W]
    tables: Callable[[W], Mapping[str, pa.Table]]
    measure: Callable[[W, pl.DataFrame], Figures]
    people: Callable[[W], Mapping[Any, str]]
    promises: Callable[[Sequence[Figures]], Sequence[Promise]]
    respond: Callable[[W, pl.DataFrame], W] | None = None
    beside: Callable[[W, Config, str], Figures] | None = None
    variants: Mapping[str, Callable[[Config], Config]] = field(default_factory=dict)


def named(name: str) -> Example[Any]:
    """The example of this name.

    Raises:
        UserError: there is none.
    """
    if name not in NAMES:
        raise UserError(f"example '{name}': there is none; there are {', '.join(NAMES)}")
    found: Example[Any] = importlib.import_module(f"llmrec.local.example_{name}").EXAMPLE
    return found


def run(name: str, example: Example[W], settings: config.Config, users: int) -> dict[str, Any]:
    """Make the data, run every stage on a cluster here, once a round, and print what came of it.

    Returns `example`, `users`, `rounds` (see `play`), `changes` (what `llmrec diff` tells of the two rounds, None if
    there was one), `promises`, `recovered` (all of them hold) and `minutes`.
    """
    started = time.monotonic()
    say = progress_line(name)
    world = example.make(users)  # a number that it refuses is told before anything starts
    with terminating():
        encoder = settings.items.encoder if settings.model.items == "token" else ""
        for model in filter(None, (settings.model.base, encoder)):
            if model in assets.REGISTRY:
                assets.fetch(model, say)
        with chain.cluster_and_store(settings, say):
            rounds, changes = play(example, settings, world, say)
    promises = example.promises([done["figures"] for done in rounds])
    found = {
        "example": name, "users": users, "rounds": rounds, "changes": changes,
        "promises": [asdict(promise) for promise in promises],
        "recovered": all(promise.holds for promise in promises),
        "minutes": round((time.monotonic() - started) / 60, 2),
    }  # fmt: skip
    _print(found)
    return found


def play(
    example: Example[W], settings: config.Config, world: W, say: Say
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """The rounds of an example on the cluster that this process has joined, and what changed from one to the other.

    Variants count as further rounds, called by their `variant`. A round has its `figures` and the stages' `summaries`;
    the second also `lists_of_round_1`, the figures if nothing had run again and users still saw what they have not had
    of the first lists, and `ranker_of_round_1`, those if all had run again but the training.
    """
    layout = Layout.of(settings)
    table = settings.score.output or layout.rankings
    rounds = [_round(example, settings, world, 1, say)]
    if example.respond is None:
        for name, varied in example.variants.items():
            rounds.append({"variant": name, **_round(example, varied(settings), world, len(rounds) + 1, say)})
        return rounds, None
    say("users respond to what they were shown")
    first = _shown(table)
    world = example.respond(world, first)
    _, untrained = _staged(example, settings, world, 2, say, without=("train",))
    rounds.append(_round(example, settings, world, 2, say))
    kept = _without_taken(first, example.tables(world)["interactions"], settings.data.columns)
    rounds[1]["lists_of_round_1"] = dict(example.measure(world, kept))
    rounds[1]["ranker_of_round_1"] = dict(example.measure(world, untrained))
    ids = [done["summaries"]["publish"]["run_id"] for done in rounds]
    a, b = (rankings.snapshot(table, run_id) for run_id in ids)
    changes = diff.diff(a, b, layout.items, say, show_users=0, show_items=SHOWN_ITEMS)
    print_diff(changes)
    return rounds, changes


def _round(example: Example[W], settings: config.Config, world: W, number: int, say: Say) -> dict[str, Any]:
    """Every stage on the tables of a world: `figures` by the truth, and `summaries` of the stages."""
    layout = Layout.of(settings)
    table = settings.score.output or layout.rankings
    summaries, shown = _staged(example, settings, world, number, say)
    for user, about in example.people(world).items():
        terminal.console().print(f"{about}:")
        if user not in shown[USER]:
            terminal.console().print("no list")
            continue
        found, history, ranking = show_user(layout, table, user, SHOWN_ITEMS)
        terminal.print_user(found, history, ranking[:SHOWN_ITEMS])
    figures = dict(example.measure(world, shown))
    if example.beside is not None:
        figures |= example.beside(world, settings, summaries["publish"]["run_id"])
    return {"figures": figures, "summaries": summaries}


def _staged(
    example: Example[W], settings: config.Config, world: W, number: int, say: Say, without: Sequence[str] = ()
) -> tuple[dict[str, Any], pl.DataFrame]:
    """The stages' summaries by name, and the published rankings. without: stages that do not run, of which there is
    what they left before."""
    say(f"round {number}: putting the tables into the bucket")
    for of, raw in example.tables(world).items():
        chain.put(raw, _where(settings, of))
    # Without held-out events there is nothing that evaluate could measure; the truth is measured below.
    ends = () if settings.data.split != "none" else ("evaluate",)
    names = [name for name in stages.order(settings) if name not in (*ends, *without)]
    staged = chain.staged_first(settings)
    summaries = {name: chain.stage(name, staged, f"{name} {number}") for name in names}
    return summaries, _shown(settings.score.output or Layout.of(settings).rankings)


def _where(settings: config.Config, name: str) -> str:
    """Where a raw table lies, by the setting that says so; of `data` if no section is named."""
    section, _, key = name.rpartition(".")
    return str(getattr(getattr(settings, section or "data"), key))


def _without_taken(lists: pl.DataFrame, log: pa.Table, columns: config.Columns) -> pl.DataFrame:
    """The same lists without what users have had since, ranks from 1 again."""
    had = pl.DataFrame(pl.from_arrow(log)).select(
        pl.col(columns.user).alias(USER), pl.col(columns.item).alias(ITEM)
    )  # fmt: skip
    left = lists.join(had, on=[USER, ITEM], how="anti").sort(USER, RANK)
    return left.with_columns(pl.int_range(1, pl.len() + 1).over(USER).alias(RANK))


def _shown(table: str) -> pl.DataFrame:
    """The published rankings, as any reader gets them."""
    return pl.DataFrame(pl.from_arrow(rankings.read(table)))


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _print(found: Mapping[str, Any]) -> None:
    rounds = found["rounds"]
    columns = {done.get("variant", "as configured"): done["figures"] for done in rounds}
    if "lists_of_round_1" in rounds[-1]:
        columns = {"round 1": rounds[0]["figures"]}
        columns |= {f"round 2, {what} of round 1": rounds[1][f"{what}_of_round_1"] for what in ("lists", "ranker")}
        columns["round 2"] = rounds[1]["figures"]
    terminal.print_rows(
        f"{found['example']}: {found['users']:,} users, measured by the truth that the generator knows",
        ["", *columns], [[name, *(_figure(of[name]) for of in columns.values())] for name in rounds[0]["figures"]],
    )  # fmt: skip
    terminal.print_rows("was the truth recovered?", ["", ""], [[of["what"], of["holds"]] for of in found["promises"]])
    said = "The truth was recovered" if found["recovered"] else "The truth was NOT recovered"
    terminal.console().print(
        f"{said}; this took {found['minutes']:.1f} minutes, and everything that it started is stopped."
    )
