"""From requests to ranked items, by the same steps as the score job: judged, scored, ranked. Knows no Ray.

Candidates that a request names are ranked by the ranker alone; what recall brought of a user, by all that a run knows.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from llmrec import config, storage
from llmrec.engine import rerank, tasks
from llmrec.engine.ensemble import EnsembleScorer
from llmrec.engine.pool import Scorer
from llmrec.engine.run import Job, candidates_table, to_serve, to_serve_recalled
from llmrec.engine.scorer import ModelScorer
from llmrec.engine.watch import Beating
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.ranker.templates import fill, placeholders
from llmrec.schema import DETAIL, ITEM, ITEMS, KEY, PROBABILITY, RANK, RANKER_SCORE, REASON, SCORE, USER
from llmrec.serving.candidates import Recalled
from llmrec.serving.request import Asked, Bounds, InvalidError
from llmrec.serving.users import Known, Users
from llmrec.tables import pseudonyms, requests

SOURCE = "the request"
PROBED = 8  # candidates of each request that tries the model out


@dataclass(frozen=True)
class Ranked:
    """rank from 1; score: by which items are ranked; ranker_score: the ranker's own; probability: of the fusion, None
    where none ranks."""

    rank: int
    item_id: int | str
    score: float
    ranker_score: float
    probability: float | None = None


@dataclass(frozen=True)
class Answer:
    """known: whether the prepared tables have a history of the user; set_aside: candidates that are none, each with its
    reason_code; filtered: those that the rules of score leave out, since they were seen, are blocked or are locked;
    unknown_history: item ids of the history that are not in the catalogue, which is read without them."""

    user_id: int | str | None
    known: bool
    model_version: str
    items: list[Ranked]
    set_aside: list[dict[str, Any]]
    filtered: list[int | str]
    unknown_history: list[int | str]


@dataclass(frozen=True)
class _Subject:
    """Whom a request is about. history: item ids; opening: what the trunk says of him, None if nothing."""

    known: bool
    history: list[Any]
    context: dict[str, str | None]
    opening: str | None


@dataclass(frozen=True)
class _Way:
    """How some requests are ranked."""

    job: Job
    rules: requests.Rules

    @staticmethod
    def of(job: Job) -> _Way:
        rules = tasks.rules(job)
        return _Way(job, replace(rules, rerank=rerank.ready(rules.rerank, job.rerank, job.layout, rules.ids)))


class Ranking:
    """A ranker and what it reads, loaded once; it has been held against the slow way, as an actor of the score job.

    Raises:
        UserError: a model or table is missing, they do not go together, or the probe fails.
    """

    def __init__(self, settings: config.Config, layout: Layout) -> None:
        self.job = job = to_serve(settings, layout)
        self.named = _Way.of(job)
        self.scorer: Scorer = (
            EnsembleScorer(job, Beating(None), EnsembleScorer.shared(job)) if job.ensemble
            else ModelScorer(job, Beating(None), ModelScorer.shared(job))
        )  # fmt: skip
        self.names = pseudonyms.read(layout, settings.privacy.key_variable)
        if self.names is not None:
            self.names.ready()
        self.users = Users(job, settings.serve.buckets_kept)
        self.contexts = placeholders(job.prompt.context)
        ids = self.named.rules.ids
        self.recalled = self._recalled(settings, layout)
        self.catalogue = dict(zip(ids.to_pylist(), range(len(ids)), strict=True))
        self.bounds = Bounds(
            settings.serve, job.score.top_k, self._user_type(), ids.type, self.contexts,
            list(dict.fromkeys(placeholders(job.prompt.user))),
        )  # fmt: skip
        self.one_at_a_time = threading.Lock()
        self._try_out()

    @property
    def model_version(self) -> str:
        return self.job.model_version

    def rank(self, asked: Sequence[Asked]) -> list[Answer | UserError]:
        """An answer each, scored together; a UserError for a request that the model cannot take, an InvalidError for
        one whose candidates are not known."""
        with self.one_at_a_time:
            try:
                return list(self._ranked(asked))
            except UserError as error:
                if len(asked) == 1:
                    return [error]
        return [answer for one in asked for answer in self.rank([one])]

    def _ranked(self, asked: Sequence[Asked]) -> list[Answer]:
        found: dict[int, Answer] = {}
        for named in (True, False):  # in one pass each
            some = [place for place, of in enumerate(asked) if (of.candidates is not None) == named]
            if some:
                found |= zip(some, self._answers([asked[place] for place in some], named), strict=True)
        return [found[place] for place in range(len(asked))]

    def _answers(self, asked: Sequence[Asked], named: bool) -> list[Answer]:
        """named: whether they name candidates, all of them or none."""
        if named:
            way, rows = self.named, self._rows([of.candidates or [] for of in asked])
        else:
            if isinstance(self.recalled, str):
                raise InvalidError(f"candidates: missing, and {self.recalled}; name some")
            way, table = self.recalled
            rows = table.of([self._in_tables(of.user_id) for of in asked])
        subjects = [self._subject(of) for of in asked]
        work = self._work(subjects, rows, way.rules)
        flat, ids = self._scores(work), way.rules.ids
        table = requests.rank(
            work, tasks.fused(work, flat, way.job, way.rules), way.job.score.top_k, ids, way.job.model_version, "",
            way.rules.rerank, way.job.rerank.reserve,
        )  # fmt: skip
        aside: list[list[dict[str, Any]]] = [[] for _ in asked]
        for row in work.quarantine.to_pylist():
            name = row[DETAIL].removeprefix("item=")
            item = None if row[REASON] == "null_id" else int(name) if pa.types.is_integer(ids.type) else name
            aside[int(row[KEY])].append({ITEM: item, REASON: row[REASON]})
        items: list[list[Ranked]] = [[] for _ in asked]
        for row in table.select([USER, RANK, ITEM, SCORE, RANKER_SCORE, PROBABILITY]).to_pylist():
            items[row.pop(USER)].append(Ranked(**row))
        scored: list[set[Any]] = [set() for _ in asked]
        for place, of in enumerate(work.users.to_pylist()):
            scored[of] = set(ids.take(pa.array(work.candidates[place])).to_pylist())
        listed: list[list[Any]] = [[] for _ in asked]
        for row in rows.select([USER, ITEMS]).to_pylist():
            listed[row[USER]] += row[ITEMS]
        return [
            Answer(
                of.user_id, subjects[i].known, self.job.model_version, items[i][: of.top_k], aside[i],
                [c for c in dict.fromkeys(listed[i]) if c in self.catalogue and c not in scored[i]],
                [h for h in dict.fromkeys(subjects[i].history) if h not in self.catalogue],
            )
            for i, of in enumerate(asked)
        ]  # fmt: skip

    def _user_type(self) -> pa.DataType:
        """Of the ids that requests name users by: those of the log, which the tables may have under pseudonyms."""
        if self.names is None:
            return self.users.kind
        return pa.int64() if self.names.ids == "int64" else pa.string()

    def _in_tables(self, user: int | str | None) -> int | str | None:
        """What the tables call a user."""
        if user is None or self.names is None or pseudonyms.is_one(str(user)):
            return user
        found: str = self.names.of(pa.array([user], self._user_type()))[0].as_py()
        return found

    def _recalled(self, settings: config.Config, layout: Layout) -> tuple[_Way, Recalled] | str:
        """How what recall brought is ranked, and that itself; or what for that is not there."""
        if not storage.list_files(candidates_table(self.job.score, layout)):
            return "there is no candidates table"
        if settings.fusion.method != "none" and not storage.exists(settings.fusion.model or layout.fusion):
            return "the fusion by which they would be ranked is not fitted"
        table = Recalled(self.job, self.users.kind, settings.serve.buckets_kept)
        return _Way.of(to_serve_recalled(self.job, settings, layout)), table

    def _subject(self, asked: Asked) -> _Subject:
        user = self._in_tables(asked.user_id)
        found = None if user is None else self.users.find(user)
        known = found or Known([], {}, None)
        opening = known.opening
        if asked.attributes:
            (opening,) = fill(self.job.prompt.user, pa.Table.from_pylist([asked.attributes]), "user")
        return _Subject(
            found is not None,
            known.history if asked.history is None else asked.history,
            known.context if asked.context is None else asked.context,
            opening,
        )

    def _rows(self, candidates: Sequence[list[Any]]) -> pa.Table:
        """Candidates of each request in list form, their users the places of the requests."""
        lists = pa.array(list(candidates), pa.list_(self.named.rules.ids.type))
        places = pa.array(range(len(candidates)), pa.int64())
        return requests.candidates_in_list_form(pa.table({USER: places, ITEMS: lists}), SOURCE)

    def _work(self, subjects: Sequence[_Subject], candidates: pa.Table, rules: requests.Rules) -> requests.Work:
        """What is to be scored; its users are the places of the requests, as those of the candidates are."""
        places = pa.array(range(len(subjects)), pa.int64())
        histories = pa.array([of.history for of in subjects], pa.list_(rules.ids.type))
        work = requests.build(pa.table({USER: places, ITEMS: histories}), candidates, rules, SOURCE)
        if self.contexts:
            told = {name: pa.array([of.context.get(name) for of in subjects], pa.string()) for name in self.contexts}
            work = replace(work, contexts=pa.table(told).take(work.users))
        openings = pa.array([of.opening for of in subjects], pa.string())
        return replace(work, openings=openings.take(work.users)) if openings.null_count < len(openings) else work

    def _scores(self, work: requests.Work) -> np.ndarray:
        """float32[total]."""
        return np.concatenate([np.empty(0, np.float32), *self.scorer.score(work, range(len(work.users)))])

    def _try_out(self) -> None:
        """Let the scorer get ready, which it does with the first that it scores."""
        subjects = [self._subject(Asked(user_id=user, candidates=[0])) for user in self.users.some(2)]
        subjects = subjects or [_Subject(False, [], {}, None)]
        ids = self.named.rules.ids
        few = ids.slice(max(0, len(ids) - PROBED)).to_pylist()
        open_ = requests.Rules(ids, np.zeros(len(ids), bool), False, PROBED)
        self._scores(self._work(subjects, self._rows([few] * len(subjects)), open_))
