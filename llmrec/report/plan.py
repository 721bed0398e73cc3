"""What a person reads of a plan. Computes no number itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmrec.report import terminal


def print_plan(found: Mapping[str, Any]) -> None:
    basis = (
        f"{found['actors_calibrated']} of {found['actors']} actors scored {found['sampled_pairs']:,} pairs here"
        if found["actors_calibrated"]
        else f"the published rate of {found['device']}, and packing here"
    )
    rows = [
        ["run", found["run_id"]],
        ["model", found["model"]],
        ["buckets", f"{found['buckets']:,} to score, {found['done']:,} staged before"],
        ["pairs", f"{terminal.text(found['pairs'])}; {found['users']:,} users"],
        ["tokens", f"{found['tokens']:,}, {terminal.text(found['prefix_reuse'])} times fewer than pair by pair"],
        ["arithmetic", f"{found['operations'] / 1e12:,.1f} T operations"],
        ["rate", f"{found['pairs_per_second']:,.0f} pairs/s, {found['tokens_per_second']:,.0f} tokens/s by all actors"],
        ["measured by", basis],
        ["packing alone", f"{found['packed_per_second']:,.0f} pairs/s by as many processes like those here"],
        ["share of matrix-product rate", terminal.text(found["mfu"])],
        ["time", f"{_time(found['hours'])}, of which {found['start_seconds']:.0f} s before the first score"],
        ["actors", terminal.text(found["actors"])],
        ["cost", _cost(found)],
        ["memory", f"{_mb(found['actor_mb'])} an actor, {_mb(found['bucket_mb'])} the largest bucket"],
        ["output", _mb(found["output_mb"])],
    ]
    terminal.print_rows("plan", ["what", "how much"], rows)


def _time(hours: float) -> str:
    return f"{hours:,.2f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"


def _cost(found: Mapping[str, Any]) -> str:
    if not found["cost"]:
        return "- (score.price_per_hour is not set)"
    return f"{found['cost']:,.2f}, {terminal.text(found['cost_per_million_pairs'])} a million pairs"


def _mb(megabytes: float | None) -> str:
    if megabytes is None:
        return "-"
    if megabytes < 1:
        return f"{megabytes * 1000:,.0f} kB"
    return f"{megabytes / 1000:,.2f} GB" if megabytes >= 1000 else f"{megabytes:,.1f} MB"
