"""Reasons in a generative model's words."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import AutoModelForCausalLM

from llmrec.errors import UserError
from llmrec.ranker.model import load_tokenizer
from llmrec.ranker.precision import Precision
from llmrec.reasons.check import first_line
from llmrec.reasons.quoting import one_line


class Rewriter:
    """A causal language model with a chat template, or one without, which is given the instruction as plain text."""

    def __init__(self, directory: str, instruction: str, precision: Precision, device: torch.device) -> None:
        """
        Raises:
            UserError: there is no such model.
        """
        self.instruction, self.device = instruction, device
        self.tokenizer = load_tokenizer(directory)
        try:
            model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, precision))
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"explain.model '{directory}' cannot be loaded: {str(error).splitlines()[0]}") from None
        self.model = model.to(device).eval()
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            # Any will do: what fills a batch up is masked.
            self.tokenizer.pad_token = self.tokenizer.eos_token or self.tokenizer.convert_ids_to_tokens(0)
        # In a title, a token of the chat's form would end the user's part; none of them is text.
        self.control = [token for token in self.tokenizer.get_added_vocab() if not token.isspace()]

    def prompt(self, reason: str) -> str:
        data = one_line(reason, self.control, most=4000)
        if self.tokenizer.chat_template is None:
            return f"{self.instruction}\n\n{data}\n\n"
        turns = [{"role": "system", "content": self.instruction}, {"role": "user", "content": data}]
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    def reword(
        self, reasons: Sequence[str], batch_size: int, max_tokens: int, progress: Callable[[int], None] | None = None
    ) -> list[str]:
        """The first line of what the model makes of each reason, greedily and of at most so many tokens; it may be
        empty, or anything."""
        prompts = [self.prompt(reason) for reason in reasons]
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        found = [""] * len(prompts)
        for start in range(0, len(order), batch_size):
            some = order[start : start + batch_size]
            given = self.tokenizer([prompts[i] for i in some], return_tensors="pt", padding=True,
                                   add_special_tokens=False).to(self.device)  # fmt: skip
            with torch.inference_mode():
                made = self.model.generate(
                    input_ids=given["input_ids"], attention_mask=given["attention_mask"], max_new_tokens=max_tokens,
                    do_sample=False, pad_token_id=self.tokenizer.pad_token_id,
                )  # fmt: skip
            texts = self.tokenizer.batch_decode(made[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
            for i, text in zip(some, texts, strict=True):
                found[i] = first_line(text)
            if progress is not None:
                progress(len(some))
        return found
