"""What is asked of the service: one request, checked field by field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import pyarrow as pa
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from llmrec.config import Serve
from llmrec.errors import UserError


class InvalidError(UserError):
    """A request that cannot be ranked: one line that begins with the field's name."""


def _id(value: Any) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("an id is a whole number or a text")
    return value


def _told(value: Any) -> str | None:
    """As prepare makes texts of a log's columns."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    raise ValueError("a context is a text, a whole number, a boolean or null")


def _single(value: Any) -> Any:
    if isinstance(value, dict | list):
        raise ValueError("an attribute is a text, a number, a boolean or null")
    return value


Id = Annotated[Any, BeforeValidator(_id)]


class Asked(BaseModel):
    """One request.

    user_id: of a user whose history, attributes and context the prepared tables know; history: item ids, oldest first,
    in place of that; context: values of what prompt.context names, in place of the stored ones, null where not given;
    attributes: values of what prompt.user names, in place of the users table's; candidates: item ids to rank, in place
    of what recall brought of the user; top_k: how many of them to return, at most and by default score.top_k.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    user_id: Annotated[Any, BeforeValidator(lambda value: None if value is None else _id(value))] = None
    history: list[Id] | None = None
    context: dict[str, Annotated[Any, AfterValidator(_told)]] | None = None
    attributes: dict[str, Annotated[Any, AfterValidator(_single)]] | None = None
    candidates: Annotated[list[Id], Field(min_length=1)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None


@dataclass(frozen=True)
class Bounds:
    """What a request may hold. user, item: types of ids; contexts, attributes: names that the ranker reads."""

    limits: Serve
    top_k: int
    user: pa.DataType
    item: pa.DataType
    contexts: Sequence[str]
    attributes: Sequence[str]


def parse(body: bytes, bounds: Bounds) -> Asked:
    """A request from JSON.

    Raises:
        InvalidError: it is no JSON, or a field is missing, unknown, of another type or too large.
    """
    try:
        asked = Asked.model_validate_json(body)
    except ValidationError as error:
        raise InvalidError(_line(error.errors()[0])) from None
    _check(asked, bounds)
    return asked


def _check(asked: Asked, bounds: Bounds) -> None:
    limits = bounds.limits
    for field, ids, most in (
        ("candidates", asked.candidates, limits.max_candidates), ("history", asked.history, limits.max_history)
    ):  # fmt: skip
        ids = ids or []
        if len(ids) > most:
            raise InvalidError(f"{field}: {len(ids):,} items, more than serve.max_{field} = {most:,} allows")
        for i, item in enumerate(ids):
            _check_id(item, bounds.item, f"{field}.{i}")
    if asked.user_id is not None:
        _check_id(asked.user_id, bounds.user, "user_id")
    if asked.top_k is not None and asked.top_k > bounds.top_k:
        raise InvalidError(f"top_k: {asked.top_k} is more than score.top_k = {bounds.top_k}")
    for field, given, known in (
        ("context", asked.context, bounds.contexts), ("attributes", asked.attributes, bounds.attributes)
    ):  # fmt: skip
        for name in given or {}:
            if name not in known:
                raise InvalidError(f"{field}.{name:.80}: the ranker reads {', '.join(known) or 'none'}, not this")
    missing = [name for name in bounds.attributes if name not in (asked.attributes or {})]
    if asked.attributes and missing:
        raise InvalidError(f"attributes.{missing[0]}: missing; give it, null if it is not known")


def _check_id(value: int | str, kind: pa.DataType, where: str) -> None:
    whole = isinstance(value, int)
    if pa.types.is_integer(kind) != whole or (whole and not -(2**63) <= int(value) < 2**63):
        raise InvalidError(f"{where}: {value!r:.80} is no {kind} id, as the prepared tables hold")


def _line(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"]) or "request"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown field; there are {', '.join(Asked.model_fields)}"
    return f"{where}: {message[0].lower()}{message[1:]}".splitlines()[0]
