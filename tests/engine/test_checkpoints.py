"""What a training worker's checkpoint brings back."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import ray.train
import torch
from transformers import get_cosine_schedule_with_warmup

from llmrec.engine.training_worker import Progress, _report, _resume
from llmrec.ranker.averaging import WeightAverage


class Worker:
    def __init__(self, averaged: bool, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))
        self.model[0].bias.requires_grad_(False)
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=0.1)
        self.schedule = get_cosine_schedule_with_warmup(self.optimizer, 2, 20)
        self.average = WeightAverage(self.model.parameters(), 0.8) if averaged else None

    def step(self, step: int) -> None:
        self.model(torch.full((2, 4), float(step))).pow(2).sum().backward()
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(step)

    def weights(self) -> list[torch.Tensor]:
        learning = [p for p in self.model.parameters() if p.requires_grad]
        own = [p.detach().clone() for p in learning]
        if self.average is not None:
            with self.average.applied():
                own += [p.detach().clone() for p in learning]
        return own


@pytest.mark.parametrize("averaged", [False, True])
def test_a_run_cut_off_goes_on_as_if_it_had_not_been(
    averaged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"

    def report(metrics: dict[str, Any], checkpoint: ray.train.Checkpoint) -> None:
        assert metrics["steps_done"] == 3
        shutil.copytree(checkpoint.path, kept)

    monkeypatch.setattr(ray.train, "report", report)
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: ray.train.Checkpoint.from_directory(str(kept)))
    through, again = Worker(averaged, 0), Worker(averaged, 1)
    for step in range(1, 4):
        through.step(step)
    progress = Progress(3, 30, 20, 0.5, 1, [(2, 1.5), (3, 0.5)], [(3, 0.5)])
    _report(through.model, through.optimizer, through.schedule, through.average, progress, 0.5, 0)
    again.model[0].bias.data.copy_(through.model[0].bias)  # it does not learn: no checkpoint holds it
    assert _resume(again.model, again.optimizer, again.schedule, again.average) == progress
    for step in range(4, 7):
        through.step(step)
        again.step(step)
    assert len(again.weights()) == (6 if averaged else 3)
    for found, wanted in zip(again.weights(), through.weights(), strict=True):
        torch.testing.assert_close(found, wanted)
