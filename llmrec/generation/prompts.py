"""From rows of a table to prompts: instructions, examples and the row's own values, harmless and not too long."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from llmrec.generation.instructions import Instructions
from llmrec.ranker.special_tokens import special_pattern, without
from llmrec.ranker.templates import as_text, fill


class Prompter:
    """Writes prompts in a tokenizer's own chat form, or as plain text for a model without one.

    A row's values are data, whatever they say: the tokenizer's special tokens are taken out of them and all white space
    becomes single blanks, so that no title can end its turn, open another or add a line.

    What a row itself says is kept apart from what all prompts have in common, which is far longer: many rows' texts may
    be held at once, not their prompts.

    prefix: tokens with which every prompt begins; cut: values that were longer than max_input_tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, instructions: Instructions, max_input_tokens: int) -> None:
        self.tokenizer, self.instructions, self.limit = tokenizer, instructions, max_input_tokens
        self.chat = bool(tokenizer.chat_template)
        self._special = special_pattern(tokenizer, added=True)
        self.cut = 0
        shown = [(self._input(e.input), instructions.answer(e.answer)) for e in instructions.examples]
        self._before, self._after = self._frame(shown)
        # A plain prompt opens with what the tokenizer puts before any text; a chat's form has it already.
        self.prefix: list[int] = list(tokenizer(self._before, add_special_tokens=not self.chat)["input_ids"])

    def told(self, rows: pa.Table) -> list[str]:
        """What the model is told of each row, its own part of a prompt. rows: a column each placeholder."""
        columns = {name: self._values(rows[name].to_pylist()) for name in dict.fromkeys(self.instructions.placeholders)}
        return fill(self.instructions.input, pa.table({n: pa.array(c, pa.string()) for n, c in columns.items()}), "row")

    def prompt(self, told: str) -> str:
        """The whole prompt of a row of which this is told; it ends where the answer goes on."""
        return self._before + told + self._after

    def tokens(self, told: Sequence[str]) -> list[list[int]]:
        """What the prompt of each has beside `prefix`, which is theirs in common."""
        if not told:
            return []
        return list(self.tokenizer([text + self._after for text in told], add_special_tokens=False)["input_ids"])

    def _input(self, values: Mapping[str, str]) -> str:
        row = pa.table({name: pa.array([self.clean(value)], pa.string()) for name, value in values.items()})
        return fill(self.instructions.input, row, "row")[0]

    def _values(self, values: Iterable[Any]) -> list[str]:
        texts = [self.clean(as_text(value)) for value in values]
        long = [i for i, text in enumerate(texts) if len(text.encode()) > self.limit]  # no token is less than a byte
        if long:
            said = self.tokenizer(
                [texts[i] for i in long], add_special_tokens=False, return_offsets_mapping=True
            )["offset_mapping"]  # fmt: skip
            for i, offsets in zip(long, said, strict=True):
                if len(offsets) > self.limit:
                    texts[i] = texts[i][: offsets[self.limit - 1][1]].rstrip()
                    self.cut += 1
        return texts

    def clean(self, value: str) -> str:
        """A value without special tokens, line breaks and other control characters."""
        value = "".join(c if c.isprintable() else " " for c in value)
        return " ".join(without(value, self._special).split())

    def _frame(self, shown: Sequence[tuple[str, str]]) -> tuple[str, str]:
        """What comes before and after a row's own input."""
        mark = "\x00"
        if not self.chat:
            examples = "".join(f"{told}\n{answer}\n\n" for told, answer in shown)
            return f"{self.instructions.system}\n\n{examples}", f"\n{self.instructions.opening}"
        turns = [{"role": role, "content": text} for pair in shown for role, text in zip(_ROLES, pair, strict=True)]
        turns.append({"role": "user", "content": mark})
        system = self.instructions.system
        try:
            text = self._chat([{"role": "system", "content": system}, *turns])
        except TemplateError:  # a form without a system's turn
            turns[0] = {"role": "user", "content": f"{system}\n\n{turns[0]['content']}"}
            text = self._chat(turns)
        before, after = text.split(mark)
        return before, after + self.instructions.opening

    def _chat(self, turns: Sequence[Mapping[str, str]]) -> str:
        # A model that thinks first is told not to; other forms do not know the word and pass over it.
        return str(
            self.tokenizer.apply_chat_template(
                list(turns), tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        )


_ROLES = ("user", "assistant")


def content_hashes(prompts: Iterable[str], rule: Mapping[str, Any]) -> list[str]:
    """32 hex digits of each whole prompt, equal where the same is to be generated again.

    rule: all that an answer depends on beside the prompt: model, instructions, settings.
    """
    start = hashlib.sha256(json.dumps(rule, sort_keys=True).encode() + b"\n")
    found = []
    for prompt in prompts:
        digest = start.copy()
        digest.update(prompt.encode("utf-8", "surrogatepass"))
        found.append(digest.hexdigest()[:32])
    return found
