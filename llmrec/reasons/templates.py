"""Templates of reasons, one file a language, and a reason by one."""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Sequence
from importlib.resources import files

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmrec import storage
from llmrec.errors import UserError
from llmrec.reasons.evidence import Cited, Evidence
from llmrec.reasons.quoting import one_line
from llmrec.reasons.traits import Link, Trait

SHIPPED = ("en", "zh")
QUOTES = ("Ps", "Pe", "Pi", "Pf")
# What each text of a template must say, and what else it may.
NEEDED: dict[str, tuple[str, ...]] = {
    "reason": ("item", "history"), "reason_in_context": ("item", "history", "context"),
    "plain": ("item",), "plain_in_context": ("item", "context"),
    "item": ("title",), "cited": ("title",), "cited_sharing": ("title", "shared"),
    "cited_linked": ("title", "links"), "cited_linked_sharing": ("title", "links", "shared"),
    "attribute": ("value",), "fact": ("value",), "context": ("value",), "link": ("head", "name", "tail"),
}  # fmt: skip
ALLOWED = NEEDED | dict.fromkeys(("attribute", "fact", "context"), ("name", "value"))


class Template(BaseModel):
    """reason: of an item with cited history, reason_in_context: with a context, too; plain, plain_in_context: without
    cited history. The others are what goes into them: the item, one of the history, one that shares something with the
    item or that an edge links to it, a trait of each kind, an edge between two items, and what stands between the parts
    of a list and before its last. names: other names of columns, relations and contexts; instruction: what a generative
    model is told that is to reword a reason; words: which it may use although they are not in the reason, since they
    name nothing: to open a sentence with a capital, or anywhere in a script that has no capitals."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    version: str = Field(min_length=1)
    language: str = Field(min_length=2)
    reason: str
    reason_in_context: str
    plain: str
    plain_in_context: str
    item: str
    cited: str
    cited_sharing: str
    cited_linked: str
    cited_linked_sharing: str
    attribute: str
    fact: str
    link: str
    context: str
    between: str
    last: str
    names: dict[str, str] = {}
    instruction: str = ""
    words: tuple[str, ...] = ()


def load(name: str) -> Template:
    """A shipped template by its language, or one's own by its path or s3:// URI.

    Raises:
        UserError: no such file, or one line that names the key or the placeholder that is wrong.
    """
    if name in SHIPPED:
        return parse((files("llmrec.reasons") / f"{name}.yaml").read_bytes(), f"template '{name}'")
    if "/" not in name and "." not in name:
        raise UserError(f"explain.template = {name}: no such template; {' or '.join(SHIPPED)}, or the path of your own")
    return parse(storage.read_bytes(storage.absolute(name)), name)


def parse(data: bytes, source: str) -> Template:
    """
    Raises:
        UserError: see `load`.
    """
    try:
        values = yaml.safe_load(data)
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{source}: a template is a mapping of {', '.join(Template.model_fields)}")
    try:
        found = Template(**values)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            raise UserError(f"{source}: unknown key '{key}'; there are {', '.join(Template.model_fields)}") from None
        raise UserError(f"{source}: {key}: {problem['msg'][0].lower()}{problem['msg'][1:]}") from None
    for key, allowed in ALLOWED.items():
        _check(getattr(found, key), key, allowed, NEEDED[key], source)
    return found


def _check(text: str, key: str, allowed: Sequence[str], needed: Sequence[str], source: str) -> None:
    try:
        parts = [part for part in string.Formatter().parse(text) if part[1] is not None]
    except ValueError as error:
        raise UserError(f"{source}: {key} {text!r}: {error}") from None
    names = []
    for _, name, form, conversion in parts:
        shown = f"{name}{'!' + conversion if conversion else ''}{':' + form if form else ''}"
        if shown not in allowed:
            there = ", ".join(f"{{{other}}}" for other in allowed)
            raise UserError(f"{source}: {key}: unknown placeholder '{{{shown}}}'; allowed here: {there}")
        names.append(shown)
    for name in needed:
        if name not in names:
            raise UserError(f"{source}: {key} {text!r} lacks '{{{name}}}'")


def reason(template: Template, evidence: Evidence, titles: Sequence[str]) -> str:
    """One sentence that says what the evidence is and no more.

    titles: of the catalogue's items, by row; they stand in it as `quoted` makes them.
    """
    item = template.item.format(title=quoted(template, titles[evidence.row]))
    history = _listed(template, [_cited(template, cited, titles) for cited in evidence.cited])
    context = _listed(template, [_trait(template, template.context, trait) for trait in evidence.context])
    if evidence.cited:
        pattern = template.reason_in_context if evidence.context else template.reason
    else:
        pattern = template.plain_in_context if evidence.context else template.plain
    return pattern.format(item=item, history=history, context=context)


def quoted(template: Template, text: str) -> str:
    """A text of the catalogue in one line, without the marks that the template quotes titles by."""
    literal = (part for pattern in (template.item, template.cited) for part, *_ in string.Formatter().parse(pattern))
    marks = {mark for part in literal for mark in part if unicodedata.category(mark) in QUOTES}
    return one_line(text, marks | {'"'})


def _cited(template: Template, cited: Cited, titles: Sequence[str]) -> str:
    shared = [_trait(template, template.attribute, trait) for trait in cited.attributes]
    shared += [_trait(template, template.fact, trait) for trait in cited.facts]
    links = [_link(template, link, titles) for link in cited.links]
    if links:
        pattern = template.cited_linked_sharing if shared else template.cited_linked
    else:
        pattern = template.cited_sharing if shared else template.cited
    title = quoted(template, titles[cited.row])
    return pattern.format(title=title, shared=_listed(template, shared), links=_listed(template, links))


def _link(template: Template, link: Link, titles: Sequence[str]) -> str:
    head, tail = (template.item.format(title=quoted(template, titles[row])) for row in (link.head, link.tail))
    return template.link.format(head=head, name=quoted(template, _named(template, link.name)), tail=tail)


def _named(template: Template, name: str) -> str:
    return template.names.get(name, name)


def _trait(template: Template, pattern: str, trait: Trait) -> str:
    return pattern.format(name=quoted(template, _named(template, trait.name)), value=quoted(template, trait.value))


def _listed(template: Template, parts: Sequence[str]) -> str:
    if len(parts) < 2:
        return "".join(parts)
    return template.between.join(parts[:-1]) + template.last + parts[-1]
