"""The ranker: a Hugging Face model as backbone, a head that reads scores, and how both are saved and loaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.distributed import DistributedConfig
from transformers.utils import logging as transformers_logging

from llmrec.config import Items, Model, Prompt
from llmrec.errors import UserError
from llmrec.ranker.attention import BACKENDS, PREFIX
from llmrec.ranker.card import RANKER_FILE, RankerCard, read_card
from llmrec.ranker.contexts import ContextEncoder, Contexts, read, split_code
from llmrec.ranker.heads import HEADS, Compared, Head, RankHead, RetrieveHead, YesNoHead
from llmrec.ranker.item_encoder import ItemEncoder, ItemVectors, of_one_dimension
from llmrec.ranker.item_features import ItemFeatures
from llmrec.ranker.last_layer import compute_only_reads
from llmrec.ranker.packing import Batch, Request, compared, pack, pairs, plan, split, trunk_only, whole
from llmrec.ranker.precision import Precision, lower
from llmrec.ranker.prepack import prepack
from llmrec.ranker.prompts import Catalogue

HEAD_FILE = "head.safetensors"


class Scores(NamedTuple):
    """What a packed batch is scored for training; None where the head gives none.

    items: float32[B], of the item that ends at each read position. catalogue: the D positions that are compared,
    ascending, beside every item as the next.
    """

    items: torch.Tensor | None
    catalogue: Compared | None


class Ranker(nn.Module):
    """A backbone without its vocabulary head, a score head over read positions, and items as vectors if it has them.

    causal: whether the backbone is a decoder; batches for it are packed so. positions: how many positions a request may
    take (an encoder's learned table), None if any. frozen: the items' vectors, once they are not to change any more.
    contexts: what is learned of contexts, if it reads them as vectors. keep_embedded: whether a pass in training leaves
    the vectors that it read, whose gradient tells where they are most sensitive.
    """

    def __init__(
        self, backbone: PreTrainedModel, head: Head, tokenizer: PreTrainedTokenizerBase, card: RankerCard,
        items: ItemEncoder | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone, self.head, self.items = backbone, head, items
        self.frozen: ItemVectors | None = None
        self.contexts: ContextEncoder | None = None
        self.dropout = nn.Dropout(0.0)
        self.embedded: torch.Tensor | None = None  # what the last pass in training read, if that is asked for
        self.keep_embedded = False
        self.tokenizer, self.card = tokenizer, card
        self.vocabulary: int = backbone.config.vocab_size
        self.causal = is_causal(backbone)
        self.first_position, self.positions = _position_table(backbone)
        self.only_reads = compute_only_reads(layers_of(backbone)[-1])
        self.attend_by("cascade")

    def attend_by(self, attention: str) -> None:
        """Choose the attention backend, one of `attention.BACKENDS`."""
        self.backbone.set_attn_implementation(PREFIX + attention)
        self.attention = attention

    def only_score(self, precision: Precision, compiled: bool = False) -> None:
        """Make ready to score and no more: lower the layers' products to a precision, store their weights as a CPU
        reads them best, and, compiled, fuse what is between them.

        In place; the ranker can no longer be trained, saved or moved to another device.
        """
        if isinstance(self.head, YesNoHead):
            self.head.vocabulary = None
        layers = layers_of(self.backbone)
        lower(layers, precision)
        prepack(layers)
        if compiled:
            # The last layer has fewer rows behind its attention than before; it stays as it is.
            for layer in layers[:-1]:
                layer.compile(dynamic=True)

    def forward(self, batch: Batch, added: torch.Tensor | None = None) -> Scores:
        """Scores at the read positions of a packed batch, to train. added: [T, hidden], to what is read."""
        head, items, reads = self.head, self.vectors(), len(batch.read)
        if isinstance(head, RankHead):
            query, which = self._compared(batch)
            read = whole(batch.read)
            states = self.dropout(self.states(batch, items, torch.cat([read, whole(query)]), added))
            assert items is not None
            found = head.retrieve(states[len(read) :], items).first(len(query))
            corrected = found.pairs(which, self._rows(batch)) + head.branch(states[:reads])
            return Scores(corrected, found)
        states = self.dropout(self.states(batch, items, whole(batch.read), added))
        if isinstance(head, RetrieveHead):
            assert items is not None
            return Scores(None, head(states, items).first(reads))
        return Scores(head(states)[:reads], None)

    def score(self, batch: Batch) -> torch.Tensor:
        """float32[B]: the score of the item that ends at each read position; for all heads but `retrieve`."""
        head, items = self.head, self.vectors()
        if isinstance(head, RankHead):
            query, which = self._compared(batch)
            states = self.states(batch, items, torch.cat([batch.read, query]))
            assert items is not None
            users = states[len(batch.read) :][which]
            return head.retrieve.pairs(users, items, self._rows(batch)) + head.branch(states[: len(batch.read)])
        assert not isinstance(head, RetrieveHead)
        return head(self.states(batch, items))

    def states(
        self, batch: Batch, items: ItemVectors | None = None, read: torch.Tensor | None = None,
        added: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Last hidden states at the batch's read positions, or at others (int64[B]): [B, hidden].

        items: the items' vectors, if the caller has them already; added: [T, hidden], to what is read.
        """
        items, read = items or self.vectors(), batch.read if read is None else read
        embedded = self.dropout(self.embed(batch.token, items))
        embedded = embedded if added is None else embedded + added
        if self.keep_embedded and self.training:
            if not embedded.requires_grad:  # of words that do not learn
                embedded.requires_grad_()
            embedded.retain_grad()
            self.embedded = embedded
        hidden = self.backbone(
            inputs_embeds=embedded[None],
            position_ids=batch.position[None] + self.first_position,
            packed=BACKENDS[self.attention].layout(batch),
            read=read,
            use_cache=False,
        ).last_hidden_state[0]
        return hidden if self.only_reads else hidden[read]

    def embed(self, token: torch.Tensor, items: ItemVectors | None) -> torch.Tensor:
        """Input vectors [T, hidden] of tokens int64[T]; those from `vocabulary` on stand for items' vectors, and any
        token may have the code of a context in its upper bits."""
        words = self.backbone.get_input_embeddings()
        if items is None:
            return words(token)
        assert self.items is not None
        code = None
        if self.contexts is not None:
            code, token = split_code(token)
        flat, place = items.vectors.flatten(0, 1), token - self.vocabulary
        found = self.items.inputs(flat[place.clamp(min=0)])
        found = torch.where((place >= 0)[:, None], found, words(token.clamp(max=self.vocabulary - 1)))
        return found if self.contexts is None or code is None else self.contexts(found, code)

    def read_contexts(self, asked: pa.Table | None) -> Contexts | None:
        """Contexts as this ranker reads them; None if it reads none. asked: a column of texts for each that its prompt
        names, a row a decision."""
        return None if asked is None else read(asked, self.card.prompt, self.tokenizer, self.contexts)

    def vectors(self) -> ItemVectors | None:
        """The vectors of all items of the catalogue, if items are vectors."""
        return self.frozen or (None if self.items is None else self.items())

    def freeze_items(self) -> None:
        """Compute the items' vectors now and once for all passes, until `thaw_items`."""
        self.frozen = None if self.items is None else self.items.frozen()

    def thaw_items(self) -> None:
        self.frozen = None

    def bind(
        self, catalogue: Catalogue, features: ItemFeatures | None = None, trained: np.ndarray | None = None
    ) -> Catalogue:
        """Make ready for a catalogue, and return it in the form that this ranker packs.

        features: with items=token, what is known of each item, in the catalogue's order. trained: bool[n], the items
        that training sees events of, for a ranker that is to be trained (None: for a fresh one all).

        Raises:
            UserError: the features lack what the ranker was trained with.
        """
        if self.card.items == "text":
            return catalogue
        assert features is not None and len(features.ids) == len(catalogue.ids)
        words = _whole(self.backbone.get_input_embeddings().weight).detach()
        if self.items is None:
            seen = np.ones(len(features.ids), bool) if trained is None else trained
            length = float(words.norm(dim=-1).mean())
            self.items = ItemEncoder.fresh(features, self.card.parts, seen, words.shape[1], length).to(words.device)
        elif trained is None:
            self.items.to(words.device).bind(features)
        else:
            self.items.to(words.device).grow(features, trained)
        self.frozen = None
        return catalogue.as_item_tokens(self.vocabulary, self.items.k)

    def _compared(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The positions whose states the read items are compared with, ascending, and which of them each has."""
        assert self.items is not None
        return compared(batch, self.items.k).unique(return_inverse=True)

    def _rows(self, batch: Batch) -> torch.Tensor:
        """int64[B]: the catalogue rows of the items that are read."""
        assert self.items is not None
        return torch.div(batch.token[batch.read] - self.vocabulary, self.items.k, rounding_mode="floor")

    @staticmethod
    def from_base(
        model: Model,
        prompt: Prompt,
        directory: str,
        parts: int = 1,
        items: Items = Items(),  # noqa: B008 - frozen
    ) -> Ranker:
        """A ranker with an untouched backbone from a model directory or hub id.

        parts: this process holds one of so many parts of the layers, the rest lies in the other processes of
        torch.distributed's default group.

        Raises:
            UserError: the model cannot be loaded or packed, is an encoder and the head needs a decoder, or a yes-no
                label is not one token.
        """
        head: Head
        if model.head == "yes_no":
            lm, tokenizer = _load(AutoModelForCausalLM, directory, parts, model.pretrained)
            backbone = _cut_layers(lm.base_model, model.layers)
            _check_head(backbone, model)
            head = YesNoHead(_whole(lm.get_output_embeddings().weight), _label_ids(tokenizer, model.labels))
        else:
            backbone, tokenizer = _load(AutoModel, directory, parts, model.pretrained)
            backbone = _cut_layers(backbone, model.layers)
            _check_head(backbone, model)
            head = HEADS[model.head](backbone.config.hidden_size)
        card = RankerCard(
            base=model.base, layers=len(layers_of(backbone)), items=model.items, parts=items, head=model.head,
            labels=model.labels, prompt=prompt, trained=False, packing="branches" if is_causal(backbone) else "pairs",
        )  # fmt: skip
        return Ranker(backbone, head, tokenizer, card)

    @staticmethod
    def from_pretrained(directory: str | Path, parts: int = 1, layers: int | None = None) -> Ranker:
        """A ranker that `save_pretrained` wrote; gives equal scores, unless only its first `layers` are kept. parts: as
        in `from_base`.

        Raises:
            UserError: the directory holds no ranker, or one of fewer layers.
        """
        directory = Path(directory)
        card = read_card(directory)
        if layers is not None:
            card = card.model_copy(update={"layers": layers})
        backbone, tokenizer = _load(AutoModel, str(directory), parts)
        backbone = _cut_layers(backbone, card.layers)
        head = HEADS[card.head](backbone.config.hidden_size)
        head.load_state_dict(of_one_dimension(load_file(directory / HEAD_FILE)))
        items = ItemEncoder.from_pretrained(directory) if card.items == "token" else None
        ranker = Ranker(backbone, head, tokenizer, card, items)
        ranker.contexts = ContextEncoder.from_pretrained(directory)
        return ranker

    def save_pretrained(self, directory: str | Path, model_card: str) -> None:
        """Write backbone and tokenizer as transformers does, head, item vectors, `ranker.json` and a model card.

        The backbone is saved without its vocabulary head, which scoring does not read.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.backbone.save_pretrained(directory)
        self.tokenizer.save_pretrained(str(directory))
        save_file({k: v.contiguous() for k, v in self.head.state_dict().items()}, directory / HEAD_FILE)
        if self.items is not None:
            self.items.save_pretrained(directory)
        if self.contexts is not None:
            self.contexts.save_pretrained(directory)
        (directory / RANKER_FILE).write_text(json.dumps(self.card.model_dump(), indent=2) + "\n")
        (directory / "README.md").write_text(model_card)


def score_requests(
    ranker: Ranker, requests: Sequence[Request], batch_tokens: int, progress: Callable[[int], None] | None = None
) -> list[torch.Tensor]:
    """Score requests packed by token budget: float32[N] on the CPU for each, in the requests' order.

    Requests larger than the budget are split, their trunk computed once per piece, and merged again. progress: told
    after each batch how many candidates it scored.
    """
    retrieve = isinstance(ranker.head, RetrieveHead)
    done: list[tuple[list[Piece], list[int], torch.Tensor]] = []
    device = next(ranker.parameters()).device
    ranker.eval()
    with torch.inference_mode():
        for group, batch in batches(ranker, requests, batch_tokens):
            counts = [len(requests[p.request].branches) if retrieve else p.reads for p in group]
            if retrieve:
                candidates = np.concatenate([requests[p.request].branches.values for p in group])
                flat = _retrieve_scores(ranker, ranker.states(batch.to(device)), candidates, counts)
            else:
                flat = ranker.score(batch.to(device))
            done.append((group, counts, flat.float()))
            if progress is not None:
                progress(sum(counts))
    # Fetched last, so that a GPU computes one batch while the next is packed.
    merged: list[dict[int, torch.Tensor]] = [{} for _ in requests]
    for group, counts, flat in done:
        for piece, part in zip(group, flat.cpu().split(counts), strict=True):
            merged[piece.request][piece.number] = part
    return [torch.cat([parts[i] for i in sorted(parts)]) if parts else torch.empty(0) for parts in merged]


class Piece(NamedTuple):
    """What a batch holds of a request, by numbers: which request, which of its pieces, and how many rows are read."""

    request: int
    number: int
    reads: int


def batches(ranker: Ranker, requests: Sequence[Request], batch_tokens: int) -> Iterator[tuple[list[Piece], Batch]]:
    """Requests in batches of a token budget, longest first, each batch with what is in it."""
    pieces = [
        (Piece(i, n, piece.reads), piece)
        for i, request in enumerate(requests)
        for n, piece in enumerate(_pieces(ranker, request, batch_tokens))
    ]
    for group in plan([piece.tokens for _, piece in pieces], batch_tokens):
        yield [pieces[j][0] for j in group], pack([pieces[j][1] for j in group], ranker.causal)


def score_pair_by_pair(ranker: Ranker, request: Request) -> torch.Tensor:
    """The slow way: every candidate in a sequence of its own, transformers' own attention, float32.

    Returns float32[N]. The reference that packed scores are held against. The sequence is an ordinary one, but for an
    encoder that was trained on branches: there the trunk's tokens do not see the candidate.
    """
    head = ranker.head
    rows = candidate_rows(ranker, request.branches.values)
    with torch.inference_mode():
        if isinstance(head, RetrieveHead):
            users = last_states(ranker, request, without_item=True)
            return head.pairs(users, item_vectors(ranker), rows).float().cpu()
        if isinstance(head, RankHead):
            ends, users = (last_states(ranker, request, without_item=w) for w in (False, True))
            return (head.retrieve.pairs(users, item_vectors(ranker), rows) + head.branch(ends)).float().cpu()
        return head(last_states(ranker, request)).float().cpu()


def last_states(ranker: Ranker, request: Request, without_item: bool = False) -> torch.Tensor:
    """[N, hidden]: the state at the end of each candidate, or of what it sees without itself, computed without packing,
    one pair after another."""
    device = next(ranker.parameters()).device
    blind = not ranker.causal and ranker.card.packing == "branches"
    ranker.eval()
    ranker.backbone.set_attn_implementation("eager")
    states = [torch.empty(0, ranker.backbone.config.hidden_size, device=device)]
    try:
        with torch.inference_mode():
            items = ranker.vectors()
            for i in range(len(request.branches)):
                seen = request.trunk[: int(request.attach[i]) + 1]
                tokens = seen if without_item else np.concatenate([seen, request.branches[i]])
                inputs = ranker.embed(torch.from_numpy(tokens.astype(np.int64)).to(device), items)[None]
                hidden = ranker.backbone(
                    inputs_embeds=inputs, attention_mask=_blind_trunk(len(seen), inputs) if blind else None,
                    use_cache=False,
                ).last_hidden_state  # fmt: skip
                states.append(hidden[0, -1:])
    finally:
        ranker.attend_by(ranker.attention)
    return torch.cat(states)


def layers_of(backbone: Any) -> Any:
    """The nn.ModuleList of a backbone's layers, whatever the model calls it; None if it has none that is known."""
    return getattr(backbone, "layers", getattr(getattr(backbone, "encoder", None), "layer", None))


def is_causal(backbone: Any) -> bool:
    """Whether a backbone's tokens see only what is before them, as its own attention says."""
    return all(getattr(module, "is_causal", True) for module in layers_of(backbone).modules())


def _pieces(ranker: Ranker, request: Request, batch_tokens: int) -> list[Request]:
    """What is packed of a request; its reads, one piece after another, are its scores."""
    if isinstance(ranker.head, RetrieveHead):
        return [trunk_only(request)]
    return pairs(request) if ranker.card.packing == "pairs" else split(request, batch_tokens)


def _blind_trunk(trunk: int, inputs: torch.Tensor) -> torch.Tensor:
    """float[1, 1, L, L], added to the attention's weights: the first `trunk` of L tokens do not see the others.

    inputs: [1, L, hidden], for its length, dtype and device.
    """
    length = inputs.shape[1]
    mask = inputs.new_zeros(1, 1, length, length)
    mask[..., :trunk, trunk:] = torch.finfo(mask.dtype).min
    return mask


def _retrieve_scores(ranker: Ranker, states: torch.Tensor, candidates: np.ndarray, counts: list[int]) -> torch.Tensor:
    """float32[sum of counts]: each user's state ([R, hidden]) against his own candidates (their tokens)."""
    assert isinstance(ranker.head, RetrieveHead)
    user = torch.repeat_interleave(torch.tensor(counts, device=states.device))
    return ranker.head.pairs(states[user], item_vectors(ranker), candidate_rows(ranker, candidates))


def candidate_rows(ranker: Ranker, tokens: np.ndarray) -> torch.Tensor:
    """int64[N]: the catalogue rows of N candidates of as many tokens each as an item has."""
    if ranker.items is None:
        return torch.empty(0, dtype=torch.int64)
    first = tokens.astype(np.int64)[:: ranker.items.k]
    return (torch.from_numpy(first).to(next(ranker.parameters()).device) - ranker.vocabulary) // ranker.items.k


def item_vectors(ranker: Ranker) -> ItemVectors:
    found = ranker.vectors()
    assert found is not None
    return found


def load_tokenizer(directory: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory or hub id.

    Raises:
        UserError: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(directory)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"the tokenizer of model '{directory}' cannot be loaded: {str(error).splitlines()[0]}"
        ) from None


def _load(kind: Any, directory: str, parts: int, pretrained: bool = True) -> tuple[Any, PreTrainedTokenizerBase]:
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        config = AutoConfig.from_pretrained(directory)
        if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
            raise UserError(
                f"{directory}: uses sliding-window attention, which cannot be packed; choose another backbone"
            )
        if hasattr(config, "attention_probs_dropout_prob"):
            config.attention_probs_dropout_prob = 0.0  # FlexAttention has none, and all backends train alike
        split = {}
        if parts > 1:
            heads = {config.num_attention_heads, getattr(config, "num_key_value_heads", config.num_attention_heads)}
            if any(n % parts for n in heads):
                raise UserError(
                    f"score.tensor_parallel = {parts}: does not divide the attention heads of {directory}, "
                    f"{' and '.join(str(n) for n in sorted(heads))}"
                )
            split["distributed_config"] = DistributedConfig(tp_size=parts, tp_plan="auto")
        if pretrained:
            model = kind.from_pretrained(directory, config=config, dtype=torch.float32, **split)
        else:
            model = kind.from_config(config, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"model '{directory}' cannot be loaded: {str(error).splitlines()[0]}") from None
    tokenizer = load_tokenizer(directory)
    backbone = model.base_model
    if layers_of(backbone) is None or not backbone._supports_attention_backend:
        raise UserError(
            f"model '{directory}' ({type(model).__name__}) cannot be packed: it has no list of layers, or attention of "
            "its own; choose a decoder or an encoder like BERT or RoBERTa"
        )
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None  # a weight that no score depends on has no gradient, which DDP does not bear
    return model, tokenizer


def _whole(weight: torch.Tensor) -> torch.Tensor:
    """A weight that may be split over processes, put together in each."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def _cut_layers(backbone: Any, layers: int | None) -> Any:
    if layers is not None:
        if layers > len(layers_of(backbone)):
            raise UserError(f"model.layers = {layers}: this backbone has only {len(layers_of(backbone))}")
        del layers_of(backbone)[layers:]
        backbone.config.num_hidden_layers = layers
        if getattr(backbone.config, "layer_types", None):
            backbone.config.layer_types = backbone.config.layer_types[:layers]
    return backbone


def _check_head(backbone: Any, model: Model) -> None:
    if model.head != "linear" and not is_causal(backbone):
        raise UserError(
            f"model.head = {model.head} needs a decoder, and {model.base} is an encoder; set model.items = text and "
            "model.head = linear"
        )


def _position_table(backbone: Any) -> tuple[int, int | None]:
    """The first position of a learned table, and how many it has from there on; (0, None) for one without a table."""
    embeddings = getattr(backbone, "embeddings", None)
    table = getattr(embeddings, "position_embeddings", None)
    if table is None:
        return 0, None
    first = getattr(embeddings, "padding_idx", -1) + 1  # RoBERTa counts from behind its padding token's id
    return first, table.num_embeddings - first


def _label_ids(tokenizer: PreTrainedTokenizerBase, labels: tuple[str, str]) -> tuple[int, int]:
    ids = []
    for label in labels:
        tokens = tokenizer(label, add_special_tokens=False)["input_ids"]
        if len(tokens) != 1:
            raise UserError(f"model.labels: {label!r} is {len(tokens)} tokens in this tokenizer; choose a label of one")
        ids.append(tokens[0])
    return ids[0], ids[1]
