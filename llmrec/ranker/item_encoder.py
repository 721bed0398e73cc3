"""From what is known of an item to its vectors in the backbone's input space."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from llmrec.config import Items
from llmrec.errors import UserError
from llmrec.ranker.item_features import ItemFeatures
from llmrec.ranker.ridge import ridge

WEIGHTS_FILE, IDS_FILE, PARTS_FILE = "items.safetensors", "items.parquet", "items.json"
LEARNED_STD = 0.02
COMMON = 2  # a category that fewer items have cannot be learned apart from the item itself
ROWS_AT_ONCE = 1 << 16
FORETOLD_FROM = 100_000  # items at most, by which what is learned of one is foretold
FORETOLD_PENALTY = 1.0  # on the weights of that regression
START_LENGTH = 1.0  # mean length of learned parts that start from vectors; about that of an untrained text part
START_GATES = {"graph": 0.25}  # items of the same edges share a vector: it must not hide what tells them apart
VECTOR_LENGTH = 20**0.5  # mean length of a part's vectors where they enter its network: some units a neuron


class ItemVectors(NamedTuple):
    """n items as the backbone reads them. vectors: float32[n, k, hidden]; bias: float32[n], how much an item is liked
    whatever the user."""

    vectors: torch.Tensor
    bias: torch.Tensor

    def direction(self, rows: torch.Tensor | None = None) -> torch.Tensor:
        """[m, hidden], what a user's state is compared with: the mean of an item's vectors, of length 1."""
        vectors = self.vectors if rows is None else self.vectors[rows]
        return nn.functional.normalize(vectors.float().mean(-2), dim=-1)


def of_one_dimension(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Saved weights, of which older ones have scalars."""
    return {name: weight.reshape(1) if weight.dim() == 0 else weight for name, weight in weights.items()}


class ItemEncoder(nn.Module):
    """The sum of an item's parts, each projected, each with a learned gate: k vectors an item.

    Parts of frozen vectors (a text's embedding, an image's, a graph's) go through a small network, categories and
    numbers through tables and another; an id embedding learns what none of them says. A part that an item lacks adds
    nothing. An item that training has not seen has the mean bias and, once training is over, the id embedding that its
    other parts foretell.
    Follows CoLLM (Zhang et al., 2023) in mapping other models' embeddings into the input space of a language model, and
    MixLM (2025) in giving an item few vectors in place of its text.
    """

    foretold: torch.Tensor
    foretold_offset: torch.Tensor

    def __init__(self, plan: Mapping[str, Any]) -> None:
        """plan: what `planned` says of the parts."""
        super().__init__()
        hidden, length = int(plan["hidden"]), float(plan["length"])
        self.plan, self.k, self.hidden = dict(plan), int(plan["per_item"]), hidden
        width = self.k * hidden
        self.frozen_parts = nn.ModuleDict(
            {n: _VectorPart(size, hidden, width, START_GATES.get(n, 1.0)) for n, size in plan["vectors"].items()}
        )
        self.categories = nn.ModuleDict(
            {name: _CategoryPart(len(words), width) for name, words in plan["categories"].items() if words}
        )
        self.numbers = _NumberPart(len(plan["numbers"]), hidden, width) if plan["numbers"] else None
        self.ids: pa.Array = pa.array([], pa.int64())
        self.own = nn.Parameter(torch.randn(plan["items"], width) * LEARNED_STD) if plan["id"] else None
        self.bias = nn.Parameter(torch.zeros(plan["items"]))
        if plan["id"]:
            self.register_buffer("foretold", torch.zeros(width, width))
            self.register_buffer("foretold_offset", torch.zeros(width))
        self.norm, self.scale = nn.LayerNorm(hidden), length / hidden**0.5
        self.own_dropout = 0.0  # share of items that a pass in training knows without what is learned of each
        self.features: _Bound | None = None

    @staticmethod
    def fresh(features: ItemFeatures, settings: Items, trained: np.ndarray, hidden: int, length: float) -> ItemEncoder:
        """An untrained encoder, drawn from the global torch generator and bound to these items.

        trained: bool[n], the items that training will see an event of; the others are as unknown to it as items that
        come later. hidden: dimensions of a vector; length: of the vectors that the backbone is used to.
        """
        encoder = ItemEncoder(planned(features, settings, trained) | {"hidden": hidden, "length": length})
        encoder.ids = features.ids.filter(pa.array(trained))
        for name, part in encoder.frozen_parts.items():
            assert isinstance(part, _VectorPart)
            part.fit(features.vectors[name], features.present[name])
        if encoder.numbers is not None:
            encoder.numbers.fit(_stacked(features, encoder.plan["numbers"]))
        encoder.bind(features)
        return encoder

    def start_from(self, vectors: np.ndarray) -> None:
        """Let what is learned of each item begin at these vectors, turned at random into the backbone's space.

        vectors: float32[n, d] of the bound items; one of zeros leaves its item at random. Meant for an untrained
        encoder: what was learned is lost.
        """
        assert self.own is not None and self.features is not None
        found, known = torch.from_numpy(vectors[:, : self.hidden]), self.features.known.cpu()
        there = (known >= 0) & found.any(dim=1)
        turned = found[there] @ torch.linalg.qr(torch.randn(self.hidden, found.shape[1]))[0].T
        turned = turned * START_LENGTH / turned.norm(dim=1).mean()
        with torch.no_grad():
            self.own[known[there]] = turned.repeat(1, self.k).to(self.own)

    def bind(self, features: ItemFeatures) -> None:
        """Encode these items from now on. What was learned of an item is found again by its id.

        Raises:
            UserError: a part that the encoder was trained with is missing, of another size, or another encoder's.
        """
        self._check(features)
        rows = pa.compute.index_in(features.ids, self.ids).fill_null(-1).to_numpy(zero_copy_only=False)
        self.features = _Bound(features, self.plan, rows.astype(np.int64)).to(self.bias.device)

    @torch.no_grad()
    def grow(self, features: ItemFeatures, trained: np.ndarray) -> None:
        """Encode these items from now on, and learn of those that training will see and has not seen before: each
        begins where its other parts foretell it. trained: bool[n].

        Raises:
            UserError: as of `bind`.
        """
        self.bind(features)
        assert self.features is not None
        new = (self.features.known.cpu() < 0) & torch.from_numpy(trained)
        if not new.any():
            return
        if self.own is not None:
            there = new.to(self.own.device)
            blocks = (slice(start, start + ROWS_AT_ONCE) for start in range(0, len(new), ROWS_AT_ONCE))
            others = torch.cat([self._without_own(block)[there[block]] for block in blocks])
            self.own = nn.Parameter(torch.cat([self.own, others @ self.foretold + self.foretold_offset]))
        self.bias = nn.Parameter(torch.cat([self.bias, self.bias.mean().expand(int(new.sum()))]))
        self.ids = pa.concat_arrays([self.ids, features.ids.filter(pa.array(new.numpy()))])
        self.plan["items"] = len(self.ids)
        self.bind(features)

    def _apply(self, fn: Any, recurse: bool = True) -> ItemEncoder:
        super()._apply(fn, recurse)
        if self.features is not None:  # which goes where the weights go
            self.features.to(self.bias.device)
        return self

    def forward(self, start: int = 0, stop: int | None = None) -> ItemVectors:
        """The vectors of the bound items start..stop."""
        assert self.features is not None
        there = slice(start, stop)
        known = self.features.known[there]
        seen = known >= 0
        if self.training and self.own_dropout:
            seen = seen & (torch.rand(len(known), device=known.device) >= self.own_dropout)
        total = self._without_own(there)
        if self.own is not None:
            own = self.own[known.clamp(min=0)] * seen[:, None]
            if not self.training:
                own[~seen] = total[~seen] @ self.foretold + self.foretold_offset
            total = total + own
        bias = torch.where(seen, self.bias[known.clamp(min=0)], self.bias.mean())
        return ItemVectors(total.unflatten(1, (self.k, self.hidden)), bias)

    def _without_own(self, there: slice) -> torch.Tensor:
        """[m, k * hidden]: the parts of the bound items `there` that are not learned of each."""
        assert self.features is not None
        total = self.bias.new_zeros(len(self.features.known[there]), self.k * self.hidden)
        for name, part in self.frozen_parts.items():
            total = total + part(self.features.part(name, there), self.features.present(name, there))
        for name, part in self.categories.items():
            total = total + part(*self.features.words(name, there))
        if self.numbers is not None:
            total = total + self.numbers(self.features.numbers[there])
        return total

    @torch.no_grad()
    def foretell(self) -> None:
        """From now on an item that training has not seen has, in place of what is learned of each, what its other parts
        foretell of it: by a regression over the bound items (Gantner et al., 2010). Else new items would point where no
        user does. To be called once, when training is over.
        """
        assert self.features is not None
        known = self.features.known
        rows = torch.nonzero(known >= 0)[:, 0]
        if self.own is None or not len(rows):
            return
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:FORETOLD_FROM]]
        chosen = torch.zeros(len(known), dtype=torch.bool, device=known.device)
        chosen[rows] = True
        blocks = (slice(start, start + ROWS_AT_ONCE) for start in range(0, len(known), ROWS_AT_ONCE))
        others = torch.cat([self._without_own(there)[chosen[there]] for there in blocks])
        self.foretold, self.foretold_offset = ridge(others, self.own[known[chosen]], FORETOLD_PENALTY)

    def tables(self) -> list[nn.Parameter]:
        """What is learned row by row, of items and categories: a row sees few events, so that it may learn faster."""
        own = [self.bias] if self.own is None else [self.bias, self.own]
        return own + list(self.categories.parameters())

    def inputs(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors [..., hidden] as the backbone takes them, of about the length of its words."""
        return self.norm(vectors.float()) * self.scale

    def __len__(self) -> int:
        """How many items are bound."""
        return 0 if self.features is None else len(self.features.known)

    def in_blocks(self) -> Iterator[tuple[int, ItemVectors]]:
        """All bound items' vectors without gradient, some at a time, each time with the first one's row."""
        training = self.training
        self.eval()
        for start in range(0, len(self), ROWS_AT_ONCE):
            with torch.no_grad():
                yield start, self(start, start + ROWS_AT_ONCE)
        self.train(training)

    def frozen(self) -> ItemVectors:
        """All bound items' vectors without gradient."""
        parts = [found for _, found in self.in_blocks()]
        return ItemVectors(torch.cat([p.vectors for p in parts]), torch.cat([p.bias for p in parts]))

    def save_pretrained(self, directory: Path) -> None:
        tensors = {k: v.detach().float().cpu().contiguous() for k, v in self.state_dict().items()}
        save_file(tensors, directory / WEIGHTS_FILE)
        pq.write_table(pa.table({"item_id": self.ids}), directory / IDS_FILE)
        (directory / PARTS_FILE).write_text(json.dumps(self.plan, indent=1) + "\n")

    @staticmethod
    def from_pretrained(directory: Path) -> ItemEncoder:
        """An encoder that is bound to no items yet."""
        plan = json.loads((directory / PARTS_FILE).read_text())
        encoder = ItemEncoder(plan)
        encoder.ids = pq.read_table(directory / IDS_FILE)["item_id"].combine_chunks()
        encoder.load_state_dict(of_one_dimension(load_file(directory / WEIGHTS_FILE)))
        return encoder

    def _check(self, features: ItemFeatures) -> None:
        for name, size in self.plan["vectors"].items():
            found = features.vectors.get(name)
            if found is None or found.shape[1] != size:
                what = "is not there" if found is None else f"has {found.shape[1]} dimensions"
                raise UserError(
                    f"items: the part '{name}' {what}, and this ranker was trained with {size} dimensions of it; run "
                    "jobs/embed.py with the settings it was trained with, or bring the column back"
                )
        for name, trained in (("text", self.plan["revision"]), ("image", self.plan.get("image_revision"))):
            revision = features.revisions.get(name)
            if name in self.plan["vectors"] and revision != trained:
                raise UserError(
                    f"items: embeddings made by {name} encoder revision {revision or 'none'}, this ranker was trained "
                    f"with {trained}; run jobs/embed.py with the encoder it was trained with, or train again"
                )


def planned(features: ItemFeatures, settings: Items, trained: np.ndarray) -> dict[str, Any]:
    """What an encoder of these features holds: JSON that is saved beside its weights."""
    image = {"image_revision": features.revisions["image"]} if "image" in features.revisions else {}
    return image | {
        "items": int(trained.sum()),
        "id": settings.id,
        "per_item": settings.per_item,
        "vectors": {name: int(found.shape[1]) for name, found in features.vectors.items()},
        "categories": {name: _common(lists.filter(pa.array(trained))) for name, lists in features.categories.items()},
        "numbers": list(features.numbers),
        "revision": features.revisions.get("text", ""),
    }


class _VectorPart(nn.Module):
    """Frozen vectors [m, d], centred and scaled, through a network of one hidden layer, times a gate."""

    def __init__(self, size: int, hidden: int, width: int, gate: float) -> None:
        super().__init__()
        self.centre: torch.Tensor
        self.scale: torch.Tensor
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("scale", torch.ones(()))
        self.layers = nn.Sequential(nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.gate = nn.Parameter(torch.tensor([gate]))

    def fit(self, vectors: np.ndarray, present: np.ndarray) -> None:
        """Take centre and scale from a catalogue."""
        there = torch.from_numpy(np.ascontiguousarray(vectors[present]))
        if len(there):
            self.centre = there.mean(0)
            self.scale = VECTOR_LENGTH / (there - self.centre).norm(dim=1).mean().clamp(min=1e-6)

    def forward(self, vectors: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        return self.gate * self.layers((vectors - self.centre) * self.scale) * present[:, None]


class _CategoryPart(nn.Module):
    """The mean of what is learned of an item's categories, times a gate."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(words, width, mode="mean")
        nn.init.normal_(self.table.weight, std=LEARNED_STD)
        self.gate = nn.Parameter(torch.ones(1))

    def forward(self, words: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        return self.gate * self.table(words, offsets)


class _NumberPart(nn.Module):
    """Numbers, standardised, 0 where missing and with a flag that says so, through a network."""

    def __init__(self, columns: int, hidden: int, width: int) -> None:
        super().__init__()
        self.centre: torch.Tensor
        self.scale: torch.Tensor
        self.register_buffer("centre", torch.zeros(columns))
        self.register_buffer("scale", torch.ones(columns))
        self.layers = nn.Sequential(nn.Linear(2 * columns, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.gate = nn.Parameter(torch.ones(1))

    def fit(self, numbers: np.ndarray) -> None:
        with np.errstate(all="ignore"):
            there = ~np.isnan(numbers)
            count = np.maximum(there.sum(0), 1)
            centre = np.where(there, numbers, 0).sum(0) / count
            spread = np.sqrt(np.where(there, (numbers - centre) ** 2, 0).sum(0) / count)
        self.centre = torch.from_numpy(centre.astype(np.float32))
        self.scale = torch.from_numpy((1 / np.maximum(spread, 1e-6)).astype(np.float32))

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        missing = numbers.isnan()
        plain = ((numbers - self.centre) * self.scale).masked_fill(missing, 0.0).clamp(-10, 10)
        found = self.layers(torch.cat([plain, missing.float()], dim=1))
        return self.gate * found * ~missing.all(dim=1, keepdim=True)


class _Bound:
    """The features of a catalogue as tensors on the encoder's device. known: int64[n], an item's row among those that
    training saw, -1 if it did not."""

    def __init__(self, features: ItemFeatures, plan: Mapping[str, Any], known: np.ndarray) -> None:
        self.known = torch.from_numpy(known)
        self._parts = {n: (_tensor(features.vectors[n]), _tensor(features.present[n])) for n in plan["vectors"]}
        self._words = {n: _word_rows(features.categories[n], w) for n, w in plan["categories"].items()}
        self.numbers = torch.from_numpy(_stacked(features, plan["numbers"]))

    def to(self, device: torch.device) -> _Bound:
        self.known, self.numbers = self.known.to(device), self.numbers.to(device)
        self._parts = {n: (v.to(device), p.to(device)) for n, (v, p) in self._parts.items()}
        self._words = {n: (w.to(device), o.to(device)) for n, (w, o) in self._words.items()}
        return self

    def part(self, name: str, there: slice) -> torch.Tensor:
        return self._parts[name][0][there]

    def present(self, name: str, there: slice) -> torch.Tensor:
        return self._parts[name][1][there]

    def words(self, name: str, there: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """int64 values and int64[m] offsets of these items' categories."""
        values, offsets = self._words[name]
        first, stop, _ = there.indices(len(offsets) - 1)
        bounds = offsets[first : stop + 1]
        return values[bounds[0] : bounds[-1]], bounds[:-1] - bounds[0]


def _tensor(array: np.ndarray) -> torch.Tensor:
    """Without a copy where that is possible; a memory map is read only, and nothing here writes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(array))


def _stacked(features: ItemFeatures, names: Sequence[str]) -> np.ndarray:
    """float32[n, columns], NaN where missing."""
    columns = []
    for name in names:
        if name not in features.numbers:
            raise UserError(f"items: no numbers '{name}', which this ranker was trained with; set items.numbers")
        columns.append(features.numbers[name])
    return np.stack(columns, axis=1) if columns else np.empty((len(features.ids), 0), np.float32)


def _common(lists: pa.Array) -> list[str]:
    """The categories that these items have several times, ascending."""
    counted = pa.compute.value_counts(lists.flatten().drop_null())
    words = counted.field("values").filter(pa.compute.greater_equal(counted.field("counts"), COMMON))
    return sorted(word for word in words.to_pylist() if word)


def _word_rows(lists: pa.Array, words: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Each item's known categories as rows of the table: int64 values, int64[n + 1] offsets."""
    rows = pa.compute.index_in(lists.flatten(), pa.array(words, pa.string())).fill_null(-1)
    flat = rows.to_numpy(zero_copy_only=False).astype(np.int64)
    lengths = pa.compute.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
    item = np.repeat(np.arange(len(lists)), lengths)[flat >= 0]
    offsets = np.searchsorted(item, np.arange(len(lists) + 1))
    return torch.from_numpy(flat[flat >= 0]), torch.from_numpy(offsets)
