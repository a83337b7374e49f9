"""The backend `hf`: a transformers model in this process, on any device."""

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from misotune.errors import RunError
from misotune.evaluation.backends.base import Conversation, Listener, Response
from misotune.evaluation.backends.chat_model import ChatModel
from misotune.evaluation.backends.response_cache import ResponseCache, model_identity, response_key
from misotune.evaluation.backends.shrinking import Row, can_shrink, decode_shrinking
from misotune.layout.template import ChatTemplate

# On two cores, all of IFEval with SmolLM2-135M's costs takes a fifth longer with 32 rows, and 8 % less with 128.
BATCH_SIZE = 64
# Tokens, those to come included, of a batch whose size is not given: 4 GiB of keys and values for a model of 1B.
_BATCH_TOKENS = 2**17
# Padding tokens of a row, there too, where they are more than its own: one long prompt would make all others wide.
_PADDING = 64


class HfBackend:
    """Generates greedily with a loaded model, in its own chat template.

    Prompts are taken in the order of their length, longest first, so that the rows of a batch are alike.

    Args:
        chat_model: The model.
        batch_size: Prompts at once; None: 64, fewer of long ones or of unlike ones. Halved, for good, where the
            accelerator's memory does not hold it.
    """

    def __init__(self, chat_model: ChatModel, batch_size: int | None = None) -> None:
        self._chat_model = chat_model
        self._batch_size = batch_size or BATCH_SIZE
        self._is_size_free = batch_size is None

    def settings(self, max_new_tokens: int) -> dict[str, Any]:
        """Returns sizes, dtype and device."""
        return {
            "backend": "hf",
            "max_new_tokens": max_new_tokens,
            "batch_size": self._batch_size,
            "dtype": self._chat_model.dtype,
            "device": self._chat_model.device.type,
            "decoding": "greedy",
        }

    def generate(
        self, conversations: Sequence[Conversation], *, max_new_tokens: int, cache: Path, listener: Listener
    ) -> None:
        """Answers every conversation.

        Raises:
            RunError: The prompts do not fit the model's context, one prompt does not fit the memory, or a
                response cannot be kept.
            UsageError: The cache is another file.
        """
        rendered = self.render(conversations)
        _check_context(self._chat_model.model, max(map(len, rendered)), max_new_tokens)
        keys = self._keys(rendered, max_new_tokens)
        with ResponseCache(cache) as responses:
            found = {index: responses.get(key) for index, key in enumerate(keys)}
            listener.on_kept({index: response for index, response in found.items() if response is not None})
            order = sorted(range(len(rendered)), key=lambda index: -len(rendered[index]))
            missing = [index for index in order if found[index] is None]
            while missing:
                batch = missing[: self._num_rows([len(rendered[index]) for index in missing], max_new_tokens)]
                try:
                    for num_tokens, ended in self._decode([rendered[index] for index in batch], max_new_tokens):
                        for row in ended:
                            index = batch[row.index]
                            found[index] = response = self._response(row.new_ids)
                            responses.put(keys[index], response)
                            listener.on_response(index, response)
                        listener.on_tokens(num_tokens)
                except torch.OutOfMemoryError as error:
                    if len(batch) == 1:
                        raise RunError(
                            f"the accelerator's memory does not hold one prompt with {max_new_tokens} new tokens; "
                            "lower --max-new-tokens"
                        ) from error
                    self._batch_size = len(batch) // 2
                missing = [index for index in missing if found[index] is None]

    def render(self, conversations: Sequence[Conversation]) -> list[list[int]]:
        """Returns the token ids that the model reads: those of training."""
        template = ChatTemplate(self._chat_model.tokenizer)
        return [template.encode(messages, add_generation_prompt=True) for messages in conversations]

    def _keys(self, rendered: Sequence[list[int]], max_new_tokens: int) -> list[str]:
        model = self._chat_model
        identity = model_identity(model.name, getattr(model.model.config, "_commit_hash", None))
        versions = [version("torch"), version("transformers")]
        settings = [max_new_tokens, model.dtype, model.device.type, list(model.eos_ids), versions]
        return [response_key(identity, ids, *settings) for ids in rendered]

    def _num_rows(self, lengths: Sequence[int], max_new_tokens: int) -> int:
        """Returns how many of the next prompts, longest first, are one batch."""
        if not self._is_size_free:
            return self._batch_size
        longest = lengths[0]
        num_alike = sum(longest - length <= max(_PADDING, length) for length in lengths)
        return max(1, min(self._batch_size, num_alike, _BATCH_TOKENS // (longest + max_new_tokens)))

    def _decode(self, prompts: Sequence[list[int]], max_new_tokens: int) -> Iterator[tuple[int, list[Row]]]:
        model = self._chat_model
        if can_shrink(model.model):
            return decode_shrinking(model.model, prompts, max_new_tokens=max_new_tokens, eos_ids=model.eos_ids)
        return decode_whole(model, prompts, max_new_tokens)

    def _response(self, new_ids: list[int]) -> Response:
        is_cut = new_ids[-1] not in self._chat_model.eos_ids
        text = self._chat_model.tokenizer.decode(
            new_ids if is_cut else new_ids[:-1], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return Response(text, len(new_ids), is_cut)


def decode_whole(
    chat_model: ChatModel, prompts: Sequence[list[int]], max_new_tokens: int
) -> Iterator[tuple[int, list[Row]]]:
    """Yields what `decode_shrinking` yields, at once, from `model.generate`: for models with other memories."""
    rows = [Row(index, prompt) for index, prompt in enumerate(prompts)]
    for row, ids in zip(rows, _generate_batch(chat_model, prompts, max_new_tokens), strict=True):
        end = next((i for i, token in enumerate(ids) if token in chat_model.eos_ids), len(ids) - 1)
        row.new_ids = ids[: end + 1]
    yield sum(len(row.new_ids) for row in rows), rows


@torch.inference_mode()
def _generate_batch(chat_model: ChatModel, prompts: Sequence[list[int]], max_new_tokens: int) -> list[list[int]]:
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
    try:
        return model.generate(input_ids, attention_mask=mask)[:, width:].tolist()
    finally:
        model.generation_config = own


def _check_context(model: Any, longest_prompt: int, max_new_tokens: int) -> None:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and longest_prompt + max_new_tokens > context:
        raise RunError(
            f"the longest prompt ({longest_prompt} tokens) and {max_new_tokens} new tokens exceed "
            f"the model's context of {context}; use --max-new-tokens {max(1, context - longest_prompt)}"
        )
