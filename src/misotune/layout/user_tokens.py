"""Which tokens of a rendered conversation are the text of a message, and which are the template's."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misotune.errors import LayoutError, UsageError
from misotune.layout.template import ChatTemplate

Message = Mapping[str, str]

# What stands in a message's place to find where the template puts its text.
_PROBE = "MisotuneProbe7391"
_LINE_BREAKS = frozenset("\r\n")


class MessageTokens:
    """Tells the chat template's own tokens from what user and assistant wrote.

    Not counted as anybody's text: the template's tokens, BOS, EOS, and tokens of line breaks alone.

    Args:
        template: The model's chat template.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._tokenizer = template.tokenizer
        self._line_breaks: dict[int, bool] = {}

    def find(
        self, messages: Sequence[Message], *, add_generation_prompt: bool, only: Sequence[int] | None = None
    ) -> tuple[list[int], dict[int, NDArray[np.bool_]]]:
        """Returns a conversation's token ids, and which of them are the text of each message, by its index.

        Args:
            messages: The conversation.
            add_generation_prompt: Whether the template opens a response behind them.
            only: Indices of the messages to look for; None: all.

        Raises:
            LayoutError: The template refuses the conversation, or does not hold a message's text as it is.
            UsageError: The tokenizer cannot say where its tokens lie in a text.
        """
        text = self._template.render(messages, add_generation_prompt=add_generation_prompt)
        indices = range(len(messages)) if only is None else only
        spans = {i: self._text_span(messages, i, text, add_generation_prompt) for i in indices}
        ids = self._template.encode(messages, add_generation_prompt=add_generation_prompt)
        offsets = self._offsets(text, len(ids))
        counts = np.array([self._is_counted(token) for token in ids], dtype=bool)
        return ids, {i: (offsets[:, 0] < end) & (offsets[:, 1] > start) & counts for i, (start, end) in spans.items()}

    def find_users(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> tuple[list[int], list[bool]]:
        """Returns a conversation's token ids, and which of them are the text of the user's messages.

        Raises:
            LayoutError: The template refuses the conversation, or does not hold a message's text as it is.
            UsageError: The tokenizer cannot say where its tokens lie in a text.
        """
        users = [index for index, message in enumerate(messages) if message["role"] == "user"]
        ids, found = self.find(messages, add_generation_prompt=add_generation_prompt, only=users)
        is_user = np.zeros(len(ids), dtype=bool)
        for places in found.values():
            is_user |= places
        return ids, is_user.tolist()

    def _text_span(
        self, messages: Sequence[Message], index: int, text: str, add_generation_prompt: bool
    ) -> tuple[int, int]:
        """Returns where a message's text stands in the rendered conversation; a template may strip it."""
        message = messages[index]
        probed = [*messages[:index], {**message, "content": _PROBE}, *messages[index + 1 :]]
        start = self._template.render(probed, add_generation_prompt=add_generation_prompt).find(_PROBE)
        for content in (message["content"], message["content"].strip()):
            if start >= 0 and text.startswith(content, start):
                return start, start + len(content)
        raise LayoutError(f"the chat template does not hold the text of message {index + 1} as it is")

    def _offsets(self, text: str, num_tokens: int) -> NDArray[np.int64]:
        try:
            # Not verbose: whether a text fits the model is checked elsewhere.
            options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
            offsets = self._tokenizer(text, **options)["offset_mapping"]
        except NotImplementedError as error:
            raise UsageError(
                f"the tokenizer of {self._tokenizer.name_or_path} cannot say where its tokens lie in a text; "
                "name a model with a fast tokenizer (tokenizer.json)"
            ) from error
        return np.array(offsets, dtype=np.int64).reshape(num_tokens, 2)

    def _is_counted(self, token: int) -> bool:
        if token not in self._line_breaks:
            text = self._tokenizer.decode([token])
            self._line_breaks[token] = bool(text) and _LINE_BREAKS.issuperset(text)
        return not self._line_breaks[token] and token not in self._ends

    @cached_property
    def _ends(self) -> frozenset[Any]:
        return frozenset((self._tokenizer.bos_token_id, self._tokenizer.eos_token_id))
