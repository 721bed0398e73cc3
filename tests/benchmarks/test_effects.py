"""What the benchmarks of pictures and of new items and users are made of: their truths hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from benchmarks.cold_start.__main__ import of_items, of_users
from benchmarks.cold_start.days import Days, movielens_days
from benchmarks.images import pictures
from benchmarks.images.__main__ import by_look
from benchmarks.quality import datasets
from benchmarks.queries import __main__ as queries
from benchmarks.speed.processes import ROOT
from llmrec import config
from llmrec.data import courses
from llmrec.local.example_courses import EXAMPLE
from llmrec.ranker.ragged import Ragged


def look_of(file: Path) -> int:
    """By its mean colour, and by which way it changes more."""
    image = np.asarray(Image.open(file), np.float64) / 255
    mean = image.mean((0, 1)) / image.mean()
    names = list(pictures.COLOURS)
    near = [np.abs(mean - np.asarray(c) / np.mean(c)).sum() for c in pictures.COLOURS.values()]
    lines = image.mean(2)
    stripes = "upright" if lines.mean(0).std() > lines.mean(1).std() else "level"
    return pictures.LOOKS.index((names[int(np.argmin(near))], stripes))


@pytest.mark.parametrize("kind", [pictures.TELLS, pictures.NOISE])
def test_a_picture_tells_the_look_or_the_title_does(kind: str, tmp_path: Path) -> None:
    made = pictures.write(tmp_path / kind, kind, 50, 60, seed=1)
    dataset = datasets.read(str(made.folder))
    assert dataset.items["item_id"].to_pylist() == list(range(60))
    shown = np.asarray([look_of(made.folder / "photos" / name) for name in dataset.items["photo"].to_pylist()])
    titles = dataset.items["title"].to_pylist()
    told = [any(colour in title for colour in pictures.COLOURS) for title in titles]
    if kind == pictures.TELLS:
        assert (shown == made.looks).all() and not any(told)
    else:
        assert all(told) and (shown == made.looks).mean() < 0.4
        assert all(title.startswith(" ".join(pictures.LOOKS[k])) for title, k in zip(titles, made.looks, strict=True))
    assert (dataset.histories.lengths == pictures.EVENTS).all()
    # Of a user's eight items most are of two looks; of eight drawn from all, half as many.
    counts = [np.bincount(made.looks[dataset.histories[u]], minlength=8) for u in range(50)]
    assert np.mean([np.sort(c)[-2:].sum() for c in counts]) > 6


def test_the_truth_ranks_by_how_often_a_look_was_taken() -> None:
    looks = np.asarray([3, 3, 1, 0])
    found = by_look(looks, Ragged.of([[0, 1, 2], []]))
    assert found.tolist() == [[2, 2, 1, 0], [0, 0, 0, 0]]


def test_nothing_of_what_comes_on_the_second_day_is_known_on_the_first() -> None:
    days = movielens_days(200, 150, seed=0)
    assert (len(days.new_items), len(days.new_users)) == (200, 150)
    assert not set(days.log["item_id"]) & set(days.new_items) and not set(days.log["user_id"]) & set(days.new_users)
    assert set(days.items["item_id"]) - set(days.first_items["item_id"]) == set(days.new_items)
    assert days.log.height + days.truth.height == 100_000
    late = pl.col("item_id").is_in(days.new_items) | pl.col("user_id").is_in(days.new_users)
    assert days.truth.filter(~late).is_empty()
    assert days.new_items != movielens_days(200, 150, seed=1).new_items


def test_shares_of_right_places_by_hand() -> None:
    frame = pl.DataFrame({"user_id": [1, 1, 2, 9], "item_id": [5, 6, 5, 50]})
    days = Days(frame, frame, frame, frame, new_items=[50, 51], new_users=[1, 2, 3], truth=frame)
    lists = pl.DataFrame({
        "user_id": [1, 1, 2, 9, 9], "rank": [1, 2, 1, 1, 11], "item_id": [5, 50, 6, 50, 51],
    })  # fmt: skip
    nothing = lists.clear()
    ours, popular = of_users(days, {"ours": lists, "popularity": nothing})
    assert ours["precision"] == pytest.approx(1 / 30) and (ours["listed"], popular["listed"]) == (2, 0)
    assert ours["to_popularity"][0] == pytest.approx(1 / 30) and popular["to_popularity"] is None
    found = of_items("ours", lists, days, 0.5)
    assert (found["shown"], found["places"], found["precision"]) == (1, 1, 1.0)
    assert of_items("popularity", nothing, days, None)["precision"] is None


def test_lists_of_what_was_asked_for_are_right_and_popular_ones_are_not() -> None:
    world = courses.make(120, courses.FEWEST_COURSES)
    topic = courses.asked_for(world).join(courses.open_to(world), on=["user_id", "item_id"], how="semi")
    best = topic.with_columns(rank=pl.int_range(1, pl.len() + 1).over("user_id"))
    found = queries.figures(world, {queries.BOTH: best, "none": best.clear()})
    rows = {row["name"]: row for row in found["asked"]["rows"]}
    few = topic.group_by("user_id").len()["len"].clip(upper_bound=queries.PLACES)
    assert rows[queries.BOTH]["share"] == pytest.approx(few.sum() / (queries.PLACES * few.len()))
    assert rows["none"]["share"] == 0 and rows["none"]["less"][0] == pytest.approx(-rows[queries.BOTH]["share"])
    assert rows["unknown, by popularity"]["share"] < rows[queries.BOTH]["share"] / 3
    assert 0 < found["new"]["users"] < found["asked"]["users"] < found["suiting"]["users"] == 120


def test_a_query_is_recalled_by_and_read_but_where_a_variant_leaves_it_out() -> None:
    settings = config.load(str(ROOT / EXAMPLE.config), [])
    made = {name: variant(settings) for name, variant in queries.VARIANTS.items()}
    assert {name: ("query" in of.recall.merge, "{query}" in of.prompt.context) for name, of in made.items()} == {
        queries.BOTH: (True, True), "read alone": (False, True), "recalled by alone": (True, False),
        "unknown": (False, False),
    }  # fmt: skip
    for of in made.values():
        config.Recall.model_validate(of.recall.model_dump())
