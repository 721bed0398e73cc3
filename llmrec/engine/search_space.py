"""What a search may vary: keys and ranges held against the configuration before anything starts."""

from __future__ import annotations

import importlib.util
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from llmrec import config
from llmrec.config import Config, Range
from llmrec.engine import embed
from llmrec.errors import UserError

SECTIONS = ("model", "prompt", "items", "train")
_COMPARED = "trials would not be measured alike"
_EMBEDDED = "embed reads it, and what embed wrote stays as it is"
_NOT_TRAINED = "training does not learn by it"
_PRIVATE = "a search chooses by validation users, whom nothing would hide"
_RESOURCES = "it says what a trial's workers take; set it beside the search"
REFUSED = {
    "model.items": _COMPARED, "train.events": _COMPARED, "train.validate_every": _COMPARED,
    "train.validation_users": _COMPARED, "train.validation_candidates": _COMPARED,
    "model.attention": _NOT_TRAINED, "model.labels": _NOT_TRAINED, "prompt.before_candidate": _NOT_TRAINED,
    "prompt.after_candidate": _NOT_TRAINED, "train.strategy": _NOT_TRAINED,
    "train.max_failures": _RESOURCES, "train.workers": _RESOURCES, "train.cpus_per_worker": _RESOURCES,
    "train.gpus_per_worker": _RESOURCES,
    **{f"train.private.{name}": _PRIVATE for name in config.PrivateTraining.model_fields},
    **{
        f"items.{name}": _EMBEDDED
        for name in ("encoder", "max_tokens", "images", "image_root", "image_encoder", "max_bad_images",
                     "graph_dimensions", "shard", "batch_size", "actors", "cpus_per_actor", "gpus_per_actor")
    },
}  # fmt: skip
READ_BY_EMBED = ("prompt.item", "prompt.max_edges")


@dataclass(frozen=True)
class Parameter:
    """A key and what is tried of it: whole numbers or any from low to high, or one of choices if there are any."""

    key: str
    low: float
    high: float
    whole: bool
    log: bool
    choices: tuple[Any, ...]


def checked(settings: Config) -> list[Parameter]:
    """The parameters that search.keys names, in its order.

    Raises:
        UserError: none are named, training fails or is not validated whatever is tried, a key is unknown or changes
            nothing that trials show, or a field refuses one of its bounds or choices; one line that names it.
    """
    if not settings.search.keys:
        raise UserError(
            "search.keys names no setting; give some, such as {train.learning_rate: {low: 0.0001, high: 0.01}}"
        )
    if settings.train.events == "all":
        raise UserError("train.events = all leaves nothing to validate by; a search needs train.events = training")
    if settings.train.private.epsilon is not None:
        raise UserError(f"train.private: {_PRIVATE}; search without it")
    if settings.model.head == "yes_no":
        raise UserError("model.head = yes_no scores an untouched model: there is no training to search settings of")
    return [_parameter(settings, key, tried) for key, tried in settings.search.keys.items()]


def check_optuna() -> None:
    """
    Raises:
        UserError: Optuna is not installed.
    """
    if importlib.util.find_spec("optuna") is None:
        raise UserError("a search takes Optuna; pip install 'llmrec[search]'")


def distribution(parameter: Parameter) -> Any:
    """What Optuna draws from; a choice by its place, so that it may be a list."""
    from optuna import distributions

    if parameter.choices:
        return distributions.CategoricalDistribution(range(len(parameter.choices)))
    if parameter.whole:
        return distributions.IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log)
    return distributions.FloatDistribution(parameter.low, parameter.high, log=parameter.log)


def settings_of(space: list[Parameter], drawn: Mapping[str, Any]) -> dict[str, Any]:
    """Values of keys from what Optuna drew."""
    return {p.key: p.choices[drawn[p.key]] if p.choices else drawn[p.key] for p in space}


def drawn_of(space: list[Parameter], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The other way."""
    return {p.key: p.choices.index(settings[p.key]) if p.choices else settings[p.key] for p in space}


def _parameter(settings: Config, key: str, tried: Range) -> Parameter:
    section, field = _field(key)
    if why := REFUSED.get(key) or (_EMBEDDED if key in READ_BY_EMBED and embed.wanted(settings) else ""):
        raise UserError(f"search.keys names '{key}': {why}")
    if section not in SECTIONS:
        raise UserError(
            f"search.keys names '{key}', which does not change what training learns; its sections are "
            f"{', '.join(SECTIONS)}"
        )
    kinds = _kinds(field.annotation)
    numeric = kinds & {int, float}
    if not tried.choices and not numeric:
        raise UserError(f"search.keys.{key}: no number, so it has no low and high; give choices")
    whole = float not in kinds
    bounds: tuple[Any, ...] = tried.choices or (tried.low, tried.high)
    for value in bounds:
        if key == "model.head" and value == "yes_no":
            raise UserError(f"search.keys.{key}: yes_no scores an untouched model and cannot be trained")
        config.varied(settings, {key: value}, f"search.keys.{key}")
    if tried.choices:
        return Parameter(key, 0, 0, False, False, tried.choices)
    assert tried.low is not None and tried.high is not None
    return Parameter(key, tried.low, tried.high, whole, tried.log, ())


def _field(key: str) -> tuple[str, Any]:
    """The section and the field that a key names."""
    model: type[BaseModel] = Config
    parts = key.split(".")
    for i, part in enumerate(parts):
        field = model.model_fields.get(part)
        if field is None:
            known = ", ".join(".".join([*parts[:i], name]) for name in model.model_fields)
            raise UserError(f"search.keys: unknown key '{key}'; there are {known}")
        kind = field.annotation
        nested = isinstance(kind, type) and issubclass(kind, BaseModel)
        if i == len(parts) - 1:
            if nested:
                raise UserError(f"search.keys: '{key}' is a section; name a setting in it")
            return parts[0], field
        if not nested:
            raise UserError(f"search.keys: unknown key '{key}'; {'.'.join(parts[: i + 1])} is a setting, no section")
        assert isinstance(kind, type)
        model = kind
    raise AssertionError(key)


def _kinds(annotation: Any) -> set[Any]:
    """The plain types that a field's annotation stands for."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kinds(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return {kind for of in get_args(annotation) for kind in _kinds(of)}
    return {Literal} if origin is Literal else {origin or annotation}
