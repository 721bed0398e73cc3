"""The stages of the main job by name: what each one is called with, what it depends on, what it leaves behind."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from llmrec import assets, storage
from llmrec.config import Config
from llmrec.engine import (
    augment,
    bucket,
    embed,
    evaluate,
    explain,
    export,
    feedback,
    fuse,
    kept_out,
    prepare,
    publish,
    recall,
    report,
    score,
    search_space,
    tracking,
    train,
)
from llmrec.engine.warm_start import PREVIOUS
from llmrec.errors import UserError
from llmrec.fusion import trees
from llmrec.generation import instructions
from llmrec.layout import Layout
from llmrec.ranker import edge_texts
from llmrec.reasons import templates
from llmrec.tables import embeddings, pseudonyms, rankings
from llmrec.tables.augmentations import interests_read, item_texts_read

Say = Callable[[str], None]
ORDER = (
    "feedback",
    "prepare",
    "augment",
    "embed",
    "train",
    "recall",
    "fuse",
    "score",
    "publish",
    "explain",
    "evaluate",
)


def run(name: str, config: Config, say: Say, reuse: bool = False) -> dict[str, Any]:
    """Run one stage and leave its summary under the root, last; the summary as a dict.

    A stage's summary is deleted when the stage starts and written when it is done, so a later stage knows whether the
    tables of an earlier one are whole. reuse: skip what can be skipped when neither its settings nor the
    content of its inputs changed.

    Raises:
        UserError: a setting or an input is wrong, or an earlier stage has not finished.
    """
    layout = Layout.of(config)
    for earlier in _needs(name, config):
        if not storage.exists(layout.summary(earlier)):
            raise UserError(f"{layout.root}: {earlier} has not finished there; run jobs/{earlier}.py first")
    depends = _fingerprint(name, config, layout)
    if reuse and depends is not None and storage.exists(layout.summary(name)):
        before = storage.read_json(layout.summary(name))
        if before["fingerprint"] == depends:
            return {**before["summary"], "reused": True}
    storage.delete(layout.summary(name))

    def work() -> dict[str, Any]:
        started = time.monotonic()
        summary = _STAGES[name](config, layout, say)
        summary = {**summary, "seconds": round(time.monotonic() - started, 1)}
        storage.write_json(layout.summary(name), {"fingerprint": depends, "summary": summary})
        return summary

    return tracking.tracked(name, config, layout, say, work)


def check(name: str, config: Config) -> None:
    """What of a stage's settings can be told wrong before there is a cluster.

    Raises:
        UserError: they contradict each other, or ask for a package that is not installed.
    """
    tracking.check(config.tracking)
    if name == "search":
        search_space.checked(config)
    if name in ("fuse", "score", "pipeline") and config.fusion.method == "trees":
        trees.check()  # or fuse would tell after it has scored


def _feedback(config: Config, layout: Layout, say: Say) -> dict[str, Any]:
    return asdict(feedback.feedback(config.feedback, config.data, config.privacy, layout, say))


def _prepare(config: Config, layout: Layout, say: Say) -> dict[str, Any]:
    done = prepare.prepare(
        config.data, config.privacy, layout, say, feedback=bool(config.feedback.impressions)
    )  # fmt: skip
    tables = {"items": layout.items, "histories": layout.histories, "targets": layout.targets}
    if config.data.users:
        tables["users"] = layout.users
    if config.data.edges:
        tables["edges"] = layout.edges
    found = {**asdict(done), "tables": tables, "quarantine": layout.quarantine("prepare")}
    if config.privacy.never:
        found["values_kept_out"] = kept_out.after_prepare(config, layout, say)
    return found


def _augment(config: Config, layout: Layout, say: Say) -> dict[str, Any]:
    return asdict(augment.augment(config, layout, say))


def _embed(config: Config, layout: Layout, say: Say) -> dict[str, Any]:
    return asdict(embed.embed(config, layout, say))


def _train(config: Config, layout: Layout, say: Say) -> dict[str, Any]:
    return asdict(train.train(config, layout, say))


def _search(config: Config, layout: Layout, say: Say) -> dict[str, Any]:
    search_space.check_optuna()
    from llmrec.engine import search

    return asdict(search.search(config, layout, say))


def _recall(config: Config, layout: Layout, say: Say) -> dict[str, Any]:
    return asdict(recall.recall(config.recall, layout, say, config.model.attention, config.score.requires))


def _fuse(config: Config, layout: Layout, say: Say) -> dict[str, Any]:
    return asdict(fuse.fuse(config, layout, say))


def _bucket(config: Config, layout: Layout, say: Say) -> dict[str, Any]:
    return asdict(bucket.bucket(config.bucket, config.privacy, layout, say))


def _score(config: Config, layout: Layout, say: Say) -> dict[str, Any]:
    done = asdict(score.score(config, layout, say))
    if not config.score.publish:
        return done
    say(f"publishing run {done['run_id']}")
    return {**done, "published": _published(layout, done["run_id"])}


def _publish(config: Config, layout: Layout, say: Say) -> dict[str, Any]:
    """Publish the run that score left staged last."""
    run_id = storage.read_json(layout.summary("score"))["summary"]["run_id"]
    say(f"publishing run {run_id}")
    return _published(layout, run_id)


def _published(layout: Layout, run_id: str) -> dict[str, Any]:
    done = publish.publish(layout, run_id)
    return {"table": done.table, "version": done.version, "run_id": done.run_id, "rows": done.rows, "new": done.new}


def _explain(config: Config, layout: Layout, say: Say) -> dict[str, Any]:
    return asdict(explain.explain(config, layout, say))


def _evaluate(config: Config, layout: Layout, say: Say) -> dict[str, Any]:
    done = asdict(evaluate.evaluate(config, layout, say))
    figures, page = layout.evaluation_of(done["run_id"])
    storage.write_json(layout.evaluation, done)
    storage.write_json(figures, done)
    report.write(report.gather(config, layout), layout.report, page)
    return {**done, "report": layout.report}


def _export(config: Config, layout: Layout, say: Say) -> dict[str, Any]:
    return asdict(export.export(config, layout, say))


_STAGES: dict[str, Callable[[Config, Layout, Say], dict[str, Any]]] = {
    "feedback": _feedback,
    "prepare": _prepare,
    "augment": _augment,
    "embed": _embed,
    "train": _train,
    "search": _search,
    "recall": _recall,
    "fuse": _fuse,
    "bucket": _bucket,
    "score": _score,
    "publish": _publish,
    "explain": _explain,
    "evaluate": _evaluate,
    "export": _export,
}


def _fits(config: Config) -> bool:
    """Whether there is a fusion whose weights are not given."""
    return config.fusion.method != "none" and not config.fusion.model


def order(config: Config) -> tuple[str, ...]:
    """The stages that a configuration asks for."""
    asked = {
        "feedback": bool(config.feedback.impressions),
        "augment": config.augment.wanted, "fuse": _fits(config), "explain": config.explain.run,
    }  # fmt: skip
    return tuple(name for name in ORDER if asked.get(name, True))


_NEEDS: dict[str, tuple[str, ...]] = {
    "feedback": (), "prepare": (), "augment": ("prepare",), "embed": ("prepare",), "train": ("prepare",),
    "search": ("prepare",), "recall": ("prepare",), "bucket": ("prepare",), "score": ("prepare",), "fuse": ("prepare",),
    "publish": ("score",), "explain": ("prepare",), "evaluate": ("prepare", "recall"), "export": (),
}  # fmt: skip


def _needs(name: str, config: Config) -> tuple[str, ...]:
    """The stages that must have finished before this one."""
    written = item_texts_read(config.prompt.item) and config.augment.items.min_characters
    augmented = ("augment",) if written else ()
    if name == "prepare":
        return ("feedback",) if config.feedback.impressions else ()
    if name == "embed":
        return (*_NEEDS[name], *augmented)
    if name in ("train", "search"):
        embedded = ("embed",) if config.model.items == "token" and embed.wanted(config) else ()
        return (*_NEEDS[name], *augmented, *embedded)
    if name == "score":
        fitted = ("fuse",) if _fits(config) else ()
        recalled = () if config.score.candidates else ("recall",)
        return (*_NEEDS[name], *recalled, *fitted, *(("embed",) if config.rerank.by_text else ()))
    if name in ("recall", "fuse"):
        embedded = ("embed",) if config.recall.by_text else ()
        trained = ("train",) if config.recall.retrieve.top and not config.recall.retrieve.model else ()
        return (*_NEEDS[name], *embedded, *trained)
    return _NEEDS[name]


def _fingerprint(name: str, config: Config, layout: Layout) -> str | None:
    """A hash of the settings and the content of the inputs that a stage's output depends on; None: never reused."""
    dump = config.model_dump(mode="json")
    prepared: tuple[str, ...] = (layout.items, layout.histories)
    embedded = storage.join(layout.embeddings, embeddings.DESCRIPTION)
    written = (layout.item_augmentations,) if item_texts_read(config.prompt.item) else ()
    read_of_users = (layout.user_augmentations,) if interests_read(config.prompt.user) else ()
    inputs: tuple[str, ...]
    if name == "feedback":
        sections, inputs = ["feedback", "data"], (config.feedback.impressions, layout.forgotten)
    elif name == "prepare":
        data = config.data
        sections, inputs = ["data"], (data.items, data.interactions, data.users, data.edges, data.requests)
        inputs = (*inputs, layout.feedback) if config.feedback.impressions else inputs
        inputs = (*inputs, layout.forgotten)
        if config.privacy.never:  # which is looked for in prompts, too
            sections.append("prompt")
    elif name == "augment":
        sections, inputs = ["augment", "prompt"], (layout.items, layout.edges)
        for kind, on in (("items", config.augment.items.min_characters), ("users", config.augment.users.history)):
            if on:
                dump["augment"][kind]["instructions"] = instructions.read(dump["augment"][kind]["template"]).digest
        if config.augment.users.history:
            inputs = (*inputs, layout.histories)
        inputs = (*inputs, *assets.files_of(config.augment.model))
    elif name == "embed":
        sections, inputs = ["model", "prompt", "items"], (layout.items, layout.edges, *written)
        inputs = (*inputs, *assets.files_of(config.items.encoder, config.items.image_encoder))
        dump["items"]["wanted"] = embed.wanted(config)
    elif name == "train":
        edges = (layout.edges,) if config.model.items == "text" and edge_texts.wanted(config.prompt.item) else ()
        # Not the previous ranker, which is what the stage leaves: with the same events there is nothing to go on with.
        start = () if config.train.start in ("", PREVIOUS) else (config.train.start,)
        inputs = (*prepared, layout.users, embedded, *edges, *written, *start, *assets.files_of(config.model.base))
        dump["train"]["taught_by"] = _shown(config.train.teacher) if config.train.teacher else None
        sections = ["model", "prompt", "items", "train"]
        dump["train"]["negatives_from"] = dump["recall"]["item_item"]
    elif name == "recall":
        sections, inputs = ["recall"], (*prepared, *_read_by_recall(config, layout))
        if config.score.requires:
            dump["recall"]["requires"] = config.score.requires
    elif name == "fuse":
        sections = ["recall", "score", "fusion"]
        for key in fuse.OF_ITS_OWN:
            dump["score"].pop(key, None)
        inputs = (*prepared, layout.users, embedded, config.score.model or layout.ranker, *written, *read_of_users)
        inputs = (*inputs, *config.score.ensemble, config.score.blocked_items)
        if config.score.model == "base":
            sections, inputs = [*sections, "model", "prompt"], (*inputs, *assets.files_of(config.model.base))
        inputs = (*inputs, *(uri for uri in (*_read_by_recall(config, layout), layout.edges) if uri not in inputs))
    elif name == "explain":
        sections, inputs = ["explain", "score", "prompt", "model"], explain.read(layout)
        inputs = (*inputs, *assets.files_of(config.explain.model))
        dump["explain"]["separator"] = config.explaining.separator
        dump["explain"]["of"] = _shown(config.score.output or layout.rankings)
        dump["explain"]["words"] = templates.load(config.explain.template).model_dump(mode="json")
    elif name == "evaluate" and not config.evaluate.labelled:
        sections, inputs = ["evaluate", "recall", "fusion", "score"], (*prepared, layout.targets, layout.users)
        inputs = (*inputs, config.score.candidates or layout.candidates())
        inputs = (*inputs, *config.evaluate.rankings.values(), embedded)
        dump["evaluate"]["of"] = _shown(config.score.output or layout.rankings)
        dump["evaluate"]["separator"] = config.items.separator
    else:
        return None
    if name in ("feedback", "prepare"):
        if "privacy" in dump:
            sections.append("privacy")
        if config.privacy.pseudonyms:
            dump["privacy"]["check"] = pseudonyms.check_of(config.privacy.key_variable)
    content = [storage.manifest(uri) for uri in inputs if uri and storage.exists(uri)]
    return hashlib.sha256(json.dumps([[dump[s] for s in sections], content]).encode()).hexdigest()[:16]


def _shown(table: str) -> str | None:
    """The run that a rankings table shows; None if there is none."""
    table = storage.absolute(table)
    return rankings.snapshot(table).run_id if rankings.opened(table) is not None else None


def _read_by_recall(config: Config, layout: Layout) -> tuple[str, ...]:
    """What recall reads beside items and histories."""
    recall = config.recall
    found: list[str] = []
    if recall.retrieve.top or "segment" in recall.merge:
        found.append(layout.users)
    if recall.retrieve.top or recall.by_text:
        found.append(storage.join(layout.embeddings, embeddings.DESCRIPTION))
    if recall.retrieve.top:
        found.append(recall.retrieve.model or layout.ranker)
    if "graph" in recall.merge or recall.closeness.weight or config.score.requires:
        found.append(layout.edges)
    return tuple(found)
