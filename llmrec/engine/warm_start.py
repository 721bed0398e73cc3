"""The ranker that training goes on from: where it lies, whether it is of the same kind, what it has seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmrec import assets, storage
from llmrec.config import Config
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.ranker.card import RANKER_FILE, RankerCard, read_card

PREVIOUS, COMPLETE = "previous", "complete"


def starting_ranker(config: Config, layout: Layout, run: str) -> tuple[str, RankerCard | None]:
    """Where the ranker lies that train.start names, and its card; "" and None for the untouched base.

    The previous ranker is none to go on from if it knows users who were forgotten since (`to_begin_anew`). It is copied
    beside the run's checkpoints first: the run will write another in its place, and may be cut off in that and have to
    resume. run: the training run's name.

    Raises:
        UserError: no ranker lies there, or one of another kind than the configuration asks for.
    """
    start = config.train.start
    if start == PREVIOUS:
        if knows_forgotten(layout):
            return "", None
        start = copy_of_previous(layout, run)
        if not storage.exists(storage.join(start, COMPLETE)):
            found = _previous(layout)
            if not found:
                return "", None
            _check_same(read_card(_local(found)), config)
            storage.delete(start)
            storage.upload_directory(_local(found), start)
            storage.write_bytes(storage.join(start, COMPLETE), b"")
    if not start:
        return "", None
    start = storage.absolute(start)
    card = read_card(_local(start))
    _check_same(card, config)
    return start, card


def to_begin_anew(layout: Layout) -> None:
    """Let training not go on from the ranker that is there now, but from the base, until another is saved in its place.
    Copies that runs which were cut off went on from are deleted."""
    if storage.list_files(copies_of_previous(layout)):
        storage.delete(copies_of_previous(layout))
    if storage.exists(storage.join(layout.ranker, RANKER_FILE)):
        storage.write_json(layout.ranker_that_knows, {"files": _contents(layout)})


def knows_forgotten(layout: Layout) -> bool:
    """Whether the ranker is one of which `to_begin_anew` was said."""
    if not storage.exists(layout.ranker_that_knows):
        return False
    found: bool = storage.read_json(layout.ranker_that_knows)["files"] == _contents(layout)
    return found


def _contents(layout: Layout) -> list[list[Any]]:
    """Bytes and content tag of each file of the ranker: the same wherever the root is."""
    return [[size, tag] for _, size, tag in storage.manifest(layout.ranker)]


def copies_of_previous(layout: Layout) -> str:
    """Where previous rankers lie while training runs go on from them."""
    return storage.join(layout.training, "start")


def copy_of_previous(layout: Layout, run: str) -> str:
    return storage.join(copies_of_previous(layout), run)


def _previous(layout: Layout) -> str:
    """Where the previous ranker lies; if a run was cut off while it wrote its own in its place, the one that this run
    went on from. Empty if there is none."""
    if storage.exists(storage.join(layout.ranker, RANKER_FILE)):
        return layout.ranker
    left = [uri for uri, _ in storage.list_files(copies_of_previous(layout), f"/{COMPLETE}")]
    return left[-1].removesuffix(f"/{COMPLETE}") if left else ""


def _local(uri: str) -> Path:
    return storage.local_directory(uri, assets.cache_directory() / "models")


def _check_same(card: RankerCard, config: Config) -> None:
    model = config.model
    asked: dict[str, tuple[Any, Any]] = {
        "model.base": (card.base, model.base), "model.items": (card.items, model.items),
        "model.head": (card.head, model.head),
        # With fewer it goes on from the first of them.
        "model.layers": (card.layers, max(card.layers, model.layers or 0)),
    }  # fmt: skip
    sections: dict[str, tuple[Any, Any]] = {"prompt": (card.prompt, config.prompt)}
    if model.items == "token":
        sections["items"] = (card.parts, config.items)
    for section, (before, now) in sections.items():
        for name in type(now).model_fields:
            asked[f"{section}.{name}"] = (getattr(before, name), getattr(now, name))
    for key, (before, now) in asked.items():
        if before != now:
            raise UserError(
                f"train.start = {config.train.start}: that ranker was trained with {key} = {before!r}, and now it is "
                f"{now!r}; set it back, or train from model.base (train.start empty)"
            )
