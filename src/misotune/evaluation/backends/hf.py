"""The backend `hf`: a transformers model in this process, on any device."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from misotune.attention.steered import check_steering, steered_generation
from misotune.attention.steering import SteeredPrompts, Steering
from misotune.errors import RunError
from misotune.evaluation.backends.base import Conversation, Listener
from misotune.evaluation.backends.chat_model import ChatModel, ModelFacts
from misotune.evaluation.backends.prompt_queue import BATCH_SIZE, PromptQueue, check_context, render_steered
from misotune.evaluation.backends.response_cache import ResponseCache
from misotune.evaluation.backends.shrinking import Row, can_shrink, decode_shrinking


class HfBackend:
    """Generates greedily with a loaded model, in its own chat template.

    Prompts are taken in the order of their length, longest first, so that the rows of a batch are alike.

    Args:
        chat_model: The model.
        batch_size: Prompts at once; None: 128, fewer of long ones or of unlike ones. Halved, for good, where the
            accelerator's memory does not hold it.
        steering: How its attention is steered; None: it is not.

    Raises:
        UnsupportedModelError: The model cannot be steered.
        UsageError: It has no such layers or heads.
    """

    def __init__(
        self, chat_model: ChatModel, batch_size: int | None = None, *, steering: Steering | None = None
    ) -> None:
        if steering is not None:
            check_steering(chat_model.model.config, steering)
        self._chat_model = chat_model
        self._steering = steering
        self._batch_size = batch_size or BATCH_SIZE
        self._is_size_free = batch_size is None

    @property
    def chat_model(self) -> ChatModel:
        """The model, for what else is asked of it."""
        return self._chat_model

    @property
    def tokenizer(self) -> Any:
        """The model's."""
        return self._chat_model.tokenizer

    @property
    def facts(self) -> ModelFacts:
        """Of the model."""
        return self._chat_model.facts

    def settings(self, max_new_tokens: int) -> dict[str, Any]:
        """Returns sizes, dtype, device and steering."""
        return settings_of(self.facts, max_new_tokens, self._batch_size, self._steering)

    def generate(
        self, conversations: Sequence[Conversation], *, max_new_tokens: int, cache: Path, listener: Listener
    ) -> None:
        """Answers every conversation.

        Raises:
            RunError: The prompts do not fit the model's context, one prompt does not fit the memory, or a
                response cannot be kept.
            UsageError: The cache is another file.
        """
        prompts, steered = render_steered(self.tokenizer, conversations, self._steering)
        check_context(prompts, max_new_tokens, self.facts.context)
        with ResponseCache(cache) as responses:
            queue = PromptQueue(
                prompts,
                max_new_tokens,
                facts=self.facts,
                tokenizer=self.tokenizer,
                cache=responses,
                listener=listener,
                steered=steered,
            )
            while batch := queue.take(self._batch_size, is_size_free=self._is_size_free):
                try:
                    for num_tokens, ended in decode(
                        self._chat_model, queue.ids(batch), max_new_tokens, queue.steered(batch)
                    ):
                        for row in ended:
                            queue.answer(batch[row.index], row.new_ids)
                        listener.on_tokens(num_tokens)
                except torch.OutOfMemoryError as error:
                    self._batch_size = halved(batch, max_new_tokens, "the accelerator", error)
                    queue.give_back(batch)


def settings_of(
    facts: ModelFacts, max_new_tokens: int, batch_size: int, steering: Steering | None = None
) -> dict[str, Any]:
    """Returns how a transformers model makes responses, as kept with the scores."""
    return {
        "backend": "hf",
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "dtype": facts.dtype,
        "device": facts.device,
        "decoding": "greedy",
        **({} if steering is None else steering.settings),
    }


def halved(batch: Sequence[int], max_new_tokens: int, device: str, error: Exception | None = None) -> int:
    """Returns the size of the next batch after one that the memory did not hold.

    Raises:
        RunError: It was of one prompt.
    """
    if len(batch) == 1:
        raise RunError(
            f"{device}'s memory does not hold one prompt with {max_new_tokens} new tokens; lower --max-new-tokens"
        ) from error
    return len(batch) // 2


def decode(
    chat_model: ChatModel, prompts: Sequence[list[int]], max_new_tokens: int, steered: SteeredPrompts | None = None
) -> Iterator[tuple[int, list[Row]]]:
    """Yields after each step of one batch the number of its new tokens and the rows that ended with it."""
    if steered is not None and steered.steering.is_neutral:
        steered = None  # the model as it is, to the last bit
    if can_shrink(chat_model.model):
        return decode_shrinking(
            chat_model.model, prompts, max_new_tokens=max_new_tokens, eos_ids=chat_model.eos_ids, steered=steered
        )
    return decode_whole(chat_model, prompts, max_new_tokens, steered)


def decode_whole(
    chat_model: ChatModel, prompts: Sequence[list[int]], max_new_tokens: int, steered: SteeredPrompts | None = None
) -> Iterator[tuple[int, list[Row]]]:
    """Yields what `decode_shrinking` yields, at once, from `model.generate`: for models with other memories."""
    rows = [Row(index, prompt) for index, prompt in enumerate(prompts)]
    for row, ids in zip(rows, _generate_batch(chat_model, prompts, max_new_tokens, steered), strict=True):
        end = next((i for i, token in enumerate(ids) if token in chat_model.eos_ids), len(ids) - 1)
        row.new_ids = ids[: end + 1]
    yield sum(len(row.new_ids) for row in rows), rows


@torch.inference_mode()
def _generate_batch(
    chat_model: ChatModel, prompts: Sequence[list[int]], max_new_tokens: int, steered: SteeredPrompts | None
) -> list[list[int]]:
    """Returns the new ids of each prompt, padding included."""
    width = max(map(len, prompts))
    model, pad_id = chat_model.model, chat_model.pad_id
    input_ids = torch.tensor([[pad_id] * (width - len(ids)) + ids for ids in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=model.device)
    own = model.generation_config
    # Put in the place of the model's own: one given to `generate` would inherit its penalties.
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=list(chat_model.eos_ids), pad_token_id=pad_id
    )
    steering = (
        nullcontext() if steered is None else steered_generation(model, steered.steering, steered.is_user(model.device))
    )
    try:
        with steering:
            return model.generate(input_ids, attention_mask=mask)[:, width:].tolist()
    finally:
        model.generation_config = own
