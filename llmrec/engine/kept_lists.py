"""Candidates and scores that the published run kept, to choose other lists out of without scoring anything anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from llmrec import config, storage
from llmrec.engine.ranking_lists import lists_of
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.ranker.ragged import Ragged, offsets_of
from llmrec.schema import BUCKET, ITEMS, SCORES, USER
from llmrec.tables import buckets, rankings, requests
from llmrec.tables.histories import as_lists, flatten, item_rows

PARTS, TRUTH, SHARE = "parts", "truth", "share"


def kept_run(settings: config.Config, layout: Layout) -> tuple[str, list[dict[str, Any]]]:
    """The run that the rankings show, and its buckets: the files of its score parts and of the held-out events, the
    latter empty where nothing is held out of a bucket, and the share of users that is looked at (`evaluate.users`).

    Raises:
        UserError: nothing is published, or the run kept no parts.
    """
    k, window = settings.score.top_k, settings.rerank.window
    if window < k:
        raise UserError(f"rerank.window = {window} is less than score.top_k = {k}: lists are chosen out of the window")
    shown = rankings.shown(rankings.published(storage.absolute(settings.score.output or layout.rankings)))
    run_id, prepared = shown["run_id"], len(buckets.bucket_files(layout.histories))
    if int(shown["buckets"]) != prepared:
        raise UserError(
            f"run {run_id} has {shown['buckets']} buckets, {layout.histories} has {prepared}; score and publish again"
        )
    if not storage.exists(layout.score_parts(run_id)):
        raise UserError(f"run {run_id} kept no score parts to choose from; score with score.keep_parts = true")
    truth, files = buckets.bucket_files(layout.targets), buckets.bucket_files(layout.score_parts(run_id))
    share, _ = buckets.share_for(truth.values(), settings.evaluate.users)
    return run_id, [
        {BUCKET: bucket, PARTS: uri, TRUTH: truth.get(bucket, ""), SHARE: share} for bucket, uri in files.items()
    ]


class KeptLists:
    """A bucket's users of the share that is looked at, their candidates as rows of a catalogue with the scores that
    ranked them, and the held-out items of those who have any."""

    def __init__(self, unit: Mapping[str, Any], ids: pa.Array) -> None:
        table = buckets.read_parquet(unit[PARTS], [USER, ITEMS, SCORES])
        table = table.filter(pa.array(buckets.share_of(table[USER], unit[SHARE])))
        self.ids, self.users = ids, [str(user) for user in table[USER].to_pylist()]
        self.candidates = item_rows(table[ITEMS], ids)
        self.scores: np.ndarray = flatten(table[SCORES])[0].to_numpy(zero_copy_only=False)
        there = set(self.users)
        held_out = lists_of(buckets.read_parquet(unit[TRUTH], [USER, ITEMS])) if unit[TRUTH] else {}
        self.truth = {user: items for user, items in held_out.items() if user in there}

    def chosen(self, how: Any, top_k: int) -> Ragged:
        """The lists that a `Rerank` chooses, as rows of the catalogue."""
        best, lengths = requests.listed(self.scores, self.candidates, top_k, how)
        return Ragged(self.candidates.values[best], offsets_of(lengths))

    def named(self, lists: Ragged) -> dict[str, list[str]]:
        """Lists by their user, as item ids."""
        items = as_lists(self.ids.take(pa.array(lists.values)).cast(pa.string()), lists.offsets).to_pylist()
        return dict(zip(self.users, items, strict=True))


def nothing_held_out(layout: Layout) -> UserError:
    return UserError(f"{layout.targets}: no held-out events; set data.split to leave_one_out or time and prepare again")
