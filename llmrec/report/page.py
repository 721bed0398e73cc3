"""A run and its evaluation as one HTML page that needs nothing beside it. Computes no number itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2
from markupsafe import Markup

from llmrec.evaluation.verdict import outcome
from llmrec.report import caveats, figures
from llmrec.report.headline import cost_of, sentences
from llmrec.report.terminal import text

OUTCOMES = {"better": "ours is better", "worse": "ours is worse", "unclear": "not told apart"}
MARKS = {"better": "+", "worse": "-", "unclear": "="}


def render(shown: Mapping[str, Any]) -> str:
    """The page of what `engine.report.gather` gives.

    Every text is escaped. Parts of an evaluation that are not there (segments, fairness, calibration ...) are left out.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("llmrec.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"text": text, "figure": _figure, "signed": _signed, "share": _share, "chance": _chance}
    style = environment.loader.get_source(environment, "page.css")[0]  # type: ignore[union-attr]
    return environment.get_template("page.html.j2").render(
        **shown, sentences=sentences(shown), cost=cost_of(shown), figures=figures, caveats=caveats, outcomes=OUTCOMES,
        told_by=outcome, marks=MARKS,
        style=Markup(style),  # ours, not data
    )  # fmt: skip


def _figure(value: float | None) -> str:
    """To four places, as metrics are read."""
    return "-" if value is None else f"{value:.4f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _chance(value: float) -> str:
    return "below 0.001" if value < 0.001 else f"{value:.3f}"
