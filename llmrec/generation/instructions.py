"""Instructions to a language model that writes: versioned files, checked when they are read.

A file says what the model is told, shows it a few answers, and declares the fields of an answer, each on a line of its
own: `Label: value`. That form is asked for, and not JSON, since a model of 135M parameters keeps to it after examples.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from llmrec import storage
from llmrec.errors import UserError
from llmrec.ranker.templates import placeholders

SHIPPED = resources.files("llmrec.generation") / "templates"
SUFFIX = ".yaml"
Line = Annotated[str, Field(min_length=1, pattern=r"^[^\r\n]*$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AnswerField(_Part):
    """A line of an answer. list: of texts parted by commas or semicolons, of which there are at_least .. at_most
    different ones; max_characters: of the text, or of each text in the list."""

    name: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]*$")]
    label: Annotated[str, Field(pattern=r"^[^\s:][^\r\n:]*$")]
    list: bool = False
    at_least: Annotated[int, Field(ge=1)] = 1
    at_most: Annotated[int, Field(ge=1)] = 1
    max_characters: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _bounds(self) -> AnswerField:
        if self.at_least > self.at_most:
            raise ValueError(f"at_least = {self.at_least} is more than at_most = {self.at_most}")
        if not self.list and (self.at_least, self.at_most) != (1, 1):
            raise ValueError("at_least and at_most are for a list")
        return self


class Example(_Part):
    """input: what stands for each placeholder; answer: of each field."""

    input: dict[str, str]
    answer: dict[str, str | list[str]]


class Instructions(_Part):
    """input: what the model is told of a row, its placeholders columns; text: what becomes of an answer, its
    placeholders the fields."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    version: Annotated[int, Field(ge=1)]
    system: Line
    input: str
    fields: Annotated[tuple[AnswerField, ...], Field(min_length=1)]
    text: str
    examples: tuple[Example, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Instructions:
        names, labels = [field.name for field in self.fields], [field.label for field in self.fields]
        for said in (names, labels):
            if len(set(said)) < len(said):
                raise ValueError(f"fields has '{next(w for w in said if said.count(w) > 1)}' more than once")
        for name in _placeholders(self.text, "text"):
            if name not in names:
                raise ValueError(f"text uses '{{{name}}}', and of fields there are: {', '.join(names)}")
        asked = _placeholders(self.input, "input")
        if not asked:
            raise ValueError("input has no placeholder, so that every row would be told alike")
        for number, example in enumerate(self.examples, 1):
            for what, given, wanted in (("input", example.input, asked), ("answer", example.answer, names)):
                if set(given) != set(wanted):
                    raise ValueError(f"example {number}: its {what} must have {', '.join(wanted)} and no more")
            for field in self.fields:
                if isinstance(example.answer[field.name], list) is not field.list:
                    raise ValueError(f"example {number}: {field.name} must be a {'list' if field.list else 'text'}")
        return self

    @property
    def placeholders(self) -> list[str]:
        return placeholders(self.input)

    @property
    def opening(self) -> str:
        """What the model's answer begins with; it goes on from there."""
        return f"{self.fields[0].label}:"

    @property
    def digest(self) -> str:
        """16 hex digits over all of it."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()[:16]

    def answer(self, values: Mapping[str, str | Sequence[str]]) -> str:
        """An answer as the model is to give it."""
        return "\n".join(f"{field.label}: {_joined(values[field.name])}" for field in self.fields)

    def told(self, values: Mapping[str, str | Sequence[str]]) -> str:
        """The text that an answer becomes."""
        return self.text.format(**{name: _joined(value) for name, value in values.items()})

    def check(self, known: Sequence[str], kind: str, origin: str) -> None:
        """
        Raises:
            UserError: a placeholder of the input is none of those known.
        """
        for name in self.placeholders:
            if name not in known:
                raise UserError(f"{origin}: input uses '{{{name}}}', and of {kind} there are: {', '.join(known)}")


def _joined(value: str | Sequence[str]) -> str:
    return value if isinstance(value, str) else ", ".join(value)


def _placeholders(template: str, what: str) -> list[str]:
    try:
        return list(dict.fromkeys(placeholders(template)))
    except UserError as error:
        raise ValueError(f"{what}: {error}") from None


def shipped() -> list[str]:
    """The names of those that come with the package, with their versions."""
    return sorted(file.name.removesuffix(SUFFIX) for file in SHIPPED.iterdir() if file.name.endswith(SUFFIX))


def read(source: str) -> Instructions:
    """source: the name of a shipped file, such as 'item.v1', or the path or URI of one of your own.

    Raises:
        UserError: there is none, or it is not of this form; the first problem, with its key.
    """
    if source in shipped():
        data, origin = (SHIPPED / f"{source}{SUFFIX}").read_bytes(), source
    elif source.endswith((SUFFIX, ".yml")) or "/" in source:
        data, origin = storage.read_bytes(source), source
    else:
        there = ", ".join(shipped())
        raise UserError(f"template '{source}': none of this name comes along ({there}), and it is no .yaml file")
    try:
        values: Any = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{origin}: a template is a mapping with the keys {', '.join(Instructions.model_fields)}")
    try:
        return Instructions(**values)
    except ValidationError as error:
        raise UserError(_explain(error.errors()[0], origin)) from None
    except TypeError:
        raise UserError(f"{origin}: keys must be texts: {', '.join(Instructions.model_fields)}") from None


def _explain(problem: Any, origin: str) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{origin}: unknown key '{key}'"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{origin}: {key}: {message}" if key else f"{origin}: {message}"
