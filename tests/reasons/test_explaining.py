"""A bucket's reasons and their faithfulness, where a script whose truth is known scores in the ranker's place."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from llmrec import config
from llmrec.engine import explain_bucket
from llmrec.engine.explain_bucket import Explainer, Explaining
from llmrec.engine.prompts import Prompts
from llmrec.engine.run import Job
from llmrec.engine.watch import Beating
from llmrec.evaluation import faithfulness
from llmrec.evaluation.faithfulness import Faithfulness
from llmrec.layout import Layout
from llmrec.ranker.contexts import CODE_BITS, ContextEncoder, Contexts, read
from llmrec.ranker.graph import items_of_tails
from llmrec.ranker.influence import Variants
from llmrec.ranker.model import load_tokenizer
from llmrec.ranker.ragged import Ragged
from llmrec.reasons import check, templates
from llmrec.reasons.traits import Trait
from llmrec.tables import buckets, reasons
from llmrec.tables.requests import Work

ITEMS = [f"i{row:02}" for row in range(12)]
KINDS = ["crime", "crime", "heist", *["comedy"] * 9]  # one of them of a single item


@pytest.fixture
def tables(tmp_path: Path) -> Layout:
    layout = Layout(str(tmp_path))
    titles = [f"Title {chr(65 + row)}" for row in range(len(ITEMS))]
    texts = [f"w{row}" for row in range(len(ITEMS))]
    items = pa.table({"item_id": ITEMS, "title": titles, "text": texts, "kind": KINDS})
    buckets.write_parquet(items, layout.items)
    return layout


def explaining(
    layout: Layout, base: Path, sections: Mapping[str, Any] | None = None, context: str = "", **settings: Any
) -> Explaining:
    sections = sections or {}
    prompt = config.Prompt(
        item="{text}", before_history="w0", before_item="", after_item="", context=context, max_history=30
    )
    job = Job(
        config.Score(), config.Model(base=str(base)), prompt, layout, "", "r", str(base), "v", 1, "", None
    )  # fmt: skip
    wanted = config.build({"root": layout.root, "explain": settings} | sections).explaining
    return Explaining(job, wanted, templates.load(wanted.template), "r-x", layout.reasons)


def test_a_value_that_one_item_has_is_known_to_the_check(tables: Layout, tiny_model: Path) -> None:
    _, known = explain_bucket.know(explaining(tables, tiny_model, attributes=("kind",), model="any"))
    assert known.vocabulary is not None
    allowed = check.Allowed("Title A", {"Title B": ("crime",)}, (), "“Title A” because of “Title B” (crime).", "en")
    for kind, why in (("crime", None), ("comedy", "other_trait"), ("heist", "other_trait")):
        assert check.violation(f"Since “Title B” is a {kind}, try “Title A”.", allowed, known.vocabulary) == why


def test_columns_are_parted_as_the_catalogue_says(tables: Layout, tiny_model: Path) -> None:
    items = buckets.read_parquet(tables.items)
    genres = pa.array(["Crime, Drama", "Drama, War", *[None] * (len(ITEMS) - 2)])
    buckets.write_parquet(items.append_column("genres", genres), tables.items)
    for separator, shared in ((", ", (Trait("genres", "Drama"),)), ("|", ())):
        wanted = explaining(tables, tiny_model, {"items": {"separator": separator}}, attributes=("genres",))
        assert explain_bucket.know(wanted)[1].attributes.shared(0, 1, 9) == shared


class Scripted:
    """In a replica's place: it reads contexts by an encoder or, without values, as texts, and does not score."""

    def __init__(self, job: Job, prompts: Prompts, values: Mapping[str, Sequence[str]]) -> None:
        self.job, self.prompts = job, prompts
        self.encoder = ContextEncoder(values, 4) if values else None
        self.tokenizer = load_tokenizer(job.model.base)
        self.ranker = None

    def openings(self, work: Work, users: Sequence[int]) -> list[np.ndarray]:
        return [self.prompts.plain] * len(users)

    def contexts(self, work: Work, users: Sequence[int]) -> list[Contexts | None]:
        if work.contexts is None:
            return [None] * len(users)
        some = work.contexts.take(pa.array(users, pa.int64()))
        asked = read(some, self.job.prompt, self.tokenizer, self.encoder)
        return [asked.take(np.asarray([i])) for i in range(len(users))]

    def make_ready(self, few: Sequence[Any]) -> None:
        """Nothing is to be made ready."""


Score = Callable[[list[int], list[str], int], float]


def scripted(
    monkeypatch: pytest.MonkeyPatch, wanted: Explaining, score: Score, values: Mapping[str, Sequence[str]] | None = None
) -> Explainer:
    """An explainer whose ranker is a function: of the rows in a trunk, oldest first, the values of its contexts that
    the encoder knows, or the words that follow the history, and the row that is scored."""
    prompts, known = explain_bucket.know(wanted)
    events = prompts.catalogue.event
    (row_of,) = [{int(token): row for row, token in enumerate(events.values)}]
    assert len(row_of) == len(ITEMS) == len(events.values), "an item is not one token"
    words, values = load_tokenizer(wanted.job.model.base), values or {}

    def told(code: int) -> list[str]:
        found = []
        for of in values.values():
            code, digit = divmod(code, len(of) + 1)
            found += [of[digit - 1]] if digit else []
        return found

    def score_variants(ranker: None, users: Sequence[Variants], *_: Any) -> list[list[np.ndarray]]:
        found = []
        for user in users:
            of = list[np.ndarray]()
            for trunk, candidates in zip(user.trunks, user.candidates, strict=True):
                read = [token % (1 << CODE_BITS) for token in trunk[len(prompts.plain) :].tolist()]
                past = [row_of[token] for token in read if token in row_of]
                context = told(int(trunk[-1]) >> CODE_BITS)
                context += words.convert_ids_to_tokens([token for token in read if token not in row_of])
                scores = [score(past, context, row_of[t]) for t in candidates.values.tolist()]
                of.append(np.asarray(scores, np.float32))
            found.append(of)
        return found

    monkeypatch.setattr(explain_bucket, "Replica", lambda job, texts: Scripted(job, texts, values))
    monkeypatch.setattr(explain_bucket, "score_variants", score_variants)
    return Explainer(wanted, Beating(None), prompts, known)


def work(histories: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]], contexts: Any = None) -> Work:
    asked = [Ragged.of([np.asarray(of, np.int32) for of in lists]) for lists in (histories, candidates)]
    total, none = len(asked[1].values), pa.table({})
    users = pa.array(range(len(histories)), pa.int64())
    return Work(
        users, *asked, np.zeros(total, np.float32), pa.nulls(total, pa.string()), {}, none,
        contexts=None if contexts is None else pa.table(contexts),
    )  # fmt: skip


def published(histories: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]], score: Score) -> np.ndarray:
    """Scores in no context."""
    return np.asarray([score(list(h), [], c) for h, of in zip(histories, candidates, strict=True) for c in of])


REQUIRES = [("i05", "requires", "i01"), ("i06", "requires", "i05"), ("i02", "requires", "i01"), ("i07", "of", "art")]


def with_edges(layout: Layout, edges: Sequence[tuple[Any, str, str]]) -> None:
    head, relation, tail = zip(*edges, strict=True)
    weight = pa.array([1.0] * len(edges), pa.float32())
    buckets.write_parquet(pa.table({"head": head, "relation": relation, "tail": tail, "weight": weight}), layout.edges)


def test_an_edge_between_the_item_and_a_cited_one_is_evidence_and_items_are_told_by_their_titles(
    tables: Layout, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_edges(tables, REQUIRES)
    wanted = explaining(tables, tiny_model)

    def score(past: list[int], context: list[str], row: int) -> float:
        return float(len(past))

    asked = ([[1, 2, 6]], [[5, 8]])
    explainer = scripted(monkeypatch, wanted, score)
    found, _, _ = explainer._evidence(work(*asked), published(*asked, score))
    told = [reason.text for reason in explainer._reasons(found)]
    assert told == [
        "“Title F” is recommended because of “Title G” (“Title G” requires “Title F”), “Title C” (requires Title B in "
        "both) and “Title B” (“Title F” requires “Title B”) in your history.",
        "“Title I” is recommended because of “Title G”, “Title C” and “Title B” in your history.",
    ]
    rows = pa.table({
        "user_id": [0, 0], "rank": pa.array([1, 2], pa.int32()), "item_id": ["i05", "i08"], "run_id": ["r", "r"],
    })  # fmt: skip
    table = reasons.table(rows, found, explainer._reasons(found), wanted.template, pa.array(ITEMS)).to_pylist()
    assert [[tuple(of.values()) for of in row["links"]] for row in table] == [
        [("i06", "requires", "i05"), ("i05", "requires", "i01")], []
    ]  # fmt: skip
    assert [tuple(of.values()) for of in table[0]["facts"]] == [("i02", "requires", "Title B")]


def test_tails_are_items_by_their_ids() -> None:
    edges = pa.table({
        "head": [1, 1, 2, 2, 3, 3], "relation": ["year", "needs"] * 3, "tail": ["3", "2", "1995", "3", "1997", "x"]
    })  # fmt: skip
    ids = pa.array([1, 2, 3])
    # Of the years one is a number that is an id, too.
    assert items_of_tails(edges, ids).tolist() == [-1, 1, -1, 2, -1, -1]
    assert items_of_tails(edges, ids.cast(pa.string())).tolist() == [2, 1, -1, 2, -1, -1]
    assert items_of_tails(edges.slice(0, 0), ids).tolist() == []


def test_each_context_is_left_out_by_itself_and_one_that_the_ranker_does_not_know_is_not_named(
    tables: Layout, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"device": ["phone", "web"], "place": ["home", "work"]}
    weights = {"phone": 0.5, "web": -0.25, "home": 1.0, "work": 2.0}

    def score(past: list[int], context: list[str], row: int) -> float:
        return 100.0 + len(past) + sum(weights[value] for value in context)

    asked = {
        "device": ["phone", "web", "fridge", "fridge", None, "phone"],
        "place": ["home", "home", "work", "moon", "home", None],
    }
    histories, candidates = [[1, 2]] * 6, [[5]] * 6
    explainer = scripted(monkeypatch, explaining(tables, tiny_model, context="{device} {place}"), score, values)
    found, _, pairs = explainer._evidence(
        work(histories, candidates, {name: pa.array(of, pa.string()) for name, of in asked.items()}),
        published(histories, candidates, score),
    )
    told = [([trait.value for trait in of.context], of.context_influence) for of in found]
    assert told == [
        (["home", "phone"], 1.5), (["home"], 0.75), (["work"], 2.0), ([], None), (["home"], 1.0), (["phone"], 0.5)
    ]  # fmt: skip
    assert [len(of.cited) for of in found] == [2] * 6
    assert pairs == 6 * 3 + 3 + 3 + 1 + 0 + 1 + 1


def test_a_text_of_which_nothing_is_left_is_left_out(
    tables: Layout, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody asked for something, so that the ranker never had to read an empty text."""
    weights = {"w40": 1.0, "w41": -1.0, "w50": 2.0}

    def score(past: list[int], context: list[str], row: int) -> float:
        return 100.0 + len(past) + sum(weights[word] for word in context)

    asked = {"query": ["w40", "w41", "w40"], "place": ["w50", "w50", None]}
    histories, candidates = [[1, 2]] * 3, [[5]] * 3
    explainer = scripted(monkeypatch, explaining(tables, tiny_model, context=" {query} {place}"), score)
    found, _, _ = explainer._evidence(
        work(histories, candidates, {name: pa.array(of, pa.string()) for name, of in asked.items()}),
        published(histories, candidates, score),
    )
    assert [([trait.value for trait in of.context], of.context_influence) for of in found] == [
        (["w50", "w40"], 3.0), (["w50"], 1.0), (["w40"], 1.0)
    ]  # fmt: skip


def measured(explainer: Explainer, score: Score, users: int = 60, often: int = 5) -> Faithfulness:
    """Of users who had ten items, two of them `often` times each, the others once."""
    rng = np.random.default_rng(1)
    histories = []
    for _ in range(users):
        items = rng.permutation(10)
        histories.append(rng.permutation(np.repeat(items, [often] * 2 + [1] * 8)).tolist())
    candidates = [[10, 11]] * users
    asked = work(histories, candidates)
    found, _, _ = explainer._evidence(asked, published(histories, candidates, score))
    return faithfulness.measure(explainer._faithfulness(asked, found, users), 1000, 0)


def test_cited_items_that_matter_are_found_to(
    tables: Layout, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three items the score is the sum of those that were had; of the others it knows nothing."""

    def score(past: list[int], context: list[str], row: int) -> float:
        return float(len({1, 4, 7} & set(past)))

    wanted = explaining(tables, tiny_model, history=10, cited=3)
    found = measured(scripted(monkeypatch, wanted, score), score)
    assert (found.users, found.reasons, found.cited, found.random) == (60, 120, 3.0, 0.0)
    assert found.low is not None and found.low > 0


@pytest.mark.parametrize("how", ["by chance", "by length"])
def test_cited_items_that_do_not_matter_are_not(
    tables: Layout, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Where the score of every shorter history is drawn anew, or tells how many events it has, no item matters: as much
    is lost with others of as many events. One at a time, some seem to."""

    def score(past: list[int], context: list[str], row: int) -> float:
        if how == "by length":
            return len(past) / 10
        if len(past) == 2 * 5 + 8:
            return 1.0
        digest = hashlib.sha256(f"{past} {row}".encode()).digest()
        return int.from_bytes(digest[:4]) / 2**32

    wanted = explaining(tables, tiny_model, history=10, cited=2 if how == "by chance" else 1)
    found = measured(scripted(monkeypatch, wanted, score), score)
    assert found.users > 50
    assert found.low is not None and found.high is not None and found.low <= 0 <= found.high
    if how == "by length":
        assert found.cited_events == found.random_events == 5.0 and found.cited == pytest.approx(0.5)
