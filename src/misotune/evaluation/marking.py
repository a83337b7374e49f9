"""Prompts with the context-dependency indicator, for models that were trained with it."""

from collections.abc import Sequence
from typing import Any

from misotune.errors import UsageError
from misotune.evaluation.task import Message
from misotune.indicator import INDICATOR, mark_turn

SETTING = "indicator"


def check_indicator(tokenizer: Any, name: str) -> None:
    """Makes sure that a model knows the indicator.

    Args:
        tokenizer: The model's.
        name: The model, for the error.

    Raises:
        UsageError: It does not.
    """
    if INDICATOR not in tokenizer.get_vocab():
        raise UsageError(
            f"--indicator: {name} does not know the token {INDICATOR}; leave it out, or name a run that was trained on "
            "a dataset of misotune prepare indicator"
        )


def marked_prompts(conversations: Sequence[Sequence[Message]], *, is_marked: bool) -> list[Sequence[Message]]:
    """Returns the conversations as they are asked: with `is_marked`, the indicator behind the last user turn."""
    if not is_marked:
        return list(conversations)
    return [mark_turn(messages, _last_user_turn(messages)) for messages in conversations]


def _last_user_turn(messages: Sequence[Message]) -> int:
    return max(i for i, message in enumerate(messages) if message["role"] == "user")
