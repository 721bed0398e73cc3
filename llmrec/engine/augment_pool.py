"""The actors that write: a language model loaded once, which answers shard after shard of prompts."""

from __future__ import annotations

import time
from typing import Any

import pyarrow as pa
import torch

from llmrec import config, storage
from llmrec.engine.watch import Beating
from llmrec.errors import UserError
from llmrec.generation.answers import Written, judge
from llmrec.generation.generator import Generator
from llmrec.generation.instructions import Instructions
from llmrec.generation.prompts import Prompter
from llmrec.ranker.model import load_tokenizer
from llmrec.schema import CONTENT_HASH
from llmrec.tables import augmentations

TOLD, SHARD = "told", "shard"
SHARDS = pa.schema([(SHARD, pa.binary())])


def to_row(shard: pa.Table) -> dict[str, Any]:
    """A shard (content_hash, told) as one cell, so that no block boundary can cut it."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, shard.schema) as stream:
        stream.write_table(shard)
    return {SHARD: sink.getvalue().to_pybytes()}


class WriterActor:
    """A member of the actor pool: answers one shard after the other; the model is loaded for the first."""

    def __init__(
        self, settings: config.Augment, instructions: Instructions, directory: str, folder: str, pulse: Any
    ) -> None:
        import ray

        self.settings, self.instructions, self.directory = settings, instructions, directory
        self.folder, self.beating = folder, Beating(pulse)
        self.name = ray.get_runtime_context().get_actor_id() or ""
        self.ready: tuple[Prompter, Generator] | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        (row,) = batch.to_pylist()
        shard = pa.ipc.open_stream(row[SHARD]).read_all()
        hashes = shard[CONTENT_HASH].to_pylist()
        written: list[Written] = []
        seconds = 0.0
        # A batch of long answers takes longer than the silence that is allowed.
        with self.beating.meanwhile():
            # It is there if an actor died after it had written this shard, and before it was done with others.
            if not storage.exists(augmentations.file_of(self.folder, hashes)):
                if self.ready is None:
                    self.ready = self._load()
                started = time.monotonic()
                written = self._write(shard[TOLD].to_pylist(), hashes)
                seconds = time.monotonic() - started
                judged = [judge(one, self.instructions) for one in written]
                columns = (hashes, *([getattr(j, name) for j in judged] for name in ("text", "reason", "detail")))
                augmentations.add(self.folder, pa.table(list(columns), schema=augmentations.GENERATED))
        tokens = sum(one.tokens for one in written)
        return pa.table({"texts": [len(written)], "tokens": [tokens], "seconds": [seconds], "actor": [self.name]})

    def _load(self) -> tuple[Prompter, Generator]:
        settings = self.settings
        if not settings.gpus_per_actor:
            torch.set_num_threads(max(1, round(settings.cpus_per_actor)))
        tokenizer = load_tokenizer(self.directory)
        prompter = Prompter(tokenizer, self.instructions, settings.max_input_tokens)
        device = "cuda" if settings.gpus_per_actor else "cpu"
        return prompter, Generator(
            self.directory, tokenizer, settings, prompter.prefix, len(self.instructions.fields), device
        )

    def _write(self, told: list[str], hashes: list[str]) -> list[Written]:
        assert self.ready is not None
        prompter, generator = self.ready
        try:
            return generator.write(prompter.tokens(told), [int(h[:15], 16) for h in hashes], self.beating)
        except torch.OutOfMemoryError:
            raise UserError(
                f"augment.batch_size = {self.settings.batch_size}: the prompts of a batch and what is written after "
                "them do not fit into the GPU's memory; lower it"
            ) from None
