"""The one configuration object: every setting, its default and what it may be.

Values come, weakest first, from the defaults here, a YAML file (local or s3://), environment variables
(`LLMREC_SCORE__TOP_K=20`) and the command line (`--score.top_k 20`). It is read once, is frozen, and functions get
only the section that they need.
"""

from __future__ import annotations

import math
import os
import re
import string
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, CliSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from llmrec import storage
from llmrec.errors import UserError

TIME = "time:"
DERIVED = ("hour", "weekday", "part_of_day", "month")


def context_name(wanted: str) -> str:
    """What a context that `data.context` names is called in tables and templates."""
    return wanted.removeprefix(TIME)


def _none(value: Any) -> bool:
    """Left out of what is written and hashed, so that who does not use a setting has the hashes of before it was."""
    return not value


Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Columns(Section):
    """What the columns of the input are called. `event` is read with data.event_weights alone."""

    user: str = "user_id"
    item: str = "item_id"
    timestamp: str = "timestamp"
    title: str = "title"
    event: str = Field(
        "event",
        exclude_if=lambda value: value == "event",
        description="kinds of events: texts, whole numbers or booleans",
    )


class Data(Section):
    """What prepare reads and how it cleans and splits."""

    items: str = Field("", description="Parquet file or directory of items")
    interactions: str = Field("", description="Parquet file or directory of the log")
    users: str = Field("", description="Parquet file or directory of user attributes; empty for none")
    edges: str = Field(
        "", description="Parquet file or directory of a knowledge graph's edges from items: head (an item's id), "
        "relation, tail and, if you have it, weight; empty for none"
    )  # fmt: skip
    columns: Columns = Columns()
    event_weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        {}, exclude_if=_none, description="kinds of events and what each counts, such as {view: 0.2, buy: 1}; 0: the "
        "kind is dropped; empty: all events count the same, and columns.event is not read"
    )  # fmt: skip
    target_events: tuple[str, ...] = Field(
        (), exclude_if=_none, description="kinds of event_weights that held-out truth may be, such as buy; empty: any"
    )  # fmt: skip
    context: tuple[str, ...] = Field(
        (), exclude_if=_none, description="columns of the log that say what an event happened in, known before its "
        "item is (place, device, weather ...): texts, whole numbers or booleans; and time:hour, time:weekday, "
        "time:part_of_day, time:month, in UTC"
    )  # fmt: skip
    requests: str = Field(
        "", exclude_if=_none, description="split=none: Parquet file or directory with a user's id and the context that "
        "he is to be ranked in, one row a user; empty for none"
    )  # fmt: skip
    new_users: bool = Field(
        True,
        description="who is in users or requests and has no clean events in the log, or fewer than min_user_events, is "
        "ranked too, without a history",
    )
    min_user_events: Count = Field(1, description="users with fewer clean events are set aside; 1: nobody is")
    min_timestamp: int = Field(1, description="unix seconds; earlier events are impossible")
    max_timestamp: int = Field(4_102_444_800, description="unix seconds (2100-01-01); later events are impossible")
    split: Literal["leave_one_out", "time", "none"] = "leave_one_out"
    test_share: Share = Field(0.1, description="split=time: newest share of all events, for test")
    validation_share: Share = Field(0.1, description="split=time: newest share of the rest, for validation")
    buckets: Annotated[int, Field(ge=1, le=100_000)] = Field(16, description="units of work; about 10,000 users each")
    max_bad_share: Share = Field(0.1, description="more bad rows than this stop the job before it writes a table")

    @model_validator(mode="after")
    def _events(self) -> Data:
        if self.event_weights and not any(self.event_weights.values()):
            raise ValueError("event_weights drops every kind of event; give one at least a weight above 0")
        for kind in self.target_events:
            if not self.event_weights.get(kind):
                raise ValueError(f"target_events names '{kind}', to which event_weights gives no weight above 0")
        return self

    @model_validator(mode="after")
    def _contexts(self) -> Data:
        names = [context_name(wanted) for wanted in self.context]
        for wanted, name in zip(self.context, names, strict=True):
            if wanted.startswith(TIME) and name not in DERIVED:
                raise ValueError(f"context names '{wanted}'; of the time there are {TIME}{f', {TIME}'.join(DERIVED)}")
            if names.count(name) > 1:
                raise ValueError(f"context has '{name}' more than once; rename the column, or leave one out")
            if wanted in (self.columns.user, self.columns.item):
                raise ValueError(f"context names '{wanted}', whose value a request for recommendations is about")
        if self.requests and not self.context:
            raise ValueError("requests brings the context of users; name its columns in context")
        if self.requests and self.split != "none":
            raise ValueError(
                f"requests goes with split = none: with split = {self.split} users are ranked in the context of their "
                "first held-out event"
            )
        return self


class Feedback(Section):
    """What came of published rankings. Users, items and times are called as in data.columns; a column run_id, if there
    is one, says of which run an impression is."""

    impressions: str = Field(
        "", description="Parquet file or directory of what users were shown, one row an item: user, item, time, "
        "position and outcome; prepare then reads what was taken beside the log; empty for none"
    )  # fmt: skip
    position: str = Field("position", description="column of whole numbers: the place in the list, 1 the first")
    outcome: str = Field("outcome", description="column: true, or above 0, where the user took the item")
    event: str = Field("", description="with data.event_weights: which of its kinds an outcome is")
    correction: Literal["inverse_propensity", "none"] = Field(
        "inverse_propensity", description="an outcome counts one over how probable it is that its place is looked at; "
        "none: every outcome counts the same"
    )  # fmt: skip
    examination: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (), description="how probable it is that each place is looked at, if you know from an experiment, the last one "
        "for all behind it; empty: estimated from the impressions"
    )  # fmt: skip
    positions: Count = Field(50, description="places that are told apart; those behind count as the last")
    max_weight: Annotated[float, Field(ge=1)] = Field(10.0, description="an outcome counts so much at most")


class Prompt(Section):
    """How a user and an item become text. Placeholders name columns of the items and users tables."""

    item: str = Field(
        "{title}",
        description="text of an item; {edges} is what the knowledge graph says of it, {edges:RELATION} of one "
        "relation; {augmentation} is what augment wrote of it",
    )
    user: str = Field(
        "", description="text of a user's attributes, before the history; {interests} is what augment wrote of him"
    )
    before_history: str = "Films watched, oldest first:\n"
    before_item: str = " "
    after_item: str = Field("\n", description="ends an item of the history")
    before_candidate: str = Field("", description="head=yes_no: put before the item; else empty")
    after_candidate: str = Field("", description="head=yes_no: the question; else empty")
    context: str = Field(
        "", exclude_if=_none, description="what a user is asked about in, after the history; placeholders name what "
        "data.context does"
    )  # fmt: skip
    context_as: Literal["auto", "text", "vectors"] = Field(
        "auto", exclude_if=lambda value: value == "auto", description="vectors: the sum of one learned for each value, "
        "for model.items = token; text: its tokens, which what a user typed has to be; auto: vectors where items are"
    )  # fmt: skip
    max_context_tokens: Count = Field(
        64, exclude_if=lambda value: value == 64, description="of that text; a longer one is cut"
    )
    max_history: Count = Field(60, description="newest events kept in the trunk")
    max_edges: Count = Field(20, description="heaviest edges that {edges} and {edges:RELATION} tell of an item")
    max_item_tokens: Count = Field(32, description="longer item texts are cut, and counted")


class Model(Section):
    """The backbone and its head."""

    base: str = Field(
        "smollm2-135m-instruct",
        description="decoder or encoder: an asset's name, a directory, an s3:// prefix or a hub id",
    )
    layers: Count | None = Field(None, description="keep the first n layers; null for all")
    items: Literal["text", "token"] = Field(
        "token",
        description="text: an item is its own tokens; token: a learned vector or a few, see items",
    )
    head: Literal["linear", "yes_no", "retrieve", "rank"] = Field(
        "retrieve",
        description="items=text: linear, the candidate is read as a branch, or yes_no, by the untouched model's yes "
        "and no; items=token: retrieve, the user's state against the item's vector, or rank, that and the candidate "
        "read as a branch; an encoder takes linear only",
    )
    pretrained: bool = Field(True, description="false: random weights of the same form, to see what pretraining brings")
    labels: tuple[str, str] = Field((" yes", " no"), description="head=yes_no: one token each")
    attention: Literal["auto", "dense", "cascade", "flex"] = Field(
        "auto",
        description="dense: reference, one mask; cascade: skips what is hidden; flex: FlexAttention; "
        "auto: flex on CUDA, else cascade",
    )


class AugmentItems(Section):
    """Texts that a language model writes of items of which prompt.item says little: {augmentation} in prompt.item."""

    min_characters: Annotated[int, Field(ge=0)] = Field(
        0, description="items whose text, by prompt.item, is shorter get one; 0: none"
    )
    template: str = Field("item.v1", description="one that comes with the package, or the path of a .yaml of your own")


class AugmentUsers(Section):
    """Summaries of what users are interested in: {interests} in prompt.user, for a model that is not trained."""

    history: Annotated[int, Field(ge=0)] = Field(
        0, description="of so many of a user's newest training events; 0: none"
    )
    template: str = Field("user.v1", description="as of items")


class Augment(Section):
    """Texts by a generative language model where there are few; off unless items or users ask for some."""

    items: AugmentItems = AugmentItems()
    users: AugmentUsers = AugmentUsers()
    model: str = Field(
        "smollm2-135m-instruct",
        description="a causal language model: an asset's name, a directory, an s3:// prefix or a hub id",
    )
    max_input_tokens: Count = Field(128, description="longer values of a template's placeholders are cut, and counted")
    max_new_tokens: Count = Field(96, description="an answer that is not over by then is set aside")
    temperature: Annotated[float, Field(ge=0)] = Field(0.0, description="0: always the likeliest token; else sampled")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="sampled among the likeliest tokens that have this much probability together"
    )
    seed: int = Field(0, description="of sampling")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="of the layers' products")
    shard: Count = Field(256, description="texts in a file of generated ones, the unit of work that a kill may cost")
    batch_size: Count = Field(16, description="texts that are written at once")
    actors: Count = 2
    cpus_per_actor: Annotated[float, Field(ge=0)] = 1
    gpus_per_actor: Annotated[float, Field(ge=0)] = 0

    @property
    def wanted(self) -> bool:
        return bool(self.items.min_characters or self.users.history)

    @model_validator(mode="after")
    def _sampled(self) -> Augment:
        if self.top_p < 1 and not self.temperature:
            raise ValueError(f"top_p = {self.top_p:g} is for sampling; set a temperature above 0")
        return self


class Items(Section):
    """What the vector of an item is made of (model.items=token), and how embed computes its frozen parts."""

    encoder: str = Field(
        "all-minilm-l6-v2",
        description="frozen encoder of prompt.item: an asset's name, a directory, an s3:// prefix or a hub id; empty "
        "for no text part",
    )
    max_tokens: Count = Field(96, description="longer texts are cut for the encoder")
    id: bool = Field(True, description="a part learned for each item; foretold for one that training has not seen")
    id_start: Annotated[int, Field(ge=0)] = Field(
        256, description="that part starts from who had which items, by so many factors; 0: at random"
    )
    vectors: tuple[str, ...] = Field((), description="columns of number lists, of one length each: images, audio ...")
    images: str = Field(
        "", exclude_if=_none, description="column of each item's picture, a file's path or s3:// URI, null for none; "
        "encoded by embed, each once: a picture that changes needs a new name; empty for no image part"
    )  # fmt: skip
    image_root: str = Field(
        "", exclude_if=_none, description="directory or s3:// prefix that the paths of images start from"
    )
    image_encoder: str = Field(
        "", exclude_if=_none, description="frozen vision encoder of images with its image processor: a directory, an "
        "s3:// prefix or a hub id"
    )  # fmt: skip
    max_bad_images: Share = Field(
        0.1, exclude_if=lambda value: value == 0.1, description="more unreadable pictures than this stop embed"
    )
    categories: tuple[str, ...] = Field((), description="columns of texts, of lists of texts, or of joined texts")
    separator: str = Field("|", description="parts the joined texts of a category column; empty: nothing is parted")
    numbers: tuple[str, ...] = Field((), description="columns of numbers")
    graph_dimensions: Count = Field(64, description="at most so many of the graph part, which data.edges brings")
    per_item: Count = Field(1, description="vectors of the model, and so tokens, that an item takes")
    shard: Count = Field(65_536, description="items in a file of embeddings, the unit of work of embed")
    batch_size: Count = Field(64, description="texts, or pictures, in one pass of an encoder")
    actors: Count = 2
    cpus_per_actor: Annotated[float, Field(ge=0)] = 1
    gpus_per_actor: Annotated[float, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _pictures(self) -> Items:
        if bool(self.images) != bool(self.image_encoder):
            raise ValueError("images, a column, and image_encoder, a model, go together; set both or neither")
        if self.image_root and not self.images:
            raise ValueError("image_root is where the paths in a column start from; name it in images")
        return self


class PrivateTraining(Section):
    """Differential privacy of training, the unit a user with all of his events."""

    epsilon: Annotated[float, Field(gt=0)] | None = Field(None, description="null: training is not private")
    delta: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="null: a tenth of one over the number of users"
    )
    norm: Annotated[float, Field(gt=0)] = Field(1.0, description="length that each user's gradient is clipped to")


class Train(Section):
    """Fine-tuning with the listwise softmax objective."""

    start: str = Field(
        "", exclude_if=_none, description="a saved ranker that training goes on from, a directory or s3://; previous: "
        "the one under the root, if there is one; with fewer model.layers, its first; empty: the untouched model.base"
    )  # fmt: skip
    new_events: bool = Field(
        False, exclude_if=lambda value: value is False, description="with start: only events since those that the "
        "earlier ranker was trained on are decisions, and only users with such are trained"
    )  # fmt: skip
    tune: Literal["full", "top_n", "lora", "head"] = "full"
    top_n: Count = Field(2, description="tune=top_n: how many of the last layers learn")
    train_embeddings: bool = Field(False, description="tune=full, items=text: let the token embeddings learn too")
    lora_rank: Count = 16
    lora_alpha: Count = 32
    epochs: Count = 8
    max_steps: Count | None = Field(None, description="stop after this many optimizer steps; null for whole epochs")
    users_per_step: Count = Field(16, description="users per worker and optimizer step")
    decisions_per_user: Count = Field(
        60, description="history events trained as decisions in one pass; an encoder trains one"
    )
    horizon: Count = Field(
        5, description="items=token: a decision's right answers are the event and those after it, so many in all"
    )
    horizon_decay: Annotated[float, Field(gt=0, le=1)] = Field(0.7, description="weight of an answer per event ahead")
    exclude_seen: bool = Field(
        True, description="what a user had before a decision is no wrong answer, if it is not the right one"
    )
    negatives: Count = Field(
        7, description="head=linear and rank: candidates beside the true one; retrieve: the whole catalogue"
    )
    hard_share: Share = Field(
        0.5, description="head=linear and rank: share of negatives that item-item recall would have brought"
    )
    events: Literal["training", "all"] = Field(
        "training", description="all: the validation events too; then nothing is validated, and every step is taken"
    )
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    head_learning_rate: Annotated[float, Field(gt=0)] = Field(
        3e-3, description="of a head over text, and of what is learned of each item and category"
    )
    warmup_share: Share = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.2, description="of input embeddings, read states and LoRA")
    id_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="items=token: share of items that a pass knows by their other parts alone, as a new one; and "
        "of values of contexts that it does not know"
    )  # fmt: skip
    dropout_passes: Count = Field(
        1, exclude_if=lambda value: value == 1, description="passes over each batch, each with another mask of dropout"
    )
    adversarial: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, exclude_if=lambda value: value == 0, description="each pass is followed by one over input vectors "
        "that are changed to its disadvantage, by this share of their length; 0: by none"
    )  # fmt: skip
    average: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="decay of a moving average of the weights, which then validates and is saved; 0: none"
    )
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    private: PrivateTraining = Field(PrivateTraining(), exclude_if=lambda value: value == PrivateTraining())
    batch_tokens: Annotated[int, Field(ge=64)] = Field(
        4096, description="tokens in one forward pass; more is accumulated"
    )
    teacher: str = Field(
        "", description="rankings table whose scores are distilled, made with score.history = training; empty for none"
    )
    teacher_weight: Annotated[float, Field(ge=0)] = Field(1.0, description="of distillation beside the events' loss")
    teacher_temperature: Annotated[float, Field(gt=0)] = Field(1.0, description="of both softmaxes in distillation")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 where it is fast")
    strategy: Literal["ddp", "fsdp2"] = "ddp"
    workers: Count = 2
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    validate_every: Count = Field(20, description="optimizer steps between validations and checkpoints")
    validation_users: Count = Field(200, description="users that validation ranks")
    validation_candidates: Count = Field(50, description="sampled candidates beside the true one in validation")
    patience: Count = Field(3, description="validations without a better metric before training stops")
    max_failures: Annotated[int, Field(ge=0)] = Field(2, description="restarts from the last checkpoint")
    seed: int = 0

    @model_validator(mode="after")
    def _goes_on(self) -> Train:
        if self.new_events and not self.start:
            raise ValueError("new_events goes on from an earlier ranker; set start, such as previous")
        return self


class Popularity(Section):
    top: Annotated[int, Field(ge=0)] = Field(100, description="candidates per user; 0 turns the source off")


class Recent(Section):
    """What users had lately, the same for everyone."""

    top: Annotated[int, Field(ge=0)] = Field(0, description="candidates per user; 0 turns the source off")
    half_life_days: Annotated[float, Field(gt=0)] | None = Field(
        30.0, description="an event counts half as much as one so much later; null: all the same"
    )
    window_days: Annotated[float, Field(gt=0)] | None = Field(
        None, description="events so long before the newest of all do not count; null: all count"
    )

    @model_validator(mode="after")
    def _recent(self) -> Recent:
        if self.half_life_days is None and self.window_days is None:
            raise ValueError("half_life_days and window_days are both null; without either it is the popularity source")
        return self


class Segment(Section):
    """What users with the same attributes had."""

    top: Annotated[int, Field(ge=0)] = Field(0, description="candidates per user; 0 turns the source off")
    columns: tuple[str, ...] = Field((), description="of the users table; users who share all their values are a group")
    prior: Annotated[float, Field(gt=0)] = Field(
        100.0, description="a group's popularity is mixed with that of so many users on the average of all"
    )


class ItemItem(Section):
    top: Annotated[int, Field(ge=0)] = Field(100, description="candidates per user; 0 turns the source off")
    neighbours: Count = 200
    shrinkage: Annotated[float, Field(ge=0)] = 10.0
    decay: Annotated[float, Field(gt=0, le=1)] = Field(0.85, description="weight of a user's event per event of age")
    decays: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (), description="further ones, by each of which it says of all merged candidates something for the fusion: 0.3 "
        "by the last few events, 1 by all alike"
    )  # fmt: skip
    max_history: Count = Field(
        1000, description="newest items of a user that are counted with each other; the work goes by the square"
    )
    reach: Count = Field(
        2000, description="an item that a user had speaks for so many items at most, those it is most similar to"
    )


class Graph(Section):
    """Items that share entities of the knowledge graph (data.edges) with those that the user had; nothing is learned of
    users, so that new items are found too."""

    top: Annotated[int, Field(ge=0)] = Field(0, description="candidates per user; 0 turns the source off")
    neighbours: Count = Field(200, description="most similar items kept of each item")
    decay: Annotated[float, Field(gt=0, le=1)] = Field(0.85, description="weight of a user's event per event of age")
    max_items: Count = Field(10_000, description="an entity of more items than this is left out: it tells them little")
    reach: Count = Field(2000, description="as of item_item")


class Closeness(Section):
    """How near a candidate's entities lie to the user's, as a part of its score; it brings no candidates."""

    weight: Annotated[float, Field(ge=0)] = Field(
        0.0, description="log sigmoid(-weight * KL) is the column recall_score_closeness; 0: there is none"
    )
    smoothing: Annotated[float, Field(gt=0)] = Field(
        1.0, description="edges that each item is given beside its own, distributed as the catalogue's are"
    )
    decay: Annotated[float, Field(gt=0, le=1)] = Field(0.85, description="weight of a user's event per event of age")


class Ease(Section):
    """The linear item-item model in closed form; wants square memory, so over the most popular items only."""

    top: Annotated[int, Field(ge=0)] = Field(0, description="candidates per user; 0 turns the source off")
    l2: Annotated[float, Field(gt=0)] = Field(100.0, description="weight of the squared norm")
    items: Count = Field(20_000, description="most popular items that it knows; it takes 4 bytes times their square")


class Als(Section):
    """Weighted matrix factorisation by alternating least squares."""

    top: Annotated[int, Field(ge=0)] = Field(0, description="candidates per user; 0 turns the source off")
    factors: Count = 64
    regularization: Annotated[float, Field(gt=0)] = 1.0
    alpha: Annotated[float, Field(gt=0)] = Field(5.0, description="confidence in an event; 1 in its absence")
    iterations: Count = 15
    cpus: Count = Field(1, description="of the task that fits it")
    seed: int = 0


class Text(Section):
    """Items whose text is nearest to those that the user had, by the vectors of embed; nothing is learned."""

    top: Annotated[int, Field(ge=0)] = Field(0, description="candidates per user; 0 turns the source off")
    decay: Annotated[float, Field(gt=0, le=1)] = Field(0.5, description="weight of a user's event per event of age")
    least: Annotated[float, Field(ge=-1, le=1)] = Field(-1, description="no candidate's cosine is below")


class Query(Section):
    """Items whose text is nearest to what the user typed, by the encoder of embed."""

    top: Annotated[int, Field(ge=0)] = Field(0, description="candidates per user; 0 turns the source off")
    context: str = Field("query", description="what data.context calls it")
    least: Annotated[float, Field(ge=-1, le=1)] = Field(-1, description="no candidate's cosine is below")
    actors: Count = Field(1, description="copies of the encoder at work")
    cpus_per_actor: Annotated[float, Field(ge=0)] = 1
    gpus_per_actor: Annotated[float, Field(ge=0)] = 0


class Retrieve(Section):
    """A trained ranker's own retrieve head, against all items (model.items = token)."""

    top: Annotated[int, Field(ge=0)] = Field(0, description="candidates per user; 0 turns the source off")
    model: str = Field("", description="ranker directory or URI; empty: what train saved")
    batch_tokens: Annotated[int, Field(ge=64)] = Field(4096, description="tokens in one forward pass")
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="of the layers' products")
    actors: Count = Field(2, description="copies of the model at work")
    cpus_per_actor: Annotated[float, Field(ge=0)] = 1
    gpus_per_actor: Annotated[float, Field(ge=0)] = 0


class New(Section):
    """Items that hardly anybody had yet, each brought to the users whose history its text is nearest to, by the vectors
    of embed, in turns, so that none is left out while others are brought to many."""

    top: Annotated[int, Field(ge=0)] = Field(0, description="new items per user; 0 turns the source off")
    users: Count = Field(
        20, description="that each new item is brought to, if as many are near it and have places left"
    )
    max_events: Annotated[int, Field(ge=0)] = Field(0, description="an item of more events than this is not new")
    decay: Annotated[float, Field(gt=0, le=1)] = Field(0.5, description="weight of a user's event per event of age")


class Search(Section):
    """How text, query, als and retrieve look for the nearest of all items."""

    method: Literal["exact", "clusters"] = Field(
        "exact", description="clusters: of a user's nearest clusters alone, by faiss (llmrec[faiss]) and on CPUs: for "
        "catalogues past a million items"
    )  # fmt: skip
    clusters: Annotated[int, Field(ge=0)] = Field(0, description="0: four times the root of the number of items")
    probes: Count = Field(32, description="clusters that a user is looked for in; more find more, and take longer")
    checked: Annotated[int, Field(ge=0)] = Field(
        8, description="users of each bucket for whom exact search is made too, to tell how many of its best were found"
    )


class Context(Section):
    """What goes with the context that a user is asked about in (data.context): a part of the fusion wherever there is
    one, and a source if it brings candidates."""

    top: Annotated[int, Field(ge=0)] = Field(0, description="candidates per user, the most popular there; 0 for none")
    prior: Annotated[float, Field(gt=0)] = Field(
        100.0, description="users in everyone's contexts that each item is thought to have had before its own"
    )


Source = Literal[
    "item_item",
    "ease",
    "als",
    "text",
    "query",
    "graph",
    "popularity",
    "recent",
    "segment",
    "retrieve",
    "context",
    "new",
]


class Recall(Section):
    """Candidate generators and their merge."""

    popularity: Popularity = Popularity()
    recent: Recent = Recent()
    segment: Segment = Segment()
    item_item: ItemItem = ItemItem()
    ease: Ease = Ease()
    als: Als = Als()
    text: Text = Text()
    query: Query = Field(Query(), exclude_if=lambda value: value == Query())
    graph: Graph = Graph()
    retrieve: Retrieve = Retrieve()
    new: New = Field(New(), exclude_if=lambda value: value == New())
    search: Search = Field(Search(), exclude_if=lambda value: value == Search())
    context: Context = Field(Context(), exclude_if=lambda value: value == Context())
    closeness: Closeness = Closeness()
    merge: tuple[Source, ...] = Field(
        ("item_item", "popularity"), description="sources in order; a later one fills what an earlier one left open"
    )
    quotas: dict[Source, Count] = Field(
        {}, description="places that a source of merge fills first, with its best that no earlier one has brought"
    )
    candidates: Count = Field(100, description="merged candidates per user")
    exclude_seen: bool = True
    history: Literal["known", "training", "none"] = Field(
        "known", description="training: from training events alone, to be scored as a teacher is; none: the same for "
        "users as if none of them had a history"
    )  # fmt: skip

    @property
    def training_only(self) -> bool:
        """Whether only training events are learned from."""
        return self.history != "known"

    @property
    def by_text(self) -> tuple[str, ...]:
        """The sources in use that take the vectors of the items' texts."""
        return tuple(name for name in ("text", "query", "new") if name in self.merge)

    @model_validator(mode="after")
    def _sources_on(self) -> Recall:
        for source in self.merge:
            if getattr(self, source).top == 0:
                raise ValueError(f"merge names '{source}', which recall.{source}.top = 0 turns off")
        if not self.merge:
            raise ValueError("merge must name at least one source")
        if "segment" in self.merge and not self.segment.columns:
            raise ValueError("merge names 'segment': recall.segment.columns must name columns of the users table")
        if self.item_item.decays and "item_item" not in self.merge:
            raise ValueError("item_item.decays are for a merge that names item_item")
        if self.search.method == "clusters" and not {"text", "query", "als", "retrieve"} & set(self.merge):
            raise ValueError("search.method = clusters is for a merge that names text, query, als or retrieve")
        for source in self.quotas:
            if source not in self.merge:
                raise ValueError(f"quotas names '{source}', which merge does not")
        if sum(self.quotas.values()) > self.candidates:
            raise ValueError(f"quotas ask for {sum(self.quotas.values())} places, candidates = {self.candidates}")
        return self


class Bucket(Section):
    """Candidates of your own that are not bucketed yet."""

    input: str = Field("", description="Parquet file or directory of candidates, in any order")
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")] = Field(
        "brought", description="where they go: ROOT/tables/candidates/NAME"
    )

    @model_validator(mode="after")
    def _not_a_table_of_recall(self) -> Bucket:
        if self.name == "merged" or self.name in Recall.model_fields:
            raise ValueError(f"name = {self.name} is where recall writes; choose another")
        return self


class Score(Section):
    """The scoring job: from candidates to staged rankings."""

    model: str = Field("", description="ranker directory or URI; empty: what train saved; 'base': model.base untouched")
    ensemble: tuple[str, ...] = Field(
        (), exclude_if=_none, description="further rankers, directories or URIs: of each candidate the mean of what "
        "all say counts, each brought to mean 0 and deviation 1 over a user's candidates"
    )  # fmt: skip
    candidates: str = Field("", description="candidates table; empty: what recall merged")
    output: str = Field("", description="rankings table; empty: ROOT/rankings")
    top_k: Count = 10
    max_candidates: Count = Field(100, description="best-recalled candidates scored per user")
    history: Literal["known", "training", "none"] = Field(
        "known", description="training: the trunk ends before the validation events, as a teacher's must "
        "(train.teacher); none: it has no events at all"
    )  # fmt: skip
    users_share: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="share of users, chosen by stable hash")
    keep_parts: bool = Field(
        False, description="also write every candidate's score parts, under the run; evaluate shows what each part adds"
    )
    exclude_seen: bool = True
    blocked_items: str = Field("", description="Parquet file with a column item_id, never recommended; empty for none")
    requires: str = Field(
        "", exclude_if=_none, description="relation of the knowledge graph (data.edges) from an item to those that it "
        "requires: to who has not had all of these the item is neither recalled nor shown; empty for none"
    )  # fmt: skip
    batch_tokens: Annotated[int, Field(ge=64)] = Field(
        2048, description="tokens in one forward pass; some thousand keep a CPU's caches warm, a GPU wants far more"
    )
    precision: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "auto", description="of the layers' products; auto: bfloat16 where it is fast; int8: weights and inputs in "
        "eight bits"
    )  # fmt: skip
    compile: bool = Field(
        False, description="fuse what lies between the products by torch.compile; each actor compiles before it starts"
    )
    min_actors: Count = 1
    max_actors: Count = 2
    cpus_per_actor: Annotated[float, Field(ge=0)] = 1
    gpus_per_actor: Annotated[float, Field(ge=0)] = 0
    tensor_parallel: Count = Field(
        1, description="processes of one machine (and GPUs, if it has them) that share an actor's model"
    )
    reuse: str = Field(
        "", description="a complete run whose rows are copied for users of whom nothing changed since; 'shown': the "
        "run that the rankings table shows; empty: every user is scored"
    )  # fmt: skip
    canary_from: Count = Field(
        100, description="a run of so many buckets scores one first, and goes on only if its scores are sound"
    )
    price_per_hour: Annotated[float, Field(ge=0)] = Field(0, description="of one actor, for the costs in the summary")
    max_bad_share: Share = Field(0.1, description="more bad candidates than this stop the job before it publishes")
    probe_users: Annotated[int, Field(ge=0)] = Field(
        2, description="users of whom a few pairs are scored one by one too, by each actor before it starts; 0 for none"
    )
    max_constant_users: Share = Field(0.1, description="more users of a bucket with one score for all stop the job")
    max_tied: Share = Field(0.3, description="more scores of a bucket equal to another of the same user stop the job")
    publish: bool = Field(True, description="publish at the end; false: leave the run staged for jobs/publish.py")

    @model_validator(mode="after")
    def _bounds(self) -> Score:
        if self.max_actors < self.min_actors:
            raise ValueError(f"max_actors = {self.max_actors} is less than min_actors = {self.min_actors}")
        if self.tensor_parallel > 1 and self.gpus_per_actor not in (0, self.tensor_parallel):
            raise ValueError(
                f"gpus_per_actor = {self.gpus_per_actor:g} with tensor_parallel = {self.tensor_parallel}: give each "
                "process of an actor one GPU, or none at all"
            )
        if self.ensemble and (self.tensor_parallel > 1 or self.model == "base"):
            raise ValueError("ensemble goes with a trained model and tensor_parallel = 1")
        if self.tensor_parallel > 1 and self.precision == "int8":
            raise ValueError("precision = int8 goes with tensor_parallel = 1: its weights are not split")
        return self


class Fusion(Section):
    """The ranker's score and what each source of candidates says as one score."""

    method: Literal["none", "linear", "trees"] = Field(
        "none", description="none: the ranker's score alone ranks; linear: a weighed sum; trees: LightGBM's LambdaMART"
    )
    parts: tuple[str, ...] = Field(
        (), description="ranker, and names of sources; empty: these and all sources that the candidates tell of"
    )
    normalise: tuple[Literal["z_score", "min_max", "reciprocal_rank"], ...] = Field(
        ("z_score", "reciprocal_rank"), description="how a part is brought to a scale that users share, each its own"
    )
    l2: Annotated[float, Field(ge=0)] = Field(0.001, description="method=linear: of the weights' squared norm")
    users: Count = Field(100_000, description="fitted on about so many users at most, chosen by stable hash")
    new_users: Annotated[int, Field(ge=0)] | None = Field(
        None, description="users without a history have weights of their own, fitted on about so many others as if "
        "these had none; null: on 20,000, if there are such users when fuse runs; 0: they have those of all"
    )  # fmt: skip
    model: str = Field("", description="a fusion's file; empty: what fuse fitted")
    item_weights: dict[str, float] = Field(
        {}, description="exponents of columns of items, numbers above 0: factors of a candidate's probability"
    )
    seed: int = 0

    @model_validator(mode="after")
    def _something(self) -> Fusion:
        if not self.normalise:
            raise ValueError("normalise must name at least one way")
        if self.item_weights and self.method == "none":
            raise ValueError("item_weights need a fusion; set method")
        return self


class Freshness(Section):
    """Newer items count more: a candidate's probability is halved with every half life of its age."""

    column: str = Field(
        "",
        description="column of items, unix seconds or timestamps: when an item came up; empty: ages do not count",
    )
    half_life_days: Annotated[float, Field(gt=0)] = 30.0
    reference: int | None = Field(
        None, description="unix seconds up to which ages count; null: the newest event of the histories"
    )


class Rerank(Section):
    """After all that ranks: lists that trade relevance for diversity, and the rules that they hold to."""

    method: Literal["none", "mmr", "dpp"] = Field(
        "none",
        description="none: relevance alone; mmr: maximal marginal relevance; dpp: a determinantal point process",
    )
    trade: Share = Field(0.3, description="from relevance alone, 0, to diversity alone, 1")
    window: Count = Field(50, description="of how many of a user's best candidates the list is chosen")
    by: tuple[str, ...] = Field(
        (), description="columns of items whose values make items alike; empty: the vectors of their texts, by embed"
    )
    quotas: dict[str, Count] = Field(
        {}, description="columns of items: at most so many items of one value of it in a list"
    )
    least: dict[str, dict[str, Share]] = Field(
        {}, exclude_if=_none, description="columns of items, and for some of their values the share of every beginning "
        "of a list that items with it have at least, such as {maker: {small: 0.2}}; as far as the window has them"
    )  # fmt: skip
    separator: str | None = Field(
        None, description="parts the joined texts of those columns; empty: nothing is parted; null: items.separator"
    )
    freshness: Freshness = Freshness()
    reserve: dict[str, Count] = Field(
        {}, exclude_if=_none, description="sources of candidates: so many places of a list are theirs at least, the "
        "last ones, if they brought as many; before quotas"
    )  # fmt: skip

    @property
    def chooses(self) -> bool:
        """Whether lists are anything but the best candidates in their order."""
        return self.compares or bool(self.quotas) or bool(self.least)

    @property
    def compares(self) -> bool:
        return self.method != "none" and self.trade > 0

    @property
    def by_text(self) -> bool:
        """Whether it takes the vectors of the items' texts."""
        return self.compares and not self.by

    @model_validator(mode="after")
    def _something(self) -> Rerank:
        if self.by and self.method == "none":
            raise ValueError("by makes items alike for a method; set method to mmr or dpp")
        for column, shares in self.least.items():
            if sum(shares.values()) > 1:
                raise ValueError(f"least: the shares of '{column}' add up to more than 1")
        return self


class Explain(Section):
    """A reason for each published item, by what moved the ranker's score of it."""

    run: bool = Field(False, description="whether the demo and the pipeline explain, too; jobs/explain.py does")
    output: str = Field(
        "", description="reasons table; empty: ROOT/reasons, or of score.output the same name with _reasons"
    )
    top_k: Count | None = Field(
        None, description="first places of each list that get a reason; null: all that there are"
    )
    history: Count = Field(10, description="newest different items of the trunk that are left out of it in turn")
    cited: Count = Field(3, description="at most so many of these, those that raised the score most, are named")
    attributes: tuple[str, ...] = Field(
        (), description="columns of items, texts or lists of texts, whose values that an item shares with a cited one "
        "are named"
    )  # fmt: skip
    separator: str | None = Field(
        None, description="parts the joined texts of those columns; empty: nothing is parted; null: items.separator"
    )
    relations: tuple[str, ...] = Field(
        (), description="relations of data.edges that may be named; empty: all of them, if there is a graph"
    )
    shared: Annotated[int, Field(ge=0)] = Field(
        2,
        description="at most so many attributes, so many edges that an item shares with a cited one, and so many "
        "between the two",
    )
    template: str = Field("en", description="en, zh, or the path of a template of your own")
    model: str = Field(
        "", description="generative model that rewords the template's sentences, as of model.base; empty: none does"
    )
    max_tokens: Count = Field(64, description="that it writes for a sentence")
    generate_batch: Count = Field(32, description="sentences that it writes at once")
    faithfulness_users: Annotated[int, Field(ge=0)] = Field(
        200, description="users of whom it is measured what removing the cited items does, and others; 0: nobody"
    )
    bootstrap: Count = Field(1000, description="resamples of users for the interval of that")
    batch_tokens: Annotated[int, Field(ge=64)] = Field(2048, description="tokens in one forward pass")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "float32", description="of the layers' products; an influence is a small difference of two scores"
    )
    actors: Count = 2
    cpus_per_actor: Annotated[float, Field(ge=0)] = 1
    gpus_per_actor: Annotated[float, Field(ge=0)] = 0
    seed: int = Field(0, description="of the random other items")


class Evaluate(Section):
    """What is measured, and against what."""

    rankings: dict[str, str] = Field({}, description="further rankings tables by the name to show")
    metrics: tuple[Literal["recall", "ndcg", "mrr", "hit_rate", "precision", "map"], ...] = (
        "recall", "ndcg", "mrr", "hit_rate",
    )  # fmt: skip
    cutoffs: tuple[Count, ...] = (5, 10, 20)
    recall_cutoffs: tuple[Count, ...] = Field((100, 200), description="of the sources of candidates")
    segments: tuple[Annotated[str, Field(pattern=r"^(history_length|item_events|(users|items)\..+)$")], ...] = Field(
        ("history_length", "item_events"),
        description="groups that are measured apart: by history_length, a user's events; item_events, the training "
        "events of the true item; users.COLUMN and items.COLUMN of the tables, numbers in bins and texts as they are",
    )
    edges: dict[str, tuple[float, ...]] = Field(
        {}, description="ascending edges of a segment's bins; without, bins of about as many"
    )
    bins: Annotated[int, Field(ge=2)] = Field(4, description="of numbers that have no edges")
    groups: Count = Field(8, description="largest groups of a column of texts; the rest are one, 'other'")
    diversity_by: tuple[str, ...] = Field(
        (), description="columns of items, texts, whose shared values make two items alike; empty: their text vectors"
    )
    users: Count = Field(
        1_000_000, description="measured on about so many users with held-out events at most, chosen by stable hash"
    )
    labelled: str = Field(
        "", description="Parquet file of user_id, item_id and label (0 or 1), whose pairs the run's kept parts score"
    )
    bootstrap: Count = Field(1000, description="resamples of users for the interval")
    permutations: Count = Field(5000, description="random signs of users' differences for the p-value")
    seed: int = 0
    promote_if: tuple[str, ...] = Field(
        (), description="what llmrec evaluate asks of a staged run, such as 'ndcg@10 >= published - 0.001'"
    )

    @model_validator(mode="after")
    def _sound(self) -> Evaluate:
        for name in ("metrics", "cutoffs"):
            if not getattr(self, name):
                raise ValueError(f"{name} must name at least one")
        for name, edges in self.edges.items():
            if name not in self.segments or "." not in name:
                raise ValueError(f"edges names '{name}', which is no column that segments names")
            if not edges or list(edges) != sorted(set(edges)):
                raise ValueError(f"edges of '{name}' must ascend: {', '.join(f'{e:g}' for e in edges) or 'none'}")
        return self


class Drift(Section):
    """How far inputs and scores may move from when the rankings were last published, by the population stability index:
    below 0.1 is usually taken for nothing, above 0.25 for a lot."""

    warn: Annotated[float, Field(gt=0)] = Field(0.1, description="from here on the pipeline says so")
    stop: Annotated[float, Field(gt=0)] = Field(0.25, description="from here on it publishes nothing")
    stop_on: tuple[Literal["text_length", "activity", "item_mix", "scores", "source_mix", "shown_mix"], ...] = Field(
        ("text_length", "activity", "item_mix"), description="what may stop it; the others only warn (scores move with "
        "every training)"
    )  # fmt: skip
    window_days: Annotated[float, Field(gt=0)] = Field(
        7.0, description="item_mix: events so long before the newest one count"
    )
    max_event_age_hours: Annotated[float, Field(gt=0)] | None = Field(
        None, description="a newest event older than this stops the pipeline, for the log has not come; null: any age"
    )


class Pipeline(Section):
    """What the daily run does beside its stages."""

    pushgateway: str = Field(
        "", description="host:port of a Prometheus Pushgateway that gets the run's metrics; empty: only the file"
    )
    job: str = Field("llmrec", description="the name under which it gets them")

    @model_validator(mode="after")
    def _gateway(self) -> Pipeline:
        found = re.fullmatch(r"(?:[\w.-]+|\[[0-9a-fA-F:.]+\]):([0-9]{1,5})", self.pushgateway)
        if self.pushgateway and (found is None or not 0 < int(found[1]) < 65_536):
            raise ValueError(
                "pushgateway is host:port, such as gateway.example:9091, without http://, a path, a name or a password"
            )
        return self


class Redis(Section):
    """A Redis server that serves users' lists. Its password is what the variable LLMREC_REDIS_PASSWORD holds, here and
    on every node."""

    url: str = Field(
        "", description="redis://host:6379/0, or rediss:// for TLS; redis://name@host:6379/0 for a user of its own"
    )
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]*$")] = Field(
        "llmrec", description="every key begins so"
    )
    expire_seconds: Annotated[int, Field(ge=0)] = Field(
        0, description="a list lives so long from when it was written; 0: until it is deleted"
    )
    keep: Annotated[int, Field(ge=0)] = Field(
        1, description="versions before the one that is served that stay, the newest; others are deleted"
    )
    batch: Count = Field(1000, description="lists that go to the server at once")
    writers: Count = Field(2, description="tasks that write at the same time, a bucket each")

    @model_validator(mode="after")
    def _address(self) -> Redis:
        if not self.url:
            return self
        parts = urlsplit(self.url)
        if parts.query or parts.password is not None:
            raise ValueError("url holds a password or options; put the password in the variable LLMREC_REDIS_PASSWORD")
        try:
            whole = parts.scheme in ("redis", "rediss") and parts.hostname and (parts.port or True)
        except ValueError:  # of the port
            whole = False
        if not whole or not re.fullmatch(r"(/[0-9]*)?", parts.path):
            raise ValueError(f"url = {self.url}: use redis://host:6379/0, or rediss:// for TLS")
        return self


class Export(Section):
    """A published run in a form that other readers take."""

    form: Literal["rows", "lists", "json_lines", "redis"] = Field(
        "rows",
        description="rows: plain Parquet, as the table is; lists: Parquet, one row a user with a list of items; "
        "json_lines: the same as JSON; redis: a key a user",
    )
    target: str = Field("", description="local path or s3:// prefix that files are written to")
    run: str = Field("", description="an earlier run than the one shown")
    overwrite: bool = Field(False, description="replace another run's, or another form's, files")
    redis: Redis = Redis()


class Serve(Section):
    """A service that ranks one fresh request at a time, with the model, precision, rules and top_k of score. Who asks
    gives the token that the variable LLMREC_SERVE_TOKEN holds, here and on every node."""

    host: str = Field("127.0.0.1", description="where it listens on each node; 0.0.0.0: on all of its addresses")
    port: Annotated[int, Field(ge=1, le=65_535)] = 8000
    replicas: Count = Field(1, description="copies of the model at work")
    cpus_per_replica: Annotated[float, Field(ge=0)] = 1
    gpus_per_replica: Annotated[float, Field(ge=0)] = 0
    open: bool = Field(False, description="answer without a token")
    batch: Count = Field(8, description="requests that are packed and scored together at most")
    batch_wait_ms: Annotated[float, Field(ge=0)] = Field(5, description="how long the first of them waits for others")
    max_ongoing: Count = Field(32, description="requests that a replica has at a time, scored or waiting for that")
    max_queued: Annotated[int, Field(ge=0)] = Field(
        64, description="requests beyond these that a node's proxy keeps waiting; more are answered by 429"
    )
    timeout_seconds: Annotated[float, Field(gt=0)] = Field(30, description="a request that takes longer ends with 408")
    max_body_bytes: Count = Field(262_144, description="of a request; more is answered by 413")
    max_candidates: Count = Field(500, description="of a request")
    max_history: Count = Field(1000, description="item ids of a request's history; the ranker reads the newest of them")
    buckets_kept: Count = Field(
        16, description="buckets of histories, and of candidates, that a replica holds in memory, the last used"
    )

    @model_validator(mode="after")
    def _room(self) -> Serve:
        if self.max_ongoing < self.batch:
            raise ValueError(f"max_ongoing = {self.max_ongoing} is less than batch = {self.batch}; raise it")
        return self


class Range(Section):
    """What a search tries of a setting: numbers from low to high, both of them too, or one of choices."""

    low: int | float | None = None
    high: int | float | None = None
    log: bool = Field(False, description="numbers are drawn evenly by their logarithm")
    choices: tuple[Any, ...] = ()

    @model_validator(mode="after")
    def _one_kind(self) -> Range:
        if self.choices:
            if self.low is not None or self.high is not None or self.log:
                raise ValueError("choices stand alone; leave out low, high and log")
            if any(choice in self.choices[:i] for i, choice in enumerate(self.choices)):
                raise ValueError("choices has a value twice")
            return self
        if self.low is None or self.high is None:
            raise ValueError("give low and high, or choices")
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"low = {self.low} is not below high = {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs numbers above 0; low = {self.low}")
        return self


class SettingsSearch(Section):
    """Which settings of the training do best in validation: trials that each train with others (llmrec[search])."""

    keys: dict[str, Range] = Field(
        {}, description="settings by their whole name and what is tried of each, such as "
        "{train.learning_rate: {low: 0.0001, high: 0.01, log: true}, model.layers: {choices: [2, 4]}}"
    )  # fmt: skip
    trials: Count = Field(20, description="in all, those of earlier runs of the same search counted")
    parallel: Count | None = Field(
        None, description="at most so many trials at once; null: as many as the cluster has room for"
    )
    early_stopping: Literal["asha", "none"] = Field(
        "asha", description="asha: a trial that is behind others at the same step ends (asynchronous successive "
        "halving); none: all train to their end"
    )  # fmt: skip
    grace: Count = Field(2, description="asha: so many of train.validate_every steps are left to every trial")
    reduction: Annotated[float, Field(gt=1)] = Field(
        3.0, description="asha: of the trials that come to a comparison the best one in so many goes on; the next "
        "comparison is after so many times the steps"
    )  # fmt: skip
    seed: int = Field(0, description="of what is tried; trials train by train.seed")


class MlflowTracking(Section):
    uri: str = Field("", description="of a server or a database, such as sqlite:////tmp/mlflow.db; empty: none")
    experiment: Annotated[str, Field(min_length=1)] = "llmrec"

    @model_validator(mode="after")
    def _no_secret(self) -> MlflowTracking:
        if re.search(r"//[^/@]+@", self.uri):
            raise ValueError(
                "uri holds credentials; give them as MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        return self


class WandbTracking(Section):
    project: str = Field("", description="empty: none")
    mode: Literal["online", "offline"] = Field(
        "online", description="offline: files in WANDB_DIR, else here, that `wandb sync` sends later"
    )


class Tracking(Section):
    """Where every stage leaves its figures, beside the root: llmrec[mlflow], llmrec[wandb]; off unless named."""

    mlflow: MlflowTracking = MlflowTracking()
    wandb: WandbTracking = WandbTracking()
    strict: bool = Field(
        False, description="a record that is not taken ends the job with an error, after its work; else a warning"
    )

    @property
    def on(self) -> bool:
        return bool(self.mlflow.uri or self.wandb.project)


class Cluster(Section):
    """Where jobs run."""

    address: str = Field("", description="a running Ray cluster; empty: RAY_ADDRESS, else a local one for this job")
    nodes: Annotated[int, Field(ge=2)] = Field(2, description="worker nodes of the local mini cluster")
    cpus_per_node: Count = Field(2, description="logical CPUs of each node of the local mini cluster")
    object_store_mb: Annotated[int, Field(ge=80)] = Field(256, description="object store memory of each of those nodes")
    no_progress_seconds: Count = Field(120, description="a job in which nothing moves this long ends with an error")


class Privacy(Section):
    """What tables, prompts and logs may know of users."""

    pseudonyms: bool = Field(
        False, description="prepare replaces each user id by its HMAC-SHA256, 64 hexadecimal digits; no table has the "
        "id itself"
    )  # fmt: skip
    key_variable: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = Field(
        "LLMREC_PSEUDONYM_KEY", description="environment variable with the key of that, 32 characters or more; on "
        "every node of the cluster too"
    )  # fmt: skip
    brought: Literal["ids", "pseudonyms"] = Field(
        "ids",
        description="what user_id is in tables that you bring later: bucket.input, evaluate.labelled and "
        "feedback.impressions",
    )

    never: tuple[str, ...] = Field(
        (), description="columns of items, users, the log or requests whose values no table and no prompt may hold"
    )

    @model_validator(mode="after")
    def _used(self) -> Privacy:
        if self.key_variable.upper().startswith("LLMREC_") and self.key_variable != "LLMREC_PSEUDONYM_KEY":
            raise ValueError("key_variable names a variable that begins with LLMREC_, as settings do; choose another")
        if self.brought == "pseudonyms" and not self.pseudonyms:
            raise ValueError("brought = pseudonyms goes with pseudonyms = true")
        return self


HEADS_OF = {"text": ("linear", "yes_no"), "token": ("retrieve", "rank")}


class Config(BaseSettings):
    """All settings of all jobs."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix="LLMREC_", env_nested_delimiter="__", cli_parse_args=False,
        env_parse_none_str="null",  # on the command line, too
    )  # fmt: skip

    root: str = Field("", description="local path or s3://bucket/prefix under which every table is written")
    data: Data = Data()
    feedback: Feedback = Feedback()
    prompt: Prompt = Prompt()
    model: Model = Model()
    augment: Augment = Augment()
    items: Items = Items()
    train: Train = Train()
    recall: Recall = Recall()
    bucket: Bucket = Bucket()
    fusion: Fusion = Fusion()
    score: Score = Score()
    rerank: Rerank = Rerank()
    explain: Explain = Explain()
    evaluate: Evaluate = Evaluate()
    drift: Drift = Drift()
    pipeline: Pipeline = Pipeline()
    search: SettingsSearch = SettingsSearch()
    tracking: Tracking = Tracking()
    privacy: Privacy = Field(Privacy(), exclude_if=lambda value: value == Privacy())
    export: Export = Export()
    serve: Serve = Serve()
    cluster: Cluster = Cluster()

    @property
    def reranking(self) -> Rerank:
        """`rerank` with the separator that counts."""
        return self.rerank.model_copy(update={"separator": self._separator(self.rerank.separator)})

    @property
    def explaining(self) -> Explain:
        """`explain` with the separator that counts."""
        return self.explain.model_copy(update={"separator": self._separator(self.explain.separator)})

    def _separator(self, own: str | None) -> str:
        return self.items.separator if own is None else own

    def named_columns(self) -> dict[str, tuple[str, ...]]:
        """Setting -> the columns of items, users, the log or contexts that it reads."""
        data, names = self.data, self.data.columns
        templates = {f"prompt.{of}": getattr(self.prompt, of) for of in ("item", "user", "context")}
        return {
            **{f"data.columns.{of}": (getattr(names, of),) for of in ("user", "item", "timestamp", "title")},
            "data.columns.event": (names.event,) if data.event_weights else (),
            "data.context": data.context,
            **{key: tuple(_placeholders(template)) for key, template in templates.items()},
            "items.vectors": self.items.vectors,
            "items.images": (self.items.images,),
            "items.categories": self.items.categories,
            "items.numbers": self.items.numbers,
            "recall.segment.columns": self.recall.segment.columns,
            "fusion.item_weights": tuple(self.fusion.item_weights),
            "rerank.by": self.rerank.by,
            "rerank.quotas": tuple(self.rerank.quotas),
            "rerank.least": tuple(self.rerank.least),
            "rerank.freshness.column": (self.rerank.freshness.column,),
            "explain.attributes": self.explain.attributes,
            "evaluate.segments": tuple(of.partition(".")[2] for of in self.evaluate.segments),
            "evaluate.diversity_by": self.evaluate.diversity_by,
        }

    @model_validator(mode="after")
    def _kept_out(self) -> Config:
        for key, columns in self.named_columns().items():
            for name in self.privacy.never:
                if name in columns:
                    raise ValueError(f"privacy.never names '{name}', which {key} uses; take it out of one of them")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.model.head not in HEADS_OF[self.model.items]:
            allowed = " or ".join(HEADS_OF[self.model.items])
            raise ValueError(
                f"model.items = {self.model.items} goes with model.head = {allowed}, not {self.model.head}"
            )
        if self.model.items == "token" and self.train.train_embeddings:
            raise ValueError(
                "train.train_embeddings = true goes with model.items = text: with items as vectors, few words are read"
            )
        if self.model.items == "text" and self.items.images:
            raise ValueError(
                f"items.images = {self.items.images} goes with model.items = token: items as text are read without "
                "pictures"
            )
        of_items = (self.items.id, self.items.encoder, self.data.edges, self.items.images, self.items.vectors,
                    self.items.categories, self.items.numbers)  # fmt: skip
        if self.model.items == "token" and not any(of_items):
            raise ValueError(
                "model.items = token: an item's vector needs a part at least; set items.encoder or items.id, or name "
                "columns in items.vectors, items.images, items.categories or items.numbers"
            )
        if self.model.head != "yes_no" and (self.prompt.before_candidate or self.prompt.after_candidate):
            raise ValueError(
                "prompt.before_candidate and prompt.after_candidate need model.head = yes_no: "
                "the other heads read a candidate exactly as an item of the history"
            )
        if self.train.private.epsilon is not None:
            self._private()
        kinds = self.data.event_weights
        if self.feedback.impressions and kinds and not kinds.get(self.feedback.event):
            raise ValueError(
                f"feedback.event = '{self.feedback.event}': data.event_weights weighs kinds of events, so name "
                f"which of them an outcome is ({', '.join(kind for kind, weight in kinds.items() if weight)})"
            )
        if sum(self.rerank.reserve.values()) > self.score.top_k:
            raise ValueError(
                f"rerank.reserve asks for {sum(self.rerank.reserve.values())} places, and score.top_k = "
                f"{self.score.top_k} is all that there are"
            )
        if self.rerank.chooses and self.rerank.window < self.score.top_k:
            raise ValueError(
                f"rerank.window = {self.rerank.window} is less than score.top_k = {self.score.top_k}: lists are chosen "
                "out of the window; widen it"
            )
        return self

    def _private(self) -> None:
        """Raises ValueError if training would learn of users in other ways than by their clipped gradients."""
        train = self.train
        learned = {
            "model.head": (self.model.head, "retrieve", "other heads' negatives are those of item-item recall"),
            "items.id_start": (self.items.id_start if self.items.id else 0, 0, "it is counted in the log"),
            "prompt.context": (self.prompt.context, "", "the values that it learns are counted in the log"),
            "train.teacher": (train.teacher, "", "it has seen all users"),
            "train.start": (train.start, "", "what that ranker has learned already is not accounted for"),
            "train.strategy": (train.strategy, "ddp", "gradients are clipped as a whole"),
            "feedback.impressions": (self.feedback.impressions, "", "outcomes are weighed by what all users did"),
        }
        for key, (value, wanted, why) in learned.items():
            if value != wanted:
                raise ValueError(
                    f"train.private.epsilon = {train.private.epsilon:g} needs {key} = {wanted or repr(wanted)}, "
                    f"not {value}: {why}"
                )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # The file's values arrive as init arguments and must be weaker than the environment.
        return env_settings, init_settings


def _placeholders(template: str) -> list[str]:
    """The columns that a template names; none of a malformed one, which is refused where it is filled."""
    try:
        return [name for _, name, _, _ in string.Formatter().parse(template) if name]
    except ValueError:
        return []


class _Given(Config):
    """A configuration of given values alone."""

    @classmethod
    def settings_customise_sources(cls, settings_cls: Any, init_settings: Any, **others: Any) -> Any:  # type: ignore[override]
        return (init_settings,)


class _EachKeyOnce(yaml.SafeLoader):
    """YAML takes the last of several values of a key; a section written twice would lose its first part unseen."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set[str]()
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.YAMLError(f"'{key.value}' stands there twice, line {key.start_mark.line + 1}; put it in one")
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else "")
        return node


def load(file: str | None, arguments: Sequence[str] = ()) -> Config:
    """Read a configuration from a YAML file (local or s3://), the environment and `--section.key value` arguments.

    Raises:
        UserError: one line per problem, each naming the key, the value and what is allowed.
    """
    values: dict[str, Any] = {}
    if file is not None:
        storage.check(file)
        try:
            values = yaml.load(storage.read_bytes(file), _EachKeyOnce) or {}
        except yaml.YAMLError as error:
            raise UserError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            raise UserError(f"{file}: a configuration is a mapping of sections, not a {type(values).__name__}")
        for key in values:
            if not isinstance(key, str):
                raise UserError(f"{file}: unknown key '{key}'; allowed here: {', '.join(Config.model_fields)}")
    _refuse_unknown_variables()
    return build(values, arguments, file or "the command line")


def build(values: dict[str, Any], arguments: Sequence[str] = (), origin: str = "settings") -> Config:
    """A configuration from nested values and command-line arguments; see `load`."""
    try:
        if not arguments:
            return _key_kept_secret(Config(**values))
        source: CliSettingsSource[Any] = CliSettingsSource(
            Config, cli_parse_args=list(arguments), cli_exit_on_error=False, cli_prog_name="job", cli_avoid_json=True
        )
        return _key_kept_secret(Config(**values, _cli_settings_source=source))  # type: ignore[call-arg]
    except ValidationError as error:
        told = (_explain(problem, _origin(problem["loc"], arguments, origin)) for problem in error.errors())
        raise UserError("\n".join(told)) from None
    except SettingsError as error:
        raise UserError(_unread(str(error))) from None


def _unread(problem: str) -> str:
    """What pydantic says of options and variables that it cannot read, as a line that says what to do."""
    named = re.search(r'for field "([\w.]+)"|encountered for ([\w.]+):', problem)
    if named is None:
        return f"command line: {problem.removeprefix('error parsing CLI: ')}; see --help for the settings"
    name = named[1] or named[2]
    where = "environment" if "EnvSettingsSource" in problem else "command line"
    return (
        f"{where}: {name} holds several settings and cannot be read from that; give them one by one, such as "
        f"--{name}.KEY VALUE, or as JSON, '{{\"KEY\": VALUE}}'; see --help for the settings"
    )


def _key_kept_secret(found: Config) -> Config:
    """The configuration, whose secret variable is not shown from now on."""
    storage.keep_secret(found.privacy.key_variable)
    return found


def varied(base: Config, changes: Mapping[str, Any], origin: str) -> Config:
    """A configuration with other values of some keys, such as {"train.learning_rate": 0.01}. What the environment sets
    is in the base already and does not outweigh them.

    Raises:
        UserError: a line per problem, each naming the key, the value and what is allowed.
    """
    values = base.model_dump()
    for key, value in changes.items():
        *path, name = key.split(".")
        section = values
        for part in path:
            section = section[part]
        section[name] = value
    try:
        return _Given(**values)
    except ValidationError as error:
        raise UserError("\n".join(_explain(problem, origin) for problem in error.errors())) from None


def _origin(key: tuple[Any, ...], arguments: Sequence[str], file: str) -> str:
    """Where a setting's value comes from: the strongest that gives it, or all of a setting that it is a part of."""
    options = {argument.partition("=")[0] for argument in arguments}
    parts = [str(part) for part in key]
    starts = [parts[:n] for n in range(len(parts), 0, -1)]
    if any(f"--{'.'.join(start)}" in options for start in starts):
        return "the command line"
    variables = (f"LLMREC_{'__'.join(start).upper()}" for start in starts)
    found = next((variable for variable in variables if variable in os.environ), None)
    return f"environment variable {found}" if found else file


def _explain(problem: Any, origin: str) -> str:
    key = ".".join(str(part) for part in problem["loc"]) or "configuration"
    if problem["type"] == "extra_forbidden":
        known = ", ".join(_known_keys(problem["loc"][:-1]))
        return f"{origin}: unknown key '{key}'; allowed here: {known}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{origin}: {key}: {message}" if problem["loc"] else f"{origin}: {message}"
    value = storage.redact(repr(problem["input"]))
    return f"{origin}: {key} = {value}: {message[0].lower()}{message[1:]}"


def _known_keys(path: tuple[Any, ...]) -> list[str]:
    model: Any = Config
    for part in path:
        field = model.model_fields.get(part)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        model = field.annotation
    return list(model.model_fields)


def _refuse_unknown_variables() -> None:
    """pydantic-settings passes over a misspelt environment variable in silence; a user would not want that."""
    for name in os.environ:
        if not name.startswith("LLMREC_") or name in OWN_VARIABLES:
            continue
        key = name.removeprefix("LLMREC_").lower().split("__")
        if key[-1] not in _known_keys(tuple(key[:-1])):
            raise UserError(f"environment variable {name}: no such setting; LLMREC_SCORE__TOP_K sets score.top_k")


OWN_VARIABLES = ("LLMREC_CACHE", "LLMREC_KUBERAY_CRDS", "LLMREC_TEST_DATA", *storage.OWN_SECRETS)
