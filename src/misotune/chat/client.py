"""The seam to the package `openai`: one question to a server, and what its refusals mean."""

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from misotune.chat.messages import EMPTY_ANSWER, ApiFailure, ChatAnswer, ChatRequest
from misotune.chat.server import Server
from misotune.errors import RunError, UsageError

_CHECK_TIMEOUT_S = 20
_CONNECT_TIMEOUT_S = 10
_PROBE = ({"role": "user", "content": "Say yes."},)


class ServerGoneError(Exception):
    """A server that has answered, or may have, will not do so for now; the message says why."""


class ChatClient:
    """Asks a server one question at a time, on one event loop.

    Args:
        server: Who is asked.
        timeout_s: Seconds until one try of a request is given up.
        retries: Tries after the first.
    """

    def __init__(self, server: Server, timeout_s: float, retries: int) -> None:
        openai = require_openai()
        self._server = server
        self._timeout_s = timeout_s
        self._retries = retries
        self._models: list[str] = []
        self._client = openai.AsyncOpenAI(
            base_url=server.base_url,
            api_key=server.api_key or "none",  # the client wants one, and would look for one in the environment
            timeout=openai.Timeout(timeout_s, connect=_CONNECT_TIMEOUT_S),
            max_retries=retries,
        )

    async def close(self) -> None:
        """Ends the connections."""
        await self._client.close()

    async def check(self, request: ChatRequest) -> None:
        """Is anyone there, does the key open the door, is the model known?

        Args:
            request: The first question; its options must not be refused.

        Raises:
            RunError: One of these is not so.
            ServerGoneError: The server went away meanwhile.
        """
        self._models = await self._list_models()
        if self._server.model in self._models:
            return
        # A word, with the options of the first question: a refusal is not the fault of a row.
        openai = require_openai()
        try:
            await self._ask(replace(request, messages=_PROBE), raise_refusal=True)
        except openai.APIStatusError as error:
            raise self._unknown_model(error) from error

    async def ask(self, request: ChatRequest) -> ChatAnswer | ApiFailure:
        """Returns the answer to a question, with the client's retries.

        Raises:
            RunError: The server refuses the key or the model.
            ServerGoneError: The server went away, or stays busy.
        """
        return await self._ask(request)

    async def _list_models(self) -> list[str]:
        openai = require_openai()
        quick = self._client.with_options(max_retries=0, timeout=_CHECK_TIMEOUT_S)
        try:
            listed = await quick.models.list()
            return [model.id for model in listed.data]
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise self._refused_key(error) from error
        except openai.APITimeoutError:
            return []  # slow, as when it loads a model: the questions have their own patience
        except openai.APIConnectionError as error:
            raise RunError(
                f"{self._server.base_url}: no server answers ({_cause(error)}); start one, for example: "
                f"transformers serve {self._server.model} --port {self._server.port}, or correct the endpoint"
            ) from error
        except (openai.APIError, AttributeError, TypeError, ValueError):
            return []  # not every server has such a list

    async def _ask(self, request: ChatRequest, raise_refusal: bool = False) -> ChatAnswer | ApiFailure:
        openai = require_openai()
        try:
            completion = await self._client.chat.completions.create(
                model=self._server.model, messages=[dict(message) for message in request.messages], **request.options
            )
            return _read_completion(completion)
        except openai.APITimeoutError:
            return ApiFailure(f"no answer from the server within {self._timeout_s:g} s")
        except openai.APIConnectionError as error:
            tries = f"{self._retries} retries included"
            raise ServerGoneError(f"the server went away ({_cause(error)}), {tries}") from error
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise self._refused_key(error) from error
        except openai.NotFoundError as error:
            raise self._unknown_model(error) from error
        except openai.RateLimitError as error:
            raise ServerGoneError(
                f"still refuses after {self._retries} retries (429: {_detail(error)}); lower the concurrency, or wait"
            ) from error
        except openai.APIStatusError as error:
            if raise_refusal and error.status_code < 500:
                raise
            return ApiFailure(f"the server failed with status {error.status_code}", _detail(error))
        except (openai.APIError, AttributeError, IndexError, TypeError, ValueError) as error:
            return ApiFailure("the server's answer is no chat completion", _line(str(error)))

    def _refused_key(self, error: Any) -> RunError:
        return RunError(
            f"{self._server.base_url}: the server refuses the API key (status {error.status_code}); name the "
            f"environment variable that holds the right one with {self._server.key_option}"
        )

    def _unknown_model(self, error: Any) -> RunError:
        model, names = self._server.model, self._models
        near = difflib.get_close_matches(model, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; it lists {', '.join(names[:5])}" if names else ""
        return RunError(
            f"{self._server.base_url}: the server refuses model {model!r} "
            f"(status {error.status_code}: {_detail(error)}){hint}"
        )


def require_openai() -> Any:
    """Returns the package `openai`.

    Raises:
        UsageError: It is not installed.
    """
    try:
        import openai
    except ImportError as error:
        raise UsageError("asking a model needs the package openai: pip install 'misotune[llm]'") from error
    return openai


def _read_completion(completion: Any) -> ChatAnswer | ApiFailure:
    """Returns the first choice; the client does not check what a server sent, so wrong kinds raise anything."""
    choice = completion.choices[0]
    text = choice.message.content
    if text is not None and not isinstance(text, str):
        raise TypeError(f"its content is {type(text).__name__}")
    said = getattr(choice, "finish_reason", None)
    reason = said if isinstance(said, str) and said else None
    counted = getattr(getattr(completion, "usage", None), "completion_tokens", None)
    num_tokens = counted if type(counted) is int and counted >= 0 else None
    if not text or not text.strip():
        return ApiFailure(EMPTY_ANSWER, finish_reason=reason, num_tokens=num_tokens)
    return ChatAnswer(text, reason, num_tokens)


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return _line(str(error) or type(error).__name__)


def _detail(error: Any) -> str:
    body = error.body
    said = body.get("message") or body.get("detail") if isinstance(body, Mapping) else None
    return _line(str(said or error.message))


def _line(text: str) -> str:
    """A server's words as part of one line."""
    words = " ".join(text.split())
    return words if len(words) <= 160 else f"{words[:157]}..."
