"""What a promotion gate found, on the terminal. Computes no number itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmrec.report.terminal import console


def print_gate(found: Mapping[str, Any]) -> None:
    """What `engine.gate.gate` gives, a line a condition."""
    out = console()
    against = found["published_run"] or "nothing, since no run is published yet"
    out.print(
        f"run {found['run_id']} against {against}: {found['users']:,} users with a held-out event", highlight=False
    )
    if found["ranked"] < found["users"]:
        out.print(
            f"{found['users'] - found['ranked']:,} of these users have no list in the staged run and count as 0 there",
            highlight=False,
        )
    for decision in found["decisions"]:
        out.print(line(decision), highlight=False, soft_wrap=True)
    verdict = "every condition holds" if found["holds"] else "not to be published: a condition does not hold"
    out.print(verdict, highlight=False)


def line(decision: Mapping[str, Any]) -> str:
    """One condition with its figures."""
    parts = [f"{decision['metric']} {decision['candidate']:.4f}"]
    if decision["published"] is not None:
        parts.append(f"published {decision['published']:.4f}")
        difference = f"difference {decision['difference']:+.4f}"
        if decision["low"] is not None:
            difference += f" (95% {decision['low']:+.4f} to {decision['high']:+.4f})"
        parts.append(difference)
    if decision["limit"] is not None:
        parts.append(f"limit {decision['limit']:.4f}")
    if decision["state"] == "nothing published":
        parts.append("nothing is published to compare with")
    return f"{'holds' if decision['holds'] else 'FAILS'}  {decision['condition']}: {', '.join(parts)}"
