"""The inputs of a generation as token ids, rendered with the model's own template as in training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from misotune.errors import LayoutError, UsageError
from misotune.layout import ChatTemplate, RowLayout
from misotune.layout.row import Positions
from misotune.layout.template import Message, shipped_template_names
from misotune.layout.user_tokens import MessageTokens

Input = str | Sequence[Message]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What stands before the response: the row [x_1 .. x_n, generation prompt].

    Attributes:
        inputs: Token ids of each input, without generation prompt.
        generation_prompt: What opens the output: it stands once, and reads every input.
        positions: How positions count (`RowLayout`).
        weights: Score_i of each input under the weighting `fixed`; empty: 1/n each.
        user_tokens: Which tokens of each input are the user's text; empty: nobody asked.
    """

    inputs: tuple[tuple[int, ...], ...]
    generation_prompt: tuple[int, ...]
    positions: Positions = "aligned"
    weights: tuple[float, ...] = ()
    user_tokens: tuple[tuple[bool, ...], ...] = ()

    @property
    def token_ids(self) -> list[int]:
        """The row's token ids."""
        return [token for part in (*self.inputs, self.generation_prompt) for token in part]

    @property
    def num_tokens(self) -> int:
        """Tokens of the row: what is computed before the first response token."""
        return sum(map(len, self.inputs)) + len(self.generation_prompt)

    @property
    def num_positions(self) -> int:
        """Positions in use; the first response token takes the next one."""
        return int(self.layout(self.num_tokens).position_ids[-1]) + 1

    def is_user(self, num_tokens: int) -> Bool[Tensor, "T"]:
        """Returns the user's tokens of the row once it has grown to `num_tokens` tokens: none of the output."""
        flags = [flag for part in self.user_tokens for flag in part]
        return torch.tensor(flags + [False] * (num_tokens - len(flags)))

    def layout(self, num_tokens: int) -> RowLayout:
        """Returns the layout of the row once it has grown to `num_tokens` tokens."""
        num_output = num_tokens - sum(map(len, self.inputs))
        layout = RowLayout.from_lengths([([len(x) for x in self.inputs], num_output)], self.positions)
        return replace(layout, samples=(layout.samples[0]._replace(weights=self.weights),))


def encode_prompt(
    inputs: Sequence[Input],
    tokenizer: Any,
    *,
    shared_prefix: Input | None = None,
    positions: Positions = "aligned",
    weights: Sequence[float] = (),
    finds_users: bool = False,
) -> Prompt:
    """Returns the prompt of a generation from n inputs.

    Args:
        inputs: Each one user turn, or chat messages that end with the user's.
        tokenizer: A transformers tokenizer that has a chat template.
        shared_prefix: What stands in front of every input: a text, or messages (`with_prefix`).
        positions: How positions count (`RowLayout`).
        weights: Score_i of each input, for the weighting `fixed`.
        finds_users: Also find which tokens are the user's text.

    Raises:
        UsageError: No input, an input of the wrong form, or a tokenizer without chat template.
        LayoutError: The template gives the inputs no common generation prompt.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template, so it is not known where an output "
            f"begins; use a chat model or a trained run, or set tokenizer.chat_template "
            f"(misotune.layout.template.read_template gives {', '.join(shipped_template_names())})"
        )
    if isinstance(inputs, str) or not inputs:
        raise UsageError("inputs must be a list of at least one input, each a text or a list of chat messages")
    template = ChatTemplate(tokenizer)
    chats = [as_messages(entry, f"input {number}") for number, entry in enumerate(inputs, start=1)]
    if shared_prefix is not None:
        chats = [with_prefix(shared_prefix, messages) for messages in chats]
    splits = [template.split_prompt(messages) for messages in chats]
    openings = {tuple(opening) for _, opening in splits}
    if len(openings) > 1:
        raise LayoutError("the inputs do not share one generation prompt, so they cannot share an output")
    prompt = Prompt(tuple(tuple(ids) for ids, _ in splits), openings.pop(), positions, tuple(weights))
    if not finds_users:
        return prompt
    tokens = MessageTokens(template)
    # An input is the beginning of what is rendered with the generation prompt.
    flags = [tokens.find_users(messages, add_generation_prompt=True)[1] for messages in chats]
    found = [tuple(own[: len(ids)]) for own, ids in zip(flags, prompt.inputs, strict=True)]
    return replace(prompt, user_tokens=tuple(found))


def as_messages(entry: Input, where: str) -> list[Message]:
    """Returns an input as chat messages that end with the user's turn.

    >>> as_messages("Name a river.", "input 1")
    [{'role': 'user', 'content': 'Name a river.'}]

    Raises:
        UsageError: It has another form, or an empty last turn.
    """
    messages: list[Message] = [{"role": "user", "content": entry}] if isinstance(entry, str) else list(entry)
    _check_messages(messages, where)
    if not messages or messages[-1]["role"] != "user":
        raise UsageError(f"{where}: the last message must be the user's, for the model to answer")
    if not messages[-1]["content"].strip():
        raise UsageError(f"{where} is empty")
    return messages


def with_prefix(prefix: Input, messages: Sequence[Message]) -> list[Message]:
    r"""Returns an input's messages behind a prefix that all inputs share.

    A text goes in front of the first user turn's text, with a blank line between unless it ends with white space;
    messages go in front of the messages.

    >>> with_prefix("Answer in French.", [{"role": "user", "content": "Name a river."}])
    [{'role': 'user', 'content': 'Answer in French.\n\nName a river.'}]

    Raises:
        UsageError: The prefix is empty, or not of this form.
    """
    if not prefix:
        raise UsageError("the shared prefix is empty; leave it out")
    if not isinstance(prefix, str):
        _check_messages(prefix, "shared prefix")
        return [*prefix, *messages]
    first = next(i for i, message in enumerate(messages) if message["role"] == "user")
    text = (prefix if prefix[-1].isspace() else prefix + "\n\n") + messages[first]["content"]
    return [*messages[:first], {**messages[first], "content": text}, *messages[first + 1 :]]


def _check_messages(messages: Sequence[Any], where: str) -> None:
    for message in messages:
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise UsageError(f"{where}: a message needs 'role' and 'content', got {message!r:.80}")
        if not isinstance(message["content"], str):
            raise UsageError(f"{where}: a message's content must be text, got {message['content']!r:.80}")
