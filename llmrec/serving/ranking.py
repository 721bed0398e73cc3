"""From requests to ranked items, by the same steps as the score job: judged, scored, ranked. Knows no Ray."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from llmrec import config
from llmrec.engine import rerank, tasks
from llmrec.engine.ensemble import EnsembleScorer
from llmrec.engine.pool import Scorer
from llmrec.engine.run import to_serve
from llmrec.engine.scorer import ModelScorer
from llmrec.engine.watch import Beating
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.ranker.templates import fill, placeholders
from llmrec.schema import DETAIL, ITEM, ITEMS, KEY, RANK, RANKER_SCORE, REASON, SCORE, USER
from llmrec.serving.request import Asked, Bounds
from llmrec.serving.users import Known, Users
from llmrec.tables import pseudonyms, requests

SOURCE = "the request"
PROBED = 8  # candidates of each request that tries the model out


@dataclass(frozen=True)
class Ranked:
    """rank from 1; score: by which items are ranked; ranker_score: the ranker's own, which differs from it by
    rerank.freshness alone."""

    rank: int
    item_id: int | str
    score: float
    ranker_score: float


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


class Ranking:
    """A ranker and what it reads, loaded once; it has been held against the slow way, as an actor of the score job.

    Raises:
        UserError: a model or table is missing, they do not go together, or the probe fails.
    """

    def __init__(self, settings: config.Config, layout: Layout) -> None:
        self.job = job = to_serve(settings, layout)
        rules = tasks.rules(job)
        self.rules = replace(rules, rerank=rerank.ready(rules.rerank, job.rerank, layout, rules.ids))
        self.scorer: Scorer = (
            EnsembleScorer(job, Beating(None), EnsembleScorer.shared(job)) if job.ensemble
            else ModelScorer(job, Beating(None), ModelScorer.shared(job))
        )  # fmt: skip
        self.names = pseudonyms.read(layout, settings.privacy.key_variable)
        if self.names is not None:
            self.names.ready()
        self.users = Users(job, settings.serve.buckets_kept)
        self.contexts = placeholders(job.prompt.context)
        self.catalogue = dict(zip(rules.ids.to_pylist(), range(len(rules.ids)), strict=True))
        self.bounds = Bounds(
            settings.serve, job.score.top_k, self._user_type(), rules.ids.type, self.contexts,
            list(dict.fromkeys(placeholders(job.prompt.user))),
        )  # fmt: skip
        self.one_at_a_time = threading.Lock()
        self._try_out()

    @property
    def model_version(self) -> str:
        return self.job.model_version

    def rank(self, asked: Sequence[Asked]) -> list[Answer | UserError]:
        """An answer each, scored together; a UserError for a request that the model cannot take."""
        with self.one_at_a_time:
            try:
                return list(self._ranked(asked))
            except UserError as error:
                if len(asked) == 1:
                    return [error]
        return [answer for one in asked for answer in self.rank([one])]

    def _ranked(self, asked: Sequence[Asked]) -> list[Answer]:
        subjects = [self._subject(of) for of in asked]
        work = self._work(subjects, [of.candidates for of in asked], self.rules)
        flat = self._scores(work)
        table = requests.rank(
            work, tasks.fused(work, flat, self.job, self.rules), self.job.score.top_k, self.rules.ids,
            self.job.model_version, "", self.rules.rerank,
        )  # fmt: skip
        aside: list[list[dict[str, Any]]] = [[] for _ in asked]
        for row in work.quarantine.to_pylist():
            name = row[DETAIL].removeprefix("item=")
            item = int(name) if pa.types.is_integer(self.rules.ids.type) else name
            aside[int(row[KEY])].append({ITEM: item, REASON: row[REASON]})
        items: list[list[Ranked]] = [[] for _ in asked]
        for row in table.select([USER, RANK, ITEM, SCORE, RANKER_SCORE]).to_pylist():
            items[row[USER]].append(Ranked(row[RANK], row[ITEM], row[SCORE], row[RANKER_SCORE]))
        scored: list[set[Any]] = [set() for _ in asked]
        for place, of in enumerate(work.users.to_pylist()):
            scored[of] = set(self.rules.ids.take(pa.array(work.candidates[place])).to_pylist())
        return [
            Answer(
                of.user_id, subjects[i].known, self.job.model_version, items[i][: of.top_k], aside[i],
                [c for c in dict.fromkeys(of.candidates) if c in self.catalogue and c not in scored[i]],
                [h for h in dict.fromkeys(subjects[i].history) if h not in self.catalogue],
            )
            for i, of in enumerate(asked)
        ]  # fmt: skip

    def _user_type(self) -> pa.DataType:
        """Of the ids that requests name users by: those of the log, which the tables may have under pseudonyms."""
        if self.names is None:
            return self.users.kind
        return pa.int64() if self.names.ids == "int64" else pa.string()

    def _known(self, user: int | str | None) -> Known | None:
        if user is None:
            return None
        if self.names is not None and not pseudonyms.is_one(str(user)):
            user = self.names.of(pa.array([user], self._user_type()))[0].as_py()
        return self.users.find(user)

    def _subject(self, asked: Asked) -> _Subject:
        found = self._known(asked.user_id)
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

    def _work(
        self, subjects: Sequence[_Subject], candidates: Sequence[list[Any]], rules: requests.Rules
    ) -> requests.Work:
        """What is to be scored; its users are the places of the requests."""
        places = pa.array(range(len(subjects)), pa.int64())
        lists = pa.list_(rules.ids.type)
        histories = pa.table({USER: places, ITEMS: pa.array([of.history for of in subjects], lists)})
        wanted = pa.table({USER: places, ITEMS: pa.array(list(candidates), lists)})
        work = requests.build(histories, requests.candidates_in_list_form(wanted, SOURCE), rules, SOURCE)
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
        few = self.rules.ids.slice(max(0, len(self.rules.ids) - PROBED)).to_pylist()
        open_ = requests.Rules(self.rules.ids, np.zeros(len(self.rules.ids), bool), False, PROBED)
        self._scores(self._work(subjects, [few] * len(subjects), open_))
