"""The engines that can be timed, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Engine:
    """One engine at one precision.

    family: the name that selects all of its kind; module: its module here, with `load`; weights: the form of them that
    it reads; environment: whose interpreter runs it; whole: warm it up with all requests.
    """

    family: str
    precision: Literal["float32", "bfloat16"]
    module: str
    weights: Literal["model", "classifier", "gguf"] = "model"
    environment: Literal["this", "vllm", "llama.cpp"] = "this"
    whole: bool = False
    variant: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "-".join(part for part in (self.family, self.variant, self.precision) if part)


OURS, ITEMS = "llmrec", "llmrec-items"
ENGINES = [
    Engine("transformers", "float32", "padded"),
    Engine("transformers", "bfloat16", "padded"),
    Engine("sentence-transformers", "float32", "cross_encoder", "classifier"),
    Engine("sentence-transformers", "bfloat16", "cross_encoder", "classifier"),
    Engine("vllm", "float32", "vllm_pooling", "classifier", "vllm"),
    Engine("vllm", "bfloat16", "vllm_pooling", "classifier", "vllm"),
    Engine("vllm", "bfloat16", "vllm_pooling", "classifier", "vllm", True, "default-block", {"block": None}),
    Engine("vllm", "bfloat16", "vllm_pooling", "classifier", "vllm", True, "compiled", {"compiled": True}),
    Engine("llama.cpp", "float32", "llama_shared", "gguf", "llama.cpp"),
    Engine("llama.cpp", "bfloat16", "llama_shared", "gguf", "llama.cpp"),
    Engine(OURS, "float32", "ours", whole=True),
    Engine(OURS, "bfloat16", "ours", whole=True),
    Engine(OURS, "float32", "ours", whole=True, variant="dense", options={"attention": "dense"}),
    Engine(OURS, "float32", "ours", whole=True, variant="compiled", options={"compiled": True}),
    Engine(OURS, "bfloat16", "ours", whole=True, variant="compiled", options={"compiled": True}),
    Engine(ITEMS, "float32", "items", whole=True),
    Engine(ITEMS, "bfloat16", "items", whole=True),
    Engine(ITEMS, "float32", "items", whole=True, variant="retrieve", options={"head": "retrieve"}),
    Engine(ITEMS, "bfloat16", "items", whole=True, variant="retrieve", options={"head": "retrieve"}),
]
REFERENCE = ENGINES[0].name


def of_text(engines: Sequence[Engine]) -> list[Engine]:
    """Those that read items as text."""
    return [e for e in engines if e.family != ITEMS]


def beside_items(engines: Sequence[Engine]) -> list[Engine]:
    """Those that items as vectors are compared with, and themselves."""
    plain = [e for e in engines if e.family in ("sentence-transformers", OURS) and not e.variant]
    return plain + [e for e in engines if e.family == ITEMS]


def scores_text(engine: Engine) -> bool:
    """Whether it is one of ours that the others' times are compared with."""
    return engine.family == OURS


def ranks_items(engine: Engine) -> bool:
    """The same for items as vectors: to retrieve is less work than to rank, so nothing is compared with that."""
    return engine.family == ITEMS and "head" not in engine.options


def chosen(names: Sequence[str]) -> list[Engine]:
    """The engines of these families or names, in the table's order.

    Raises:
        ValueError: a name that is neither.
    """
    known = {e.family for e in ENGINES} | {e.name for e in ENGINES}
    for name in names:
        if name not in known:
            raise ValueError(f"no engine '{name}'; known: {', '.join(sorted(known))}")
    return [e for e in ENGINES if e.family in names or e.name in names]
