"""What was kept out of tables and prompts, and what was forgotten, on the terminal. Computes no number itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmrec.report.terminal import console, print_rows


def print_checked(done: Mapping[str, Any]) -> None:
    """Which values were looked for, and where some were found."""
    print_rows(
        "columns that must never leave", ["column", "values", "looked for"],
        [[c["name"], c["values"], c["looked_for"]] for c in done["columns"]],
    )  # fmt: skip
    if done["found"]:
        print_rows(
            "found", ["column", "where", "values"], [[f["column"], f["place"], f["values"]] for f in done["found"]]
        )
    what = f"{done['files']:,} files, {done['logs']:,} logs and {done['prompts']:,} prompts"
    console().print(f"{what}: {'values FOUND in them' if done['found'] else 'none of these values is in them'}")


def print_forgotten(done: Mapping[str, Any]) -> None:
    """What was taken out where, and what is left."""
    print_rows(
        f"users forgotten: {done['users']:,}", ["where", "", "files", "rows"],
        [[r["place"], r["what"], r["files"], r["rows"]] for r in done["removed"]],
    )  # fmt: skip
    if done["runs_deleted"]:
        console().print(f"runs that cannot be read any more: {', '.join(done['runs_deleted'])}")
    if done["ranker_knows"]:
        console().print("the trained ranker may tell of them: the next training begins with model.base")
    print_left(done["searched"], done["left"])


def print_left(searched: int, left: Sequence[str]) -> None:
    """Where users are."""
    if left:
        print_rows("they are in", ["file"], [[place] for place in left])
    console().print(f"{searched:,} files searched: {f'{len(left):,} hold' if left else 'none holds'} one of them")
