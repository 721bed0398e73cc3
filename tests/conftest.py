"""Fixtures that all tests share: a tiny language model, and one mini cluster and one S3 server for the session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Of tests alone, and before the cluster starts, whose nodes keep the variables that they started with.
os.environ["LLMREC_PSEUDONYM_KEY"] = "a key of tests, long enough to be one"
# Before the cluster, whose nodes inherit them.
os.environ.setdefault("LLMREC_REDIS_PASSWORD", "cold-kettle-7431")
os.environ.setdefault("LLMREC_SERVE_TOKEN", "green-lamp-2918")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a core each

BUCKET = "llmrec-test"
WORDS = [f"w{i}" for i in range(60)]


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings as they are without those of the environment, which outweigh a file's."""
    for name in list(os.environ):
        if name.startswith("LLMREC_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer random Llama with grouped queries and a word-level tokenizer, saved as transformers does."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    directory = tmp_path_factory.mktemp("tiny-llama")
    words = ["<s>", "<unk>", "yes", "no", "\n", *WORDS]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(" ", behavior="removed")
    PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>").save_pretrained(directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_encoder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer random BERT with the same tokenizer."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    directory = tmp_path_factory.mktemp("tiny-bert")
    words = AutoTokenizer.from_pretrained(tiny_model)
    words.save_pretrained(directory)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real S3 server with an empty bucket; its variables are set in this process."""
    from llmrec.local.object_store import object_store

    with object_store(tmp_path_factory.mktemp("store"), BUCKET) as running:
        yield running


@pytest.fixture(scope="session")
def cluster(store: Any) -> Iterator[Any]:
    """A mini cluster of a head and two worker nodes, started after the store so that its nodes know its variables."""
    from llmrec.config import Cluster
    from llmrec.local.cluster import joined, mini_cluster

    with mini_cluster(Cluster(no_progress_seconds=120)) as running, joined(running):
        yield running


@pytest.fixture(scope="session")
def movielens() -> dict[str, Any]:
    """MovieLens-100k as tables, from the asset."""
    from llmrec import assets
    from llmrec.data import movielens as source

    return source.tables(assets.fetch("ml-100k"))


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[Any]:
    """A real Redis server of this test's own, which wants the environment's password; skips where there is none."""
    from redis_server import running

    with running(tmp_path / "redis") as server:
        yield server
