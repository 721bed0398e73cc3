"""The verdict on a run in plain words. Computes no number itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmrec.report import caveats
from llmrec.report.terminal import text


def sentences(shown: Mapping[str, Any]) -> list[str]:
    """What an evaluation says of the language model: first against the best other recommender, then, of a fused run,
    what the fusion would be without it, or that this is not known. shown: see `engine.report.gather`.
    """
    verdict = shown["verdict"]
    metric, found, without = verdict["metric"].upper(), verdict["baseline"], verdict["without_ranker"]
    subject = "The language model" if shown["importance"] is None else "The fused ranking, with the language model,"
    if found is None:
        ours = next(row for row in shown["evaluation"]["all_users"] if row["name"] == shown["ours"])
        first = (
            f"Nothing to compare with: no recommender without a language model was evaluated here; {metric} is "
            f"{ours['values'][verdict['metric']]:.4f}"
        )
    else:
        name = f"{found['name']}, the best other recommender here"
        first = {
            "better": f"{subject} beats {name}, in {metric} by {_by(found)}",
            "worse": f"{subject} does not beat {name}: in {metric} it is behind by {_by(found)}",
            "unclear": f"{subject} cannot be told apart from {name}: in {metric} the difference is {_by(found)}",
        }[found["outcome"]]
    cost = cost_of(shown)
    told = [f"{first}{f', at the cost of {cost}' if cost else ''}."]
    if without is not None:
        start = f"Fused without what the language model says, {metric} would be {without['theirs']:.4f}: "
        told.append(start + {
            "better": f"the model adds {_by(without)}.",
            "worse": f"the model takes away {_by(without)}.",
            "unclear": f"what the model adds, {_by(without)}, cannot be told from nothing.",
        }[without["outcome"]])  # fmt: skip
    return told + caveats.of_parts(shown["evaluation"])


def cost_of(shown: Mapping[str, Any]) -> str:
    """What training and scoring took, as far as it is known; empty if nothing is."""
    train, score = shown["summaries"].get("train"), shown["score"]
    parts = [f"{train['seconds']:,.0f} s of training"] if train else []
    if score:
        rate, cost = score["pairs_per_second"], score["cost"]
        known = [f"{rate:,.0f} pairs/s"] if rate else []
        known += [f"{text(cost)} at the price per hour"] if cost else []
        parts.append(f"{score['seconds']:,.0f} s of scoring" + (f" ({', '.join(known)})" if known else ""))
    return " and ".join(parts)


def _by(found: Mapping[str, Any]) -> str:
    """How far apart two rankings are; without its sign where the words tell which is ahead."""
    difference, share = found["difference"], found["share"]
    amount = f"{difference:+.4f}" if found["outcome"] == "unclear" else f"{abs(difference):.4f}"
    of = "" if share is None else f"{share:+.1%}; "
    interval = f"95% interval of the difference {found['low']:+.4f} to {found['high']:+.4f}"
    return f"{amount} ({of}{found['ours']:.4f} against {found['theirs']:.4f}; {interval})"
