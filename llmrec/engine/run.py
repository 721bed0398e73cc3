"""A scoring run: what it is to do, and the name that follows from it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from llmrec import assets, config, storage
from llmrec.engine.prompts import user_files
from llmrec.errors import UserError
from llmrec.fusion.ablations import Fitted
from llmrec.fusion.model import Fusion
from llmrec.layout import Layout
from llmrec.ranker import edge_texts
from llmrec.ranker.card import RANKER_FILE, model_revision, model_version, read_card
from llmrec.ranker.templates import placeholders
from llmrec.schema import BUCKET
from llmrec.tables import buckets, contexts, rankings
from llmrec.tables.augmentations import interests_read, item_texts_read

ATTEMPTS, MARKS, PLAN = "attempts", "users", "plan.json"
# Settings that change what a run costs, never what it gives.
OF_COST = frozenset({
    "min_actors", "max_actors", "cpus_per_actor", "gpus_per_actor", "publish", "probe_users", "compile",
    "tensor_parallel", "canary_from", "price_per_hour",
})  # fmt: skip


@dataclass(frozen=True)
class Earlier:
    """A complete run whose rows may be copied. output: the rankings that its files are relative to."""

    run_id: str
    output: str


@dataclass(frozen=True)
class Job:
    """What every task and actor of a run needs.

    ensemble: further rankers, whose scores are averaged with the model's; the model's version then tells of all.
    fusion_of_new: of users without a history, None if theirs is that of all.
    fusion: None where the ranker's score alone ranks; item_weights: columns of items and their exponents; rerank: how
    lists are chosen of what ranks best.
    prompt: the model's own, if it was trained; buckets: how many users are hashed into; rule: what, besides the input,
    a user's rows depend on; work: a hash of both, the same for runs that differ in what they copy from.
    """

    score: config.Score
    model: config.Model
    prompt: config.Prompt
    layout: Layout
    output: str
    run_id: str
    model_uri: str
    model_version: str
    buckets: int
    rule: str
    earlier: Earlier | None
    fusion: Fusion | None = None
    item_weights: dict[str, float] = field(default_factory=dict)
    rerank: config.Rerank = field(default_factory=config.Rerank)
    ensemble: tuple[str, ...] = ()
    fusion_of_new: Fusion | None = None
    work: str = ""

    def attempts_file(self, bucket: int) -> str:
        """What was being scored of a bucket, for the attempt after a death."""
        return storage.join(self.layout.run(self.run_id), ATTEMPTS, f"bucket-{bucket:05d}.json")

    def parts_file(self, run_id: str, bucket: int) -> str:
        """What every candidate's score in a bucket is made of, if score.keep_parts asks for it."""
        return buckets.bucket_file(self.layout.score_parts(run_id), bucket)

    def marks_file(self, run_id: str, bucket: int) -> str:
        """The fingerprints of a bucket's users."""
        return buckets.bucket_file(storage.join(self.layout.run(run_id), MARKS), bucket)

    def quarantine_file(self, bucket: int, step: str) -> str:
        name = f"bucket-{bucket:05d}-{step}.parquet"
        return storage.join(self.layout.quarantine(f"score/{self.run_id}"), name)


def resolve(settings: config.Config, layout: Layout) -> tuple[Job, list[dict[str, Any]]]:
    """The job, named by a hash of its settings, model and inputs, and its units: `bucket`, and the
    files `histories`, `candidates`, `users` and `interests` (empty if nothing is known of any). Where score.reuse names
    a run that had the same of all, the job is that run.

    Raises:
        UserError: an input is missing, or the tables do not go together.
    """
    wanted = placed(settings.score)
    candidates = candidates_table(wanted, layout)
    output = storage.absolute(wanted.output) if wanted.output else layout.rankings
    histories = buckets.bucket_files(layout.histories)
    listed = buckets.bucket_files(candidates)
    if extra := set(listed) - set(histories):
        raise UserError(
            f"{candidates}: bucket {min(extra)} has no counterpart in {layout.histories}; bucket both into "
            f"{len(histories)} (data.buckets)"
        )
    model_uri, version, prompt, with_vectors = _model(settings, layout)
    contexts.check(buckets.schema_of(next(iter(histories.values()))), placeholders(prompt.context), layout.histories)
    of_text = [layout.edges] * (not with_vectors and bool(edge_texts.wanted(prompt.item)))
    of_text += [layout.item_augmentations] * (not with_vectors and item_texts_read(prompt.item))
    of_text += [layout.user_augmentations] * interests_read(prompt.user)
    of_vectors = [layout.embeddings] * (with_vectors or settings.rerank.by_text)
    of_rules = [wanted.blocked_items] * bool(wanted.blocked_items)
    of_rules += [layout.edges] * (bool(wanted.requires) and layout.edges not in of_text)
    inputs = [
        storage.manifest(uri)
        for uri in (candidates, layout.histories, layout.items, layout.users, *of_vectors, *of_text, *of_rules)
        if storage.exists(uri)
    ]
    untrained = [settings.model.model_dump(), settings.prompt.model_dump()] if wanted.model == "base" else None
    where = {"candidates", "output", "reuse"}
    fusion, of_new = _fusion(settings.fusion, layout, version)
    fused = [asdict(fusion), settings.fusion.item_weights] if fusion else None
    fused = [*fused, asdict(of_new)] if fused and of_new else fused
    chosen = settings.reranking.model_dump(mode="json") if settings.rerank != config.Rerank() else None
    rule = _hash([wanted.model_dump(mode="json", exclude=set(OF_COST | where)), version, untrained, fused, chosen])
    work = _hash([rule, candidates, output, inputs])
    before = _reused(wanted, layout, output)
    if before is not None and before.get("work") == work:
        run_id, earlier = before["run_id"], _copied_from(before, layout)
    else:
        earlier = _earlier(before, rule, len(histories))
        run_id = _hash([rule, candidates, output, inputs, None if earlier is None else earlier.run_id])
    job = Job(
        wanted, settings.model, prompt, layout, output, run_id, model_uri, version, len(histories), rule,
        earlier, fusion, settings.fusion.item_weights, settings.reranking, _ensemble(wanted), of_new, work,
    )  # fmt: skip
    known, interests = user_files(job.prompt, layout)
    units = [
        {
            BUCKET: b, "histories": histories[b], "candidates": uri, "users": known.get(b, ""),
            "interests": interests.get(b, ""),
        }
        for b, uri in sorted(listed.items())
    ]  # fmt: skip
    return job, units


def as_run(settings: config.Config, layout: Layout, run_id: str) -> config.Config:
    """The settings, those of score as the run had them, if its plan is still there.

    Raises:
        UserError: the plan holds a value that is none any more.
    """
    plan = storage.join(layout.run(run_id), PLAN)
    if not storage.exists(plan):
        return settings
    had = storage.read_json(plan)["score"]
    # What is at its default may be left out of a plan.
    values = {f"score.{name}": had.get(name, field.default) for name, field in config.Score.model_fields.items()}
    return config.varied(settings, values, plan)


def placed(wanted: config.Score) -> config.Score:
    """Such that workers, which may be elsewhere, find what it names."""
    if not wanted.blocked_items:
        return wanted
    return wanted.model_copy(update={"blocked_items": storage.absolute(wanted.blocked_items)})


def candidates_table(wanted: config.Score, layout: Layout) -> str:
    return storage.absolute(wanted.candidates) if wanted.candidates else layout.candidates()


def _member(uri: str, prompt: config.Prompt) -> str:
    """The version of a further ranker.

    Raises:
        UserError: there is none, or it reads of users or contexts otherwise than the first.
    """
    saved = storage.local_directory(uri, assets.cache_directory() / "models")
    own = read_card(saved).prompt
    for name in ("user", "context", "context_as"):
        if getattr(own, name) != getattr(prompt, name):
            raise UserError(
                f"score.ensemble: {uri} was trained with prompt.{name} = {getattr(own, name)!r}, the other ranker with "
                f"{getattr(prompt, name)!r}; they have to read the same of users"
            )
    return model_version(saved)


def to_serve(settings: config.Config, layout: Layout) -> Job:
    """The job of ranking candidates that a request names as a run would, but for what only its candidates table can
    tell: with a fusion the ranker's score alone ranks, and lists are neither chosen by other scores nor have places for
    sources.

    Raises:
        UserError: the model or the prepared tables are missing, or do not go together.
    """
    serve, histories = settings.serve, buckets.bucket_files(layout.histories)
    model_uri, version, prompt, _ = _model(settings, layout)
    contexts.check(buckets.schema_of(next(iter(histories.values()))), placeholders(prompt.context), layout.histories)
    score = placed(settings.score).model_copy(update={
        "max_candidates": serve.max_candidates, "cpus_per_actor": serve.cpus_per_replica,
        "gpus_per_actor": serve.gpus_per_replica, "tensor_parallel": 1,
    })  # fmt: skip
    fused = settings.fusion.method != "none"
    rerank = config.Rerank() if fused else settings.reranking.model_copy(update={"reserve": {}})
    return Job(
        score, settings.model, prompt, layout, "", "", model_uri, version, len(histories), "", None, None, {}, rerank,
        _ensemble(score),
    )  # fmt: skip


def to_serve_recalled(named: Job, settings: config.Config, layout: Layout) -> Job:
    """The job of ranking what recall brought of a user, with all that a run knows of it. named: of `to_serve`.

    Raises:
        UserError: the fusion is not there, or not of this ranker.
    """
    fusion, of_new = _fusion(settings.fusion, layout, named.model_version)
    score = named.score.model_copy(update={"max_candidates": settings.score.max_candidates})
    return replace(
        named, score=score, fusion=fusion, fusion_of_new=of_new, item_weights=settings.fusion.item_weights,
        rerank=settings.reranking,
    )  # fmt: skip


def _model(settings: config.Config, layout: Layout) -> tuple[str, str, config.Prompt, bool]:
    """Where the ranker is, its version, the prompt that it reads, and whether items are vectors to it."""
    wanted, prompt, with_vectors = settings.score, settings.prompt, False
    if wanted.model == "base":
        if settings.model.items == "token":
            raise UserError("score.model = base: an untouched model reads items as text only; set model.items = text")
        model_uri = settings.model.base
        return model_uri, model_revision(model_uri), prompt, False
    model_uri = storage.absolute(wanted.model) if wanted.model else layout.ranker
    if not wanted.model and not storage.list_files(model_uri):
        raise UserError(f"{model_uri}: there is no ranker yet; run jobs/train.py first, or name one in score.model")
    saved = storage.local_directory(model_uri, assets.cache_directory() / "models")
    version = model_version(saved)
    if (Path(saved) / RANKER_FILE).exists():  # a scorer of one's own needs none
        card = read_card(saved)
        prompt, with_vectors = card.prompt, card.items == "token"
    if wanted.ensemble:
        version = _hash([version, *(_member(uri, prompt) for uri in _ensemble(wanted))])[:12]
    return model_uri, version, prompt, with_vectors


def _ensemble(wanted: config.Score) -> tuple[str, ...]:
    return tuple(storage.absolute(uri) for uri in wanted.ensemble)


def fusion_uri(wanted: config.Fusion, layout: Layout) -> str:
    return storage.absolute(wanted.model) if wanted.model else layout.fusion


def _fusion(wanted: config.Fusion, layout: Layout, version: str) -> tuple[Fusion | None, Fusion | None]:
    """Of users with a history, and of those without one, None where it is the same. version: of the ranker."""
    if wanted.method == "none":
        return None, None
    uri = fusion_uri(wanted, layout)
    if not storage.exists(uri):
        how = "no such file" if wanted.model else "not fitted; run jobs/fuse.py first, or set fusion.method = none"
        raise UserError(f"{uri}: {how}")
    fitted = Fitted.from_json(storage.read_bytes(uri), uri)
    if fitted.ranker != version and not wanted.model:
        raise UserError(
            f"{uri}: these weights were fitted with another ranker (version {fitted.ranker}) than scores now "
            f"({version}); run jobs/fuse.py, or name the file as fusion.model to use them all the same"
        )
    return fitted.full, fitted.new_users


def _reused(wanted: config.Score, layout: Layout, output: str) -> dict[str, Any] | None:
    """The summary of the run that `score.reuse` names; None if it names none, or none is shown yet.

    Raises:
        UserError: that run is not complete.
    """
    run_id = wanted.reuse
    if run_id == "shown":
        table = rankings.opened(output)
        if table is None:
            return None  # the first run of a daily job has none before it
        run_id = rankings.shown(table)["run_id"]
    if not run_id:
        return None
    where = layout.run_summary(run_id)
    if not storage.exists(where):
        raise UserError(f"score.reuse = {wanted.reuse}: no complete run '{run_id}' under {layout.root}")
    return storage.read_json(where)


def _earlier(run: dict[str, Any] | None, rule: str, count: int) -> Earlier | None:
    """That run, if its rows can stand in one of this rule."""
    if run is None or run["rule"] != rule or run["buckets"] != count:
        return None
    return Earlier(run["run_id"], run["output"])


def _copied_from(run: dict[str, Any], layout: Layout) -> Earlier | None:
    """What a run copied from itself, if that is still there."""
    where = layout.run_summary(run["reused"]) if run["reused"] else ""
    return Earlier(run["reused"], storage.read_json(where)["output"]) if where and storage.exists(where) else None


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
