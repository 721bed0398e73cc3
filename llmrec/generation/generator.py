"""Batched generation by a causal language model with a key-value cache, from prompts that are token sequences."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TopPLogitsWarper,
)
from transformers.utils import logging as transformers_logging

from llmrec.config import Augment
from llmrec.errors import UserError
from llmrec.generation.answers import Ending, Written
from llmrec.generation.repetition import loops
from llmrec.ranker import precision
from llmrec.ranker.model import is_causal, layers_of
from llmrec.ranker.precision import lower


class Generator:
    """A language model that writes. Products in the precision that the ranker would choose; the rest stays float32.

    prefix: tokens with which all prompts begin; they are read once, and their keys and values kept. lines: an answer
    ends after so many lines, or where the model ends it.
    """

    def __init__(
        self, directory: str, tokenizer: PreTrainedTokenizerBase, settings: Augment, prefix: Sequence[int], lines: int,
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        """
        Raises:
            UserError: the model cannot be loaded, or is no causal language model.
        """
        self.settings, self.tokenizer, self.device = settings, tokenizer, torch.device(device)
        self.model = load(directory).to(self.device)
        lower(layers_of(self.model.base_model), precision.choose(settings.precision, self.device))
        self.lines, self.ends = lines, _ends(self.model, tokenizer)
        self.breaks = _line_breaks(tokenizer, self.model.config.vocab_size).to(self.device)
        # The model's own may ask for sampling or penalties; here only what the settings say counts.
        self.model.generation_config = GenerationConfig(
            max_new_tokens=settings.max_new_tokens, do_sample=False, use_cache=True, eos_token_id=self.ends,
            pad_token_id=self.ends[0],
        )  # fmt: skip

        self.prefix = torch.tensor([list(prefix)], device=self.device)
        self.cache = DynamicCache(config=self.model.config)
        with torch.inference_mode():
            self.model(input_ids=self.prefix, past_key_values=self.cache, use_cache=True, logits_to_keep=1)

    @torch.inference_mode()
    def write(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], progress: Callable[[int], None] | None = None
    ) -> list[Written]:
        """What the model writes after the prefix and each prompt, in their order.

        Prompts of like length go together, padded on the left, behind the prefix; the longest first, since what does
        not fit into memory fails at once. With greedy choice in float32 a prompt's answer is that which it gets alone;
        in bfloat16 its neighbours in the batch may change a close choice. Sampling draws from a stream of each prompt's
        own.

        prompts: tokens, at least one each; seeds: of each prompt, used if there is a temperature; progress: told of
        every batch's prompts.
        """
        found: list[Written | None] = [None] * len(prompts)
        order = np.argsort([-len(prompt) for prompt in prompts], kind="stable")
        for start in range(0, len(order), self.settings.batch_size):
            rows = order[start : start + self.settings.batch_size].tolist()
            for row, written in zip(
                rows, self._batch([prompts[i] for i in rows], [seeds[i] for i in rows]), strict=True
            ):
                found[row] = written
            if progress is not None:
                progress(len(rows))
        return [written for written in found if written is not None]

    def _batch(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[Written]:
        n, width = len(prompts), max(map(len, prompts))
        ids = np.full((len(prompts), width), self.ends[0], np.int64)
        there = np.zeros((len(prompts), width), np.int64)
        for i, prompt in enumerate(prompts):
            ids[i, width - len(prompt) :], there[i, width - len(prompt) :] = prompt, 1
        ids_of_all = torch.cat([self.prefix.expand(n, -1), torch.from_numpy(ids).to(self.device)], dim=1)
        seen = torch.cat([torch.ones_like(self.prefix).expand(n, -1), torch.from_numpy(there).to(self.device)], dim=1)
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(n)
        width = ids_of_all.shape[1]
        watch = _Watch(width, self.lines, self.breaks)
        sampling = LogitsProcessorList()
        if self.settings.temperature:
            sampling.append(_Sampling(self.settings.temperature, self.settings.top_p, seeds))
        out = self.model.generate(
            input_ids=ids_of_all, attention_mask=seen, past_key_values=cache,
            stopping_criteria=StoppingCriteriaList([watch]), logits_processor=sampling,
        )  # fmt: skip
        return [self._written(row, i, watch) for i, row in enumerate(out[:, width:].tolist())]

    def _written(self, tokens: list[int], row: int, watch: _Watch) -> Written:
        stopped, ending = watch.stopped.get(row, (len(tokens), None))
        end = next((i for i, token in enumerate(tokens) if token in self.ends), len(tokens))
        how: Ending = "limit"
        if end < len(tokens) and end < stopped:
            how = "end"
        elif ending is not None:
            how = ending
        kept = tokens[: min(end, stopped)]
        return Written(self.tokenizer.decode(kept, skip_special_tokens=True), how, len(kept))


class _Watch(StoppingCriteria):
    """Stops a row that loops, and one whose answer has all its lines.

    stopped: of each such row, how many tokens it had by then, and why.
    """

    def __init__(self, width: int, lines: int, breaks: torch.Tensor) -> None:
        self.width, self.lines, self.breaks = width, lines, breaks
        self.stopped: dict[int, tuple[int, Ending]] = {}
        self.counted: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        here = self.breaks[input_ids[:, -1]]
        self.counted = here if self.counted is None else self.counted + here
        complete = (self.counted >= self.lines).tolist()
        for row, tokens in enumerate(input_ids[:, self.width :].tolist()):
            if row not in self.stopped:
                if complete[row]:
                    self.stopped[row] = len(tokens), "end"
                elif loops(tokens):
                    self.stopped[row] = len(tokens), "loop"
        return torch.tensor([row in self.stopped for row in range(len(input_ids))], device=input_ids.device)


class _Sampling(LogitsProcessor):
    """Makes the greatest score a sample: of softmax(scores / temperature), cut to its nucleus of top_p, by Gumbel noise
    (Maddison et al., 2014, "A* Sampling"). Every row draws from a generator of its own, on the CPU, so that its sample
    does not depend on its batch or the device."""

    def __init__(self, temperature: float, top_p: float, seeds: Sequence[int]) -> None:
        self.temperature = temperature
        self.nucleus = TopPLogitsWarper(top_p) if top_p < 1 else None
        self.draws = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.float() / self.temperature
        if self.nucleus is not None:
            scores = self.nucleus(input_ids, scores)
        uniform = torch.stack([torch.rand(scores.shape[1], generator=draw) for draw in self.draws])
        return scores - torch.log(-torch.log(uniform.clamp_min(1e-20))).to(scores.device)


def load(directory: str) -> PreTrainedModel:
    """
    Raises:
        UserError: the model cannot be loaded, or is no causal language model.
    """
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"augment.model '{directory}' cannot be loaded: {str(error).splitlines()[0]}") from None
    if layers_of(model.base_model) is None or not is_causal(model.base_model):
        raise UserError(f"augment.model '{directory}' ({type(model).__name__}) is no decoder, which alone can write")
    return model


def positions_of(directory: str) -> int | None:
    """How many positions a model was made for, if it says so.

    Raises:
        UserError: its configuration cannot be read.
    """
    try:
        found = AutoConfig.from_pretrained(directory).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"augment.model '{directory}' cannot be loaded: {str(error).splitlines()[0]}") from None
    return getattr(found, "max_position_embeddings", None)


def check_length(longest: int, settings: Augment, positions: int | None) -> None:
    """
    Raises:
        UserError: the longest prompt and what is written after it take more positions than the model has.
    """
    if positions is not None and longest + settings.max_new_tokens > positions:
        raise UserError(
            f"a prompt of {longest} tokens and augment.max_new_tokens = {settings.max_new_tokens} take more than the "
            f"{positions} positions of {settings.model}; lower augment.max_input_tokens or take a shorter template"
        )


def _ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer, the first of which also fills up."""
    own = model.generation_config.eos_token_id if model.generation_config is not None else None
    listed = own if isinstance(own, list) else [own]
    found = [i for i in dict.fromkeys([tokenizer.eos_token_id, *listed]) if i is not None]
    return found or [0]


def _line_breaks(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> torch.Tensor:
    """int64[vocabulary]: line breaks in each token's text."""
    texts = tokenizer.batch_decode([[i] for i in range(min(len(tokenizer), vocabulary))])
    found = torch.zeros(vocabulary, dtype=torch.int64)
    found[: len(texts)] = torch.tensor([text.count("\n") for text in texts])
    return found
