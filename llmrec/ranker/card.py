"""What a saved ranker says of itself, and which one it is; readable without torch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from llmrec import assets
from llmrec.config import Items, Prompt
from llmrec.errors import UserError

RANKER_FILE = "ranker.json"
HUB_FILE = "config.json"  # every model of the hub has one


class RankerCard(BaseModel):
    """What `ranker.json` holds: all that is needed to score as in training.

    parts: what items' vectors are made of, with items=token.
    packing: "branches" is the mask that training uses; "pairs", for an encoder that training has not touched, scores
    every pair as a plain sequence, since its trunk has learned to see the item.
    trained_until: unix seconds of the newest event that it was trained on; None if it was not, or it does not say.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[2] = 2
    base: str
    layers: int
    items: Literal["text", "token"]
    parts: Items = Items()
    head: Literal["linear", "yes_no", "retrieve", "rank"]
    labels: tuple[str, str]
    prompt: Prompt
    trained: bool
    packing: Literal["branches", "pairs"] = "branches"
    trained_until: int | None = None


def read_card(directory: str | Path) -> RankerCard:
    """The card of a ranker that `save_pretrained` wrote.

    Raises:
        UserError: the directory holds none.
    """
    file = Path(directory) / RANKER_FILE
    try:
        return RankerCard.model_validate_json(file.read_text())
    except FileNotFoundError:
        raise UserError(f"{directory}: no {RANKER_FILE}; this is no directory that train saved") from None
    except ValueError as error:
        raise UserError(f"{file}: {' '.join(str(error).split())}") from None


def model_version(directory: str | Path) -> str:
    """12 hex digits over the contents of every file of a model directory."""
    digest = hashlib.sha256()
    for file in sorted(p for p in Path(directory).rglob("*") if p.is_file()):
        digest.update(file.relative_to(directory).as_posix().encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()[:12]


def model_revision(model: str) -> str:
    """Which model a name means now: of a directory or a copy of one, `model_version`; of a hub id, the commit that this
    machine's hub cache is at; empty for no name.

    The cache is asked, not the hub: a model that changes there is noticed once it has come into the cache. One that is
    not cached yet is about to be fetched; a small file of it is fetched here, or the first run would tell another
    revision than the next. A hub id stands for itself where nothing is cached and no hub answers.

    Raises:
        UserError: see `assets.resolve_model`.
    """
    if not model:
        return ""
    found = assets.resolve_model(model)
    return model_version(found) if Path(found).is_dir() else _commit(found)


def _commit(hub_id: str) -> str:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    try:
        file = try_to_load_from_cache(hub_id, HUB_FILE)
        if not isinstance(file, str):  # not cached
            file = hf_hub_download(hub_id, HUB_FILE)
    except (OSError, ValueError):  # no answer, no such model, or no name of one: who loads it says so
        return hub_id
    return Path(file).parent.name  # .../snapshots/COMMIT/config.json
