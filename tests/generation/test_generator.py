"""What is written in batches is what plain transformers writes of one prompt alone."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from llmrec import assets, config
from llmrec.errors import UserError
from llmrec.generation import instructions
from llmrec.generation.generator import Generator, check_length
from llmrec.generation.prompts import Prompter
from llmrec.generation.repetition import loops
from llmrec.ranker.model import load_tokenizer

TITLES = [
    "Aliens (1986) Action, Sci-Fi, Thriller, War", "Heat", "Maya Lin: A Strong Clear Vision (1994) Documentary",
    "A rather longer title of a film about a farmer who sells his farm (1996) Drama",
]  # fmt: skip
NEW = 40


@pytest.fixture(scope="module")
def directory() -> str:
    return assets.resolve_model("smollm2-135m-instruct")


@pytest.fixture(scope="module")
def prompter(directory: str) -> Prompter:
    return Prompter(load_tokenizer(directory), instructions.read("item.v1"), 60)


@pytest.fixture(scope="module")
def prompts(prompter: Prompter) -> list[list[int]]:
    return prompter.tokens(prompter.told(pa.table({"text": TITLES})))


@pytest.fixture(scope="module")
def generator(directory: str, prompter: Prompter) -> Generator:
    settings = config.Augment(max_new_tokens=NEW, precision="float32", batch_size=3)
    return Generator(directory, prompter.tokenizer, settings, prompter.prefix, 2)


def alone(model: PreTrainedModel, prompt: Sequence[int], end: int) -> tuple[list[int], str]:
    """What transformers itself writes after one prompt, up to its end or a loop."""
    ids = torch.tensor([list(prompt)])
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False)
    tokens = out[0, len(prompt) :].tolist()
    for n in range(len(tokens)):
        if tokens[n] == end:
            return tokens[:n], "end"
        if loops(tokens[: n + 1]):
            return tokens[: n + 1], "loop"
    return tokens, "limit"


def test_batches_write_what_is_written_alone(
    prompter: Prompter, prompts: list[list[int]], generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModelForCausalLM.from_pretrained(prompter.tokenizer.name_or_path, dtype=torch.float32).eval()
    told: list[int] = []
    found = generator.write(prompts, [0] * len(prompts), told.append)
    assert told == [3, 1]
    for prompt, written in zip(prompts, found, strict=True):
        tokens, ending = alone(model, [*prompter.prefix, *prompt], prompter.tokenizer.eos_token_id)
        text = prompter.tokenizer.decode(tokens, skip_special_tokens=True)
        assert (written.text, written.ending, written.tokens) == (text, ending, len(tokens))
    assert {"end", "loop"} <= {written.ending for written in found}, "the prompts are to show how answers end"

    # An answer ends with its last line, here with the first.
    monkeypatch.setattr(generator, "lines", 1)
    (short,) = generator.write(prompts[:1], [0])
    assert "\n" in found[0].text and short.ending == "end"
    assert short.text == found[0].text.split("\n")[0] + "\n"


def test_samples_are_each_prompts_own(
    prompts: list[list[int]], generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled = {"temperature": 0.9, "top_p": 0.95, "max_new_tokens": 8}
    monkeypatch.setattr(generator, "settings", generator.settings.model_copy(update=sampled))
    monkeypatch.setattr(generator.model.generation_config, "max_new_tokens", 8)
    seeds = [11, 12, 13]
    together = generator.write(prompts[:3], seeds)
    (one,) = generator.write(prompts[1:2], seeds[1:2])
    assert one == together[1], "a prompt's neighbours do not change its sample"
    (other,) = generator.write(prompts[1:2], [99])
    assert other != one


def test_samples_have_the_probabilities_of_the_softmax() -> None:
    from llmrec.generation.generator import _Sampling

    scores = torch.tensor([2.0, 1.0, 0.0, -1.0])
    n = 5_000
    drawn = _Sampling(0.7, 1.0, range(n))(torch.zeros(n, 1), scores.expand(n, -1)).argmax(dim=1)
    shares = torch.bincount(drawn, minlength=4) / n
    torch.testing.assert_close(shares, torch.softmax(scores / 0.7, dim=0), atol=0.03, rtol=0)
    kept = _Sampling(0.7, 0.9, range(n))(torch.zeros(n, 1), scores.expand(n, -1)).argmax(dim=1)
    assert set(kept.tolist()) == {0, 1}


def test_what_cannot_write_is_refused(tmp_path: object, tiny_encoder: object, prompter: Prompter) -> None:
    with pytest.raises(UserError, match="is no decoder"):
        Generator(str(tiny_encoder), prompter.tokenizer, config.Augment(), prompter.prefix, 1)
    with pytest.raises(UserError, match="cannot be loaded"):
        Generator(str(tmp_path), prompter.tokenizer, config.Augment(), prompter.prefix, 1)
    with pytest.raises(UserError, match=r"lower augment\.max_input_tokens"):
        check_length(100, config.Augment(max_new_tokens=30), 128)
    check_length(98, config.Augment(max_new_tokens=30), 128)
