"""Which weights of a ranker learn."""

from __future__ import annotations

from typing import Any

from llmrec.config import Train
from llmrec.errors import UserError
from llmrec.ranker.heads import YesNoHead
from llmrec.ranker.model import Ranker, layers_of


def prepare_tuning(ranker: Ranker, train: Train) -> None:
    """Freeze what does not learn, or put LoRA adapters in. Head and item vectors always learn.

    From here on an encoder scores by branches too, for training shows it that mask and no other.

    Raises:
        UserError: top_n asks for more layers than there are.
    """
    backbone: Any = ranker.backbone
    backbone.requires_grad_(False)
    ranker.card = ranker.card.model_copy(update={"packing": "branches"})
    if isinstance(ranker.head, YesNoHead):
        ranker.head.vocabulary = None  # it does not learn
    if train.tune == "full":
        backbone.requires_grad_(True)
        backbone.get_input_embeddings().requires_grad_(train.train_embeddings)
    elif train.tune == "top_n":
        layers = layers_of(backbone)
        if train.top_n > len(layers):
            raise UserError(f"train.top_n = {train.top_n}: the backbone has only {len(layers)} layers")
        layers[-train.top_n :].requires_grad_(True)
        if hasattr(backbone, "norm"):  # an encoder's layers end in a norm of their own
            backbone.norm.requires_grad_(True)
    elif train.tune == "lora":
        from peft import LoraConfig, get_peft_model

        adapters = LoraConfig(
            r=train.lora_rank, lora_alpha=train.lora_alpha, lora_dropout=train.dropout, target_modules="all-linear"
        )
        ranker.backbone = get_peft_model(backbone, adapters)


def merge_adapters(ranker: Ranker) -> None:
    """Fold LoRA adapters into the weights they adapt, so that scoring knows nothing of them."""
    merge = getattr(ranker.backbone, "merge_and_unload", None)
    if merge is not None:
        ranker.backbone = merge()


def trainable(ranker: Ranker) -> dict[str, Any]:
    """The tensors that learn, by name: what a checkpoint has to hold."""
    learning = {name for name, parameter in ranker.named_parameters() if parameter.requires_grad}
    return {name: tensor.detach() for name, tensor in ranker.state_dict().items() if name in learning}
