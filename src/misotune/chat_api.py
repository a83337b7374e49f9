"""A seam to any server that speaks OpenAI's chat completions: many requests at once, answers kept on disk.

The `openai` package brings the connection, its time-outs and the retries: exponential back-off with jitter, and
`Retry-After` where the server sends one. What it has not: a cache that survives a kill, answers in the order of
the questions with flat memory, and errors that say what to do.
"""

import asyncio
import difflib
import hashlib
import json
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlsplit

from misotune.chat_cache import AnswerCache
from misotune.errors import MisotuneError, RunError, UsageError

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_FAILURES_IN_A_ROW = 20
_CHECK_TIMEOUT_S = 20
_CONNECT_TIMEOUT_S = 10
_PROBE = ({"role": "user", "content": "Say yes."},)
# Answers that wait for a slower one before them, per request in flight.
_WINDOW_PER_REQUEST = 8


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
    """The text of an answer, never empty, and whether it came from the cache."""

    text: str
    is_cached: bool = False


@dataclass(frozen=True, slots=True)
class ApiFailure:
    """A question that got no usable answer, though the server lives.

    Attributes:
        reason: Equal for equal failures, so that they can be counted.
        detail: What the server said.
    """

    reason: str
    detail: str = ""


@dataclass(slots=True)
class AskProgress:
    """Questions answered so far: all of them, those out of the cache, and those that failed."""

    done: int = 0
    cached: int = 0
    failed: int = 0


def read_api_key(variable: str | None) -> str | None:
    """Returns the key that an environment variable holds; None: no variable was named, and no key is sent.

    Raises:
        UsageError: The variable is not set.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UsageError(f"the environment variable {variable} holds no API key; set it: export {variable}=...")
    return key


class ChatApi:
    """Asks one model on one server.

    Args:
        endpoint: The server's address, such as `http://127.0.0.1:8000`; `/v1` is added where no path is given.
        model: The model's name, as the server knows it.
        cache: A file for the answers. It holds neither address nor key, so the same questions to the same model
            are not asked twice even when the server moves.
        concurrency: Requests in flight at once.
        timeout_s: Seconds until one try of a request is given up.
        retries: Tries after the first, with growing pauses, when the server is busy, fails or is away.
        api_key: Sent to the server; None: none.
        on_progress: Called after each answer.

    Raises:
        UsageError: The endpoint is no http address, or the package `openai` is missing.
    """

    def __init__(
        self,
        endpoint: str,
        model: str,
        *,
        cache: Path,
        concurrency: int = 8,
        timeout_s: float = 120.0,
        retries: int = 5,
        api_key: str | None = None,
        on_progress: Callable[[AskProgress], None] | None = None,
    ) -> None:
        self.base_url = _base_url(endpoint)
        self.model = model
        self._cache_path = cache
        self._concurrency = concurrency
        self._timeout_s = timeout_s
        self._retries = retries
        self._api_key = api_key
        self._on_progress = on_progress
        _openai()

    def ask(
        self, items: Iterable[Item], to_request: Callable[[Item], ChatRequest | None]
    ) -> Iterator[tuple[Item, ChatAnswer | ApiFailure | None]]:
        """Yields every item with its answer, in the order of the items, reading no further ahead than needed.

        Nothing is sent before a question is not in the cache.

        Args:
            items: What to ask about.
            to_request: The question; None: the item passes without one.

        Raises:
            RunError: The server is down, refuses the key, does not know the model, or fails one request after
                another. Answers so far are in the cache.
            UsageError: The cache is another file.
        """
        progress = AskProgress()
        window = self._concurrency * _WINDOW_PER_REQUEST
        waiting: deque[tuple[Item, Future[ChatAnswer | ApiFailure] | None]] = deque()
        with AnswerCache(self._cache_path) as cache, _LoopThread() as loop:
            session = loop.run(self._open(cache))
            try:
                for item in items:
                    request = to_request(item)
                    waiting.append((item, None if request is None else loop.submit(session.answer(request))))
                    while len(waiting) >= window or (waiting and _is_ready(waiting[0][1])):
                        yield self._finish(*waiting.popleft(), progress)
                while waiting:
                    yield self._finish(*waiting.popleft(), progress)
            finally:
                for _, future in waiting:
                    if future is not None:
                        future.cancel()
                loop.run(session.close())

    async def _open(self, cache: AnswerCache) -> "_Session":
        openai = _openai()
        client = openai.AsyncOpenAI(
            base_url=self.base_url,
            api_key=self._api_key or "none",  # the client wants one, and would look for one in the environment
            timeout=openai.Timeout(self._timeout_s, connect=_CONNECT_TIMEOUT_S),
            max_retries=self._retries,
        )
        return _Session(self, client, cache, self._concurrency, self._timeout_s, self._retries)

    def _finish(
        self, item: Item, future: "Future[ChatAnswer | ApiFailure] | None", progress: AskProgress
    ) -> tuple[Item, ChatAnswer | ApiFailure | None]:
        if future is None:
            return item, None
        answer = future.result()
        progress.done += 1
        progress.cached += isinstance(answer, ChatAnswer) and answer.is_cached
        progress.failed += isinstance(answer, ApiFailure)
        if self._on_progress is not None:
            self._on_progress(progress)
        return item, answer


class _Session:
    """The questions of one `ask`, on the event loop."""

    def __init__(
        self, api: ChatApi, client: Any, cache: AnswerCache, concurrency: int, timeout_s: float, retries: int
    ) -> None:
        self._api = api
        self._client = client
        self._cache = cache
        self._timeout_s = timeout_s
        self._retries = retries
        self._slots = asyncio.Semaphore(concurrency)
        self._check = asyncio.Lock()
        self._models: list[str] | None = None  # None: not asked yet; empty: the server does not say
        self._failures_in_a_row = 0
        self._dead: MisotuneError | None = None

    async def answer(self, request: ChatRequest) -> ChatAnswer | ApiFailure:
        key = request.key(self._api.model)
        known = self._cache.get(key)
        if known is not None:
            return ChatAnswer(known, is_cached=True)
        async with self._slots:
            await self._check_server(request)
            if self._dead is not None:
                raise self._dead
            try:
                answer = await self._ask(request)
            except MisotuneError as error:
                self._dead = error
                raise
        if isinstance(answer, ChatAnswer):
            self._failures_in_a_row = 0
            self._cache.put(key, answer.text)
            return answer
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            self._dead = self._gone(f"{MAX_FAILURES_IN_A_ROW} failures in a row, the last: {_said(answer)}")
            raise self._dead
        return answer

    async def close(self) -> None:
        await self._client.close()

    async def _check_server(self, request: ChatRequest) -> None:
        """Once, before the first question: is anyone there, does the key open the door, is the model known?"""
        async with self._check:
            if self._models is not None or self._dead is not None:
                return
            try:
                self._models = await self._list_models()
                if self._api.model not in self._models:
                    await self._probe(request)
            except MisotuneError as error:
                self._dead = error

    async def _list_models(self) -> list[str]:
        openai = _openai()
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
                f"{self._api.base_url}: no server answers ({_cause(error)}); start one, for example: "
                f"transformers serve {self._api.model} --port {_port(self._api.base_url)}, or correct the endpoint"
            ) from error
        except (openai.APIError, AttributeError, TypeError, ValueError):
            return []  # not every server has such a list

    async def _probe(self, request: ChatRequest) -> None:
        """Asks a word, with the options of the first question: a refusal is not the fault of a row."""
        openai = _openai()
        small = replace(request, messages=_PROBE)
        try:
            await self._ask(small, raise_refusal=True)
        except openai.APIStatusError as error:
            raise self._unknown_model(error) from error

    async def _ask(self, request: ChatRequest, raise_refusal: bool = False) -> ChatAnswer | ApiFailure:
        """One question, with the client's retries; what ends the whole run is raised."""
        openai = _openai()
        try:
            completion = await self._client.chat.completions.create(
                model=self._api.model, messages=[dict(message) for message in request.messages], **request.options
            )
            text = completion.choices[0].message.content
        except openai.APITimeoutError:
            return ApiFailure(f"no answer from the server within {self._timeout_s:g} s")
        except openai.APIConnectionError as error:
            raise self._gone(f"the server went away ({_cause(error)}), {self._retries} retries included") from error
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise self._refused_key(error) from error
        except openai.NotFoundError as error:
            raise self._unknown_model(error) from error
        except openai.RateLimitError as error:
            cure = "lower the concurrency, or wait"
            raise self._gone(f"still refuses after {self._retries} retries (429: {_detail(error)}); {cure}") from error
        except openai.APIStatusError as error:
            if raise_refusal and error.status_code < 500:
                raise
            return ApiFailure(f"the server failed with status {error.status_code}", _detail(error))
        except (openai.APIError, AttributeError, IndexError, TypeError, ValueError) as error:
            return ApiFailure("the server's answer is no chat completion", str(error))
        if not isinstance(text, str) or not text.strip():
            return ApiFailure("the server's answer is empty")
        return ChatAnswer(text)

    def _gone(self, what: str) -> RunError:
        return RunError(
            f"{self._api.base_url}: {what}; {self._cache.num_answers} answers are kept in {self._cache.path}: "
            "run the same command again, and it goes on from there"
        )

    def _refused_key(self, error: Any) -> RunError:
        return RunError(
            f"{self._api.base_url}: the server refuses the API key (status {error.status_code}); name the environment "
            "variable that holds the right one with --api-key-env"
        )

    def _unknown_model(self, error: Any) -> RunError:
        names = self._models or []
        near = difflib.get_close_matches(self._api.model, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; it lists {', '.join(names[:5])}" if names else ""
        return RunError(
            f"{self._api.base_url}: the server refuses model {self._api.model!r} "
            f"(status {error.status_code}: {_detail(error)}){hint}"
        )


class _LoopThread:
    """An event loop in a thread of its own, so that requests go on while the caller works on an answer."""

    def __enter__(self) -> "_LoopThread":
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chat-api", daemon=True)
        self._thread.start()
        return self

    def submit(self, work: Coroutine[Any, Any, Result]) -> "Future[Result]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self.submit(work).result()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.run(self._cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _cancel_all(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _openai() -> Any:
    try:
        import openai
    except ImportError as error:
        raise UsageError("asking a model needs the package openai: pip install 'misotune[llm]'") from error
    return openai


def _base_url(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"endpoint {endpoint!r} is no http address; give one such as http://127.0.0.1:8000/v1")
    if parts.username or parts.password:
        raise UsageError("an endpoint with a user name or password in it would be shown; use --api-key-env instead")
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"


def _port(base_url: str) -> int:
    parts = urlsplit(base_url)
    return parts.port or (443 if parts.scheme == "https" else 80)


def _is_ready(future: "Future[Any] | None") -> bool:
    return future is None or future.done()


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return _line(str(error) or type(error).__name__)


def _detail(error: Any) -> str:
    body = error.body
    said = body.get("message") or body.get("detail") if isinstance(body, Mapping) else None
    return _line(str(said or error.message))


def _said(failure: ApiFailure) -> str:
    return f"{failure.reason} ({failure.detail})" if failure.detail else failure.reason


def _line(text: str) -> str:
    """A server's words as part of one line."""
    words = " ".join(text.split())
    return words if len(words) <= 160 else f"{words[:157]}..."
