"""A made-up course platform whose truth is known: courses, learners, what they typed and took, and what suits whom.

The truth, in the order in which `make` draws it:

- A **course** is of one topic and one level (beginner, intermediate, advanced). Its title names one phrase of the topic
  and a form of the level, its description the topic and three phrases. A course above beginner level requires one
  course of the same topic, one level below.
- A **learner** has a goal, which means three topics, and a level: the highest that he can follow.
- In a topic he has **reached** the highest level of what he took of it. A course **suits** him now if it is of a topic
  of his goal, he has not had it, he has had what it requires, and its level is the reached one or the next above it
  (beginner at first), not above his own.
- He takes one after another of the courses that suit him, well-known ones more often, and stops while some still do.
  One event in ten is **noise**: any course outside his goal whose prerequisites he has.
- Before half of the other events he **typed** something: a phrase of the course's topic in a short sentence, as the
  texts of courses have it, but never a title.
- One learner in ten is a **newcomer**, with a goal, a level and no event. Half of all learners ask for something now.

So goals are told by the users table, by histories and by queries, and levels by the order of events; a ranking that has
learned them shows what suits, and one that goes by popularity does not. Nothing here knows how rankings are made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import pyarrow as pa

from llmrec.errors import UserError
from llmrec.schema import HEAD, ITEM, RANK, RELATION, TAIL, TIMESTAMP, TITLE, USER

QUERY, LEVEL, GOAL, DESCRIPTION = "query", "level", "goal", "description"
TOPIC, TEACHES, REQUIRES = "topic", "teaches", "requires"  # relations of the edges

LEVELS = ("beginner", "intermediate", "advanced")
# No phrase is part of a phrase of another topic, so that a query names one topic.
TOPICS: Mapping[str, tuple[str, ...]] = {
    "statistics": ("probability", "hypothesis tests", "confidence intervals", "linear regression", "survey sampling"),
    "databases": ("SQL queries", "table joins", "database indexes", "transactions", "data modelling"),
    "machine learning": ("decision trees", "gradient boosting", "cross-validation", "neural networks", "clustering"),
    "data visualisation": ("bar charts", "dashboards", "thematic maps", "colour scales", "infographics"),
    "web development": ("HTML pages", "CSS layouts", "JavaScript", "web forms", "browser storage"),
    "interface design": ("wireframes", "usability tests", "typography", "clickable prototypes", "icon design"),
    "cloud operations": ("containers", "load balancers", "server monitoring", "deployment pipelines", "backups"),
    "information security": ("encryption", "password policies", "network attacks", "access rights", "security audits"),
    "genetics": ("DNA sequencing", "gene expression", "heredity", "mutations", "genome assembly"),
    "cell biology": ("cell membranes", "proteins", "metabolism", "microscopy", "cell division"),
    "organic chemistry": ("reaction mechanisms", "polymers", "chirality", "solvents", "spectroscopy"),
    "marketing": ("advertising campaigns", "brand building", "customer surveys", "search engine ads", "newsletters"),
    "accounting": ("balance sheets", "bookkeeping", "tax returns", "cash flow", "cost allocation"),
    "negotiation": ("bargaining", "conflict resolution", "contracts", "persuasion", "mediation"),
    "project management": ("project schedules", "risk registers", "agile sprints", "stakeholders", "project budgets"),
    "creative writing": ("short stories", "dialogue", "plot structure", "poetry", "revising drafts"),
    "photography": ("portraits", "exposure", "studio lighting", "photo retouching", "landscape pictures"),
    "film making": ("screenplays", "camera movement", "film editing", "sound recording", "storyboards"),
    "music theory": ("harmony", "rhythm", "chord progressions", "counterpoint", "ear training"),
    "Spanish": ("Spanish verbs", "Spanish conversation", "Spanish pronunciation", "Spanish spelling", "Spanish idioms"),
}
GOALS: Mapping[str, tuple[str, str, str]] = {
    "data scientist": ("statistics", "databases", "machine learning"),
    "data analyst": ("statistics", "databases", "data visualisation"),
    "web designer": ("web development", "interface design", "data visualisation"),
    "web developer": ("web development", "interface design", "databases"),
    "site engineer": ("cloud operations", "information security", "web development"),
    "bioinformatician": ("genetics", "statistics", "machine learning"),
    "laboratory researcher": ("genetics", "cell biology", "organic chemistry"),
    "founder": ("marketing", "accounting", "negotiation"),
    "team lead": ("project management", "negotiation", "accounting"),
    "journalist": ("creative writing", "photography", "data visualisation"),
    "film director": ("film making", "creative writing", "photography"),
    "film composer": ("music theory", "film making", "creative writing"),
    "tour guide": ("Spanish", "photography", "marketing"),
}
FORMS = {
    "beginner": ("first steps", "from the ground up", "for newcomers", "an introduction"),
    "intermediate": ("in practice", "beyond the basics", "hands on", "a workshop"),
    "advanced": ("in depth", "a masterclass", "for experts", "open problems"),
}
ASKED = ("I want to learn about {}", "{}", "a course on {}", "help me with {}", "looking for {} classes")

FEWEST_COURSES, MOST_COURSES, A_TOPIC = 60, 1000, 10
FEWEST_LEARNERS, MOST_LEARNERS = 20, 100_000
EVENTS = (3, 12)  # a learner's, both included
STILL_OPEN = 5  # a learner stops when no more than so many courses suit him
NEWCOMERS, NOISE, TYPED = 0.1, 0.1, 0.5
FIRST_SECOND, DAY = 1_704_067_200, 86_400  # 2024-01-01 in UTC
LOOKED_AT, TAKEN = 5, 2  # a learner looks at so many places of his list, and takes so many courses at most
TAKES, TAKES_ANYWAY = 0.8, 0.02  # a course that suits and is what he asked for; any other


@dataclass(frozen=True)
class World:
    """The tables, and what is not in them.

    items: item_id (string), title, description, level. users: user_id (string), level, goal. interactions: user_id,
    item_id, timestamp (int64, Unix seconds), query (string, null where nothing was typed). edges: head (an item_id),
    relation (topic, teaches, requires), tail (of requires an item_id). requests: user_id, query (null: nothing typed),
    a row a learner. newcomers: user_ids of who had no events when the world was made. seed: of what is drawn next.
    """

    items: pa.Table
    users: pa.Table
    interactions: pa.Table
    edges: pa.Table
    requests: pa.Table
    newcomers: tuple[str, ...]
    seed: int

    @property
    def tables(self) -> dict[str, pa.Table]:
        """The tables by name."""
        names = ("items", "users", "interactions", "edges", "requests")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Course:
    """level: 1 beginner .. 3 advanced; requires: ids."""

    item_id: str
    topic: str
    level: int
    requires: tuple[str, ...]


@dataclass(frozen=True)
class Learner:
    """level: the highest that he can follow; topics: of his goal; had: ids, oldest first; reached: level by topic."""

    user_id: str
    level: int
    topics: tuple[str, ...]
    had: tuple[str, ...] = ()
    reached: tuple[tuple[str, int], ...] = ()

    def took(self, course: Course) -> Learner:
        """The learner after one more course."""
        reached = dict(self.reached)
        reached[course.topic] = max(reached.get(course.topic, 0), course.level)
        return replace(self, had=(*self.had, course.item_id), reached=tuple(reached.items()))

    def may(self, course: Course) -> bool:
        """Whether he has not had it, but all that it requires."""
        return course.item_id not in self.had and all(one in self.had for one in course.requires)

    def suits(self, course: Course) -> bool:
        """The truth: whether it is for him now."""
        reached = dict(self.reached).get(course.topic, 0)
        right = max(reached, 1) <= course.level <= min(reached + 1, self.level)
        return right and course.topic in self.topics and self.may(course)


def make(learners: int, courses: int, seed: int = 0) -> World:
    """A world of so many learners and courses; the same for the same numbers.

    Raises:
        UserError: fewer courses than 60, which is six topics, or than 20 learners; or too many for titles that differ.
    """
    if not FEWEST_COURSES <= courses <= MOST_COURSES:
        raise UserError(f"{courses} courses: give {FEWEST_COURSES} to {MOST_COURSES}, about {A_TOPIC} for each topic")
    if not FEWEST_LEARNERS <= learners <= MOST_LEARNERS:
        raise UserError(f"{learners} learners: give {FEWEST_LEARNERS} to {MOST_LEARNERS:,}")
    rng = np.random.default_rng(seed)
    topics = list(TOPICS)[: courses // A_TOPIC]
    items, edges = _catalogue(topics, courses)
    catalogue = _courses(items, edges)
    known = dict(zip(catalogue, 1 / np.sqrt(1 + rng.permutation(courses)), strict=True))
    goals = [goal for goal, of in GOALS.items() if set(of) <= set(topics)]
    ids = [f"learner-{i:05d}" for i in range(learners)]
    drawn = list(zip(ids, rng.choice(3, learners, p=(0.4, 0.35, 0.25)) + 1, rng.choice(goals, learners), strict=True))
    users = pa.table({
        USER: ids, LEVEL: [LEVELS[level - 1] for _, level, _ in drawn], GOAL: [str(goal) for *_, goal in drawn]
    })  # fmt: skip
    new = {ids[i] for i in rng.choice(learners, max(1, round(NEWCOMERS * learners)), replace=False)}
    events: list[tuple[str, str, int, str | None]] = []
    now = []
    for user, level, goal in drawn:
        learner = Learner(user, int(level), GOALS[goal])
        if user not in new:
            learner, taken = _past(learner, catalogue, known, rng)
            events += taken
        now.append(learner)
    events.sort(key=lambda event: event[2])
    return World(items, users, _log(events), edges, _requests(now, catalogue, rng), tuple(sorted(new)), seed + 1)


def respond(world: World, shown: pl.DataFrame) -> World:
    """The world after learners saw their lists: a longer log, and new requests.

    A learner looks at the first 5 places. What suits him and is of the topic that he asked for, if he asked, he takes
    with probability 0.8, anything else with 0.02, two courses at most, and never one whose prerequisites he lacks.
    These events come after all others, with what he had typed, even if it was something else that he took.

    shown: user_id, rank (from 1) and item_id, as published.
    """
    rng = np.random.default_rng(world.seed)
    catalogue = _courses(world.items, world.edges)
    wanted = dict(zip(*(world.requests[name].to_pylist() for name in (USER, QUERY)), strict=True))
    seen = shown.filter(pl.col(RANK) <= LOOKED_AT).sort(USER, RANK)
    lists = {user: found for (user,), found in seen.group_by([USER], maintain_order=True)}
    start = int(np.max(world.interactions[TIMESTAMP].to_numpy())) + DAY
    events: list[tuple[str, str, int, str | None]] = []
    now = []
    for learner in _learners(world):
        query, taken = wanted[learner.user_id], 0
        for item in lists[learner.user_id][ITEM] if learner.user_id in lists else ():
            course = catalogue[item]
            answers = learner.suits(course) and (query is None or topic_of(query) == course.topic)
            # Drawn in any case, so that what one learner does leaves the others' luck as it is.
            takes = rng.random() < (TAKES if answers else TAKES_ANYWAY)
            if takes and taken < TAKEN and learner.may(course):
                taken += 1
                learner = learner.took(course)
                events.append((learner.user_id, item, start + len(events) * 60, query))
        now.append(learner)
    log = pa.concat_tables([world.interactions, _log(events)])
    return replace(world, interactions=log, requests=_requests(now, catalogue, rng), seed=world.seed + 1)


def suiting(world: World) -> pl.DataFrame:
    """The truth: user_id and item_id of every course that suits a learner now, whatever he asks for."""
    catalogue = _courses(world.items, world.edges).values()
    rows = [(who.user_id, course.item_id) for who in _learners(world) for course in catalogue if who.suits(course)]
    return _pairs(rows)


def open_to(world: World) -> pl.DataFrame:
    """user_id and item_id of every course that a learner may take now: not had, and all that it requires had."""
    catalogue = _courses(world.items, world.edges).values()
    rows = [(who.user_id, course.item_id) for who in _learners(world) for course in catalogue if who.may(course)]
    return _pairs(rows)


def asked_for(world: World) -> pl.DataFrame:
    """user_id and item_id of every course of the topic that a learner asks for now; none of who asks for nothing."""
    of_topic: dict[str, list[str]] = {}
    for course in _courses(world.items, world.edges).values():
        of_topic.setdefault(course.topic, []).append(course.item_id)
    rows = zip(*(world.requests[name].to_pylist() for name in (USER, QUERY)), strict=True)
    return _pairs([(user, item) for user, text in rows if text for item in of_topic[str(topic_of(text))]])


def topic_of(query: str) -> str | None:
    """The topic whose phrase a query names; None if it names none."""
    return next((topic for topic, phrases in TOPICS.items() if any(phrase in query for phrase in phrases)), None)


def _pairs(rows: Sequence[tuple[str, str]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={USER: pl.String, ITEM: pl.String}, orient="row")


def _catalogue(topics: Sequence[str], courses: int) -> tuple[pa.Table, pa.Table]:
    """The tables of items and edges. Course i is of topic i modulo their number."""
    items: list[dict[str, str]] = []
    edges: list[tuple[str, str, str]] = []
    for number, topic in enumerate(topics):
        ids = [f"course-{i:04d}" for i in range(number, courses, len(topics))]
        phrases = TOPICS[topic]
        # Two in five are for beginners, and rather more are intermediate than advanced.
        ends = [0, round(0.4 * len(ids)), round(0.75 * len(ids)), len(ids)]
        for level, name in enumerate(LEVELS):
            of_level = ids[ends[level] : ends[level + 1]]
            below = ids[ends[level - 1] : ends[level]] if level else []
            for place, item in enumerate(of_level):
                taught = [phrases[(place + step) % len(phrases)] for step in range(3)]
                title = f"{taught[0]}: {FORMS[name][place // len(phrases) % len(FORMS[name])]}"
                text = f"A course in {topic} for {name} learners, about {taught[0]}, {taught[1]} and {taught[2]}."
                items.append({ITEM: item, TITLE: title[0].upper() + title[1:], DESCRIPTION: text, LEVEL: name})
                edges += [(item, TOPIC, topic), *((item, TEACHES, phrase) for phrase in taught)]
                edges += [(item, REQUIRES, below[place % len(below)])] if below else []
    items.sort(key=lambda row: row[ITEM])
    columns = [list(column) for column in zip(*edges, strict=True)]
    return pa.Table.from_pylist(items), pa.table(columns, [HEAD, RELATION, TAIL])


def _courses(items: pa.Table, edges: pa.Table) -> dict[str, Course]:
    """Courses by id, ascending, as the tables tell of them."""
    topic: dict[str, str] = {}
    requires: dict[str, tuple[str, ...]] = {}
    for head, relation, tail in zip(*(edges[name].to_pylist() for name in (HEAD, RELATION, TAIL)), strict=True):
        if relation == TOPIC:
            topic[head] = tail
        elif relation == REQUIRES:
            requires[head] = (*requires.get(head, ()), tail)
    rows = zip(items[ITEM].to_pylist(), items[LEVEL].to_pylist(), strict=True)
    return {one: Course(one, topic[one], LEVELS.index(level) + 1, requires.get(one, ())) for one, level in rows}


def _learners(world: World) -> Iterable[Learner]:
    """Learners as the tables tell of them, after all events of the log."""
    catalogue = _courses(world.items, world.edges)
    had: dict[str, list[str]] = {}
    for user, item in zip(world.interactions[USER].to_pylist(), world.interactions[ITEM].to_pylist(), strict=True):
        had.setdefault(user, []).append(item)
    rows = zip(*(world.users[name].to_pylist() for name in (USER, LEVEL, GOAL)), strict=True)
    for user, level, goal in rows:
        learner = Learner(user, LEVELS.index(level) + 1, GOALS[goal])
        for item in had.get(user, ()):
            learner = learner.took(catalogue[item])
        yield learner


def _past(
    learner: Learner, catalogue: Mapping[str, Course], known: Mapping[str, float], rng: np.random.Generator
) -> tuple[Learner, list[tuple[str, str, int, str | None]]]:
    """The learner after what he took, and the events. known: how well a course is known, by which it is drawn."""
    events: list[tuple[str, str, int, str | None]] = []
    at = FIRST_SECOND + int(rng.integers(200 * DAY))
    for _ in range(rng.integers(EVENTS[0], EVENTS[1] + 1)):
        noise = bool(rng.random() < NOISE)
        right = [course for course in catalogue.values() if learner.suits(course)]
        if len(right) <= STILL_OPEN:
            break
        others = [one for one in catalogue.values() if one.topic not in learner.topics and learner.may(one)]
        among = others if noise else right
        weights = np.asarray([known[course.item_id] for course in among])
        course = among[rng.choice(len(among), p=weights / weights.sum())]
        query = _typed(course.topic, rng) if not noise and rng.random() < TYPED else None
        events.append((learner.user_id, course.item_id, at, query))
        learner = learner.took(course)
        at += 3600 + int(rng.exponential(3 * DAY))
    return learner, events


def _typed(topic: str, rng: np.random.Generator) -> str:
    return str(rng.choice(ASKED)).format(rng.choice(TOPICS[topic]))


def _requests(learners: Iterable[Learner], catalogue: Mapping[str, Course], rng: np.random.Generator) -> pa.Table:
    """Half of the learners ask now, for a topic of which something suits them."""
    rows: list[tuple[str, str | None]] = []
    for learner in learners:
        topics = sorted({course.topic for course in catalogue.values() if learner.suits(course)})
        asks = bool(rng.random() < TYPED) and bool(topics)
        rows.append((learner.user_id, _typed(str(rng.choice(topics)), rng) if asks else None))
    users, queries = zip(*rows, strict=True)
    return pa.table({USER: pa.array(users), QUERY: pa.array(queries, pa.string())})


def _log(events: Sequence[tuple[str, str, int, str | None]]) -> pa.Table:
    kinds = {USER: pa.string(), ITEM: pa.string(), TIMESTAMP: pa.int64(), QUERY: pa.string()}
    columns = list(zip(*events, strict=True)) or [()] * len(kinds)
    return pa.table({name: pa.array(column, kind) for (name, kind), column in zip(kinds.items(), columns, strict=True)})
