"""Packed scoring against one padded batch per user, same weights and requests, in one run.

python benchmarks/packing.py [--json FILE] [--trunk 160] [--item 12] [--candidates 50] [--users 2]

The peer is what a Hugging Face user writes: every candidate with a copy of the user's tokens, in transformers' own
attention (SDPA), one forward pass per user. Reports pairs per second, the ratio, and the largest difference of scores.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel

from llmrec import assets
from llmrec.config import Model, Prompt
from llmrec.ranker.model import Ranker, inference_dtype, score_requests
from llmrec.ranker.packing import Request
from llmrec.ranker.ragged import Ragged


def requests(users: int, trunk: int, item: int, candidates: int, vocabulary: int) -> list[Request]:
    """Requests of random tokens: their cost is that of real ones of the same length."""
    rng = np.random.default_rng(0)
    return [
        Request.to_score(
            rng.integers(10, vocabulary, trunk).astype(np.int32),
            Ragged.of(rng.integers(10, vocabulary, (candidates, item)).astype(np.int32)),
        )
        for _ in range(users)
    ]


def naive(
    backbone: torch.nn.Module, head: torch.nn.Module, asked: list[Request], precision: torch.dtype
) -> torch.Tensor:
    """float32[all candidates]: each scored as a sequence of its own, a user's candidates in one batch."""
    scores = []
    with torch.inference_mode(), torch.autocast("cpu", precision, enabled=precision != torch.float32):
        for r in asked:
            rows = [np.concatenate([r.trunk, r.branches[i]]) for i in range(len(r.branches))]
            hidden = backbone(input_ids=torch.from_numpy(np.stack(rows)).long(), use_cache=False).last_hidden_state
            scores.append(head(hidden[:, -1]))
    return torch.cat(scores).float()


def best_of(work: Callable[[], torch.Tensor], times: int) -> tuple[float, torch.Tensor]:
    """Seconds of the fastest of some runs after one that warms up, and the result."""
    result = work()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--trunk", type=int, default=160)
    parser.add_argument("--item", type=int, default=12)
    parser.add_argument("--candidates", type=int, default=50)
    parser.add_argument("--users", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    chosen = parser.parse_args()

    directory = assets.resolve_model("smollm2-135m-instruct")
    ranker = Ranker.from_base(Model(items="text", head="linear"), Prompt(), directory)
    torch.manual_seed(0)
    torch.nn.init.normal_(ranker.head.weight)
    peer = AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
    asked = requests(chosen.users, chosen.trunk, chosen.item, chosen.candidates, ranker.vocabulary)
    pairs = chosen.users * chosen.candidates
    found = []
    for precision in dict.fromkeys([torch.float32, inference_dtype("auto", torch.device("cpu"))]):
        slow, expected = best_of(lambda p=precision: naive(peer, ranker.head, asked, p), chosen.repeats)
        fast, scores = best_of(lambda p=precision: torch.cat(score_requests(ranker, asked, 4096, p)), chosen.repeats)
        found.append({
            "precision": str(precision).removeprefix("torch."),
            "naive_pairs_per_second": pairs / slow,
            "packed_pairs_per_second": pairs / fast,
            "ratio": slow / fast,
            "largest_difference": float((scores - expected).abs().max() / expected.abs().max()),
        })  # fmt: skip
    shape = {name: getattr(chosen, name) for name in ("trunk", "item", "candidates", "users")}
    print(f"{directory.rsplit('/', 1)[-1]}, {shape}, {torch.get_num_threads()} threads")
    print(f"{'precision':<10} {'naive pairs/s':>14} {'packed pairs/s':>15} {'ratio':>7} {'largest difference':>19}")
    for row in found:
        print(
            f"{row['precision']:<10} {row['naive_pairs_per_second']:>14.1f} {row['packed_pairs_per_second']:>15.1f} "
            f"{row['ratio']:>7.1f} {row['largest_difference']:>19.2g}"
        )
    if chosen.json:
        chosen.json.write_text(json.dumps({**shape, "results": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
