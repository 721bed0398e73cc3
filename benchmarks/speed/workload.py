"""Requests of exact token lengths out of MovieLens-100k: real users, their histories, films as candidates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.speed.request import Shape, UserRequest
from llmrec import assets
from llmrec.data.movielens import tables

OPENING = "Films watched, oldest first:"
FILLER = " film"  # one token in this vocabulary; fills up what no whole word fits


def build(tokenizer: Any, shape: Shape, users: int) -> list[UserRequest]:
    """The same requests for the same arguments; more users only add to them.

    Texts are cut between words only, where the tokeniser cuts too, so that a text gives back exactly its tokens, alone
    and as a pair. That is checked for every pair.
    """
    found = tables(Path(assets.fetch("ml-100k")))
    films = [
        f" {title} ({year}), {genres};"
        for _, title, year, genres in zip(*found["items"].to_pydict().values(), strict=True)
    ]
    row = {item: i for i, item in enumerate(found["items"]["item_id"].to_pylist())}
    log = pl.from_arrow(found["interactions"].select(["user_id", "item_id", "timestamp"]))
    assert isinstance(log, pl.DataFrame)
    log = log.sort("user_id", "timestamp", maintain_order=True)
    active = log.group_by("user_id", maintain_order=True).all().filter(pl.col("item_id").list.len() >= 50)
    requests = []
    for user, watched in active.head(users).select("user_id", "item_id").iter_rows():
        history = [films[row[i]] for i in watched]
        trunk = _exactly(tokenizer, [OPENING, *_words(cycle(history), shape.trunk)], shape.trunk)
        items: dict[str, list[int]] = {}
        for film in np.random.default_rng(user).permutation(len(films)):
            text = _exactly(tokenizer, _words(cycle([films[film]]), shape.item), shape.item)
            items.setdefault(text, _tokens(tokenizer, text))
            if len(items) == shape.candidates:
                break
        request = UserRequest(_tokens(tokenizer, trunk), trunk, list(items.values()), list(items))
        _check(tokenizer, request, shape)
        requests.append(request)
    return requests


def _words(texts: Iterable[str], count: int) -> Iterator[str]:
    """The first `count` words, each with the space before it."""
    found = 0
    for text in texts:
        for word in text.split():
            if found == count:
                return
            found += 1
            yield " " + word


def _exactly(tokenizer: Any, words: Iterable[str], length: int) -> str:
    """The words that still fit into `length` tokens, in their order, filled up with FILLER."""
    text, left = "", length
    for word in words:
        size = len(_tokens(tokenizer, word))
        if size <= left:
            text, left = text + word, left - size
    return text + FILLER * left


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text)["input_ids"])


def _check(tokenizer: Any, request: UserRequest, shape: Shape) -> None:
    found = Shape(len(request.trunk), {len(item) for item in request.items}.pop(), len(request.items))
    together = tokenizer([request.trunk_text + text for text in request.item_texts])["input_ids"]
    paired = tokenizer([request.trunk_text] * len(request.items), request.item_texts)["input_ids"]
    if found != shape or together != request.pairs or paired != request.pairs:
        raise RuntimeError(f"requests of {shape} do not survive the tokeniser: {found}")
