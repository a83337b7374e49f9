"""What answers the prompts of a task: a backend, what it hands over as it goes on, and the sum of it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Conversation = Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Response:
    """A model's response.

    Attributes:
        text: Without special tokens.
        num_tokens: Tokens, the one that ends it included; None: the backend does not say.
        is_cut: It reached the longest response before it ended; None: the backend does not say.
    """

    text: str
    num_tokens: int | None = None
    is_cut: bool | None = None


class Listener(Protocol):
    """Hears from a backend at work."""

    def on_kept(self, responses: Mapping[int, Response]) -> None:
        """Called once, before anything is generated: responses of an interrupted evaluation, by index."""
        ...

    def on_tokens(self, num_tokens: int) -> None:
        """Called after each step, where the backend counts tokens."""
        ...

    def on_response(self, index: int, response: Response) -> None:
        """Called for each other response, as soon as it is there; it is in the cache by then."""
        ...


class Backend(Protocol):
    """Something that answers conversations, greedily."""

    def settings(self, max_new_tokens: int) -> dict[str, Any]:
        """Returns how responses are made, as kept with the scores; `backend` is its name."""
        ...

    def generate(
        self, conversations: Sequence[Conversation], *, max_new_tokens: int, cache: Path, listener: Listener
    ) -> None:
        """Answers every conversation, those in the cache without generating anything.

        Args:
            conversations: Turns, `role` and `content` each.
            max_new_tokens: The longest response.
            cache: A file for the responses; each is kept there before the listener hears of it.
            listener: Hears of every response once.

        Raises:
            MisotuneError: What stops it, and how to go on.
        """
        ...


@dataclass(frozen=True, slots=True)
class GenerationProgress:
    """How far generation is.

    Attributes:
        num_done: Responses that are there, the kept ones too.
        num_prompts: All that are asked for.
        num_kept: Responses kept from an interrupted evaluation.
        num_new_tokens: Generated since this start; it grows with every step.
        elapsed_s: Since this start.
    """

    num_done: int
    num_prompts: int
    num_kept: int
    num_new_tokens: int
    elapsed_s: float

    @property
    def tokens_per_s(self) -> float:
        """New tokens per second since this start, over all prompts of a batch together."""
        return self.num_new_tokens / max(self.elapsed_s, 1e-9)


OnProgress = Callable[[GenerationProgress], None]


@dataclass(frozen=True, slots=True)
class GenerationAccount:
    """What generation took.

    Attributes:
        num_new_tokens: Of all responses, the kept ones too; None: the backend does not say.
        num_cut: Responses that reached the longest before they ended; None: the backend does not say.
        num_kept: Responses kept from an interrupted evaluation.
        elapsed_s: Since the last start.
        tokens_per_s: Since the last start; None: the backend does not say.
    """

    num_new_tokens: int | None
    num_cut: int | None
    num_kept: int
    elapsed_s: float
    tokens_per_s: float | None


@dataclass(frozen=True, slots=True)
class Generated:
    """The responses in the order of the prompts, and how they were made."""

    responses: list[str]
    settings: dict[str, Any]
    account: GenerationAccount


def generate_responses(
    backend: Backend,
    conversations: Sequence[Conversation],
    *,
    max_new_tokens: int,
    cache: Path,
    on_progress: OnProgress | None = None,
) -> Generated:
    """Returns a backend's response to each conversation.

    Args:
        backend: What answers.
        conversations: Turns, `role` and `content` each.
        max_new_tokens: The longest response.
        cache: A file that keeps the responses as they come; those that it has are not generated.
        on_progress: Called at the start, and with every step and response.

    Raises:
        MisotuneError: The backend cannot go on.
    """
    collector = _Collector(len(conversations), on_progress)
    backend.generate(conversations, max_new_tokens=max_new_tokens, cache=cache, listener=collector)
    responses = [collector.responses[index] for index in range(len(conversations))]
    return Generated([r.text for r in responses], backend.settings(max_new_tokens), collector.account())


class _Collector:
    """A listener that gathers the responses and counts."""

    def __init__(self, num_prompts: int, on_progress: OnProgress | None) -> None:
        self.responses: dict[int, Response] = {}
        self._num_prompts = num_prompts
        self._on_progress = on_progress
        self._num_kept = 0
        self._num_new_tokens = 0
        self._start_s = time.perf_counter()

    def on_kept(self, responses: Mapping[int, Response]) -> None:
        self.responses.update(responses)
        self._num_kept = len(responses)
        self._report()

    def on_tokens(self, num_tokens: int) -> None:
        self._num_new_tokens += num_tokens
        self._report()

    def on_response(self, index: int, response: Response) -> None:
        self.responses[index] = response
        self._report()

    def account(self) -> GenerationAccount:
        now = self._progress()
        num_tokens = [r.num_tokens for r in self.responses.values() if r.num_tokens is not None]
        cuts = [r.is_cut for r in self.responses.values() if r.is_cut is not None]
        is_told = len(num_tokens) == len(self.responses)
        return GenerationAccount(
            num_new_tokens=sum(num_tokens) if is_told else None,
            num_cut=sum(cuts) if len(cuts) == len(self.responses) else None,
            num_kept=self._num_kept,
            elapsed_s=round(now.elapsed_s, 2),
            tokens_per_s=round(now.tokens_per_s, 1) if is_told else None,
        )

    def _progress(self) -> GenerationProgress:
        elapsed_s = time.perf_counter() - self._start_s
        return GenerationProgress(
            len(self.responses), self._num_prompts, self._num_kept, self._num_new_tokens, elapsed_s
        )

    def _report(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self._progress())
