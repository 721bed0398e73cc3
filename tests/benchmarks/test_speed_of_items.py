"""The benchmark of items as vectors: what is timed scores right, and its figures and tables say what was measured."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.speed import command_line, engines, figures, items, report
from benchmarks.speed.request import Span, UserRequest
from llmrec.config import Prompt
from llmrec.ranker.attention import cascade
from llmrec.ranker.cost import ModelCost
from llmrec.ranker.prompts import trunk_opening

HIDDEN, HISTORY, CANDIDATES = 32, 5, 4
REQUESTS = [UserRequest([user] * (3 * HISTORY + 2), "", [[1, 2, 3]] * CANDIDATES, [""] * CANDIDATES) for user in (1, 2)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("model")
    words = {word: i for i, word in enumerate(["<s>", "<unk>", *"abcdef"])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, "<unk>")), bos_token="<s>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    llama = LlamaForCausalLM(config)
    for name, parameter in llama.named_parameters():
        if not name.endswith("norm.weight"):
            torch.nn.init.normal_(parameter, std=0.3)
    llama.save_pretrained(directory)
    tokenizer.save_pretrained(str(directory))
    return str(directory)


def by_transformers(model: str, request: UserRequest) -> tuple[np.ndarray, np.ndarray]:
    """One pair after another through transformers' own model: scores of the retrieve and of the rank head."""
    ranker, catalogue = items.with_random_items(model, "rank")
    plain = AutoModel.from_pretrained(model, dtype=torch.float32, attn_implementation="eager").eval()
    packed = items.as_items(request, catalogue, trunk_opening(Prompt(), ranker.tokenizer))
    words = plain.get_input_embeddings().weight
    vectors, bias = ranker.frozen.vectors[:, 0], ranker.frozen.bias

    def states(tokens: np.ndarray) -> torch.Tensor:
        read = [
            words[t] if t < len(words) else ranker.items.norm(vectors[t - len(words)]) * ranker.items.scale
            for t in tokens
        ]
        return plain(inputs_embeds=torch.stack(read)[None], use_cache=False).last_hidden_state[0, -1]

    retrieved, corrections = [], []
    with torch.no_grad():
        user = states(packed.trunk)  # W is the identity
        for token in packed.branches.values:
            row = token - len(words)
            cosine = torch.cosine_similarity(user, vectors[row], dim=0)
            retrieved.append(float(cosine * np.exp(2.5) + bias[row]))
            corrections.append(float(states(np.append(packed.trunk, token)) @ ranker.head.branch.weight))
    return np.asarray(retrieved), np.asarray(retrieved) + corrections


@pytest.mark.parametrize("head", ["rank", "retrieve"])
@pytest.mark.parametrize("precision,close", [("float32", 1e-4), ("bfloat16", 0.3)])
def test_scores_are_those_of_transformers(model: str, head: str, precision: str, close: float) -> None:
    scored = items.load(model, precision, threads=1, head=head)(REQUESTS)
    for found, request in zip(scored.scores, REQUESTS, strict=True):
        retrieved, ranked = by_transformers(model, request)
        assert np.abs(ranked - retrieved).max() > 0.1  # the branches do count
        np.testing.assert_allclose(found, ranked if head == "rank" else retrieved, rtol=0, atol=close)


def test_counts_a_position_an_item(model: str) -> None:
    opening = len(trunk_opening(Prompt(), items.with_random_items(model, "rank")[0].tokenizer))
    trunk = Span(opening + HISTORY, 0)
    branch = Span(opening + HISTORY + 1, opening + HISTORY)
    assert items.load(model, "float32", 1)(REQUESTS).spans == 2 * [trunk, *CANDIDATES * [branch]]
    assert items.load(model, "float32", 1, head="retrieve")(REQUESTS).spans == 2 * [trunk]


def test_refuses_to_time_scores_that_differ(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = cascade._branch_attention
    monkeypatch.setattr(cascade, "_branch_attention", lambda *given: right(*given) * 1.1)
    with pytest.raises(ValueError, match="packed scores of items as vectors differ from pair by pair by"):
        items.load(model, "float32", threads=1)


def record(pairs: int, seconds: float) -> dict[str, Any]:
    return {
        "case": "600x12x100", "pairs": pairs, "seconds": seconds, "passes": [seconds], "users": 1, "tokens": 100,
        "naive_tokens": 200, "visible": 5000, "padding": 0, "peak_mb": 10.0, "cpus_of_others": 0.0, "scores": [[1.0]],
    }  # fmt: skip


def test_ratio_is_to_the_rank_head_of_the_same_precision() -> None:
    chosen = engines.beside_items(engines.ENGINES)
    both = ("float32", "bfloat16")
    families = ("sentence-transformers", "llmrec", "llmrec-items", "llmrec-items-retrieve")
    assert [e.name for e in chosen] == [f"{family}-{precision}" for family in families for precision in both]
    seconds = {
        "sentence-transformers-bfloat16": 50.0, "llmrec-bfloat16": 10.0, "llmrec-items-bfloat16": 1.0,
        "llmrec-items-retrieve-bfloat16": 0.5, "llmrec-float32": 20.0,
    }  # fmt: skip
    records = {"600x12x100": {name: record(100, s) for name, s in seconds.items()}}
    cost = ModelCost(1000, 2, HIDDEN)
    rows = figures.rows(records, chosen, cost, {"bfloat16": 1.0}, engines.ranks_items)
    assert {row["engine"]: row["ours_over_this"] for row in rows} == {
        "sentence-transformers-bfloat16": 50.0, "llmrec-bfloat16": 10.0, "llmrec-items-bfloat16": 1.0,
        "llmrec-items-retrieve-bfloat16": 0.5, "llmrec-float32": None,
    }  # fmt: skip
    shown = io.StringIO()
    found = {
        "setup": {"model": "m", "cpu": "c", "threads": 1}, "matmul_gflops": [{"bfloat16": 1.0}], "results": [],
        "items": rows, "not_run": {}, "curves": [], "training": None,
    }  # fmt: skip
    report.show(Console(file=shown, width=130), found)
    assert "50 items of 12 tokens, 100 candidates" in shown.getvalue()
    line = next(line for line in shown.getvalue().splitlines() if "sentence-transformers-bfloat16" in line)
    assert "2.0" in line and "50.00x" in line


def test_items_are_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("sys.argv", ["speed", "--engines", "llmrec-items", "--shapes", "none", "--items"])
    asked = command_line.options("about")
    assert asked.items and asked.shape == [] and engines.of_text(asked.engines) == []
    monkeypatch.setattr("sys.argv", ["speed", "--engines", "llmrec-items"])
    with pytest.raises(SystemExit):
        command_line.options("about")
    assert "--items" in capsys.readouterr().err
