"""Rankers that read contexts: trained and scored alike, and each decision in its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import DEVICES, Plain, bind_items, device_or_skip, make_features, make_ranker, random_catalogue

from llmrec.config import Prompt, Train
from llmrec.errors import UserError
from llmrec.ranker import contexts
from llmrec.ranker.contexts import ContextEncoder
from llmrec.ranker.examples import Example, Lesson, sample
from llmrec.ranker.model import Ranker, score_pair_by_pair, score_requests
from llmrec.ranker.objective import loss_of, request_of
from llmrec.ranker.packing import pack
from llmrec.ranker.prompts import Catalogue, scoring_request
from llmrec.ranker.ragged import Ragged
from llmrec.ranker.retrieval import user_vectors

N_ITEMS = 7
VALUES = {"place": ["home", "work"], "hour": ["07", "12", "23"]}
PREFIXES = [np.asarray([0, 70, 71], np.int32), np.asarray([0], np.int32)]  # with the second a trunk may be one token
HISTORIES = [np.asarray([3, 1, 4, 1, 5]), np.asarray([2, 6])]
DECISIONS = [np.asarray([0, 2, 4]), np.asarray([0, 1])]
NEGATIVES = [np.asarray([[2, 6, 0], [4, 5, 5], [0, 1, 2]]), np.asarray([[0, 1, 3], [3, 4, 5]])]
ASKED = [
    {"place": ["home", "work", None], "hour": ["07", "23", "12"]}, {"place": ["moon", "work"], "hour": ["23", None]},
]  # fmt: skip


def asked(columns: dict[str, list]) -> pa.Table:
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


def shaken(directory: str, items: str, head: str, per_item: int = 1) -> tuple[Ranker, Catalogue]:
    """A ranker that reads contexts, as if training had moved all that it learns of them."""
    ranker = make_ranker(directory, items.split()[0], head, per_item=per_item)
    ranker.card = ranker.card.model_copy(update={"prompt": Prompt(context=" at {hour} {place}")})
    if items == "text":
        return ranker.eval(), random_catalogue(N_ITEMS, 262)
    bound, _ = bind_items(ranker, N_ITEMS)
    if items == "token as text":
        return ranker.eval(), bound
    ranker.contexts = ContextEncoder(VALUES, ranker.backbone.config.hidden_size)
    torch.manual_seed(3)
    torch.nn.init.normal_(ranker.contexts.table)
    return ranker.eval(), bound


def examples(head: str) -> list[Example]:
    found = []
    for history, decisions, negatives in zip(HISTORIES, DECISIONS, NEGATIVES, strict=True):
        drawn = negatives if head != "retrieve" else negatives[:, :0]
        answers = history[decisions][:, None]
        found.append(Example(history, decisions, drawn, np.ones(drawn.shape, bool), answers, history[:0]))
    return found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("attention", ["cascade", "dense"])
@pytest.mark.parametrize(
    ("items", "head", "per_item"),
    [("token", "retrieve", 1), ("token", "retrieve", 2), ("token", "rank", 1), ("token", "rank", 2),
     ("text", "linear", 1), ("token as text", "retrieve", 1), ("token as text", "rank", 2)],
)  # fmt: skip
def test_what_is_trained_is_what_is_scored(
    tiny: Callable[[str], str], items: str, head: str, per_item: int, attention: str, device: str
) -> None:
    """Every decision of a packed pass scores its items as a request in its context does, packed and pair by pair."""
    device_or_skip(device)
    ranker, catalogue = shaken(tiny("llama"), items, head, per_item)
    ranker.to(device).attend_by(attention)
    lesson = Lesson(HISTORIES[0], np.asarray([6, 0]), np.zeros(2, np.float32))
    entries = [*examples(head), lesson]
    read = [ranker.read_contexts(asked(columns)) for columns in [*ASKED, {"place": [None], "hour": ["12"]}]]
    packed = [
        request_of(entry, prefix, catalogue, ranker, of)
        for entry, prefix, of in zip(entries, [*PREFIXES, PREFIXES[0]], read, strict=True)
    ]
    with torch.no_grad():
        scores = ranker(pack(packed).to(device))
    assert scores.catalogue is None or len(scores.catalogue.users) == 6
    alone, place = [], 0
    for user, (example, prefix, of) in enumerate(zip(entries[:2], PREFIXES, read, strict=False)):
        for row, event in enumerate(example.decisions):
            listed = np.concatenate([example.history[[event]], NEGATIVES[user][row]])
            here = of.take(np.asarray([row]))
            request = scoring_request(prefix, catalogue, example.history[:event], listed, here)
            slow = score_pair_by_pair(ranker, request)
            alone.append(slow)
            torch.testing.assert_close(score_requests(ranker, [request], 64)[0], slow, rtol=1e-4, atol=1e-4)
            if scores.catalogue is not None:
                users = torch.full((len(listed),), place, device=device)
                found = scores.catalogue.pairs(users, torch.from_numpy(listed).to(device)).cpu()
                if head == "rank":
                    found_alone = user_vectors(ranker, [request], 64) @ ranker.vectors().direction().cpu().T
                    wanted = (found_alone[0] + ranker.vectors().bias.cpu())[torch.from_numpy(listed)]
                    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
                else:
                    torch.testing.assert_close(found, slow, rtol=1e-4, atol=1e-4)
            place += 1
    if scores.items is None:
        return
    found, start = scores.items.cpu(), 0
    for user, negatives in enumerate(NEGATIVES):
        d, n = negatives.shape
        wanted = torch.stack(alone[3 * user : 3 * user + d])
        positive, rest = found[start : start + d], found[start + d : start + d * (1 + n)].view(d, n)
        torch.testing.assert_close(torch.cat([positive[:, None], rest], 1), wanted, rtol=1e-4, atol=1e-4)
        start += d * (1 + n)
    slow = score_pair_by_pair(ranker, scoring_request(PREFIXES[0], catalogue, lesson.history, lesson.items, read[2]))
    torch.testing.assert_close(found[start:], slow, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", ["retrieve", "rank"])
def test_a_context_is_added_to_the_last_token_that_is_read(tiny: Callable[[str], str], head: str) -> None:
    """States of plain transformers over input vectors made by hand."""
    ranker, catalogue = shaken(tiny("llama"), "token", head)
    table = ranker.contexts.table.detach()
    rows = {("place", "home"): 1, ("place", "work"): 2, ("hour", "07"): 4, ("hour", "12"): 5, ("hour", "23"): 6}
    plain, vectors = Plain.load(tiny("llama")), ranker.vectors()
    retrieve = ranker.head if head == "retrieve" else ranker.head.retrieve
    for place, hour in itertools.product(["home", "work", "moon", None], ["07", "12", "23", None]):
        context = ranker.read_contexts(asked({"place": [place], "hour": [hour]}))
        request = scoring_request(PREFIXES[0], catalogue, HISTORIES[0], np.asarray([0]), context)
        with torch.no_grad():
            words = plain.model.get_input_embeddings()(torch.from_numpy(PREFIXES[0].astype(np.int64)))
            items = ranker.items.inputs(vectors.vectors[torch.from_numpy(HISTORIES[0])].flatten(0, 1))
            inputs = torch.cat([words, items])
            for value in (("place", place), ("hour", hour)):
                if value in rows:
                    inputs[-1] += table[rows[value]]
            state = plain.model(inputs_embeds=inputs[None]).last_hidden_state[0, -1]
            wanted = retrieve.users(state[None])
        torch.testing.assert_close(user_vectors(ranker, [request], 64), wanted, rtol=1e-4, atol=1e-4)


def test_training_starts_from_the_ranker_without_contexts(tiny: Callable[[str], str]) -> None:
    """And moves what it reads of the values that it sees, those of other decisions included, and of no others."""
    ranker, catalogue = shaken(tiny("llama"), "token", "retrieve")
    torch.nn.init.zeros_(ranker.contexts.table)
    entries, prefixes = examples("retrieve"), PREFIXES
    read = [ranker.read_contexts(asked(columns)) for columns in ASKED]
    losses = []
    for of in (read, [None, None]):
        packed = [
            request_of(e, prefix, catalogue, ranker, c) for e, prefix, c in zip(entries, prefixes, of, strict=True)
        ]
        losses.append(loss_of(ranker(pack(packed)), entries, Train(), torch.ones(N_ITEMS, dtype=torch.bool), 5.0, 1.0))
    torch.testing.assert_close(losses[0], losses[1])
    losses[0].backward()
    moved = ranker.contexts.table.grad.abs().sum(1) > 0
    assert moved.tolist() == [False, True, True, False, True, True, True]


def test_values_that_a_pass_forgets_are_as_unknown(tiny: Callable[[str], str]) -> None:
    ranker, _ = shaken(tiny("llama"), "token", "retrieve")
    encoder = ranker.contexts
    codes = torch.from_numpy(encoder.codes(asked({"place": ["home"] * 400, "hour": ["12"] * 400})))
    encoder.dropout = 0.25
    zeros = torch.zeros(400, encoder.table.shape[1])
    found = encoder.train()(zeros, codes)
    place, hour = encoder.table[1], encoder.table[5]
    kinds = [(found - wanted).abs().amax(1) < 1e-6 for wanted in (place + hour, place, hour, 0 * place)]
    assert sum(kind.int() for kind in kinds).tolist() == [1] * 400
    shares = [float(kind.float().mean()) for kind in kinds]
    np.testing.assert_allclose(shares, [0.5625, 0.1875, 0.1875, 0.0625], atol=0.1)
    torch.testing.assert_close(encoder.eval()(zeros, codes)[0], place + hour)


def test_a_saved_ranker_reads_contexts_as_before(tiny: Callable[[str], str], tmp_path: Path) -> None:
    ranker, catalogue = shaken(tiny("llama"), "token", "retrieve")
    ranker.save_pretrained(tmp_path, "card")
    again = Ranker.from_pretrained(tmp_path)
    again.bind(random_catalogue(N_ITEMS, 262), make_features(range(N_ITEMS)))
    table = asked(ASKED[0])
    read = again.read_contexts(table)
    assert read.tokens.values.tolist() == ranker.read_contexts(table).tokens.values.tolist()
    request = scoring_request(PREFIXES[0], catalogue, HISTORIES[0], np.arange(3), read.take(np.asarray([1])))
    torch.testing.assert_close(score_requests(again, [request], 64), score_requests(ranker, [request], 64))
    plain = make_ranker(tiny("llama"), "token", "retrieve")
    bind_items(plain, N_ITEMS)
    plain.save_pretrained(tmp_path / "plain", "card")
    assert (
        not list((tmp_path / "plain").glob("contexts*")) and Ranker.from_pretrained(tmp_path / "plain").contexts is None
    )
    assert '"context"' not in (tmp_path / "plain" / "ranker.json").read_text()


def test_texts_follow_the_history(tiny: Callable[[str], str]) -> None:
    ranker, catalogue = shaken(tiny("llama"), "text", "linear")
    context = ranker.read_contexts(asked({"place": ["home"], "hour": [None]}))
    request = scoring_request(PREFIXES[0], catalogue, HISTORIES[1], np.asarray([4]), context)
    told = ranker.tokenizer(" at  home", add_special_tokens=False)["input_ids"]
    events = [t for row in HISTORIES[1] for t in catalogue.event[row].tolist()]
    assert request.trunk.tolist() == [*PREFIXES[0].tolist(), *events, *told] and len(told) > 1
    assert context.more.tolist() == [len(told)]
    none = contexts.read(asked({"place": [], "hour": []}), ranker.card.prompt, ranker.tokenizer, None)
    assert len(none) == 0


def test_a_long_text_is_cut_and_one_without_a_token_is_refused(tiny: Callable[[str], str]) -> None:
    ranker, _ = shaken(tiny("llama"), "text", "linear")
    prompt = ranker.card.prompt.model_copy(update={"context": " at {place}", "max_context_tokens": 5})
    typed = asked({"place": ["home " * 2000, "home"]})
    found = contexts.read(typed, prompt, ranker.tokenizer, None)
    whole = ranker.tokenizer(" at " + "home " * 2000, add_special_tokens=False)["input_ids"]
    assert found.tokens[0].tolist() == whole[:5] and len(whole) > 2000
    assert 0 < len(found.tokens[1]) <= 5
    bare = prompt.model_copy(update={"context": "{place}"})
    with pytest.raises(UserError, match=r"prompt\.context '\{place\}' gives the text '', which has no token; begin it"):
        contexts.read(asked({"place": ["home", None]}), bare, ranker.tokenizer, None)


def test_more_combinations_than_there_are_codes_are_refused() -> None:
    values = {name: [str(i) for i in range(2000)] for name in ("city", "cell", "shop")}
    with pytest.raises(UserError, match=r"values of its columns \(city 2,000, cell 2,000, shop 2,000\) have more") as e:
        ContextEncoder(values, 4)
    assert "\n" not in str(e.value)
    several = ContextEncoder(dict(list(values.items())[:2]), 4)
    torch.nn.init.normal_(several.table)
    code = several.codes(asked({"city": ["1999", "0"], "cell": ["1999", None]}))
    found = several(torch.zeros(2, 4), torch.from_numpy(code))
    torch.testing.assert_close(found, torch.stack([several.table[2000] + several.table[4001], several.table[1]]))


def test_an_example_tells_where_its_window_begins() -> None:
    """Beyond the history that a window holds, decisions still find the contexts of their events."""
    history = np.arange(50) * 10
    for seed in range(20):
        found = sample(history, Train(decisions_per_user=4), 8, None, np.random.default_rng(seed))
        assert history[found.first + found.decisions].tolist() == found.history[found.decisions].tolist()
        assert found.first + len(found.history) <= 50


LISTS = st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=6)


@given(st.data(), LISTS)
def test_joined_sequences(data: Any, first: list[list[int]]) -> None:
    second = [data.draw(st.lists(st.integers(0, 9), max_size=4)) for _ in first]
    found = Ragged.of(first).joined(Ragged.of(second))
    assert [found[i].tolist() for i in range(len(found))] == [a + b for a, b in zip(first, second, strict=True)]
