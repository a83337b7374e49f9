"""The backend `endpoint`: a model on an OpenAI-compatible server, such as vLLM, SGLang or llama.cpp's."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from misotune.chat.api import ChatApi
from misotune.chat.cache import AnswerCache
from misotune.chat.client import require_openai
from misotune.chat.messages import EMPTY_ANSWER, ApiFailure, ChatAnswer, ChatRequest
from misotune.chat.server import Server
from misotune.errors import RunError
from misotune.evaluation.backends.base import Conversation, Listener, Response


class EndpointBackend:
    """Asks a model on a server, which renders the chat template and counts the tokens itself.

    Args:
        server: Who is asked.
        timeout_s: Seconds until one try is given up: a response of 1280 tokens beside seven others, from a model on
            a CPU, takes minutes.
        retries: Tries after the first, with growing pauses, when the server is busy, fails or is away.

    Raises:
        UsageError: The package `openai` is missing.
    """

    def __init__(self, server: Server, *, timeout_s: float = 900.0, retries: int = 5) -> None:
        self._server = server
        self._timeout_s = timeout_s
        self._retries = retries
        require_openai()  # here, so that it is told before anything starts

    def settings(self, max_new_tokens: int) -> dict[str, Any]:
        """Returns the server's address and what it was asked for."""
        return {
            "backend": "endpoint",
            "endpoint": self._server.base_url,
            "max_new_tokens": max_new_tokens,
            "concurrency": self._server.concurrency,
            "decoding": "greedy",
        }

    def generate(
        self, conversations: Sequence[Conversation], *, max_new_tokens: int, cache: Path, listener: Listener
    ) -> None:
        """Answers every conversation; `ChatApi` keeps each answer in the cache, in whichever order they come.

        Raises:
            RunError: The server is down, refuses the key or the model, or leaves prompts without a response; or a
                response cannot be kept.
            UsageError: The cache is another file.
        """
        options = {"temperature": 0, "max_tokens": max_new_tokens}
        requests = [ChatRequest(tuple(messages), options) for messages in conversations]
        with AnswerCache(cache) as answers:
            found = {i: answers.get(request.key(self._server.model)) for i, request in enumerate(requests)}
        listener.on_kept({i: _response_of(answer) for i, answer in found.items() if answer is not None})
        api = ChatApi(self._server, cache=cache, timeout_s=self._timeout_s, retries=self._retries)
        failures: Counter[str] = Counter()
        for index, answer in api.ask((i for i, answer in found.items() if answer is None), requests.__getitem__):
            assert answer is not None
            # A model that says nothing has answered: a response that meets nothing.
            if isinstance(answer, ApiFailure) and answer.reason != EMPTY_ANSWER:
                failures[str(answer)] += 1
                continue
            response = _response_of(answer)
            listener.on_tokens(response.num_tokens or 0)
            listener.on_response(index, response)
        if failures:
            reasons = "; ".join(f"{number} x {reason}" for reason, number in failures.most_common(3))
            raise RunError(
                f"{self._server.base_url}: {failures.total()} of {len(requests)} prompts got no response: {reasons}. "
                "The other responses are kept: run the same command again, and only these are asked for"
            )


def _response_of(answer: ChatAnswer | ApiFailure) -> Response:
    text = answer.text if isinstance(answer, ChatAnswer) else ""
    is_cut = None if answer.finish_reason is None else answer.finish_reason == "length"
    return Response(text, answer.num_tokens, is_cut)
