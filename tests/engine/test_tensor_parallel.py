"""A model split over two processes against the same model in one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from llmrec.config import Model, Prompt
from llmrec.engine.tensor_parallel import Team
from llmrec.errors import UserError
from llmrec.ranker.model import Ranker, score_requests
from llmrec.ranker.packing import Request
from llmrec.ranker.probe import check_parity, slow_scores
from llmrec.ranker.ragged import Ragged

MODEL = Model(items="text", head="yes_no", labels=("yes", "no"))
REQUESTS = [
    Request.to_score(np.asarray([0, 6, 7, 8], np.int32), Ragged.of([[9, 10], [11], [8, 7, 6]])),
    Request.to_score(np.asarray([0, 9], np.int32), Ragged.of([[10, 6]])),
]


class Part:
    """One process's part of a ranker."""

    def __init__(self, directory: str, parts: int, rank: int) -> None:
        torch.set_num_threads(1)
        self.ranker = Ranker.from_base(MODEL, Prompt(), directory, parts)

    def score(self, requests: list[Request]) -> list[torch.Tensor]:
        return score_requests(self.ranker, requests, 100)

    def parity(self) -> float:
        return check_parity(slow_scores(self.ranker, REQUESTS), self.ranker, REQUESTS, 100)

    def fail(self) -> None:
        raise UserError("as asked")

    def lower(self) -> None:
        self.ranker.only_score("bfloat16")


@pytest.fixture(scope="module")
def team(tiny_model: Path) -> Iterator[Team]:
    found = Team(partial(Part, str(tiny_model), 2), 2, cuda=False)
    yield found
    dist.destroy_process_group()
    for pipe in found.pipes:
        pipe.close()


def test_two_processes_give_the_scores_of_one(team: Team, tiny_model: Path) -> None:
    whole = Part(str(tiny_model), 1, 0)
    split = team.own.ranker.backbone.layers[0].mlp.gate_proj.weight.to_local()
    assert split.shape[0] * 2 == whole.ranker.backbone.layers[0].mlp.gate_proj.weight.shape[0]
    torch.testing.assert_close(torch.cat(team.call("score", REQUESTS)), torch.cat(whole.score(REQUESTS)))
    assert team.call("parity") < 1e-5
    with pytest.raises(UserError, match="as asked"):
        team.call("fail")
    torch.testing.assert_close(torch.cat(team.call("score", REQUESTS)), torch.cat(whole.score(REQUESTS)))
    team.call("lower")
    whole.lower()
    exact = torch.cat(whole.score(REQUESTS))
    torch.testing.assert_close(torch.cat(team.call("score", REQUESTS)), exact, rtol=0.05, atol=0.02)


def test_heads_that_cannot_be_divided_are_refused(tiny_model: Path) -> None:
    with pytest.raises(UserError, match=r"score\.tensor_parallel = 3: does not divide the attention heads .* 2 and 4"):
        Part(str(tiny_model), 3, 0)
