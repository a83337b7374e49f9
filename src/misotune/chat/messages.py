"""What is asked of a chat server, and what comes back."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

EMPTY_ANSWER = "the server's answer is empty"


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One question.

    Attributes:
        messages: Role and content of each turn.
        options: Further fields of the request: temperature, max_tokens, ...
        version: Of what made the messages; another version is another question to the cache.
    """

    messages: tuple[Mapping[str, str], ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""

    def key(self, model: str) -> str:
        """Returns the cache key: a digest of all that decides the answer, the address and the API key left out."""
        content = [model, self.version, [dict(message) for message in self.messages], dict(self.options)]
        text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """An answer.

    Attributes:
        text: Never empty.
        finish_reason: The server's word for why the answer ends there, such as `stop` or `length`; None: it says none.
        num_tokens: Tokens that the model wrote, as the server counts them; None: it does not say.
        is_cached: It came from the cache.
    """

    text: str
    finish_reason: str | None = None
    num_tokens: int | None = None
    is_cached: bool = False


@dataclass(frozen=True, slots=True)
class ApiFailure:
    """A question that got no usable answer, though the server lives.

    Attributes:
        reason: Equal for equal failures, so that they can be counted; `EMPTY_ANSWER` for an answer without text.
        detail: What the server said.
        finish_reason: As in `ChatAnswer`, of an answer without text: a model may have thought until it was cut.
        num_tokens: As in `ChatAnswer`, likewise.
    """

    reason: str
    detail: str = ""
    finish_reason: str | None = None
    num_tokens: int | None = None

    def __str__(self) -> str:
        return f"{self.reason} ({self.detail})" if self.detail else self.reason
