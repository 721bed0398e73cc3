"""A run and its evaluation as one HTML page that needs nothing beside it. Computes no number itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2
from markupsafe import Markup

from llmrec.evaluation.verdict import outcome
from llmrec.reasons.quoting import one_line
from llmrec.report import caveats, figures
from llmrec.report.headline import cost_of, sentences
from llmrec.report.terminal import figure, share, text

OUTCOMES = {"better": "ours is better", "worse": "ours is worse", "unclear": "not told apart"}
MARKS = {"better": "+", "worse": "-", "unclear": "="}


def render(shown: Mapping[str, Any]) -> str:
    """The page of what `engine.report.gather` gives.

    Parts of an evaluation that are not there (segments, fairness, calibration ...) are left out.
    """
    return drawn(
        "page.html.j2", **shown, sentences=sentences(shown), cost=cost_of(shown), caveats=caveats, outcomes=OUTCOMES,
        told_by=outcome, marks=MARKS,
    )  # fmt: skip


def drawn(template: str, **given: Any) -> str:
    """A template beside this module with what it is given, our style sheet and `figures`. Every text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("llmrec.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "text": text, "one_line": one_line, "figure": figure, "signed": _signed, "share": share, "chance": _chance,
    }  # fmt: skip
    style = environment.loader.get_source(environment, "page.css")[0]  # type: ignore[union-attr]
    return environment.get_template(template).render(**given, figures=figures, style=Markup(style))  # ours, not data


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"


def _chance(value: float) -> str:
    return "below 0.001" if value < 0.001 else f"{value:.3f}"
