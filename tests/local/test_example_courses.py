"""The course platform through the real stages on a cluster, small and with tiny models: the known truth is found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
import word_models
import yaml

from llmrec import config
from llmrec.data import courses
from llmrec.errors import UserError
from llmrec.local import chain, example_courses, examples
from llmrec.tables import rankings

HERE = Path(__file__).parents[2]
ROOT = "s3://llmrec-test/courses"
LEARNERS = 120


def save_tiny_models(world: courses.World, directory: Path) -> tuple[str, str]:
    texts = [text for name in ("title", "description") for text in world.items[name].to_pylist()]
    texts += [*courses.ASKED, *courses.GOALS, *courses.LEVELS, *(p for of in courses.TOPICS.values() for p in of)]
    return word_models.save(texts, directory)


def settings(decoder: str, encoder: str) -> config.Config:
    """The example's own configuration with tiny models, elsewhere."""
    values = yaml.safe_load((HERE / example_courses.EXAMPLE.config).read_text())
    values["root"] = ROOT
    for name in ("items", "interactions", "users", "edges", "requests"):
        values["data"][name] = f"{ROOT}/raw/{name}.parquet"
    values["data"]["buckets"] = 2
    values["model"] |= {"base": decoder, "layers": None}
    values["items"] |= {"encoder": encoder, "max_tokens": 48, "actors": 1}
    values["train"] |= {"workers": 1, "epochs": 15, "learning_rate": 3e-3, "head_learning_rate": 1e-2}
    return config.build(values)


def quietly(message: str) -> None:
    """A `say` for stages."""


def of_lists(figures: examples.Figures, measure: str) -> list[float]:
    """A share in the published lists, by popularity, at random, and at best."""
    lists = (example_courses.RANKED, example_courses.POPULAR, example_courses.RANDOM, example_courses.BEST)
    return [figures[f"{measure}, {name}"] for name in lists]


def test_the_truth_is_found_and_nothing_locked_is_shown(cluster: Any, tmp_path: Path) -> None:
    answers: list[courses.World] = []

    def respond(before: courses.World, shown: pl.DataFrame) -> courses.World:
        answers.append(courses.respond(before, shown))
        return answers[-1]

    world = example_courses.EXAMPLE.make(LEARNERS)
    wanted = settings(*save_tiny_models(world, tmp_path))
    rounds, changes = examples.play(replace(example_courses.EXAMPLE, respond=respond), wanted, world, quietly)
    of, summaries = rounds[0]["figures"], rounds[0]["summaries"]
    assert of[example_courses.LOCKED] == of[example_courses.WITHOUT] == 0, of
    ours, popular, random, best = of_lists(of, example_courses.SUIT)
    assert (max(popular, random) + best) / 2 < ours <= best, of
    ours, popular, *_ = of_lists(of, example_courses.NEW)
    assert ours > popular, of
    ours, _, random, _ = of_lists(of, example_courses.ASKED)
    assert ours > 2 * random, of
    assert summaries["prepare"]["events_kept"] == world.interactions.num_rows
    assert summaries["recall"]["locked"] > 0  # there was something to leave out

    # What learners did then, by the published table, made a log that the stages took, at first without training.
    (longer,) = answers
    again = rounds[1]["summaries"]
    assert again["prepare"]["events_kept"] == longer.interactions.num_rows > world.interactions.num_rows
    assert again["score"]["model_version"] != summaries["score"]["model_version"]
    lists = (rounds[1]["figures"], rounds[1]["ranker_of_round_1"], rounds[1]["lists_of_round_1"])
    trained, untrained, kept = (of_lists(figures, example_courses.SUIT)[0] for figures in lists)
    assert len({trained, untrained, kept}) == 3 and min(trained, untrained) > kept, (trained, untrained, kept)
    assert all(figures[example_courses.LOCKED] == 0 for figures in lists)
    assert changes is not None
    ids = [changes[of]["run_id"] for of in ("a", "b")]
    assert ids == [done["summaries"]["publish"]["run_id"] for done in rounds] and len(set(ids)) == 2

    # Without the rule courses are shown whose prerequisites are missing, and the measure tells.
    lax = wanted.model_copy(update={"score": wanted.score.model_copy(update={"requires": ""})})
    for name in ("recall", "score"):
        chain.stage(name, lax)
    without = example_courses.measure(longer, published())
    assert without[example_courses.LOCKED] > 0
    assert not all(promise.holds for promise in example_courses.promises([without]))


def published() -> pl.DataFrame:
    return pl.DataFrame(pl.from_arrow(rankings.read(f"{ROOT}/rankings")))


def test_lists_of_before_lose_what_was_taken() -> None:
    lists = pl.DataFrame({"user_id": ["a", "a", "a", "b"], "rank": [1, 2, 3, 1], "item_id": ["p", "q", "r", "p"]})
    log = pa.table({"customer": ["a", "b"], "sku": ["p", "q"]})
    left = examples._without_taken(lists, log, config.Columns(user="customer", item="sku"))
    assert list(left.iter_rows()) == [("a", 1, "q"), ("a", 2, "r"), ("b", 1, "p")]


def test_an_example_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match=r"example 'course': there is none; there are .*courses"):
        examples.named("course")
