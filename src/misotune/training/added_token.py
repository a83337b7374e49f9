"""A token that training adds to the vocabulary, and its rows in the embeddings: the indicator of marked datasets."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AddedToken
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from misotune.data.dataset import open_dataset
from misotune.data.indicator import marked_with
from misotune.errors import UsageError
from misotune.layout import ChatTemplate
from misotune.training.model import ModelSource, load_tokenizer


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token that the model does not know yet.

    Attributes:
        text: Its text.
        id: The id that the tokenizer gave it.
    """

    text: str
    id: int


def load_template_for(source: ModelSource, data: Path) -> tuple[ChatTemplate, NewToken | None]:
    """Returns the model's chat template for a dataset, and the token that the dataset needs beside its own.

    A marked dataset's indicator is added to the tokenizer: an ordinary token, so that a text that is decoded still
    shows it. It takes the blank in front of it along, so that all other tokens are those of the turn without it.

    Args:
        source: The model.
        data: The dataset.

    Returns:
        The template, and the new token; None: none is needed, or the model knows it.

    Raises:
        UsageError: There is no such model, or it has no chat template.
        DataError: The dataset cannot be read.
    """
    tokenizer, new = load_tokenizer(source), None
    text = marked_with(open_dataset(data, verify=False))
    if text is not None and text not in tokenizer.get_vocab():
        tokenizer.add_tokens([AddedToken(text, lstrip=True, normalized=False, special=False)])
        new = NewToken(text, tokenizer.convert_tokens_to_ids(text))
    return ChatTemplate(tokenizer), new


def describe_token(token: NewToken | None, config: Any) -> str | None:
    """Returns what becomes of the vocabulary, for the plan."""
    if token is None:
        return None
    size = config.get_text_config().vocab_size
    place = f"one row more than {size:,}" if token.id >= size else f"a free row of {size:,}"
    return f"{token.text} is new, token {token.id:,}: {place}, which starts as the mean of the other tokens'"


def add_rows(model: Any, token: NewToken) -> None:
    """Gives the token its rows in the model's embeddings: the mean of those of all tokens before it.

    The output head's too, where it has weights of its own. A mean row is no token's neighbour, and predicts the token
    no more often than an average one (https://nlp.stanford.edu/~johnhew/vocab-expansion.html); drawn from nothing, it
    is the same on every rank.

    Raises:
        UsageError: The model's embeddings cannot grow.
    """
    size = model.config.get_text_config().vocab_size
    if token.id >= size:
        try:
            model.resize_token_embeddings(token.id + 1, mean_resizing=False)
        except (NotImplementedError, TypeError, ValueError) as error:
            raise UsageError(f"model.name: its embeddings cannot take the token {token.text}: {error}") from error
    for weight in _embeddings(model):
        with _gathered(weight), torch.no_grad():
            if len(weight):  # ZeRO-3: only rank 0's change is taken over, and all have the whole here
                weight[token.id] = weight[: token.id].mean(dim=0, dtype=torch.float32).to(weight.dtype)


def embedding_names(model: Any) -> list[str]:
    """Returns the names of the modules with rows for tokens: the input embeddings, and an output head of its own."""
    shared = {id(module): name for name, module in model.named_modules()}
    modules = [model.get_input_embeddings()]
    head = model.get_output_embeddings()
    if head is not None and head.weight is not modules[0].weight:
        modules.append(head)
    return [shared[id(module)] for module in modules]


def _embeddings(model: Any) -> Iterator[Tensor]:
    for name in embedding_names(model):
        module = model.get_submodule(name)
        yield module.weight
        if getattr(module, "bias", None) is not None:
            yield module.bias


def _gathered(weight: Any) -> Any:
    """Returns a context in which a weight that ZeRO-3 divided is whole, and divided again as rank 0 left it."""
    if not is_deepspeed_zero3_enabled() or not hasattr(weight, "ds_id"):
        return nullcontext()
    from deepspeed.runtime.zero import GatheredParameters

    return GatheredParameters([weight], modifier_rank=0)
