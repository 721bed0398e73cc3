"""The course platform as an example: what suits each learner is known, and learners respond to what they are shown."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from llmrec.data import courses
from llmrec.data.courses import World
from llmrec.evaluation import known_truth
from llmrec.local.examples import Example, Figures, Promise
from llmrec.schema import ITEM, USER

PLACES = 5
A_COURSE = 3  # learners for each course of the catalogue
SUIT, ASKED, NEW = "suit", "of the topic asked for", "newcomers: suit"
RANKED, POPULAR, RANDOM, BEST = "published lists", "by popularity", "at random", "at best"
LOCKED, WITHOUT = "places with a course whose prerequisites are missing", "learners without a list"


def make(learners: int) -> World:
    """A world with a course for every three learners, within what there can be."""
    return courses.make(learners, min(max(courses.FEWEST_COURSES, learners // A_COURSE), courses.MOST_COURSES))


def measure(world: World, shown: pl.DataFrame) -> Figures:
    """Shares of the first 5 places of the published lists that are right, beside those of other lists.

    The other lists keep the same rules: no course that the learner had, and none whose prerequisites he lacks.
    """
    suiting, asked, pool = courses.suiting(world), courses.asked_for(world), courses.open_to(world)
    everyone = pl.Series(USER, world.users[USER].to_pylist())
    popular = known_truth.popular_lists(pool, pl.DataFrame(pl.from_arrow(world.interactions)), PLACES)
    # Of the topic asked for, what a learner had or may not take yet can be in nobody's list.
    asked = asked.join(pool, on=[USER, ITEM], how="semi")
    figures: dict[str, float] = {}
    groups = (
        (SUIT, suiting, everyone),
        (ASKED, asked, asked[USER].unique(maintain_order=True)),
        (NEW, suiting, pl.Series(USER, world.newcomers)),
    )
    for name, right, users in groups:
        figures |= {
            f"{name}, {RANKED}": known_truth.share_right(shown, right, users, PLACES),
            f"{name}, {POPULAR}": known_truth.share_right(popular, right, users, PLACES),
            f"{name}, {RANDOM}": known_truth.share_at_random(pool, right, users, PLACES),
            f"{name}, {BEST}": known_truth.best_share(right, users, PLACES),
        }
    both = suiting.join(asked, on=[USER, ITEM], how="semi")
    asking_newcomers = both.filter(pl.col(USER).is_in(world.newcomers))[USER].unique(maintain_order=True)
    name = "newcomers who ask: of the topic"
    figures |= {
        f"{name}, {RANKED}": known_truth.share_right(shown, asked, asking_newcomers, PLACES),
        f"{name}, {BEST}": known_truth.best_share(asked, asking_newcomers, PLACES),
    }
    had = pl.DataFrame(pl.from_arrow(world.interactions)).select(USER, ITEM)
    locked = shown.join(pool, on=[USER, ITEM], how="anti").join(had, on=[USER, ITEM], how="anti")
    return figures | {LOCKED: locked.height, WITHOUT: len(everyone) - shown[USER].n_unique()}


def promises(rounds: Sequence[Figures]) -> list[Promise]:
    """What has to hold in every round."""
    found = []
    for number, of in enumerate(rounds, start=1):
        for name in (SUIT, ASKED, NEW):
            ours, others = of[f"{name}, {RANKED}"], (of[f"{name}, {POPULAR}"], of[f"{name}, {RANDOM}"])
            halfway = (max(others) + of[f"{name}, {BEST}"]) / 2
            said = f"{ours:.3f}, more than {halfway:.3f}, halfway from popularity or chance to the best"
            found.append(Promise(f"round {number}, {name}: {said}", ours > halfway))
        found.append(Promise(f"round {number}, {LOCKED}: {of[LOCKED]:,.0f}", of[LOCKED] == 0))
        found.append(Promise(f"round {number}, {WITHOUT}: {of[WITHOUT]:,.0f}", of[WITHOUT] == 0))
    return found


def people(world: World) -> dict[str, str]:
    """A learner who asks for something, one who does not, and a newcomer who asks."""
    queries = dict(zip(*(world.requests[name].to_pylist() for name in (USER, courses.QUERY)), strict=True))
    new = set(world.newcomers)
    found = {}
    for asks, is_new in ((True, False), (False, False), (True, True)):
        for row in world.users.to_pylist():
            query = queries[row[USER]]
            if (query is not None, row[USER] in new) == (asks, is_new):
                said = f"asks now for '{query}'" if query else "asks for nothing now"
                who = f"{row[USER]}, {row[courses.LEVEL]}, wants to become a {row[courses.GOAL]}, {said}"
                found[row[USER]] = who + (" and is new" if is_new else "")
                break
    return found


EXAMPLE: Example[World] = Example(
    config="jobs/configs/courses.yaml",
    users=480,
    make=make,
    tables=lambda world: world.tables,
    measure=measure,
    people=people,
    promises=promises,
    respond=courses.respond,
)
