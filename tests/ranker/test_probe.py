"""Faults planted in the fast path, the prompt and the weights, each of which must be caught before rankings exist."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny_models import bind_items, make_ranker

from llmrec import assets
from llmrec.config import Model, Prompt, Score
from llmrec.data import movielens
from llmrec.errors import UserError
from llmrec.ranker import health, model, probe
from llmrec.ranker.model import Ranker
from llmrec.ranker.packing import Batch, Request
from llmrec.ranker.prompts import scoring_request, tokenise_catalogue, trunk_opening
from llmrec.ranker.ragged import Ragged

Tiny = Callable[[str], str]
REQUESTS = [
    Request.to_score(np.asarray([0, 40, 41, 42], np.int32), Ragged.of([[65, 66], [67, 68], [68, 69, 70]])),
    Request.to_score(np.asarray([0, 43], np.int32), Ragged.of([[66, 65], [71, 72]])),
]


def read_early(batch: Batch) -> Batch:
    """A padding mistake: the score is read one token before the pair's last."""
    return replace(batch, read=batch.read - 1)


def positions_run_on(batch: Batch) -> Batch:
    """Positions that do not restart at every branch, as in a plain sequence."""
    position = torch.cat([torch.arange(end - start) for start, end in batch.bounds])
    return replace(batch, position=position)


def branches_see_each_other(batch: Batch) -> Batch:
    """All of a user's branches as one."""
    offset = torch.cat([torch.arange(end - start) for start, end in batch.bounds])
    trunk = torch.cat([(batch.branch[s:e] == 0).sum().repeat(e - s) for s, e in batch.bounds])
    return replace(
        batch,
        branch=batch.branch.clamp(max=1),
        position=torch.where(batch.branch > 0, offset, batch.position),
        attach=trunk - 1,
    )


def users_see_each_other(batch: Batch) -> Batch:
    """A user's branches hang at the trunk before."""
    return replace(batch, token=batch.token.roll(1))


@pytest.mark.parametrize(
    "fault", [read_early, positions_run_on, branches_see_each_other, users_see_each_other], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("backend", ["dense", "cascade", "flex"])
def test_a_fault_in_packing_is_caught(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, backend: str, fault: Callable[[Batch], Batch]
) -> None:
    ranker = make_ranker(tiny("llama"), "text", "linear")
    ranker.attend_by(backend)
    assert probe.check_parity(probe.slow_scores(ranker, REQUESTS), ranker, REQUESTS, 100) < 1e-5
    right = model.pack
    monkeypatch.setattr(model, "pack", lambda *given: fault(right(*given)))
    with pytest.raises(UserError, match=r"parity probe: packed scores differ .* by \d.*refusing to score"):
        probe.check_parity(probe.slow_scores(ranker, REQUESTS), ranker, REQUESTS, 100)


def asked_of_items(tiny: Tiny, head: str, per_item: int) -> tuple[Ranker, list[Request]]:
    ranker = make_ranker(tiny("llama"), "token", head, per_item=per_item)
    bound, _ = bind_items(ranker)
    ranker.freeze_items()
    prefix = np.asarray([0, 70], np.int32)
    return ranker, [
        scoring_request(prefix, bound, np.asarray(history), np.arange(4)) for history in ([1, 0], [5, 2, 4])
    ]


@pytest.mark.parametrize("per_item", [1, 2])
@pytest.mark.parametrize(
    ("head", "fault"),
    [
        ("retrieve", read_early),
        ("retrieve", users_see_each_other),
        ("rank", positions_run_on),
        ("rank", branches_see_each_other),
    ],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_a_fault_in_packing_items_is_caught(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, head: str, fault: Callable[[Batch], Batch], per_item: int
) -> None:
    ranker, asked = asked_of_items(tiny, head, per_item)
    assert probe.check_parity(probe.slow_scores(ranker, asked), ranker, asked, 100) < 1e-5
    right = model.pack
    monkeypatch.setattr(model, "pack", lambda *given: fault(right(*given)))
    with pytest.raises(UserError, match="parity probe"):
        probe.check_parity(probe.slow_scores(ranker, asked), ranker, asked, 100)


@pytest.mark.parametrize("per_item", [1, 2])
@pytest.mark.parametrize(
    "fault",
    [lambda batch, found: found - 1, lambda batch, found: batch.read, lambda batch, found: found.flip(0)],
    ids=["one early", "the item itself", "another user's"],
)
def test_a_fault_in_what_an_item_is_compared_with_is_caught(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, fault: Callable[[Batch, torch.Tensor], torch.Tensor], per_item: int
) -> None:
    ranker, asked = asked_of_items(tiny, "rank", per_item)
    assert probe.check_parity(probe.slow_scores(ranker, asked), ranker, asked, 100) < 1e-5
    right = model.compared
    monkeypatch.setattr(model, "compared", lambda batch, k: fault(batch, right(batch, k)))
    with pytest.raises(UserError, match="parity probe"):
        probe.check_parity(probe.slow_scores(ranker, asked), ranker, asked, 100)


@pytest.mark.parametrize("head", ["retrieve", "rank"])
def test_item_vectors_that_went_stale_are_caught(tiny: Tiny, head: str) -> None:
    ranker, asked = asked_of_items(tiny, head, 1)
    slow = probe.slow_scores(ranker, asked)
    frozen = ranker.frozen
    ranker.frozen = frozen._replace(vectors=frozen.vectors.roll(1, 0))
    with pytest.raises(UserError, match="parity probe"):
        probe.check_parity(slow, ranker, asked, 100)


def test_weights_that_are_not_finite_are_caught(tiny: Tiny) -> None:
    ranker = make_ranker(tiny("llama"), "text", "linear")
    with torch.no_grad():
        ranker.backbone.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="by inf, more than"):
        probe.check_parity(probe.slow_scores(ranker, REQUESTS), ranker, REQUESTS, 100)


@pytest.fixture(scope="module")
def smollm2() -> Iterator[str]:
    yield assets.resolve_model("smollm2-135m-instruct")


@pytest.fixture(scope="module")
def films() -> pa.Table:
    return movielens.tables(Path(assets.fetch("ml-100k")))["items"].slice(0, 60)


def asked_of(directory: str, films: pa.Table, prompt: Prompt) -> tuple[Ranker, list[Request]]:
    ranker = Ranker.from_base(Model(items="text", head="yes_no"), prompt, directory)
    catalogue = tokenise_catalogue(films, "item_id", prompt, ranker.tokenizer)
    prefix = trunk_opening(prompt, ranker.tokenizer)
    return ranker, [scoring_request(prefix, catalogue, np.arange(8), np.arange(20, 24))]


GOOD = Prompt(
    before_history="Films a person watched, oldest first:\n",
    before_candidate="Would this person also like the film",
    after_candidate="? Answer yes or no. Answer:",
)


def test_a_template_that_asks_for_the_labels_passes(smollm2: str, films: pa.Table) -> None:
    probe.check_labels(*asked_of(smollm2, films, GOOD))


@pytest.mark.parametrize(
    "wrong",
    [
        {"before_candidate": "", "after_candidate": ""},
        {"after_candidate": "? Answer yes or no."},
        {
            "before_candidate": "<|im_end|>\n<|im_start|>user\nWould this person like",
            "after_candidate": "? Answer yes or no.<|im_end|>\n<|im_start|>assistant\n",
        },
    ],
    ids=["no question", "no cue to answer", "chat template whose answer starts without a space"],
)
def test_a_wrong_template_is_caught(smollm2: str, films: pa.Table, wrong: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"prompt probe: .* with probability .* change the prompt's template"):
        probe.check_labels(*asked_of(smollm2, films, GOOD.model_copy(update=wrong)))


def test_labels_that_the_tokenizer_splits_are_refused(smollm2: str) -> None:
    with pytest.raises(UserError, match=r"model\.labels: ' certainly yes' is 2 tokens"):
        Ranker.from_base(Model(items="text", head="yes_no", labels=(" certainly yes", " no")), GOOD, smollm2)


def test_shares_of_bad_scores_by_hand() -> None:
    nan = float("nan")
    scores = np.asarray([1, 1, 1, 2, 3, 2, 5, 6, nan, 4], np.float32)
    offsets = np.asarray([0, 3, 6, 6, 10])  # one score for all; a tie; nobody; one that is not a number
    found = health.measure(scores, offsets)
    assert found.not_finite == pytest.approx(0.1)
    assert found.constant_users == pytest.approx(1 / 3)
    assert found.tied == pytest.approx(0.5)
    assert health.measure(scores[:0], np.asarray([0, 0])) == health.Health(0, 0, 0)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (health.Health(0.01, 0, 0), "1.00% of a bucket's scores are not finite"),
        (
            health.Health(0, 0.5, 0),
            "50% of a bucket's users have one score for all items, more than score",
        ),
        (health.Health(0, 0, 0.9), "90% of a bucket's scores are equal to another .* score.max_tied = 0.3"),
    ],
)
def test_bad_shares_stop_the_job(found: health.Health, words: str) -> None:
    health.check(health.Health(0, 0.1, 0.3), Score())
    with pytest.raises(UserError, match=words):
        health.check(found, Score())


def test_how_much_of_the_top_list_is_kept() -> None:
    exact = torch.arange(20.0)
    swapped = exact.clone()
    swapped[[5, 15]] = swapped[[15, 5]]
    assert probe.top_kept([exact, exact, exact[:3]], [exact, swapped, exact[:3]]).tolist() == [1.0, 0.9]
