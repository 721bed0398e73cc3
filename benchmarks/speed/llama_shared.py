"""llama.cpp with a shared prefix: a trunk decoded once, its cached keys and values shared with its items' sequences.

Its own attention and batching, called through llama-cpp-python's low-level functions. The model file's vocabulary head
holds the score vector in row 0 (see `weights.write_gguf`), so only the tokens where a score is read reach that head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.speed.request import Scored, UserRequest, spans_shared

PACKAGES = ("llama-cpp-python",)
CONTEXT = 8192  # cached tokens
TOGETHER = 16  # items decoded in one call; more of them did not make it faster


def load(gguf: str, precision: str, threads: int) -> Callable[[Sequence[UserRequest]], Scored]:
    """A scorer; keys and values are cached in float32 for float32, else in float16, which is llama.cpp's own choice."""
    import llama_cpp as c

    c.llama_backend_init()
    model = c.llama_model_load_from_file(gguf.encode(), c.llama_model_default_params())
    parameters = c.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = CONTEXT
    parameters.n_ubatch = 1024
    parameters.n_seq_max = TOGETHER + 1
    parameters.n_threads = parameters.n_threads_batch = threads
    parameters.kv_unified = True
    if precision == "float32":
        parameters.type_k = parameters.type_v = c.GGML_TYPE_F32
    context = c.llama_init_from_model(model, parameters)
    if context is None:
        raise RuntimeError("llama.cpp made no context")
    memory = c.llama_get_memory(context)
    batch = c.llama_batch_init(CONTEXT, 0, 1)

    def decode(sequences: Sequence[tuple[int, int, Sequence[int]]]) -> list[float]:
        """Decode (sequence id, first position, tokens) together; the score at the last token of each."""
        n, ends = 0, []
        for sequence, start, tokens in sequences:
            for offset, token in enumerate(tokens):
                batch.token[n], batch.pos[n] = token, start + offset
                batch.n_seq_id[n], batch.seq_id[n][0] = 1, sequence
                batch.logits[n] = offset == len(tokens) - 1
                n += 1
            ends.append(n - 1)
        batch.n_tokens = n
        if (code := c.llama_decode(context, batch)) != 0:
            raise RuntimeError(f"llama_decode returned {code}")
        return [c.llama_get_logits_ith(context, end)[0] for end in ends]

    def score(requests: Sequence[UserRequest]) -> Scored:
        scores = []
        for request in requests:
            c.llama_memory_clear(memory, False)
            decode([(0, 0, request.trunk)])
            found: list[float] = []
            for start in range(0, len(request.items), TOGETHER):
                items = request.items[start : start + TOGETHER]
                for sequence in range(1, len(items) + 1):
                    c.llama_memory_seq_cp(memory, 0, sequence, -1, -1)
                found += decode([(i, len(request.trunk), item) for i, item in enumerate(items, 1)])
                for sequence in range(1, len(items) + 1):
                    c.llama_memory_seq_rm(memory, sequence, -1, -1)
            scores.append(found)
        spans = [span for r in requests for span in spans_shared(len(r.trunk), map(len, r.items))]
        return Scored(scores, spans)

    return score
