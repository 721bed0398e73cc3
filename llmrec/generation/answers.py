"""What a model answered, read strictly: the declared fields, or the reason why not."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from llmrec.generation.instructions import AnswerField, Instructions
from llmrec.generation.repetition import repeats

Ending = Literal["end", "loop", "limit"]
EMPTY, REPETITIVE, TOO_LONG, OFF_SCHEMA = "empty", "repetitive", "too_long", "off_schema"
# What parts a list and ends a label, in Western and in Chinese and Japanese writing.
SEPARATORS = re.compile("[,\uff0c\u3001;\uff1b]")
COLONS = (":", "\uff1a")
# Catalogue text gives no reason to write an address or a control token; a title that asks for one might.
FOREIGN = re.compile(r"https?://|www\.|<\||\|>|\{|\}", re.IGNORECASE)


@dataclass(frozen=True)
class Written:
    """What a model wrote of a prompt. text: all that it wrote; ending: at its own end, in a loop, or cut off at the
    limit; tokens: how many."""

    text: str
    ending: Ending
    tokens: int


@dataclass(frozen=True)
class Judged:
    """text: what is to be used, empty if it is set aside; then reason is one of the codes above, and detail says what
    was seen."""

    text: str
    reason: str
    detail: str


def judge(written: Written, instructions: Instructions) -> Judged:
    """The text of an answer that keeps to the schema; else why not.

    The lines of the declared fields must be there, in order and nothing beside them; what a list repeats counts once.
    """
    whole = instructions.opening + written.text
    if not written.text.strip():
        return _aside(EMPTY, "it wrote nothing")
    if written.ending == "loop":
        return _aside(REPETITIVE, whole)
    if written.ending == "limit":
        return _aside(REPETITIVE if repeats(whole) else TOO_LONG, whole)
    lines = [line.strip() for line in whole.strip().split("\n")]
    if len(lines) != len(instructions.fields):
        return _aside(OFF_SCHEMA, f"{len(lines)} lines, not {len(instructions.fields)}: {whole}")
    values: dict[str, str | list[str]] = {}
    for field, line in zip(instructions.fields, lines, strict=True):
        if not line.startswith(tuple(field.label + colon for colon in COLONS)):
            return _aside(OFF_SCHEMA, f"no '{field.label}:' where it should be: {whole}")
        said = line[len(field.label) + 1 :].strip()
        if not said:
            return _aside(EMPTY, f"{field.name} is empty: {whole}")
        if FOREIGN.search(said) or not said.isprintable():
            return _aside(OFF_SCHEMA, f"{field.name} holds an address or markup: {whole}")
        found = _listed(said) if field.list else said
        if (problem := _problem(field, found)) is not None:
            return _aside(problem[0], f"{field.name} {problem[1]}: {whole}")
        values[field.name] = found
    text = instructions.told(values)
    return _aside(REPETITIVE, whole) if repeats(text) else Judged(text, "", "")


def _listed(said: str) -> list[str]:
    parts = (part.strip() for part in SEPARATORS.split(said.rstrip(". \u3002")))
    return list({part.casefold(): part for part in reversed([p for p in parts if p])}.values())[::-1]


def _problem(field: AnswerField, value: str | list[str]) -> tuple[str, str] | None:
    texts = [value] if isinstance(value, str) else value
    if (longest := max(map(len, texts), default=0)) > field.max_characters:
        return TOO_LONG, f"has {longest} characters, more than {field.max_characters}"
    if len(texts) < field.at_least:
        return OFF_SCHEMA, f"has {len(texts)} different parts, fewer than {field.at_least}"
    if len(texts) > field.at_most:
        return TOO_LONG, f"has {len(texts)} parts, more than {field.at_most}"
    return None


def _aside(reason: str, detail: str) -> Judged:
    return Judged("", reason, " ".join(detail.split())[:300])
