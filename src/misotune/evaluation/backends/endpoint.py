"""The backend `endpoint`: a model on an OpenAI-compatible server, such as vLLM, SGLang or llama.cpp's."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from misotune.chat_api import ApiFailure, ChatApi, ChatRequest
from misotune.chat_cache import AnswerCache
from misotune.errors import RunError
from misotune.evaluation.backends.base import Conversation, Listener, Response

DEFAULT_CONCURRENCY = 8
# A response of 1280 tokens beside seven others, from a model on a CPU, takes minutes.
_TIMEOUT_S = 900.0
# chat_api's word for an answer without text: no failure here, but a response that meets nothing.
_EMPTY_ANSWER = "the server's answer is empty"


class EndpointBackend:
    """Asks a model on a server, which renders the chat template and counts the tokens itself.

    Args:
        endpoint: The server's address, such as `http://127.0.0.1:8000`; `/v1` is added where no path is given.
        model: The model's name, as the server knows it.
        api_key: Sent to the server; None: none.
        concurrency: Requests in flight at once.
        retries: Tries after the first, with growing pauses, when the server is busy, fails or is away.

    Raises:
        UsageError: The endpoint is no http address, or the package `openai` is missing.
    """

    def __init__(
        self,
        endpoint: str,
        model: str,
        *,
        api_key: str | None = None,
        concurrency: int = DEFAULT_CONCURRENCY,
        retries: int = 5,
    ) -> None:
        self._endpoint = endpoint
        self._model = model
        self._api_key = api_key
        self._concurrency = concurrency
        self._retries = retries
        self._url = self._api(Path()).base_url  # here, so that a wrong address is told before anything starts

    def settings(self, max_new_tokens: int) -> dict[str, Any]:
        """Returns the server's address and what it was asked for."""
        return {
            "backend": "endpoint",
            "endpoint": self._url,
            "max_new_tokens": max_new_tokens,
            "concurrency": self._concurrency,
            "decoding": "greedy",
        }

    def generate(
        self, conversations: Sequence[Conversation], *, max_new_tokens: int, cache: Path, listener: Listener
    ) -> None:
        """Answers every conversation; `ChatApi` keeps each answer in the cache, in whichever order they come.

        Raises:
            RunError: The server is down, refuses the key or the model, or leaves prompts without a response.
            UsageError: The cache is another file.
        """
        options = {"temperature": 0, "max_tokens": max_new_tokens}
        requests = [ChatRequest(tuple(messages), options) for messages in conversations]
        with AnswerCache(cache) as answers:
            found = {i: answers.get(request.key(self._model)) for i, request in enumerate(requests)}
        listener.on_kept({i: Response(text) for i, text in found.items() if text is not None})
        failures: Counter[str] = Counter()
        asked = (i for i, text in found.items() if text is None)
        for index, answer in self._api(cache).ask(asked, requests.__getitem__):
            assert answer is not None
            if not isinstance(answer, ApiFailure):
                listener.on_response(index, Response(answer.text))
            elif answer.reason == _EMPTY_ANSWER:
                listener.on_response(index, Response(""))
            else:
                failures[f"{answer.reason} ({answer.detail})" if answer.detail else answer.reason] += 1
        if failures:
            reasons = "; ".join(f"{number} x {reason}" for reason, number in failures.most_common(3))
            raise RunError(
                f"{self._url}: {failures.total()} of {len(requests)} prompts got no response: {reasons}. The other "
                "responses are kept: run the same command again, and only these are asked for"
            )

    def _api(self, cache: Path) -> ChatApi:
        return ChatApi(
            self._endpoint,
            self._model,
            cache=cache,
            concurrency=self._concurrency,
            timeout_s=_TIMEOUT_S,
            retries=self._retries,
            api_key=self._api_key,
        )
