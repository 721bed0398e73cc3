"""What an actor of explain does: one bucket of a published run, from its rows to their reasons."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from llmrec import assets, config, schema, storage
from llmrec.engine import tasks
from llmrec.engine.prompts import Prompts, tokenise_items
from llmrec.engine.run import Job
from llmrec.engine.scorer import Replica, model_directory
from llmrec.engine.watch import Beating
from llmrec.errors import UserError
from llmrec.evaluation import faithfulness
from llmrec.evaluation.faithfulness import Falls
from llmrec.ranker import precision
from llmrec.ranker.contexts import Contexts
from llmrec.ranker.graph import items_of_tails
from llmrec.ranker.influence import Variants, score_variants
from llmrec.ranker.item_features import texts
from llmrec.ranker.model import load_tokenizer
from llmrec.ranker.prompts import scoring_trunk
from llmrec.ranker.templates import fill
from llmrec.reasons import check, evidence, templates
from llmrec.reasons.evidence import Evidence
from llmrec.reasons.rewording import Rewriter
from llmrec.reasons.templates import Template
from llmrec.reasons.traits import Links, Trait, Traits
from llmrec.schema import BUCKET, HEAD, ITEM, RANK, RANKER_SCORE, RELATION, RUN_ID, TAIL, TITLE, USER
from llmrec.tables import buckets, rankings, reasons
from llmrec.tables.catalogue import rows_of
from llmrec.tables.histories import flatten
from llmrec.tables.reasons import Reason
from llmrec.tables.requests import Rules, Work, candidates_in_list_form

WINDOW = 64  # users in one call of the model
# A score that is not the published one, relative to its size, and the share of users of whom it may be so: bfloat16
# moves scores by some hundredths, another history or model by far more.
TOLERANCE, MOST_DIFFERENT = 0.1, 0.1
EXAMPLES = 2


@dataclass(frozen=True)
class Explaining:
    """What explain is to do. job: the scoring run, its model loaded as explain.* says; settings: as `Config.explaining`
    gives them; id: of the run with all that the reasons depend on; output: the reasons table."""

    job: Job
    settings: config.Explain
    template: Template
    id: str
    output: str


@dataclass(frozen=True)
class Entry:
    """What became of one bucket; it is whole once it has an entry.

    path: of its file, relative to the reasons table; counts: reasons by what they have; pairs: scores that the ranker
    computed; difference: the largest between a score here and the published one; falls: of users whose faithfulness was
    measured, `faithfulness.Falls` as a mapping.
    """

    bucket: int
    path: str
    size: int
    rows: int
    users: int
    counts: dict[str, int]
    pairs: int
    difference: float
    falls: dict[str, Any]
    seconds: float
    examples: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Known:
    """The catalogue. titles: string[n], by row; vocabulary: only where sentences are checked."""

    rules: Rules
    titles: pa.Array
    attributes: Traits
    facts: Traits
    links: Links
    vocabulary: check.Vocabulary | None


@dataclass(frozen=True)
class Told:
    """What a table says of items, one row a value. row: int64[m], of the catalogue; names, values: m each; shown: texts
    that stand for some of the values."""

    row: np.ndarray
    names: list[str]
    values: list[str]
    shown: dict[Trait, str] = field(default_factory=dict)

    def traits(self, items: int) -> Traits:
        found = Traits.build(self.row, self.names, self.values, items)
        return replace(found, known=[Trait(of.name, self.shown.get(of, of.value)) for of in found.known])


def know(wanted: Explaining) -> tuple[Prompts, Known]:
    """What all actors read: the catalogue tokenised, and what items have in common.

    Raises:
        UserError: a column or the graph is missing.
    """
    job, settings = wanted.job, wanted.settings
    prompts = tokenise_items(load_tokenizer(model_directory(job)), job.prompt, job.layout)
    ids = prompts.catalogue.ids
    uri = job.layout.items
    schema.require(buckets.schema_of(uri), dict.fromkeys((TITLE, *settings.attributes), "anything"), uri)
    items = buckets.read_parquet(uri, list(dict.fromkeys([ITEM, TITLE, *settings.attributes])))
    items = items.take(pa.compute.index_in(ids, items[ITEM].combine_chunks()))
    titles = items[TITLE].combine_chunks().cast(pa.string()).fill_null("")
    attributes, (facts, links) = _attributes(items, settings), _edges(wanted, ids, titles)
    vocabulary = None
    if settings.model:
        # All values, not the shared ones alone: what a single item has is as wrong in a sentence about others.
        values = {*attributes.values, *facts.values}
        vocabulary = check.Vocabulary.of(titles.to_pylist(), values, wanted.template.words)
    nothing = Rules(ids, np.zeros(len(ids), bool), exclude_seen=False, limit=np.iinfo(np.int32).max)
    return prompts, Known(nothing, titles, attributes.traits(len(ids)), facts.traits(len(ids)), links, vocabulary)


def _attributes(items: pa.Table, settings: config.Explain) -> Told:
    assert settings.separator is not None
    rows, names, values = [np.empty(0, np.int64)], list[str](), list[str]()
    for name in settings.attributes:
        flat, offsets = flatten(texts(items[name], name, settings.separator, "explain.attributes"))
        there = pa.compute.fill_null(pa.compute.not_equal(flat, ""), False)
        row = np.repeat(np.arange(items.num_rows), np.diff(offsets))
        rows.append(row[there.to_numpy(zero_copy_only=False)])
        values += flat.filter(there).to_pylist()
        names += [name] * (len(values) - len(names))
    return Told(np.concatenate(rows), names, values)


def _edges(wanted: Explaining, ids: pa.Array, titles: pa.Array) -> tuple[Told, Links]:
    """What edges say of items, and those from item to item. An item that is a tail is told by its title, if it has
    one."""
    uri, relations = wanted.job.layout.edges, wanted.settings.relations
    if not storage.exists(uri):
        if relations:
            raise UserError(
                f"explain.relations names '{relations[0]}', and {uri} is not there; set data.edges and run "
                "jobs/prepare.py"
            )
        none = np.empty(0, np.int64)
        return Told(none, [], []), Links.build(none, [], none, len(ids))
    edges = buckets.read_parquet(uri, [HEAD, RELATION, TAIL])
    if relations:
        there = pa.compute.unique(edges[RELATION]).to_pylist()
        for name in relations:
            if name not in there:
                raise UserError(
                    f"explain.relations names '{name}', but no edge has that relation (there are: "
                    f"{', '.join(sorted(there)[:20])})"
                )
        edges = edges.filter(pa.compute.is_in(edges[RELATION], pa.array(relations)))
    rows = rows_of(edges[HEAD].combine_chunks(), ids).astype(np.int64)
    known = rows >= 0
    edges, rows = edges.filter(pa.array(known)), rows[known]
    tails = items_of_tails(edges, ids)
    named = pa.compute.not_equal(titles.take(pa.array(tails, mask=tails < 0)), "").fill_null(True)
    edges = edges.filter(named)
    rows, tails = (of[named.to_numpy(zero_copy_only=False)] for of in (rows, tails))
    names, values = edges[RELATION].to_pylist(), edges[TAIL].to_pylist()
    of_items = np.flatnonzero(tails >= 0)
    shown = {Trait(names[i], values[i]): titles[tails[i]].as_py() for i in of_items.tolist()}
    links = Links.build(rows[of_items], [names[i] for i in of_items.tolist()], tails[of_items], len(ids))
    return Told(rows, names, values, shown), links


class Explainer:
    """The ranker, and the generative model if there is one."""

    def __init__(self, wanted: Explaining, beating: Beating, prompts: Prompts, known: Known) -> None:
        self.wanted, self.beating, self.known = wanted, beating, known
        self.replica = Replica(wanted.job, prompts)
        self.ready = False
        self.rewriter: Rewriter | None = None
        if wanted.settings.model:
            device = next(self.replica.ranker.parameters()).device
            directory = assets.resolve_model(wanted.settings.model)
            chosen = precision.choose("auto", device)
            self.rewriter = Rewriter(directory, wanted.template.instruction, chosen, device)

    def explain(self, unit: dict[str, Any]) -> Entry:
        """Write the reasons of one bucket.

        unit: the bucket, `rows`, the published file, its `histories` and `users`, and `sample`, of how many users
        faithfulness is measured.

        Raises:
            UserError: the tables are not those that the run was scored on.
        """
        started, wanted = time.monotonic(), self.wanted
        rows = buckets.read_parquet(unit["rows"], [USER, RANK, ITEM, RANKER_SCORE, RUN_ID])
        if wanted.settings.top_k is not None:
            rows = rows.filter(pa.compute.less_equal(rows[RANK], wanted.settings.top_k))
        rows = rows.sort_by([(USER, "ascending"), (RANK, "ascending")]).combine_chunks()
        work = self._work(unit, rows)
        found, difference, pairs = self._evidence(work, rows[RANKER_SCORE].to_numpy())
        told = self._reasons(found)
        falls = self._faithfulness(work, found, unit["sample"])
        table = reasons.table(rows, found, told, wanted.template, self.known.rules.ids)
        path = rankings.staged_path(wanted.id, unit[BUCKET])
        size = buckets.write_parquet(table, storage.join(wanted.output, path))
        counts = Counter({
            "with_history": sum(bool(of.cited) for of in found),
            "with_attributes": sum(any(c.attributes for c in of.cited) for of in found),
            "with_facts": sum(any(c.facts for c in of.cited) for of in found),
            "with_links": sum(any(c.links for c in of.cited) for of in found),
            "with_context": sum(bool(of.context) for of in found),
            "by_model": sum(r.source == reasons.MODEL for r in told),
        })  # fmt: skip
        counts.update(r.violation for r in told if r.violation)
        shown = [
            {"user": of[USER], "rank": of[RANK], "source": reason.source, "reason": reason.text}
            for of, reason in zip(rows.slice(0, EXAMPLES).to_pylist(), told, strict=False)
        ]
        return Entry(
            unit[BUCKET], path, size, table.num_rows, len(work.users), dict(counts), pairs, difference,
            asdict(falls), round(time.monotonic() - started, 3), shown,
        )  # fmt: skip

    def _work(self, unit: dict[str, Any], rows: pa.Table) -> Work:
        """The rows as candidates, joined to their users' histories."""
        asked = candidates_in_list_form(rows.select([USER, ITEM]), unit["rows"])
        work = tasks.joined({**unit, "candidates": unit["rows"]}, asked, self.wanted.job, self.known.rules)
        if work.quarantine.num_rows:
            (first,) = work.quarantine.slice(0, 1).to_pylist()
            raise UserError(
                f"{unit['rows']}: {first[schema.DETAIL]} of user {first[schema.KEY]} is not in the catalogue any more; "
                "score and publish again before explaining"
            )
        return work

    def _trunk(self, opening: np.ndarray, history: np.ndarray, context: Contexts | None) -> np.ndarray:
        return scoring_trunk(opening, self.replica.prompts.catalogue, history, context)

    def _windows(self, users: Sequence[int]) -> Iterator[Sequence[int]]:
        for start in range(0, len(users), WINDOW):
            yield users[start : start + WINDOW]

    def _evidence(self, work: Work, published: np.ndarray) -> tuple[list[Evidence], float, int]:
        """Of every row, in order; the largest difference from the published scores; how many scores that took."""
        settings, prompts = self.wanted.settings, self.replica.prompts
        named = [_named(work, user) for user in range(len(work.users))]
        found, worst, different, pairs = list[Evidence](), 0.0, 0, 0
        for window in self._windows(range(len(work.users))):
            openings, contexts = self.replica.openings(work, window), self.replica.contexts(work, window)
            without, unknown = self._contexts_without(work, window)
            if not self.ready:
                self._make_ready(work, window, openings, contexts)
            asked, left_out, moving = list[Variants](), list[list[int]](), list[list[Trait]]()
            for i, (user, opening, context) in enumerate(zip(window, openings, contexts, strict=True)):
                newest = prompts.newest(work.histories[user])
                out = list(dict.fromkeys(newest[::-1].tolist()))[: settings.history]
                trunks = [self._trunk(opening, newest, context)]
                trunks += [self._trunk(opening, newest[newest != item], context) for item in out]
                # A value that the ranker does not know leaves the trunk as it is: nothing to score, nothing to tell.
                changed = [(of, self._trunk(opening, newest, without[of.name][i])) for of in named[user]]
                changed = [(of, trunk) for of, trunk in changed if not np.array_equal(trunk, trunks[0])]
                trunks += [trunk for _, trunk in changed]
                if len(changed) > 1:
                    trunks.append(self._trunk(opening, newest, unknown[i]))
                candidates = prompts.catalogue.candidate.take(work.candidates[user].astype(np.int64))
                asked.append(Variants(trunks, [candidates] * len(trunks)))
                left_out.append(out)
                moving.append([of for of, _ in changed])
            scored = score_variants(self.replica.ranker, asked, settings.batch_tokens, self.beating)
            for user, out, moved, scores in zip(window, left_out, moving, scored, strict=True):
                whole, rest = scores[0], np.stack(scores)
                start, end = work.candidates.offsets[user : user + 2]
                off = np.abs(whole - published[start:end]).max() / max(1.0, float(np.abs(published[start:end]).max()))
                worst, different = max(worst, float(off)), different + bool(not off <= TOLERANCE)
                pairs += rest.size
                influence, of_contexts = np.split(whole - rest[1:], [len(out)])
                found += [
                    evidence.gather(
                        int(row), float(whole[i]), out, influence[:, i], settings.cited, self.known.attributes,
                        self.known.facts, self.known.links, settings.shared,
                        list(zip(moved, of_contexts[:, i].tolist(), strict=False)),
                        float(of_contexts[-1, i]) if moved else None,
                    )
                    for i, row in enumerate(work.candidates[user].tolist())
                ]  # fmt: skip
        if different > MOST_DIFFERENT * len(work.users):
            raise UserError(
                f"{different:,} of {len(work.users):,} users of a bucket have other scores than run "
                f"{self.wanted.job.run_id} published (by up to {worst:.2g} of their size): histories, items or users "
                "changed since; score and publish again before explaining"
            )
        return found, worst, pairs

    def _contexts_without(
        self, work: Work, users: Sequence[int]
    ) -> tuple[dict[str, list[Contexts | None]], list[Contexts | None]]:
        """What these users are asked about in as the model reads it where one context is not known, by its name, and
        where none is; None where that leaves no text."""
        if work.contexts is None:
            return {}, [None] * len(users)
        asked, names = work.contexts, work.contexts.column_names

        def read(unknown: Sequence[str]) -> list[Contexts | None]:
            left = _without(asked, unknown)
            told = fill(self.wanted.job.prompt.context, left.take(pa.array(users, pa.int64())), "context")
            there = [user for user, text in zip(users, told, strict=True) if text.strip()]
            found = self.replica.contexts(replace(work, contexts=left), there) if there else []
            of_user = dict(zip(there, found, strict=True))
            return [of_user.get(user) for user in users]

        return {name: read([name]) for name in names}, read(names)

    def _make_ready(
        self, work: Work, window: Sequence[int], openings: list[np.ndarray], contexts: list[Contexts | None]
    ) -> None:
        """The probe of packed against pair-by-pair scores, as before scoring."""
        few = [
            self.replica.prompts.request(opening, work.histories[user], work.candidates[user], context)
            for user, opening, context in zip(window, openings, contexts, strict=True)
        ]
        with self.beating.meanwhile():
            self.replica.make_ready(few[: self.wanted.job.score.probe_users])
        self.ready = True

    def _reasons(self, found: Sequence[Evidence]) -> list[Reason]:
        template, settings = self.wanted.template, self.wanted.settings
        titles = _Titles(self.known.titles)
        plain = [templates.reason(template, of, titles) for of in found]
        if self.rewriter is None:
            return [Reason(text, reasons.BY_TEMPLATE) for text in plain]
        assert self.known.vocabulary is not None
        written = self.rewriter.reword(plain, settings.generate_batch, settings.max_tokens, self.beating)
        told = []
        for of, reason, sentence in zip(found, plain, written, strict=True):
            wrong = check.violation(sentence, _allowed(of, reason, template, titles), self.known.vocabulary)
            if wrong is None:
                told.append(Reason(sentence, reasons.MODEL))
            else:
                told.append(Reason(reason, reasons.BY_TEMPLATE, wrong))
        return told

    def _faithfulness(self, work: Work, found: Sequence[Evidence], sample: int) -> Falls:
        """How far scores fall without the cited items, and without others. sample: of so many users."""
        prompts, wanted = self.replica.prompts, self.wanted.settings
        hashes = buckets.user_hash(work.users)
        columns, measured = tuple(list[float]() for _ in range(4)), 0
        for window in self._windows(np.argsort(hashes, kind="stable")[:sample].tolist()):
            openings, contexts = self.replica.openings(work, window), self.replica.contexts(work, window)
            asked = []
            for user, opening, context in zip(window, openings, contexts, strict=True):
                newest, start = prompts.newest(work.histories[user]), int(work.candidates.offsets[user])
                trunks, rows, removed = [self._trunk(opening, newest, context)], list[list[int]](), list[int]()
                for i, row in enumerate(work.candidates[user].tolist()):
                    gone = [c.row for c in found[start + i].cited]
                    others = faithfulness.others(newest.tolist(), gone, (wanted.seed, int(hashes[user]), i))
                    if others is not None:
                        rows += [[row]] * 2
                        without = [np.isin(newest, of) for of in (gone, others)]
                        trunks += [self._trunk(opening, newest[~of], context) for of in without]
                        removed += [int(of.sum()) for of in without]
                whole = sorted({row for (row,) in rows})
                candidates = [prompts.catalogue.candidate.take(np.asarray(of, np.int64)) for of in (whole, *rows)]
                asked.append((Variants(trunks, candidates), whole, rows, removed))
            scored = score_variants(self.replica.ranker, [a for a, *_ in asked], wanted.batch_tokens, self.beating)
            for (_, whole, rows, removed), scores in zip(asked, scored, strict=True):
                if not rows:
                    continue
                before = dict(zip(whole, scores[0].tolist(), strict=True))
                fallen = [before[row] - float(s[0]) for (row,), s in zip(rows, scores[1:], strict=True)]
                means = [float(of[start::2].mean()) for of in map(np.asarray, (fallen, removed)) for start in (0, 1)]
                for column, mean in zip(columns, means, strict=True):
                    column.append(mean)
                measured += len(rows) // 2
        return Falls(measured, *columns)


class _Titles(Sequence[str]):
    """Titles by row, out of the array that all actors of a node map."""

    def __init__(self, titles: pa.Array) -> None:
        self.titles = titles

    def __len__(self) -> int:
        return len(self.titles)

    def __getitem__(self, row: Any) -> Any:
        return self.titles[row].as_py()


def _named(work: Work, user: int) -> tuple[Trait, ...]:
    """What is known of the context that a user is asked about in, as far as the ranker reads it."""
    if work.contexts is None:
        return ()
    told = ((name, work.contexts[name][user].as_py()) for name in work.contexts.column_names)
    return tuple(Trait(name, value) for name, value in told if value is not None)


def _without(contexts: pa.Table, names: Sequence[str]) -> pa.Table:
    """Contexts of which nobody's of these names are known."""
    nothing = pa.nulls(contexts.num_rows, pa.string())
    return pa.table({name: nothing if name in names else contexts[name] for name in contexts.column_names})


def _allowed(of: Evidence, reason: str, template: Template, titles: Sequence[str]) -> check.Allowed:

    def quoted(text: str) -> str:
        return templates.quoted(template, text)

    cited = {quoted(titles[c.row]): tuple(quoted(t.value) for t in (*c.attributes, *c.facts)) for c in of.cited}
    context = tuple(quoted(trait.value) for trait in of.context)
    return check.Allowed(quoted(titles[of.row]), cited, context, reason, template.language)


def with_model(job: Job, settings: config.Explain) -> Job:
    """The scoring run's job with the model as explain is to load it.

    Raises:
        UserError: the run has several rankers. What they say is brought to one scale by all of a user's candidates, of
            whom explain knows those that are shown.
    """
    if job.ensemble:
        raise UserError(
            "score.ensemble: explain tells what moves one ranker's score, and this run's is the mean of "
            f"{len(job.ensemble) + 1}; score and publish without score.ensemble to explain it"
        )
    return replace(job, score=job.score.model_copy(update={
        "precision": settings.precision, "batch_tokens": settings.batch_tokens, "compile": False, "tensor_parallel": 1,
        "cpus_per_actor": settings.cpus_per_actor, "gpus_per_actor": settings.gpus_per_actor,
    }))  # fmt: skip
