"""Times scoring engines side by side: same weights, same requests, same machine, one run.

Each engine runs in a process of its own, on requests of exact token lengths from MovieLens-100k, with the weights of
SmolLM2-135M-Instruct and one fixed score vector. Writes report.json and plots, and prints the same as tables.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks.speed import figures, report, workload
from benchmarks.speed.command_line import HEADLINE, ITEMS_SHAPE, options
from benchmarks.speed.comparison import compare
from benchmarks.speed.curves import curves
from benchmarks.speed.engines import beside_items, of_text, ranks_items, scores_text
from benchmarks.speed.processes import processor
from benchmarks.speed.run import Run, case
from benchmarks.speed.weights import non_embedding_parameters
from llmrec import assets
from llmrec.ranker.cost import ModelCost

MODEL = "smollm2-135m-instruct"


def main() -> None:
    asked = options(str(__doc__))
    console, say = report.started(asked.out)
    with tempfile.TemporaryDirectory() as work:
        found = measure(Run(asked, assets.resolve_model(MODEL), Path(work), say))
    figures_file = asked.out / "report.json"
    figures_file.write_text(json.dumps(found, indent=2) + "\n")
    report.show(console, found)
    written = [figures_file, *report.plot(found, asked.out)]
    console.print("written:", *written)


def measure(run: Run) -> dict[str, Any]:
    """All parts that were asked for, as one report that JSON can hold."""
    config = json.loads((Path(run.model) / "config.json").read_text())
    width = config["num_attention_heads"] * config["head_dim"]
    cost = ModelCost(non_embedding_parameters(run.model), config["num_hidden_layers"], width)
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    rates = [matmul(run, config)]

    def after_round() -> None:
        rates.append(matmul(run, config))

    texts, items = of_text(run.options.engines), beside_items(run.options.engines)
    records, versions, not_run = compare(run, tokenizer, run.options.shape, texts, after_round)
    shapes = [ITEMS_SHAPE] if run.options.items else []
    of_items, more_versions, more_not_run = compare(run, tokenizer, shapes, items, after_round)
    peaks = {precision: max(rate[precision] for rate in rates) for precision in rates[0]}
    return {
        "setup": {
            "model": MODEL,
            "non_embedding_parameters": cost.parameters,
            "cpu": processor(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "threads": run.options.threads,
            "rounds": run.options.rounds,
            "repeats": run.options.repeats,
            "seconds": run.options.seconds,
            "versions": versions | more_versions,
        },
        "matmul_gflops": rates,
        "results": figures.rows(records, texts, cost, peaks, ours=scores_text),
        "items": figures.rows(of_items, items, cost, peaks, ours=ranks_items),
        "not_run": not_run | more_not_run,
        "curves": curves(run, tokenizer) if run.options.curves else [],
        "training": training(run, tokenizer) if run.options.training else None,
    }


def matmul(run: Run, config: dict[str, Any]) -> dict[str, float]:
    """G operations per second by precision."""
    sizes = {"hidden": config["hidden_size"], "intermediate": config["intermediate_size"]}
    records, _ = run.child(sys.executable, "matmul", "matmul", {**sizes, "seconds": 2.0})
    return {precision: rate / 1e9 for record in records for precision, rate in record.items()}


def training(run: Run, tokenizer: Any) -> dict[str, Any] | None:
    asked = case(run, "training", workload.build(tokenizer, HEADLINE, 1))
    records, _ = run.child(sys.executable, "training", "training", {"model": run.model, "requests": asked["requests"]})
    return records[0] if records else None


if __name__ == "__main__":
    main()
