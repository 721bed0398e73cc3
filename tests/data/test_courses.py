"""What the generator of the course platform promises: who takes what when, what is typed, and what the truth is."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.data import courses
from llmrec.data.courses import GOALS, LEVELS, REQUIRES, TOPIC, TOPICS, World
from llmrec.errors import UserError

SIZES = st.tuples(st.integers(20, 60), st.integers(60, 230), st.integers(0, 99))


def frame(world: World, name: str) -> pl.DataFrame:
    return pl.DataFrame(pl.from_arrow(world.tables[name]))


def tails(world: World, relation: str) -> dict[str, list[str]]:
    found = frame(world, "edges").filter(relation=relation).group_by("head").agg("tail")
    return dict(found.iter_rows())


def taken(world: World) -> dict[str, list[tuple[str, str | None]]]:
    """Each learner's events in the order of time: (course, what was typed before)."""
    log = frame(world, "interactions").sort("timestamp", maintain_order=True)
    rows = log.group_by("user_id", maintain_order=True).agg(pl.struct("item_id", "query"))
    return {user: [(of["item_id"], of["query"]) for of in events] for user, events in rows.iter_rows()}


def perfect_lists(world: World) -> pl.DataFrame:
    """Lists of what suits and is of the topic asked for, and then of what suits."""
    asked = courses.asked_for(world).with_columns(asked=True)
    pairs = courses.suiting(world).join(asked, on=["user_id", "item_id"], how="left").fill_null(False)
    pairs = pairs.sort(["user_id", "asked", "item_id"], descending=[False, True, False])
    return pairs.with_columns(rank=pl.int_range(1, pl.len() + 1).over("user_id"))


def check_log(world: World) -> None:
    """Courses are taken once, and after all that they require."""
    requires = tails(world, REQUIRES)
    for events in taken(world).values():
        had: set[str] = set()
        for item, _ in events:
            assert item not in had and had.issuperset(requires.get(item, ()))
            had.add(item)


def check_queries(world: World) -> None:
    """What was typed names the topic of the course in words of the courses' texts, and is no title."""
    topic = {item: of for item, (of,) in tails(world, TOPIC).items()}
    items = frame(world, "items")
    texts, titles = " ".join(items["description"]), set(items["title"].str.to_lowercase())
    for item, query in (event for events in taken(world).values() for event in events):
        if query is not None:
            named = {of for of, phrases in TOPICS.items() if any(p in query for p in phrases)}
            assert named == {topic[item]} and query.lower() not in titles
            assert any(phrase in texts for phrase in TOPICS[topic[item]] if phrase in query)


@settings(max_examples=12, deadline=None)
@given(SIZES)
def test_what_holds_for_every_size_and_seed(size: tuple[int, int, int]) -> None:
    learners, number, seed = size
    world = courses.make(learners, number, seed)
    items, users, log = (frame(world, name) for name in ("items", "users", "interactions"))
    assert (items["item_id"].n_unique(), items["title"].n_unique(), items.height) == (number, number, number)
    assert (users["user_id"].n_unique(), users.height) == (learners, learners)
    assert frame(world, "requests")["user_id"].to_list() == users["user_id"].to_list()
    ids = set(items["item_id"])
    assert ids.issuperset(log["item_id"]) and set(frame(world, "edges")["head"]) == ids
    assert ids.issuperset(frame(world, "edges").filter(relation=REQUIRES)["tail"])
    assert set(users["user_id"]) - set(log["user_id"]) == set(world.newcomers) != set()
    check_log(world)
    check_queries(world)
    check_log(courses.respond(world, perfect_lists(world)))


def test_prerequisites_are_of_the_topic_and_one_level_below() -> None:
    world = courses.make(20, 200)
    level = dict(frame(world, "items").select("item_id", "level").iter_rows())
    topic = tails(world, TOPIC)
    for head, tail in tails(world, REQUIRES).items():
        assert len(tail) == 1 and topic[head] == topic[tail[0]]
        assert LEVELS.index(level[head]) == LEVELS.index(level[tail[0]]) + 1
    assert {item for item, name in level.items() if name != "beginner"} == set(tails(world, REQUIRES))


def test_the_truth_by_another_way() -> None:
    """Right topic, not had, prerequisites had, the reached level or the next, not above one's own: by joins."""
    world = courses.make(80, 120, 3)
    topic = pl.DataFrame([(i, t[0]) for i, t in tails(world, TOPIC).items()], ["item_id", "topic"], orient="row")
    need = pl.DataFrame([(i, t[0]) for i, t in tails(world, REQUIRES).items()], ["item_id", "needed"], orient="row")
    number = pl.col("level").replace_strict({name: i + 1 for i, name in enumerate(LEVELS)}, return_dtype=pl.Int64)
    items = (
        frame(world, "items").select("item_id", number).join(topic, on="item_id").join(need, on="item_id", how="left")
    )
    had = frame(world, "interactions").select("user_id", "item_id")
    reached = had.join(items, on="item_id").group_by("user_id", "topic").agg(reached=pl.col("level").max())
    users = frame(world, "users").select("user_id", "goal", own=number)
    goals = pl.DataFrame([(g, t) for g, of in GOALS.items() for t in of], ["goal", "topic"], orient="row")
    pairs = users.join(goals, on="goal").join(items, on="topic").join(had, on=["user_id", "item_id"], how="anti")
    pairs = pairs.join(reached, on=["user_id", "topic"], how="left").with_columns(pl.col("reached").fill_null(0))
    met = had.rename({"item_id": "needed"}).with_columns(met=True)
    pairs = pairs.join(met, on=["user_id", "needed"], how="left")
    low, high = pl.max_horizontal("reached", 1), pl.min_horizontal(pl.col("reached") + 1, "own")
    pairs = pairs.filter(pl.col("level").is_between(low, high) & (pl.col("needed").is_null() | pl.col("met")))
    wanted = set(pairs.select("user_id", "item_id").iter_rows())
    assert set(courses.suiting(world).iter_rows()) == wanted
    assert wanted < set(courses.open_to(world).iter_rows())


def test_the_same_seed_makes_the_same_and_another_another() -> None:
    first, again, other = (courses.make(40, 80, seed) for seed in (5, 5, 6))
    assert first == again and first.interactions != other.interactions
    lists = perfect_lists(first)
    assert courses.respond(first, lists) == courses.respond(again, lists)


def test_learners_take_what_suits_of_what_they_are_shown() -> None:
    world = courses.make(200, 120)
    suits, asked = set(courses.suiting(world).iter_rows()), set(courses.asked_for(world).iter_rows())
    asking = {user for user, _ in asked}
    lists = perfect_lists(world)
    after = courses.respond(world, lists)
    before = world.interactions.num_rows
    assert after.interactions.slice(0, before) == world.interactions
    new = pl.DataFrame(pl.from_arrow(after.interactions.slice(before)))
    assert new["timestamp"].min() > frame(world, "interactions")["timestamp"].max()
    typed = dict(frame(world, "requests").iter_rows())
    assert all(typed[user] == query for user, query in new.select("user_id", "query").iter_rows())
    pairs = [(user, item) for user, item in new.select("user_id", "item_id").iter_rows()]
    right = [pair for pair in pairs if pair in suits and (pair[0] not in asking or pair in asked)]
    assert len(right) > 0.9 * len(pairs) > 200
    # Who is shown what does not suit takes next to nothing of it.
    wrong = courses.open_to(world).join(courses.suiting(world), on=["user_id", "item_id"], how="anti")
    wrong = wrong.with_columns(rank=pl.int_range(1, pl.len() + 1).over("user_id"))
    taken_anyway = courses.respond(world, wrong).interactions.num_rows - before
    assert taken_anyway < 0.2 * len(pairs)


@pytest.mark.parametrize(
    ("learners", "number", "said"),
    [(20, 59, "59 courses: give 60 to 1000"), (20, 1001, "1001 courses: give 60 to 1000"),
     (19, 60, "19 learners: give 20 to 100,000"), (-1, 60, "-1 learners")],
)  # fmt: skip
def test_sizes_that_cannot_be_are_refused(learners: int, number: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        courses.make(learners, number)
