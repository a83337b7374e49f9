"""How the evaluated model counts tokens, as far as the length of a prompt asks for it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from misotune.errors import UsageError
from misotune.evaluation.models import find_model
from misotune.evaluation.task import Message
from misotune.hub import require_model
from misotune.layout.template import ChatTemplate

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


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


def load_model_tokens(name: str, context: int | None = None) -> ModelTokens:
    """Returns the counts of a tokenizer whose model answers elsewhere; no weights are loaded.

    Args:
        name: A folder with a tokenizer, a run, or a hub id.
        context: The most tokens that prompt and response may have together; None: as many as the model's `config.json`
            beside the tokenizer says, and not known without one. A server may have been started with fewer.

    Raises:
        UsageError: There is no tokenizer of that name, or it has no chat template.
    """
    from transformers import AutoTokenizer

    path = name if _has_tokenizer(name) else find_model(name).path
    require_model(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:  # as transformers and the hub's client raise them
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UsageError(f"--tokenizer {name}: no tokenizer can be loaded from there: {reason:.160}") from error
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(f"--tokenizer {name}: it has no chat template; name the tokenizer of the model that answers")
    return ModelTokens.of(tokenizer, _configured_context(path) if context is None else context)


def _has_tokenizer(name: str) -> bool:
    return any((Path(name).expanduser() / file).is_file() for file in _TOKENIZER_FILES)


def _configured_context(path: str) -> int | None:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError):  # no config, or one of a model that this transformers does not know
        return None
    return getattr(config.get_text_config(), "max_position_embeddings", None)
