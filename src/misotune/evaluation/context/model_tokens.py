"""How the evaluated model counts tokens, as far as the length of a prompt asks for it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from misotune.evaluation.task import Message
from misotune.layout.template import ChatTemplate


@dataclass(frozen=True, slots=True)
class ModelTokens:
    """Counts of the evaluated model's own tokenizer and template.

    Attributes:
        text: Returns the number of tokens of a text alone, without special tokens.
        prompt: Returns the number of tokens of a rendered conversation, the opening of the response included.
        context: The most tokens that prompt and response may have together; None: not known.
    """

    text: Callable[[str], int]
    prompt: Callable[[Sequence[Message]], int]
    context: int | None

    @classmethod
    def of(cls, tokenizer: Any, context: int | None) -> "ModelTokens":
        """Returns the counts of a transformers tokenizer that has a chat template."""
        template = ChatTemplate(tokenizer)

        def count_text(text: str) -> int:
            # Not verbose: texts longer than the model's context are tried on purpose.
            return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

        def count_prompt(messages: Sequence[Message]) -> int:
            return len(template.encode(list(messages), add_generation_prompt=True))

        return cls(count_text, count_prompt, context)
